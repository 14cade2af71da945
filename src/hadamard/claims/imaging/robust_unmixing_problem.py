"""Scenes mixed from real spectra, the programs that unmix them, and how far they are from the truth."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr
from sklearn.decomposition import NMF

from hadamard.data import MixedScene, leaves_and_soils, mixed_scene
from hadamard.imaging import RobustUnmixing, fcls, noisy_bands, vca
from hadamard.imaging._abundances import hoyer

BANDS, SPECTRA = 120, ("dry soil", "wet soil", "green leaf", "dry leaf")
OURS, HALF, ROBUST_HALF, ONE = "l2,1, adaptive p", "L1/2-NMF", "l2,1, p = 1/2", "l2,1, p = 1"
HALF_MU = "L1/2-NMF, multiplicative"
HALF_KEPT = "L1/2-NMF, noisy bands left out"
NMF_SUM, FCLS_ALL, FCLS_KEPT = "scikit-learn NMF", "FCLS on VCA", "FCLS on VCA, noisy bands left out"
OPTIONS: dict[str, dict[str, Any]] = {
    OURS: {},
    HALF: {"loss": "frobenius", "sparsity": "l1/2"},
    HALF_MU: {"loss": "frobenius", "sparsity": "l1/2", "abundance": "asc"},
    ROBUST_HALF: {"sparsity": "l1/2"},
    ONE: {"sparsity": "l1"},
}

# Weights by share of broken bands, found on two other scenes with
# `python -c "from hadamard.claims.imaging import robust_unmixing_problem as p; print(p.tune())"`: of the penalty
# (`reg_scale`), and of the row that holds the sums near one for scikit-learn.
WEIGHTS: dict[str, dict[float, float]] = {
    OURS: {0.0: 0.1, 0.05: 0.1, 0.1: 0.1, 0.15: 0.1, 0.2: 0.1},
    HALF: {0.0: 0.2, 0.05: 4, 0.1: 0.4, 0.15: 4, 0.2: 4},
    HALF_MU: {0.0: 1, 0.05: 4, 0.1: 4, 0.15: 4, 0.2: 4},
    ROBUST_HALF: {0.0: 0.2, 0.05: 0.2, 0.1: 0.2, 0.15: 0.2, 0.2: 0.1},
    ONE: {0.0: 0.03, 0.05: 0.03, 0.1: 0.03, 0.15: 0.03, 0.2: 0.03},
    NMF_SUM: {0.0: 1, 0.05: 100, 0.1: 100, 0.15: 300, 0.2: 100},
}


@dataclass(frozen=True)
class Scenes:
    """Scenes with the same share of broken bands, and the number of iterations that everybody gets."""

    bad: float
    scenes: list[MixedScene]
    starts: list[np.ndarray]
    iterations: int


@dataclass(frozen=True)
class Found:
    """Spectra (K, bands), shares (N, K) and, of ours, the guidance."""

    endmembers: np.ndarray
    abundances: np.ndarray
    guidance: np.ndarray | None = None


def match_columns(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assign found columns to true ones so that the sum of the angles between them is least.

    Parameters
    ----------
    found, truth
        Columns of shapes (n, k) and (n, m), k >= m; none of them zero.

    Returns
    -------
    tuple
        ``order`` of shape (m,), such that ``found[:, order[j]]`` belongs to ``truth[:, j]``, and the angles in radians.
    """
    unit = lambda a: a / np.linalg.norm(a, axis=0).clip(1e-300)  # noqa: E731
    angles = np.arccos(np.clip(unit(truth).T @ unit(found), -1, 1))
    rows, order = linear_sum_assignment(angles)
    return order, angles[rows, order]


def spectra() -> np.ndarray:
    """Four of the library's spectra, shape (4, bands)."""
    library = leaves_and_soils(BANDS)
    return library.values[[library.names.index(name) for name in SPECTRA]]


def scenes(bad: float, seeds: list[int], size: int, iterations: int) -> Scenes:
    """Mix scenes, and choose the pixels that all who need a start begin from."""
    mixed = [mixed_scene(spectra(), size, blur=size / 32, bad=bad, random_state=seed) for seed in seeds]
    starts = []
    for scene in mixed:
        X = _pixels(scene)
        kept = X[:, ~noisy_bands(X)]
        starts.append(X[vca(kept, len(scene.endmembers))].numpy())
    return Scenes(bad, mixed, starts, iterations)


