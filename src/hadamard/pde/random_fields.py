"""Gaussian random fields on a box: the random initial conditions and coefficients of data generators."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.spectral.fft import frequencies
from hadamard.validation import check_option, check_range

__all__ = ["gaussian_field"]


def gaussian_field(
    shape: Sequence[int],
    batch: int = 1,
    *,
    tau: float = 7.0,
    alpha: float = 2.5,
    scale: float | None = None,
    boundary: str = "periodic",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch *shape"]:
    """Draw from ``N(0, scale^2 (-laplacian + tau^2)^(-alpha))`` on the unit box, mean zero.

    Parameters
    ----------
    shape
        Numbers of points along each axis.
    batch
        Number of fields.
    tau
        Inverse of the correlation's length.
    alpha
        Smoothness: amplitudes fall off like ``k^-alpha``.
    scale
        ``None``: ``tau^(alpha - d / 2)`` in d dimensions, as in the data of Fourier neural operators, with which the
        variance depends on ``tau`` little.
    boundary
        ``"periodic"``, or ``"neumann"``: no slope across the boundary, at the midpoints of cells.
    generator
        Randomness and device.
    dtype
        Of the fields.

    Notes
    -----
    Draws on two grids from one seed are not the same function. Each coefficient up to the Nyquist frequency is drawn,
    so that means over fields converge, with the grid, to those of the field on the continuum.

    Examples
    --------
    >>> gaussian_field((64, 64), 3, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([3, 64, 64])
    """
    check_range(batch, "batch", 1, integer=True)
    check_range(tau, "tau", 0)
    check_range(alpha, "alpha", 0, None, closed="neither")
    check_option(boundary, "boundary", ("periodic", "neumann"))
    d, reflected = len(shape), boundary == "neumann"
    scale = tau ** (alpha - d / 2) if scale is None else check_range(scale, "scale", 0)
    sizes = [2 * n for n in shape] if reflected else list(shape)
    device = None if generator is None else generator.device
    spacing = [1 / n for n in shape]
    square = sum((2 * math.pi * k).square() for k in frequencies(sizes, spacing, real=True, dtype=dtype, device=device))
    assert isinstance(square, Tensor)
    amplitude = torch.where(square > 0, (square + tau**2).clamp_min(torch.finfo(dtype).tiny) ** (-alpha / 2), 0)
    noise = torch.randn(batch, *sizes, generator=generator, device=device, dtype=dtype)
    axes = tuple(range(1, d + 1))
    for axis in axes if reflected else ():
        noise = (noise + noise.flip(axis)) / math.sqrt(2)
    # White noise of variance 1 a point has coefficients of variance 1 / points; those of the field have variance 1.
    scale = scale * math.sqrt(math.prod(shape))
    field = torch.fft.irfftn(torch.fft.rfftn(noise, dim=axes) * (scale * amplitude), s=sizes, dim=axes)
    return field[(slice(None), *(slice(n) for n in shape))].contiguous()
