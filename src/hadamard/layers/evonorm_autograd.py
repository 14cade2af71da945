"""The arithmetic of EvoNorm: each formula written out once, and the same with a backward pass that keeps little.

``torch.compile``, ``torch.export`` and second derivatives use the written-out formula; eager training uses autograd
functions that save ``x`` and one or two statistics for each image and group, nothing of the size of ``x`` besides.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

__all__ = ["batch_evonorm", "batch_variance", "channels", "sample_evonorm"]


def sample_evonorm(
    x: Tensor, v: Tensor | None, weight: Tensor, bias: Tensor, groups: int, centred: bool, eps: float
) -> Tensor:
    """``x sigmoid(v x) / r * weight + bias``, with r the spread of each group of channels of each image.

    Parameters
    ----------
    x
        Input of shape (N, C, ...).
    v, weight, bias
        One number a channel; ``v=None`` stands for ones.
    groups
        Number of groups, a divisor of C.
    centred
        Whether r is the standard deviation (else the root mean square).
    eps
        Added under the root.
    """
    if _written_out():
        return _sample_formula(x, v, weight, bias, groups, centred, eps)
    return _SampleEvoNorm.apply(x, v, weight, bias, groups, centred, eps)[0]


def batch_evonorm(
    x: Tensor, var: Tensor, v: Tensor | None, weight: Tensor, bias: Tensor, kind: str, eps: float
) -> Tensor:
    """``x / max(sqrt(var + eps), inner) * weight + bias``, with the inner term of B0, B1 or B2.

    Parameters
    ----------
    x
        Input of shape (N, C, ...).
    var
        Variance of each channel: over the batch in training, its running average in evaluation.
    v, weight, bias
        One number a channel; ``v`` belongs to B0.
    kind
        ``"B0"``, ``"B1"`` or ``"B2"``.
    eps
        Added under every root.
    """
    left = (var.to(_wide(x)) + eps).sqrt()
    if _written_out():
        return _batch_formula(x, left, v, weight, bias, kind, eps)
    return _BatchEvoNorm.apply(x, left, v, weight, bias, kind, eps)[0]


def batch_variance(x: Tensor, sync: bool) -> tuple[Tensor, Tensor]:
    """Biased variance of each channel over batch and space, and the number of values that it stands on.

    Parameters
    ----------
    x
        Input of shape (N, C, ...).
    sync
        Whether to take it over all processes of ``torch.distributed`` where there are any.
    """
    shared = sync and torch.distributed.is_available() and torch.distributed.is_initialized()
    if _written_out() and not shared:
        return x.to(_wide(x)).var(_batch_dims(x), correction=0), x.new_tensor(x.numel() // x.shape[1])
    var, _, count = _Variance.apply(x, shared)
    return var, count


def channels(parameter: Tensor, x: Tensor) -> Tensor:
    """One number a channel, in the dtype of ``x`` and shaped to broadcast against it."""
    return parameter.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))


# -- the formulas, written out --


def _sample_formula(
    x: Tensor, v: Tensor | None, weight: Tensor, bias: Tensor, groups: int, centred: bool, eps: float
) -> Tensor:
    grouped = x.unflatten(1, (groups, -1)).to(_wide(x))
    dims = list(range(2, grouped.ndim))
    second = grouped.var(dims, correction=0) if centred else grouped.square().mean(dims)
    r = (second + eps).sqrt().repeat_interleave(x.shape[1] // groups, 1)
    act = F.silu(x) if v is None else x * (x * channels(v, x)).sigmoid()
    return act / _per_image(r, x) * channels(weight, x) + channels(bias, x)


def _batch_formula(
    x: Tensor, left: Tensor, v: Tensor | None, weight: Tensor, bias: Tensor, kind: str, eps: float
) -> Tensor:
    dims, wide = list(range(2, x.ndim)), x.to(_wide(x))
    second = wide.var(dims, correction=0) if kind == "B0" else wide.square().mean(dims)
    r = _per_image((second + eps).sqrt(), x)
    right = r + x * channels(v, x) if v is not None else ((x + 1) * r if kind == "B1" else r - x)
    return x / torch.maximum(channels(left, x), right) * channels(weight, x) + channels(bias, x)


# -- the same, keeping only x and the statistics --


class _SampleEvoNorm(Function):
    @staticmethod
    def forward(
        x: Tensor, v: Tensor | None, weight: Tensor, bias: Tensor, groups: int, centred: bool, eps: float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        mean, r = _spread(x.unflatten(1, (groups, -1)), centred, eps)
        act = F.silu(x) if v is None else (x * channels(v, x)).sigmoid_().mul_(x)
        scale = weight / r.repeat_interleave(x.shape[1] // groups, 1)
        return act.mul_(_per_image(scale, x)).add_(channels(bias, x)), mean, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, v, weight, bias, ctx.groups, ctx.centred, ctx.eps = inputs
        ctx.mark_non_differentiable(*[t for t in output[1:] if t is not None])
        ctx.save_for_backward(x, v, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple:
        x, v, weight, bias, mean, r = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(ctx, grad, _sample_formula, (x, v, weight, bias), ctx.groups, ctx.centred, ctx.eps)
        per_group, space = x.shape[1] // ctx.groups, list(range(2, x.ndim))
        scale = weight / r.repeat_interleave(per_group, 1)
        z = x if v is None else x * channels(v, x)
        grad_x = torch.ops.aten.silu_backward(grad, z)
        act = (z.sigmoid() if v is None else z.sigmoid_()).mul_(x)
        product = grad * act
        inner = product.sum(space, dtype=r.dtype)
        grad_weight = (inner / r.repeat_interleave(per_group, 1)).sum(0)
        grad_v = None
        if v is not None:
            grad_v = (torch.sub(x, act, out=act).mul_(product).sum(space, dtype=r.dtype) * scale).sum(0)
        count = per_group * x[0, 0].numel()
        pull = (inner * weight).unflatten(1, (ctx.groups, -1)).sum(2) / (r**3 * count)
        pulled = torch.mul(x, _per_image(pull.repeat_interleave(per_group, 1), x), out=product)
        grad_x.mul_(_per_image(scale, x)).sub_(pulled)
        if mean is not None:
            grad_x.add_(_per_image((pull * mean).repeat_interleave(per_group, 1), x))
        grad_bias = grad.sum(space, dtype=r.dtype).sum(0)
        return grad_x, _like(grad_v, v), _like(grad_weight, weight), _like(grad_bias, bias), None, None, None


class _BatchEvoNorm(Function):
    @staticmethod
    def forward(
        x: Tensor, left: Tensor, v: Tensor | None, weight: Tensor, bias: Tensor, kind: str, eps: float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        mean, r = _spread(x.unsqueeze(2), kind == "B0", eps)
        right = _right(x, r, v, kind)
        right = torch.maximum(right, channels(left, x), out=right)
        return torch.div(x, right, out=right).mul_(channels(weight, x)).add_(channels(bias, x)), mean, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, left, v, weight, bias, ctx.kind, ctx.eps = inputs
        ctx.mark_non_differentiable(*[t for t in output[1:] if t is not None])
        ctx.save_for_backward(x, left, v, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple:
        x, left, v, weight, bias, mean, r = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(ctx, grad, _batch_formula, (x, left, v, weight, bias), ctx.kind, ctx.eps)
        space = list(range(2, x.ndim))
        bottom = _right(x, r, v, ctx.kind)
        lead = bottom - channels(left, x)
        torch.maximum(bottom, channels(left, x), out=bottom)
        ratio = x / bottom
        product = grad * ratio
        grad_weight = product.sum(space, dtype=r.dtype).sum(0)
        product.mul_(channels(-weight, x)).div_(bottom)  # the gradient with respect to the denominator
        total = product.sum(space, dtype=r.dtype)
        product = torch.ops.aten.threshold_backward(product, lead, 0)  # ... where it is the inner term
        pulled = product.sum(space, dtype=r.dtype)
        grad_left = (total - pulled).sum(0)
        grad_x = torch.div(grad, bottom, out=ratio).mul_(channels(weight, x))
        slope = channels(v, x) if v is not None else _per_image(r if ctx.kind == "B1" else torch.full_like(r, -1), x)
        grad_x.add_(torch.mul(product, slope, out=lead))
        moment = torch.mul(product, x, out=bottom).sum(space, dtype=r.dtype)
        pull = (pulled + moment if ctx.kind == "B1" else pulled) / (r * x[0, 0].numel())
        grad_x.add_(torch.mul(x, _per_image(pull, x), out=lead))
        if mean is not None:
            grad_x.sub_(_per_image(pull * mean, x))
        grad_v = None if v is None else moment.sum(0)
        grad_bias = grad.sum(space, dtype=r.dtype).sum(0)
        return grad_x, grad_left, _like(grad_v, v), _like(grad_weight, weight), _like(grad_bias, bias), None, None


class _Variance(Function):
    @staticmethod
    def forward(x: Tensor, sync: bool) -> tuple[Tensor, Tensor, Tensor]:
        every = _batch_dims(x)
        mean = x.mean(every, keepdim=True, dtype=_wide(x))
        count = torch.full_like(mean, x.numel() // x.shape[1])
        norms = torch.linalg.vector_norm(x - mean, dim=every[1:], keepdim=True)
        var = norms.square().sum(0, keepdim=True) / count
        if sync:
            ranks = [torch.empty(3, *mean.shape, device=x.device, dtype=mean.dtype) for _ in range(_world())]
            torch.distributed.all_gather(ranks, torch.stack([count, mean, var]))
            counts, means, variances = torch.stack(ranks).unbind(1)
            count = counts.sum(0)
            mean = (counts * means).sum(0) / count
            var = (counts * (variances + (means - mean).square())).sum(0) / count
        return var.flatten(), mean, count.flatten()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, ctx.sync = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple:
        x, mean, count = ctx.saved_tensors
        if ctx.sync:
            if torch.is_grad_enabled():
                raise RuntimeError("second derivatives do not go through statistics shared by several processes")
            grad = grad.clone()
            torch.distributed.all_reduce(grad)
        elif torch.is_grad_enabled():
            mean = x.mean(_batch_dims(x), keepdim=True, dtype=_wide(x))
        return ((x - mean) * _per_channel(2 * grad / count, x)).to(x.dtype), None


def _differentiable(ctx: Any, grad: Tensor, formula: Any, tensors: tuple, *options: Any) -> tuple:
    """The backward pass as a differentiable function, for second derivatives: the formula's own."""
    given = [t is not None for t in tensors]

    def partial(*some: Tensor) -> Tensor:
        rest = iter(some)
        return formula(*[next(rest) if g else None for g in given], *options)

    pull = torch.func.vjp(partial, *[t for t in tensors if t is not None])[1]
    grads = iter(pull(grad))
    return (*[next(grads) if g else None for g in given], *[None] * len(options))


