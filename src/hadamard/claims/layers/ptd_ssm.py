"""Perturb-then-diagonalise against S4D, S5 and eig: transfer functions, conditioning, a sine, training, cost."""

from collections.abc import Mapping
from typing import Any

from hadamard.claims import Bar, Claim, Contender, Interval, Measure, Results
from hadamard.claims.layers.ptd_ssm_problem import (
    ATTENTION,
    DENSE,
    EIG,
    LOOP,
    OPTIMISED,
    RANDOM,
    S4D,
    S5,
    SCAN,
    UNGUARDED,
    Cost,
    Sine,
    Transfer,
    Trap,
)
from hadamard.claims.layers.ptd_ssm_training import Training
from hadamard.claims.plots import bars, lines

__all__ = ["claim"]

TRAP, TRAINED = "E of 10 % of ||A||", "digits, pixel by pixel"
BRIEF = f"{TRAINED}, brief"  # quick: two networks, one seed
NET, NET_S4D, NET_S5, NET_S5_PTD = "S4-PTD", "S4D", "S5", "S5-PTD"
_NETS: dict[str, dict[str, Any]] = {
    NET: {"init": "ptd"},
    NET_S4D: {"init": "s4d-legs"},
    NET_S5: {"init": "s5", "mimo": True},
    NET_S5_PTD: {"init": "ptd", "mimo": True},
}
_SIZES = (1e-3, 1e-2, 1e-1)


def _problem(
    seed: int, states: tuple[int, ...], steps: tuple[float, ...], lengths: tuple[int, ...], training: dict[str, Any]
) -> Mapping[str, Any]:
    cases: dict[str, Any] = {f"n = {n}": Transfer(n, 5, _SIZES, seed) for n in states}
    cases[TRAP] = Trap(states)
    cases |= {f"sine, n = {n}, step {dt}": Sine(n, dt, seed) for n in (states[0], states[-1]) for dt in steps}
    cases |= {f"L = {length}": Cost(4, length, 64, 32, seed) for length in lengths}
    spike = Sine(16, 0.02, seed).omega
    return cases | {TRAINED if training["seeds"] > 1 else BRIEF: Training(seed, omega=spike, **training)}


def _contender(kind: str, role: Any, *groups: str, **options: Any) -> Contender:
    return Contender(kind, lambda case: case(kind), role, lambda name: name.startswith(groups), **options)


def _net(kind: str, role: Any) -> Contender:
    cases = (TRAINED, BRIEF) if kind in (NET, NET_S4D) else (TRAINED,)
    return Contender(kind, lambda case: case(_NETS[kind]), role, lambda name: name in cases, once=True)


def _measure(name: str, unit: str = "") -> Measure:
    return Measure(name, unit, lambda case, outcome: outcome.get(name) if isinstance(outcome, dict) else None)


def _agree(case: Any, outcomes: Mapping[str, Any]) -> str:
    if isinstance(case, Cost):
        for name in (S5, LOOP):
            if name in outcomes and float((outcomes[name] - outcomes[SCAN]).abs().max()) > 1e-5:
                return f"{name} and {SCAN} differ with the same weights"
    if isinstance(case, Sine) and outcomes[DENSE]["deviation"] > 1e-6:
        return "SciPy's recurrence has not settled to the response that the transfer function predicts"
    return ""


def _transfers(r: Results) -> list[str]:
    return [c for c in r.cases if c.startswith("n = ")]


def _slopes(r: Results, kinds: tuple[str, ...]) -> list[float]:
    import numpy as np

    found = [r.outcomes[c, k]["errors"] for c in _transfers(r) for k in kinds]
    return [float(np.polyfit(np.log(_SIZES), np.log(errors), 1)[0]) for errors in found]


def _gain(r: Results) -> float:
    """The smallest factor over sizes by which optimising E lowers the condition number."""
    return min(r.value(c, RANDOM, "cond") / r.value(c, OPTIMISED, "cond") for c in _transfers(r))


def _ratio(r: Results, measure: str, over: str, kinds: tuple[str, ...], names: list[str]) -> float:
    """The largest ratio of a measure of ``kinds`` to that of ``over``."""
    return max(r.value(c, k, measure) / r.value(c, over, measure) for c in names for k in kinds)


def _growth(r: Results) -> Interval:
    names = [c for c in r.cases if c.startswith("L = ")]
    x = [float(c[4:]) for c in names]
    ours, attention = (r.slope(x, kind, "seconds", names) for kind in (SCAN, ATTENTION))
    return Interval(ours.value - attention.value, ours.low - attention.high, ours.high - attention.low)


def _trained(r: Results, measure: str, kind: str) -> float:
    return r.value(TRAINED if TRAINED in r.cases else BRIEF, kind, measure)


