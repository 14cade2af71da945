"""What the Gaussian-process solver is compared with: networks, the paper's joint descent, Chebyshev, dense algebra."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from hadamard.pde import gp_hm
from hadamard.pde._collocation import Problem, _Equation, evidence
from hadamard.pde.spectral_mixture import SpectralMixture, mean_spacing

__all__ = ["Equation", "Outcome", "Step", "chebyshev", "joint", "network", "ours", "single"]


@dataclass(frozen=True)
class Equation:
    """An equation with its solution, on a grid of n points an axis over [0, length]."""

    n: tuple[int, ...]
    lengths: tuple[float, ...]
    terms: Mapping[tuple[int, ...], float]
    truth: Callable[..., Tensor]
    source: Callable[..., Tensor]
    rates: tuple[float, ...]  # of the networks and of the joint descent
    scales: tuple[float, ...]  # of the Fourier features, around the solution's own frequencies
    starts: int = 2
    components: int = 20
    cubic: bool = False
    ends: tuple[str, ...] | None = None
    clock: dict[str, float] = field(default_factory=dict)  # what our solver took: everybody's time, for each setting

    @property
    def seconds(self) -> float:
        """The time that a rival has for each of its settings: what our solver took, in this run."""
        if "seconds" not in self.clock:
            ours(self)
        return self.clock["seconds"]

    @property
    def axes(self) -> list[Tensor]:
        """The grid."""
        return [torch.linspace(0, b, n, dtype=torch.float64) for n, b in zip(self.n, self.lengths)]

    def error(self, u: Tensor, axes: Sequence[Tensor] | None = None) -> float:
        """Relative error on a grid."""
        truth = self.truth(*torch.meshgrid(*(axes or self.axes), indexing="ij"))
        return float((u - truth).norm() / truth.norm())


@dataclass(frozen=True)
class Outcome:
    """What a solver reached."""

    error: float | None = None
    frequency: float | None = None
    small: float | None = None
    value: float | None = None
    u: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """An equation with kernels at which the evidence and its gradient are computed once."""

    problem: Problem
    kernels: Sequence[SpectralMixture]

    @staticmethod
    def of(n: int) -> "Step":
        """Poisson's equation on n x n points."""
        x = torch.linspace(0, 1, n, dtype=torch.float64)
        free, one = torch.arange(1, n - 1), torch.ones(n - 2, n - 2, dtype=torch.float64)
        source = torch.sin(20 * x[1:-1])[:, None] * torch.sin(15 * x[1:-1])
        known = torch.zeros(n, n, dtype=torch.float64)
        problem = Problem([x, x], [free, free], {(2, 0): one, (0, 2): one}, source, known, None, 1e-10)
        return Step(problem, [SpectralMixture.start(x, 20, "student_t", n / 4, 2.0, 0.1)] * 2)

    def run(self, dense: bool) -> Outcome:
        """Compute value and gradient, by the algebra of the axes or by that of the whole grid."""
        kernels = [replace(k, log_weights=k.log_weights.clone().requires_grad_()) for k in self.kernels]
        value = self._dense(kernels) if dense else evidence(self.problem, kernels, self.problem.source)[0]
        value.backward()
        return Outcome(value=float(value.detach()))

    def _dense(self, kernels: Sequence[SpectralMixture]) -> Tensor:
        n = len(self.problem.axes[0])
        K = [k.matrix(x) + 1e-13 * torch.eye(n, dtype=x.dtype) for k, x in zip(kernels, self.problem.axes)]
        second = [k.matrix(x, order=2) for k, x in zip(kernels, self.problem.axes)]
        inner = (torch.arange(n)[1:-1, None] * n + torch.arange(n)[1:-1]).ravel()
        L = torch.linalg.cholesky(torch.kron(*K))
        laplacian = (torch.kron(second[0], K[1]) + torch.kron(K[0], second[1]))[inner]
        D = torch.cholesky_solve(laplacian.mT, L).mT[:, inner]
        u = torch.zeros(n * n, dtype=torch.float64).index_put(
            (inner,), torch.linalg.solve(D, self.problem.source.ravel())
        )
        white = torch.linalg.solve_triangular(L, u[:, None], upper=False)
        logs = L.diagonal().log().sum() + torch.linalg.slogdet(D)[1]
        return n * n / 2 * white.square().sum().log() + logs


