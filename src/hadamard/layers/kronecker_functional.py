"""Attention over tuples of positions: exact in blocks, and in near-linear time for bounded entries."""

import warnings
from collections.abc import Sequence
from functools import partial, reduce
from math import prod
from operator import mul

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hadamard.features import Monomials, linear_attention, rank, taylor_degree, taylor_error
from hadamard.features.attention import checkpointed
from hadamard.results import Certificate
from hadamard.validation import check_option, check_range, check_same, check_tensor

__all__ = ["METHODS", "cheaper", "kronecker_attention", "operations", "polynomial_error", "score_bound"]

METHODS = ("auto", "exact", "polynomial")
_BLOCK = 2**18  # weights that are formed at once
_KEEP = 2**24  # weights up to which they are kept for the backward pass instead of made again
_MAX_RANK = 20_000


def kronecker_attention(
    query: Float[Tensor, "*batch n d"],
    keys: Sequence[Float[Tensor, "..."]],
    values: Sequence[Float[Tensor, "..."]],
    *,
    key_padding_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    method: str = "auto",
    degree: int | None = None,
    tol: float | None = 1e-3,
) -> Float[Tensor, "*batch n d_v"]:
    """Attend from each position to all pairs of positions, or to tuples, by the softmax of a multilinear score.

    With two keys, the weight of (j, l) for the query i is proportional to
    ``exp(scale sum_a q_ia k_ja k'_la)``, and the output is the weighted sum of ``v_j * v'_l``, entry by entry.

    Parameters
    ----------
    query
        Shape (..., n, d); usually (batch, heads, positions, channels).
    keys
        One tensor of shape (..., m, d) a position in the tuple: one is ordinary attention, two attend to pairs. Their
        lengths may differ.
    values
        As many of shape (..., m, d_v), each as long as its key.
    key_padding_mask
        Broadcast against (..., m), for keys of one length: true leaves a position out of every place in the tuple;
        floating numbers are added to the logits once for each place.
    is_causal
        Use only tuples whose positions are all up to the query's own.
    scale
        Of the score; ``1 / d`` by default, as in the paper (``1 / sqrt(d)`` with a single key, as elsewhere).
    method
        ``"exact"``: all tuples, block by block: with two keys O(n^3 d) time and O(n^2) memory. ``"polynomial"``: a
        polynomial in the place of exp, which splits into sums over single positions: O(n r d) time and O(r d)
        memory with r = :func:`rank(d, degree) <hadamard.features.rank>`; sensible for d up to about 8 and scores up to
        about 3. ``"auto"``: the cheaper of the two.
    degree
        Even degree of the polynomial (odd ones may make weights negative); the least that meets ``tol`` by default.
    tol
        Largest relative error of a weight before normalisation, certified from the largest entries
        (:func:`polynomial_error`). Where a given ``degree`` does not certify it, a warning says what it does. ``None``
        looks at no values, and needs ``degree``.

    Returns
    -------
    Tensor
        Shape (..., n, d_v); 0 where all tuples are left out. Half precision is computed in float32.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, ``degree`` is odd, or the polynomial that ``tol`` asks for has more
        than 20,000 features.

    Examples
    --------
    >>> q, k1, k2, v1, v2 = torch.randn(5, 2, 30, 4).unbind()
    >>> exact = kronecker_attention(q / 2, (k1 / 2, k2 / 2), (v1, v2), method="exact")
    >>> quick = kronecker_attention(q / 2, (k1 / 2, k2 / 2), (v1, v2), method="polynomial", tol=1e-4)
    >>> torch.allclose(exact, quick, atol=1e-3)
    True
    """
    keys, values = _check(query, keys, values, is_causal, scale, degree, tol)
    check_option(method, "method", METHODS)
    scale = default_scale(query.shape[-1], len(keys)) if scale is None else scale
    half = query.dtype in (torch.float16, torch.bfloat16)
    with torch.autocast(query.device.type, enabled=False):
        q, *rest = (x.float() if half else x for x in (query, *keys, *values))
        k, v = rest[: len(keys)], rest[len(keys) :]
        mask = _additive(key_padding_mask, k)
        if method == "auto":
            degree, method = cheaper(q, k, v, scale, degree, tol)
        if method == "exact":
            y = _exact(q * scale, k, v, mask, is_causal)
        else:
            y = _polynomial(q, k, v, mask, is_causal, scale, _degree(q, k, scale, degree, tol))
    return y.to(query.dtype)


