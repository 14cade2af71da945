"""What the claim on M-FAC compares: inverses, their cost, and optimizers on digits and on a bad scale."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.data import digits
from hadamard.lowrank import combine, gram, gram_cholesky
from hadamard.optim import MFAC, InverseFisher

__all__ = ["ADAM", "AGAIN", "DENSE", "OURS", "PRODUCT", "SGD", "Inverse", "Learning", "Scales", "Static", "Step",
           "accuracy", "batches", "costs", "inverses", "network", "scales", "split_digits"]  # fmt: skip

OURS, DENSE, AGAIN, SGD, ADAM = "M-FAC", "dense inverse", "all products in each step", "SGD with momentum", "Adam"
PRODUCT = "one product with the inverse"
# The same five learning rates for each, and two values of a second setting: damp, momentum, beta of the squares.
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
DIGITS = {OURS: (RATES, (1e-1, 1e-2)), SGD: (RATES, (0.9, 0.99)), ADAM: (RATES, (0.999, 0.99))}
SCALES = {
    OURS: ((3e-3, 1e-2, 3e-2, 1e-1, 3e-1), (1e-1, 1e-2)),
    SGD: ((1e-7, 3e-7, 1e-6, 3e-6, 1e-5), (0.9, 0.99)),
    ADAM: (RATES, (0.999, 0.99)),
}


def _optimizer(name: str, net: nn.Module, rate: float, second: float, window: int = 32) -> torch.optim.Optimizer:
    """All with momentum, as the paper's own experiments."""
    if name == OURS:
        return MFAC(net.parameters(), rate, momentum=0.9, ngrads=window, damp=second)
    if name == SGD:
        return torch.optim.SGD(net.parameters(), rate, momentum=second)
    return torch.optim.Adam(net.parameters(), rate, betas=(0.9, second))


@dataclass(frozen=True)
class Inverse:
    """Products of the inverse Fisher matrix of m gradients with vectors, in double precision."""

    gradients: Tensor
    vectors: Tensor
    damp: float = 1e-3

    def __call__(self, name: str) -> Tensor:
        """The products."""
        if name == OURS:
            return InverseFisher(self.gradients, self.damp)(self.vectors)
        m, d = self.gradients.shape
        fisher = self.damp * torch.eye(d, dtype=torch.float64) + self.gradients.T @ self.gradients / m
        return torch.linalg.solve(fisher, self.vectors.T).T


@dataclass(frozen=True)
class Step:
    """One step of a window that is full."""

    d: int
    m: int

    def __call__(self, name: str) -> Tensor:
        """The parameters after the step; only the step itself is to be timed, so what it needs lies ready."""
        parameter, optimizer = _window(self.d, self.m)
        if name == OURS:
            optimizer.step()
            return parameter.detach()
        shared = optimizer.state["window 0"]
        G, slot = shared["gradients"], shared["count"] % self.m
        G[slot] = parameter.grad
        unit = torch.zeros(self.m, 1, dtype=torch.float64)
        unit[slot] = self.m
        K = gram(G)
        shared["gram"].copy_(K)
        shared["count"] += 1
        direction = combine(torch.cholesky_solve(unit, gram_cholesky(K, self.m * 1e-3))[:, 0], G)
        parameter.data.sub_(direction, alpha=1e-3)
        return parameter.detach()


@cache
def _window(d: int, m: int) -> tuple[nn.Parameter, MFAC]:
    """A parameter with a gradient, and a window that is full of others."""
    generator = torch.Generator().manual_seed(d + m)
    parameter = nn.Parameter(torch.zeros(d))
    optimizer = MFAC([parameter], ngrads=m, damp=1e-3)
    parameter.grad = torch.randn(d, generator=generator)
    optimizer.step()
    shared = optimizer.state["window 0"]
    shared["gradients"].normal_(generator=generator)
    shared["gram"].copy_(gram(shared["gradients"]))
    return parameter, optimizer


@dataclass(frozen=True)
class Static:
    """The inverse Fisher matrix of m gradients, set up or applied once."""

    d: int
    m: int

    def __call__(self, name: str) -> Tensor:
        """Its product with one vector; timed is the set-up, or the product alone."""
        gradients, inverse = _gradients(self.d, self.m)
        x = gradients[0]
        return inverse(x) if name == PRODUCT else InverseFisher(gradients, 1e-3).W[0, -1, :1]


@cache
def _gradients(d: int, m: int) -> tuple[Tensor, InverseFisher]:
    gradients = torch.randn(m, d, generator=torch.Generator().manual_seed(d + m))
    return gradients, InverseFisher(gradients, 1e-3)


