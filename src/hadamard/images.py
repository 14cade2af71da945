"""Small helpers for images of any size."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.nn import functional as F

from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["pad_to_multiple", "psnr"]


def pad_to_multiple(
    x: Inexact[Tensor, "*batch h w"], m: int, mode: str = "reflect"
) -> tuple[Inexact[Tensor, "*batch H W"], Callable[[Tensor], Tensor]]:
    """Enlarge images at the bottom and on the right, until height and width are multiples of a number.

    Parameters
    ----------
    x
        Images, shape (..., H, W).
    m
        The number.
    mode
        What is put there: ``"reflect"`` (the image mirrored at its last pixel; where it is too small for that,
        ``"replicate"``), ``"replicate"`` (its last pixel) or ``"constant"`` (zeros).

    Returns
    -------
    Tensor
        The images enlarged; ``x`` itself where nothing is to be done.
    callable
        Cuts what was added off images of that size again, whatever their leading dimensions.

    Raises
    ------
    ValueError
        If ``x`` has less than two dimensions, ``m`` is not positive, or there is no such mode.

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(6.0).reshape(1, 2, 3)
    >>> larger, crop = pad_to_multiple(x, 4)
    >>> larger.shape, bool((crop(larger) == x).all())
    (torch.Size([1, 4, 4]), True)
    """
    check_tensor(x, "x", dtype=None, finite=False)
    if x.ndim < 2:
        raise ValueError(f"x must have at least 2 dimensions, got shape {tuple(x.shape)}")
    check_range(m, "m", 1, integer=True)
    check_option(mode, "mode", ("reflect", "replicate", "constant"))
    height, width = x.shape[-2:]
    down, right = -height % m, -width % m
    if not (down or right):
        return x, lambda y: y
    if mode == "reflect" and (down >= height or right >= width):
        mode = "replicate"
    planes = x.reshape(-1, 1, height, width)  # torch pads any number of dimensions with zeros only
    larger = F.pad(planes, (0, right, 0, down), mode=mode)
    return larger.reshape(*x.shape[:-2], *larger.shape[-2:]), lambda y: y[..., :height, :width]


def psnr(x: Float[Tensor, "n *shape"], clean: Float[Tensor, "n *shape"], peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(peak^2 / mean squared error)``, the mean over all pictures.

    Examples
    --------
    >>> psnr(torch.full((1, 4), 0.1), torch.zeros(1, 4))
    20.0
    """
    error = float((x - clean).double().square().mean())
    return round(10 * float(torch.tensor(peak**2 / max(error, 1e-30)).double().log10()), 6)
