"""Lion-K against AdamW and lion-pytorch: constrained solutions, the two phases, the rate, memory and speed."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.optim.lion_k_problems import ADAMW, FUSED, LION, OURS, Digits, problem
from hadamard.claims.plots import bars, lines
from hadamard.rates import loglog_slope

__all__ = ["claim"]


def _contender(name: str, role: Any, *cases: str, once: bool = True) -> Contender:
    return Contender(name=name, run=lambda case: case(name), role=role, cases=lambda c: c in cases, once=once)


def _agree(case: Any, outcomes: Mapping[str, Any]) -> str:
    if isinstance(case, Digits) and not np.array_equal(outcomes[OURS]["weights"], outcomes[LION]["weights"]):
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
    problem=problem,
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
