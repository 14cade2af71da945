"""M-FAC against dense inverses, SGD, Adam, magnitude pruning and the diagonal of the Fisher matrix."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.claim import Interval
from hadamard.claims.optim.m_fac_problem import (
    ADAM,
    AGAIN,
    DENSE,
    DIAGONAL,
    MAGNITUDE,
    OURS,
    PAPER,
    SGD,
    Inverse,
    problem,
)
from hadamard.claims.plots import bars, lines

__all__ = ["claim"]


def _contender(name: str, role: Any, where: Callable[[str], bool], once: bool = True) -> Contender:
    return Contender(name, lambda case: case(name), role, where, once=once)


def _timed(case: str) -> bool:
    return case.startswith(("d =", "m ="))


def _learns(case: str) -> bool:
    return case in ("digits", "scales")


def _measure(name: str, unit: str) -> Measure:
    return Measure(name, unit, lambda case, out: out.get(name) if isinstance(out, dict) else None)


def _over_sgd(case: str, measure: str) -> Callable[[Results], float]:
    return lambda r: r.value(case, OURS, measure) / r.value(case, SGD, measure)


def _error(r: Results) -> float:
    """The largest relative error of the products over the numbers of gradients."""
    cases = [name for name, case in r.cases.items() if isinstance(case, Inverse)]
    pairs = [(r.outcomes[c, OURS], r.outcomes[c, DENSE]) for c in cases]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def _slope(r: Results) -> Interval:
    names = [name for name in r.cases if name.startswith("d =")]
    return r.slope([r.cases[name].d for name in names], OURS, "seconds", names)


def _ahead(r: Results) -> float:
    """Points above magnitude pruning at the highest sparsity at which that loses at least 15."""
    ours, other = (r.outcomes["pruning", name] for name in (OURS, MAGNITUDE))
    lost = [s for s, a in other["accuracies"].items() if other["dense"] - a >= 15]
    return ours["accuracies"][max(lost)] - other["accuracies"][max(lost)] if lost else float("nan")


def _plot(r: Results) -> list[dict[str, Any]]:
    sizes = [name for name in r.cases if name.startswith("d =")]
    windows = [name for name in r.cases if name.startswith("m =")]
    curves = {name: np.convolve(r.outcomes["digits", name]["curve"], np.ones(10) / 10, "valid").tolist()
              for name in (OURS, SGD, ADAM)}  # fmt: skip
    pruned = {name: r.outcomes["pruning", name]["accuracies"] for name in (OURS, PAPER, MAGNITUDE, DIAGONAL)}
    return [
        lines({name: (list(range(len(curve))), curve) for name, curve in curves.items()},
              x="step", y="training loss, mean of ten steps", log="y", markers=False,
              caption="A small network on digits, each optimizer at the best of its ten settings."),
        lines({name: (list(range(1, 201)), r.outcomes["scales", name]["curve"]) for name in (OURS, SGD, ADAM)},
              x="step", y="loss", log="y", markers=False,
              caption="Logistic regression on features of scales 1 to 1000, each at the best of its ten settings."),
        lines({name: ([100 * s for s in found], list(found.values())) for name, found in pruned.items()},
              x="weights removed at once (%)", y="test accuracy (%)",
              caption="A trained network after pruning, without training again: second-order information helps until "
              "so much is removed that nothing does."),
        lines({OURS: ([r.cases[n].d for n in sizes], [r.value(n, OURS, "seconds") for n in sizes])},
              x="parameters", y="seconds a step", log="xy", caption="32 gradients in the window: linear in the size."),
        bars({name: {c: r.value(c, name, "seconds") for c in windows} for name in (OURS, AGAIN)},
             y="seconds a step", log=True,
             caption="A step that forms the products of the newest gradient alone, and one that forms them all."),
    ]  # fmt: skip


_C1 = (
    "against dense torch.linalg.solve, rel. error ≤1e-8 (f64) for m∈{1,16,64}, d≤2000; time per dynamic step grows "
    'linearly in d (log-log slope 0.85..1.15 for d=1e5→3e6, m=32) and "recompute GGᵀ each step" (O(dm²)) is ≥1.5× '
    "slower at m=64 and ≥3× at m=256 (d=1e6; memory bandwidth limits the gain)."
)
_C2 = (
    "final train loss of MFAC(m=32) ≤ SGD+momentum's, test accuracy ≥ SGD - 0.5 pt, wall-time per step ≤ 3× SGD. On an "
    "ill-conditioned logistic regression (feature scales 1..1e3) loss after 200 steps ≤ 0.1× SGD's."
)
_C3 = (
    "one-shot to 80-95 %: accuracy(M-FAC OBS, m=256, full or block 128) − accuracy(magnitude) ≥ +5 pt at the highest "
    "sparsity where magnitude loses ≥15 pt"
)

claim = Claim(
    key="m_fac",
    statement="Products with the inverse of the damped empirical Fisher matrix of m gradients are exact to rounding "
    "and linear in the number of parameters, and a step of the optimizer forms those of the newest gradient only. On "
    "digits the optimizer, with a damp of 0.01 or 0.001 (the paper's default of 1e-5 fails here), comes near tuned SGD "
    "and, over several seeds, does not pass it. Pruned at once, a network keeps more accuracy than by magnitude at 80 "
    "and 90 %, and at 95 % no way keeps any.",
    paper_figure="Pruning: recovers or beats WoodFisher and magnitude pruning on ResNet-50 and MobileNetV1; as an "
    "optimizer best or second best beside SGD, Adam, K-FAC and GGT on CIFAR and ImageNet (abstract and figures).",
    sizes={
        "quick": {"d": 500, "sizes": (100_000, 300_000, 1_000_000), "wide": (200_000, 100_000), "epochs": 6,
                  "seeds": 1, "sparsities": (0.8, 0.9, 0.95)},
        "full": {"d": 2000, "sizes": (100_000, 300_000, 1_000_000, 3_000_000), "wide": (1_000_000, 1_000_000),
                 "epochs": 10, "seeds": 5, "sparsities": (0.8, 0.85, 0.9, 0.95)},
    },
    problem=problem,
    contenders=[
        _contender(OURS, "method", lambda c: not _timed(c)),
        _contender(OURS, "method", _timed, once=False),
        _contender(AGAIN, "ablation", lambda c: c.startswith("m ="), once=False),
        _contender(DENSE, "baseline", lambda c: c.endswith("gradients")),
        _contender(SGD, "baseline", _learns),
        _contender(ADAM, "peer", _learns),
        _contender(MAGNITUDE, "baseline", lambda c: c == "pruning"),
        _contender(DIAGONAL, "baseline", lambda c: c == "pruning"),
        _contender(PAPER, "ablation", lambda c: c == "pruning"),
    ],
    measures=[
        _measure("training loss", ""), _measure("test accuracy", "%"), _measure("loss", ""), _measure("rate", ""),
        _measure("second setting", ""), _measure("milliseconds a step", "ms"),
    ],
    bars=[
        Bar("products of 1, 16 and 64 gradients, double precision: largest relative error", "card, claim 1", _C1, "<=",
            1e-8, _error),
        Bar("32 gradients, time of a step against the parameters: slope of the logarithms", "card, claim 1", _C1, "<=",
            1.15, _slope, seconds=True),
        Bar("the same slope, not less than", "card, claim 1", _C1, ">=", 0.85, _slope, seconds=True),
        Bar("64 gradients: time with all products formed again over ours", "card, claim 1", _C1, ">=", 1.5,
            lambda r: r.ratio("m = 64", AGAIN, OURS), seconds=True),
        Bar("256 gradients: time with all products formed again over ours", "card, claim 1", _C1, ">=", 3,
            lambda r: r.ratio("m = 256", AGAIN, OURS), seconds=True),
        Bar("digits: training loss over that of SGD with momentum", "card, claim 2", _C2, "<=", 1,
            _over_sgd("digits", "training loss"), headline=True,
            why="It holds after six epochs with one seed (size quick); over five seeds and ten epochs SGD with "
            "momentum ends lower, and is 0.7 points more accurate. All were tuned on the first seed; the cause is not "
            "known."),
        Bar("digits: points of test accuracy below SGD with momentum", "card, claim 2", _C2, "<=", 0.5,
            lambda r: r.value("digits", SGD, "test accuracy") - r.value("digits", OURS, "test accuracy")),
        Bar("digits: time of a step of training over that with SGD", "card, claim 2", _C2, "<=", 3,
            _over_sgd("digits", "milliseconds a step"), seconds=True),
        Bar("features of scales 1 to 1000: loss over SGD's after 200 steps", "card, claim 2", _C2, "<=", 0.1,
            _over_sgd("scales", "loss"),
            why="The labels are noisy, so that no weights reach a tenth of SGD's loss; on labels without noise the "
            "ratio was 0.4 in a trial. A Fisher matrix of 32 gradients of batches of 32 is a rough one."),
        Bar("pruning: points above magnitude at the highest sparsity at which that loses 15", "card, claim 3", _C3,
            ">=", 5, _ahead, headline=True,
            why="At 95 % of this small network (8,800 weights) all ways end near guessing. At 90 %, where magnitude "
            "loses more than 15 points too, the plot shows ours ahead."),
    ],
    plot=_plot,
    threads=1,
    rounds={"quick": 3, "full": 5},
)  # fmt: skip
