"""Linear attention on top of any feature map, and the cutting of embeddings into heads."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import mul
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hadamard.validation import check_range

__all__ = ["checkpointed", "divide", "heads", "linear_attention", "merge"]


def linear_attention(
    phi_q: Float[Tensor, "... n _"],
    phi_k: Float[Tensor, "... m _"] | Sequence[Float[Tensor, "... _ _"]],
    v: Float[Tensor, "... m _"] | Sequence[Float[Tensor, "... _ _"]],
    is_causal: bool = False,
    eps: float = 0.0,
    *,
    feature_map: Callable[[Tensor], Tensor] | None = None,
    chunk: int = 256,
) -> Float[Tensor, "... n _"]:
    """Attention whose weights are inner products of features, in time and memory linear in the length.

    ``y_i = sum_j (phi_q_i . phi_k_j) v_j / sum_j (phi_q_i . phi_k_j)``, where the sums over j of ``phi_k_j v_j`` are
    made once for all i. With several keys and values the weights belong to tuples of positions,
    ``sum_r phi_q_ir phi_k_jr phi_k'_lr ...`` with the value ``v_j v'_l ...``, and the sums over j, l, ... are
    multiplied.

    Parameters
    ----------
    phi_q
        Features of the queries, shape (..., n, r).
    phi_k
        Features of the keys, shape (..., m, r), or a sequence of such.
    v
        Values of shape (..., m, d), as many as ``phi_k``.
    is_causal
        Use only positions up to the query's own.
    eps
        Smallest denominator; 0 leaves it as it is. Where it is exactly 0, the output is 0.
    feature_map
        Applied to each chunk of ``phi_q`` and ``phi_k``, which are then points: the features of a whole sequence
        never stand in memory, neither forward nor backward.
    chunk
        Positions that are handled at once.

    Returns
    -------
    Tensor
        Shape (..., n, d).

    Raises
    ------
    ValueError
        If there are not as many values as keys, or lengths differ with ``is_causal``.

    Examples
    --------
    >>> phi, v = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    >>> linear_attention(phi, phi, v)
    tensor([[3.],
            [3.]])
    >>> linear_attention(phi, phi, v, is_causal=True)
    tensor([[2.],
            [3.]])
    """
    keys = [phi_k] if isinstance(phi_k, Tensor) else list(phi_k)
    values = [v] if isinstance(v, Tensor) else list(v)
    check_range(chunk, "chunk", 1, integer=True)
    check_range(eps, "eps", 0)
    if len(keys) != len(values) or not keys:
        raise ValueError(f"phi_k and v must be equally many, got {len(keys)} and {len(values)}")
    for k, w in zip(keys, values):
        if k.shape[-2] != w.shape[-2] or (is_causal and k.shape[-2] != phi_q.shape[-2]):
            lengths = (phi_q.shape[-2], k.shape[-2], w.shape[-2])
            raise ValueError(f"phi_k and v must be equally long, with is_causal as phi_q too, got lengths {lengths}")
    phi = feature_map or (lambda x: x)
    values = [F.pad(w, (0, 1), value=1.0) for w in values]
    if is_causal:
        return _causal(phi_q, keys, values, phi, eps, chunk)
    return _everywhere(phi_q, keys, values, phi, eps, chunk if feature_map else None)


def _everywhere(
    q: Tensor, keys: list[Tensor], values: list[Tensor], phi: Callable[[Tensor], Tensor], eps: float, chunk: int | None
) -> Tensor:
    def summarise(k: Tensor, w: Tensor) -> Tensor:
        return phi(k).mT @ w

    def read(q: Tensor, summary: Tensor) -> Tensor:
        return divide(phi(q) @ summary, eps)

    def split(x: Tensor) -> tuple[Tensor, ...]:
        return x.split(chunk, -2) if chunk else (x,)

    summary = reduce(mul, (
        sum(checkpointed(summarise, *parts) for parts in zip(split(k), split(w)))
        for k, w in zip(keys, values)
    ))  # fmt: skip
    return torch.cat([checkpointed(read, part, summary) for part in split(q)], -2)


def _causal(
    q: Tensor, keys: list[Tensor], values: list[Tensor], phi: Callable[[Tensor], Tensor], eps: float, chunk: int
) -> Tensor:
    """Chunk by chunk: what came before as summaries, what is inside as a masked product or running sums."""
    count = len(keys)

    def advance(q: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        phis, w, past = [phi(k) for k in rest[:count]], rest[count : 2 * count], rest[2 * count :]
        here = [p.mT @ x for p, x in zip(phis, w)]
        totals = [a + b for a, b in zip(past, here)] if past else here
        features = phi(q)
        if count == 1:
            inside = (features @ phis[0].mT).tril() @ w[0]
            return divide(inside + features @ past[0] if past else inside, eps), *totals
        sums = [(p[..., None] * x[..., None, :]).cumsum(-3) for p, x in zip(phis, w)]
        sums = [s + a[..., None, :, :] for s, a in zip(sums, past)] if past else sums
        return divide(torch.einsum("...r,...rd->...d", features, reduce(mul, sums)), eps), *totals

    # running sums take r times the room of a value, so that a chunk is shorter there
    step = chunk if count == 1 else max(1, chunk // 8)
    outputs, past = [], ()
    for parts in zip(*(t.split(step, -2) for t in (q, *keys, *values))):
        y, *past = checkpointed(advance, *parts, *past)
        outputs.append(y)
    return torch.cat(outputs, -2)


def divide(weighted: Float[Tensor, "*shape"], eps: float) -> Float[Tensor, "..."]:
    """Divide sums of weighted values by the sum of the weights, which is the last column; nothing over nothing is 0.

    Examples
    --------
    >>> divide(torch.tensor([[6.0, 2.0], [0.0, 0.0]]), eps=0.0)
    tensor([[3.],
            [0.]])
    """
    total = weighted[..., -1:]
    total = total.clamp(min=eps) if eps else torch.where(total == 0, 1.0, total)
    return weighted[..., :-1] / total


def checkpointed(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """``function(*tensors)``, whose intermediate results are made again in the backward pass instead of kept.

    Examples
    --------
    >>> checkpointed(torch.add, torch.ones(2), torch.ones(2))
    tensor([2., 2.])
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return function(*tensors)


def heads(x: Float[Tensor, "*batch n e"], num_heads: int) -> Float[Tensor, "*batch h n d"]:
    """Cut embeddings into heads: (..., n, h d) to (..., h, n, d).

    Examples
    --------
    >>> heads(torch.zeros(2, 5, 12), 3).shape
    torch.Size([2, 3, 5, 4])
    """
    return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def merge(x: Float[Tensor, "*batch h n d"]) -> Float[Tensor, "*batch n e"]:
    """Put heads back together: the inverse of :func:`heads`.

    Examples
    --------
    >>> x = torch.randn(2, 5, 12)
    >>> torch.equal(merge(heads(x, 3)), x)
    True
    """
    return x.transpose(-2, -3).flatten(-2)
