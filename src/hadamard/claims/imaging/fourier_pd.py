"""Fourier-PDUNet against Fourier-PD, the zero-filled image and total variation, by temperature and by magnitude."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hadamard.claims import Bar, Claim, Contender, Interval, Measure, Results
from hadamard.claims.imaging.fourier_pd_problem import (
    ITERATIONS,
    LARGE,
    MAIN,
    OURS,
    PATTERNS,
    PD,
    SCANS,
    TV,
    WEIGHTS,
    WHOLE,
    ZERO,
    Case,
    fourier_pd,
    ours,
    problem,
    scan,
    total_variation,
    whole,
    zero_filled,
)
from hadamard.claims.imaging.fourier_pd_training import NETWORKS, SIZE, train
from hadamard.claims.plots import Figure, bars, lines, pictures
from hadamard.data import HyperthermiaSeries, mr_volumes, undersampling_mask
from hadamard.imaging import prf_temperature
from hadamard.imaging.thermometry import GAMMA
from hadamard.operators import Fourier, Masked

__all__ = ["claim", "train"]


def tune() -> dict[str, float]:
    """Find what gives total variation the least product of image's and temperature's error on training anatomies."""
    slices = [(name, v[i]) for name, v in mr_volumes("train", SIZE).items() for i in (20, 60, 100)]
    best = {}
    for name, (pattern, acceleration) in SCANS.items():
        errors = []
        for weight in WEIGHTS:
            case = scan(slices, pattern, acceleration, weight, 7)
            image = total_variation(case)
            degrees = _by_volume(case, temperature, image, "tumour").values()
            errors.append(float((image - case.x).abs().mean()) * float(np.mean(list(degrees))))
        best[name] = WEIGHTS[int(np.argmin(errors))]
    return best


# ---- measures ----


def _by_volume(case: Case, of: Callable[..., Tensor], image: Tensor, *region: str) -> dict[str, float]:
    """Means of what is measured in each volume's images or pixels."""
    found: dict[str, list[Tensor]] = {}
    for name, s, z in zip(case.volumes, case.series, image[:, 0].chunk(len(case.series))):
        found.setdefault(name, []).append(of(s, z, *region).flatten())
    return {name: float(torch.cat(each).mean()) for name, each in found.items()}


def temperature(s: HyperthermiaSeries, z: Tensor, region: str) -> Tensor:
    """Absolute errors in degrees, in the tumour or in the whole body."""
    found = prf_temperature(z[1:], z[0], s.te, s.b0, drift_mask=s.unheated)
    return (found - s.temperature[1:]).abs()[getattr(s, region)[1:]]


def phase(s: HyperthermiaSeries, z: Tensor) -> Tensor:
    """Absolute errors in radians, in the body."""
    return (z * s.images.conj()).angle().abs()[s.body]


def psnr(s: HyperthermiaSeries, z: Tensor) -> Tensor:
    """Of the magnitude, relative to its largest value."""
    truth = s.images.abs()
    return 10 * torch.log10(truth.amax((1, 2)).square() / (z.abs() - truth).square().mean((1, 2)))


def ssim(s: HyperthermiaSeries, z: Tensor) -> Tensor:
    """Of the magnitude."""
    from skimage.metrics import structural_similarity

    pairs = zip(s.images.abs().numpy(), z.abs().numpy())
    return torch.tensor([structural_similarity(a, b, data_range=float(a.max())) for a, b in pairs])


def _mean(of: Callable[..., Tensor], *region: str) -> Callable[[Case, Tensor], float | None]:
    def value(case: Case, image: Tensor) -> float | None:
        return float(np.mean(list(_by_volume(case, of, image, *region).values()))) if case.series else None

    return value


def _complex(case: Case, image: Tensor) -> float | None:
    return float((image - case.x).norm() / case.x.norm()) if case.series else None


def _pairs(r: Results, on: str, other: str, of: Callable[..., Tensor], *region: str) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the other's, volume by volume."""
    mine, theirs = (
        np.array(list(_by_volume(r.cases[on], of, r.outcomes[on, name], *region).values())) for name in (OURS, other)
    )
    return mine, theirs


def _ratio(other: str) -> Callable[[Results], Interval]:
    """Our mean error of the tumour's temperature over the other's, bootstrapped over the volumes (95 %)."""

    def value(r: Results) -> Interval:
        a, b = _pairs(r, MAIN, other, temperature, "tumour")
        draws = np.random.default_rng(0).integers(0, len(a), (2000, len(a)))
        low, high = np.quantile(a[draws].mean(1) / b[draws].mean(1), (0.025, 0.975))
        return Interval(float(a.mean() / b.mean()), float(low), float(high))

    return value


