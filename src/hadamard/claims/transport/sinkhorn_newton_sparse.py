"""Sparse Newton iterations against Sinkhorn's, POT's and the exact solver."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hadamard.claims import Bar, Claim, Contender, Interval, Measure, Results
from hadamard.claims.plots import Figure, lines
from hadamard.transport import sinkhorn, sinkhorn_newton_sparse

OURS, SINKHORN, POT, EXACT, DENSE = (
    "hadamard",
    "log-Sinkhorn",
    "POT sinkhorn_log (a tenth of the iterations)",
    "POT emd (exact)",
    "dense Newton",
)


@dataclass
class Case:
    """One transport problem, and what it is for."""

    a: Tensor
    b: Tensor
    M: Tensor
    reg: float
    budget: int = 0  # Sinkhorn iterations; 0: Sinkhorn takes no part


@dataclass
class Outcome:
    """A plan, how many iterations it took, and the violations on the way where they are known."""

    plan: Tensor
    iterations: int
    trace: list[float]


def assignment(n: int, seed: int, eta: float = 1200, budget: int = 0) -> Case:
    """Random costs in [0, 1], uniform mass."""
    M = torch.rand(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    a = torch.full((n,), 1 / n, dtype=torch.float64)
    return Case(a, a, M / M.max(), 1 / eta, budget)


def points(n: int, seed: int, eta: float, budget: int) -> Case:
    """Squared distances of random points in the plane."""
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(n, 2, dtype=torch.float64, generator=g) for _ in range(2))
    M = torch.cdist(x, y).square()
    a = torch.full((n,), 1 / n, dtype=torch.float64)
    return Case(a, a, M / M.max(), 1 / eta, budget)


def digits(p: int, eta: float, budget: int) -> Case:
    """Two handwritten digits at 28 x 28 pixels, squared distances between pixels; dark pixels keep a little mass."""
    from hadamard.data import digits as handwritten

    images = handwritten(28).images[:2, 0].double()
    a, b = (image.flatten() + 0.01 for image in images)
    grid = torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0)).double()
    M = torch.cdist(grid, grid) ** p
    return Case(a / a.sum(), b / b.sum(), M / M.max(), 1 / eta, budget)


def problem(seed: int, n: int, eta: float, budget: int, sizes: list[int]) -> Mapping[str, Case]:
    """The paper's kinds of problem, and random assignments of growing size."""
    cases = {
        "assignment": assignment(n, seed, eta, budget),
        "points": points(n, seed, eta, budget),
        "digits": digits(2, 200, budget),
    }
    return cases | {f"n = {m}": assignment(m, seed, 200) for m in sizes}


def newton(case: Case) -> Outcome:
    """Ours, to 1e-9 as the bar wants (the growing sizes: to 1e-12)."""
    found = sinkhorn_newton_sparse(case.a, case.b, case.M, case.reg, tol=1e-9 if case.budget else 1e-12)
    return Outcome(found.plan, found.iterations, found.extras["residuals"])


def ours_sinkhorn(case: Case) -> Outcome:
    """Our own Sinkhorn iteration, to 1e-9 or as far as its budget goes."""
    found = _quietly(lambda: sinkhorn(case.a, case.b, case.M, case.reg, tol=1e-9, max_iter=case.budget))
    return Outcome(found.plan, found.iterations, [])


def pot_sinkhorn(case: Case) -> Outcome:
    """POT's log-domain Sinkhorn on tensors, with the same tolerance and a tenth of the budget, since it is slower."""
    import ot

    plan, log = _quietly(
        lambda: ot.sinkhorn(
            case.a, case.b, case.M, case.reg, "sinkhorn_log", case.budget // 10, 1e-9, log=True, warn=False
        )
    )
    return Outcome(plan, int(log["niter"]), [])


def exact(case: Case) -> Outcome:
    """The unregularised problem by POT's network simplex."""
    import ot

    plan = ot.emd(case.a.numpy(), case.b.numpy(), case.M.numpy(), numItermax=1_000_000)
    return Outcome(torch.from_numpy(plan), 0, [])


