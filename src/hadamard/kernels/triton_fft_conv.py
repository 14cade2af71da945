"""Triton kernels for the FFT convolution: transform, product and inverse of a whole sequence in one program.

A sequence of N = n1 n2 numbers is a tile of n1 rows. Its transform is a product with a small matrix from the left, a
twiddle factor, and a product from the right (see :mod:`hadamard.transforms.monarch`), for which a GPU has matrix units.
Two rows of the batch are one complex sequence. Gates and padding are part of loading and storing.

As the softmax in :mod:`hadamard.kernels.triton`, they run in Triton's interpreter too.
"""

from dataclasses import dataclass
from functools import cache
from math import pi
from typing import Any

import torch
from torch import Tensor

from hadamard.kernels.triton import _import_triton

__all__ = ["LARGEST", "SMALLEST", "Tables", "conv", "spectrum_product", "supports", "tables"]

SMALLEST, LARGEST = 16, 128  # of n1 and n2: what the matrix units take, and what a program's registers hold
_PROGRAMS = 512  # that the sum over a batch is shared out among, where there are fewer channels


@dataclass(frozen=True)
class Tables:
    """Matrices of both transforms and the twiddle factors, real and imaginary part each.

    Attributes
    ----------
    first, second
        Shapes (2, n1, n1) and (2, n2, n2), of the type that is multiplied in.
    twiddle
        Shape (2, n1, n2), float32.
    """

    first: Tensor
    second: Tensor
    twiddle: Tensor


def supports(n1: int, n2: int) -> bool:
    """Whether the kernels take these factors: powers of two from 16 to 128.

    Examples
    --------
    >>> supports(64, 32), supports(64, 8), supports(48, 32)
    (True, False, False)
    """
    return all(SMALLEST <= n <= LARGEST and n & (n - 1) == 0 for n in (n1, n2))


@cache
def tables(n1: int, n2: int, dtype: torch.dtype, device: torch.device) -> Tables:
    """Make the tables once.

    Parameters
    ----------
    n1, n2
        Factors of the length.
    dtype
        What is multiplied: float16, bfloat16 or float32; sums are float32.
    device
        Where they are used.
    """

    def turns(rows: int, columns: int, n: int) -> Tensor:
        with torch.inference_mode(False):
            turn = torch.arange(rows)[:, None] * torch.arange(columns) % n
            turn = turn.double() * (-2 * pi / n)
            return torch.stack([turn.cos(), turn.sin()])

    return Tables(
        turns(n1, n1, n1).to(device, dtype),
        turns(n2, n2, n2).to(device, dtype),
        turns(n1, n2, n1 * n2).to(device, torch.float32),
    )


