"""Generated pictures whose best rate of denoising is known: smooth regions along a smooth edge, and discs."""

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.spectral.fft import frequencies
from hadamard.validation import check_range

__all__ = ["c_alpha_images", "disc_images"]


def c_alpha_images(
    n: int, size: int = 32, alpha: float = 2.0, *, generator: torch.Generator | None = None
) -> Float[Tensor, "n 1 size size"]:
    """Draw pictures of two regions of regularity alpha, which an edge of regularity alpha divides.

    Parameters
    ----------
    n
        Number of pictures.
    size
        Height and width.
    alpha
        Regularity: amplitudes of regions and edge fall like the frequency to the power -alpha.
    generator
        ``None``: a fixed seed.

    Returns
    -------
    Tensor
        In [0, 1], with a step of intensity along the edge.

    Notes
    -----
    The best mean squared error of denoisers falls like ``sigma^(2 alpha / (alpha + 1))`` as sigma goes to 0; that of
    wavelets like ``sigma`` for every ``alpha >= 1``.

    References
    ----------
    A. P. Korostelev, A. B. Tsybakov. Minimax Theory of Image Reconstruction. Springer, 1993.

    Examples
    --------
    >>> c_alpha_images(3, 16).shape
    torch.Size([3, 1, 16, 16])
    """
    check_range(n, "n", 1, integer=True)
    check_range(size, "size", 4, integer=True)
    check_range(alpha, "alpha", 0, None, closed="neither")
    generator = generator or torch.Generator().manual_seed(0)
    edge = _field((n, size), alpha, 1, generator)
    height = size / 2 + 0.35 * size * edge / edge.abs().amax(1, keepdim=True) * _uniform(n, generator)
    regions = _field((2, n, size, size), alpha, 2, generator)
    low, high = regions.amin((2, 3), keepdim=True), regions.amax((2, 3), keepdim=True)
    regions = (regions - low) / (high - low)
    dark = 0.4 * regions[0]
    bright = 0.6 + 0.4 * regions[1]
    swap = (_uniform(n, generator) < 0.5)[:, :, None]
    above, below = torch.where(swap, bright, dark), torch.where(swap, dark, bright)
    rows = torch.arange(size)[None, :, None]
    images = torch.where(rows < height.round()[:, None, :], above, below)
    wide = torch.nn.functional.pad(images[:, None], (0, 1, 0, 1), mode="replicate")
    return torch.nn.functional.avg_pool2d(wide, 2, stride=1)


def disc_images(n: int, size: int = 32, *, generator: torch.Generator | None = None) -> Float[Tensor, "n 1 size size"]:
    """Draw discs on an even ground: pictures of five numbers each (place, radius, two intensities).

    Parameters
    ----------
    n, size, generator
        As for :func:`c_alpha_images`.

    Returns
    -------
    Tensor
        In [0, 1], edges one pixel wide. The best mean squared error of denoisers falls like ``sigma^2``.

    Examples
    --------
    >>> disc_images(3, 16).shape
    torch.Size([3, 1, 16, 16])
    """
    check_range(n, "n", 1, integer=True)
    check_range(size, "size", 4, integer=True)
    generator = generator or torch.Generator().manual_seed(0)
    centre = size * (0.25 + 0.5 * torch.rand(2, n, 1, 1, generator=generator))
    radius = size * (0.1 + 0.3 * torch.rand(n, 1, 1, generator=generator))
    inside, outside = torch.rand(2, n, 1, 1, generator=generator)
    at = torch.arange(size) + 0.5
    distance = ((at[:, None] - centre[0]).square() + (at - centre[1]).square()).sqrt()
    share = (radius - distance + 0.5).clamp(0, 1)
    return (outside + (inside - outside) * share)[:, None]


def _field(shape: tuple[int, ...], alpha: float, dims: int, generator: torch.Generator) -> Tensor:
    """Uniform noise whose amplitudes are divided by the frequency to the power alpha; the mean's by the lowest."""
    axes = tuple(range(-dims, 0))
    noise = 2 * torch.rand(shape, generator=generator) - 1
    k = sum((f * n).square() for f, n in zip(frequencies(shape[-dims:]), shape[-dims:]))
    radius = torch.as_tensor(k).sqrt().clamp(min=1)
    return torch.fft.ifftn(torch.fft.fftn(noise, dim=axes) / radius**alpha, dim=axes).real


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, 1, generator=generator)