def dense_newton(case: Case) -> Outcome:
    """Newton with the whole Hessian and a direct solver, from the same warm start."""
    n, m = case.M.shape
    g = torch.zeros(m, dtype=torch.float64)
    for _ in range(100):
        f = case.reg * (case.a.log() - torch.logsumexp((g - case.M) / case.reg, 1))
        g = case.reg * (case.b.log() - torch.logsumexp((f[:, None] - case.M) / case.reg, 0))
    steps = 0
    while True:
        P = ((f[:, None] + g - case.M) / case.reg).exp()
        gradient = torch.cat([case.a - P.sum(1), case.b - P.sum(0)])
        if float(gradient.abs().sum()) < 1e-12 or steps == 30:
            return Outcome(P, 100 + steps, [])
        H = torch.cat([torch.cat([P.sum(1).diag(), P], 1), torch.cat([P.T, P.sum(0).diag()], 1)])
        H += float(gradient.abs().sum()) * H.diagonal().diag() + 1e-14 * torch.eye(n + m, dtype=torch.float64)
        step = case.reg * torch.linalg.solve(H, gradient)
        f, g, steps = f + step[:n], g + step[n:], steps + 1


def _quietly(run: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run()


def _violation(case: Case, outcome: Outcome) -> float:
    P = outcome.plan
    return float((P.sum(1) - case.a).abs().sum() + (P.sum(0) - case.b).abs().sum())


def agree(case: Case, outcomes: Mapping[str, Outcome]) -> str:
    """Plans that meet the marginals are the same plan, and its cost is within (log n) reg of the exact one."""
    ours = outcomes[OURS]
    for name in (SINKHORN, POT, DENSE):
        if name in outcomes and _violation(case, outcomes[name]) < 1e-8:
            difference = float((outcomes[name].plan - ours.plan).abs().sum())
            if difference > 1e-5:
                return f"the plans of {name} and {OURS} differ by {difference:.2g}"
    if EXACT in outcomes:
        gap = float((ours.plan * case.M).sum() - (outcomes[EXACT].plan * case.M).sum())
        allowed = 2 * case.reg * float(np.log(len(case.a)))
        if not -1e-6 <= gap <= allowed:
            return f"the cost is {gap:.2g} above the exact one, more than {allowed:.2g}"
    return ""


def _sinkhorn_violation(case: Case, steps: int) -> float:
    """How far Sinkhorn has come after so many iterations."""
    return _quietly(lambda: sinkhorn(case.a, case.b, case.M, case.reg, tol=0.0, max_iter=steps)).residual


def _order(trace: list[float]) -> float:
    """Slope of log violation against the one before, over the last four steps."""
    tail = np.log([v for v in trace if v > 1e-13][-5:])
    return float(np.polyfit(tail[:-1], tail[1:], 1)[0])


def _growing(r: Results) -> list[str]:
    return [c for c in r.cases if c.startswith("n =")]


def _step_slope(contender: str) -> Any:
    """Slope of the time per iteration, warm start included, against n."""

    def slope(r: Results) -> Interval:
        names = _growing(r)
        steps = [r.value(c, contender, "iterations") for c in names]
        n = [len(r.cases[c].a) for c in names]
        rounds = zip(*(r.samples[c, contender, "seconds"] for c in names), strict=True)
        return Interval.of([float(np.polyfit(np.log(n), np.log(np.array(t) / steps), 1)[0]) for t in rounds])

    return slope


def plot(r: Results) -> list[Figure]:
    """How the violation falls, and how a solve's time grows."""
    figures = []
    for name in ("assignment", "points", "digits"):
        trace, whole = r.outcomes[name, OURS].trace, r.value(name, SINKHORN, "iterations")
        warm = r.outcomes[name, OURS].iterations - len(trace) + 1
        steps = [k for k in (1, 3, 10, 30, 100, 300) if k < whole]
        fall = [_sinkhorn_violation(r.cases[name], k) for k in steps] + [r.value(name, SINKHORN, "violation")]
        curves: dict[str, tuple[list[float], list[float]]] = {
            OURS: ([float(k) for k in range(warm, warm + len(trace))], trace),
            SINKHORN: ([*map(float, steps), whole], fall),
        }
        caption = f"{name}: violation of the marginals against iterations; Newton's steps fall off a cliff."
        figures.append(lines(curves, x="iterations", y="violation (1-norm)", log="xy", caption=caption))
    n = [len(r.cases[c].a) for c in _growing(r)]
    growth = {k: (n, r.series(k, "seconds", _growing(r))) for k in (OURS, DENSE)}
    caption = "Time to 1e-12 on random assignments: the sparse Hessian keeps the growth near n^2."
    return [*figures, lines(growth, x="points, n", y="seconds", log="xy", caption=caption)]


claim = Claim(
    key="sinkhorn_newton_sparse",
    statement=(
        "A few sparse Newton steps after a short warm start solve entropic transport at small regularisation to 1e-9 "
        "and beyond, where Sinkhorn's iteration takes thousands of iterations or does not arrive."
    ),
    paper_figure=(
        "machine accuracy in some 10 to 30 Newton steps against thousands of Sinkhorn iterations; 5 to 15 times less "
        "time on random assignments (n = 500, eta = 1200) and MNIST images (arXiv 2401.12253)"
    ),
    sizes={
        "quick": {"n": 300, "eta": 1200, "budget": 3000, "sizes": [200, 400, 600]},
        "full": {"n": 500, "eta": 1200, "budget": 100_000, "sizes": [200, 400, 800, 1600]},
    },
    problem=problem,
    contenders=[
        Contender(OURS, newton),
        Contender(SINKHORN, ours_sinkhorn, "baseline", cases=lambda c: not c.startswith("n =")),
        Contender(POT, pot_sinkhorn, "peer", cases=lambda c: c in ("assignment", "points"), once=True),
        Contender(EXACT, exact, "peer", cases=lambda c: not c.startswith("n ="), once=True),
        Contender(DENSE, dense_newton, "baseline", cases=lambda c: c.startswith("n ="), once=True),
    ],
    measures=[
        Measure("violation", "mass", _violation),
        Measure("iterations", "1", lambda case, o: o.iterations or None),
        Measure("cost", "1", lambda case, o: float((o.plan * case.M).sum())),
        Measure("order", "1", lambda case, o: _order(o.trace) if len(o.trace) > 3 else None),
    ],
    bars=[
        Bar(
            text="random assignment, eta = 1200: time of Sinkhorn over ours (Sinkhorn stopped by its budget: at least)",
            source="card, claim 1",
            original_bound="time to 1e-9 at least 5x less than log-Sinkhorn, total outer iterations ≥ 20x fewer",
            sense=">=",
            bound=5,
            value=lambda r: r.ratio("assignment", SINKHORN, OURS),
            seconds=True,
            headline=True,
        ),
        Bar(
            text="random assignment, eta = 1200: iterations of Sinkhorn over ours (at least)",
            source="card, claim 1",
            original_bound="time to 1e-9 at least 5x less than log-Sinkhorn, total outer iterations ≥ 20x fewer",
            sense=">=",
            bound=20,
            value=lambda r: r.value("assignment", SINKHORN, "iterations") / r.value("assignment", OURS, "iterations"),
            headline=True,
        ),
        Bar(
            text="random assignment, eta = 1200: violation that ours reaches",
            source="card, claim 1",
            original_bound="time to 1e-9 at least 5x less than log-Sinkhorn",
            sense="<=",
            bound=1e-9,
            value=lambda r: r.value("assignment", OURS, "violation"),
        ),
        Bar(
            text="random points, eta = 1200: time of Sinkhorn over ours",
            source="card, claim 2",
            original_bound="Sinkhorn 3000 it, 1.5e-11, 5.4 s (bar ≥ 5x)",
            sense=">=",
            bound=5,
            value=lambda r: r.ratio("points", SINKHORN, OURS),
            seconds=True,
        ),
        Bar(
            text="growth of the time per iteration, warm start included, with n",
            source="card, claim 3",
            original_bound="slope of Newton-step time vs n in log–log for n = 200…1600 ≤ 2.3",
            sense="<=",
            bound=2.3,
            value=_step_slope(OURS),
            seconds=True,
        ),
        Bar(
            text="order of convergence over the last four steps on random points",
            source="card, claim 4",
            original_bound="slope > 1.3 in the last 4 steps with auto-ρ",
            sense=">",
            bound=1.3,
            value=lambda r: r.value("points", OURS, "order"),
        ),
    ],
    plot=plot,
    agree=agree,
    requires=("ot",),
    rounds={"quick": 3, "full": 3},
    threads=1,
)
