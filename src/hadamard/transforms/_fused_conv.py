"""The Triton kernels as differentiable functions: backwards they make spectra again and keep only what they were given.

Up to N = 16384 = 128 * 128 (in half precision) one program holds a sequence. Above, the first factor's transform is a
matrix product of PyTorch's, and the kernel convolves the rows that come out of it.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hadamard.kernels import triton_fft_conv as kernels
from hadamard.transforms.monarch import FrequencySparse, balanced_factors, mirror_weights

__all__ = ["FusedRows", "fused_conv", "fused_factors"]

_LARGEST_FLOAT32, _LARGEST_FIRST = 32, 1024  # factors of float32 within a program; the first of three


def fused_factors(n: int, dtype: torch.dtype, order: int | None = None) -> tuple[int, ...] | None:
    """Factors of ``n`` that the kernels take, the last two of them within one program; ``None`` where there are none.

    Parameters
    ----------
    n
        Length of the transform.
    dtype
        What is multiplied in; float32, for which there are no matrix units, has room for less in a program.
    order
        2 or 3 factors; ``None``: 2 where these are small enough.

    Examples
    --------
    >>> fused_factors(4096, torch.float16), fused_factors(65536, torch.float16), fused_factors(1000, torch.float16)
    ((64, 64), (64, 32, 32), None)
    """
    if n & (n - 1) or n < kernels.SMALLEST**2:
        return None
    largest = _LARGEST_FLOAT32 if dtype == torch.float32 else kernels.LARGEST
    order = (2 if n <= largest**2 else 3) if order is None else order
    if order == 2:
        factors = balanced_factors(n, 2)
        return factors if max(factors) <= largest else None
    side = min(max(1 << round((n.bit_length() - 1) / 3), kernels.SMALLEST), largest)
    first = n // side**2
    return (first, side, side) if order == 3 and 2 <= first <= _LARGEST_FIRST else None


def fused_conv(
    u: Tensor,
    k: Tensor,
    gates: tuple[Tensor | None, Tensor | None],
    factors: tuple[int, int],
    dtype: torch.dtype | None,
) -> Tensor:
    """``postgate * conv(pregate * u, k)`` modulo the product of two factors, in one kernel.

    Parameters
    ----------
    u
        Signal of shape (B, H, L).
    k
        Filters of shape (H, Lk).
    gates
        ``(pregate, postgate)``, each of the shape of ``u`` or ``None``.
    factors
        As :func:`hadamard.kernels.triton_fft_conv.supports` says.
    dtype
        What is multiplied in; ``None``: the dtype of ``u``.
    """
    spectrum = torch.fft.fft(k.float(), prod(factors))
    kf = _planes(spectrum, factors)
    pre, post = (None if g is None else g.to(u.dtype).contiguous() for g in gates)
    return _Fused.apply(u.contiguous(), kf, pre, post, factors, u.dtype if dtype is None else dtype)


class FusedRows:
    """Convolves the rows behind the first factor with the kernel, as a step of ``sparse_conv``.

    Parameters
    ----------
    dtype
        What is multiplied in; ``None``: float32.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = torch.float32 if dtype is None else dtype

    def __call__(self, x: Tensor, k: Tensor, pattern: FrequencySparse) -> Tensor:
        """Multiply the spectra of rows (..., H, k1, m) and transform back."""
        a, m, rest = pattern.keep[0], prod(pattern.factors[1:]), pattern.factors[1:]
        weight = mirror_weights(pattern.factors, pattern.keep, False).to(k.real) * m
        kf = _planes((torch.fft.fft(k) * weight).flatten(0, 1), rest)
        batch = x.shape[:-3]
        pairs = torch.view_as_real(x.flatten(-3, -2)).movedim(-1, -3).reshape(-1, kf.shape[1], m).contiguous()
        y = _Fused.apply(pairs, kf, None, None, rest, self.dtype)
        y = torch.view_as_complex(y.view(-1, 2, kf.shape[1], m).movedim(1, -1).contiguous())
        return y.view(*batch, -1, a, m)


class _Fused(Function):
    @staticmethod
    def forward(
        u: Tensor, kf: Tensor, pre: Tensor | None, post: Tensor | None, factors: tuple[int, int], dtype: torch.dtype
    ) -> Tensor:
        made = kernels.tables(*factors, dtype, u.device)
        return kernels.conv(u, kf, made, pre, post)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.factors, ctx.dtype = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        if torch.is_grad_enabled():
            raise RuntimeError("the Triton kernels have no second derivatives: use backend='fft' for them")
        u, kf, pre, post = ctx.saved_tensors
        made = kernels.tables(*ctx.factors, ctx.dtype, u.device)
        grad, other = grad.contiguous(), None if pre is None else u
        grad_u, grad_pre = kernels.conv(grad, kf, made, post, pre, other=other, adjoint=True)
        grad_k = kernels.spectrum_product(u, grad, made, pre, post) if ctx.needs_input_grad[1] else None
        grad_post = None if post is None else kernels.conv(u, kf, made, pre, grad)[0]
        return grad_u, grad_k, grad_pre, grad_post, None, None


def _planes(spectrum: Tensor, factors: tuple[int, ...]) -> Tensor:
    """(H, N) in natural order to real and imaginary parts in Monarch order, (2, H, n1, n2)."""
    n1, n2 = factors
    ordered = spectrum.unflatten(-1, (n2, n1)).mT
    return torch.stack([ordered.real, ordered.imag])
