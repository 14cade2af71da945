"""How the networks of the claim on Fourier-PDUNet are trained: by one command, on the same data, in equal time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from hadamard.claims.shipping import one_cycle, shipping
from hadamard.data import acquire_kspace, hyperthermia, mr_volumes, undersampling_mask
from hadamard.imaging import FourierPrimalDual

__all__ = ["NETWORKS", "SIZE", "SNR", "Network", "noise_level", "train", "train_one"]

SIZE, SNR = 64, 30.0
ACCELERATIONS, KINDS = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0), ("variable-density", "gaussian", "radial")


@dataclass(frozen=True)
class Network:
    """How one network is built, and in how many steps its share of time is used up."""

    build: Callable[[], FourierPrimalDual]
    steps: dict[str, int]


def _pdunet() -> FourierPrimalDual:
    return FourierPrimalDual(widths=(8, 16, 32), dual_width=8, data_consistency=True, smooth_phase=True)


def _pd() -> FourierPrimalDual:
    return FourierPrimalDual(primal="conv", dual_width=8, data_consistency=True, smooth_phase=True)


# Steps: about a quarter of an hour on one core at size "full", for each.
NETWORKS = {
    "fourier_pd": Network(_pdunet, {"quick": 15, "full": 5000}),
    "fourier_pd_conv": Network(_pd, {"quick": 15, "full": 2750}),
}

_DATA = (
    "slices of hadamard.data.mr_volumes('train') (Colin27, INIA19) of 64 x 64, turned, mirrored and of changed "
    "contrast, heated by hadamard.data.hyperthermia; 4 to 16 times undersampled at random or in spokes; noise at SNR "
    "20 to 60 of tissue"
)


def noise_level(images: Tensor, body: Tensor) -> float:
    """Standard deviation of each part of the noise, for a mean modulus of the first image's tissue of 30 times that."""
    return float(images[0].abs()[body[0]].mean()) / SNR


def train(
    size: str = "full", out: str | Path | None = None, resume: bool = True, *, seed: int = 0, progress: bool = True,
    device: str = "cpu",
) -> list[Path]:  # fmt: skip
    """Train the networks of the claim and write each with its provenance.

    Parameters
    ----------
    size
        ``"full"``: as shipped; ``"quick"``: a handful of steps.
    out
        Folder; ``None``: where the shipped networks lie.
    resume
        Go on from what an interrupted training left in ``out``.
    seed
        Of the initial weights and the data.
    progress
        Show a progress bar for each network.
    device
        Where to train: ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    list of Path
        The files.
    """
    with shipping("fourier_pd", size, out, resume, seed=seed, device=device) as shelf:
        for name, network in NETWORKS.items():
            if size not in network.steps:
                raise ValueError(f"size must be one of {', '.join(map(repr, network.steps))}, got {size!r}")
            steps, title = network.steps[size], name if progress else ""
            module = train_one(network, steps, seed, shelf.state(name), title, device)
            shelf.write(name, module, data=_DATA, steps=str(steps))
    return shelf.paths


def train_one(
    network: Network, steps: int, seed: int, state: Path | None, progress: str, device: str = "cpu"
) -> nn.Module:
    """Train one network on its complex error and that of the phase between two moments, by one cycle of the rate."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = network.build().to(device)
    nn.init.constant_(module.primal_steps, 0.1)  # at 0 the networks behind them would learn nothing at first

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor, Tensor], step: int) -> Tensor:
        y, mask, x = (part.to(device) for part in batch)
        image = module(y, mask)
        return (image - x).abs().mean() + 2 * _turn(image, x)

    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    one_cycle(
        module, loss, _draw, steps=steps, rate=3e-3, seed=seed, optimizer=optimizer, state=state, progress=progress
    )
    return module


def _turn(image: Tensor, x: Tensor) -> Tensor:
    """Mean error of the phase between the moments of each pair, about in radians, where both have signal."""
    before, after = x[0::2], x[1::2]
    truth, found = after * before.conj(), image[1::2] * image[0::2].conj()
    ratio = found * truth.conj() / (truth.abs().square() + 1e-3)
    body = (before.abs() > 0.05) & (after.abs() > 0.05)
    return (ratio.imag.abs() / (ratio.abs() + 0.1) * body).mean()


@cache
def _pool() -> Tensor:
    return torch.cat(list(mr_volumes("train", SIZE).values()))


def _draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Four images, two moments of each of two series: k-space, masks and truth."""

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    def number(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    data, masks, truths = [], [], []
    for _ in range(2):
        mask = undersampling_mask(
            SIZE, SIZE, ACCELERATIONS[integer(len(ACCELERATIONS))], KINDS[integer(len(KINDS))], generator=generator
        )
        anatomy = _pool()[integer(len(_pool()))].rot90(integer(4), (0, 1))
        anatomy = anatomy.flip(0) if integer(2) else anatomy
        head = (anatomy > 0.05).to(anatomy.dtype)
        bent = anatomy.clamp(min=0) ** number(0.5, 1.8)  # another contrast
        if integer(3) == 0:
            bent = head * (1 - 0.85 * bent)
        series = hyperthermia(bent, 2, peak=number(0.5, 10), generator=generator)
        noise = noise_level(series.images, series.body) * number(0.5, 1.5)
        data.append(acquire_kspace(series.images, mask, noise=noise, generator=generator))
        masks.append(mask.expand(2, -1, -1))
        truths.append(series.images)
    return torch.cat(data)[:, None], torch.cat(masks)[:, None], torch.cat(truths)[:, None]