def crowd(pixels: int, seed: int) -> np.ndarray:
    """Pixels without neighbours, to be timed: shape (pixels, bands)."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(len(SPECTRA), 0.3), pixels)
    return np.maximum(shares @ spectra() + 0.01 * rng.standard_normal((pixels, BANDS)), 0)


def _each(unmix: Callable[[MixedScene, np.ndarray, int], Found]) -> Callable[[Scenes], list[Found]]:
    return lambda case: [unmix(scene, start, case.iterations) for scene, start in zip(case.scenes, case.starts)]


def robust(name: str, weight: float | None = None, *, leave_out: bool = False) -> Callable[[Scenes], list[Found]]:
    """Our class with one of its options, at its tuned weight; or without the noisy bands, at that for clean scenes."""

    def run(case: Scenes) -> list[Found]:
        scale = WEIGHTS[name][0.0 if leave_out else case.bad] if weight is None else weight

        def unmix(scene: MixedScene, start: np.ndarray, iterations: int) -> Found:
            X = _pixels(scene)
            kept = ~noisy_bands(X).numpy() if leave_out else np.ones(X.shape[1], dtype=bool)
            model = RobustUnmixing(
                len(start), init=start[:, kept], reg_scale=scale, max_iter=iterations, tol=0.0, **OPTIONS[name]
            )
            shares = _quietly(lambda: model.fit_transform(X[:, kept].numpy()))
            found = start.copy()
            found[:, kept] = model.endmembers_
            return Found(found, shares, model.guidance_)

        return _each(unmix)(case)

    return run


def nmf(weight: float | None = None) -> Callable[[Scenes], list[Found]]:
    """NMF by scikit-learn, given one more band that holds the sums of the shares near one."""

    def run(case: Scenes) -> list[Found]:
        row = WEIGHTS[NMF_SUM][case.bad] if weight is None else weight

        def unmix(scene: MixedScene, start: np.ndarray, iterations: int) -> Found:
            X = _pixels(scene)
            A = fcls(X, torch.from_numpy(start), weights=(~noisy_bands(X)).double()).numpy().clip(1e-3)
            model = NMF(len(start), init="custom", solver="mu", max_iter=iterations, tol=0)
            wide = np.hstack([X.numpy(), np.full((len(X), 1), row)])
            begin = np.hstack([start, np.full((len(start), 1), row)]).clip(1e-6)
            shares = _quietly(lambda: model.fit_transform(wide, W=A.copy(), H=begin))
            scale = model.components_[:, -1] / row  # what the sum is made of
            shares = shares * scale
            return Found(
                model.components_[:, :-1] / scale.clip(1e-12)[:, None],
                shares / shares.sum(1, keepdims=True).clip(1e-12),
            )

        return _each(unmix)(case)

    return run


def known(leave_out: bool) -> Callable[[Scenes], list[Found]]:
    """Fully constrained least squares for the spectra of the start."""

    def unmix(scene: MixedScene, start: np.ndarray, iterations: int) -> Found:
        X = _pixels(scene)
        weights = (~noisy_bands(X)).double() if leave_out else None
        return Found(start, fcls(X, torch.from_numpy(start), weights=weights).numpy())

    return _each(unmix)


def errors(case: Scenes, outcome: list[Found]) -> tuple[float, float]:
    """Root mean square error of the shares, and mean angle of the spectra over the bands that are whole."""
    both = []
    for scene, found in zip(case.scenes, outcome):
        whole = ~scene.bad_bands
        order, angles = match_columns(found.endmembers[:, whole].T, scene.endmembers[:, whole].T)
        off = found.abundances[:, order] - scene.abundances.reshape(-1, len(order))
        both.append((float(np.sqrt(np.square(off).mean())), float(angles.mean())))
    mean = np.mean(both, axis=0)
    return float(mean[0]), float(mean[1])


def purity(scene: MixedScene) -> np.ndarray:
    """Sparseness of the true shares, one number a pixel."""
    return hoyer(torch.from_numpy(scene.abundances.reshape(-1, scene.abundances.shape[-1])).mT).numpy()


def rank_correlation(case: Scenes, outcome: list[Found]) -> float | None:
    """Spearman's correlation of the guidance with the true purity."""
    if outcome[0].guidance is None:
        return None
    return float(np.mean([spearmanr(f.guidance, purity(s))[0] for s, f in zip(case.scenes, outcome)]))


def tune(size: int = 32, iterations: int = 150) -> Mapping[str, dict[float, float]]:
    """Find everybody's weight for every share of broken bands, by the same number of trials."""
    found: dict[str, dict[float, float]] = {}
    for bad in (0.0, 0.05, 0.1, 0.15, 0.2):
        case = scenes(bad, [100, 101], size, iterations)
        for name in (*OPTIONS, NMF_SUM):
            make = nmf if name == NMF_SUM else lambda w, name=name: robust(name, w)
            trials = [1, 3, 10, 30, 100, 300] if name == NMF_SUM else [0.03, 0.1, 0.2, 0.4, 1, 4]
            scores = [errors(case, make(w)(case))[0] for w in trials]
            found.setdefault(name, {})[bad] = trials[int(np.argmin(scores))]
    return found


def _pixels(scene: MixedScene) -> torch.Tensor:
    return torch.from_numpy(scene.cube.reshape(-1, scene.cube.shape[-1]))


def _quietly(run: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # everybody stops after the same number of iterations
        return run()
