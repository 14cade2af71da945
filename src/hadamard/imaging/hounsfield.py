"""The units of computed tomography: Hounsfield units, attenuation, and the window that an image is shown in."""

from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["WATER", "attenuation", "hounsfield", "unwindow", "window"]

WATER = 0.192  # attenuation of water per centimetre, at the 70 keV or so of a scanner


def attenuation(hu: Float[Tensor, "..."], water: float = WATER) -> Float[Tensor, "..."]:
    """Turn Hounsfield units into attenuation: ``(hu / 1000 + 1) * water``.

    Parameters
    ----------
    hu
        Air has -1000, water 0.
    water
        Attenuation of water, per unit of length (the default: per centimetre); 1 gives attenuation relative to it.

    Examples
    --------
    >>> import torch
    >>> attenuation(torch.tensor([-1000.0, 0.0, 1000.0]))
    tensor([0.0000, 0.1920, 0.3840])
    """
    check_tensor(hu, "hu", dtype="floating")
    return (hu / 1000 + 1) * check_range(water, "water", 0, closed="neither")


def hounsfield(mu: Float[Tensor, "..."], water: float = WATER) -> Float[Tensor, "..."]:
    """Turn attenuation into Hounsfield units, the inverse of :func:`attenuation`.

    Examples
    --------
    >>> import torch
    >>> hounsfield(torch.tensor([0.0, 0.192]))
    tensor([-1000.,     0.])
    """
    check_tensor(mu, "mu", dtype="floating")
    return (mu / check_range(water, "water", 0, closed="neither") - 1) * 1000


def window(hu: Float[Tensor, "..."], centre: float = 500.0, width: float = 3000.0) -> Float[Tensor, "..."]:
    """Map Hounsfield units to [0, 1]; what lies outside the window is mapped outside.

    Parameters
    ----------
    hu
        Hounsfield units.
    centre, width
        Of the window; the default, from air (-1000) to 2000, is that of :class:`~hadamard.imaging.GloReNet`.

    Examples
    --------
    >>> import torch
    >>> window(torch.tensor([-1000.0, 500.0, 2000.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    check_tensor(hu, "hu", dtype="floating")
    return (hu - centre) / check_range(width, "width", 0, closed="neither") + 0.5


def unwindow(x: Float[Tensor, "..."], centre: float = 500.0, width: float = 3000.0) -> Float[Tensor, "..."]:
    """Map [0, 1] back to Hounsfield units, the inverse of :func:`window`.

    Examples
    --------
    >>> import torch
    >>> unwindow(torch.tensor([0.5]), centre=40.0, width=400.0)
    tensor([40.])
    """
    check_tensor(x, "x", dtype="floating")
    return (x - 0.5) * check_range(width, "width", 0, closed="neither") + centre
