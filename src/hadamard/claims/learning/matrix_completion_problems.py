"""What matrix completion is tried on: made matrices of low rank, and ratings of films."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hadamard.data import movielens_100k
from hadamard.learning import complete
from hadamard.learning._regressions import Observations, conjugate, exact, observe

__all__ = ["ACCURACY", "INJECTED", "MOVIES", "PHASE", "SWEEPS", "Grid", "Ratings", "problem"]
ACCURACY, SWEEPS, INJECTED, PHASE, MOVIES = (
    "accuracy, k=20", "sweeps to 1e-6", "injected error", "phase transition", "MovieLens-100k"
)  # fmt: skip
EPSILONS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class _Half:
    """Half a sweep: all columns of one factor from a given other one, cold."""

    seen: Observations
    design: Tensor

    def solve(self, solver: str) -> Tensor:
        zero, ridge = torch.zeros_like(self.design), self.design.new_zeros(len(self.design))
        args = (self.seen.rows, self.design, zero, self.seen.values, ridge)
        return (conjugate(*args, 3) if solver == "cg" else exact(*args))[0]

    def measures(self, found: Tensor) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class _Made:
    """An exactly low-rank matrix, observed at random positions."""

    truth: Tensor
    indices: Tensor
    rank: int
    sweeps: int

    def error(self, found: Tensor) -> float:
        """Of all entries, relative."""
        return float((found - self.truth).norm() / self.truth.norm())

    def fit(self, solver: str, tol: float, **options: Any) -> Any:
        values, shape = self.truth[self.indices[0], self.indices[1]], (len(self.truth), len(self.truth))
        return complete(self.indices, values, shape, self.rank, solver=solver, tol=tol, **options)

    def solve(self, solver: str) -> list[float]:
        """Error of the whole matrix after each sweep."""
        found: Any = "spectral"
        errors: list[float] = []
        while len(errors) < self.sweeps and (not errors or errors[-1] > 1e-6):
            found = self.fit(solver, 0.0, max_iter=1, init=found)
            errors.append(self.error(found.to_dense()))
        return errors

    def measures(self, errors: list[float]) -> dict[str, float]:
        needed = {"sweeps to 1e-6": float(len(errors))} if errors[-1] <= 1e-6 else {}
        return {"error": errors[-1], **needed}


@dataclass(frozen=True)
class _Injected(_Made):
    """Error that is left where every solve, exact, is followed by a relative error in each row."""

    def solve(self, solver: str) -> list[float]:
        """Error of the whole matrix after all sweeps, for each injected error."""
        n = len(self.truth)
        seen = observe(self.indices, self.truth[self.indices[0], self.indices[1]], (n, n))
        zero, ridge, floors = self.truth.new_zeros(n, self.rank), self.truth.new_zeros(n), []
        for epsilon in EPSILONS:
            generator = torch.Generator().manual_seed(0)
            U = torch.linalg.svd(self.truth).U[:, : self.rank]
            for _ in range(self.sweeps):
                V = _perturbed(exact(seen.cols, U, zero, seen.values[seen.to_cols], ridge)[0], epsilon, generator)
                V = torch.linalg.qr(V).Q
                last = _perturbed(exact(seen.rows, V, zero, seen.values, ridge)[0], epsilon, generator)
                U = torch.linalg.qr(last).Q
            floors.append(self.error(last @ V.T))
        return floors

    def measures(self, errors: list[float]) -> dict[str, float]:
        return {"slope of the error floor": float(np.polyfit(np.log(EPSILONS), np.log(errors), 1)[0])}


@dataclass(frozen=True)
class Grid:
    """Matrices of which a growing share is observed, several of each share."""

    shares: Sequence[float]
    problems: Sequence[Sequence[_Made]]

    def solve(self, solver: str) -> list[float]:
        """Complete them all, and count."""
        return self.recovered([[m.fit(solver, 1e-7, max_iter=m.sweeps).to_dense() for m in ms] for ms in self.problems])

    def recovered(self, found: Sequence[Sequence[Tensor]]) -> list[float]:
        """Share of the matrices that came back with a root mean square error below 1e-4."""
        errors = [
            [float((x - m.truth).square().mean().sqrt()) for x, m in zip(xs, ms)]
            for xs, ms in zip(found, self.problems)
        ]
        return [float(np.mean(np.array(row) < 1e-4)) for row in errors]

    def measures(self, recovered: list[float]) -> dict[str, float]:
        """Share of observed entries at which half of the matrices come back."""
        rates = np.maximum.accumulate(recovered)
        half = float(np.interp(0.5, rates, self.shares)) if rates[-1] >= 0.5 else float("inf")
        return {"half of them recovered at": half}


@dataclass(frozen=True)
class Ratings:
    """Nine tenths of the ratings to fit, one tenth to predict."""

    indices: Tensor
    values: Tensor
    unseen: Tensor
    answers: Tensor
    shape: tuple[int, int]
    surprise: Mapping[str, float]

    def solve(self, solver: str) -> Tensor:
        """Predictions; rank, ridge, sweeps and steps of each solver were chosen on a tenth of the ratings to fit."""
        how: dict[str, Any] = (
            {"reg": 8.0, "max_iter": 2, "inner_steps": 2} if solver == "cg" else {"reg": 12.0, "max_iter": 3}
        )
        found = complete(self.indices, self.values, self.shape, 10, solver=solver, biases=True, **how)
        return found.entries(self.unseen)

    def measures(self, predicted: Tensor) -> dict[str, float]:
        """Root mean square error of the predictions, clipped to the scale of the ratings."""
        return {"error": float((predicted.clamp(1, 5) - self.answers).square().mean().sqrt())}


def problem(
    seed: int, n: int, ranks: Sequence[int], small: int, grid: int, k: int, shares: Sequence[float], trials: int,
    surprise: Mapping[str, float], device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Cost in the rank, accuracy at equal sweeps, robustness, the phase transition, and real ratings."""
    cases: dict[str, Any] = {f"half a sweep, k={r}": _half(n, r, seed, device) for r in ranks}
    cases[ACCURACY] = _made(small, 20, 0.25, seed, 12, device)
    cases[SWEEPS] = _made(300, 5, 0.3, seed, 60, device)
    cases[INJECTED] = _made(200, 5, 0.3, seed + 1, 8, device, _Injected)
    sweeps = 40 if grid < 300 else 200
    cases[PHASE] = Grid(
        shares, [[_made(grid, k, p, seed + 100 * t, sweeps, device) for t in range(trials)] for p in shares]
    )
    table, test = movielens_100k(), 10_000
    order = torch.randperm(len(table.ratings), generator=torch.Generator().manual_seed(seed))
    indices = torch.from_numpy(np.stack([table.users, table.items]))[:, order].to(device)
    values = torch.from_numpy(table.ratings).float()[order].to(device)
    cases[MOVIES] = Ratings(
        indices[:, test:], values[test:], indices[:, :test], values[:test], table.shape, surprise
    )  # fmt: skip
    return cases


def _made(n: int, k: int, p: float, seed: int, sweeps: int, device: str, kind: type[_Made] = _Made) -> _Made:
    generator = torch.Generator().manual_seed(seed)
    U, V = torch.randn(2, n, k, generator=generator, dtype=torch.float64)
    seen = (torch.rand(n, n, generator=generator) < p).nonzero().T
    return kind((U @ V.T).to(device), seen.to(device), k, sweeps)


def _half(n: int, k: int, seed: int, device: str) -> _Half:
    made = _made(n, k, 0.25, seed + k, 1, device)
    seen = observe(made.indices, made.truth[made.indices[0], made.indices[1]], (n, n))
    start = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    case = _Half(seen, torch.linalg.qr(start.to(device)).Q)
    seen.rows.padded  # the groups of rows that the exact solver needs are made once  # noqa: B018
    case.solve("cg")  # the first touch of the memory is not timed
    return case


def _perturbed(X: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(X.shape, generator=generator, dtype=X.dtype).to(X)
    return X + epsilon * noise * X.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
