"""Kernelized attention with a relative position bias in O(n log n).

Softmax attention weighs position j for a query i by ``exp(q_i . k_j + b_{j - i})``, with a learned number ``b`` for
each offset. A feature map with ``phi(q) . phi(k) = exp(q . k)`` in the mean splits the first factor, and the second
makes a Toeplitz matrix, whose products the FFT forms. With ``c_t = exp(b_t)``::

    y_i = phi(q_i) . sum_j c_{j - i} phi(k_j) v_j  /  phi(q_i) . sum_j c_{j - i} phi(k_j)

Random features fail for long vectors, so queries and keys are scaled to length one; what is lost of the peaked
weights of softmax, the bias gives back.

References
----------
S. Luo, S. Li, T. Cai, D. He, D. Peng, S. Zheng, G. Ke, L. Wang, T.-Y. Liu, "Stable, Fast and Accurate: Kernelized
Attention with Relative Positional Encoding", NeurIPS 2021, arXiv:2106.12566.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.features import PositiveRandom, heads, merge
from hadamard.layers._toeplitz_sums import METHODS, allowed, attend, feature_pair
from hadamard.layers.toeplitz_functional import toeplitz_attention
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["DecodingCache", "ToeplitzAttention"]


@dataclass(frozen=True, kw_only=True)
class DecodingCache:
    """What :meth:`ToeplitzAttention.step` keeps of the tokens so far: (batch, heads, tokens, ...) each.

    Attributes
    ----------
    features
        Features of the keys, over their largest.
    log_scale
        Logarithms of what they were divided by.
    values
        Values.
    """

    features: Tensor
    log_scale: Tensor
    values: Tensor


class ToeplitzAttention(nn.MultiheadAttention):
    """Multi-head attention with a learned relative position bias in O(n log n), for ``nn.MultiheadAttention``.

    Parameters, their names and their layout are those of ``nn.MultiheadAttention``, so that its ``state_dict`` loads
    with ``strict=False``; ``rel_bias``, one number a head and offset, and the buffer ``features.projection`` come
    on top. It stands in ``nn.TransformerEncoderLayer`` as ``self_attn``; put it there before the layer is stacked in an
    ``nn.TransformerEncoder``, which then does without nested tensors.

    Parameters
    ----------
    embed_dim, num_heads, bias, kdim, vdim, batch_first
        As for ``nn.MultiheadAttention``. There is no dropout of weights, which are never formed.
    max_len
        Longest sequence, or the sizes (h, w) of the largest picture; shorter ones use the middle of ``rel_bias``.
    num_features
        Random features a head; ``d log d`` for heads of d channels by default. Time and memory are proportional to it.
    normalize
        Scale queries and keys to length one, which the method rests on; see :func:`toeplitz_attention`.
    is_causal
        Attend to positions up to the query's own only, in every call.
    method
        As for :func:`toeplitz_attention`.
    generator
        Source of the random features. They are drawn once and saved; ``features.redraw()`` draws new ones.
    device, dtype
        Of parameters and buffers.

    Raises
    ------
    ValueError
        If sizes do not fit, a sequence is longer than ``max_len``, a mask is of a kind that is not supported, or an
        input is not finite.

    Notes
    -----
    *When not to use it.* Up to about a thousand tokens ``scaled_dot_product_attention`` with a bias is exact and as
    quick. Without a bias for offsets there is no reason for the FFT. Where attention must be sharp on content (copying,
    retrieval by key), unit vectors make it too flat: the largest weight is at most e^2 times the smallest, apart from
    the bias. An arbitrary ``attn_mask`` is not a function of the offset and cannot be had.

    The paper fixes no scale after normalisation; here ``q . k`` of unit vectors is used as it is.

    References
    ----------
    S. Luo et al., NeurIPS 2021, arXiv:2106.12566.

    Examples
    --------
    >>> attention = ToeplitzAttention(32, 4, max_len=128, batch_first=True, is_causal=True)
    >>> x = torch.randn(2, 100, 32)
    >>> y, _ = attention(x, x, x)
    >>> last, cache = attention.step(x[:, :99])
    >>> last, cache = attention.step(x[:, 99:], cache)
    >>> torch.allclose(last, y[:, 99:], atol=1e-5)
    True
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        max_len: int | Sequence[int],
        *,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        num_features: int | None = None,
        normalize: bool = True,
        is_causal: bool = False,
        method: str = "auto",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_range(num_heads, "num_heads", 1, integer=True)
        check_range(embed_dim, "embed_dim", 1, integer=True)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}")
        super().__init__(
            embed_dim, num_heads, bias=bias, kdim=kdim, vdim=vdim, batch_first=batch_first, device=device, dtype=dtype
        )
        self._qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer from its own fused softmax attention
        self.sizes = (max_len,) if isinstance(max_len, int) else tuple(max_len)
        for size in self.sizes:
            check_range(size, "max_len", 1, integer=True)
        self.normalize, self.is_causal = normalize, is_causal
        self.method = check_option(method, "method", METHODS)
        count = num_features or max(1, round(self.head_dim * log(self.head_dim)))
        self.features = PositiveRandom(self.head_dim, count, generator=generator, device=device, dtype=dtype)
        self.rel_bias = nn.Parameter(
            torch.zeros(num_heads, *(2 * s - 1 for s in self.sizes), device=device, dtype=dtype)
        )

    def forward(
        self,
        query: Float[Tensor, "..."],
        key: Float[Tensor, "..."],
        value: Float[Tensor, "..."],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        grid: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."] | None]:
        """Attend; arguments and results as in ``nn.MultiheadAttention``, except as follows.

        Parameters
        ----------
        query, key, value
            (L, N, E), or (N, L, E) with ``batch_first``, or (L, E).
        key_padding_mask
            (N, L): true, or ``-inf`` where it is floating, leaves a key out.
        need_weights
            Return the weights too, (N, L, S) or (N, H, L, S): this forms them, in O(n^2). ``False`` by default.
        attn_mask
            Only the causal mask, together with ``is_causal=True``; its values are not looked at.
        is_causal
            Attend causally in this call.
        grid
            Sizes of the picture where ``max_len`` has several; ``max_len`` itself by default.
        """
        causal = self.is_causal or is_causal
        if attn_mask is not None and not causal:
            raise ValueError("attn_mask must be None or, with is_causal=True, the causal mask: others are not Toeplitz")
        single = query.ndim == 2
        q, k, v = (self._batched(x, name, single) for x, name in ((query, "query"), (key, "key"), (value, "value")))
        q, k, v = self._project(q, k, v)
        if key_padding_mask is not None:
            check_tensor(key_padding_mask, "key_padding_mask", shape=[k.shape[-2]], dtype=None, finite=False)
            key_padding_mask = key_padding_mask.reshape(-1, 1, k.shape[-2])
        grid = (tuple(grid) if grid is not None else self.sizes) if len(self.sizes) > 1 else None
        options: dict[str, Any] = {
            "features": self.features, "key_padding_mask": key_padding_mask, "is_causal": causal,
            "normalize": self.normalize, "grid": grid,
        }  # fmt: skip
        table = self._table(q.shape[-2], k.shape[-2], grid)
        y = self._merged(toeplitz_attention(q, k, v, table, method=self.method, **options), single)
        if not need_weights:
            return y, None
        unit = torch.eye(k.shape[-2], device=v.device, dtype=v.dtype).expand(*k.shape[:-1], -1)
        weights = toeplitz_attention(q, k, unit, table, method="dense", **options)
        weights = weights.mean(1) if average_attn_weights else weights
        return y, weights[0] if single else weights

    def step(
        self, x: Float[Tensor, "..."], cache: DecodingCache | None = None
    ) -> tuple[Float[Tensor, "..."], DecodingCache]:
        """Attend from new tokens to all tokens so far: causal self-attention as text is generated.

        A step of one token costs O(n) and gives what ``forward`` with ``is_causal`` gives for the last position.

        Parameters
        ----------
        x
            The next token, or several, as in ``forward``: a prompt first, then one at a time.
        cache
            What the last step returned; ``None`` at the beginning.
        """
        if len(self.sizes) > 1:
            raise ValueError(f"max_len must be one number for decoding step by step, got {self.sizes}")
        single = x.ndim == 2
        q, k, v = self._project(*(self._batched(x, "x", single),) * 3)
        half = v.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(x.device.type, enabled=False):
            q, k = (t.float() if half else t for t in (q, k))
            q, k, log_scale = feature_pair(q, k, self.features, None, self.normalize, None)
            if cache is not None:
                k, v = torch.cat([cache.features, k], -2), torch.cat([cache.values, v], -2)
                log_scale = torch.cat([cache.log_scale, log_scale], -1)
            n, m = q.shape[-2], k.shape[-2]
            # the rows are positions m - n to m - 1, from which offsets reach from 1 - m to n - 1; up to 0 is past
            table = allowed(self._table(m, m, None).to(k.dtype), True, None, m)[:, : m + n - 1]
            y = attend(q, k, log_scale, v.to(k.dtype), table, None, self.method, None).to(v.dtype)
        return self._merged(y, single), DecodingCache(features=k, log_scale=log_scale, values=v)

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        sizes = self.sizes[0] if len(self.sizes) == 1 else self.sizes
        return f"{self.embed_dim}, {self.num_heads}, max_len={sizes}, is_causal={self.is_causal}"

    def _batched(self, x: Tensor, name: str, single: bool) -> Tensor:
        if x.is_nested:
            raise ValueError(
                f"{name} must not be nested: build nn.TransformerEncoder from layers that hold this attention already, "
                "or with enable_nested_tensor=False"
            )
        check_tensor(x, name, ndim=2 if single else 3, dtype="floating")
        return x[None] if single else x if self.batch_first else x.transpose(0, 1)

    def _project(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None,) * 3
        for name, x, weight in zip(("query", "key", "value"), (q, k, v), weights):
            check_tensor(x, name, shape=[len(k) if name == "value" else len(q), None, weight.shape[1]])
        return [heads(F.linear(x, w, b), self.num_heads) for x, w, b in zip((q, k, v), weights, biases)]

    def _merged(self, y: Tensor, single: bool) -> Tensor:
        y = self.out_proj(merge(y))
        return y[0] if single else y if self.batch_first else y.transpose(0, 1)

    def _table(self, n: int, m: int, grid: Sequence[int] | None) -> Tensor:
        """The middle of the learned table, for sequences of these lengths."""
        table: Tensor = self.rel_bias
        spans = [(n, m)] if grid is None else [(size, size) for size in grid]
        if len(spans) != len(self.sizes) or any(max(span) > size for span, size in zip(spans, self.sizes)):
            got = (max(n, m),) if grid is None else tuple(grid)
            raise ValueError(f"max_len must be at least the sequence's size {got}, got {self.sizes}")
        for d, ((rows, columns), size) in enumerate(zip(spans, self.sizes), start=1):
            table = table.narrow(d, size - rows, rows + columns - 1)
        return table
