"""What sparse Walsh-Hadamard transforms are tried on: known spectra, and a tree on real patients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hadamard.spectral import fwht
from hadamard.transforms.spright import SparseSpectrum

__all__ = ["EXACT", "EXPLICIT", "Draws", "Spectrum", "Tree", "problem", "true_spectrum"]

EXACT = "24 bits, no noise"
RATIOS = (0.30, 0.36, 0.39, 0.42, 0.45, 0.50)  # bins of one group per coefficient
EXPLICIT = 26  # bits up to which contenders may write down all 2^n values


@dataclass
class Spectrum:
    """A black box with a known sparse spectrum."""

    n: int
    indices: Tensor
    values: Tensor
    noise: float
    seed: int
    table: Tensor | None = None

    def __call__(self, points: Tensor) -> Tensor:
        """Its values at rows of bits, with noise where it has some."""
        signs = 1 - 2 * (points.float() @ self.indices.float().T % 2)
        exact = signs.double() @ self.values
        if not self.noise:
            return exact
        g = torch.Generator().manual_seed(self.seed + 1)
        return exact + self.noise * torch.randn(len(points), dtype=torch.float64, generator=g)


@dataclass
class Draws:
    """Many spectra and their tables, for the share that is recovered, at one setting of the method."""

    spectra: list[Spectrum]
    x: float  # where it stands on the axis of its figure
    options: dict[str, Any]


@dataclass
class Tree:
    """A regression tree on real patients, as a black box of bits, and points to test on."""

    n: int
    model: Any
    test: np.ndarray
    truth: np.ndarray

    def __call__(self, points: Tensor) -> Tensor:
        """Predictions at rows of bits."""
        return torch.from_numpy(self.model.predict(points.numpy().astype(np.float32)))


def true_spectrum(case: Spectrum, dtype: torch.dtype) -> SparseSpectrum:
    """What should be found."""
    return SparseSpectrum(
        value=case.values.to(dtype), iterations=0, residual=0.0, converged=True, indices=case.indices, n_samples=0,
        unresolved_bins=0, threshold=0.0,
    )  # fmt: skip


def spectrum(n: int, sparsity: int, seed: int, noise: float = 0.0, unit: bool = False, table: bool = False) -> Spectrum:
    """Draw distinct indices and coefficients."""
    g = torch.Generator().manual_seed(seed)
    indices = torch.unique(torch.rand(sparsity, n, generator=g) < 0.5, dim=0)
    values = torch.randn(len(indices), dtype=torch.float64, generator=g)
    case = Spectrum(n, indices, values.sign() if unit else values, noise, seed)
    if table:
        case.table = fwht(true_spectrum(case, torch.float32).to_dense())
    return case


def tree(seed: int) -> Tree:
    """Fit a tree of depth 4 to the breast-cancer table, each of its 30 columns cut at the median."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.tree import DecisionTreeRegressor

    X, y = load_breast_cancer(return_X_y=True)
    bits = (np.median(X, axis=0) < X).astype(np.float32)
    model = DecisionTreeRegressor(max_depth=4, random_state=seed).fit(bits, y)
    test = np.random.default_rng(seed).integers(0, 2, (4000, bits.shape[1]))
    return Tree(bits.shape[1], model, test, model.predict(test.astype(np.float32)))


def problem(
    seed: int, dense: list[int], wide: list[int], trials: int, bins: int, draws: int
) -> Mapping[str, Spectrum | Draws | Tree]:
    """Spectra of 60 coefficients over more and more bits, the tree, and settings with many draws each."""
    cases: dict[str, Any] = {f"{n} bits": spectrum(n, 60, seed + n, table=n <= EXPLICIT) for n in [*dense, *wide]}
    cases["tree"] = tree(seed)
    exact = [spectrum(24, 60, seed + 1000 + i) for i in range(trials)]
    cases[EXACT] = Draws(exact, 0, {"sparsity": 60})
    for n, noise, repeats in [(16, s, 6) for s in (0.1, 0.5, 1.0, 3.0)] + [(16, 4.0, r) for r in (1, 2, 3, 4, 6)] + [
        (n, 1.0, 6) for n in (14, 20, 24)
    ]:  # fmt: skip
        noisy = [spectrum(n, 32, seed + 2000 + i, noise=noise, unit=True) for i in range(trials)]
        options = {"bins": 6, "method": "nso", "repeats": repeats, "noise_std": noise}
        cases[f"{n} bits, noise {noise:g}, R = {repeats}"] = Draws(noisy, repeats, options)
    for ratio in RATIOS:
        many = [spectrum(18, round(2**bins / ratio), seed + 3000 + i, table=True) for i in range(draws)]
        cases[f"{ratio:.2f} bins per coefficient"] = Draws(many, ratio, {"bins": bins, "dtype": torch.float32})
    return cases
