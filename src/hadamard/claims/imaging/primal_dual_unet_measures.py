"""What the claim on Primal-Dual UNets measures: errors person by person, gains with intervals, signs, paired tests."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import wilcoxon
from torch import Tensor

from hadamard.claims import Interval, Results
from hadamard.claims.imaging.primal_dual_unet_problem import Case
from hadamard.operators import Radon

__all__ = ["adjoint", "body_ssim", "by_person", "gains", "mean", "psnr", "rmse", "signs", "ssim", "verdict", "worst"]

Quality = Callable[[Case, Tensor], Tensor]


def psnr(case: Case, out: Tensor) -> Tensor:
    """Of each image, inside the inscribed circle, for a peak at the image's largest value."""
    n = case.x.shape[-1]
    line = (torch.arange(n) - (n - 1) / 2) * (2 / n)
    error = (out - case.x)[..., line**2 + line[:, None] ** 2 <= 1].square().mean(-1)[:, 0]
    return 10 * (case.x.amax((1, 2, 3)).square() / error).log10()


def ssim(case: Case, out: Tensor) -> Tensor:
    """Of each image, by scikit-image."""
    return _similarity(case, out, lambda x, each: each.mean())


def body_ssim(case: Case, out: Tensor) -> Tensor:
    """The mean where there is something, without the empty background."""
    return _similarity(case, out, lambda x, each: each[x > 0.05 * x.max()].mean())


def _similarity(case: Case, out: Tensor, of: Callable[[np.ndarray, np.ndarray], float]) -> Tensor:
    from skimage.metrics import structural_similarity

    values = []
    for x, found in zip(case.x[:, 0].numpy(), out[:, 0].numpy()):
        _, each = structural_similarity(x, found, data_range=float(x.max()), full=True)
        values.append(float(of(x, each)))
    return torch.tensor(values)


def rmse(case: Case, out: Tensor) -> Tensor:
    """Of each image, over the whole square."""
    return (out - case.x).square().mean((1, 2, 3)).sqrt()


def by_person(case: Case, values: Tensor) -> dict[str, float]:
    """Mean over each person's slices."""
    names, real = np.array(case.people), values[case.phantoms :].numpy()
    return {name: float(real[names == name].mean()) for name in dict.fromkeys(case.people)}


def mean(of: Quality, real: bool) -> Callable[[Case, Any], float | None]:
    """Over phantoms, or over people."""

    def value(case: Case, out: Any) -> float | None:
        if not (case.people if real else case.phantoms):
            return None
        each = of(case, out)
        return float(np.mean(list(by_person(case, each).values())) if real else each[: case.phantoms].mean())

    return value


def gains(r: Results, case: str, name: str, other: str, of: Quality) -> np.ndarray:
    """Of one contender over another, of each phantom, or of each person where there are no phantoms."""
    c = r.cases[case]
    paired = of(c, r.outcomes[case, name]) - of(c, r.outcomes[case, other])
    return paired[: c.phantoms].numpy() if c.phantoms else np.array(list(by_person(c, paired).values()))


def _interval(paired: np.ndarray) -> Interval:
    """Mean, with a bootstrap interval of 95 %."""
    draws = np.random.default_rng(0).choice(paired, (2000, len(paired))).mean(1)
    return Interval(float(paired.mean()), float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975)))


def worst(cases: Sequence[str], name: str, other: str, of: Quality) -> Callable[[Results], Interval]:
    """The mean gain in the scan where it is least, with a bootstrap interval over phantoms or people."""
    return lambda r: _interval(min((gains(r, c, name, other, of) for c in cases), key=np.mean))


def signs(cases: Sequence[str], name: str, other: str, of: Sequence[Quality]) -> Callable[[Results], float]:
    """Share of all people, scans and measures in which one is ahead of the other."""

    def value(r: Results) -> float:
        ahead = []
        for case in cases:
            c = r.cases[case]
            for quality in of:
                paired = quality(c, r.outcomes[case, name]) - quality(c, r.outcomes[case, other])
                ahead += [gain > 0 for gain in by_person(c, paired).values()]
        return sum(ahead) / len(ahead)

    return value


def verdict(r: Results, case: str, name: str, other: str, of: Quality) -> str:
    """Mean gain with its interval, in how many it is above 0, and Wilcoxon's signed-rank test, in one line."""
    paired = gains(r, case, name, other, of)
    mid, p = _interval(paired), float(wilcoxon(paired).pvalue)
    count = f"{int((paired > 0).sum())} of {len(paired)}"
    return f"{mid.value:+.3f} [{mid.low:+.3f}, {mid.high:+.3f}], ahead in {count}, p = {p:.2g}"


def adjoint(dtype: torch.dtype) -> Callable[[Results], float]:
    """Relative difference of the inner products of a parallel and a fan beam, the larger one."""

    def value(r: Results) -> float:
        differences = []
        for far, near in ((None, None), (128.0, 64.0)):
            geometry, angles = "fan" if far else "parallel", torch.arange(12) * (2 * torch.pi / 12)
            op = Radon(64, angles, geometry, dtype=dtype, source_distance=far, detector_distance=near)
            g = torch.Generator().manual_seed(0)
            x, y = (torch.rand(shape, generator=g, dtype=dtype) for shape in (op.in_shape, op.out_shape))
            left, right = float((op.A(x) * y).sum()), float((x * op.A_adjoint(y)).sum())
            differences.append(abs(left - right) / abs(left))
        return max(differences)

    return value