def _least_gain(other: str, of: Callable[..., Tensor]) -> Callable[[Results], Interval]:
    """The least of the nine scans' mean gains, bootstrapped over the volumes (95 %)."""

    def value(r: Results) -> Interval:
        pairs = (_pairs(r, name, other, of) for name in SCANS)
        gains = min((a - b for a, b in pairs), key=lambda gain: gain.mean())
        draws = np.random.default_rng(0).choice(gains, (2000, len(gains))).mean(1)
        return Interval(float(gains.mean()), float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975)))

    return value


def _noise(r: Results) -> float:
    """Measured over predicted standard deviation of the temperature, its distance from 1."""
    noise = torch.randn(4, 256, 256, generator=torch.Generator().manual_seed(0)) / 30
    found = prf_temperature(1 + torch.complex(*noise[:2]), 1 + torch.complex(*noise[2:]), 0.02, 1.5)
    return abs(float(found.std()) * 30 * 0.01e-6 * GAMMA * 1.5 * 0.02 / math.sqrt(2) - 1)


def _adjoint(dtype: torch.dtype) -> Callable[[Results], float]:
    def value(r: Results) -> float:
        g = torch.Generator().manual_seed(0)
        op = Masked(Fourier((65, 64)), undersampling_mask(65, 64, 10))
        x, y = (torch.randn(65, 64, dtype=dtype, generator=g) for _ in range(2))
        left, right = torch.vdot(op.A(x).flatten(), y.flatten()), torch.vdot(x.flatten(), op.A_adjoint(y).flatten())
        return float((left - right).abs() / left.abs())

    return value


# ---- pictures ----


def plot(r: Results) -> list[Figure]:
    """Magnitude and temperature of a head, errors of every volume, and quality over the acceleration."""
    names, case = [OURS, PD, TV, ZERO], r.cases[MAIN]
    s = case.series[0]
    magnitude, heat = {"truth": s.images[-1].abs()}, {"truth": s.temperature[-1] * s.body[-1]}
    for name in names:
        z = r.outcomes[MAIN, name][: len(s.images), 0]
        magnitude[name] = z[-1].abs()
        heat[name] = prf_temperature(z[-1:], z[0], s.te, s.b0, drift_mask=s.unheated)[0] * s.body[-1]
    each = {name: _by_volume(case, temperature, r.outcomes[MAIN, name], "tumour") for name in (*names, WHOLE)}
    figures = [
        pictures(magnitude, limits=(0.0, 1.0), caption=f"Magnitude of the {case.volumes[0]}, 10 times undersampled."),
        pictures(heat, limits=(0.0, 8.0), caption="Change of temperature, 0 (black) to 8 degrees (white)."),
        bars(each, y="error in the tumour, degrees", caption="Every volume, 10 times undersampled: lower is better."),
        bars({n: {"256 x 256": r.value(LARGE, n, "seconds")} for n in (OURS, PD, TV)}, y="seconds a slice",
             caption=f"Time of a slice on one thread; total variation in {ITERATIONS} iterations."),
    ]  # fmt: skip
    for pattern in PATTERNS:
        scans = [name for name in SCANS if name.startswith(pattern)]
        for what, better in (("temperature error, tumour", "lower"), ("PSNR of the magnitude", "higher"),
                             ("SSIM of the magnitude", "higher")):  # fmt: skip
            figures.append(
                lines({n: ([4, 10, 16], r.series(n, what, scans)) for n in names}, x="acceleration", y=what,
                      caption=f"Sampling: {pattern}; mean over {len(each[OURS])} volumes: {better} is better.")
            )  # fmt: skip
    return figures


_TEMPERATURE = "temperature MAE in the hot-spot ROI: net <= 0.5 x zero-filled; and <= 0.9 x TV recon"
_SPEED = "PDUNet(2) <= 0.5 x PD(10) time; both faster than 100-iteration TV by >= 3x"
_SPLIT = "complex-primal vs magnitude-primal with the ground-truth-free phase (zero-filled phase): MAE ratio <= 0.8"
_ADJOINT = "forward and adjoint agree to 1e-5 (float32) and 1e-10 (float64)"
_EVERY = (
    "the learned method against its paper's baseline network and the classical method at every sparsity level in SSIM "
    "and PSNR"
)


_NOISE = (
    "All of k-space, with the same noise, leaves about half of zero filling's error (see its bar in the picture), so "
    "that half asks of a tenth of k-space what all of it gives; and the networks had a few minutes of training, during "
    "which the loss was still falling."
)
_FEW = (
    "A quarter of an hour of training on one core each, of which two fifths gave nearly as much: the networks have not "
    "learned to sharpen what total variation sharpens by rule."
)
_EQUAL = (
    "After six minutes of training Fourier-PDUNet was ahead in every scan. After a quarter of an hour Fourier-PD, "
    "whose steps take longer and which made half as many, is ahead in at least one."
)
_FAST = (
    "This total variation is quick, a hundred iterations of two transforms and a difference in fused steps, whereas "
    "each round's convolutions pass over the image some twenty times with sixteen real channels and more."
)