def _spread(grouped: Tensor, centred: bool, eps: float) -> tuple[Tensor | None, Tensor]:
    """Mean (where ``centred``) and standard deviation or root mean square over dimensions 2 and up, shape (N, G)."""
    dims, wide = list(range(2, grouped.ndim)), _wide(grouped)
    mean = grouped.mean(dims, keepdim=True, dtype=wide) if centred else None
    norm = torch.linalg.vector_norm(grouped if mean is None else grouped - mean, dim=dims, dtype=wide)
    r = (norm.square() / grouped[0, 0].numel() + eps).sqrt()
    return None if mean is None else mean.flatten(1), r


def _right(x: Tensor, r: Tensor, v: Tensor | None, kind: str) -> Tensor:
    """The inner term of B0 (which has ``v``), B1 or B2, as a new tensor."""
    r = _per_image(r, x)
    if kind == "B2":
        return r - x
    return (x * (r if v is None else channels(v, x))).add_(r)


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape (N, C) in the dtype of ``x`` and shaped to broadcast against it."""
    return values.to(x.dtype).view(*values.shape, *[1] * (x.ndim - 2))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)


def _batch_dims(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _world() -> int:
    return torch.distributed.get_world_size()


def _written_out() -> bool:
    return torch.compiler.is_compiling()
