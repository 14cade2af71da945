"""Lion-K against AdamW and lion-pytorch: constrained solutions, the two phases, the rate, memory and speed."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq, lsq_linear
from torch import Tensor, nn

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.plots import bars, lines
from hadamard.data import digits
from hadamard.optim import LionK, RidgeBox, SparseBox, constraint_distance, fw_gap
from hadamard.rates import loglog_slope

__all__ = ["claim"]

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
class _Digits:
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


def _problem(
    seed: int, rates: tuple[float, ...], time: float, lengths: tuple[int, ...], digits_steps: int, size: int
) -> Mapping[str, Any]:
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
        "digits": _Digits(images, labels, train, 10.0, 3e-3, digits_steps),
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


def _contender(name: str, role: Any, *cases: str, once: bool = True) -> Contender:
    return Contender(name=name, run=lambda case: case(name), role=role, cases=lambda c: c in cases, once=once)


def _agree(case: Any, outcomes: Mapping[str, Any]) -> str:
    if isinstance(case, _Digits) and not np.array_equal(outcomes[OURS]["weights"], outcomes[LION]["weights"]):
        return f"the weights of {OURS} and {LION} are not the same to the last bit"
    return ""


def _errors(results: Results, case: str, name: str = OURS) -> list[float]:
    return results.outcomes[case, name]["errors"]


def _slope(results: Results) -> float:
    return loglog_slope(results.cases["box"].rates, _errors(results, "box"))[0]


def _constant(results: Results) -> float:
    """C of the bound C * lr, as the box has it."""
    return max(e / lr for e, lr in zip(_errors(results, "box"), results.cases["box"].rates))


def _smooth(results: Results) -> float:
    """The largest error of ball and Huber kernel, in units of the box's C * lr."""
    pairs = [p for case in ("ball", "Huber") for p in zip(_errors(results, case), results.cases[case].rates)]
    return max(e / (_constant(results) * lr) for e, lr in pairs)


def _plot(results: Results) -> list[dict[str, Any]]:
    box, way, rate = results.cases["box"], results.outcomes["way in", OURS], results.outcomes["rate", OURS]
    steps = list(range(0, len(way["distances"]), 5))
    adam = _errors(results, "box", ADAMW)[0]
    return [
        lines(
            {OURS: (box.rates, _errors(results, "box"))},
            x="learning rate", y="relative distance to the constrained optimum", log="xy",
            reference={"AdamW, same weight decay, best rate": adam},
            caption="The error of LionK in the box halves with the learning rate; AdamW stays where it is.",
        ),
        lines(
            {
                OURS: (steps, [max(way["distances"][t], 1e-16) for t in steps]),
                "theory's bound": (steps, [way["bound"][t] for t in steps]),
                ADAMW: (steps, [max(results.outcomes["way in", ADAMW]["distances"][t], 1e-16) for t in steps]),
            },
            x="step", y="distance to the box", log="y", markers=False,
            caption="From five times the box: the distance stays under (1 - lr * decay)^t, down to rounding.",
        ),
        lines(
            {OURS: (results.cases["rate"].lengths, rate["gaps"])},
            x="steps T", y="mean Frank-Wolfe gap", log="xy",
            caption="With a rate proportional to 1/sqrt(T) the mean gap falls as 1/sqrt(T).",
        ),
        bars(
            {n: {"ms a step": 1e3 * results.value("step", n, "seconds")} for n in (OURS, LION, ADAMW, FUSED)},
            y="ms for one step",
            caption="One step over all parameters; fused AdamW is one compiled kernel, the others tensor operations.",
        ),
    ]  # fmt: skip


def _measure(name: str, unit: str = "") -> Measure:
    get: Callable[[Any, Any], float | None] = lambda case, o: o.get(name)  # noqa: E731
    return Measure(name, unit, get)


_QUICK = {"rates": (2e-2, 1e-2, 5e-3), "time": 8.0, "lengths": (125, 250, 500, 1000), "digits_steps": 500}
_BOX = "final ||x - x*||/||x*|| <= C lr and halving when lr halves (slope >=0.8), x* from scipy lsq_linear; "
_WAY = "log distance to the box from x0=5/lambda falls with slope log(1-eps lambda) exactly (within 2 %), and never "
_DIGITS = (
    "on a real net (digits MLP) with lambda large, 100 % of weights |x| <= 1/lambda after log(5)/(eps lambda)-ish "
    "steps, and AdamW with same lambda does not."
)
_STEP = "one buffer/parameter; step time <= 1.1x torch AdamW(foreach) on 1e7 params"

