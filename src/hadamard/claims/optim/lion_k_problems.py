"""What LionK and its peers are run on, each problem with what it measures."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq, lsq_linear
from torch import Tensor, nn

from hadamard.data import digits
from hadamard.optim import LionK, RidgeBox, SparseBox, constraint_distance, fw_gap
from hadamard.rates import loglog_slope

__all__ = ["ADAMW", "FUSED", "LION", "OURS", "Digits", "problem"]

OURS, ADAMW, LION, FUSED = "LionK", "AdamW", "lion-pytorch", "AdamW (fused)"
_E = 0.05  # weight of the Huber kernel's penalty


@dataclass(frozen=True)
class _Quadratic:
    """Half the squared residual of a least-squares problem, and its constrained optimum by other means."""

    H: Tensor
    c: Tensor
    best: Tensor
    kernel: Any
    decay: float
    rates: tuple[float, ...]
    adam_rates: tuple[float, ...]
    time: float

    def __call__(self, name: str) -> dict[str, Any]:
        """Error at each rate; AdamW reports its best rate only."""
        if name == ADAMW:
            steps = int(self.time / min(self.rates))
            return {"errors": [min(self._error(ADAMW, lr, steps) for lr in self.adam_rates)]}
        return {"errors": [self._error(name, lr, int(self.time / lr)) for lr in self.rates]}

    def _error(self, name: str, lr: float, steps: int) -> float:
        """Mean relative distance to the optimum over the last quarter of the steps."""
        x, errors = torch.zeros_like(self.c, requires_grad=True), []
        for t in _descend(_make(name, [x], lr, self.decay, self.kernel), x, self.H, self.c, steps):
            if t >= 3 * steps // 4:
                errors.append(float((x.detach() - self.best).norm()))
        return float(np.mean(errors)) / float(self.best.norm())


@dataclass(frozen=True)
class _Phase:
    """The way into the box from five times its size, on the quadratic."""

    H: Tensor
    c: Tensor
    decay: float
    lr: float
    steps: int

    def __call__(self, name: str) -> dict[str, Any]:
        """Distance to the box after each step, and its slope while the first weight is still far outside."""
        generator = torch.Generator().manual_seed(0)
        signs = torch.randn(self.c.shape, dtype=self.c.dtype, generator=generator).sign()
        x = (5 / self.decay * signs).requires_grad_()
        way = _descend(_make(name, [x], self.lr, self.decay, "l1"), x, self.H, self.c, self.steps)
        d = np.array([float((x.detach().abs() - 1 / self.decay).clamp(min=0).norm()) for _ in way])
        bound = d[0] * (1 - self.lr * self.decay) ** np.arange(self.steps)
        slack = 1e-12 / self.decay
        first = int(np.argmax(d <= slack)) if (d <= slack).any() else self.steps
        return {"distances": d, "bound": bound, "excess": float((d - bound).max()), "inside": first,
                "re-entered": float((d[first:] > slack).sum())}  # fmt: skip


@dataclass(frozen=True)
class _Worst:
    """The slowest way in there is: the gradient pushes outwards at every step."""

    decay: float
    lr: float
    steps: int

    def __call__(self, name: str) -> dict[str, float]:
        """Slope of the logarithm of the distance, relative to log(1 - lr * decay)."""
        x = torch.full((50,), 5 / self.decay, dtype=torch.float64, requires_grad=True)
        optimizer, distances = _make(name, [x], self.lr, self.decay, "l1"), []
        for _ in range(self.steps):
            x.grad = -x.detach()
            optimizer.step()
            distances.append(constraint_distance(optimizer))
        slope = np.polyfit(np.arange(self.steps), np.log(distances), 1)[0]
        return {"slope ratio": float(slope / math.log1p(-self.lr * self.decay))}


@dataclass(frozen=True)
class Digits:
    """A network with one hidden layer on scikit-learn's digits, started outside the box."""

    images: Tensor
    labels: Tensor
    train: int
    decay: float
    lr: float
    steps: int

    def __call__(self, name: str) -> dict[str, Any]:
        """The weights, their share in the box, and test accuracy."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        bound = 1 / self.decay
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(5 * bound / p.abs().max())
        optimizer = _make(name, list(net.parameters()), self.lr, self.decay, "l1")
        generator = torch.Generator().manual_seed(1)
        for _ in range(self.steps):
            rows = torch.randint(self.train, (128,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(net(self.images[rows]), self.labels[rows]).backward()
            optimizer.step()
        weights = torch.cat([p.detach().flatten() for p in net.parameters()])
        correct = net(self.images[self.train :]).argmax(1) == self.labels[self.train :]
        inside = weights.abs() <= bound * (1 + 1e-5)
        shares = {"inside box": 100 * float(inside.float().mean()), "accuracy": 100 * float(correct.float().mean())}
        return {"weights": weights.numpy(), **shares}


@dataclass(frozen=True)
class _Rate:
    """Mean Frank-Wolfe gap of T steps with a rate proportional to 1 / sqrt(T)."""

    H: Tensor
    c: Tensor
    lengths: tuple[int, ...]

    def __call__(self, name: str) -> dict[str, Any]:
        """The mean gap for every T, and the slope."""
        means = []
        for steps in self.lengths:
            x = torch.zeros_like(self.c, requires_grad=True)
            optimizer = LionK([x], lr=0.5 / math.sqrt(steps), weight_decay=1.0)
            means.append(fmean(fw_gap(optimizer) for _ in _descend(optimizer, x, self.H, self.c, steps)))
        return {"gaps": means, "gap slope": loglog_slope(self.lengths, means)[0]}


@dataclass(frozen=True)
class _Sparse:
    """The kernel that moves the ten largest entries: bound on the 1-norm."""

    H: Tensor
    c: Tensor
    steps: int
    k: int = 10

    def __call__(self, name: str) -> dict[str, float]:
        """The 1-norm as a fraction of its bound."""
        x = torch.zeros_like(self.c, requires_grad=True)
        optimizer = LionK([x], lr=5e-3, weight_decay=1.0, kernel=SparseBox(self.k))
        for _ in _descend(optimizer, x, self.H, self.c, self.steps):
            pass
        return {"1-norm / bound": float(x.detach().abs().sum()) / self.k}


@dataclass(frozen=True)
class _Step:
    """One step of the same parameters and gradients; optimizers are made on first use."""

    size: int
    tensors: int
    device: str
    made: dict[str, Any] = field(default_factory=dict)

    def __call__(self, name: str) -> dict[str, float]:
        """Take the step; count what the optimizer holds."""
        if name not in self.made:
            generator = torch.Generator(self.device).manual_seed(0)
            shape, device = (self.size // self.tensors,), self.device
            params = [torch.randn(shape, generator=generator, device=device) for _ in range(self.tensors)]
            for p in params:
                p.requires_grad_().grad = 1e-2 * torch.randn(shape, generator=generator, device=device)
            self.made[name] = _make(name, params, 1e-4, 0.1, "l1", foreach=True)
            self.made[name].step()
        optimizer = self.made[name]
        optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        held = sum(t.numel() for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.ndim)
        return {"buffers": held / self.size}


def _descend(optimizer: Any, x: Tensor, H: Tensor, c: Tensor, steps: int) -> Iterator[int]:
    """Steps on the quadratic with gradient H x - c; pauses at each where the gradient is there and x not yet moved."""
    for t in range(steps):
        x.grad = torch.addmv(-c, H, x.detach())
        yield t
        optimizer.step()


def _make(name: str, params: list[Tensor], lr: float, decay: float, kernel: Any, foreach: bool = False) -> Any:
    if name == OURS:
        return LionK(params, lr=lr, weight_decay=decay, kernel=kernel)
    if name == LION:
        from lion_pytorch import Lion

        return Lion(params, lr=lr, weight_decay=decay)
    how: dict[str, Any] = {"fused": True} if name == FUSED else {"foreach": foreach}
    return torch.optim.AdamW(params, lr=lr, weight_decay=decay, **how)


def problem(
    seed: int, rates: tuple[float, ...], time: float, lengths: tuple[int, ...], digits_steps: int, size: int
) -> Mapping[str, Any]:
    """Constrained least squares, the way into the box, digits, the rate, sparse kernels, and the time of a step."""
    generator, d, f64 = torch.Generator().manual_seed(seed), 50, torch.float64
    U, V = (torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=f64))[0] for _ in range(2))
    A = U @ torch.diag(torch.logspace(0, -1, d, dtype=f64)) @ V.T  # the Hessian A^T A has condition number 100
    b = A @ torch.randn(d, generator=generator, dtype=f64)
    H, c, adam = A.T @ A, A.T @ b, (3e-1, 1e-1, 3e-2)
    ridge = torch.cat([A, math.sqrt(_E) * torch.eye(d, dtype=f64)]), torch.cat([b, torch.zeros(d, dtype=f64)])
    data = digits()
    order = torch.randperm(len(data.images), generator=generator)
    images, labels, train = data.images[order].flatten(1), data.labels[order], 3 * len(order) // 4
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "box": _Quadratic(H, c, _box(A, b), "l1", 1.0, rates, adam, time),
        "ball": _Quadratic(H, c, _ball(H, c, 2.5), "l2", 0.4, rates[:2], adam, 2 * time),
        "Huber": _Quadratic(H, c, _box(*ridge), RidgeBox(_E), 1.0, rates[-2:], adam, time),
        "way in": _Phase(H, c, 1.0, 5e-2, 800),
        "worst way in": _Worst(1.0, 1e-2, 300),
        "digits": Digits(images, labels, train, 10.0, 3e-3, digits_steps),
        "rate": _Rate(H, c, lengths),
        "1-norm": _Sparse(H, c, 600),
        "step": _Step(size, 10, device),
    }


def _box(A: Tensor, b: Tensor) -> Tensor:
    return torch.from_numpy(lsq_linear(A.numpy(), b.numpy(), bounds=(-1, 1), tol=1e-14).x)


def _ball(H: Tensor, c: Tensor, radius: float) -> Tensor:
    """The optimum in the ball, by root finding for its multiplier."""
    w, Q = torch.linalg.eigh(H)
    optimum = lambda multiplier: Q @ ((Q.T @ c) / (w + multiplier))  # noqa: E731
    return optimum(brentq(lambda multiplier: float(optimum(multiplier).norm()) - radius, 0, 1e3, xtol=1e-14))
