"""Transport with a bounded number of entries: colours, smoothness, batches, and experts."""

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hadamard.claims import Bar, Claim, Contender, Interval, Measure, Results
from hadamard.claims.plots import Figure, bars, lines, pictures
from hadamard.transport import SparseRouter, sparsity_constrained_ot
from hadamard.transport.semidual import SparseSquaredL2, ascend, prepare_semi_dual

OURS, TRACE, BATCH, ROUTER = "hadamard", "hadamard, from zero", "hadamard, side by side", "hadamard router"
QUADRATIC, SPARSE, SINKHORN, EXACT = "POT quadratic", "POT sparsity_constrained", "POT sinkhorn_log", "POT emd (exact)"
SERIAL, GREEDY, CHOICE = "POT, one by one", "greedy top-1 with capacity", "expert choice (greedy top-k)"

_BUDGET = 400  # evaluations, where a violation is not reached


@dataclass
class Case:
    """Transport problems, uniform masses, and what is asked of them."""

    M: Tensor
    reg: float = 0.01
    k: int = 0
    least: int = 0
    exact: float = math.nan
    scores: Tensor | None = None
    images: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """Plans (..., n, m) or shares of tokens (tokens, experts); or, by ``k``, violation and value of the dual so far."""

    plan: Tensor = field(default_factory=lambda: torch.empty(0))
    traces: dict[int, tuple[list[float], list[float]]] = field(default_factory=dict)


def palettes(n: int, m: int) -> tuple[Tensor, dict[str, Any]]:
    """Squared distances between the colours of two photographs, found by k-means, and what draws a transfer."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.datasets import load_sample_image

    source, target = (load_sample_image(name)[::4, ::4] / 255 for name in ("china.jpg", "flower.jpg"))
    means = [
        MiniBatchKMeans(size, random_state=0, n_init=1, batch_size=4096).fit(image.reshape(-1, 3))
        for size, image in ((n, source), (m, target))
    ]
    x, y = (torch.from_numpy(found.cluster_centers_) for found in means)
    return torch.cdist(x, y).square(), {"source": source, "target": target, "labels": means[0].labels_, "x": x, "y": y}


def digits(experts: int) -> Tensor:
    """Handwritten digits as tokens; an expert's score is minus the squared distance to its centre."""
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits

    tokens = load_digits().data[:1792] / 16
    centres = KMeans(experts, n_init=1, random_state=0).fit(tokens).cluster_centers_
    return -torch.cdist(torch.from_numpy(tokens), torch.from_numpy(centres)).square()


def clouds(batch: int, n: int, m: int, seed: int) -> Tensor:
    """Squared distances between random points of the unit square."""
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(batch, size, 2, dtype=torch.float64, generator=g) for size in (n, m))
    return torch.cdist(x, y).square()


