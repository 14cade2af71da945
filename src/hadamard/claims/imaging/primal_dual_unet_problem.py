"""The scans of the claim on Primal-Dual UNets, its contenders, and how the classical ones are tuned."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hadamard.claims.imaging.primal_dual_unet_radial import (
    ALL,
    SPOKES,
    acquire,
    full_sinogram,
    people,
    radial,
    spokes_name,
)
from hadamard.claims.imaging.primal_dual_unet_training import (
    FULL,
    GEOMETRIES,
    NETWORKS,
    SIZE,
    SPARSITIES,
    scan,
    train_one,
)
from hadamard.data import ct_slices, ellipses, mr_slices, mr_volumes
from hadamard.imaging import PrimalDualUNet, RadialMRI
from hadamard.imaging._primal_dual import Term, condat_vu
from hadamard.operators import Difference, Radon, operator_norm
from hadamard.training import load_checkpoint

__all__ = [
    "AFTER", "AGAIN", "CHANNELS", "FBP", "FIRST", "GRIDDING", "INTERPOLATED", "LARGE", "OURS", "PD", "POST", "RADIAL",
    "TRANSFER", "TV", "WINDOWED", "Case", "back_projection", "infer", "interpolated", "network", "problem", "scan_name",
    "total_variation", "tune",
]  # fmt: skip

OURS, PD, POST, FBP, TV = "Primal-Dual UNet", "Primal-Dual", "FBP and U-Net", "FBP", "total variation"
GRIDDING, WINDOWED = "gridding", "gridding, averaged over bin and pixel"
TRANSFER, INTERPOLATED = "Primal-Dual UNet of tomography", "FBP, interpolated"
AGAIN = "parallel, 12 views, trained again"
RADIAL, LARGE, CHANNELS = "radial MRI, 16 spokes", "256 x 256, 60 views", "four channels, 256 x 256, 60 views"
FIRST, AFTER = "average, then project", "project, then average"
TOMOGRAPHY = dict(zip((OURS, PD, POST), NETWORKS))
RADIALLY = {OURS: "primal_dual_unet_radial", PD: "primal_dual_unet_radial_convolutions"}

# Weight of total variation and step of its solver for each scan, made by
# `python -c "from hadamard.claims.imaging.primal_dual_unet_problem import tune; print(tune())"`.
TUNED = {
    "parallel, 24 views": (3e-5, 20.0), "parallel, 12 views": (3e-5, 80.0), "parallel, 6 views": (1e-4, 300.0),
    "fan, 24 views": (3e-5, 20.0), "fan, 12 views": (3e-5, 80.0), "fan, 6 views": (3e-5, 300.0),
    "radial MRI, 24 noisy spokes": (4e-4, 5.0), "radial MRI, 12 noisy spokes": (2e-4, 5.0),
    "radial MRI, 6 noisy spokes": (2e-4, 5.0),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Images (n, 1, N, N), phantoms and then real slices, with whose each of these is, and what a scan sees of them."""

    physics: Any
    x: Tensor
    y: Tensor
    phantoms: int = 0
    people: tuple[str, ...] = ()
    tuned: tuple[float, float] = (1e-4, 10.0)
    nets: Mapping[str, nn.Module] | None = None
    interpolate: bool = False


def scan_name(geometry: str, sparsity: int) -> str:
    """The name of a scan's case."""
    return f"{geometry}, {FULL // sparsity} views"


def problem(seed: int, phantoms: int, slices: int, large: int, retrain: str) -> dict[str, Case]:
    """Six scans of phantoms and real slices, radial MRI of real slices, and one large image for the times."""
    shipped = {name: load_checkpoint(name, network.build()).eval() for name, network in NETWORKS.items()}
    nets = {who: shipped[name] for who, name in TOMOGRAPHY.items()}
    slices_ct = ct_slices(SIZE)
    real = torch.stack(list(slices_ct.values()))[:, None]
    x = torch.cat([ellipses(phantoms, SIZE, generator=torch.Generator().manual_seed(1000 + seed)), real])
    cases = {}
    for geometry in GEOMETRIES:
        for sparsity in SPARSITIES:
            physics, name = scan(geometry, sparsity), scan_name(geometry, sparsity)
            cases[name] = Case(physics, x, physics(x), phantoms, tuple(slices_ct), TUNED[name], nets)
    if retrain:
        again = {who: _trained(name, retrain, 1 + seed) for who, name in TOMOGRAPHY.items()}
        cases[AGAIN] = replace(cases[scan_name("parallel", 8)], nets=again)
    x, whose = people(slices)
    mri = {who: shipped[name] for who, name in RADIALLY.items()} | {TRANSFER: nets[OURS]}
    for spokes in SPOKES:
        turn, name = radial(spokes), spokes_name(spokes)
        y = acquire(x, turn, torch.Generator().manual_seed(2000 + seed))
        cases[name] = Case(turn, x, y, 0, whose, TUNED[name], mri, True)
    two = mr_slices(SIZE)
    x, turn = torch.stack(list(two.values()))[:, None], radial(16)
    cases[RADIAL] = Case(turn, x, acquire(x, turn, torch.Generator(), 0.0), 0, tuple(two), nets=nets)
    big = Radon(large, torch.arange(60) * (math.pi / 60))
    image = ellipses(1, large)
    cases[LARGE] = Case(big, image, big(image))
    cases[CHANNELS] = Case(big, image.expand(1, 4, large, large).contiguous(), torch.empty(0))
    return cases