def _against(other: str, why: str = "") -> list[Bar]:
    return [
        Bar(f"{what} of the magnitude above {other}'s, in the scan of the nine where least (interval: bootstrap over "
            "7 volumes)", "issue 5", _EVERY, ">", 0.0, _least_gain(other, of), why=why)
        for what, of in (("PSNR, in dB,", psnr), ("SSIM", ssim))
    ]  # fmt: skip


claim = Claim(
    key="fourier_pd",
    statement=(
        "From a fourth to a sixteenth of k-space, two rounds of complex networks reconstruct the anatomies of seven "
        "people, none of whom they had seen, with simulated heat, motion, drift and noise. At a tenth the temperature "
        "of the heated region is nearer to the truth than zero filling's and than total variation's, but not by as "
        "much as the paper's; after so short a training total variation keeps the better magnitude, and in some scans "
        "the plain primal-dual network, too."
    ),
    paper_figure=(
        "At an acceleration of 10 the difference of temperature to that of full sampling falls from 1.3 to 0.6 degrees "
        "in the whole volume and from 0.49 to 0.06 in the tumour (arXiv 2310.01073)."
    ),
    sizes={"quick": {"slices": 1, "frames": 2, "large": 256}, "full": {"slices": 10, "frames": 3, "large": 256}},
    problem=problem,
    contenders=[
        Contender(OURS, ours, cases=SCANS.__contains__, once=True),
        Contender(PD, fourier_pd, "baseline", cases=SCANS.__contains__, once=True),
        Contender(ZERO, zero_filled, "baseline", cases=SCANS.__contains__, once=True),
        Contender(TV, total_variation, "peer", cases=SCANS.__contains__, once=True),
        Contender(WHOLE, whole, "ablation", cases=MAIN.__eq__, once=True),
        Contender(OURS, ours, cases=LARGE.__eq__),
        Contender(PD, fourier_pd, "baseline", cases=LARGE.__eq__),
        Contender(TV, total_variation, "peer", cases=LARGE.__eq__),
    ],
    measures=[
        Measure("temperature error, tumour", "degrees", _mean(temperature, "tumour")),
        Measure("temperature error, body", "degrees", _mean(temperature, "body")),
        Measure("phase error", "rad", _mean(phase)), Measure("error of the complex image", "1", _complex),
        Measure("PSNR of the magnitude", "dB", _mean(psnr)), Measure("SSIM of the magnitude", "1", _mean(ssim)),
    ],
    bars=[
        Bar("10x: temperature error in the tumour over zero-filled's (interval: bootstrap over 7 volumes)",
            "card, claim 1", _TEMPERATURE, "<=", 0.5, _ratio(ZERO), headline=True,
            why=_NOISE),
        Bar("10x: temperature error in the tumour over total variation's",
            "card, claim 1", _TEMPERATURE, "<=", 0.9, _ratio(TV),
            why=_FEW),
        Bar("10x: the same over that of a network of magnitudes at the zero-filled phase, whose temperature is "
            "zero filling's", "card, claim 2", _SPLIT, "<=", 0.8, _ratio(ZERO)),
        *_against(TV, _FEW),
        *_against(PD, _EQUAL),
        Bar("256 x 256: time of Fourier-PDUNet over Fourier-PD's, both in the claim's widths", "card, claim 3", _SPEED,
            "<=", 0.5, lambda r: r.ratio(LARGE, OURS, PD), seconds=True,
            why="Eight channels make Fourier-PD's convolutions cheap; a U-Net has as many operations in its levels."),
        Bar("256 x 256: time of total variation over Fourier-PDUNet's", "card, claim 3", _SPEED, ">=", 3,
            lambda r: r.ratio(LARGE, TV, OURS), seconds=True, why=_FAST),
        Bar("256 x 256: time of total variation over Fourier-PD's", "card, claim 3", _SPEED, ">=", 3,
            lambda r: r.ratio(LARGE, TV, PD), seconds=True, why=_FAST),
        Bar("Temperature of noise: relative distance of its deviation from the formula's", "card, claim 4",
            "recovered dT on noise-only data matches the SNR formula within 10 %", "<=", 0.1, _noise),
        Bar("Forward and adjoint in single precision: relative difference of the inner products", "issue 5", _ADJOINT,
            "<=", 1e-5, _adjoint(torch.complex64)),
        Bar("Forward and adjoint in double precision", "issue 5", _ADJOINT, "<=", 1e-10, _adjoint(torch.complex128)),
    ],
    plot=plot,
    requires=("skimage",),
    rounds={"quick": 3, "full": 7},
    threads=1,
    checkpoints=list(NETWORKS),
)  # fmt: skip