def problem(seed: int, n: int, m: int, batches: list[list[int]]) -> Mapping[str, Case]:
    """Colour transfer at several bounds, its smoothness, batches, and two kinds of routing scores."""
    import ot

    M, images = palettes(n, m)
    least, exact = n // m, float(ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), M.numpy()))
    cases = {
        f"colours, k = {k}": Case(M, k=k, least=least, exact=exact, images=images)
        for k in (least, least * 5 // 4, least * 3 // 2, 2 * least, 4 * least, 8 * least)
    }
    cases["smoothness"] = Case(M, reg=1.0, least=least)
    for B, rows, columns in batches:
        cases[f"{B} x {rows} x {columns}"] = Case(clouds(B, rows, columns, seed), reg=0.1, k=2 * rows // columns)
    scores = digits(16)
    cases["routing"] = Case(-scores.softmax(-1), k=1792 // 16, scores=scores)
    cases["routing, sharper scores"] = Case(-(scores / 0.3).softmax(-1), k=1792 // 16, scores=scores / 0.3)
    return cases


def ours(case: Case) -> Outcome:
    """Ours, to its own tolerance, or as far as a kink lets it."""
    return Outcome(sparsity_constrained_ot(None, None, case.M, case.reg, case.k, warn=False).plan)


def batched(case: Case) -> Outcome:
    """All problems of a batch at once, to the accuracy that POT's default tolerance reaches."""
    return Outcome(sparsity_constrained_ot(None, None, case.M, case.reg, case.k, tol=1e-3, warn=False).plan)


def trace(case: Case) -> Outcome:
    """The violation and the dual's value after every evaluation, for several bounds, without a warm start."""
    n, m = case.M.shape
    a, b, C = case.M.new_full((1, n), 1 / n), case.M.new_full((1, m), 1 / m), case.M.mT.contiguous()[None]
    outcome = Outcome()
    for k in bounds(case):
        seen: list[tuple[float, float]] = []
        objective = prepare_semi_dual(a, b, C, SparseSquaredL2(case.reg, k))
        ascend(_watched(objective, seen), torch.zeros_like(a), case.reg, a.new_full((1,), 1e-8), _BUDGET)
        violations, values = zip(*seen)
        outcome.traces[k] = np.minimum.accumulate(violations).tolist(), np.maximum.accumulate(values).tolist()
    return outcome


def _watched(objective: Any, seen: list[tuple[float, float]]) -> Any:
    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = objective(x)
        seen.append((float(gradient.abs().sum()), -float(value)))
        return value, gradient

    return evaluate


def bounds(case: Case) -> list[int]:
    """The least bound times 1, 1.2, 1.5, 2, 4 and 8."""
    return [math.ceil(case.least * factor) for factor in (1, 1.2, 1.5, 2, 4, 8)]


def pot_smooth(case: Case, kind: str, tol: float = 1e-12) -> Outcome:
    """POT's semi-dual solver, problem by problem; its default number of iterations, 5000 where it is the reference."""
    import ot

    n, m = case.M.shape[-2:]
    options = {"max_nz": case.k} if kind == "sparsity_constrained" else {"numItermax": 5000}
    plans = []
    for M in case.M.reshape(-1, n, m).numpy():
        with contextlib.redirect_stdout(io.StringIO()):  # it prints on the way
            plan = ot.smooth.smooth_ot_semi_dual(
                np.full(n, 1 / n), np.full(m, 1 / m), M, case.reg, reg_type=kind, stopThr=tol, **options
            )
        plans.append(torch.from_numpy(plan))
    return Outcome(torch.stack(plans).reshape(case.M.shape))


def sinkhorn(case: Case) -> Outcome:
    """POT's entropic plan at a regularisation that costs a few percent, in the logarithmic domain."""
    import ot

    n, m = case.M.shape
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    return Outcome(torch.from_numpy(ot.sinkhorn(a, b, case.M.numpy(), 5e-3, "sinkhorn_log", 500, warn=False)))


def exact(case: Case) -> Outcome:
    """The unregularised plan by POT's network simplex."""
    import ot

    n, m = case.M.shape
    return Outcome(torch.from_numpy(ot.emd(np.full(n, 1 / n), np.full(m, 1 / m), case.M.numpy())))


def route(case: Case) -> Outcome:
    """Ours, with exactly as many places as tokens: which token goes to which expert, and with which share."""
    routing = SparseRouter(1.0, combine="plan")(case.scores)
    return Outcome(torch.zeros_like(case.M).T.scatter(1, routing.indices, routing.weights).T)


def greedy(case: Case) -> Outcome:
    """Every token goes to its best expert, in the order of the batch, as long as there is a place."""
    chosen = torch.nn.functional.one_hot(case.M.argmin(1), case.M.shape[1])
    return Outcome((chosen * (chosen.cumsum(0) <= case.k)).double())


def expert_choice(case: Case) -> Outcome:
    """Every expert takes its best tokens; a token that several take counts at the one where it scores best."""
    taken = torch.zeros_like(case.M).scatter(0, case.M.topk(case.k, 0, largest=False).indices, 1.0)
    best = torch.nn.functional.one_hot((taken * -case.M).argmax(1), case.M.shape[1])
    return Outcome(taken * best)


def _entries(case: Case, outcome: Outcome) -> float | None:
    return float((outcome.plan > 0).sum(-2).max()) if outcome.plan.numel() else None


def _violation(case: Case, outcome: Outcome) -> float | None:
    if not outcome.plan.numel() or case.scores is not None:
        return None
    return float((outcome.plan.sum(-1) - 1 / outcome.plan.shape[-2]).abs().sum(-1).max())


def _cost(case: Case, outcome: Outcome) -> float | None:
    return None if not case.images else float((outcome.plan * case.M).sum()) / case.exact


def _dropped(case: Case, outcome: Outcome) -> float | None:
    return None if case.scores is None else 100 * float((outcome.plan.sum(1) == 0).double().mean())


def _score(case: Case, outcome: Outcome) -> float | None:
    return None if case.scores is None else float((outcome.plan * -case.M).sum())


def _evaluations(r: Results, reached: Any) -> list[float]:
    """Evaluations until something is reached, bound by bound; the budget where it is not."""
    counts: list[float] = []
    for violations, values in r.outcomes["smoothness", TRACE].traces.values():
        there = [i for i, pair in enumerate(zip(violations, values)) if reached(*pair, values[-1])]
        counts.append(there[0] + 1 if there else _BUDGET)
    return counts


def _falls(counts: list[float]) -> int:
    """Steps in which the count falls or stays; where it stays at the budget nothing is known."""
    return sum(after <= before and after < _BUDGET for before, after in pairwise(counts))


def _colours(r: Results, factor: float) -> str:
    least = next(c.least for c in r.cases.values() if c.images)
    return f"colours, k = {int(least * factor)}"


def _to_quadratic(r: Results) -> float:
    difference = r.outcomes[_colours(r, 8), OURS].plan - r.outcomes[_colours(r, 2), QUADRATIC].plan
    return float(difference.abs().max())


def _faster(r: Results) -> Interval:
    return r.ratio(next(name for name in r.cases if " x " in name), SERIAL, BATCH)


def agree(case: Case, outcomes: Mapping[str, Outcome]) -> str:
    """A batch's plans cost what POT's do, up to the mass that either still misplaces."""
    if BATCH not in outcomes:
        return ""
    ours_, pot = outcomes[BATCH].plan, outcomes[SERIAL].plan
    off = [(p.sum(-1) - 1 / p.shape[-2]).abs().sum(-1) for p in (ours_, pot)]
    cost = [(p * case.M).sum((-2, -1)) + case.reg / 2 * p.square().sum((-2, -1)) for p in (ours_, pot)]
    worst = float(((cost[0] - cost[1]).abs() - (off[0] + off[1]) * case.M.amax((-2, -1))).max())
    return "" if worst <= 1e-5 else f"objectives of a batch differ by {worst:.2g} more than misplaced mass explains"


def transferred(case: Case, plan: Tensor) -> np.ndarray:
    """The first photograph with every colour replaced by the mean colour that its mass is sent to."""
    sent = plan @ case.images["y"] / plan.sum(1, keepdim=True).clamp_min(1e-300)
    return sent.numpy()[case.images["labels"]].reshape(case.images["source"].shape)


def plot(r: Results) -> list[Figure]:
    """The transfer, entries of the plans, smoothness, speed and dropped tokens."""
    name = _colours(r, 1.5)
    case, exact_name = r.cases[name], _colours(r, 2)
    shown = {"source": case.images["source"], "colours of": case.images["target"]}
    shown |= {f"hadamard, k = {case.k}": transferred(case, r.outcomes[name, OURS].plan)}
    shown |= {c: transferred(case, r.outcomes[exact_name, c].plan) for c in (EXACT, SINKHORN)}
    colours = [c for c in r.cases if c.startswith("colours")]
    entries = {OURS: {c[9:]: r.value(c, OURS, "entries") for c in colours}}
    entries |= {c: {exact_name[9:]: r.value(exact_name, c, "entries")} for c in (EXACT, SPARSE, QUADRATIC, SINKHORN)}
    traces = r.outcomes["smoothness", TRACE].traces
    gaps = {
        f"k = {k}": (list(range(1, len(v) + 1)), [max((v[-1] - x) / abs(v[-1]), 1e-9) for x in v])
        for k, (_, v) in reversed(traces.items())
    }
    dropped = {
        c: {name: r.value(name, c, "dropped") for name in ("routing", "routing, sharper scores")}
        for c in (ROUTER, GREEDY, CHOICE)
    }
    return [
        pictures(
            shown,
            limits=(0.0, 1.0),
            caption="Colour transfer: with a bounded number of entries the picture is that of the exact plan.",
        ),
        bars(
            entries, y="entries in the fullest column", log=True, caption="No column has more entries than asked for."
        ),
        lines(
            gaps,
            x="evaluations of the dual",
            y="relative gap of the dual",
            log="xy",
            markers=False,
            caption="The larger the bound, the smoother the dual and the sooner it is solved.",
        ),
        bars(
            dropped, y="dropped tokens, %", caption="With as many places as tokens, greedy rules drop every sixth one."
        ),
    ]


def _is(kind: str) -> Any:
    return lambda case: case.startswith(kind)


def _twice(case: str) -> bool:
    """The case in which all solvers of one problem take part: twice the least bound (8 places, so 16)."""
    return case == "colours, k = 16"


claim = Claim(
    key="sparse_ot",
    statement=(
        "A transport plan with at most k entries in a column, at the cost of the exact plan; the larger k, the "
        "smoother the problem. A batch is solved at once, and a router on it serves every token with full experts."
    ),
    paper_figure=(
        "k bounds the entries exactly, between unregularised (k = 1) and quadratically regularised transport; larger k "
        "converge faster; as a router of a vision mixture of experts on a par with or above top-k and Sinkhorn routing "
        "(arXiv 2209.15466, figures 3 and 4, table 2)"
    ),
    sizes={
        "quick": {"n": 256, "m": 32, "batches": [[32, 256, 32]]},
        "full": {"n": 512, "m": 64, "batches": [[32, 256, 32], [1, 4096, 64]]},
    },
    problem=problem,
    contenders=[
        Contender(OURS, ours, cases=_is("colours"), once=True),
        Contender(QUADRATIC, lambda case: pot_smooth(case, "l2"), "baseline", cases=_twice, once=True),
        Contender(SPARSE, lambda case: pot_smooth(case, "sparsity_constrained"), "peer", cases=_twice, once=True),
        Contender(SINKHORN, sinkhorn, "peer", cases=_twice, once=True),
        Contender(EXACT, exact, "peer", cases=_twice, once=True),
        Contender(TRACE, trace, cases=_is("smoothness"), once=True),
        Contender(BATCH, batched, cases=lambda case: " x " in case),
        Contender(
            SERIAL,
            lambda case: pot_smooth(case, "sparsity_constrained", 1e-9),
            "peer",
            cases=lambda case: " x " in case,
        ),
        Contender(ROUTER, route, cases=_is("routing"), once=True),
        Contender(GREEDY, greedy, "baseline", cases=_is("routing"), once=True),
        Contender(CHOICE, expert_choice, "peer", cases=_is("routing"), once=True),
    ],
    measures=[
        Measure("entries", "in the fullest column", _entries),
        Measure("violation", "mass", _violation),
        Measure("cost", "of the exact plan's", _cost),
        Measure("dropped", "%", _dropped),
        Measure("score", "1", _score),
    ],
    bars=[
        Bar(
            text="colours: most entries in a column, over k",
            source="card, claim 1",
            original_bound="nnz per column ≤ k always (Sinkhorn 100 % dense)",
            sense="<=",
            bound=1,
            value=lambda r: max(r.value(c, OURS, "entries") / r.cases[c].k for c in r.cases if c.startswith("colours")),
            headline=True,
        ),
        Bar(
            text="colours: cost at twice the least k, over the exact plan's",
            source="card, claim 1",
            original_bound="transport cost ≤ 1.02x emd at 2x minimal k",
            sense="<=",
            bound=1.02,
            value=lambda r: r.value(_colours(r, 2), OURS, "cost"),
            headline=True,
        ),
        Bar(
            text="colours: largest row error at 1.25 times the least k and above",
            source="card, claim 1",
            original_bound="row error ≤ 1e-3 for k ≥ 1.2–1.5x the minimum",
            sense="<=",
            bound=1e-3,
            value=lambda r: max(r.value(_colours(r, f), OURS, "violation") for f in (1.25, 1.5, 2, 4, 8)),
        ),
        Bar(
            text="smoothness: of five steps in k, those that take no more evaluations to a row error of 1e-3",
            source="card, claim 2",
            original_bound="iterations to ‖∇‖₁ ≤ 1e-3 decrease with k (monotone in at least 4 of 5 steps)",
            sense=">=",
            bound=4,
            value=lambda r: _falls(_evaluations(r, lambda violation, value, best: violation <= 1e-3)),
            why="where the bound binds the optimum is a kink of the dual, at which no gradient is small",
        ),
        Bar(
            text="smoothness: of five steps in k, those that take no more evaluations to a dual gap of 1e-5",
            source="card, claim 2",
            original_bound="iterations to ‖∇‖₁ ≤ 1e-3 decrease with k (monotone in at least 4 of 5 steps)",
            sense=">=",
            bound=4,
            value=lambda r: _falls(_evaluations(r, lambda violation, value, best: value >= best - 1e-5 * abs(best))),
            weakened="where k binds the gradient stays large at a kink; the dual's value tells how near the optimum is",
            headline=True,
        ),
        Bar(
            text="colours: largest difference to POT's quadratic plan where k is 8 times the least",
            source="card, claim 2",
            original_bound="k large equals quadratic-OT plan to 1e-5",
            sense="<=",
            bound=1e-5,
            value=_to_quadratic,
        ),
        Bar(
            text="32 problems of 256 x 32: time of POT over ours",
            source="card, claim 3",
            original_bound="batched torch top-k version vs POT for B = 32 problems 256×32 or one 4096×64: ≥ 5x",
            sense=">=",
            bound=5,
            value=_faster,
            seconds=True,
            why=(
                "one thread, small problems: an evaluation is some ten passes over the scores, which only a compiled "
                "kernel could fuse; leaving out the problems that are finished gains less than a tenth"
            ),
        ),
        Bar(
            text="routing: tokens that no expert receives, in %",
            source="card, claim 4",
            original_bound="dropped-token rate: ours 0–1 % vs greedy top-1 with capacity k dropping ≥ 5 %",
            sense="<=",
            bound=1,
            value=lambda r: r.value("routing", ROUTER, "dropped"),
        ),
        Bar(
            text="routing: tokens that greedy top-1 with the same places drops, in %",
            source="card, claim 4",
            original_bound="dropped-token rate: ours 0–1 % vs greedy top-1 with capacity k dropping ≥ 5 %",
            sense=">=",
            bound=5,
            value=lambda r: r.value("routing", GREEDY, "dropped"),
        ),
        Bar(
            text="routing: most tokens of an expert over the mean",
            source="card, claim 4",
            original_bound="expert load max/mean = 1 by construction (≤ k tokens)",
            sense="<=",
            bound=1,
            value=lambda r: r.value("routing", ROUTER, "entries") / r.cases["routing"].k,
        ),
        Bar(
            text="routing: total score over that of greedy expert choice, each token served once",
            source="card, claim 4",
            original_bound="total score ≥ greedy expert-choice's score under 'each token served once'",
            sense=">=",
            bound=1,
            value=lambda r: r.value("routing", ROUTER, "score") / r.value("routing", CHOICE, "score"),
        ),
    ],
    plot=plot,
    agree=agree,
    requires=("ot",),
    rounds={"quick": 2, "full": 3},
    threads=1,
)