def single(case: Equation) -> Outcome:
    """One squared-exponential kernel whose length has the least error on the known solution, of 12 lengths."""
    axes, best = case.axes, Outcome(error=math.inf)
    free = _free(case)
    for ratio in torch.linspace(0.8, 6, 12).tolist():
        for nugget in (1e-10, 1e-7):
            zero = torch.zeros(1, dtype=torch.float64)
            kernels = [
                SpectralMixture(
                    zero, zero + math.log(ratio * mean_spacing(x)), zero, "gaussian", nugget, 1e-3 * mean_spacing(x)
                )
                for x in axes
            ]
            problem = _problem(case, axes, free)
            u = evidence(problem, kernels, torch.zeros_like(problem.source))[1]
            if u.isfinite().all() and case.error(u) < (best.error or math.inf):
                best = Outcome(error=case.error(u), u=u)
    return best


def chebyshev(case: Equation) -> Outcome:
    """Chebyshev collocation with as many points: the reference for smooth solutions on a box."""
    axes, rows = [], []
    free = _free(case)
    for n, b, f in zip(case.n, case.lengths, free):
        t = torch.cos(torch.pi * torch.arange(n, dtype=torch.float64) / (n - 1)).flip(0)
        sign = torch.ones(n, dtype=torch.float64)
        sign[1::2] = -1
        sign[0], sign[-1] = 2 * sign[0], 2 * sign[-1]
        D = torch.outer(sign, 1 / sign) / (t[:, None] - t + torch.eye(n, dtype=torch.float64))
        D = D - torch.diag(D.sum(1))
        D = D * 2 / b
        axes.append((t + 1) * b / 2)
        rows.append({0: torch.eye(n, dtype=torch.float64)[f], 1: D[f], 2: (D @ D)[f]})
    problem = _problem(case, axes, free)
    x = _Equation(problem, rows).newton(torch.zeros_like(problem.source))
    if x is None:
        return Outcome(error=math.inf)
    return Outcome(error=case.error(problem.fill(x), axes))


def joint(case: Equation) -> Outcome:
    """The paper's descent on solution, kernel and noise together by Adam, for as long as a network has, on one axis."""
    (x,) = case.axes
    q, n, h = case.components, case.n[0], mean_spacing(case.axes[0])
    best = Outcome(error=math.inf)
    right, truth = case.source(x), case.truth(x)
    for rate in case.rates:
        u = torch.zeros(n, dtype=torch.float64, requires_grad=True)
        noise = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        start = SpectralMixture.start(x, q, "student_t", 1 / (2 * h), 0.0, 1e-6)
        parts = [v.clone().requires_grad_() for v in (start.log_weights, start.log_lengths, start.frequencies)]
        optimizer = torch.optim.Adam([u, noise, *parts], lr=rate)
        end = time.perf_counter() + case.seconds
        while time.perf_counter() < end:
            k = replace(start, log_weights=parts[0], log_lengths=parts[1], frequencies=parts[2], floor_length=1e-3 * h)
            L, info = torch.linalg.cholesky_ex(k.matrix(x))
            if info:
                break
            a = torch.cholesky_solve(u[:, None], L)[:, 0]
            left = k.matrix(x, order=2) @ a + case.terms.get((0,), 0.0) * u + (u**3 if case.cubic else 0.0)
            gap = (u[[0, -1]] - truth[[0, -1]]).square().sum()
            boundary = noise[0] - noise[0].exp() / 2 * gap
            interior = n / 2 * noise[1] - noise[1].exp() / 2 * (left - right).square().sum()
            loss = L.diagonal().log().sum() + u @ a / 2 - 200 * boundary - interior
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        reached = case.error(u.detach())
        if reached < (best.error or math.inf):
            best = Outcome(error=reached, u=u.detach())
    return best


