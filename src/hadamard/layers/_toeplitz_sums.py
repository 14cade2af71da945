"""The sums over keys of :func:`hadamard.layers.toeplitz_attention`, from features: by the FFT, or dense."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from hadamard.features import PositiveRandom
from hadamard.features.attention import checkpointed, divide
from hadamard.layers.toeplitz_matmul import offset_index, toeplitz_matmul

__all__ = ["METHODS", "allowed", "attend", "feature_pair", "floor", "relative"]

METHODS = ("auto", "fft", "dense")
_WIDE = 20.0  # range of the bias above which float32 may lose the small weights in the rounding of the large ones
_DENSE_BLOCK = 2**18  # weights that are formed at once; both blocks stay in a CPU's cache
_FFT_BLOCK = 2**18  # positions times channels that are transformed at once
_KEEP = 2**24  # intermediate numbers up to which they are kept for the backward pass instead of made again


def feature_pair(
    q: Tensor, k: Tensor, features: PositiveRandom, scale: float | None, normalize: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of queries and of keys, and the logarithms of the scales of the latter, -inf where they are masked."""
    if normalize:
        q, k = (F.normalize(x, dim=-1, eps=torch.finfo(x.dtype).eps) for x in (q, k))
    root = (scale if scale is not None else 1.0 if normalize else q.shape[-1] ** -0.5) ** 0.5
    q, _ = features.scaled(q * root)
    k, log_scale = features.scaled(k * root)
    if mask is not None:
        extra = torch.zeros_like(log_scale)
        log_scale = log_scale + (extra.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else extra + mask)
    return q, k, log_scale


def relative(log_scale: Tensor) -> Tensor:
    """Scales over their largest; all 0 where all are masked."""
    largest = log_scale.detach().amax(-1, keepdim=True)
    return (log_scale - torch.where(largest == -torch.inf, 0.0, largest)).exp()


def floor(eps: float | None, dtype: torch.dtype) -> float:
    """Smallest denominator: the one that was asked for, or about the rounding of a transform."""
    return eps if eps is not None else 1e-12 if dtype == torch.float64 else 1e-6


def allowed(bias: Tensor, is_causal: bool, grid: Sequence[int] | None, n: int) -> Tensor:
    """The bias with -inf at the offsets that lie ahead in reading order, if these are not allowed."""
    if not is_causal:
        return bias
    shape = [2 * size - 1 for size in grid] if grid is not None else [bias.shape[-1]]
    center = prod(shape) // 2 if grid is not None else n - 1
    ahead = torch.arange(prod(shape), device=bias.device) > center
    return bias.masked_fill(ahead.view(shape), -torch.inf)


def attend(
    q: Tensor,
    k: Tensor,
    log_scale: Tensor,
    v: Tensor,
    bias: Tensor,
    grid: Sequence[int] | None,
    method: str,
    eps: float | None,
) -> Tensor:
    """Attention from features; ``bias`` is -inf where an offset is not allowed."""
    n, m = q.shape[-2], k.shape[-2]
    if method == "auto":
        method = "fft" if min(n, m) > _crossover(k.shape[-1], v.shape[-1]) else "dense"
    v = F.pad(v, (0, 1), value=1.0)
    many = 1 if v.device.type == "cpu" else 64
    if method == "dense":
        k = k * relative(log_scale)[..., None]
        rows = max(1, many * _DENSE_BLOCK // (m * max(prod(q.shape[:-2]), 1)))
        blocks = [partial(_dense, start=start, n=n, grid=grid, eps=eps) for start in range(0, n, rows)]
        keep = prod(q.shape[:-1]) * m <= _KEEP
        return torch.cat([_run(f, keep, part, k, v, bias) for f, part in zip(blocks, q.split(rows, -2))], -2)
    dims = tuple(range(-len(grid), 0)) if grid is not None else (-1,)
    largest = bias.detach().amax(dims, keepdim=True)
    bias = bias - torch.where(largest == -torch.inf, 0.0, largest)
    dtype = v.dtype
    if not torch.compiler.is_compiling() and bool(((bias < -_WIDE) & (bias > -torch.inf)).any()):
        bias, q, k, log_scale, v = (t.double() for t in (bias, q, k, log_scale, v))
    c, k = bias.exp(), k * relative(log_scale)[..., None]
    at_once = max(1, many * _FFT_BLOCK // (prod(k.shape[:-1]) * v.shape[-1]))
    features = zip(q.split(at_once, -1), k.split(at_once, -1))
    transform, keep = partial(_transform, grid=grid), prod(k.shape) * v.shape[-1] <= _KEEP
    parts = [_run(transform, keep, a, b, v, c) for a, b in features]
    seen = toeplitz_matmul((c > 0).to(v.dtype), (k > 0).any(-1, keepdim=True).to(v.dtype), grid=grid) > 0.5
    return (divide(reduce(torch.add, parts), floor(eps, v.dtype)) * seen).to(dtype)  # nothing seen is exactly 0


def _run(function: Callable[..., Tensor], keep: bool, *tensors: Tensor) -> Tensor:
    """A block, whose intermediate results are kept, or made again in the backward pass."""
    return function(*tensors) if keep else checkpointed(function, *tensors)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, start: int, n: int, grid: Sequence[int] | None, eps: float | None
) -> Tensor:
    """The rows of attention from ``start`` on, the exact quadratic form."""
    index = offset_index((start, start + q.shape[-2]), n, k.shape[-2], grid, q.device)
    logits = bias.flatten(-len(grid or (1,)))[..., index]
    largest = logits.detach().amax(-1, keepdim=True)
    weights = q @ k.mT * (logits - torch.where(largest == -torch.inf, 0.0, largest)).exp()
    return divide(weights @ v, floor(eps, v.dtype))


def _transform(q: Tensor, k: Tensor, v: Tensor, c: Tensor, grid: Sequence[int] | None) -> Tensor:
    """``sum_j c_{j - i} (q_i . k_j) v_j`` over the features given here, by the FFT."""
    columns = k[..., :, None] * v[..., None, :]  # (..., m, features, values)
    moved = toeplitz_matmul(c, columns.flatten(-2), grid=grid).unflatten(-1, columns.shape[-2:])
    return torch.einsum("...r,...rd->...d", q, moved)


def _crossover(features: int, values: int) -> float:
    """Length from which on the FFT is quicker than the dense form."""
    return 100 * features * values / (features + values)
