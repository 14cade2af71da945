"""Conventions of the discrete Fourier transform: centring, sizes, frequencies, radial averages."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["fft_centred", "frequencies", "good_size", "ifft_centred", "radial_average"]


def fft_centred(
    x: Inexact[Tensor, "*shape"], dims: Sequence[int] = (-2, -1), norm: str = "ortho"
) -> Complex[Tensor, "*shape"]:
    """Transform with the zero frequency and the origin at index ``n // 2``, as imaging k-space has them.

    Parameters
    ----------
    x
        Real or complex tensor.
    dims
        Dimensions to transform.
    norm
        ``"ortho"``, ``"backward"`` or ``"forward"``, as in :mod:`torch.fft`.

    Returns
    -------
    Tensor
        ``fftshift(fftn(ifftshift(x)))`` over ``dims``; the same order for odd sizes.

    Examples
    --------
    >>> delta = torch.zeros(5).index_fill(0, torch.tensor(2), 1.0)
    >>> fft_centred(delta, dims=(-1,), norm="backward").real
    tensor([1., 1., 1., 1., 1.])
    """
    check_tensor(x, "x", finite=False)
    dims = tuple(dims)
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, dims), dim=dims, norm=norm), dims)


def ifft_centred(
    x: Inexact[Tensor, "*shape"], dims: Sequence[int] = (-2, -1), norm: str = "ortho"
) -> Complex[Tensor, "*shape"]:
    """Undo :func:`fft_centred` with the same ``dims`` and ``norm``.

    Examples
    --------
    >>> x = torch.arange(5.0)
    >>> ifft_centred(fft_centred(x, dims=(-1,)), dims=(-1,)).real.round()
    tensor([0., 1., 2., 3., 4.])
    """
    check_tensor(x, "x", finite=False)
    dims = tuple(dims)
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(x, dims), dim=dims, norm=norm), dims)


def good_size(n: int, real: bool = True) -> int:
    """The smallest size of at least ``n`` whose transform is fast; even for real transforms.

    Examples
    --------
    >>> good_size(1021), good_size(7, real=True)
    (1024, 8)
    """
    check_range(n, "n", 1)
    return (_good_size if torch.compiler.is_compiling() else _known_good_size)(n, real)


def _good_size(n: int, real: bool) -> int:
    odd = [1]
    for prime in (3, 5) if real else (3, 5, 7, 11):
        for m in odd:  # grows as it goes
            if m * prime < 2 * n:
                odd.append(m * prime)
    least = 1 if real and n > 1 else 0
    return min(m << max((-(-n // m) - 1).bit_length(), least) for m in odd)


_known_good_size = lru_cache(maxsize=1024)(_good_size)


def frequencies(
    shape: Sequence[int],
    spacing: float | Sequence[float] = 1.0,
    real: bool = False,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> list[Float[Tensor, "..."]]:
    """Frequencies of each axis in cycles per unit length, shaped so that they broadcast to the whole grid.

    Parameters
    ----------
    shape
        Numbers of samples.
    spacing
        Distance between samples, one for all axes or one an axis.
    real
        Whether the last axis is that of ``rfft``.
    dtype, device
        Of the result.

    Examples
    --------
    >>> [f.shape for f in frequencies((4, 6), real=True)]
    [torch.Size([4, 1]), torch.Size([1, 4])]
    """
    steps = [spacing] * len(shape) if isinstance(spacing, (int, float)) else list(spacing)
    if len(steps) != len(shape):
        raise ValueError(f"spacing must have one entry for each of the {len(shape)} axes, got {len(steps)}")
    grids = []
    for axis, (n, step) in enumerate(zip(shape, steps)):
        make = torch.fft.rfftfreq if real and axis == len(shape) - 1 else torch.fft.fftfreq
        line = make(n, step, dtype=dtype, device=device)
        grids.append(line.reshape([-1 if a == axis else 1 for a in range(len(shape))]))
    return grids


def radial_average(power: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch r"]:
    """Average a full, uncentred two-dimensional spectrum over rings of width one (in units of the lowest frequency).

    Parameters
    ----------
    power
        Values on the grid of ``fft2``, for example ``abs(fft2(x)) ** 2``; square or not.

    Returns
    -------
    Tensor
        Means over the rings ``round(|k|) = 0, 1, ..., min(h, w) // 2``.

    Examples
    --------
    >>> radial_average(torch.ones(8, 8))
    tensor([1., 1., 1., 1., 1.])
    """
    check_tensor(power, "power", dtype="floating", finite=False)
    h, w = power.shape[-2:]
    fy, fx = frequencies((h, w), dtype=torch.float64, device=power.device)
    ring = ((fy * h).square() + (fx * w).square()).sqrt().round().long().flatten()
    rings = min(h, w) // 2 + 1
    keep = ring < rings
    flat = power.reshape(*power.shape[:-2], h * w)[..., keep]
    total = power.new_zeros(*power.shape[:-2], rings).index_add_(-1, ring[keep], flat)
    return total / torch.bincount(ring[keep], minlength=rings).to(power.dtype)
