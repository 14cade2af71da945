"""The scans of the claim on Primal-Dual UNets, its contenders, and how the classical ones are tuned."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hadamard.claims.imaging.primal_dual_unet_training import (
    FULL,
    GEOMETRIES,
    NETWORKS,
    SIZE,
    SPARSITIES,
    scan,
    train_one,
)
from hadamard.data import ct_slices, ellipses, mr_slices
from hadamard.imaging import PrimalDualUNet, RadialMRI
from hadamard.imaging._primal_dual import Term, condat_vu
from hadamard.operators import Difference, NonUniformFourier, Radon, operator_norm
from hadamard.training import load_checkpoint

__all__ = [
    "AFTER",
    "AGAIN",
    "CHANNELS",
    "FBP",
    "FIRST",
    "GRIDDING",
    "LARGE",
    "OURS",
    "PD",
    "POST",
    "RADIAL",
    "TV",
    "Case",
    "back_projection",
    "gridding",
    "infer",
    "network",
    "problem",
    "scan_name",
    "total_variation",
    "tune",
]

OURS, PD, POST, FBP, TV = "Primal-Dual UNet", "Primal-Dual", "FBP and U-Net", "FBP", "total variation"
GRIDDING = "gridding"
AGAIN = "{}, trained again"
RADIAL, LARGE, CHANNELS = "radial MRI, 16 spokes", "256 x 256, 60 views", "four channels, 256 x 256, 60 views"
FIRST, AFTER = "average, then project", "project, then average"
SHIPPED = dict(zip((OURS, PD, POST), NETWORKS))

# Weight of total variation and step of its solver for each scan, made by
# `python -c "from hadamard.claims.imaging.primal_dual_unet_problem import tune; print(tune())"`.
TUNED = {
    "parallel, 24 views": (3e-5, 20.0), "parallel, 12 views": (3e-5, 80.0), "parallel, 6 views": (1e-4, 300.0),
    "fan, 24 views": (3e-5, 20.0), "fan, 12 views": (3e-5, 80.0), "fan, 6 views": (3e-5, 300.0),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Images (n, 1, N, N), how many of them are phantoms (the others are real), and what a scan sees of them."""

    physics: Any
    x: Tensor
    y: Tensor
    phantoms: int = 0
    tuned: tuple[float, float] = (1e-4, 10.0)
    nets: Mapping[str, nn.Module] | None = None
    retrain: bool = False
    points: Tensor | None = None


def scan_name(geometry: str, sparsity: int) -> str:
    """The name of a scan's case."""
    return f"{geometry}, {FULL // sparsity} views"


def problem(seed: int, phantoms: int, large: int, retrain: str) -> dict[str, Case]:
    """Six scans of phantoms and real slices, radial MRI of real slices, and one large image for the times."""
    nets = {name: load_checkpoint(file, NETWORKS[file].build()).eval() for name, file in SHIPPED.items()}
    if retrain:
        nets |= {
            AGAIN.format(name): train_one(NETWORKS[file], NETWORKS[file].steps[retrain], 1 + seed, None, "").eval()
            for name, file in SHIPPED.items()
        }
    real = torch.stack(list(ct_slices(SIZE).values()))[:, None]
    x = torch.cat([ellipses(phantoms, SIZE, generator=torch.Generator().manual_seed(1000 + seed)), real])
    cases = {}
    for geometry in GEOMETRIES:
        for sparsity in SPARSITIES:
            physics, name = scan(geometry, sparsity), scan_name(geometry, sparsity)
            cases[name] = Case(physics, x, physics(x), phantoms, TUNED[name], nets, bool(retrain))
    cases[RADIAL] = _radial(nets)
    big = Radon(large, torch.arange(60) * (math.pi / 60))
    image = ellipses(1, large)
    cases[LARGE] = Case(big, image, big(image))
    cases[CHANNELS] = Case(big, image.expand(1, 4, large, large).contiguous(), torch.empty(0))
    return cases