def polynomial_error(
    query: Float[Tensor, "*batch n d"],
    keys: Sequence[Float[Tensor, "..."]],
    values: Sequence[Float[Tensor, "..."]],
    degree: int,
    *,
    scale: float | None = None,
) -> Certificate:
    """Bound the error of :func:`kronecker_attention` with a polynomial, in O(n d).

    Parameters
    ----------
    query, keys, values, scale
        As for :func:`kronecker_attention`.
    degree
        Degree of the polynomial, even.

    Returns
    -------
    Certificate
        ``value``: the bound on the size of the scores that the largest entries give. ``bound``: no entry of the output
        is further than this from exact attention, apart from rounding; infinite and not verified where the
        relative error of a weight may reach 1.

    Examples
    --------
    >>> x = torch.full((1, 3, 4), 0.5)
    >>> certificate = polynomial_error(x, (x, x), (x, x), degree=4)
    >>> certificate.value, certificate.bound < 1e-6
    (0.125, True)
    """
    keys, values = _check(query, keys, values, False, scale, degree, None)
    scale = default_scale(query.shape[-1], len(keys)) if scale is None else scale
    size = score_bound(query, keys, scale)
    error = taylor_error(size, degree)
    if error >= 1:
        reason = f"scores may reach {size:.3g}, where degree {degree} has a relative error of {error:.3g}"
        return Certificate(value=size, bound=float("inf"), verified=False, reason=reason)
    largest = reduce(mul, (v.detach().abs().amax((-1, -2)) for v in values)).max().item()
    return Certificate(value=size, bound=2 * error / (1 - error) * largest, verified=True)


def default_scale(d: int, keys: int) -> float:
    """``1 / d``, and for a single key ``1 / sqrt(d)``."""
    return 1 / d if keys > 1 else d**-0.5


def score_bound(query: Tensor, keys: Sequence[Tensor], scale: float) -> float:
    """No score is larger in size: the largest entries of each channel multiplied, or the largest lengths."""
    tensors = [x.detach().double() for x in (query, *keys)]
    entries = reduce(mul, (x.abs().amax(-2) for x in tensors)).sum(-1)
    lengths = reduce(mul, (x.norm(dim=-1).amax(-1) for x in tensors))
    return scale * torch.minimum(entries, lengths).max().item()


def _degree(q: Tensor, keys: Sequence[Tensor], scale: float, degree: int | None, tol: float | None) -> int:
    """The degree that was asked for or that the tolerance needs, whose cost is bearable."""
    if tol is not None and not torch.compiler.is_compiling():
        size = score_bound(q, keys, scale)
        if degree is None:
            degree = _needed(size, tol)
            if degree is None or rank(q.shape[-1], degree) > _MAX_RANK:
                raise ValueError(
                    f"query and keys must have smaller entries or fewer channels for method='polynomial': scores may "
                    f"reach {size:.3g}, for which tol={tol:g} needs degree {degree or 'above 1800'} and, with "
                    f"d={q.shape[-1]}, more than {_MAX_RANK} features"
                )
        elif taylor_error(size, degree) > tol:
            warnings.warn(
                f"degree {degree} certifies a relative error of {taylor_error(size, degree):.3g} only, above "
                f"tol={tol:g}: scores may reach {size:.3g}",
                stacklevel=3,
            )
    if degree is None:
        raise ValueError("degree must be given where tol is None or the code is compiled, got None")
    if rank(q.shape[-1], degree) > _MAX_RANK:
        raise ValueError(f"degree must leave at most {_MAX_RANK} features, got {degree} with d={q.shape[-1]}")
    return degree


def _needed(size: float, tol: float) -> int | None:
    """The degree for scores of this size, as far as it is worth looking for one."""
    return taylor_degree(size, tol) if size <= 500 else None


def cheaper(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float, degree: int | None, tol: float | None
) -> tuple[int | None, str]:
    """The degree that ``tol`` needs, and the method with fewer multiplications among those that meet it."""
    if degree is None:
        if tol is None or torch.compiler.is_compiling():
            return None, "exact"
        degree = _needed(score_bound(q, keys, scale), tol)
        if degree is None:
            return None, "exact"
    lengths = (q.shape[-2], *(k.shape[-2] for k in keys))
    exact, polynomial = operations(lengths, q.shape[-1], values[0].shape[-1], degree)
    return degree, "exact" if exact <= polynomial or rank(q.shape[-1], degree) > _MAX_RANK else "polynomial"


def operations(lengths: Sequence[int], d: int, width: int, degree: int) -> tuple[int, int]:
    """Multiplications of the exact method and of the polynomial, for each item of a batch.

    Parameters
    ----------
    lengths
        Of the query and of each key.
    d, width
        Channels of the keys and of the values.
    degree
        Of the polynomial.
    """
    return prod(lengths) * (d + width + 8), sum(lengths) * rank(d, degree) * (width + 4)


