"""What a diagonal linear recurrence needs: a parallel scan, sums of exponentials on a grid, real matrix products."""

from math import isqrt
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor

__all__ = ["enter", "exponential_sum", "hold", "leave", "leave_channels", "linear_scan"]

_RADIX = 16


def linear_scan(
    a: Inexact[Tensor, "#batch #length *#width"],
    b: Inexact[Tensor, "batch length *width"],
    reverse: bool = False,
) -> Inexact[Tensor, "batch length *width"]:
    """All states of ``x[l] = a[l] x[l - 1] + b[l]`` (from the end on where ``reverse``), ``x`` being 0 before.

    A scan in logarithmic depth: blocks of 16 steps side by side, then the same on the states at their ends, then both
    put together. The gradient is one more scan the other way; only ``a`` and the states are kept for it.

    Parameters
    ----------
    a
        Factors; a length of 1 stands for the same factor at all times.
    b
        Inputs. The dtype is that of ``a``.
    """
    return _Scan.apply(a, b, reverse)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
        return _scan(a, b, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.reverse = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        a, x = ctx.saved_tensors
        shifted = a if a.shape[1] == 1 else _shift(a, not ctx.reverse)  # the factor by which x[l] enters what follows
        grad_b = linear_scan(shifted.conj(), grad, not ctx.reverse)
        grad_a = None
        if ctx.needs_input_grad[0]:
            grad_a = (grad_b * _shift(x, ctx.reverse).conj()).sum_to_size(a.shape)
        return grad_a, grad_b, None


def _shift(x: Tensor, earlier: bool) -> Tensor:
    """Move by one in time, with a zero where nothing comes in."""
    zero = torch.zeros_like(x[:, :1])
    return torch.cat([x[:, 1:], zero] if earlier else [zero, x[:, :-1]], 1)


def _scan(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    """Blocks of ``_RADIX`` steps, recursively."""
    length = b.shape[1]
    if length <= _RADIX:
        x = b.clone(memory_format=torch.contiguous_format)
        _steps(a, x, 1, reverse)
        return x
    blocks = -(-length // _RADIX)
    x = _blocked(b, blocks)
    fixed = a.shape[1] == 1
    if fixed:
        powers = a[:, :, None].expand(-1, -1, _RADIX, *a.shape[2:]).clone()
        _products(powers, reverse)
        _steps(a[:, :, None], x, 2, reverse)
    else:
        factors = _blocked(a, blocks)
        _steps(factors, x, 2, reverse)
        powers = factors
        _products(powers, reverse)
    last = 0 if reverse else _RADIX - 1
    carry = _scan(powers[:, :, last], x[:, :, last], reverse)
    behind, ahead = (slice(None, -1), slice(1, None)) if reverse else (slice(1, None), slice(None, -1))
    x[:, behind].addcmul_(powers if fixed else powers[:, behind], carry[:, ahead, None])
    return x.flatten(1, 2)[:, :length]


def _blocked(x: Tensor, blocks: int) -> Tensor:
    padded = x.new_zeros(x.shape[0], blocks * _RADIX, *x.shape[2:])
    padded[:, : x.shape[1]] = x
    return padded.unflatten(1, (blocks, _RADIX))


def _steps(a: Tensor, x: Tensor, dim: int, reverse: bool) -> None:
    """The recurrence itself, in place along ``dim``."""
    n, last = x.shape[dim], a.shape[dim] - 1
    for t in range(n - 2, -1, -1) if reverse else range(1, n):
        x.select(dim, t).addcmul_(a.select(dim, min(t, last)), x.select(dim, t + (1 if reverse else -1)))


def _products(a: Tensor, reverse: bool) -> None:
    """Cumulative products inside the blocks, in place."""
    n = a.shape[2]
    for t in range(n - 2, -1, -1) if reverse else range(1, n):
        a[:, :, t].mul_(a[:, :, t + (1 if reverse else -1)])


def exponential_sum(
    weights: Inexact[Tensor, "*#batch k"], rates: Inexact[Tensor, "*#batch k"], length: int
) -> Inexact[Tensor, "*batch length"]:
    """``Re sum_k weights[k] exp(rates[k] l)`` for ``l = 0, ..., length - 1``.

    With ``l = i T + j`` and ``T`` near ``sqrt(length)`` it is a matrix product of two small tables of exponentials.
    """
    t = isqrt(max(length - 1, 0)) + 1
    coarse = torch.arange(0, length, t, device=rates.device, dtype=rates.real.dtype)
    fine = torch.arange(t, device=rates.device, dtype=rates.real.dtype)
    left = weights[..., None, :] * torch.exp(rates[..., None, :] * coarse[:, None])
    right = torch.exp(rates[..., None] * fine)
    product = torch.cat([left.real, -left.imag], -1) @ torch.cat([right.real, right.imag], -2)
    return product.flatten(-2)[..., :length]


def hold(z: Tensor) -> Tensor:
    """``(exp(z) - 1) / z`` and its limit at 0, with gradients."""
    small = z.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, 1 + z / 2 * (1 + z / 3), torch.expm1(safe) / safe)


def enter(u: Tensor, B: Tensor) -> Tensor:
    """``B u`` with real ``u`` as one real matrix product."""
    return torch.view_as_complex((u @ torch.view_as_real(B).movedim(1, 0).flatten(1)).unflatten(-1, (-1, 2)))


def leave(x: Tensor, C: Tensor) -> Tensor:
    """``Re(C x)`` as one real matrix product."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2) @ torch.view_as_real(C.conj().resolve_conj()).flatten(-2).mT


def leave_channels(x: Tensor, C: Tensor) -> Tensor:
    """``Re(C x)`` with a state for each channel."""
    return torch.einsum("blhk,hk->blh", x.real, C.real) - torch.einsum("blhk,hk->blh", x.imag, C.imag)