def _radial(nets: Mapping[str, nn.Module]) -> Case:
    """Spokes of real MR slices, by the non-uniform transform; a pixel's centre is half a pixel off its grid."""
    physics = RadialMRI(SIZE, torch.arange(16) * (math.pi / 16))
    P = physics.out_shape[0]
    k, angles = (torch.arange(P) - P // 2) * (2 * math.pi / P), physics.radon.angles.float()
    points = torch.stack([-k[:, None] * angles.sin(), k[:, None] * angles.cos()]).flatten(1)
    x = torch.stack(list(mr_slices(SIZE).values()))[:, None]
    centred = torch.exp(1j * ((SIZE - 1) / 2 - SIZE // 2) * points.sum(0))
    spokes = NonUniformFourier(points, (SIZE, SIZE))(x) * centred * (SIZE / math.sqrt(P))
    return Case(physics, x, spokes.reshape(len(x), 1, *physics.out_shape), nets=nets, points=points)


# ---- contenders ----


def network(name: str) -> Callable[[Case], Tensor]:
    """A trained network; radial MRI becomes a sinogram first."""

    @torch.no_grad()
    def run(case: Case) -> Tensor:
        assert case.nets is not None
        if isinstance(case.physics, RadialMRI):
            return case.nets[name](case.physics.sinogram(case.y), case.physics.radon)
        return case.nets[name](case.y, case.physics)

    return run


def back_projection(case: Case) -> Tensor:
    """Filtered back-projection: for each image the better of the two filters, as an oracle would choose."""
    sharp, smooth = (_real(case.physics.A_dagger(case.y, filter)) for filter in ("ramp", "hann"))
    better = (sharp - case.x).square().mean((1, 2, 3)) < (smooth - case.x).square().mean((1, 2, 3))
    return torch.where(better[:, None, None, None], sharp, smooth)


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def total_variation(case: Case, max_iter: int = 500) -> Tensor:
    """Least squares and total variation, non-negative, by the method of Chambolle and Pock."""
    norm = operator_norm(case.physics, 1e-2)
    y, (weight, step) = case.y / norm, case.tuned
    fit = Term(lambda p, s: (p - s * y) / (1 + s), (1 / norm) * case.physics, 1.0)

    def ball(p: Tensor, s: float) -> Tensor:
        return p / (p.square().sum(-3, keepdim=True).sqrt() / weight).clamp(min=1)

    flat = Term(ball, Difference(case.physics.in_shape, (-2, -1)), 8.0)
    start = torch.zeros_like(case.x)
    return condat_vu(None, 0.0, lambda v, tau: v.clamp(min=0), [fit, flat], start, step=step, relaxation=1.9, tol=1e-5,
                     max_iter=max_iter).value  # fmt: skip


def gridding(case: Case) -> Tensor:
    """Density compensation by a ramp and the adjoint of the non-uniform transform."""
    P, A = case.physics.out_shape
    assert case.points is not None
    op = NonUniformFourier(case.points, (SIZE, SIZE))
    density = case.points.square().sum(0).sqrt() / (2 * math.pi) + (case.points.square().sum(0) == 0) / (4 * P)
    centred = torch.exp(1j * ((SIZE - 1) / 2 - SIZE // 2) * case.points.sum(0))
    values = case.y.flatten(2) * density * centred.conj() * math.sqrt(P)
    return op.A_adjoint(values).real * (SIZE * math.pi / (A * P))


@cache
def _untrained(primal: str) -> nn.Module:
    """The paper's networks in full width; for time alone."""
    return PrimalDualUNet(primal=primal).eval()


@torch.no_grad()
def infer(case: Case, primal: str) -> Tensor:
    """One pass of a network in the paper's size."""
    return _untrained(primal)(case.y, case.physics)


def tune() -> dict[str, tuple[float, float]]:
    """Find what gives total variation the least mean square error on phantoms of their own, scan by scan."""
    x = ellipses(8, SIZE, generator=torch.Generator().manual_seed(7))
    grid = [(weight, step) for weight in (1e-5, 3e-5, 1e-4, 2e-4, 4e-4, 8e-4) for step in (5.0, 20.0, 80.0, 300.0)]
    best = {}
    for geometry in GEOMETRIES:
        for sparsity in SPARSITIES:
            physics = scan(geometry, sparsity)
            case = Case(physics, x, physics(x))
            errors = [float((total_variation(replace(case, tuned=tuned)) - x).square().mean()) for tuned in grid]
            best[scan_name(geometry, sparsity)] = grid[int(np.argmin(errors))]
    return best
