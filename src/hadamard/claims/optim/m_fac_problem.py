"""What the claim on M-FAC compares: inverses, steps, optimizers on digits and on a bad scale, and pruning."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from hadamard.data import digits
from hadamard.lowrank import combine, gram, gram_cholesky
from hadamard.optim import MFAC, InverseFisher, loss_gradients, prune_obs

__all__ = ["ADAM", "AGAIN", "DENSE", "DIAGONAL", "MAGNITUDE", "OURS", "PAPER", "SGD", "Inverse", "Learning", "Pruning",
           "Scales", "Step", "problem"]  # fmt: skip

OURS, DENSE, AGAIN, SGD, ADAM = "M-FAC", "dense inverse", "all products in each step", "SGD with momentum", "Adam"
PAPER, MAGNITUDE, DIAGONAL = "M-FAC, the paper's correction", "magnitude", "diagonal Fisher"
# Five learning rates and two values of a second setting for each: damp, momentum, beta of the squares.
DIGITS = {
    OURS: ((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-2, 1e-3)),
    SGD: ((3e-3, 1e-2, 3e-2, 1e-1, 3e-1), (0.9, 0.99)),
    ADAM: ((3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (0.999, 0.99)),
}
SCALES = {
    OURS: ((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-1, 1.0)),
    SGD: ((1e-7, 3e-7, 1e-6, 3e-6, 1e-5), (0.9, 0.99)),
    ADAM: ((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (0.999, 0.99)),
}


def _optimizer(name: str, net: nn.Module, rate: float, second: float) -> torch.optim.Optimizer:
    if name == OURS:
        return MFAC(net.parameters(), rate, ngrads=32, damp=second)
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
class Learning:
    """A small network on digits: every optimizer at ten settings, the one with the least training loss reported."""

    epochs: int
    seeds: int

    def __call__(self, name: str) -> dict[str, Any]:
        """Losses and accuracies at the best setting, averaged over the seeds."""
        tried = {setting: self._run(name, *setting, 0) for setting in product(*DIGITS[name])}
        best = min(tried, key=lambda setting: tried[setting]["loss"])
        runs = [tried[best], *(self._run(name, *best, seed) for seed in range(1, self.seeds))]
        return {
            "training loss": sum(run["loss"] for run in runs) / len(runs),
            "test accuracy": sum(run["accuracy"] for run in runs) / len(runs),
            "rate": best[0],
            "second setting": best[1],
            "milliseconds a step": min(run["milliseconds"] for run in runs),
            "curve": runs[0]["curve"],
        }

    def _run(self, name: str, rate: float, second: float, seed: int) -> dict[str, Any]:
        x, y, test_x, test_y = _digits()
        net = network(seed)
        optimizer = _optimizer(name, net, rate, second)
        curve: list[float] = []
        start = perf_counter()
        for batch in _batches(len(x), 32, self.epochs, seed):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x[batch]), y[batch])
            if not bool(loss.isfinite()):
                return {"loss": float("inf"), "accuracy": 10.0, "curve": curve}
            loss.backward()
            optimizer.step()
            curve.append(float(loss.detach()))
        spent = 1e3 * (perf_counter() - start) / len(curve)
        with torch.no_grad():
            final = float(F.cross_entropy(net(x), y))
        return {"loss": final, "accuracy": accuracy(net, test_x, test_y), "curve": curve, "milliseconds": spent}


@dataclass(frozen=True)
class Scales:
    """Logistic regression on features whose scales go from 1 to 1000, 200 steps of batches of 32."""

    x: Tensor
    y: Tensor

    def __call__(self, name: str) -> dict[str, Any]:
        """The loss at the best setting."""
        curves = [self._run(name, *setting) for setting in product(*SCALES[name])]
        best = min(curves, key=lambda curve: curve[-1])
        return {"loss": best[-1], "curve": best}

    def _run(self, name: str, rate: float, second: float) -> list[float]:
        net = nn.Linear(self.x.shape[1], 1)
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        optimizer = _optimizer(name, net, rate, second)
        curve = []
        for batch in _batches(len(self.x), 32, 1 + 200 * 32 // len(self.x), 0, 200):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(net(self.x[batch])[:, 0], self.y[batch]).backward()
            optimizer.step()
            with torch.no_grad():
                curve.append(float(F.binary_cross_entropy_with_logits(net(self.x)[:, 0], self.y)))
        return [v if v == v else float("inf") for v in curve]


@dataclass(frozen=True)
class Pruning:
    """A trained network pruned at once, to several sparsities; no training afterwards."""

    sparsities: tuple[float, ...]
    seeds: int
    damp: float = 1e-5

    def __call__(self, name: str) -> dict[str, Any]:
        """Test accuracies by sparsity, averaged over the seeds, and that of the dense network."""
        *_, test_x, test_y = _digits()
        found = {
            s: sum(accuracy(self._pruned(name, s, seed), test_x, test_y) for seed in range(self.seeds)) / self.seeds
            for s in self.sparsities
        }
        dense = sum(accuracy(_trained(seed), test_x, test_y) for seed in range(self.seeds)) / self.seeds
        return {"accuracies": found, "dense": dense}

    def _pruned(self, name: str, sparsity: float, seed: int) -> nn.Module:
        net = _trained(seed)
        weights = [(module, "weight") for module in net.modules() if isinstance(module, nn.Linear)]
        x, y, *_ = _digits()
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:256]
        samples = [(x[i : i + 1], y[i : i + 1]) for i in rows.tolist()]
        if name == MAGNITUDE:
            prune.global_unstructured(weights, prune.L1Unstructured, amount=sparsity)
        elif name == DIAGONAL:
            squares = loss_gradients(net, samples, F.cross_entropy, [m.weight for m, _ in weights]).square().mean(0)
            parts = squares.split([m.weight.numel() for m, _ in weights])
            scores = {
                (m, n): m.weight.detach().square() * (part.view_as(m.weight) + self.damp)
                for (m, n), part in zip(weights, parts)
            }
            prune.global_unstructured(weights, prune.L1Unstructured, importance_scores=scores, amount=sparsity)
        else:
            correction = "independent" if name == PAPER else "joint"
            prune_obs(net, samples, F.cross_entropy, sparsity, damp=self.damp, correction=correction)
        return net


def problem(
    seed: int, d: int, sizes: tuple[int, ...], wide: tuple[int, int], epochs: int, seeds: int,
    sparsities: tuple[float, ...],
) -> Mapping[str, Any]:  # fmt: skip
    """The cases: inverses of 1, 16 and 64 gradients, steps, digits, bad scales, pruning."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    cases: dict[str, Any] = {f"{m} gradients": Inverse(draw(m, d), draw(3, d)) for m in (1, 16, 64)}
    cases |= {f"d = {n}": Step(n, 32) for n in sizes}
    cases |= {f"m = {m}": Step(n, m) for m, n in zip((64, 256), wide)}
    for case in cases.values():
        if isinstance(case, Step):
            _window(case.d, case.m)  # so that it lies ready when the step is timed
    x = draw(512, 20).float()
    w = draw(20).float()
    y = (torch.sigmoid(2 * x @ w) > torch.rand(512, generator=generator)).float()
    cases["scales"] = Scales(x * torch.logspace(0, 3, 20), y)
    return cases | {"digits": Learning(epochs, seeds), "pruning": Pruning(sparsities, seeds)}


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
def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1347 to learn from and 450 to be tested on, scaled to mean 0 and variance 1."""
    data = digits()
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))
    x, y = data.images.flatten(1)[order], data.labels[order]
    x = (x - x[:1347].mean()) / x[:1347].std()
    return x[:1347], y[:1347], x[1347:], y[1347:]


def _trained(seed: int) -> nn.Sequential:
    """A copy of the network that Adam has trained."""
    net = network(seed)
    net.load_state_dict(_weights(seed))
    return net


@cache
def _weights(seed: int) -> dict[str, Tensor]:
    x, y, *_ = _digits()
    net = network(seed)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for batch in _batches(len(x), 32, 20, seed):
        optimizer.zero_grad()
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
    return net.state_dict()


def _batches(n: int, size: int, epochs: int, seed: int, most: int | None = None) -> Iterator[Tensor]:
    generator, given = torch.Generator().manual_seed(seed), 0
    for _ in range(epochs):
        for batch in torch.randperm(n, generator=generator).split(size):
            if given == most:
                return
            given += 1
            yield batch
