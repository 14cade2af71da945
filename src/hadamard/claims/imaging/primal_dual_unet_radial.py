"""Undersampled radial MRI for the claim on Primal-Dual UNets: spokes, their sinograms on all angles, and training."""

import copy
import math
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from hadamard.claims.shipping import one_cycle
from hadamard.data import mr_volumes
from hadamard.imaging import RadialMRI, upsample_sinogram
from hadamard.operators import NonUniformFourier

__all__ = [
    "ALL",
    "NOISE",
    "SPOKES",
    "acquire",
    "full_sinogram",
    "gridding",
    "people",
    "radial",
    "spokes_name",
    "train_radial",
]

SIZE, ALL, SPOKES = 64, 96, (24, 12, 6)
NOISE = 0.15  # standard deviation of each part of a sample; the zero frequency of a head is about 100


@cache
def radial(spokes: int, size: int = SIZE) -> RadialMRI:
    """So many spokes, equally far apart over half a turn."""
    return RadialMRI(size, torch.arange(spokes) * (math.pi / spokes))


def spokes_name(spokes: int) -> str:
    """The name of a scan's case."""
    return f"radial MRI, {spokes} noisy spokes"


def people(slices: int) -> tuple[Tensor, tuple[str, ...]]:
    """At most so many slices of each of seven people whom no network has seen, and whose they are."""
    chosen = {}
    for name, volume in mr_volumes("test", SIZE).items():
        count = min(slices, len(volume))
        chosen[name] = volume[torch.linspace(0, len(volume) - 1, count + 2).round().long()[1:-1]]
    return torch.cat(list(chosen.values()))[:, None], tuple(n for n, part in chosen.items() for _ in part)


@cache
def _points(physics: RadialMRI) -> Float[Tensor, "2 m"]:
    """Where the spokes' samples lie, in radians per pixel, rows first."""
    P = physics.out_shape[0]
    k, angles = (torch.arange(P) - P // 2) * (2 * math.pi / P), physics.radon.angles.float()
    return torch.stack([-k[:, None] * angles.sin(), k[:, None] * angles.cos()]).flatten(1)


@cache
def _transform(physics: RadialMRI) -> tuple[NonUniformFourier, Tensor]:
    """The transform at these points, and the phase from the grid's origin to the middle of the image; scaled."""
    at, size = _points(physics), physics.in_shape[0]
    centred = torch.exp(1j * ((size - 1) / 2 - size // 2) * at.sum(0))
    return NonUniformFourier(at, (size, size)), centred * (size / math.sqrt(physics.out_shape[0]))


def acquire(
    x: Float[Tensor, "b 1 n n"], physics: RadialMRI, generator: torch.Generator, noise: float = NOISE
) -> Complex[Tensor, "b 1 p a"]:
    """Samples of k-space at the spokes by the non-uniform transform, not by projections, with noise."""
    op, phase = _transform(physics)
    spokes = (op(x) * phase).unflatten(-1, physics.out_shape)
    parts = torch.randn(2, *spokes.shape, generator=generator)
    return spokes + noise * torch.complex(parts[0], parts[1])


def full_sinogram(y: Complex[Tensor, "b 1 p a"], physics: RadialMRI) -> Float[Tensor, "b 1 p f"]:
    """The spokes' sinogram, interpolated to all angles: what the networks are given."""
    full = radial(ALL, physics.in_shape[0])
    return upsample_sinogram(physics.sinogram(y), physics.radon, full.radon)


def gridding(y: Complex[Tensor, "b 1 p a"], physics: RadialMRI, window: bool = False) -> Float[Tensor, "b 1 n n"]:
    """Density compensation by a ramp and the adjoint of the non-uniform transform.

    With ``window``, also by what back-projection does to an image: it is averaged over a bin and over a pixel.
    """
    (P, A), at = physics.out_shape, _points(physics)
    op, phase = _transform(physics)
    radius = at.square().sum(0).sqrt() / (2 * math.pi)
    density = radius + (radius == 0) / (4 * P)
    if window:
        density = density * torch.sinc(radius) * torch.sinc(at / (2 * math.pi)).prod(0)
    return op.A_adjoint(y.flatten(2) * density * phase.conj()).real * (math.pi / A)


def train_radial(
    module: nn.Module, steps: int, seed: int, state: Path | None, progress: str, device: str = "cpu"
) -> nn.Module:
    """Train a network that knows tomography on heads and their spokes, in place."""
    full = copy.deepcopy(radial(ALL).radon).to(device)

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        y, x = (part.to(device) for part in batch)
        return (module(y, full) - x).abs().mean()

    optimizer = torch.optim.Adam(module.to(device).parameters(), lr=1e-3, fused=True)
    one_cycle(
        module, loss, _draw, steps=steps, rate=1e-3, seed=seed, optimizer=optimizer, state=state,
        progress=progress,
    )  # fmt: skip
    return module.cpu()


@cache
def _pool() -> Tensor:
    return torch.cat(list(mr_volumes("train", SIZE).values()))[:, None]


def _draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Four slices, turned, mirrored and of another contrast, and the full sinogram of their spokes."""

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    x = _pool()[torch.randint(len(_pool()), (4,), generator=generator)].rot90(integer(4), (2, 3))
    x = x.flip(3) if integer(2) else x
    bent = x ** (0.5 + 1.3 * torch.rand(len(x), 1, 1, 1, generator=generator))
    if integer(3) == 0:  # what is bright becomes dark
        bent = (x > 0.05) * (1 - 0.85 * bent)
    physics = radial(SPOKES[integer(len(SPOKES))])
    return full_sinogram(acquire(bent, physics, generator), physics), bent
