"""How the networks of the claim on GloReDi are trained: by one command, on the same batches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.claims.shipping import one_cycle, shipping
from hadamard.data import ellipses, volume_slices
from hadamard.imaging import BandPassContrastive, GloReDistiller, GloReNet, UNet, photon_noise
from hadamard.imaging.hounsfield import WATER
from hadamard.operators import Radon

__all__ = ["NETWORKS", "PHOTONS", "SIZE", "VIEWS", "FBPConvNet", "Network", "back_project", "build", "fan", "measure",
           "train", "train_one"]  # fmt: skip

SIZE, VIEWS, PHOTONS = 64, (8, 16, 32), 1e6
BATCH = 9
SIDE = 41.0  # of the image, in centimetres
UNIT = 3 * WATER  # attenuation per centimetre of a pixel of value 1, the window's upper end


class FBPConvNet(nn.Module):
    """The paper's baseline: a U-Net whose output is added to the filtered back-projection."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.net = UNet(1, 1, widths)

    def forward(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Clean images."""
        return x + self.net(x)


def build(global_ratio: float = 0.75, width: int = 16) -> GloReNet:
    """The network of the claim; with a ratio of 0, of 3x3 convolutions alone."""
    return GloReNet(width=width, n_enc=2, n_dec=1, global_ratio=global_ratio, global_skip=True, downsamplings=1)


@dataclass(frozen=True)
class Network:
    """How one network is built and trained, and in how many steps at each size."""

    build: Callable[[], nn.Module]
    steps: dict[str, int]
    distilled: bool = False


NETWORKS = {
    "gloredi": Network(build, {"quick": 28, "full": 1000}, distilled=True),
    "gloredi_undistilled": Network(build, {"quick": 28, "full": 1000}),
    "gloredi_convolutions": Network(lambda: build(0.0, width=13), {"quick": 28, "full": 1000}),
    "gloredi_fbpconvnet": Network(lambda: FBPConvNet((12, 24, 48, 64)), {"quick": 42, "full": 1500}),
}
_DATA = (
    "slices of the volumes mni152 and colin27 of hadamard.data (three axes, every second slice) and 400 random ellipse "
    "phantoms, 64 x 64, turned and mirrored; 8, 16 or 32 views of a fan, 1e6 photons a ray"
)


@cache
def fan(views: int, size: int = SIZE) -> Radon:
    """So many views of a fan over a whole turn; the source is as far from the centre as in the paper's simulation."""
    angles = torch.arange(views, dtype=torch.float64) * (2 * math.pi / views)
    return Radon(size, angles, "fan", pixel_size=SIDE / size, source_distance=2.1 * SIDE, detector_distance=1.05 * SIDE)


def measure(x: Tensor, views: int, seed: int) -> Tensor:
    """Noisy line integrals of images in [0, 1]."""
    return photon_noise(fan(views, x.shape[-1])(UNIT * x), PHOTONS, generator=torch.Generator().manual_seed(seed))


def back_project(y: Tensor, views: int, size: int = SIZE, filter: str = "ramp") -> Tensor:
    """Filtered back-projection, in units of the window."""
    return fan(views, size).A_dagger(y, filter) / UNIT


def train(
    size: str = "full", out: str | Path | None = None, resume: bool = True, *, seed: int = 0, device: str = "cpu",
    progress: bool = True,
) -> list[Path]:  # fmt: skip
    """Train the networks of the claim and write each, in half precision, with its provenance.

    Parameters
    ----------
    size
        ``"full"``: as shipped, about 10 minutes on one core; ``"quick"``: a 36th of it.
    out
        Folder; ``None``: where the shipped networks lie.
    resume
        Go on from what an interrupted training left in ``out``.
    seed
        Of the initial weights and the data.
    device
        Where the networks are trained; the data are made on the CPU.
    progress
        Show a progress bar for each network.

    Returns
    -------
    list of Path
        The files.
    """
    with shipping("gloredi", size, out, resume, seed=seed, device=device) as shelf:
        for name, network in NETWORKS.items():
            if size not in network.steps:
                raise ValueError(f"size must be one of {', '.join(map(repr, network.steps))}, got {size!r}")
            module = train_one(
                network.build, network.steps[size], seed, distilled=network.distilled, device=device,
                state=shelf.state(name), progress=name if progress else "",
            )  # fmt: skip
            parts: dict[str, nn.Module] = {name: module}
            if isinstance(module, GloReDistiller):
                parts = {name: module.student, f"{name}_teacher": module.teacher}
            for part, net in parts.items():
                shelf.write(part, net.half(), data=_DATA, steps=str(network.steps[size]))
    return shelf.paths


def train_one(
    build: Callable[[], nn.Module],
    steps: int,
    seed: int,
    *,
    distilled: bool = False,
    pool: Callable[[], Tensor] | None = None,
    views: tuple[int, ...] = VIEWS,
    direction: float = 0.002,
    contrast: float = 1e-6,
    rate: float = 5e-3,
    device: str = "cpu",
    state: Path | None = None,
    progress: str = "",
) -> nn.Module:
    """Train one network on the smooth l1 norm of its error, at a learning rate that rises and falls.

    All batches depend on ``seed`` alone, so that contenders see the same. Where it is distilled, the distiller is
    returned; as in the paper, the last fifteenth of the steps is on images alone. Convolutions are computed in half
    precision, pixel by pixel in memory: twice as fast on a CPU.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = build()
    distiller = None
    if distilled:
        assert isinstance(network, GloReNet)
        bank = BandPassContrastive(bank=64)
        distiller = GloReDistiller(network, direction=direction, contrast=contrast, band_pass=bank)
    module: nn.Module = (distiller or network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate, fused=True)
    on_images = nn.SmoothL1Loss()

    def loss(module: nn.Module, batch: tuple[Tensor, int], step: int) -> Tensor:
        x, noise = batch
        truth, few = _to(device, x), _to(device, _seen(x, views, noise))
        alone = distiller is None or step >= steps - steps // 15
        more = few if alone else _to(device, _seen(x, [2 * count for count in views], noise + 1))
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            if distiller is None:
                return on_images(module(few), truth)
            if alone:
                return distiller.pixel_loss(few, truth)
            distiller.teacher_step(optimizer, more, truth)
            return distiller.student_losses(few, more, truth)["student"]

    one_cycle(
        module, loss, lambda generator: _draw(generator, (pool or _pool)()), steps=steps, rate=rate, seed=seed,
        optimizer=optimizer, state=state, progress=progress,
    )  # fmt: skip
    return module.cpu()


def _to(device: str, x: Tensor) -> Tensor:
    return x.to(device).contiguous(memory_format=torch.channels_last)


@cache
def _pool() -> Tensor:
    """Slices of two heads, which stand for attenuation though they are of MR, and phantoms with bone and air."""
    cuts = [(name, axis) for name in ("mni152", "colin27") for axis in range(3)]
    heads = torch.cat([volume_slices(name, SIZE, axis=axis, step=2) for name, axis in cuts])
    return torch.cat([ellipses(400, SIZE, generator=torch.Generator().manual_seed(1)), heads[:, None] * 1.5]) / 3


def _draw(generator: torch.Generator, pool: Tensor) -> tuple[Tensor, int]:
    """Images, turned, mirrored and of another contrast each, and a seed for the noise."""

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    x = pool[torch.randint(len(pool), (BATCH,), generator=generator)].rot90(integer(4), (2, 3))
    x = x.flip(3) if integer(2) else x
    contrast = 0.6 + 0.8 * torch.rand(BATCH, 1, 1, 1, generator=generator)
    return (x * contrast).clamp(max=1), 2 * integer(2**30)


def _seen(x: Tensor, views: Sequence[int], seed: int) -> Tensor:
    """Back-projections, the first images from so many views, the next ones from so many: as many of each.

    Normalisations must see all numbers of views in one batch, as they do when the network is used.
    """
    parts = zip(x.chunk(len(views)), views)
    return torch.cat([back_project(measure(part, count, seed + 2 * i), count) for i, (part, count) in enumerate(parts)])
