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

from hadamard.claims.imaging.primal_dual_unet_radial import train_radial
from hadamard.claims.shipping import one_cycle, shipping
from hadamard.data import ellipses, photographs
from hadamard.imaging import PrimalDualUNet, UNet
from hadamard.operators import LinearOperator, Radon
from hadamard.training import load_checkpoint
from hadamard.validation import check_option

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
    """How one network is built, and in how many steps its share of time is used up.

    One that reconstructs radial MRI begins as the network of that name, which learned tomography.
    """

    build: Callable[[], nn.Module]
    steps: dict[str, int]
    start: str = ""


def _unet() -> nn.Module:
    return PrimalDualUNet(widths=(8, 16, 32, 48), dual_width=16)


def _convolutions() -> nn.Module:
    return PrimalDualUNet(primal="conv", dual_width=16)


# Steps: those that each made in the same time, 300 s at size "full", one after the other on one core; 200 s for MRI.
NETWORKS = {
    "primal_dual_unet": Network(_unet, {"quick": 84, "full": 2100}),
    "primal_dual_unet_convolutions": Network(_convolutions, {"quick": 36, "full": 900}),
    "primal_dual_unet_postprocessing": Network(lambda: FBPUNet((12, 24, 48, 64)), {"quick": 128, "full": 3200}),
    "primal_dual_unet_radial": Network(_unet, {"quick": 60, "full": 1500}, "primal_dual_unet"),
    "primal_dual_unet_radial_convolutions": Network(
        _convolutions, {"quick": 17, "full": 430}, "primal_dual_unet_convolutions"
    ),
}


@cache
def scan(geometry: str, sparsity: int, size: int = SIZE, device: str = "cpu") -> Radon:
    """A scan of every so-manieth of the 96 angles: a parallel beam over half a turn or a fan over a whole one."""
    views = FULL // sparsity
    if geometry == "parallel":
        return Radon(size, torch.arange(views) * (math.pi / views)).to(device)
    angles = torch.arange(views) * (2 * math.pi / views)
    return Radon(size, angles, "fan", source_distance=2.0 * size, detector_distance=1.0 * size).to(device)


_DATA = (
    "600 random ellipse phantoms and 400 crops of hadamard.data.photographs('train') of 64 x 64, turned and mirrored; "
    "24, 12 or 6 views, parallel or fan"
)
_MRI = (
    "slices of hadamard.data.mr_volumes('train') (Colin27, INIA19) of 64 x 64, turned, mirrored and of changed "
    "contrast; 24, 12 or 6 noisy spokes, their sinogram interpolated to 96 angles; begun with the weights {start}"
)


def train(
    size: str = "full", out: str | Path | None = None, resume: bool = True, *, seed: int = 0, device: str = "cpu",
    progress: bool = True,
) -> list[Path]:  # fmt: skip
    """Train the networks of the claim and write each with its provenance.

    Parameters
    ----------
    size
        ``"full"``: as shipped, about 22 minutes on one core; ``"quick"``: a 25th of it.
    out
        Folder; ``None``: where the shipped networks lie.
    resume
        Go on from what an interrupted training left in ``out``.
    seed
        Of the initial weights and the data.
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
    with shipping("primal_dual_unet", size, out, resume, seed=seed, device=device) as shelf:
        for name, network in NETWORKS.items():
            start = shelf.folder / f"{network.start}.safetensors" if network.start else None
            steps, title = network.steps[size], name if progress else ""
            module = train_one(network, steps, seed, shelf.state(name), title, device, start)
            data = _MRI.format(start=network.start) if network.start else _DATA
            shelf.write(name, module, data=data, steps=str(steps))
    return shelf.paths


def train_one(
    network: Network, steps: int, seed: int, state: Path | None, progress: str, device: str = "cpu",
    start: str | Path | None = None,
) -> nn.Module:  # fmt: skip
    """Train one network on the mean modulus of its error, at a learning rate that rises and falls."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = network.build()
    if start is not None:
        return train_radial(load_checkpoint(start, module), steps, seed, state, progress, device)

    def loss(module: nn.Module, batch: tuple[Tensor, str, int], step: int) -> Tensor:
        x, physics = batch[0].to(device), scan(batch[1], batch[2], device=device)
        return (module(physics(x), physics) - x).abs().mean()

    one_cycle(module.to(device), loss, _draw, steps=steps, rate=2e-3, seed=seed, state=state, progress=progress)
    return module.cpu()


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


def _draw(generator: torch.Generator) -> tuple[Tensor, str, int]:
    """Eight images, turned and mirrored, and which of the six scans is to see them."""

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    geometry, sparsity = GEOMETRIES[integer(2)], SPARSITIES[integer(3)]
    pool = _pool()
    x = pool[torch.randint(len(pool), (8,), generator=generator)].rot90(integer(4), (2, 3))
    return (x.flip(3) if integer(2) else x), geometry, sparsity