def _trained(name: str, size: str, seed: int) -> nn.Module:
    return train_one(NETWORKS[name], NETWORKS[name].steps[size], seed, None, "").eval()


# ---- contenders ----


def network(name: str) -> Callable[[Case], Tensor]:
    """A trained network; radial MRI becomes a sinogram first."""

    @torch.no_grad()
    def run(case: Case) -> Tensor:
        assert case.nets is not None
        if case.interpolate and name != TRANSFER:
            return case.nets[name](full_sinogram(case.y, case.physics), radial(ALL).radon)
        if isinstance(case.physics, RadialMRI):
            return case.nets[name](case.physics.sinogram(case.y), case.physics.radon)
        return case.nets[name](case.y, case.physics)

    return run


def back_projection(case: Case) -> Tensor:
    """Filtered back-projection: for each image the better of the two filters, as an oracle would choose."""
    return _better(case, case.physics, case.y)


def interpolated(case: Case) -> Tensor:
    """The same of the sinogram that is interpolated to all angles: what the networks begin with."""
    return _better(case, radial(ALL).radon, full_sinogram(case.y, case.physics))


def _better(case: Case, physics: Any, y: Tensor) -> Tensor:
    sharp, smooth = (_real(physics.A_dagger(y, filter)) for filter in ("ramp", "hann"))
    better = (sharp - case.x).square().mean((1, 2, 3)) < (smooth - case.x).square().mean((1, 2, 3))
    return torch.where(better[:, None, None, None], sharp, smooth)


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def total_variation(case: Case, max_iter: int = 500) -> Tensor:
    """Least squares and total variation, not negative, by the method of Chambolle and Pock; spokes as projections."""
    if isinstance(case.physics, RadialMRI):
        case = replace(case, physics=case.physics.radon, y=case.physics.sinogram(case.y))
    norm = operator_norm(case.physics, 1e-2)
    y, (weight, step) = case.y / norm, case.tuned
    fit = Term(lambda p, s: (p - s * y) / (1 + s), (1 / norm) * case.physics, 1.0)

    def ball(p: Tensor, s: float) -> Tensor:
        return p / (p.square().sum(-3, keepdim=True).sqrt() / weight).clamp(min=1)

    flat = Term(ball, Difference(case.physics.in_shape, (-2, -1)), 8.0)
    start = torch.zeros_like(case.x)
    return condat_vu(None, 0.0, lambda v, tau: v.clamp(min=0), [fit, flat], start, step=step, relaxation=1.9, tol=1e-5,
                     max_iter=max_iter).value  # fmt: skip


@cache
def _untrained(primal: str) -> nn.Module:
    """The paper's networks in full width; for time alone."""
    return PrimalDualUNet(primal=primal).eval()


@torch.no_grad()
def infer(case: Case, primal: str) -> Tensor:
    """One pass of a network in the paper's size."""
    return _untrained(primal)(case.y, case.physics)


def tune() -> dict[str, tuple[float, float]]:
    """Find what gives total variation the least mean square error on phantoms, or heads, of their own, scan by scan."""
    phantoms = ellipses(8, SIZE, generator=torch.Generator().manual_seed(7))
    heads = torch.cat([volume[20:101:27] for volume in mr_volumes("train", SIZE).values()])[:, None]
    cases = {scan_name(g, s): Case(scan(g, s), phantoms, scan(g, s)(phantoms)) for g in GEOMETRIES for s in SPARSITIES}
    for spokes in SPOKES:
        y = acquire(heads, radial(spokes), torch.Generator().manual_seed(7))
        cases[spokes_name(spokes)] = Case(radial(spokes), heads, y)
    weights = (1e-5, 3e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3)
    grid = [(weight, step) for weight in weights for step in (5.0, 20.0, 80.0, 300.0)]
    best = {}
    for name, case in cases.items():
        errors = [float((total_variation(replace(case, tuned=t)) - case.x).square().mean()) for t in grid]
        best[name] = grid[int(np.argmin(errors))]
    return best
