"""Gated convolutions that keep their inputs only: a part at a time forwards, the spectra made again backwards.

A part is a few channels (and rows of the batch) whose spectra stay in the cache; nothing of the size of the whole is
made besides the result. A filter much shorter than the signal is applied in overlapping windows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from hadamard.spectral import Spectrum, convolve, convolve_backward, good_size, spectrum
from hadamard.transforms.monarch import FrequencySparse, sparse_conv

__all__ = ["Sparse", "Windows", "gated_conv", "plan_windows"]

_PART = {"cpu": 2**18}  # elements of a part: its buffers stay in a level-2 cache; elsewhere parts only bound the memory
_LARGE_PART = 2**28
_ROWS = 16  # transforms at once, below which each costs more
_SHORTEST = 512
_WASTE = 1.4  # how many more elements windows may transform than one transform of everything would
Gates = tuple[Tensor | None, Tensor | None]
Part = tuple[slice, slice]


@dataclass(frozen=True)
class Windows:
    """By :func:`hadamard.spectral.convolve`: in one transform, or in windows that overlap (overlap-save).

    Attributes
    ----------
    n
        Size of a transform.
    hop
        Outputs of each window.
    context
        Inputs before them that each window reads once more.
    count
        Number of windows.
    wraps
        Whether the convolution is circular, modulo ``n``.
    spectrum
        The filter's transform, if it was made before.
    """

    n: int
    hop: int
    context: int = 0
    count: int = 1
    wraps: bool = False
    spectrum: Spectrum | None = None

    def row(self) -> int:
        """Elements that the transforms of one channel of one signal take."""
        return self.n * self.count

    def of(self, k: Tensor, channels: slice) -> "Windows":
        """The same for some channels, ``k`` being their filters, with these transformed once for all of the batch."""
        made = spectrum(k, self.n) if self.spectrum is None else self.spectrum
        return replace(self, spectrum=made if self.spectrum is None else replace(made, values=made.values[channels]))

    def conv(self, u: Tensor, k: Tensor) -> Tensor:
        """Convolve (..., H, L) with (H, Lk)."""
        y = convolve(self._cut(u), self._filter(k), **self._options())
        if self.count > 1:
            y = y[..., self.context :].flatten(-2)
        return y[..., : u.shape[-1]]

    def backward(self, grad: Tensor, u: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both."""
        length, total = u.shape[-1], self.hop * self.count
        if self.count > 1:
            grad = F.pad(F.pad(grad, (0, total - length)).unflatten(-1, (self.count, self.hop)), (self.context, 0))
        elif self.wraps:
            grad = F.pad(grad, (0, self.n - length))
        grad_u, grad_k = convolve_backward(grad, self._cut(u), self._filter(k), **self._options())
        if self.count > 1:  # windows overlap: what each says about its context belongs to the window before
            joined = grad_u[..., self.context :].flatten(-2)
            before = grad_u[..., 1:, : self.context]
            joined.unflatten(-1, (self.count, self.hop))[..., :-1, self.hop - self.context :] += before
            grad_u = joined
        return grad_u[..., :length], grad_k.reshape(k.shape)

    def _cut(self, u: Tensor) -> Tensor:
        if self.count == 1:
            return F.pad(u, (0, self.n - u.shape[-1])) if self.wraps else u
        return F.pad(u, (self.context, self.hop * self.count - u.shape[-1])).unfold(-1, self.n, self.hop)

    def _filter(self, k: Tensor) -> Tensor:
        return k if self.count == 1 else k.unsqueeze(-2)

    def _options(self) -> dict[str, Any]:
        made = self.spectrum
        if made is not None and self.count > 1:
            made = replace(made, values=made.values.unsqueeze(-2))
        return {"mode": "circular" if self.wraps or self.count > 1 else "causal", "spectrum": made}


