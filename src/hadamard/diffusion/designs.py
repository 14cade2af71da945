"""Backbones of text-to-image models, by width and depth: configurations for diffusers, and a search under a budget."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hadamard.diffusion.profile import Profile, profile
from hadamard.validation import check_range

__all__ = ["Design", "design", "narrow", "pixart_variant", "sdxl_variant"]


def sdxl_variant(
    channels: int = 320,
    transformer_depth: Sequence[int] = (0, 4, 4),
    *,
    head_width: int = 64,
    groups: int = 32,
    text_width: int = 2048,
    pooled_width: int = 1280,
    sample_size: int = 128,
) -> dict[str, Any]:
    """The configuration of a UNet like SDXL's, with another width or depth of its transformers.

    SDXL is ``(320, (0, 2, 10))``; the default is the study's TD4_4, with 45 % fewer parameters and 29 % fewer
    operations at equal quality.

    Parameters
    ----------
    channels
        Width of the first level; the levels have 1, 2, 4, ... times as much.
    transformer_depth
        Transformer blocks in each layer of each level, the last of which the middle has too; 0: no attention there.
    head_width
        Channels of an attention head.
    groups
        Groups of a norm.
    text_width, pooled_width
        Of the text's tokens and of its pooled embedding.
    sample_size
        Of the latent that the model is meant for.

    Returns
    -------
    dict
        For ``UNet2DConditionModel(**config)``, with its ``_class_name``.

    Raises
    ------
    ValueError
        If a level's channels cannot be divided into heads or groups, or the last level has depth 0.

    Examples
    --------
    >>> sdxl_variant(320, (0, 4, 4))["block_out_channels"]
    (320, 640, 1280)
    """
    check_range(channels, "channels", 1, integer=True)
    check_range(head_width, "head_width", 1, integer=True)
    check_range(groups, "groups", 1, integer=True)
    depths = tuple(check_range(depth, "transformer_depth", 0, integer=True) for depth in transformer_depth)
    if not depths or depths[-1] == 0:
        raise ValueError(f"transformer_depth must end with at least 1, which the middle has too, got {depths}")
    widths = tuple(channels * 2**level for level in range(len(depths)))
    for level, (width, depth) in enumerate(zip(widths, depths)):
        if depth and width % head_width:
            raise ValueError(
                f"channels must divide into heads of {head_width} wherever there is attention, got {width} in level "
                f"{level}"
            )
        if width % groups:
            raise ValueError(f"channels must divide into the {groups} groups of a norm, got {width} in level {level}")
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "block_out_channels": widths,
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "layers_per_block": 2,
        "norm_num_groups": groups,
        "transformer_layers_per_block": tuple(max(depth, 1) for depth in depths),
        "attention_head_dim": tuple(max(width // head_width, 1) for width in widths),  # diffusers' name of the number
        "cross_attention_dim": text_width,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": pooled_width + 6 * 256,
    }


def pixart_variant(
    width: int = 1152, depth: int = 28, *, head_width: int = 72, text_width: int = 4096, sample_size: int = 32
) -> dict[str, Any]:
    """The configuration of a diffusion transformer like PixArt-alpha's, with another width or depth.

    Parameters
    ----------
    width
        Of the hidden states; PixArt-alpha has 1152.
    depth
        Number of blocks; PixArt-alpha has 28.
    head_width
        Channels of an attention head.
    text_width
        Of the text's tokens.
    sample_size
        Of the latent that the model is meant for: 32 for 256 pixels.

    Returns
    -------
    dict
        For ``PixArtTransformer2DModel(**config)``, with its ``_class_name``.

    Raises
    ------
    ValueError
        If the width does not divide into heads, or an argument lies outside its range.
    """
    check_range(width, "width", 1, integer=True)
    check_range(depth, "depth", 1, integer=True)
    check_range(head_width, "head_width", 1, integer=True)
    if width % head_width:
        raise ValueError(f"width must divide into heads of {head_width}, got {width}")
    return {
        "_class_name": "PixArtTransformer2DModel",
        "sample_size": sample_size,
        "num_layers": depth,
        "num_attention_heads": width // head_width,
        "attention_head_dim": head_width,
        "cross_attention_dim": width,
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "caption_channels": text_width,
        "use_additional_conditions": False,
    }


def narrow(config: Any, width: int, **changes: Any) -> dict[str, Any]:
    """The configuration of a UNet of the same blocks whose levels are all narrower (or wider) by one factor.

    Parameters
    ----------
    config
        A ``UNet2DModel`` or ``UNet2DConditionModel`` of diffusers, or its configuration with ``_class_name``.
    width
        Channels of the first level; the others follow.
    changes
        Other values of the configuration, in place of those that are found.

    Returns
    -------
    dict
        For ``from_config`` and :func:`profile`, with its ``_class_name``. Norms keep their number of groups, and
        attention its heads in a conditional UNet and their width in the other, where the channels can be divided so;
        else it is the next number below that works, and heads that do not fit keep their width.

    Raises
    ------
    TypeError
        If it is not the configuration of a UNet.
    ValueError
        If the levels would not have whole numbers of channels.

    Examples
    --------
    >>> narrow(sdxl_variant(320, (0, 2, 10)), 64)["block_out_channels"]
    (64, 128, 256)
    """
    check_range(width, "width", 1, integer=True)
    found: Any = getattr(config, "config", config)
    if not isinstance(found, Mapping) or "block_out_channels" not in found:
        raise TypeError(f"config must be a UNet or the configuration of one, got {type(config).__name__}")
    kept = {name: value for name, value in found.items() if name == "_class_name" or not name.startswith("_")}
    kept.setdefault("_class_name", type(config).__name__)
    old = kept["block_out_channels"]
    if any(c * width % old[0] for c in old):
        raise ValueError(f"width must divide into the levels' ratios of {tuple(old)} channels, got {width}")
    new = tuple(c * width // old[0] for c in old)
    kept["block_out_channels"] = new
    for name in ("norm_num_groups", "attn_norm_num_groups"):
        if kept.get(name):
            shared = math.gcd(*new)
            kept[name] = max(n for n in range(1, min(kept[name], shared) + 1) if shared % n == 0)
    heads = kept.get("attention_head_dim")  # of a conditional UNet: diffusers' name of the number of heads
    if heads and "cross_attention_dim" not in kept:
        kept["attention_head_dim"] = math.gcd(heads, *new)
    elif heads:
        numbers = [heads] * len(old) if isinstance(heads, int) else list(heads)
        fitted = tuple(n if c % n == 0 else max(c * n // w, 1) for n, c, w in zip(numbers, new, old))
        kept["attention_head_dim"] = fitted[0] if isinstance(heads, int) and len(set(fitted)) == 1 else fitted
    return kept | changes


@dataclass(frozen=True)
class Design:
    """One configuration and what it costs.

    Attributes
    ----------
    channels, transformer_depth
        As for :func:`sdxl_variant`.
    config
        The configuration.
    cost
        Its parameters and operations.
    """

    channels: int
    transformer_depth: tuple[int, ...]
    config: dict[str, Any]
    cost: Profile


def design(
    *,
    parameters: float | None = None,
    macs: float | None = None,
    channels: Iterable[int] = (128, 192, 256, 320, 384),
    transformer_depths: Iterable[Sequence[int]] = ((0, 2, 2), (0, 2, 4), (0, 4, 4), (0, 2, 10), (0, 4, 8)),
    latent: int = 32,
    tokens: int = 77,
) -> list[Design]:
    """All UNets of some widths and depths that keep to a budget, the largest first.

    Parameters
    ----------
    parameters, macs
        Most parameters, and most operations of one call; ``None``: as many as there are.
    channels, transformer_depths
        Widths and depths to combine.
    latent, tokens
        Of the call, as for :func:`profile`.

    Returns
    -------
    list of Design
        By falling number of operations.
    """
    for name, limit in (("parameters", parameters), ("macs", macs)):
        if limit is not None:
            check_range(limit, name, 0, None, closed="neither")
    depths = [tuple(depth) for depth in transformer_depths]
    found = []
    for width in channels:
        for depth in depths:
            config = sdxl_variant(width, depth)
            cost = profile(config, latent, tokens)
            if (parameters is None or cost.parameters <= parameters) and (macs is None or cost.macs <= macs):
                found.append(Design(width, depth, config, cost))
    return sorted(found, key=lambda one: -one.cost.macs)
