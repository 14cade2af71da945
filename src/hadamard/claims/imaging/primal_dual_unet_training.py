"""How the networks of the claim on Primal-Dual UNets are trained: by one command, on the same data, in equal time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.claims.shipping import one_cycle, shipping
from hadamard.data import ellipses, photographs
from hadamard.imaging import PrimalDualUNet, UNet
from hadamard.operators import LinearOperator, Radon

__all__ = ["FULL", "NETWORKS", "SPARSITIES", "FBPUNet", "Network", "scan", "train"]

SIZE, FULL, SPARSITIES = 64, 96, (4, 8, 16)
GEOMETRIES = ("parallel", "fan")


class FBPUNet(nn.Module):
    """The usual contender: a U-Net that corrects the filtered back-projection and never sees the sinogram again."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.net = UNet(1, 1, widths)

    def forward(self, y: Float[Tensor, "b 1 p a"], physics: LinearOperator) -> Float[Tensor, "b 1 h w"]:
        """Reconstruct images from sinograms."""
        x = physics.A_dagger(y, "hann") if isinstance(physics, Radon) else physics.A_dagger(y)
        return x + self.net(x)


@dataclass(frozen=True)
class Network:
    """How one network is built, and in how many steps its share of time is used up."""

    build: Callable[[], nn.Module]
    steps: dict[str, int]


# Steps: those that each made in the same time, 300 s at size "full", one after the other on one core.
NETWORKS = {
    "primal_dual_unet": Network(
        lambda: PrimalDualUNet(widths=(8, 16, 32, 48), dual_width=16), {"quick": 84, "full": 2100}
    ),
    "primal_dual_unet_convolutions": Network(
        lambda: PrimalDualUNet(primal="conv", dual_width=16), {"quick": 36, "full": 900}
    ),
    "primal_dual_unet_postprocessing": Network(lambda: FBPUNet((12, 24, 48, 64)), {"quick": 128, "full": 3200}),
}


@cache
def scan(geometry: str, sparsity: int, size: int = SIZE) -> Radon:
    """A scan of every so-manieth of the 96 angles: a parallel beam over half a turn or a fan over a whole one."""
    views = FULL // sparsity
    if geometry == "parallel":
        return Radon(size, torch.arange(views) * (math.pi / views))
    angles = torch.arange(views) * (2 * math.pi / views)
    return Radon(size, angles, "fan", source_distance=2.0 * size, detector_distance=1.0 * size)


_DATA = (
    "600 random ellipse phantoms and 400 crops of hadamard.data.photographs('train') of 64 x 64, turned and mirrored; "
    "24, 12 or 6 views, parallel or fan"
)


def train(
    size: str = "full", out: str | Path | None = None, resume: bool = True, *, seed: int = 0, progress: bool = True
) -> list[Path]:
    """Train the networks of the claim and write each with its provenance.

    Parameters
    ----------
    size
        ``"full"``: as shipped, about 15 minutes on one core; ``"quick"``: a 25th of it.
    out
        Folder; ``None``: where the shipped networks lie.
    resume
        Go on from what an interrupted training left in ``out``.
    seed
        Of the initial weights and the data.
    progress
        Show a progress bar for each network.

    Returns
    -------
    list of Path
        The files.
    """
    with shipping("primal_dual_unet", size, out, resume, seed=seed) as shelf:
        for name, network in NETWORKS.items():
            if size not in network.steps:
                raise ValueError(f"size must be one of {', '.join(map(repr, network.steps))}, got {size!r}")
            steps = network.steps[size]
            module = train_one(network, steps, seed, shelf.state(name), name if progress else "")
            shelf.write(name, module, data=_DATA, steps=str(steps))
    return shelf.paths


def train_one(network: Network, steps: int, seed: int, state: Path | None, progress: str) -> nn.Module:
    """Train one network on the mean modulus of its error, at a learning rate that rises and falls."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = network.build()
    one_cycle(
        module,
        lambda module, batch, step: (module(batch[0], batch[1]) - batch[2]).abs().mean(),
        _draw,
        steps=steps,
        rate=2e-3,
        seed=seed,
        state=state,
        progress=progress,
    )
    return module


@cache
def _pool() -> Tensor:
    """600 phantoms, and 400 crops of photographs in the inscribed circle: what is in them differs more."""
    generator = torch.Generator().manual_seed(1)
    pictures = list(photographs("train").values())
    line = (torch.arange(SIZE) - (SIZE - 1) / 2) * (2 / SIZE)
    inside = (line**2 + line[:, None] ** 2 <= 1).float()
    crops = []
    for _ in range(400):
        picture = pictures[int(torch.randint(len(pictures), (1,), generator=generator))]
        side = int(torch.randint(SIZE, min(picture.shape) + 1, (1,), generator=generator))
        top, left = (int(torch.randint(n - side + 1, (1,), generator=generator)) for n in picture.shape)
        crop = picture[top : top + side, left : left + side][None, None]
        contrast = 0.7 + 0.9 * torch.rand((), generator=generator)
        crops.append(F.interpolate(crop, (SIZE, SIZE), mode="area") * inside * contrast)
    return torch.cat([ellipses(600, SIZE, generator=generator), *crops])


def _draw(generator: torch.Generator) -> tuple[Tensor, Radon, Tensor]:
    """Eight images, turned and mirrored, and what one of the six scans sees of them."""

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    physics = scan(GEOMETRIES[integer(2)], SPARSITIES[integer(3)])
    pool = _pool()
    x = pool[torch.randint(len(pool), (8,), generator=generator)].rot90(integer(4), (2, 3))
    x = x.flip(3) if integer(2) else x
    return physics(x), physics, x