@dataclass(frozen=True)
class Sparse:
    """By :func:`hadamard.transforms.monarch.sparse_conv`; with everything kept it is the Monarch transform."""

    pattern: FrequencySparse
    rows: Callable[[Tensor, Tensor, FrequencySparse], Tensor]

    def row(self) -> int:
        """Elements that the transform of one channel of one signal takes."""
        return 2 * self.pattern.keep[0] * prod(self.pattern.factors[1:])

    def of(self, k: Tensor, channels: slice) -> "Sparse":
        """The same for some channels."""
        return self

    def conv(self, u: Tensor, k: Tensor) -> Tensor:
        """Convolve (..., H, L) with (H, Lk)."""
        return sparse_conv(u, k, self.pattern, self.rows)

    def backward(self, grad: Tensor, u: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both, by autograd."""
        with torch.enable_grad():
            u, k = u.detach().requires_grad_(), k.detach().requires_grad_()
            grad_u, grad_k = torch.autograd.grad(self.conv(u, k), (u, k), grad)
        return grad_u, grad_k


Method = Windows | Sparse


def plan_windows(length: int, taps: int, n: int | None = None) -> Windows:
    """One transform, or windows where these take less time.

    Parameters
    ----------
    length, taps
        Lengths of the signal and of the filter.
    n
        Modulus of the convolution, at least either length; ``None``: not circular.
    """
    if n is not None and n < length + taps - 1:
        return Windows(n, length, wraps=True)
    taps = min(taps, length)
    whole, window = good_size(length + taps - 1), good_size(max(4 * taps, _SHORTEST))
    hop = window - taps + 1
    count = -(-length // hop)
    if count > 1 and count * window <= _WASTE * whole:
        return Windows(window, hop, taps - 1, count)
    return Windows(whole, length)


def gated_conv(u: Tensor, k: Tensor, gates: Gates, method: Method) -> Tensor:
    """``postgate * conv(pregate * u, k)``, of the dtype of ``u`` and computed in at least float32.

    Parameters
    ----------
    u
        Signal of shape (B, H, L).
    k
        Filters of shape (H, Lk).
    gates
        ``(pregate, postgate)``, each of the shape of ``u`` or ``None``.
    method
        How it is computed.
    """
    if torch.compiler.is_compiling():
        return _formula(u, k, *gates, method)
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in (u, k, *gates)):
        with torch.no_grad():
            return _GatedConv.forward(u, k, *gates, method)
    return _GatedConv.apply(u, k, *gates, method).contiguous()  # what is cut off need not stay until the backward pass


def _formula(u: Tensor, k: Tensor, pregate: Tensor | None, postgate: Tensor | None, method: Method) -> Tensor:
    x = _wide(u) if pregate is None else _wide(u) * _wide(pregate)
    y = method.conv(x, k.to(x.dtype))
    if postgate is not None:
        y = y * _wide(postgate)
    return y.to(u.dtype)


class _GatedConv(Function):
    @staticmethod
    def forward(u: Tensor, k: Tensor, pregate: Tensor | None, postgate: Tensor | None, method: Method) -> Tensor:
        width, height = _size(u, method)
        if height >= u.shape[0] and width >= u.shape[1]:
            return _formula(u, k, pregate, postgate, method)
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        for part, taps, here in _parts(u, k, method):
            y[part] = _formula(u[part], taps, _of(pregate, part), _of(postgate, part), here)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.method = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        u, k, pregate, postgate = ctx.saved_tensors
        method: Method = ctx.method
        if torch.is_grad_enabled():
            return (*_differentiable(grad, (u, k, pregate, postgate), method), None)
        grad_u = torch.empty_like(u, memory_format=torch.contiguous_format)
        grad_k = torch.zeros_like(k, dtype=torch.promote_types(k.dtype, torch.float32))
        grad_pre, grad_post = (None if g is None else torch.empty_like(grad_u) for g in (pregate, postgate))
        for part, taps, here in _parts(u, k, method):
            x, g = _wide(u[part]), _wide(grad[part])
            pre, post = (None if t is None else _wide(t[part]) for t in (pregate, postgate))
            gated = x if pre is None else x * pre
            if grad_post is not None:
                grad_post[part] = g * here.conv(gated, taps)
            pulled, pulled_k = here.backward(g if post is None else g * post, gated, taps)
            grad_k[part[1]] += pulled_k
            if grad_pre is not None:
                grad_pre[part] = pulled * x
            grad_u[part] = pulled if pre is None else pulled * pre
        return grad_u, grad_k.to(k.dtype), grad_pre, grad_post, None


def _differentiable(grad: Tensor, tensors: tuple[Tensor | None, ...], method: Method) -> tuple[Tensor | None, ...]:
    """The backward pass as a differentiable function, for second derivatives."""
    given = [t is not None for t in tensors]

    def partial(*some: Tensor) -> Tensor:
        rest = iter(some)
        u, k, pregate, postgate = (next(rest) if g else None for g in given)
        assert u is not None
        assert k is not None
        return _formula(u, k, pregate, postgate, method)

    grads = iter(torch.func.vjp(partial, *[t for t in tensors if t is not None])[1](grad))
    return tuple(next(grads) if g else None for g in given)


def _size(u: Tensor, method: Method) -> tuple[int, int]:
    """Channels of a part and rows of the batch."""
    batch, channels, _ = u.shape
    at_once = max(_PART.get(u.device.type, _LARGE_PART) // method.row(), _ROWS)
    width = min(channels, max(at_once // batch, _ROWS))
    return width, max(at_once // width, 1)


def _parts(u: Tensor, k: Tensor, method: Method) -> Iterator[tuple[Part, Tensor, Method]]:
    """A part's rows of the batch and channels, its filters, and the method with what these need made."""
    width, height = _size(u, method)
    for c in range(0, u.shape[1], width):
        some = slice(c, c + width)
        taps = k[some].to(torch.promote_types(u.dtype, torch.float32))
        here = method.of(taps, some)
        for b in range(0, u.shape[0], height):
            yield (slice(b, b + height), some), taps, here


def _of(x: Tensor | None, part: Part) -> Tensor | None:
    return None if x is None else x[part]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