@dataclass(frozen=True)
class Learning:
    """A small network on digits: every optimizer at that of ten settings with the least mean training loss."""

    epochs: int
    seeds: int

    def __call__(self, name: str) -> dict[str, Any]:
        """Losses and accuracies at the best setting, averaged over the seeds."""
        tried = {
            setting: [self._run(name, *setting, seed) for seed in range(self.seeds)]
            for setting in product(*DIGITS[name])
        }
        best = min(tried, key=lambda setting: sum(run["loss"] for run in tried[setting]))
        runs = tried[best]
        return {
            "training loss": sum(run["loss"] for run in runs) / len(runs),
            "test accuracy": sum(run["accuracy"] for run in runs) / len(runs),
            "rate": best[0],
            "second setting": best[1],
            "milliseconds a step": min(run["milliseconds"] for run in runs),
            "curve": runs[0]["curve"],
        }

    def _run(self, name: str, rate: float, second: float, seed: int) -> dict[str, Any]:
        (x, y), _, test = split_digits()
        net = network(seed)
        optimizer = _optimizer(name, net, rate, second)
        curve: list[float] = []
        start = perf_counter()
        for batch in batches(len(x), 32, self.epochs, seed):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x[batch]), y[batch])
            if not bool(loss.isfinite()):
                return {"loss": float("inf"), "accuracy": 10.0, "curve": curve, "milliseconds": float("inf")}
            loss.backward()
            optimizer.step()
            curve.append(float(loss.detach()))
        spent = 1e3 * (perf_counter() - start) / len(curve)
        with torch.no_grad():
            final = float(F.cross_entropy(net(x), y))
        return {"loss": final, "accuracy": accuracy(net, *test), "curve": curve, "milliseconds": spent}


@dataclass(frozen=True)
class Scales:
    """Logistic regressions on features whose scales go from 1 to 1000, 200 steps of batches of 32."""

    problems: tuple[tuple[Tensor, Tensor], ...]
    window: int

    def __call__(self, name: str) -> dict[str, Any]:
        """The mean loss over the problems, at the best setting for all of them."""
        tried = {
            setting: torch.tensor([self._run(name, *setting, *problem) for problem in self.problems])
            for setting in product(*SCALES[name])
        }
        best = min(tried, key=lambda setting: float(tried[setting][:, -1].mean()))
        curve = tried[best].mean(0)
        return {"loss": float(curve[-1]), "curve": curve.tolist(), "rate": best[0], "second setting": best[1]}

    def _run(self, name: str, rate: float, second: float, x: Tensor, y: Tensor) -> list[float]:
        net = nn.Linear(x.shape[1], 1)
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        optimizer = _optimizer(name, net, rate, second, self.window)
        curve = []
        for batch in batches(len(x), 32, 1 + 200 * 32 // len(x), 0, 200):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(net(x[batch])[:, 0], y[batch]).backward()
            optimizer.step()
            with torch.no_grad():
                curve.append(float(F.binary_cross_entropy_with_logits(net(x)[:, 0], y)))
        return [v if v == v else float("inf") for v in curve]


def inverses(seed: int, d: int) -> dict[str, Inverse]:
    """Products of 1, 16 and 64 gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(m: int) -> Tensor:
        return torch.randn(m, d, dtype=torch.float64, generator=generator)

    return {f"{m} gradients": Inverse(draw(m), draw(3)) for m in (1, 16, 64)}


def costs(sizes: tuple[int, ...], wide: int, static: tuple[int, ...]) -> Mapping[str, Step | Static]:
    """Steps and set-ups for several numbers of parameters and of gradients."""
    windows = (16, 64, 256)
    cases: dict[str, Step | Static] = {f"d = {d}": Step(d, 32) for d in sizes}
    cases |= {f"m = {m}": Step(wide, m) for m in windows}
    cases |= {f"static, d = {d}": Static(d, 32) for d in static}
    cases |= {f"static, m = {m}": Static(static[0], m) for m in windows}
    for case in cases.values():  # so that it lies ready when it is timed
        _window(case.d, case.m) if isinstance(case, Step) else _gradients(case.d, case.m)
    return cases


def scales(seed: int, count: int, window: int) -> Scales:
    """Separable classes: their labels have no noise, so that the loss can come down to 0."""
    problems = []
    for k in range(count):
        generator = torch.Generator().manual_seed(seed + k)
        x = torch.randn(512, 20, generator=generator)
        y = (x @ torch.randn(20, generator=generator) > 0).float()
        problems.append((x * torch.logspace(0, 3, 20), y))
    return Scales(tuple(problems), window)


def network(seed: int) -> nn.Sequential:
    """64 inputs, 64 and 64 hidden, 10 classes."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def accuracy(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """In percent."""
    with torch.no_grad():
        return 100 * float((net(x).argmax(1) == y).float().mean())


@cache
def split_digits() -> list[tuple[Tensor, Tensor]]:
    """1097 to learn from, 250 to choose settings by and 450 to be tested on; scaled to mean 0 and variance 1."""
    data = digits()
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))
    x, y = data.images.flatten(1)[order], data.labels[order]
    x = (x - x[:1097].mean()) / x[:1097].std()
    return list(zip(x.split([1097, 250, 450]), y.split([1097, 250, 450])))


def batches(n: int, size: int, epochs: int, seed: int, most: int | None = None) -> Iterator[Tensor]:
    """Indices of shuffled batches."""
    generator, given = torch.Generator().manual_seed(seed), 0
    for _ in range(epochs):
        for batch in torch.randperm(n, generator=generator).split(size):
            if given == most:
                return
            given += 1
            yield batch