def _polynomial(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], mask: Tensor | None, is_causal: bool, scale: float,
    degree: int,
) -> Tensor:  # fmt: skip
    phi, root = Monomials(degree, len(keys) + 1), scale ** (1 / (len(keys) + 1))
    scaled = [k * root for k in keys]
    if mask is None:
        return linear_attention(q * root, scaled, values, is_causal, feature_map=phi)
    # the weight of a position multiplies its features: carried in a channel of its own through the chunks
    weights = mask.exp()[..., None]
    return linear_attention(
        torch.cat([q * root, torch.ones_like(q[..., :1])], -1),
        [torch.cat([k, weights.expand(*k.shape[:-1], 1)], -1) for k in scaled],
        values, is_causal, feature_map=lambda x: phi(x[..., :-1]) * x[..., -1:],
    )  # fmt: skip


def _exact(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], mask: Tensor | None, is_causal: bool) -> Tensor:
    """All tuples for some queries at a time."""
    tuples = prod(k.shape[-2] for k in keys) * max(1, prod(q.shape[:-2]))
    rows = max(1, (1 if q.device.type == "cpu" else 64) * _BLOCK // tuples)
    parts, count = [], len(keys)
    for start in range(0, q.shape[-2], rows):
        part = q[..., start : start + rows, :]
        end = start + part.shape[-2] if is_causal else None
        tensors = [x[..., :end, :] for x in (*keys, *values)]
        logs = [] if mask is None else [mask[..., :end]]
        block = partial(_tuples, count=count, start=start if is_causal else None)
        keep = q.shape[-2] * tuples <= _KEEP
        parts.append(block(part, *tensors, *logs) if keep else checkpointed(block, part, *tensors, *logs))
    return torch.cat(parts, -2)


def _tuples(q: Tensor, *rest: Tensor, count: int, start: int | None) -> Tensor:
    """Attention to all tuples; the rows are the positions from ``start`` on where it is causal."""
    keys, values, masks = rest[:count], rest[count : 2 * count], rest[2 * count :]
    n, lengths = q.shape[-2], [k.shape[-2] for k in keys]
    for k in keys[:-1]:
        q = (q[..., None, :] * k[..., None, :, :]).flatten(-3, -2)
    logits = (q @ keys[-1].mT).unflatten(-2, (n, *lengths[:-1]))
    for axis, m in enumerate(lengths):
        later = count - 1 - axis
        if masks:
            logits = logits + masks[0].view(*masks[0].shape[:-1], *[1] * (axis + 1), m, *[1] * later)
        if start is not None:
            ahead = torch.arange(m, device=q.device) > torch.arange(start, start + n, device=q.device)[:, None]
            logits = logits.masked_fill(ahead.view(n, *[1] * axis, m, *[1] * later), -torch.inf)
    flat = logits.flatten(-count)
    flat = flat.masked_fill((flat == -torch.inf).all(-1, keepdim=True), 0.0) if masks else flat
    weights = flat.softmax(-1)
    if masks:
        weights = weights * (logits.flatten(-count) > -torch.inf)
    y = weights.unflatten(-1, lengths).flatten(-count - 1, -2) @ values[-1]
    y = y.unflatten(-2, (n, *lengths[:-1]))
    for axis, v in reversed(list(enumerate(values[:-1]))):
        y = (y * v.view(*v.shape[:-2], *[1] * (axis + 1), *v.shape[-2:])).sum(-2)
    return y


def _additive(mask: Tensor | None, keys: Sequence[Tensor]) -> Tensor | None:
    """The mask as numbers that are added to logits."""
    if mask is None:
        return None
    for k in keys:
        check_tensor(mask, "key_padding_mask", shape=[k.shape[-2]], dtype=None, finite=False)
    zero = keys[0].new_zeros(())
    return zero.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else zero + mask


def _check(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], is_causal: bool, scale: float | None,
    degree: int | None, tol: float | None,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    keys, values = list(keys), list(values)
    if len(keys) != len(values) or not keys:
        raise ValueError(f"keys and values must be equally many, got {len(keys)} and {len(values)}")
    check_tensor(query, "query", dtype="floating")
    n, *shape = query.shape[-2], *query.shape[:-2]
    for i, (k, v) in enumerate(zip(keys, values)):
        check_tensor(k, f"keys[{i}]", dtype="floating", shape=[*shape, n if is_causal else None, query.shape[-1]])
        check_tensor(v, f"values[{i}]", dtype="floating", shape=[*shape, k.shape[-2], values[0].shape[-1]])
        check_same(query=query, **{f"keys[{i}]": k, f"values[{i}]": v})
    if scale is not None:
        check_range(scale, "scale", 0, closed="neither")
    if degree is not None and check_range(degree, "degree", 0, integer=True) % 2:
        raise ValueError(f"degree must be even, so that no weight is negative, got {degree}")
    if tol is not None:
        check_range(tol, "tol", 0, closed="neither")
    return keys, values
