"""Workers, some of them faulty, that learn digits together; and gradients whose aggregation is timed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hadamard.claims.distributed import flag_aggregator_rules as rules
from hadamard.data import digits
from hadamard.distributed import flag_aggregate
from hadamard.lowrank import gram, gram_coordinates

__all__ = [
    "BULYAN", "BYZFL", "DIRECT", "FAULTS", "GEOMETRIC", "LENGTHS", "MEAN", "MEDIAN", "MULTI", "NOISE", "OURS",
    "PLAIN", "TRIMMED", "UNIT", "Step", "Subspaces", "Training", "problem",
]  # fmt: skip

WORKERS, BATCH, HIDDEN = 15, 32, 32
OURS, PLAIN, UNIT, LENGTHS = "hadamard", "plain SVD", "lengths as published", "mean of directions"
MEAN, MEDIAN, GEOMETRIC = "mean", "median", "geometric median"
TRIMMED, MULTI, BULYAN = "trimmed mean (told f)", "multi-Krum (told f)", "Bulyan (told f)"

RULES: dict[str, Callable[[Tensor, int], Tensor]] = {
    OURS: lambda G, f: flag_aggregate(G).value,
    PLAIN: lambda G, f: flag_aggregate(G, max_iter=0).value,
    UNIT: lambda G, f: flag_aggregate(G, rescale="none").value,
    LENGTHS: lambda G, f: flag_aggregate(G, m=len(G)).value,
    MEAN: lambda G, f: G.mean(0),
    MEDIAN: rules.median,
    GEOMETRIC: rules.geometric_median,
    TRIMMED: rules.trimmed_mean,
    MULTI: rules.multi_krum,
    BULYAN: rules.bulyan,
}
DIRECT = "SVD of the gradients in each iteration"
BYZFL = {f"byzfl {name}": name for name in (MEDIAN, TRIMMED, MULTI)}


def _flipped(G: Tensor, f: int, generator: torch.Generator) -> Tensor:
    return -10 * G[:f]


def _random(G: Tensor, f: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(f, G.shape[1], generator=generator) - 1


def _empire(G: Tensor, f: int, generator: torch.Generator) -> Tensor:
    return -0.1 * G[f:].mean(0).expand(f, -1)


FAULTS = {"sign flip x10": _flipped, "random": _random, "fall of empires": _empire}
NOISE = "noisy inputs"


@dataclass(frozen=True)
class Training:
    """Fifteen workers, the first ``faulty`` of which send something else or see noise; a step for each aggregate."""

    fault: str
    faulty: int
    rates: tuple[float, ...]
    seeds: int
    steps: int

    def __call__(self, name: str) -> dict[str, Any]:
        """Test accuracy over the last fifth of the steps, mean over the seeds, at the rate that is best on images held
        back for that.
        """
        tried = {rate: [self._run(RULES[name], rate, seed) for seed in range(self.seeds)] for rate in self.rates}
        best = max(tried, key=lambda rate: sum(run[0] for run in tried[rate]))
        tests = [run[1] for run in tried[best]]
        return {"accuracy": sum(tests) / len(tests), "rate": best, "lowest": min(tests), "highest": max(tests)}

    def _run(self, rule: Callable[[Tensor, int], Tensor], rate: float, seed: int) -> tuple[float, float]:
        (x, y), *held_back = _digits()
        generator = torch.Generator().manual_seed(seed)
        params = [
            torch.randn(*shape, generator=generator) * (2 / shape[-1]) ** 0.5 if len(shape) == 2 else torch.zeros(shape)
            for shape in ((HIDDEN, 64), (HIDDEN,), (10, HIDDEN), (10,))
        ]
        found = []
        for step in range(self.steps):
            rows = torch.randint(len(x), (WORKERS, BATCH), generator=generator)
            seen, f = x[rows], self.faulty
            if self.fault == NOISE:
                seen[:f] += 3 * torch.randn(f, BATCH, 64, generator=generator)
            G = _gradients(params, seen, y[rows])
            if f and self.fault != NOISE:
                G[:f] = FAULTS[self.fault](G, f, generator)
            update = rule(G, f).split([p.numel() for p in params])
            for p, u in zip(params, update):
                p -= rate * u.view_as(p)
            if step >= 0.8 * self.steps:
                found.append([_accuracy(params, *data) for data in held_back])
        validation, test = (sum(values) / len(values) for values in zip(*found))
        return validation, test


@dataclass(frozen=True)
class Step:
    """Gradients of p workers with n numbers each: a common direction and noise, three (or a fifth) of them flipped.

    The noise is weaker in some directions than in others, so that one subspace is the best by far more than rounding.
    """

    n: int
    p: int = WORKERS
    max_iter: int = 5
    seed: int = 0
    faulty: int = field(init=False, default=3)

    @property
    def G(self) -> Tensor:
        """The gradients, drawn once."""
        return _gradients_drawn(self.n, self.p, self.seed)

    def __call__(self, name: str) -> Tensor:
        """The aggregate."""
        if name == OURS:
            return flag_aggregate(self.G, max_iter=self.max_iter, tol=0.0).value
        if name in BYZFL:
            return _byzfl()[BYZFL[name]](self.G)
        if name == DIRECT:
            return rules.decomposed(self.G, (self.p + 2) // 2, self.max_iter)
        return RULES[name](self.G, self.faulty)


@dataclass(frozen=True)
class Subspaces:
    """Largest angle between the plain decomposition's subspace and that of one iteration from a random start."""

    step: Step

    def __call__(self, name: str) -> dict[str, float]:
        """In radians; the published code's weights, in the coordinates of the gradients' span."""
        X, m = F.normalize(self.step.G, dim=1), (self.step.p + 2) // 2
        drawn = torch.rand(m, X.shape[1], generator=torch.Generator().manual_seed(1)) - 0.5
        explained = torch.linalg.solve_triangular(torch.linalg.cholesky(gram(drawn)), gram(drawn, X), upper=False)
        weights = 1 / (1 - explained.square().sum(0) + 1e-7).sqrt()
        Z, _ = gram_coordinates(gram(X))
        plain, started = (torch.linalg.eigh(Z.T @ (w[:, None] * Z))[1][:, -m:] for w in (weights**0, weights))
        outside = started - plain @ (plain.T @ started)
        return {"angle": float(torch.linalg.matrix_norm(outside, 2).clamp(max=1).asin())}


