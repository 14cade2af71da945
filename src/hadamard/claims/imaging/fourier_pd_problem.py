"""The scans that Fourier-PDUNet is judged on, and what reconstructs them."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from hadamard.claims.imaging.fourier_pd_training import NETWORKS, SIZE, noise_level
from hadamard.data import HyperthermiaSeries, acquire_kspace, hyperthermia, mr_volumes, undersampling_mask
from hadamard.imaging._primal_dual import Term, condat_vu
from hadamard.operators import Difference, Fourier, Masked
from hadamard.training import load_checkpoint

__all__ = ["Case", "fourier_pd", "ours", "problem", "scan", "total_variation", "whole", "zero_filled"]

OURS, PD, ZERO, TV, WHOLE = "Fourier-PDUNet", "Fourier-PD", "zero-filled", "total variation", "all of k-space"
MAIN, LARGE = "variable density, 10x", "256 x 256, 10x"
ITERATIONS = 100
PATTERNS = {"variable density": "variable-density", "radial": "radial", "Gaussian": "gaussian"}
SCANS = {f"{name}, {a}x": (pattern, float(a)) for name, pattern in PATTERNS.items() for a in (4, 10, 16)}


WEIGHTS = (0.003, 0.006, 0.01, 0.014, 0.02, 0.03, 0.045)
# Weight of total variation relative to the largest modulus of the zero-filled image, made by
# `python -c "from hadamard.claims.imaging.fourier_pd import tune; print(tune())"`.
TUNED = dict.fromkeys(SCANS, 0.02) | {"variable density, 4x": 0.014, "Gaussian, 4x": 0.014, "radial, 16x": 0.03}


@dataclass(frozen=True)
class Case:
    """Series of all volumes with what a scan sees of them, images stacked: (n, 1, H, W)."""

    x: Tensor
    y: Tensor
    whole: Tensor
    mask: Tensor
    series: tuple[HyperthermiaSeries, ...] = ()
    volumes: tuple[str, ...] = ()
    weight: float = 0.01


def scan(
    slices: list[tuple[str, Tensor]], pattern: str, acceleration: float, weight: float, seed: int, frames: int = 3
) -> Case:
    """Heat each of these slices, and sample the series' k-space with one mask."""
    g = torch.Generator().manual_seed(seed)
    size = slices[0][1].shape[-1]
    mask = undersampling_mask(size, size, acceleration, pattern, generator=g)
    series, kspace = [], []
    for _, anatomy in slices:
        one = hyperthermia(anatomy, frames, generator=g)
        series.append(one)
        kspace.append(acquire_kspace(one.images, noise=noise_level(one.images, one.body), generator=g))
    x, whole = torch.cat([s.images for s in series])[:, None], torch.cat(kspace)[:, None]
    return Case(x, whole * mask, whole, mask, tuple(series), tuple(name for name, _ in slices), weight)


def problem(seed: int, slices: int, frames: int, large: int) -> dict[str, Case]:
    """Nine scans of seven people, none of whom the networks have seen, and one large image for the times."""
    chosen = [
        (name, volume[i])
        for name, volume in mr_volumes("test", SIZE).items()
        for i in torch.linspace(0, len(volume) - 1, min(slices, len(volume)) + 2).round().long()[1:-1]
    ]
    cases = {
        name: scan(chosen, pattern, acceleration, TUNED[name], 100 + seed, frames)
        for name, (pattern, acceleration) in SCANS.items()
    }
    y = torch.randn(1, 1, large, large, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    mask = undersampling_mask(large, large, 10)
    cases[LARGE] = Case(y, y * mask, y, mask)
    return cases


# ---- contenders ----


def zero_filled(case: Case) -> Tensor:
    """The inverse transform of what was measured."""
    return Fourier(case.y.shape[-2:]).A_adjoint(case.y)


def whole(case: Case) -> Tensor:
    """The inverse transform of all of k-space, with its noise."""
    return Fourier(case.y.shape[-2:]).A_adjoint(case.whole)


def total_variation(case: Case) -> Tensor:
    """Least squares and total variation of the complex image, by the method of Condat and Vu."""
    shape = case.y.shape[-2:]
    op = Masked(Fourier(shape), case.mask)
    start = op.A_adjoint(case.y)
    weight = case.weight * start.abs().amax((-2, -1), keepdim=True)

    def ball(p: Tensor, step: float) -> Tensor:
        return p / (p.abs().square().sum(-3, keepdim=True).sqrt() / weight[..., None, :, :]).clamp(min=1)

    term = Term(ball, Difference(shape, (-2, -1)), 8.0)
    return condat_vu(lambda x: op.A_adjoint(op.A(x) - case.y), 1.0, lambda v, tau: v, [term], start, tol=0,
                     max_iter=ITERATIONS).value  # fmt: skip


@cache
def _trained(name: str) -> nn.Module:
    return load_checkpoint(name, NETWORKS[name].build()).eval()


@torch.no_grad()
def ours(case: Case) -> Tensor:
    """Two rounds with U-Nets."""
    return _trained("fourier_pd")(case.y, case.mask)


@torch.no_grad()
def fourier_pd(case: Case) -> Tensor:
    """Ten rounds of small convolutions."""
    return _trained("fourier_pd_conv")(case.y, case.mask)
