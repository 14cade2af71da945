"""How the networks of the claim on dual latent rescaling are trained: by one command, on the same photographs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.claims.shipping import one_cycle, shipping
from hadamard.data import photographs
from hadamard.imaging import DualLatentHider, DualLatentRescaler, rescaling_loss
from hadamard.operators import bicubic
from hadamard.spectral import haar2d
from hadamard.validation import check_option

__all__ = ["NETWORKS", "SEEDS", "Network", "Upscaler", "colour_photographs", "enlarge", "train"]

SEEDS = 3
Loss = Callable[[nn.Module, Tensor, int], Tensor]


class Upscaler(nn.Module):
    """The usual contender: a residual network that enlarges bicubic reductions, with as many weights as the rescalers.

    Parameters
    ----------
    scale
        2 or 4.
    width, layers
        Channels and number of hidden convolutions.
    generator
        Draws the initial weights.
    """

    def __init__(
        self, scale: int, width: int = 40, layers: int = 8, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.scale = scale
        sizes = [3, *[width] * (layers + 1)]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        self.last = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        for layer in [*self.layers, self.last]:
            nn.init.kaiming_normal_(layer.weight, 0.2, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)

    def forward(self, small: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 H W"]:
        """Add to the bicubic enlargement what is seen to be missing."""
        first, *others = self.layers
        x = F.leaky_relu(first(small), 0.2)
        for layer in others:
            x = x + F.leaky_relu(layer(x), 0.2) / 2
        return enlarge(small, self.scale) + F.pixel_shuffle(self.last(x), self.scale)


_STEPS = {2: 800, 4: 4000}


@dataclass(frozen=True)
class Network:
    """How one network is built, what it learns (``rescale``, ``hide`` or ``enlarge``), and in how many steps."""

    build: Callable[[torch.Generator], nn.Module]
    task: str
    scale: int
    seed: int
    steps: dict[str, int]


def _rescaler(scale: int, latent: int, seed: int = 0) -> Network:
    growth = {2: 16, 4: 8}[scale]
    return Network(
        lambda g: DualLatentRescaler(scale, 2, growth, latent, generator=g), "rescale", scale, seed,
        {"quick": 250, "full": _STEPS[scale]} if seed == 0 else {"full": _STEPS[scale]},
    )  # fmt: skip


def _hider(latent: int) -> Network:
    return Network(lambda g: DualLatentHider(3, 8, latent, generator=g), "hide", 2, 0, {"full": 800})


def _upscaler(scale: int) -> Network:
    return Network(
        lambda g: Upscaler(scale, generator=g), "enlarge", scale, 0, {"quick": 750, "full": 3 * _STEPS[scale]}
    )  # fmt: skip


_NAME = "dual_latent_rescaling"
# Steps: the networks that enlarge take three in the time that the others take for one.
NETWORKS = {
    **{f"{_NAME}_x{s}{tail}": _rescaler(s, d) for s in (2, 4) for tail, d in (("", 2), ("_single", 0))},
    **{
        f"{_NAME}_x2{tail}_{seed}": _rescaler(2, d, seed)
        for seed in range(1, SEEDS)
        for tail, d in (("", 2), ("_single", 0))
    },
    **{f"{_NAME}_hiding{tail}": _hider(d) for tail, d in (("", 2), ("_single", 0))},
    **{f"{_NAME}_x{s}_upscaler": _upscaler(s) for s in (2, 4)},
}


def train(
    size: str = "full",
    out: str | Path | None = None,
    resume: bool = True,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> list[Path]:
    """Train the networks of the claim and write each with its provenance.

    Parameters
    ----------
    size
        ``"full"``: as shipped, about 40 minutes on one core; ``"quick"``: much shorter, one seed, without hiding.
    out
        Folder; ``None``: where the shipped networks lie.
    resume
        Go on from what an interrupted training left in ``out``.
    seed
        Added to the networks' own.
    device
        Where to train: ``"cpu"``, ``"cuda"``, ...
    progress
        Show a progress bar for each network.

    Returns
    -------
    list of Path
        The files.
    """
    check_option(size, "size", ("quick", "full"))
    with shipping(_NAME, size, out, resume, seed=seed, device=device) as shelf:
        for name, network in NETWORKS.items():
            if size not in network.steps:
                continue
            own, steps, side = seed + network.seed, network.steps[size], _side(network)
            module = _train_one(network, steps, own, shelf.state(name), device, name if progress else "")
            data = f"hadamard.data.photographs('train'), crops of {side} x {side}, turned and mirrored"
            shelf.write(name, module, data=data, seed=str(own), steps=str(steps))
    return shelf.paths


def enlarge(small: Tensor, scale: int) -> Tensor:
    """Bicubic interpolation with Keys' kernel, as Pillow has it."""
    return F.interpolate(small, scale_factor=scale, mode="bicubic", antialias=True)


def colour_photographs(split: str) -> dict[str, Float[Tensor, "3 h w"]]:
    """All photographs of a split; those that exist in grey only with three equal channels."""
    coloured = photographs(split, colour=True)
    grey = photographs(split)
    return {name: coloured[name] if name in coloured else x.expand(3, *x.shape) for name, x in grey.items()}


def _side(network: Network) -> int:
    return 48 if network.scale == 4 else 32


def _train_one(network: Network, steps: int, seed: int, state: Path, device: str, progress: str) -> nn.Module:
    """Train one network at a learning rate that rises and falls, with the norm of its gradient held at 1."""
    module = network.build(torch.Generator().manual_seed(seed)).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3, fused=True)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)

    optimizer.register_step_pre_hook(clip)
    side = _side(network)

    def draw(generator: torch.Generator) -> Tensor:
        return _crops(8 if network.task == "hide" else 4, side, generator).to(device)

    one_cycle(
        module, _loss(network, side, device), draw, steps=steps, rate=2e-3, seed=seed, optimizer=optimizer, state=state,
        progress=progress,
    )  # fmt: skip
    return module.cpu()


def _loss(network: Network, side: int, device: str) -> Loss:
    reduce = bicubic(network.scale, (side, side), device=device)
    if network.task == "rescale":
        return lambda module, x, step: rescaling_loss(module(x), x, reduce(x))
    if network.task == "enlarge":
        return lambda module, x, step: (module((255 * reduce(x)).round().clamp(0, 255) / 255) - x).abs().mean()

    def hide(module: nn.Module, x: Tensor, step: int) -> Tensor:
        cover, secret = x.chunk(2)
        hidden, revealed = module(cover, secret)
        change, error = hidden.stego - cover, revealed.secret - secret
        loss = change.square().sum() + haar2d(change)[:, 0].square().sum() + 5 * error.square().sum()
        return (loss + revealed.latent.square().sum()) / cover.numel()

    return hide


@cache
def _pictures() -> list[Tensor]:
    return list(colour_photographs("train").values())


def _crops(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Crops of photographs drawn at random, turned and mirrored."""

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    crops = []
    for _ in range(count):
        picture = _pictures()[integer(len(_pictures()))]
        top, left = (integer(n - side + 1) for n in picture.shape[-2:])
        crop = picture[:, top : top + side, left : left + side].rot90(integer(4), (1, 2))
        crops.append(crop.flip(2) if integer(2) else crop)
    return torch.stack(crops)