def conv(
    u: Tensor,
    kf: Tensor,
    made: Tables,
    pregate: Tensor | None = None,
    postgate: Tensor | None = None,
    *,
    other: Tensor | None = None,
    adjoint: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Convolve modulo n1 n2, ``postgate * ifft(fft(pregate * u) * kf)``.

    Parameters
    ----------
    u
        Contiguous, of shape (B, H, L) with L at most n1 n2; rows 2 b and 2 b + 1 are real and imaginary part of one
        sequence, which for real filters keeps them apart.
    kf
        The filters' spectra in Monarch order, real and imaginary parts: (2, H, n1, n2), float32.
    made
        From :func:`tables`.
    pregate, postgate
        As ``u``.
    other
        Multiplies the ungated result into a second one, as the gradients of gates need it.
    adjoint
        Whether to multiply by the conjugate of ``kf``.

    Returns
    -------
    result, second
        Of the shape and dtype of ``u``; the second is ``None`` without ``other``.

    Raises
    ------
    ImportError
        If Triton is not installed.
    """
    (batch, channels, length), (n1, n2) = u.shape, made.twiddle.shape[1:]
    y = torch.empty_like(u)
    second = None if other is None else torch.empty_like(u)
    if u.numel():
        _kernels()[0][channels, (batch + 1) // 2](
            u, *(u if x is None else x for x in (pregate, postgate, other)), kf, made.first, made.second, made.twiddle,
            y, y if second is None else second, batch, channels, length, n1, n2, _rows(length, n1, n2),
            pregate is not None, postgate is not None, other is not None, adjoint, _precision(),
            num_warps=_warps(n1, n2),
        )  # fmt: skip
    return y, second


def spectrum_product(
    u: Tensor, grad: Tensor, made: Tables, pregate: Tensor | None = None, postgate: Tensor | None = None
) -> Tensor:
    """Gradient with respect to ``kf``: ``conj(fft(pregate * u)) * fft(postgate * grad) / N``, summed over the batch.

    Parameters
    ----------
    u, made, pregate, postgate
        As for :func:`conv`.
    grad
        Gradient of its result.

    Returns
    -------
    Tensor
        Shape (2, H, n1, n2), float32.

    Raises
    ------
    ImportError
        If Triton is not installed.
    """
    (batch, channels, length), (n1, n2) = u.shape, made.twiddle.shape[1:]
    pairs = (batch + 1) // 2
    splits = max(min(pairs, _PROGRAMS // channels), 1)
    out = u.new_empty(splits, 2, channels, n1, n2, dtype=torch.float32)
    _kernels()[1][channels, splits](
        u, grad, *(u if x is None else x for x in (pregate, postgate)), made.first, made.second, made.twiddle,
        out, batch, channels, length, n1, n2, _rows(length, n1, n2),
        pregate is not None, postgate is not None, _precision(), num_warps=_warps(n1, n2),
    )  # fmt: skip
    return out.sum(0)


def _rows(length: int, n1: int, n2: int) -> int:
    """Rows of the tile that hold anything but padding, as a power of two of at least 16."""
    used = -(-length // n2)
    return min(n1, max(SMALLEST, 1 << (used - 1).bit_length()))


def _warps(n1: int, n2: int) -> int:
    return 4 if n1 * n2 <= 1024 else 8


def _precision() -> str:
    """Whether products of float32 numbers may be rounded, as :func:`torch.set_float32_matmul_precision` says."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@cache
def _kernels() -> tuple[Any, Any]:
    global _product, _load_pair, _store_pair, _forward, _inverse  # where Triton looks up what kernels call
    triton = _import_triton()
    import triton.language as tl

    @triton.jit
    def _product(ar, ai, br, bi, precision: tl.constexpr):  # type: ignore[no-untyped-def]
        """Complex matrix product."""
        re = tl.dot(ar, br, input_precision=precision) - tl.dot(ai, bi, input_precision=precision)
        im = tl.dot(ar, bi, input_precision=precision) + tl.dot(ai, br, input_precision=precision)
        return re, im

    @triton.jit
    def _load_pair(x, gate, gated: tl.constexpr, pair, h, batch, channels, length, o):  # type: ignore[no-untyped-def]
        """Two rows of a batch; beyond their length, and for a missing second one, zeros."""
        at = (2 * pair * channels + h).to(tl.int64) * length + o
        after = at + channels.to(tl.int64) * length
        there = o < tl.where(2 * pair + 1 < batch, length, 0)
        re = tl.load(x + at, mask=o < length, other=0.0).to(tl.float32)
        im = tl.load(x + after, mask=there, other=0.0).to(tl.float32)
        if gated:
            re *= tl.load(gate + at, mask=o < length, other=0.0).to(tl.float32)
            im *= tl.load(gate + after, mask=there, other=0.0).to(tl.float32)
        return re, im

    @triton.jit
    def _store_pair(y, gate, gated: tl.constexpr, re, im, pair, h, batch, channels, length, o):  # type: ignore[no-untyped-def]
        """Undo it."""
        at = (2 * pair * channels + h).to(tl.int64) * length + o
        after = at + channels.to(tl.int64) * length
        there = o < tl.where(2 * pair + 1 < batch, length, 0)
        if gated:
            re *= tl.load(gate + at, mask=o < length, other=0.0).to(tl.float32)
            im *= tl.load(gate + after, mask=there, other=0.0).to(tl.float32)
        tl.store(y + at, re.to(y.dtype.element_ty), mask=o < length)
        tl.store(y + after, im.to(y.dtype.element_ty), mask=there)

    @triton.jit
    def _forward(  # type: ignore[no-untyped-def]
        re, im, first, second, twiddle, n1: tl.constexpr, n2: tl.constexpr, rows: tl.constexpr, precision: tl.constexpr
    ):
        """Transform (rows, n2) to the spectrum (n1, n2); the rows that are missing are zeros."""
        kind = first.dtype.element_ty
        left = tl.arange(0, n1)[:, None] * n1 + tl.arange(0, rows)[None, :]
        tile = tl.arange(0, n1)[:, None] * n2 + tl.arange(0, n2)[None, :]
        right = tl.arange(0, n2)[:, None] * n2 + tl.arange(0, n2)[None, :]
        f_re, f_im = tl.load(first + left), tl.load(first + n1 * n1 + left)
        re, im = _product(f_re, f_im, re.to(kind), im.to(kind), precision)
        t_re, t_im = tl.load(twiddle + tile), tl.load(twiddle + n1 * n2 + tile)
        turned, im = re * t_re - im * t_im, re * t_im + im * t_re
        f_re, f_im = tl.load(second + right), tl.load(second + n2 * n2 + right)
        return _product(turned.to(kind), im.to(kind), f_re, f_im, precision)

    @triton.jit
    def _inverse(  # type: ignore[no-untyped-def]
        re, im, first, second, twiddle, n1: tl.constexpr, n2: tl.constexpr, rows: tl.constexpr, precision: tl.constexpr
    ):
        """The conjugate transposes in the opposite order; only the rows that are wanted."""
        kind = first.dtype.element_ty
        left = tl.arange(0, rows)[:, None] * n1 + tl.arange(0, n1)[None, :]
        tile = tl.arange(0, n1)[:, None] * n2 + tl.arange(0, n2)[None, :]
        right = tl.arange(0, n2)[:, None] * n2 + tl.arange(0, n2)[None, :]
        f_re, f_im = tl.load(second + right), -tl.load(second + n2 * n2 + right)
        re, im = _product(re.to(kind), im.to(kind), f_re, f_im, precision)
        t_re, t_im = tl.load(twiddle + tile), tl.load(twiddle + n1 * n2 + tile)
        turned, im = re * t_re + im * t_im, im * t_re - re * t_im
        f_re, f_im = tl.load(first + left), -tl.load(first + n1 * n1 + left)
        return _product(f_re, f_im, turned.to(kind), im.to(kind), precision)

    @triton.jit
    def convolve(  # type: ignore[no-untyped-def]
        u, pre, post, other, kf, first, second, twiddle, y, z, batch, channels, length,
        n1: tl.constexpr, n2: tl.constexpr, rows: tl.constexpr, has_pre: tl.constexpr, has_post: tl.constexpr,
        has_other: tl.constexpr, adjoint: tl.constexpr, precision: tl.constexpr,
    ):  # fmt: skip
        h, pair = tl.program_id(0), tl.program_id(1)
        o = tl.arange(0, rows)[:, None] * n2 + tl.arange(0, n2)[None, :]
        tile = tl.arange(0, n1)[:, None] * n2 + tl.arange(0, n2)[None, :]
        re, im = _load_pair(u, pre, has_pre, pair, h, batch, channels, length, o)
        re, im = _forward(re, im, first, second, twiddle, n1, n2, rows, precision)
        at = kf + h.to(tl.int64) * (n1 * n2) + tile
        k_re = tl.load(at) * (1.0 / (n1 * n2))  # here, so that no later sum outgrows half precision
        k_im = tl.load(at + channels.to(tl.int64) * (n1 * n2)) * (1.0 / (n1 * n2))
        if adjoint:
            k_im = -k_im
        turned, im = re * k_re - im * k_im, re * k_im + im * k_re
        re, im = _inverse(turned, im, first, second, twiddle, n1, n2, rows, precision)
        if has_other:
            _store_pair(z, other, True, re, im, pair, h, batch, channels, length, o)
        _store_pair(y, post, has_post, re, im, pair, h, batch, channels, length, o)

    @triton.jit
    def multiply(  # type: ignore[no-untyped-def]
        u, grad, pre, post, first, second, twiddle, out, batch, channels, length,
        n1: tl.constexpr, n2: tl.constexpr, rows: tl.constexpr, has_pre: tl.constexpr, has_post: tl.constexpr,
        precision: tl.constexpr,
    ):  # fmt: skip
        h, split = tl.program_id(0), tl.program_id(1)
        o = tl.arange(0, rows)[:, None] * n2 + tl.arange(0, n2)[None, :]
        tile = tl.arange(0, n1)[:, None] * n2 + tl.arange(0, n2)[None, :]
        sum_re = tl.zeros((n1, n2), tl.float32)
        sum_im = tl.zeros((n1, n2), tl.float32)
        for pair in range(split, (batch + 1) // 2, tl.num_programs(1)):
            re, im = _load_pair(u, pre, has_pre, pair, h, batch, channels, length, o)
            re, im = _forward(re, im, first, second, twiddle, n1, n2, rows, precision)
            g_re, g_im = _load_pair(grad, post, has_post, pair, h, batch, channels, length, o)
            g_re, g_im = _forward(g_re, g_im, first, second, twiddle, n1, n2, rows, precision)
            sum_re += re * g_re + im * g_im
            sum_im += re * g_im - im * g_re
        at = out + (2 * split * channels + h).to(tl.int64) * (n1 * n2) + tile
        tl.store(at, sum_re * (1.0 / (n1 * n2)))
        tl.store(at + channels.to(tl.int64) * (n1 * n2), sum_im * (1.0 / (n1 * n2)))

    return convolve, multiply
