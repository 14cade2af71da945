"""Transport problems and routing scores, and the solvers and routers that are tried on them."""

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hadamard.transport import SparseRouter, sparsity_constrained_ot
from hadamard.transport.semidual import SparseSquaredL2, ascend, prepare_semi_dual

__all__ = [
    "BUDGET",
    "Case",
    "Outcome",
    "batched",
    "bounds",
    "exact",
    "expert_choice",
    "greedy",
    "ours",
    "pot_smooth",
    "problem",
    "route",
    "sinkhorn",
    "trace",
]

BUDGET = 400  # evaluations, where a violation is not reached


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
    for reg in (1.0, 0.1):
        cases[f"smoothness, reg = {reg:g}"] = Case(M, reg=reg, least=least)
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
        ascend(_watched(objective, seen), torch.zeros_like(a), case.reg, a.new_full((1,), 1e-8), BUDGET)
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
