"""What happens to pictures on the way: blur and missing pixels, as linear operators; counted photons, dusk and rain."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hadamard.operators.base import LinearOperator
from hadamard.validation import check_range, check_tensor

__all__ = ["GaussianBlur", "Inpainting", "darkened", "photon_noise", "rain"]


class GaussianBlur(LinearOperator):
    """Blur pictures with a Gaussian, continuing them by reflection (the edge pixel is repeated).

    The operator is its own adjoint and its norm is 1.

    Parameters
    ----------
    shape
        Height and width.
    sigma
        Standard deviation in pixels, above 0.

    Examples
    --------
    >>> blur = GaussianBlur((5, 5), 0.5)
    >>> float(blur(torch.ones(5, 5)).mean())
    1.0
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, shape: Sequence[int], sigma: float) -> None:
        super().__init__(tuple(shape), tuple(shape))
        check_range(sigma, "sigma", 0, closed="neither")
        if len(self.in_shape) != 2:
            raise ValueError(f"shape must be height and width, got {tuple(shape)}")
        self.register_buffer("rows", _blur_matrix(self.in_shape[0], sigma))
        self.register_buffer("columns", _blur_matrix(self.in_shape[1], sigma))

    def A(self, x: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """Blur."""
        self.check_in(x)
        return self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype)

    def A_adjoint(self, y: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """Blur: the operator is symmetric."""
        return self.A(y)


class Inpainting(LinearOperator):
    """Keep the known pixels of a picture and set the others to 0; a projection, its own adjoint and pseudo-inverse.

    Parameters
    ----------
    known
        True where a pixel was measured, of shape (height, width); at least one is.

    Examples
    --------
    >>> Inpainting(torch.tensor([[True, False]]))(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 0.]])
    """

    known: Tensor

    def __init__(self, known: Bool[Tensor, "h w"]) -> None:
        check_tensor(known, "known", ndim=2, dtype=torch.bool)
        if not bool(known.any()):
            raise ValueError("known must be true somewhere, got a mask with no known pixel")
        super().__init__(tuple(known.shape), tuple(known.shape))
        self.register_buffer("known", known)

    def A(self, x: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """Set unknown pixels to 0."""
        return self.check_in(x) * self.known

    def A_adjoint(self, y: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """Set unknown pixels to 0."""
        return self.A(y)

    def A_dagger(self, y: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """Set unknown pixels to 0 (exact)."""
        return self.A(y)


def photon_noise(
    y: Float[Tensor, "*batch p a"], photons: float, *, generator: torch.Generator | None = None
) -> Float[Tensor, "*batch p a"]:
    """Measure line integrals of attenuation by counting photons, whose number is Poisson-distributed.

    Parameters
    ----------
    y
        Line integrals, without unit: attenuation per centimetre times centimetres.
    photons
        Sent out for each ray, above 0; ``photons * exp(-y)`` arrive on average.
    generator
        Draws them; ``None``: torch's own.

    Returns
    -------
    Tensor
        ``-log(counts / photons)``, where none arrived as if one had.

    Raises
    ------
    ValueError
        If ``y`` is not finite or ``photons`` is not positive.

    Examples
    --------
    >>> noisy = photon_noise(torch.full((5, 4), 3.0), 1e6)
    >>> bool((noisy - 3).abs().max() < 0.03)
    True
    """
    check_tensor(y, "y", dtype="floating")
    check_range(photons, "photons", 0, closed="neither")
    counts = torch.poisson(photons * (-y).exp(), generator=generator)
    return -(counts.clamp(min=1) / photons).log()


def darkened(x: Float[Tensor, "*batch h w"], gamma: float, gain: float) -> Float[Tensor, "*batch h w"]:
    """Darken pictures as too little light does: ``gain * x ** gamma``.

    Parameters
    ----------
    x
        Pictures with values in [0, 1].
    gamma
        At least 1.
    gain
        In (0, 1].

    Raises
    ------
    ValueError
        If a value lies outside its range.

    Examples
    --------
    >>> darkened(torch.tensor([[0.0, 0.5, 1.0]]), 2.0, 0.4)
    tensor([[0.0000, 0.1000, 0.4000]])
    """
    check_range(x, "x", 0, 1, elementwise=True)
    check_range(gamma, "gamma", 1)
    check_range(gain, "gain", 0, 1, closed="right")
    return gain * x**gamma


def rain(
    x: Float[Tensor, "b c h w"], *, density: float = 0.02, length: int = 9, slant: float = 0.2,
    strength: float = 0.8, generator: torch.Generator | None = None,
) -> Float[Tensor, "b c h w"]:  # fmt: skip
    """Draw bright streaks over pictures, as rain leaves: ``x + (1 - x) * streaks``, the same in all channels.

    Parameters
    ----------
    x
        Pictures with values in [0, 1].
    density
        Share of the pixels where a streak begins, in [0, 1].
    length
        Of a streak, in rows.
    slant
        Columns that it moves aside from row to row, in [-1, 1].
    strength
        Largest brightness of a streak, in [0, 1]; each has its own, from a third of it on.
    generator
        Draws them; ``None``: torch's own.

    Raises
    ------
    ValueError
        If a value lies outside its range.

    Examples
    --------
    >>> wet = rain(torch.zeros(1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    >>> bool((wet > 0).any()), bool((wet <= 0.8).all())
    (True, True)
    """
    check_tensor(x, "x", ndim=4, dtype="floating")
    check_range(x, "x", 0, 1, elementwise=True)
    for name, value, low in (("density", density, 0), ("slant", slant, -1), ("strength", strength, 0)):
        check_range(value, name, low, 1)
    check_range(length, "length", 1, integer=True)
    where = generator.device if generator is not None else x.device
    begins, brightness = torch.rand(2, len(x), 1, *x.shape[-2:], generator=generator, device=where).to(x)
    drops = (begins < density) * strength * (1 + 2 * brightness) / 3
    rows = torch.arange(length, device=x.device)
    kernel = x.new_zeros(1, 1, 2 * length + 1, 2 * length + 1)
    kernel[0, 0, length - rows, length - (slant * rows).round().long()] = 1  # a correlation looks back along the streak
    return x + (1 - x) * F.conv2d(drops, kernel, padding=length).clamp(max=strength)


def _blur_matrix(n: int, sigma: float) -> Float[Tensor, "n n"]:
    """Gaussian blur along one axis with reflected ends, as a symmetric matrix whose rows sum to 1."""
    reach = min(n - 1, max(1, round(4 * sigma)))
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-offsets.double().square() / (2 * sigma**2))
    at = torch.arange(n)[:, None] + offsets
    at = torch.where(at < 0, -1 - at, torch.where(at >= n, 2 * n - 1 - at, at))
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, at, (weights / weights.sum()).expand(n, -1))
