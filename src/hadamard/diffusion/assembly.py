"""A lighter UNet out of some of the layers of a larger one, and several UNets in the place of one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hadamard.diffusion._accelerated import name_of, timestep_of
from hadamard.diffusion.cond_conv import CondConv2d
from hadamard.validation import check_range

__all__ = ["Assembled", "SwitchUNet", "add_experts", "assemble"]


@dataclass(frozen=True)
class Assembled:
    """A UNet that was put together out of parts of another.

    Attributes
    ----------
    unet
        The lighter UNet, of the same class, whose configuration diffusers saves and loads.
    origin
        For each layer in its blocks, the layer of the other UNet whose weights it took.
    removed
        The layers of the other UNet that were left out.
    """

    unet: Any
    origin: Mapping[str, str]
    removed: tuple[str, ...]


def assemble(unet: Any, keep: Mapping[str, Sequence[int]]) -> Assembled:
    """Put a lighter UNet together out of some layers of a trained one, with their weights.

    A layer is a resnet of a block with the attention that follows it. Of the operations of Stable Diffusion 1.5 the two
    outermost blocks take 38 %, with 3 % of its parameters: it is there that leaving out layers pays.

    Parameters
    ----------
    unet
        A ``UNet2DConditionModel`` or ``UNet2DModel`` of diffusers. The latter has equally many layers in all blocks.
    keep
        Which layers stay, by block: ``{"down_blocks.0": [0], "up_blocks.3": [0, 2]}``. The up block opposite to a down
        block has one layer more than it; where it is not named, its first layers and its last stay. What is not named
        stays whole. ``{"mid_block": []}`` leaves the middle out.

    Returns
    -------
    Assembled
        The lighter UNet, and what became of each layer. It needs further training, as with :class:`Distillation`.

    Raises
    ------
    ValueError
        If a name or number is none of the UNet's, a block would be left without layers, opposite blocks do not fit, or
        a layer that changes the number of channels would be left out.

    References
    ----------
    J. Zhu et al. A-SDM: Accelerating Stable Diffusion through Model Assembly and Feature Inheritance Strategies.
    arXiv:2406.00210, 2024. Which layers the authors keep is not restated here; the choice is yours.

    Examples
    --------
    >>> from diffusers import UNet2DModel
    >>> blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> unet = UNet2DModel(8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=2, **blocks)
    >>> small = assemble(unet, {"down_blocks.0": [0], "down_blocks.1": [0]})
    >>> small.origin["up_blocks.1.resnets.1"], small.removed[:2]
    ('up_blocks.1.resnets.2', ('down_blocks.0.resnets.1', 'down_blocks.1.resnets.1'))
    """
    kept = _kept(unet, keep)
    counts = [len(kept[f"down_blocks.{i}"]) for i in range(len(unet.down_blocks))]
    per_block = hasattr(unet.config, "cross_attention_dim")
    if not per_block and len(set(counts)) > 1:
        raise ValueError(f"keep must leave equally many layers in all blocks of a {name_of(unet)}, got {counts}")
    changes: dict[str, Any] = {"layers_per_block": tuple(counts) if per_block else counts[0]}
    if "mid_block" in kept:
        changes["mid_block_type"] = None
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    with torch.random.fork_rng([]), torch.device("meta" if unet.device.type == "meta" else "cpu"):
        lighter = type(unet).from_config(config | changes)
    nn.Module.to(lighter, device=unet.device, dtype=unet.dtype).train(unet.training)
    origin = dict(_layers(kept))
    weights, found = unet.state_dict(), {}
    for name, value in lighter.state_dict().items():
        layer = ".".join(name.split(".")[:4])
        source = name.replace(layer, origin[layer], 1) if layer in origin else name
        if source not in weights or weights[source].shape != value.shape:
            raise ValueError(
                f"keep must leave the layers that change the number of channels where they are: {source} does not fit "
                f"in the place of {name}"
            )
        found[name] = weights[source]
    lighter.load_state_dict(found)
    names = {name for name, _ in lighter.named_modules()}
    origin = {new: old for new, old in origin.items() if new in names}
    every = [f"{block}.{part}.{i}" for block, part, i in _every_layer(unet)]
    gone = [name for name in every if name not in origin.values()]
    return Assembled(lighter, origin, tuple(gone + ["mid_block"] * ("mid_block" in kept)))


def add_experts(assembled: Assembled, unet: Any, experts: int = 4) -> None:
    """Let the layers that are left use the kernels of those that were left out (ME-CondConv).

    In each block that lost layers, the 3 x 3 convolutions of the resnets that stayed become :class:`CondConv2d`, in
    place. Their further experts are the kernels of the same convolution in the resnets that went, where these have the
    same shape. Before training nothing changes in what the network gives.

    Parameters
    ----------
    assembled
        What :func:`assemble` made. diffusers saves the weights of what it becomes, but its configuration does not
        mention the experts: load them into a network that was put together again.
    unet
        The network that it was made of.
    experts
        Most kernels of a convolution.

    Raises
    ------
    ValueError
        If ``experts`` is below 2, or no layer that stayed has a fitting one that went.
    """
    check_range(experts, "experts", 2, integer=True)
    done = 0
    for new, old in assembled.origin.items():
        block, kind, _ = old.rsplit(".", 2)
        others = [name for name in assembled.removed if name.startswith(f"{block}.resnets.")]
        if kind != "resnets":
            continue
        for conv in ("conv1", "conv2"):
            first = assembled.unet.get_submodule(f"{new}.{conv}")
            more = [unet.get_submodule(f"{name}.{conv}") for name in others]
            more = [other for other in more if other.weight.shape == first.weight.shape][: experts - 1]
            if more:
                setattr(assembled.unet.get_submodule(new), conv, CondConv2d.of([first, *more]))
                done += 1
    if not done:
        raise ValueError("assembled must have lost a resnet whose kernels fit one that stayed, found none")


class SwitchUNet(nn.Module):
    """Several UNets in the place of one: each timestep is given to one of them.

    A light UNet takes the early, noisy steps and the whole one the late steps, which make the details; where one hands
    over to the other is how cost is traded for quality.

    Parameters
    ----------
    unets
        From the noisiest timesteps on; trained on the same noise and latents, predicting the same.
    boundaries
        Timesteps, falling, one less than there are UNets: timesteps of at least the first go to the first UNet, others
        of at least the second to the second, and so on.

    Raises
    ------
    ValueError
        If the numbers do not fit or do not fall, or two UNets have other channels.

    Notes
    -----
    Everything else that a pipeline asks of its UNet (``config``, ``dtype``, ``add_embedding`` and so on) is answered by
    the last one. It keeps no state, so that any sampler can call it. Save the UNets one by one.

    Examples
    --------
    >>> from diffusers import UNet2DModel
    >>> sizes = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=4)
    >>> light, whole = (UNet2DModel(8, layers_per_block=n, block_out_channels=(8, 8), **sizes) for n in (1, 2))
    >>> unet = SwitchUNet([light, whole], [600])
    >>> unet.at(999) is light, unet.at(599) is whole
    (True, True)
    """

    def __init__(self, unets: Sequence[Any], boundaries: Sequence[float]) -> None:
        super().__init__()
        if not unets or len(boundaries) != len(unets) - 1:
            raise ValueError(f"boundaries must be one less than unets, got {len(boundaries)} and {len(unets)}")
        if not all(a > b for a, b in pairwise(boundaries)):
            raise ValueError(f"boundaries must fall, got {list(boundaries)}")
        for name in ("in_channels", "out_channels", "cross_attention_dim"):
            found = [getattr(unet.config, name, None) for unet in unets]
            if len(set(map(str, found))) > 1:
                raise ValueError(f"unets must have the same {name}, got {found}")
        self.unets = nn.ModuleList(unets)
        self.boundaries = tuple(float(check_range(b, "boundaries", 0)) for b in boundaries)

    def at(self, timestep: Tensor | float) -> Any:
        """The UNet of a timestep."""
        time = timestep_of(timestep)
        return self.unets[sum(time < boundary for boundary in self.boundaries)]

    def forward(self, sample: Tensor, timestep: Tensor | float, *args: Any, **kwargs: Any) -> Any:
        """Call the UNet of this timestep."""
        return self.at(timestep)(sample, timestep, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("unets", "boundaries"):
                raise
            return getattr(self.unets[-1], name)


def _kept(unet: Any, keep: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """The layers that stay, by block, those of blocks that are not named included."""
    downs, ups = len(unet.down_blocks), len(unet.up_blocks)
    sizes = {f"down_blocks.{i}": len(block.resnets) for i, block in enumerate(unet.down_blocks)}
    sizes |= {f"up_blocks.{i}": len(block.resnets) for i, block in enumerate(unet.up_blocks)}
    kept = {name: list(range(size)) for name, size in sizes.items()}
    for name, layers in keep.items():
        if name == "mid_block" and not layers:
            kept[name] = []
            continue
        if name not in sizes:
            raise ValueError(f"keep must name blocks of the UNet ({', '.join(sizes)}; mid_block: []), got {name!r}")
        numbers = [check_range(i, f"keep[{name!r}]", 0, sizes[name] - 1, integer=True) for i in layers]
        if not numbers or numbers != sorted(set(numbers)):
            raise ValueError(f"keep[{name!r}] must hold layers, rising, got {numbers or 'none'}")
        kept[name] = numbers
    for i in range(downs):
        down, up = f"down_blocks.{i}", f"up_blocks.{ups - 1 - i}"
        if up not in keep:
            kept[up] = [*range(len(kept[down])), sizes[up] - 1]
        if len(kept[up]) != len(kept[down]) + 1:
            raise ValueError(
                f"keep must leave one layer more in {up} than in {down}, got {len(kept[up])} and {len(kept[down])}"
            )
    return kept


def _layers(kept: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, str]]:
    for block, numbers in kept.items():
        for new, old in enumerate(numbers):
            for part in ("resnets", "attentions"):
                yield f"{block}.{part}.{new}", f"{block}.{part}.{old}"


def _every_layer(unet: Any) -> Iterator[tuple[str, str, int]]:
    for side in ("down_blocks", "up_blocks"):
        for i, block in enumerate(getattr(unet, side)):
            for part in ("resnets", "attentions"):
                for j in range(len(getattr(block, part, ()))):
                    yield f"{side}.{i}", part, j