claim = Claim(
    key="lion_k",
    statement="Lion with weight decay w minimises under the bound |x| <= 1/w, whatever the learning rate; other convex "
    "functions give other constraints. LionK lands on the constrained optimum, within an error proportional to the "
    "learning rate, where AdamW with the same weight decay misses it; weights outside the bound enter it at the "
    "predicted rate and stay; and it holds one buffer a parameter where AdamW holds two.",
    paper_figure="The theory: phase 1, dist(t) <= exp(-w t) dist(0), then descent of a Lyapunov function; mean gap "
    "O(1/(lr T)) + O(lr). Shown on two-dimensional problems, ResNet-50, ViT and GPT-2, whose weight histograms end at "
    "1/w.",
    sizes={
        "quick": {**_QUICK, "size": 10_000_000},
        "full": {"rates": (2e-2, 1e-2, 5e-3, 2.5e-3, 1.25e-3), "time": 30.0, "digits_steps": 2000,
                 "lengths": (250, 500, 1000, 2000, 4000, 8000), "size": 10_000_000},
        "gpu": {**_QUICK, "size": 100_000_000},
    },
    problem=_problem,
    contenders=[
        _contender(OURS, "method", "box", "ball", "Huber", "way in", "worst way in", "digits", "rate", "1-norm"),
        _contender(OURS, "method", "step", once=False),
        _contender(ADAMW, "baseline", "box", "way in", "digits"),
        _contender(ADAMW, "baseline", "step", once=False),
        _contender(LION, "peer", "digits"),
        _contender(LION, "peer", "step", once=False),
        _contender(FUSED, "peer", "step", once=False),
    ],
    measures=[
        Measure("error", "relative", lambda case, o: o["errors"][-1] if "errors" in o else None),
        _measure("slope ratio"), _measure("inside", "steps"), _measure("inside box", "%"), _measure("accuracy", "%"),
        _measure("gap slope"), _measure("1-norm / bound"), _measure("buffers", "a parameter"),
    ],
    bars=[
        Bar("the error in the box falls with the learning rate: slope of their logarithms", "card, claim 1", _BOX,
            ">=", 0.8, _slope, headline=True),
        Bar("2-norm ball and Huber kernel stay below the box's C * lr (they come to rest, so they end far below)",
            "card, claim 1", _BOX + "same for p=2 ball and Huber kernel (cvx/scipy).", "<=", 1.0, _smooth),
        Bar("AdamW with the same weight decay and its best learning rate misses the optimum by at least ten times more",
            "card, claim 1", "AdamW with the same lambda must miss x* by >=10x.", ">=", 10.0,
            lambda r: r.value("box", ADAMW, "error") / r.value("box", OURS, "error")),
        Bar("against gradients that push outwards, log distance falls with slope log(1 - lr * decay) within 2 %",
            "card, claim 2", _WAY + "re-enters", "<=", 0.02,
            lambda r: abs(r.value("worst way in", OURS, "slope ratio") - 1)),
        Bar("on the quadratic the distance never exceeds (1 - lr * decay)^t times the first, beyond rounding",
            "card, claim 1", "the geometric bound dist_t <= (1-eps lambda)^t dist_0 held at every one of 3000 steps in "
            "float64", "<=", 1e-12, lambda r: r.outcomes["way in", OURS]["excess"]),
        Bar("once in the box, weights do not leave it again", "card, claim 2", _WAY + "re-enters", "==", 0.0,
            lambda r: r.outcomes["way in", OURS]["re-entered"]),
        Bar("digits: all weights of the network are in the box at the end", "card, claim 2", _DIGITS, ">=", 100.0,
            lambda r: r.value("digits", OURS, "inside box")),
        Bar("digits: with AdamW and the same weight decay they are not", "card, claim 2", _DIGITS, "<", 100.0,
            lambda r: r.value("digits", ADAMW, "inside box")),
        Bar("mean Frank-Wolfe gap against T with a rate proportional to 1/sqrt(T): slope", "card, claim 3",
            "mean Frank-Wolfe gap vs T with eps ~ T^(-1/2): slope <= -0.4 (theory -1/2).", "<=", -0.4,
            lambda r: r.value("rate", OURS, "gap slope")),
        Bar("buffers held for each parameter", "card, claim 4", _STEP, "<=", 1.0,
            lambda r: r.value("step", OURS, "buffers")),
        Bar("time of a step over 1e7 parameters against AdamW (foreach)", "card, claim 4", _STEP, "<=", 1.1,
            lambda r: r.ratio("step", OURS, ADAMW), seconds=True),
        Bar("the kernel of the ten largest entries keeps the 1-norm below ten times the box", "card, claim 4",
            "test ||x||_1 <= i_cut/lambda", "<=", 1.0 + 1e-12, lambda r: r.value("1-norm", OURS, "1-norm / bound")),
    ],
    plot=_plot,
    requires=["lion_pytorch"],
    agree=_agree,
    rounds={"quick": 3, "full": 9, "gpu": 9},
)  # fmt: skip
