"""Digits as targets of a normal distribution: how well solvers of semi-discrete transport share it out."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor

from hadamard.transport import semi_discrete_ot
from hadamard.transport.power_diagram import assign

__all__ = ["ASGD", "POT", "DigitTargets", "Rate"]

POT, ASGD = "POT, solve_semidiscrete", "POT, averaged SGD"


@dataclass
class DigitTargets:
    """Digits as targets of a normal distribution; what a solver finds is judged by its heights."""

    target: Tensor
    sources: Tensor
    samples: int
    seconds: float = field(default=0.0)

    def __call__(self, kind: str) -> dict[str, float]:
        """Judge ours, or the best setting of a peer."""
        if kind not in (POT, ASGD):
            start = time.perf_counter()
            heights = semi_discrete_ot(self.target, tol=0.05).heights
            self.seconds = time.perf_counter() - start
            return self._judged(heights)
        found = [self._judged(torch.from_numpy(p) - self.target.double().square().sum(1) / 2) for p in self._peer(kind)]
        return min(found, key=lambda f: f["error"])

    def _peer(self, kind: str) -> list[np.ndarray]:
        """Potentials by each setting of a peer, in as many seconds as ours took."""
        y, rng = self.target.double().numpy(), np.random.default_rng(0)
        if kind == POT:

            def solve(iterations: int, batch_size: int, **options: Any) -> np.ndarray:
                def draw(count: int) -> np.ndarray:
                    return rng.normal(size=(count, y.shape[1]))

                return ot.semidiscrete.solve_semidiscrete(
                    y, draw, max_iter=iterations, batch_size=batch_size, **options
                ) / 2  # fmt: skip

            settings: list[dict[str, Any]] = [
                {"batch_size": 32}, {"batch_size": 1000}, {"batch_size": 1000, "decreasing_reg": False}
            ]  # fmt: skip
            return [self._in_time(partial(solve, **s)) for s in settings]
        x = rng.normal(size=(5 * len(y), y.shape[1]))
        M, a, b = ot.dist(x, y) / 2, np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))

        def ascend(iterations: int, reg: float) -> np.ndarray:
            return ot.stochastic.averaged_sgd_entropic_transport(a, b, M, reg, iterations, random_state=0)

        return [
            self._in_time(partial(ascend, reg=reg))
            for reg in (0.1, 1.0)
        ]  # fmt: skip

    def _in_time(self, solve: Callable[[int], np.ndarray]) -> np.ndarray:
        solve(3)
        start = time.perf_counter()
        solve(20)
        return solve(max(20, int(20 * self.seconds / (time.perf_counter() - start))))

    def _judged(self, heights: Tensor) -> dict[str, float]:
        """Errors of the masses, and the cost of these sources beside that of the optimal plan."""
        y, heights = self.target, heights.float()
        generator, n = torch.Generator().manual_seed(7), len(y)
        counts = torch.zeros(n, dtype=torch.int64)
        for _ in range(self.samples // 20_000):
            x = torch.randn(20_000, y.shape[1], generator=generator)
            counts += torch.bincount(assign(x, y, heights)[1], minlength=n)
        relative = counts.double() / counts.sum() * n - 1
        moved = y[assign(self.sources, y, heights)[1]]
        return {
            "error": float(relative.abs().mean()),
            "worst": float(relative.abs().max()),
            "cost": float((self.sources - moved).square().sum(1).mean()),
        }

    @property
    def least(self) -> float:
        """The cost of the optimal plan from these sources."""
        m, n = len(self.sources), len(self.target)
        M = torch.cdist(self.sources.double(), self.target.double()).square().numpy()
        return float(ot.emd2(np.full(m, 1 / m), np.full(n, 1 / n), M, numItermax=10**7))

    @property
    def at_random(self) -> float:
        """The mean cost of all pairs."""
        return float(torch.cdist(self.sources.double(), self.target.double()).square().mean())


@dataclass(frozen=True)
class Rate:
    """The mass error after so many iterations."""

    target: Tensor
    iterations: tuple[int, ...]
    samples: int

    def __call__(self, kind: str) -> dict[int, float]:
        """Solve it once for each number."""
        found = {}
        for steps in self.iterations:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                T = semi_discrete_ot(self.target, tol=1e-9, max_iter=steps)
            found[steps] = float((T.masses(self.samples) - T.weights).abs().sum())
        return found
