"""The Fourier transform as a few small matrix products, and convolutions that leave blocks of it out.

An index n < N = N1 N2 ... Np is written in digits, n = n1 (N2 ... Np) + ..., and a frequency in the digits of the
opposite order, k = k1 + N1 (k2 + N2 (...)). A transform of length N1 over n1, a twiddle factor exp(-2 pi i k1 m / N)
with the remaining index m, and the same again for m: p products with dense N_i x N_i matrices, and the spectrum comes
out ordered by (k1, k2, ..., kp). Nothing is put back into order: for a convolution both spectra need only agree.

References
----------
D. Y. Fu, H. Kumbong, E. Nguyen, C. Re, "FlashFFTConv: Efficient Convolutions for Long Sequences with Tensor Cores",
ICLR 2024, arXiv:2311.05908.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import pi, prod

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Inexact, Int64
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = [
    "FrequencySparse",
    "balanced_factors",
    "by_fft",
    "by_products",
    "mirror_weights",
    "monarch_fft",
    "monarch_ifft",
    "monarch_order",
    "sparse_conv",
]


def monarch_fft(
    x: Inexact[Tensor, "*batch n"], factors: Sequence[int], keep: Sequence[int] | None = None
) -> Complex[Tensor, "*batch kept"]:
    """Fourier transform along the last dimension by one small matrix product for each factor of its length.

    Parameters
    ----------
    x
        Real or complex, in float32 or float64.
    factors
        N1, ..., Np, whose product is the length.
    keep
        How many values each digit of the frequency takes, from 0; the rest is not computed. ``None``: all.

    Returns
    -------
    Tensor
        The spectrum in the order of :func:`monarch_order`, unnormalised as :func:`torch.fft.fft`.

    Raises
    ------
    ValueError
        If the product of the factors is not the length, or ``keep`` does not fit the factors.

    Examples
    --------
    >>> x = torch.randn(24)
    >>> order = monarch_order((4, 6))
    >>> torch.allclose(monarch_fft(x, (4, 6)), torch.fft.fft(x)[order], atol=1e-5)
    True
    """
    check_tensor(x, "x", finite=False)
    sizes, kept = _check_factors(factors, keep, x.shape[-1])
    x = x.to(torch.promote_types(x.dtype, torch.complex64))
    return _forward(x, sizes, kept).flatten(-len(sizes))


def monarch_ifft(
    X: Complex[Tensor, "*batch kept"], factors: Sequence[int], keep: Sequence[int] | None = None
) -> Complex[Tensor, "*batch n"]:
    """Undo :func:`monarch_fft`; frequencies that were not kept count as zero.

    Parameters
    ----------
    X
        A spectrum in the order of :func:`monarch_order`.
    factors, keep
        As for :func:`monarch_fft`.

    Returns
    -------
    Tensor
        The signal, in its natural order.

    Raises
    ------
    ValueError
        As :func:`monarch_fft`.

    Examples
    --------
    >>> x = torch.randn(24, dtype=torch.complex64)
    >>> torch.allclose(monarch_ifft(monarch_fft(x, (2, 3, 4)), (2, 3, 4)), x, atol=1e-6)
    True
    """
    check_tensor(X, "X", dtype="complex", finite=False)
    sizes, kept = _check_factors(factors, keep, None)
    if X.shape[-1] != prod(kept):
        raise ValueError(f"X must have {prod(kept)} frequencies in its last dimension, got shape {tuple(X.shape)}")
    return _inverse(X.unflatten(-1, kept), sizes, kept) / prod(sizes)


def monarch_order(factors: Sequence[int], keep: Sequence[int] | None = None) -> Int64[Tensor, " kept"]:
    """Say which frequency stands where: ``monarch_fft(x, factors) == torch.fft.fft(x)[monarch_order(factors)]``.

    Examples
    --------
    >>> monarch_order((2, 3))
    tensor([0, 2, 4, 1, 3, 5])
    """
    sizes, kept = _check_factors(factors, keep, None)
    k = torch.zeros(1, dtype=torch.int64)
    for size, count in zip(reversed(sizes), reversed(kept)):
        k = (torch.arange(count)[:, None] + size * k.flatten()).flatten()
    return k


@dataclass(frozen=True)
class FrequencySparse:
    """Keeps blocks of a filter's spectrum and skips the work of the rest.

    Of N = prod(factors) frequencies k = k1 + N1 (k2 + N2 (...)) those are kept whose every digit ``k_i < keep[i]``, and
    their mirror images N - k, without which the result would not be real. Leaving out values of k1 leaves out rows of
    every matrix product and transform; with all of k1 and ``k2 < b``, what is kept are the lowest ``b N1`` frequencies.

    Parameters
    ----------
    keep
        How many values of each digit are kept, at least 1. Only k1 up to N1 / 2 is needed to keep everything.
    factors
        N1, ..., Np; the product is the convolution's length with padding (:class:`FlashFFTConv`'s ``seqlen``).

    Raises
    ------
    ValueError
        If ``keep`` does not fit the factors.

    Examples
    --------
    >>> FrequencySparse(keep=(4, 64), factors=(32, 64)).fraction
    0.21875
    """

    keep: tuple[int, ...]
    factors: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_factors(self.factors, self.keep, None)

    @property
    def seqlen(self) -> int:
        """The number of frequencies, N."""
        return prod(self.factors)

    @property
    def fraction(self) -> float:
        """The share of frequencies that are kept."""
        return self.mask().double().mean().item()

    def mask(self) -> Tensor:
        """Which frequencies are kept, in the order of :func:`torch.fft.fft`; shape (N,)."""
        order = monarch_order(self.factors, self.keep)
        mask = torch.zeros(self.seqlen, dtype=torch.bool)
        mask[order] = True
        mask[-order % self.seqlen] = True
        return mask


def balanced_factors(n: int, order: int) -> tuple[int, ...]:
    """Write ``n`` as a product of ``order`` factors as equal as its divisors allow, the largest first.

    Raises
    ------
    ValueError
        If ``n`` has not that many factors.

    Examples
    --------
    >>> balanced_factors(8192, 3), balanced_factors(1000, 2)
    ((32, 16, 16), (40, 25))
    """
    check_range(n, "n", 1, integer=True)
    rest, factors = n, []
    for left in range(check_range(order, "order", 1, integer=True), 0, -1):
        at_least = round(rest ** (1 / left) - 1e-9) if left > 1 else rest
        divisors = [d for d in range(2, rest + 1) if rest % d == 0]
        if not divisors:
            raise ValueError(f"n must be a product of {order} factors above 1, got {n}")
        factors.append(min(divisors, key=lambda d: (abs(d - at_least), -d)))
        rest //= factors[-1]
    if rest > 1:
        raise ValueError(f"n must be a product of {order} factors above 1, got {n}")
    return tuple(sorted(factors, reverse=True))


def sparse_conv(
    u: Float[Tensor, "*batch L"],
    k: Float[Tensor, "*channels Lk"],
    pattern: FrequencySparse,
    rows: Callable[[Tensor, Tensor, FrequencySparse], Tensor],
) -> Float[Tensor, "*batch L"]:
    """Convolve modulo ``pattern.seqlen`` with the kept part of the filter's spectrum; zeros are not written out.

    Parameters
    ----------
    u
        Signal of shape (..., H, L), not longer than ``pattern.seqlen``.
    k
        Filters of shape (H, Lk), of the signal's dtype.
    pattern
        What is kept.
    rows
        What follows the first factor: :func:`by_fft`, :func:`by_products`, or another convolution of the rows.

    Returns
    -------
    Tensor
        As long as the signal.
    """
    m = prod(pattern.factors[1:])
    a, first = pattern.keep[0], pattern.factors[0]
    back = rows(_first_stage(u, pattern), _first_stage(k, pattern), pattern)
    back = back * _twiddle(a, first, m, u.dtype, u.device).conj()
    matrix = _dft_rows(a, first, -(-u.shape[-1] // m), u.dtype, u.device).flatten(0, 1)
    return (matrix.mT @ torch.cat([back.real, back.imag], -2)).flatten(-2)[..., : u.shape[-1]]


def by_fft(x: Tensor, k: Tensor, pattern: FrequencySparse) -> Tensor:
    """Multiply the spectra of rows (..., k1, m) after an FFT of each; what is not kept of other digits is zeroed."""
    weight = mirror_weights(pattern.factors, pattern.keep, False).to(x.real)
    return torch.fft.ifft(torch.fft.fft(x) * (torch.fft.fft(k) * weight), norm="forward")


def by_products(x: Tensor, k: Tensor, pattern: FrequencySparse) -> Tensor:
    """The same by matrix products, which skip what is not kept of the other digits."""
    rest, keep = pattern.factors[1:], pattern.keep[1:]
    if not rest:
        return by_fft(x, k, pattern)
    weight = mirror_weights(pattern.factors, pattern.keep, True).to(x.real)
    return _inverse(_forward(x, rest, keep) * (_forward(k, rest, keep) * weight), rest, keep)


@lru_cache(maxsize=64)
def mirror_weights(factors: tuple[int, ...], keep: tuple[int, ...], digits: bool) -> Tensor:
    """1 / N for a kept frequency, twice that where its mirror image is not computed, 0 otherwise.

    Parameters
    ----------
    factors, keep
        As of :class:`FrequencySparse`.
    digits
        Shape (keep[0], ..., keep[p - 1]), or (keep[0], N / N1) with all of the other digits in natural order.
    """
    n = prod(factors)
    rows = (factors[0], n // factors[0]), (keep[0], n // factors[0])
    with torch.inference_mode(False):
        kept = torch.zeros(n, dtype=torch.bool)
        kept[monarch_order(factors, keep)] = True
        k = monarch_order(factors, keep) if digits else monarch_order(*rows)
        weight = kept[k] * (2.0 - kept[-k % n].double()) / n
        return weight.unflatten(0, keep if digits else rows[1])


def _first_stage(x: Tensor, pattern: FrequencySparse) -> Tensor:
    """Rows (..., k1, m) of a real signal: the first factor's transform and the twiddle factor."""
    a, n1, m = pattern.keep[0], pattern.factors[0], prod(pattern.factors[1:])
    used = -(-x.shape[-1] // m)  # rows of zeros are not multiplied
    x = F.pad(x, (0, used * m - x.shape[-1])).unflatten(-1, (used, m))
    both = _dft_rows(a, n1, used, x.dtype, x.device).flatten(0, 1) @ x
    return torch.complex(both[..., :a, :], both[..., a:, :]) * _twiddle(a, n1, m, x.dtype, x.device)


def _forward(x: Tensor, factors: tuple[int, ...], keep: tuple[int, ...]) -> Tensor:
    """Complex (..., N) to (..., keep[0], ..., keep[p - 1])."""
    n, real = x.shape[-1], x.real.dtype
    matrix = torch.complex(*_dft_rows(keep[0], factors[0], factors[0], real, x.device))
    if len(factors) == 1:
        return x @ matrix.mT
    m = n // factors[0]
    x = matrix @ x.unflatten(-1, (factors[0], m)) * _twiddle(keep[0], factors[0], m, real, x.device)
    return _forward(x, factors[1:], keep[1:])


def _inverse(X: Tensor, factors: tuple[int, ...], keep: tuple[int, ...]) -> Tensor:
    """The adjoint of :func:`_forward`, which is its inverse but for 1 / N."""
    real = X.real.dtype
    matrix = torch.complex(*_dft_rows(keep[0], factors[0], factors[0], real, X.device)).conj()
    if len(factors) == 1:
        return X @ matrix
    m = prod(factors[1:])
    x = _inverse(X, factors[1:], keep[1:]) * _twiddle(keep[0], factors[0], m, real, X.device).conj()
    return (matrix.mT @ x).flatten(-2)


@lru_cache(maxsize=64)
def _dft_rows(rows: int, n: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Real and imaginary part of exp(-2 pi i k1 n1 / N1) for the first frequencies and samples."""
    with torch.inference_mode(False):  # what is kept for later calls must serve training too
        turn = (_range(rows)[:, None] * _range(columns) % n).double() * (2 * pi / n)
        return torch.stack([turn.cos(), -turn.sin()]).to(device, dtype)


@lru_cache(maxsize=64)
def _twiddle(rows: int, n: int, m: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(-2 pi i k1 j / (n m)) for k1 < rows and j < m."""
    with torch.inference_mode(False):
        turn = (_range(rows)[:, None] * _range(m)).double() * (-2 * pi / (n * m))
        return torch.polar(torch.ones_like(turn), turn).to(device, dtype.to_complex())


def _range(n: int) -> Tensor:
    return torch.arange(n, device="cpu")


def _check_factors(
    factors: Sequence[int], keep: Sequence[int] | None, n: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both as tuples of the same length."""
    sizes = tuple(factors)
    kept = sizes if keep is None else tuple(keep)
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"factors must be positive integers, got {sizes}")
    if n is not None and prod(sizes) != n:
        raise ValueError(f"factors must have the product {n}, the length of x, got {sizes}")
    if len(kept) != len(sizes) or any(not 1 <= a <= size for a, size in zip(kept, sizes)):
        raise ValueError(f"keep must have one number from 1 to each of the factors {sizes}, got {kept}")
    return sizes, kept
