"""The semi-dual of transport with squares on sparse columns as an operator of PyTorch: compiled on processors.

A column's scores, ``alpha - c_j``, are projected on the vectors of sum ``radius_j`` with non-negative entries of which
at most ``k`` are nonzero. What is wanted of the projections ``t_j`` is their sum over the columns, and that of
``<s_j, t_j> - ||t_j||^2 / 2``, at one ``alpha`` after the other; no column need be stored.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from hadamard.kernels.build import instruction_set, library

__all__ = ["reference", "semi_dual"]


torch.library.define(  # (custom_op loads dynamo at the first call)
    "hadamard::semi_dual",
    "(Tensor alpha, Tensor C, Tensor radius, SymInt k, Tensor(a!) level) -> (Tensor values, Tensor rows)",
)


def semi_dual(alpha: Tensor, C: Tensor, radius: Tensor, k: int, level: Tensor) -> tuple[Tensor, Tensor]:
    """Values (B,) and row sums (B, n), at potentials (B, n) for costs by columns (B, m, n) and radii (B, m).

    A column's costs may be ``inf`` but for one, its radius zero; of equal scores the lowest index is kept. ``level``
    (B, m), ``inf`` at first, is where each column begins to look for its threshold. It is replaced by what will serve
    the next potentials, and saves time only.

    Examples
    --------
    >>> C, radius, level = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[0.5]]), torch.full((1, 1), torch.inf)
    >>> semi_dual(torch.zeros(1, 2), C, radius, 2, level)
    (tensor([-0.1250]), tensor([[0.5000, 0.0000]]))
    """
    values, rows = torch.ops.hadamard.semi_dual(alpha, C, radius, k, level)
    return values, rows


@torch.library.impl("hadamard::semi_dual", "default")
def _evaluate(alpha: Tensor, C: Tensor, radius: Tensor, k: int, level: Tensor) -> tuple[Tensor, Tensor]:
    if C.device.type != "cpu" or C.dtype not in (torch.float32, torch.float64) or instruction_set() == "torch":
        return reference(alpha, C, radius, k, level)
    alpha, C, radius, where = alpha.contiguous(), C.contiguous(), radius.contiguous(), level.contiguous()
    (B, m, n), values, rows = C.shape, alpha.new_empty(alpha.shape[0]), torch.empty_like(alpha)
    _compiled()(
        C.dtype == torch.float64, *(t.data_ptr() for t in (alpha, C, radius, where, values, rows)),
        B, m, n, min(k, n), torch.get_num_threads(), instruction_set() == "avx2",
    )  # fmt: skip
    if where is not level:
        level.copy_(where)
    return values, rows


def reference(alpha: Tensor, C: Tensor, radius: Tensor, k: int, level: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same in plain PyTorch, in some ten passes over the scores.

    A column's threshold takes one Newton step from ``level``, its threshold of the time before, which mostly is
    enough; the columns in which the support still changes take more, and only in those that come to exceed ``k``
    entries are the largest looked for.
    """
    radius = radius[..., None]
    scores = alpha[:, None, :] - C
    top = scores.amax(-1, keepdim=True)
    scores.sub_(top)  # the threshold, too, is relative to the largest score
    threshold = torch.where(level[..., None] < top, level[..., None] - top, -radius)
    excess = (scores - threshold).clamp_(min=0)
    before = (excess > 0).sum(-1, keepdim=True)
    threshold = threshold + (excess.sum(-1, keepdim=True) - radius) / before.clamp_min(1)
    torch.sub(scores, threshold, out=excess).clamp_(min=0)
    count = (excess > 0).sum(-1, keepdim=True)
    changed = (count != before)[..., 0].nonzero(as_tuple=True)
    if len(changed[0]):
        excess[changed], count[changed], step = _settle(excess[changed], count[changed], radius[changed])
        threshold = threshold.index_put(changed, threshold[changed] + step)
    level.copy_((top + threshold)[..., 0])
    many = (count[..., 0] > k).nonzero(as_tuple=True)
    if len(many[0]):
        scores = scores[many]
        largest = _largest(scores, k)  # all of them exceeded the threshold, which falls
        lower = (torch.where(largest, scores, 0).sum(-1, keepdim=True) - radius[many]) / k
        excess[many] = torch.where(largest, scores - lower, 0)
        threshold = threshold.index_put(many, lower)
    rows = excess.sum(1)
    return excess.square_().sum((1, 2)) / 2 + ((top + threshold) * radius).sum((1, 2)), rows


def _settle(excess: Tensor, count: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Raise thresholds by Newton's method until what lies above them sums to ``radius``; supports can only shrink.

    Thresholds of one column cut out nested sets: two that are as large are the same one.
    """
    raised = torch.zeros_like(radius)
    while True:
        step = ((excess.sum(-1, keepdim=True) - radius) / count.clamp_min(1)).clamp_min_(0)  # rounding may lower it
        excess, raised = (excess - step).clamp_min_(0), raised + step
        before, count = count, (excess > 0).sum(-1, keepdim=True).to(count.dtype)
        if torch.equal(count, before):
            return excess, count, raised


def _largest(scores: Tensor, k: int) -> Tensor:
    """Which are the k largest of each row, of equal ones those of the lowest index."""
    least = scores.topk(k).values[:, -1:]
    above, equal = scores > least, scores == least
    return above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


@cache
def _compiled() -> Callable[..., None]:
    compiled = library()
    assert compiled is not None
    function = compiled.hadamard_semi_dual
    number, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [number, *6 * [pointer], *5 * [size], number]
    function.restype = None
    return function


@torch.library.register_fake("hadamard::semi_dual")
def _(alpha: Tensor, C: Tensor, radius: Tensor, k: int, level: Tensor) -> tuple[Tensor, Tensor]:
    return alpha.new_empty(alpha.shape[0]), alpha.new_empty(alpha.shape)