class _Waves(nn.Module):
    """Random Fourier features in front of a network."""

    def __init__(self, d: int, top: float, generator: torch.Generator) -> None:
        super().__init__()
        self.omega: Tensor
        self.register_buffer("omega", torch.randn(d, 32, generator=generator, dtype=torch.float64) * top)

    def forward(self, x: Tensor) -> Tensor:
        """Cosines and sines."""
        return torch.cat([torch.cos(x @ self.omega), torch.sin(x @ self.omega)], -1)


def network(case: Equation, features: bool) -> Outcome:
    """A tanh network of four layers of 64 on the equation's residual, the best of its rates and scales."""
    axes, d = case.axes, len(case.n)
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, d)
    scale = torch.tensor(case.lengths, dtype=torch.float64) / 2
    truth, right = case.truth(*points.T), case.source(*points.T)
    edge = torch.ones(case.n, dtype=torch.bool)
    edge[torch.meshgrid(*_free(case), indexing="ij")] = False
    edge, best = edge.ravel(), Outcome(error=math.inf)
    size = float(right.square().mean()) or float(max(abs(c) for c in case.terms.values())) ** 2
    for top in case.scales if features else (0.0,):
        for rate in case.rates:
            torch_generator = torch.Generator().manual_seed(0)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                first = [_Waves(d, top, torch_generator)] if features else []
                widths = [64 if features else d, 64, 64, 64, 64]
                layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())]
                net = nn.Sequential(*first, *layers, nn.Linear(64, 1)).double()
            optimizer = torch.optim.Adam(net.parameters(), lr=rate)
            end = time.perf_counter() + case.seconds
            while time.perf_counter() < end:
                x = points.clone().requires_grad_()
                u = net(x / scale - 1)[:, 0]
                slopes = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
                left = u**3 if case.cubic else torch.zeros_like(u)
                for order, c in case.terms.items():
                    axis = max(range(d), key=lambda i: order[i])
                    value = u if not sum(order) else slopes[:, axis]
                    if sum(order) == 2:
                        value = torch.autograd.grad(value.sum(), x, create_graph=True)[0][:, axis]
                    left = left + c * value
                loss = (left - right).square().mean() / size + 100 * (u - truth)[edge].square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                u = net(points / scale - 1)[:, 0].reshape(case.n)
            if case.error(u) < (best.error or math.inf):
                best = Outcome(error=case.error(u), u=u)
    return best


def ours(case: Equation, kernel: str = "student_t") -> Outcome:
    """The solver, and the frequencies that it found along the first axis."""
    begin = time.perf_counter()
    found = gp_hm(
        case.axes, case.terms, case.source, case.truth, reaction=_cube if case.cubic else None, ends=case.ends,
        kernel=kernel, n_starts=case.starts, n_components=case.components,
    )  # fmt: skip
    if kernel == "student_t":
        case.clock["seconds"] = time.perf_counter() - begin
    k = found.kernels[0]
    return Outcome(
        error=case.error(found.value),
        frequency=float(k.frequencies[k.weights.argmax()].abs()) * 2 * math.pi,
        small=float((k.weights < 1e-3 * k.weights.max()).double().mean()),
        u=found.value,
    )


def _cube(u: Tensor) -> Tensor:
    return u**3


def _free(case: Equation) -> list[Tensor]:
    """Inner points of each axis."""
    sides = case.ends or ("both",) * len(case.n)
    return [torch.arange(n)[1 : -1 if side == "both" else None] for n, side in zip(case.n, sides)]


def _problem(case: Equation, axes: Sequence[Tensor], free: Sequence[Tensor]) -> Problem:
    inner, points = torch.meshgrid(*free, indexing="ij"), torch.meshgrid(*axes, indexing="ij")
    known = case.truth(*points).clone()
    known[inner] = 0.0
    right = case.source(*points)[inner]
    terms = {a: torch.full_like(right, c) for a, c in case.terms.items()}
    return Problem(axes, free, terms, right, known, _cube if case.cubic else None, 1e-10)
