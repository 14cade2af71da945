"""Softmax attention by a polynomial, and transformers' models that attend so."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hadamard.layers.kronecker_functional import METHODS, cheaper, kronecker_attention
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["poly_attention", "register_attention"]


def poly_attention(
    query: Float[Tensor, "*batch n d"],
    key: Float[Tensor, "*batch m d"],
    value: Float[Tensor, "*batch m v"],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    eps: float | None = 1e-3,
    degree: int | None = None,
    method: str = "auto",
) -> Float[Tensor, "*batch n v"]:
    """Compute softmax attention, and its gradients, in time and memory linear in the length, to a stated accuracy.

    The exponential of a score is replaced by its Taylor polynomial, an inner product of monomials: of weights nothing
    but sums over positions is ever formed, forward or backward.

    Parameters
    ----------
    query, key, value, is_causal, scale
        As for ``torch.nn.functional.scaled_dot_product_attention``.
    key_padding_mask
        Boolean, broadcast against (..., m): true leaves a position out.
    eps
        Largest relative error of a weight before normalisation, certified from the sizes of queries and keys.
    degree
        Even degree of the polynomial; the least that meets ``eps`` by default. ``eps=None`` with a degree looks at no
        values.
    method
        ``"polynomial"``; ``"exact"``: torch's own; ``"auto"``: the one with fewer multiplications.

    Returns
    -------
    Tensor
        Shape (..., n, v).

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, the degree is odd, or ``method="polynomial"`` needs more than
        20,000 features.

    Notes
    -----
    The keys are centred first: the softmax does not change, and scores become smaller. The number of features is
    ``C(d + degree, degree)``: with heads of 32 channels and more, or scores beyond 3, exact attention is cheaper at
    any length that fits into memory. That is no fault of the implementation: above a norm of sqrt(log n) no
    algorithm is much faster than exact attention, unless the strong exponential time hypothesis fails.

    References
    ----------
    J. Y.-C. Hu, M. Su, E.-J. Kuo, Z. Song, H. Liu. Computational Limits of Low-Rank Adaptation (LoRA) Fine-Tuning for
    Transformer Models. ICLR 2025, arXiv:2406.03136.

    Examples
    --------
    >>> q, k, v = torch.randn(3, 1, 500, 4).unbind()
    >>> y = poly_attention(q / 2, k / 2, v, method="polynomial")
    >>> exact = torch.nn.functional.scaled_dot_product_attention(q / 2, k / 2, v)
    >>> torch.allclose(y, exact, atol=1e-3)
    True
    """
    check_option(method, "method", METHODS)
    check_tensor(query, "query", dtype="floating")
    check_tensor(key, "key", dtype="floating", shape=[*query.shape[:-2], None, query.shape[-1]])
    check_tensor(value, "value", dtype="floating", shape=[*query.shape[:-2], key.shape[-2], None])
    scale = query.shape[-1] ** -0.5 if scale is None else check_range(scale, "scale", 0, closed="neither")
    if method != "exact":
        key = key - _mean(key, key_padding_mask)
    if method == "auto":
        degree, method = cheaper(query, [key], [value], scale, degree, eps)
    if method == "exact":
        mask = None if key_padding_mask is None else ~key_padding_mask[..., None, :]
        if mask is not None and is_causal:
            mask = mask & torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        causal = is_causal and mask is None
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)
    return kronecker_attention(
        query, [key], [value], key_padding_mask=key_padding_mask, is_causal=is_causal, scale=scale,
        method="polynomial", degree=degree, tol=eps,
    )  # fmt: skip


def register_attention(name: str = "polynomial", **options: Any) -> None:
    """Let every model of transformers attend by :func:`poly_attention`: ``model.set_attn_implementation(name)``.

    LoRA's gradients, those of PEFT's adapters for example, then take a time linear in the length wherever the
    polynomial is cheaper, and are exact elsewhere.

    Parameters
    ----------
    name
        Under which transformers knows it; the same name again replaces it.
    options
        ``eps``, ``degree`` and ``method`` of :func:`poly_attention`.

    Raises
    ------
    ImportError
        If transformers is not installed.
    TypeError
        If there is no such option.
    ValueError
        When a model runs: if its mask is neither causal nor padding, or it uses dropout in attention.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> sizes = dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    >>> model = BertModel(BertConfig(**sizes)).eval()
    >>> tokens = torch.arange(20)[None]
    >>> exact = model(tokens).last_hidden_state
    >>> register_attention(method="polynomial", eps=1e-4)
    >>> model.set_attn_implementation("polynomial")
    >>> torch.allclose(model(tokens).last_hidden_state, exact, atol=1e-3)
    True
    """
    unknown = set(options) - {"eps", "degree", "method"}
    if unknown:
        raise TypeError(f"options must be eps, degree or method, got {', '.join(sorted(unknown))}")

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        scaling: float | None = None, dropout: float = 0.0, is_causal: bool | None = None, **_: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if dropout and module.training:
            raise ValueError(f"dropout of the attention's weights must be 0, got {dropout}")
        key, value = (same_heads(x, query) for x in (key, value))
        if attention_mask is not None and query.shape[-2] != key.shape[-2]:  # generation with a cache
            y = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
            return y.transpose(1, 2).contiguous(), None
        causal, padding = read_mask(attention_mask, module, query, is_causal)
        y = poly_attention(query, key, value, is_causal=causal, scale=scaling, key_padding_mask=padding, **options)
        return y.transpose(1, 2).contiguous(), None

    add_attention(name, attend)


def add_attention(name: str, attend: Any) -> None:
    """Make a way of attending known to transformers, with the masks that torch's own takes."""
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise ImportError("this needs transformers: pip install 'hadamard[transformers]'") from error
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)


def same_heads(x: Tensor, query: Tensor) -> Tensor:
    """Keys or values for each of the query's heads, where several heads share theirs."""
    return x.repeat_interleave(query.shape[1] // x.shape[1], 1) if x.shape[1] != query.shape[1] else x


def read_mask(
    mask: Tensor | None, module: Any, query: Tensor, is_causal: bool | None = None
) -> tuple[bool, Tensor | None]:
    """Take a mask of transformers apart: whether it is causal, and which keys (batch, 1, m) it leaves out for all."""
    if mask is None:
        causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        return bool(causal) and query.shape[-2] > 1, None
    kept = mask if mask.dtype == torch.bool else mask == 0
    padding, rows = ~kept.any(-2), kept.any(-1, keepdim=True)  # a row that sees nothing is padding itself
    for causal in (False, True):
        expected = ~padding[..., None, :] & (torch.ones_like(kept).tril() if causal else True)
        if bool(((kept == expected) | ~rows).all()):
            return causal, padding if bool(padding.any()) else None
    raise ValueError("attention_mask must be causal, or leave out padding, or both; got another one")


def _mean(key: Tensor, padding: Tensor | None) -> Tensor:
    if padding is None:
        return key.mean(-2, keepdim=True)
    kept = (~padding)[..., None].to(key.dtype)
    return (key * kept).sum(-2, keepdim=True) / kept.sum(-2, keepdim=True).clamp(min=1)