def _longest(r: Results) -> str:
    return [c for c in r.cases if c.startswith("L = ")][-1]


def _plot(r: Results) -> list[dict[str, Any]]:
    last = _transfers(r)[-1]
    case = r.cases[last]
    gains = {"S4D-LegS": r.outcomes[last, S4D]["gain"], "PTD, ||E|| = 0.01": r.outcomes[last, RANDOM]["gain"]}
    series = {k: (case.omega.tolist(), gains[k].tolist()) for k in reversed(gains)}
    series["HiPPO"] = (case.omega.tolist(), case.exact.abs().tolist())
    names = [c for c in r.cases if c.startswith("L = ")]
    x = [float(c[4:]) for c in names]
    name = TRAINED if TRAINED in r.cases else BRIEF
    trained, nets = r.cases[name], [k for k in _NETS if (name, k) in r.outcomes]
    sines = [c for c in r.cases if c.startswith("sine")]
    return [
        lines(
            series, x="angular frequency", y="gain", log="xy", markers=False,
            caption=f"Transfer functions with the same output weights, {last}: S4D has spikes that HiPPO has not; the "
            "curves of PTD and HiPPO lie on each other.",
        ),
        bars(
            {k: {c: r.value(c, k, "deviation") for c in sines} for k in (OPTIMISED, S4D)},
            y="deviation from HiPPO's output", log=True,
            caption="A sine of amplitude 1 where S4D deviates most, after the start has died away.",
        ),
        lines(
            {k: (trained.axis, r.outcomes[name, k]["noisy"]) for k in nets},
            x="frequency of the sine added to the pixels (rad a sample)", y="accuracy (%)", markers=False,
            caption="Networks trained on clean digits; the spike that S4D starts with lies at "
            f"{trained.omega * trained.dt:.2f}.",
        ),
        lines(
            {k: (x, r.series(k, "seconds", names)) for k in (SCAN, S5, ATTENTION)},
            x="length", y="seconds", log="xy",
            caption="One forward pass of four sequences with 64 channels: the layer grows with the length, attention "
            "with its square.",
        ),
    ]  # fmt: skip


_C1 = (
    "PTD(0.01) error <= S4D error/1000, and log-log slope of error in ||E|| over 1e-3..1e-1 in [0.75,1.25] with the "
    "median of 5 draws of E"
)
_C2 = (
    "cond(PTD 0.01) <= 1e-3 * cond(eig) at n=16, <= 1e-10 at n=64. Minimising cond over E at equal ||E|| must beat the "
    "random median by >= 2x."
)
_C4 = (
    "clean accuracy PTD >= S4D - 1 point; add A*sin(w0 t) at the frequency where |G-G_D| peaks: accuracy drop of PTD "
    "<= half that of S4D."
)
_COST = "cost measured as growth in n (slope) and as a ratio to the layer replaced"
_STATES, _STEPS = (16, 32, 64), (1e-3, 5e-3)

