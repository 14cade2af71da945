"""What a model's attention is given: queries and keys, what adapters add, and the model put back as it was."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from hadamard.compression.polynomial_attention import add_attention, same_heads
from hadamard.features import heads

__all__ = ["adapters", "evaluating", "recording"]

_NAME = "hadamard_norms"


@contextmanager
def recording(model: Any, record: Any) -> Iterator[None]:
    """Let every attention tell its queries, keys and scale to ``record``."""
    with ExitStack() as afterwards:
        if hasattr(model, "set_attn_implementation"):

            def attend(
                module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                scaling: float | None = None, is_causal: bool | None = None, **_: Any,
            ) -> tuple[Tensor, None]:  # fmt: skip
                key, value = (same_heads(x, query) for x in (key, value))
                record(module, query, key, scaling, value.shape[-1])
                causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
                causal = bool(causal) and attention_mask is None
                y = nn.functional.scaled_dot_product_attention(
                    query, key, value, attn_mask=attention_mask, is_causal=causal, scale=scaling
                )
                return y.transpose(1, 2).contiguous(), None

            add_attention(_NAME, attend)
            afterwards.callback(model.set_attn_implementation, model.config._attn_implementation)
            model.set_attn_implementation(_NAME)

        def before(module: nn.MultiheadAttention, inputs: Any, options: dict[str, Any]) -> None:
            query, key = [*inputs, *(options[name] for name in ("query", "key")[len(inputs) :])][:2]
            if module._qkv_same_embed_dim:
                weights = module.in_proj_weight.chunk(3)[:2]
            else:
                weights = (module.q_proj_weight, module.k_proj_weight)
            biases = (None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[:2]
            single = query.ndim == 2
            q, k = (x[None] if single else x if module.batch_first else x.transpose(0, 1) for x in (query, key))
            q, k = (nn.functional.linear(x, w, b) for x, w, b in zip((q, k), weights, biases))
            record(module, heads(q, module.num_heads), heads(k, module.num_heads), None, module.head_dim)

        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                afterwards.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield


@contextmanager
def adapters(model: nn.Module, names: dict[nn.Module, str]) -> Iterator[dict[str, float]]:
    """Largest entries of what PEFT's low-rank adapters add, by the name of the layer that they adapt."""
    largest: dict[str, float] = {}
    with ExitStack() as afterwards:
        for module in model.modules():
            ups, scaling = getattr(module, "lora_B", None), getattr(module, "scaling", {})
            for adapter, up in ups.items() if isinstance(ups, nn.ModuleDict) else ():

                def after(_: Any, __: Any, y: Tensor, name: str = names[module], s: float = scaling[adapter]) -> None:
                    largest[name] = max(largest.get(name, 0.0), abs(s) * float(y.abs().max()))

                afterwards.callback(up.register_forward_hook(after).remove)
        yield largest


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards each module as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
