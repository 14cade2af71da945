"""Kernelized attention with a bias for each offset, as a function."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hadamard.features import PositiveRandom, linear_attention
from hadamard.layers._toeplitz_sums import METHODS, allowed, attend, feature_pair, floor, relative
from hadamard.layers.toeplitz_matmul import check_offsets
from hadamard.validation import check_option, check_range, check_same, check_tensor

__all__ = ["toeplitz_attention"]


def toeplitz_attention(
    query: Float[Tensor, "*batch n d"],
    key: Float[Tensor, "*batch m d"],
    value: Float[Tensor, "*batch m d_v"],
    bias: Float[Tensor, "..."] | None = None,
    *,
    features: PositiveRandom,
    key_padding_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    normalize: bool = True,
    grid: Sequence[int] | None = None,
    method: str = "auto",
    eps: float | None = None,
) -> Float[Tensor, "*batch n d_v"]:
    """Attend with random features and a bias for each offset, as ``scaled_dot_product_attention`` with that bias.

    Parameters
    ----------
    query, key, value
        Shapes (..., n, d), (..., m, d), (..., m, d_v); usually (batch, heads, positions, channels).
    bias
        One number an offset ``j - i`` from query to key, the most negative first: (..., n + m - 1), or
        (..., 2 h - 1, 2 w - 1) on a grid; ``-inf`` forbids an offset. Leading dimensions broadcast, so that
        (heads, 2 n - 1) is a table a head. ``None``: linear attention.
    features
        The feature map of d dimensions. Attention with fewer features is cheaper and noisier.
    key_padding_mask
        Broadcast against (..., m). Where true, a key is left out; floating numbers are added to its logits.
    is_causal
        Use only keys up to the query's own position; on a grid, in reading order.
    scale
        Of ``q . k``; 1 by default with ``normalize``, ``1 / sqrt(d)`` without.
    normalize
        Scale queries and keys to length one. Without it the error of random features grows with
        ``exp(|q + k|^2 scale / 2)`` and training is apt to diverge; it is there for comparison.
    grid
        Sizes (h, w) of a picture whose positions lie row by row; offsets are then two-dimensional.
    method
        ``"fft"`` in O(n log n) time and O(n) memory; ``"dense"`` forms the weights, block by block, in O(n^2) time;
        ``"auto"`` takes the quicker one: short sequences are quicker dense.
    eps
        Smallest denominator of the weights, whose largest possible value is about the number of keys; by default about
        the rounding of the transforms, 1e-6 in float32 and 1e-12 in float64.

    Returns
    -------
    Tensor
        Shape (..., n, d_v); 0 where all keys are left out. Half precision is computed in float32.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or ``bias`` has not one entry an offset.

    Notes
    -----
    The rounding errors of an FFT are relative to its largest result. Where the bias spans more than about 20, the
    transforms run in float64 (not inside ``torch.compile``, which looks at no values: there cast the inputs).

    Examples
    --------
    >>> q, k, v = torch.randn(3, 1, 2, 100, 8).unbind()
    >>> bias = torch.zeros(2, 199)
    >>> toeplitz_attention(q, k, v, bias, features=PositiveRandom(8, 32)).shape
    torch.Size([1, 2, 100, 8])
    """
    _check(query, key, value, bias, features, scale, eps)
    check_option(method, "method", METHODS)
    n, m = query.shape[-2], key.shape[-2]
    if is_causal and n != m:
        raise ValueError(f"query and key must be equally long with is_causal, got {n} and {m}")
    if bias is not None:
        check_offsets(bias, "bias", m, grid, n)
        check_tensor(bias.detach().masked_fill(bias == -torch.inf, 0), "bias")
    half = value.dtype in (torch.float16, torch.bfloat16)
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (x.float() if half else x for x in (query, key, value))
        q, k, log_scale = feature_pair(q, k, features, scale, normalize, key_padding_mask)
        if bias is None:
            y = linear_attention(q, k * relative(log_scale)[..., None], v, is_causal, floor(eps, v.dtype))
        else:
            bias = allowed(bias.float() if half else bias, is_causal, grid, n)
            y = attend(q, k, log_scale, v, bias, grid, method, eps)
    return y.to(value.dtype)


def _check(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, features: PositiveRandom, scale: float | None,
    eps: float | None,
) -> None:  # fmt: skip
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_tensor(x, name, dtype="floating")
    check_same(query=query, key=key, value=value)
    check_tensor(query, "query", shape=[None, features.dim])
    check_tensor(key, "key", shape=[*query.shape[:-2], None, features.dim])
    check_tensor(value, "value", shape=[*query.shape[:-2], key.shape[-2], None])
    if eps is not None:
        check_range(eps, "eps", 0)
    if scale is not None:
        check_range(scale, "scale", 0, closed="neither")
    if bias is not None:
        check_tensor(bias, "bias", dtype="floating", finite=False)