def problem(
    seed: int, faulty: tuple[int, ...], noisy: tuple[int, ...], rates: tuple[float, ...], seeds: int,
    steps: int, sizes: tuple[int, ...], workers: tuple[int, ...], n_workers: int,
) -> Mapping[str, Any]:  # fmt: skip
    """The cases: learning without faults, under each fault, on noisy inputs; steps by size, workers and iterations."""
    cases: dict[str, Any] = {"no fault": Training("random", 0, rates, seeds, steps)}
    cases |= {f"{fault}, f = {f}": Training(fault, f, rates, seeds, steps) for fault in FAULTS for f in faulty}
    cases |= {f"{NOISE}, f = {f}": Training(NOISE, f, rates, seeds, steps) for f in noisy}
    cases |= {f"n = {n}": Step(n, seed=seed) for n in sizes}
    cases |= {f"p = {p}": Step(n_workers, p, seed=seed) for p in workers}
    cases |= {f"iterations = {i}": Step(sizes[-1], max_iter=i, seed=seed) for i in (1, 20)}
    return cases | {"one iteration": Subspaces(Step(1_000_000, seed=seed))}


def _gradients(params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The gradient of each worker's mean cross-entropy, (p, n), by hand: the network has one hidden layer."""
    W, b, V, c = params
    before = x @ W.T + b
    hidden = before.relu()
    back = ((hidden @ V.T + c).softmax(-1) - F.one_hot(y, 10)) / x.shape[1]
    inner = (back @ V) * (before > 0)
    pieces = ((inner.mT @ x).flatten(1), inner.sum(1), (back.mT @ hidden).flatten(1), back.sum(1))
    return torch.cat(pieces, 1)


def _accuracy(params: list[Tensor], x: Tensor, y: Tensor) -> float:
    W, b, V, c = params
    return 100 * float((((x @ W.T + b).relu() @ V.T + c).argmax(1) == y).float().mean())


@cache
def _digits() -> list[tuple[Tensor, Tensor]]:
    """1000 to learn from, 347 to choose the rate by and 450 to be tested on, scaled to mean 0 and variance 1."""
    data = digits()
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))
    x, y = data.images.flatten(1)[order], data.labels[order]
    x = (x - x[:1000].mean()) / x[:1000].std()
    return [(x[part], y[part]) for part in (slice(1000), slice(1000, 1347), slice(1347, None))]


@cache
def _gradients_drawn(n: int, p: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(p, p, generator=generator)).Q
    G = turn @ (torch.logspace(0, -1, p)[:, None] * torch.randn(p, n, generator=generator))
    G += torch.randn(n, generator=generator)
    G[: max(1, p // 5)] *= -1
    return G


@cache
def _byzfl() -> dict[str, Callable[[Tensor], Tensor]]:
    import byzfl

    return {MEDIAN: byzfl.Median(), TRIMMED: byzfl.TrMean(3), MULTI: byzfl.MultiKrum(3)}
