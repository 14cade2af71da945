"""Which parts of a UNet inherit features, and at which steps of sampling they run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from hadamard.diffusion._accelerated import Keys, KeySteps
from hadamard.validation import check_option, check_range

__all__ = ["Rule", "dense_ends", "parts_of", "preset", "window"]

PRESETS = ("a_sdm", "encoder", "deep", "deepcache", "attention", "units")


@dataclass(frozen=True)
class Rule:
    """Which parts of a UNet inherit, and when they run.

    Attributes
    ----------
    match
        Patterns of names, as of files, with ``|`` between them: ``"mid_block|up_blocks.[01]"``, ``"*.attn1"``.
    level
        What is named: a ``"block"`` (``conv_in``, ``down_blocks.1``, ``mid_block``, ``up_blocks.0``); a ``"layer"`` of
        a block, that is a resnet with its attention (``up_blocks.3.layers.0``); or a ``"unit"``, that is a resnet
        (``up_blocks.3.resnets.0``), an attention or transformer (``up_blocks.3.attentions.0``), or ``attn1``, ``attn2``
        or ``ff`` within a transformer. Of units within each other the outer one inherits.
    key_steps
        The steps at which they run, as for :class:`EncoderPropagation`: every so many-th, the steps themselves, or a
        function of the step and the number of steps, such as :func:`window` and :func:`dense_ends`.
    keep
        ``"increment"``: what a part adds to the path around it is stored, and added to what is there now, so that the
        present sample reaches the end; ``"output"``: the sum is stored. By default blocks, which have no such path,
        keep outputs, layers and units increments.
    """

    match: str
    level: Literal["block", "layer", "unit"] = "block"
    key_steps: Keys = 2
    keep: Literal["increment", "output"] | None = None

    def __post_init__(self) -> None:
        check_option(self.level, "level", ("block", "layer", "unit"))
        if self.keep is not None:
            check_option(self.keep, "keep", ("increment", "output"))
        if self.level == "block" and self.keep == "increment":
            raise ValueError("keep must be 'output' at level 'block', which has no path around it, got 'increment'")
        KeySteps(self.key_steps)


def window(first: int, last: int, interval: int) -> Callable[[int, int], bool]:
    """Key steps for inheritance within a window: each step before ``first`` and from ``last`` on, else every so many.

    Examples
    --------
    >>> keys = window(3, 9, 3)
    >>> [step for step in range(12) if keys(step, 12)]
    [0, 1, 2, 3, 6, 9, 10, 11]
    """
    check_range(first, "first", 0, integer=True)
    check_range(last, "last", first, integer=True)
    check_range(interval, "interval", 1, integer=True)
    return lambda step, steps: not first <= step < last or (step - first) % interval == 0


def dense_ends(interval: int, share: float = 0.1) -> Callable[[int, int], bool]:
    """Key steps that are dense at both ends, where layout and texture are made: each step of the first and last share.

    Examples
    --------
    >>> keys = dense_ends(3, 0.2)
    >>> [step for step in range(12) if keys(step, 12)]
    [0, 1, 2, 5, 8, 10, 11]
    """
    check_range(interval, "interval", 1, integer=True)
    check_range(share, "share", 0, 0.5)

    def key(step: int, steps: int) -> bool:
        end = int(share * steps)
        return not end <= step < steps - end or (step - end) % interval == 0

    return key


def preset(name: str, unet: Any, key_steps: Keys | None) -> list[Rule]:
    """The rules of a preset, which depend on how many blocks and layers a UNet has."""
    ups = list(unet.up_blocks)
    down = [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]
    inner_ups = [f"up_blocks.{i}" for i in range(len(ups) - 1)]
    deep = "|".join([*down[1:], "mid_block", *inner_ups])
    usual = dense_ends(2, 0.15) if name == "a_sdm" else 2
    keys: Keys = usual if key_steps is None else key_steps
    if name == "deep":
        return [Rule(deep, key_steps=keys)]
    if name == "encoder":
        return [Rule("|".join(["conv_in", *down, "mid_block"]), key_steps=keys)]
    if name in ("a_sdm", "deepcache"):
        last = [f"up_blocks.{len(ups) - 1}.layers.{j}" for j in range(len(ups[-1].resnets) - 1)]
        rules = [Rule("|".join([*down, "mid_block", *inner_ups]), key_steps=keys)]
        return rules + ([Rule("|".join(last), "layer", keys, "output")] if last else [])
    if name == "units":
        return [Rule("*.resnets.*|*.attentions.*", "unit", keys)]
    inside = any(unit.endswith(".attn1") for unit, _ in _units(unet))
    return [Rule("*.attn1|*.attn2" if inside else "*.attentions.*", "unit", keys)]


def parts_of(unet: Any, rules: Sequence[Rule]) -> list[list[nn.Module]]:
    """The modules of each rule, none of them within another."""
    if not rules:
        raise ValueError("rules must hold at least one rule, got none")
    found: list[list[nn.Module]] = []
    taken: dict[int, str] = {}
    for rule in rules:
        named = list(_CANDIDATES[rule.level](unet))
        patterns = rule.match.split("|")
        chosen = [(name, parts) for name, parts in named if any(fnmatchcase(name, p) for p in patterns)]
        if not chosen:
            there = ", ".join(name for name, _ in named) or "it has none"
            raise ValueError(f"match must name a {rule.level} of the UNet ({there}), got {rule.match!r}")
        outer = {id(module) for _, parts in chosen for part in parts for module in part.modules() if module is not part}
        kept = [(name, part) for name, parts in chosen for part in parts if id(part) not in outer]
        within = [(name, id(module)) for name, part in kept for module in part.modules()]
        for name, key in within:
            if key in taken:
                raise ValueError(f"rules must not overlap, got {name} by {rule.match!r} within {taken[key]}")
        taken |= {key: f"{name} by {rule.match!r}" for name, key in within}
        found.append([part for _, part in kept])
    return found


def _blocks(unet: Any) -> Iterator[tuple[str, list[nn.Module]]]:
    yield "conv_in", [unet.conv_in]
    yield from ((f"down_blocks.{i}", [block]) for i, block in enumerate(unet.down_blocks))
    if unet.mid_block is not None:
        yield "mid_block", [unet.mid_block]
    yield from ((f"up_blocks.{i}", [block]) for i, block in enumerate(unet.up_blocks))


def _layers(unet: Any) -> Iterator[tuple[str, list[nn.Module]]]:
    """Each resnet with the attention that follows it; in the middle a resnet comes first."""
    for name, (block,) in _blocks(unet):
        attentions = list(getattr(block, "attentions", ()))
        if name == "mid_block":
            attentions.insert(0, None)
        for j, resnet in enumerate(getattr(block, "resnets", ())):
            after = attentions[j] if j < len(attentions) else None
            yield f"{name}.layers.{j}", [resnet] if after is None else [resnet, after]


def _units(unet: Any) -> Iterator[tuple[str, list[nn.Module]]]:
    for name, module in unet.named_modules():
        parts = ["", *str(name).split(".")]
        if parts[-2] in ("resnets", "attentions") or parts[-1] in ("attn1", "attn2", "ff"):
            yield name, [module]


_CANDIDATES: dict[str, Callable[[Any], Iterator[tuple[str, list[nn.Module]]]]] = {
    "block": _blocks, "layer": _layers, "unit": _units,
}  # fmt: skip
