"""What one call of a denoiser costs: parameters and operations, in all and by block, without memory for its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hadamard.validation import check_range

__all__ = ["Profile", "example_inputs", "profile"]


@dataclass(frozen=True)
class Profile:
    """Parameters and operations of one call; ``print`` shows a table.

    Attributes
    ----------
    parameters
        Number of parameters.
    macs
        Multiply-accumulate operations of all matrix products and convolutions, attention's among them.
    blocks
        (parameters, macs) by block, in the order of the module, without those that have neither.
    """

    parameters: int
    macs: int
    blocks: Mapping[str, tuple[int, int]]

    def __str__(self) -> str:
        width = max(map(len, self.blocks), default=5)
        rows = [("all", (self.parameters, self.macs)), *self.blocks.items()]
        return "\n".join(f"{name:<{width}} {p / 1e6:10.2f} M {m / 1e9:10.3f} GMAC" for name, (p, m) in rows)


def profile(
    model: nn.Module | Mapping[str, Any],
    latent: int | Sequence[int] = 64,
    tokens: int = 77,
    *,
    batch: int = 1,
    device: str = "meta",
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
) -> Profile:
    """Count the parameters and operations of one call of a denoiser.

    Parameters
    ----------
    model
        A diffusers model, or the configuration of one with its ``_class_name``, such as :func:`sdxl_variant` returns or
        ``config.json`` holds; or any module, with ``inputs``.
    latent
        Height and width of the sample, or both in one number: 64 for 512 pixels of Stable Diffusion, 128 for 1024 of
        SDXL.
    tokens
        Length of the text.
    batch
        Number of samples; operations are of all of them.
    device
        ``"meta"`` counts from the shapes alone, so that billions of parameters take no memory; on another device the
        model really runs, with inputs of zeros.
    inputs
        Positional and named arguments of the call, on ``device``, in place of those that fit the configuration.

    Raises
    ------
    TypeError
        If the model is neither a module nor a configuration, or of a kind that needs ``inputs``.
    ValueError
        If ``latent`` does not fit the levels of a UNet.

    Notes
    -----
    One MAC is two of ``torch.utils.flop_counter``'s operations. Norms, activations and additions are not counted, as
    is usual; attention is, whichever kernel the device would take.

    Examples
    --------
    >>> layer = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False))
    >>> cost = profile(layer, inputs=((torch.empty(10, 4, device="meta"),), {}))
    >>> cost.parameters, cost.macs, dict(cost.blocks)
    (48, 480, {'0': (32, 320), '1': (16, 160)})
    """
    size = (latent, latent) if isinstance(latent, int) else tuple(latent)
    if len(size) != 2:
        raise ValueError(f"latent must be one number or two, got {len(size)}")
    for n in size:
        check_range(n, "latent", 1, integer=True)
    check_range(tokens, "tokens", 1, integer=True)
    check_range(batch, "batch", 1, integer=True)
    module = _built(model, device)
    args, kwargs = inputs if inputs is not None else example_inputs(module, batch, size, tokens, device)
    state = {name: t.to(device) for name, t in [*module.named_parameters(), *module.named_buffers()]}
    training = module.training
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            functional_call(module.eval(), state, args, kwargs)
    finally:
        module.train(training)
    counts = {name: sum(by_kind.values()) // 2 for name, by_kind in counter.get_flop_counts().items()}
    root = type(module).__name__
    blocks = {name: (_parameters(block), counts.get(f"{root}.{name}", 0)) for name, block in _blocks(module)}
    return Profile(_parameters(module), counter.get_total_flops() // 2, {k: v for k, v in blocks.items() if any(v)})


def _built(model: Any, device: str) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, Mapping) or "_class_name" not in model:
        raise TypeError(f"model must be a module or a configuration with '_class_name', got {type(model).__name__}")
    import diffusers

    import hadamard.diffusion

    name = model["_class_name"]
    kind = getattr(diffusers, name, None) or getattr(hadamard.diffusion, name, None)
    if kind is None:
        raise TypeError(f"model must be of a class of diffusers, got {name!r}")
    with torch.device(device):
        return kind.from_config(dict(model))


def _blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children, lists of blocks one by one."""
    found = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            found += [(f"{name}.{number}", block) for number, block in enumerate(child)]
        else:
            found.append((name, child))
    return found


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def example_inputs(
    module: nn.Module, batch: int, size: tuple[int, ...], tokens: int, device: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What diffusers' denoisers are called with, of zeros."""
    config: Any = getattr(module, "config", {})
    kind = type(module).__name__.removeprefix("Spectral")

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, *shape, device=device)

    classes = torch.zeros(batch, dtype=torch.long, device=device)
    if kind.startswith("UNet2D"):
        step = 2 ** (len(config.block_out_channels) - 1)
        if any(n % step for n in size):
            raise ValueError(
                f"latent must be a multiple of {step} for {len(config.block_out_channels)} levels, got {size}"
            )
    if kind == "UNet2DModel":
        labels = {"class_labels": classes} if config.num_class_embeds else {}
        return (zeros(config.in_channels, *size), zeros()), labels
    if kind == "UNet2DConditionModel":
        text = config.encoder_hid_dim or config.cross_attention_dim
        named: dict[str, Any] = {"class_labels": classes} if config.num_class_embeds else {}
        if config.addition_embed_type == "text_time":
            times = config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - 6 * times
            named["added_cond_kwargs"] = {"text_embeds": zeros(pooled), "time_ids": zeros(6)}
        return (zeros(config.in_channels, *size), zeros(), zeros(tokens, text)), named
    if kind == "PixArtTransformer2DModel":
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if config.use_additional_conditions or config.sample_size == 128:
            added = {"resolution": zeros(2), "aspect_ratio": zeros(1)}
        text = zeros(tokens, config.caption_channels)
        return (zeros(config.in_channels, *size), text), {"timestep": zeros(), "added_cond_kwargs": added}
    if kind == "DiTTransformer2DModel":
        return (zeros(config.in_channels, *size),), {"timestep": classes, "class_labels": classes}
    raise TypeError(f"model must be of a kind whose arguments are known here, or come with inputs, got {kind}")