claim = Claim(
    key="ptd_ssm",
    statement="HiPPO perturbed by 0.01 and then diagonalised keeps HiPPO's transfer function to about 1e-3 at every "
    "size, where S4D's diagonal start is wrong by several times the largest gain; its eigenvectors can be computed "
    "with, where those of HiPPO are noise; and a sine at S4D's spike passes as HiPPO lets it pass. The layer computes "
    "what s5-pytorch computes with the same weights. Networks trained on digits keep what they started with: a sine at "
    "the spike costs those that start from S4D or S5 many points, those with PTD hardly any; but trained for long, on "
    "clean digits, S4D's start is the more accurate one.",
    paper_figure="S4D's and S5's transfer functions do not converge to HiPPO's, PTD's do, with an error linear in "
    "||E|| (theorems 2 and 3). Long Range Arena: S4-PTD 86.58 % against 84.89 % for S4D, S5-PTD 87.61 % against "
    "87.46 % for S5. On sequential CIFAR-10 with a sine of 10 % at the spikes, S4D fails and S4-PTD does not.",
    sizes={
        "quick": {
            "states": _STATES, "steps": _STEPS, "lengths": (256, 1024),
            "training": {"seeds": 1, "epochs": 12, "rates": (3e-2,), "width": 16, "depth": 1, "frequencies": 24},
        },
        "full": {
            "states": _STATES, "steps": _STEPS, "lengths": (256, 1024, 4096, 8192),
            "training": {"seeds": 3, "epochs": 12, "rates": (3e-2,), "width": 24},
        },
        "gpu": {
            "states": (*_STATES, 128), "steps": _STEPS, "lengths": (256, 1024, 4096, 16384),
            "training": {"seeds": 3, "epochs": 40, "rates": (3e-3, 1e-2)},
        },
    },
    problem=_problem,
    contenders=[
        _contender(RANDOM, "method", "n = ", TRAP, once=True),
        _contender(OPTIMISED, "method", "n = ", "sine", once=True),
        _contender(SCAN, "method", "L = "),
        _net(NET, "method"), _net(NET_S5_PTD, "method"),
        _contender(S4D, "baseline", "n = ", "sine", once=True),
        _contender(EIG, "baseline", "n = ", once=True),
        _contender(UNGUARDED, "ablation", TRAP, once=True),
        _contender(DENSE, "peer", "sine", once=True),
        _contender(S5, "peer", "L = "),
        _contender(ATTENTION, "peer", "L = "),
        _contender(LOOP, "ablation", "L = 256", once=True),
        _net(NET_S4D, "baseline"), _net(NET_S5, "baseline"),
    ],
    measures=[
        _measure("error"), _measure("relative error"), _measure("cond"), _measure("backward error"),
        _measure("unstable"), _measure("largest real part"), _measure("deviation"), _measure("amplitude"),
        _measure("accuracy", "%"), _measure("drop", "points"), _measure("best rate"),
    ],
    bars=[
        Bar("Largest error of the transfer function with ||E|| = 0.01 over that of S4D, worst of the sizes, E random "
            "or optimised", "card, claim C1", _C1, "<=", 1 / 1000,
            lambda r: _ratio(r, "error", S4D, (RANDOM, OPTIMISED), _transfers(r)), headline=True),
        Bar("Slope of the error in ||E||, smallest of the sizes", "card, claim C1", _C1, ">=", 0.75,
            lambda r: min(_slopes(r, (RANDOM,)))),
        Bar("Slope of the error in ||E||, largest of the sizes", "card, claim C1", _C1, "<=", 1.25,
            lambda r: max(_slopes(r, (RANDOM,)))),
        Bar("Condition number of the eigenvectors over that of eig at n = 16", "card, claim C2", _C2, "<=", 1e-3,
            lambda r: _ratio(r, "cond", EIG, (RANDOM, OPTIMISED), ["n = 16"])),
        Bar("Condition number of the eigenvectors over that of eig at n = 64", "card, claim C2", _C2, "<=", 1e-10,
            lambda r: _ratio(r, "cond", EIG, (RANDOM, OPTIMISED), ["n = 64"])),
        Bar("Optimising E at equal size lowers the condition number below the random median, smallest factor",
            "card, claim C2", _C2, ">=", 2, _gain),
        Bar("Unstable results that are returned where E has 10 % of the norm of A", "card, claim C3",
            "the bar is that `ptd` returns Re<0 or raises", "==", 0.0, lambda r: r.value(TRAP, RANDOM, "unstable")),
        Bar("Deviation of the layer's output from HiPPO's on a sine at S4D's spike, over that of S4D, worst case",
            "card, claim C4", "accuracy drop of PTD <= half that of S4D ... the layer-level version without training "
            "(steady-state output to a sine at that frequency vs the exact dense HiPPO recurrence, Delta=1e-3..5e-3) "
            "is deterministic and is the safer claim", "<=", 0.5,
            lambda r: _ratio(r, "deviation", S4D, (OPTIMISED,), [c for c in r.cases if c.startswith("sine")])),
        Bar("Clean accuracy of S4-PTD less that of S4D, in points", "card, claim C4", _C4, ">=", -1.0,
            lambda r: _trained(r, "accuracy", NET) - _trained(r, "accuracy", NET_S4D),
            why="Not conditioning: with ||E|| = 1 and eigenvectors seven times better conditioned it came out alike in "
            "a trial. Probably the spikes themselves: on 64 pixels S4D's lightly damped modes are filters that "
            "HiPPO does not have. The paper's gains are on sequences of 1,000 samples and more."),
        Bar("Accuracy lost to a sine at the spike, S4-PTD over S4D", "card, claim C4", _C4, "<=", 0.5,
            lambda r: _trained(r, "drop", NET) / max(_trained(r, "drop", NET_S4D), 1e-9)),
        Bar("Growth of the seconds with the length: slope of the layer less slope of attention", "issue 4", _COST,
            "<", 0.0, _growth, seconds=True),
        Bar("Seconds of the layer over those of s5-pytorch with the same weights at the greatest length", "issue 4",
            _COST, "<=", 1.0, lambda r: r.ratio(_longest(r), SCAN, S5), seconds=True),
    ],
    plot=_plot,
    requires=["s5"],
    agree=_agree,
    threads=1,
    rounds={"quick": 5, "full": 7, "gpu": 9},
)  # fmt: skip
