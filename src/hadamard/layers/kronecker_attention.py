"""Attention to pairs and larger tuples of positions.

Each position i weighs all pairs (j, l) by the exponential of a trilinear score, and takes the products of their
values. With three projections of the tokens to queries and keys, and ``*`` entry by entry::

    y_i = sum_jl w_ijl (v_j * v'_l),        w_ijl proportional to exp(1/d sum_a q_ia k_ja k'_la)

In matrices this is ``D^-1 exp(Q (K1 (/) K2)^T / d) (V1 (/) V2)`` with the column-wise Kronecker product (/), whose rows
are the entry-wise products of a row of one factor with a row of the other. Where the entries are bounded, exp is a
polynomial to any accuracy, and a polynomial of a product splits into sums over single positions.

References
----------
J. Alman, Z. Song, "How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention to Kronecker
Computation", ICLR 2024, arXiv:2310.04064.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.features import heads, merge, taylor_degree
from hadamard.layers.kronecker_functional import METHODS, kronecker_attention
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["KroneckerAttention"]


class KroneckerAttention(nn.Module):
    """Multi-head attention to pairs of positions (or larger tuples), called as ``nn.MultiheadAttention``.

    Parameters
    ----------
    embed_dim, num_heads, bias, batch_first
        As for ``nn.MultiheadAttention``.
    order
        Positions that a weight belongs to, the query's included: 2 is ordinary attention, 3 attends to pairs.
    is_causal
        Attend to positions up to the query's own only, in every call.
    max_score
        Scale queries and keys to length one and their scores to at most this in size. The polynomial then has one
        degree whatever the input, which ``tol`` determines here. ``None``: the paper's scores, divided by the
        channels of a head, of whatever size the weights make them.
    method, degree, tol
        As for :func:`kronecker_attention`.
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If sizes do not fit, a mask is not of a supported kind, or an input is not finite.

    Notes
    -----
    *When not to use it.* Where labels depend on pairs of tokens, ordinary attention is cheaper by a factor of n. Exact
    attention to pairs takes n^3: at 512 positions it costs as much as ordinary attention at ten thousand. The
    polynomial is near-linear, with a factor that explodes in the channels of a head and in the size of the scores:
    beyond 8 channels or scores of 3 there is nothing to gain, and the paper proves that for large entries no
    algorithm can. Bounded scores are also flat ones: a polynomial cannot pick one pair out of thousands.

    Parameters are ``in_proj_weight`` of shape ((2 order - 1) embed_dim, embed_dim), for the query, the keys, then the
    values, ``in_proj_bias`` and ``out_proj``: with order 2 those of ``nn.MultiheadAttention``.

    References
    ----------
    J. Alman, Z. Song, ICLR 2024, arXiv:2310.04064.

    Examples
    --------
    >>> attention = KroneckerAttention(32, 4, batch_first=True)
    >>> x = torch.randn(2, 20, 32)
    >>> y, _ = attention(x, x, x)
    >>> y.shape
    torch.Size([2, 20, 32])
    """

    in_proj_bias: nn.Parameter | None
    _qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer from its own fused softmax attention

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        order: int = 3,
        *,
        bias: bool = True,
        batch_first: bool = False,
        is_causal: bool = False,
        max_score: float | None = None,
        method: str = "auto",
        degree: int | None = None,
        tol: float | None = 1e-3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range(embed_dim, "embed_dim", 1, integer=True)
        check_range(num_heads, "num_heads", 1, integer=True)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.order = check_range(order, "order", 2, integer=True)
        self.batch_first, self.is_causal = batch_first, is_causal
        self.max_score = max_score if max_score is None else check_range(max_score, "max_score", 0, 500, closed="right")
        self.method, self.degree, self.tol = check_option(method, "method", METHODS), degree, tol
        if max_score is not None:  # the degree is the same for every input, and no input needs to be looked at
            self.degree = taylor_degree(max_score, tol or 1e-3) if degree is None else degree
            self.tol = None
        parts = 2 * order - 1
        self.in_proj_weight = nn.Parameter(torch.empty(parts * embed_dim, embed_dim, device=device, dtype=dtype))
        shift = nn.Parameter(torch.zeros(parts * embed_dim, device=device, dtype=dtype)) if bias else None
        self.register_parameter("in_proj_bias", shift)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        for weight in self.in_proj_weight.chunk(parts):
            nn.init.xavier_uniform_(weight)

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
    ) -> tuple[Float[Tensor, "..."], None]:
        """Attend; arguments and results as in ``nn.MultiheadAttention``, except as follows.

        Parameters
        ----------
        query, key, value
            (L, N, E), or (N, L, E) with ``batch_first``, or (L, E). All keys come from ``key``, all values from
            ``value``.
        key_padding_mask
            (N, L): true, or ``-inf`` where it is floating, leaves a position out.
        need_weights
            Must be false: there is a weight for each tuple.
        attn_mask
            Only the causal mask, together with ``is_causal=True``; its values are not looked at.
        is_causal
            Attend causally in this call.
        """
        causal = self.is_causal or is_causal
        if need_weights:
            raise ValueError("need_weights must be False: there is a weight for each tuple of positions, got True")
        if attn_mask is not None and not causal:
            raise ValueError("attn_mask must be None or, with is_causal=True, the causal mask")
        single = query.ndim == 2
        for name, x in (("query", query), ("key", key), ("value", value)):
            check_tensor(x, name, ndim=2 if single else 3, shape=[None, self.embed_dim], dtype="floating")
        q, k, v = ((x[None] if single else x if self.batch_first else x.transpose(0, 1)) for x in (query, key, value))
        places = self.order - 1
        weights = self.in_proj_weight.split([self.embed_dim, places * self.embed_dim, places * self.embed_dim])
        sizes = [len(w) for w in weights]
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((q, k, v), weights, biases))
        q, *rest = (heads(x, self.num_heads) for x in (q, *k.chunk(places, -1), *v.chunk(places, -1)))
        keys, values, scale = rest[:places], rest[places:], None
        if self.max_score is not None:  # the score of unit vectors is at most 1
            q, *keys = (F.normalize(x, dim=-1) for x in (q, *keys))
            scale = self.max_score
        if key_padding_mask is not None:
            check_tensor(key_padding_mask, "key_padding_mask", shape=[k.shape[-2]], dtype=None, finite=False)
            key_padding_mask = key_padding_mask.reshape(-1, 1, k.shape[-2])
        y = kronecker_attention(
            q, keys, values, key_padding_mask=key_padding_mask, is_causal=causal, scale=scale, method=self.method,
            degree=self.degree, tol=self.tol,
        )  # fmt: skip
        y = self.out_proj(merge(y))
        return (y[0] if single else y if self.batch_first else y.transpose(0, 1)), None

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return f"{self.embed_dim}, {self.num_heads}, order={self.order}, max_score={self.max_score}"
