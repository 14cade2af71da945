"""How many images networks need that share weights, look locally, or do neither: measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.learning.dynamic_signal_digits import Digits
from hadamard.claims.plots import Figure, lines
from hadamard.learning import SampleComplexity, bayes_error, make_dynamic_signal, sample_complexity, signal_errors
from hadamard.rates import loglog_slope

CONV, LOCAL, FULL, BAYES = "convolutional", "locally connected", "fully connected", "Bayes rule"
KINDS = {CONV: "conv", LOCAL: "local", FULL: "full"}
SIZES = [round(8 * 1.5**i) for i in range(19)]  # 8 to 11,823
AVERAGES, FLOOR, DIGITS = "averages", "floor", "digits"


@dataclass(frozen=True)
class Search:
    """Images that a network needs for an error."""

    k: int
    d: int
    noise: float
    target: float
    seeds: Sequence[int]
    most: int
    least: int = SIZES[0]
    static: bool = False

    def __call__(self, kind: str) -> SampleComplexity:
        """The smallest size on a grid with steps of 1.5."""

        def errors(n: int, seeds: Sequence[int]) -> Sequence[float]:
            return signal_errors(kind, n, seeds, self.k, self.d, self.noise, static=self.static)

        return sample_complexity(errors, [n for n in SIZES if self.least <= n <= self.most], self.target, self.seeds)


@dataclass(frozen=True)
class Averages:
    """What the first step of training sees: averages of ``y x``, over patches or not."""

    k: int
    d: int
    noise: float
    n: int
    draws: int
    seed: int

    def __call__(self, kind: str) -> dict[str, float]:
        """Squared cosine with the signal, as measured and by the closed form."""
        cosines = []
        for draw in range(self.draws):
            X, y, info = make_dynamic_signal(self.n, self.k, self.d, noise=self.noise, random_state=self.seed + draw)
            average = (X * y[:, None]).reshape(self.n, self.k, self.d).mean(0)
            average = average.sum(0, keepdims=True) if kind == "conv" else average
            cosines.append(np.mean((average @ info.signal) ** 2 / (average**2).sum(1)))
        k = self.k if kind == "conv" else self.k**2
        return {"measured": float(np.mean(cosines)), "closed form": 1 / (1 + self.noise**2 * k * self.d / self.n)}


@dataclass(frozen=True)
class Floor:
    """The error from many images."""

    k: int
    d: int
    noise: float
    n: int
    seeds: Sequence[int]

    def __call__(self, kind: str) -> float:
        """Mean test error."""
        options: dict[str, Any] = {"steps": 300, "weight_decay": 0.0, "n_test": 20_000}
        return float(np.mean(signal_errors(kind, self.n, self.seeds, self.k, self.d, self.noise, **options)))


def problem(
    seed: int, orders: tuple[int, ...], seeds: tuple[int, int], least: int, most: int, averages: int, floor: int,
    digits: Mapping[str, Any],
) -> Mapping[str, Any]:  # fmt: skip
    """Searches at two noise levels, averages, a floor, and digits on canvases."""
    first, second = (range(seed, seed + s) for s in seeds)
    cases: dict[str, Any] = {f"order, k = {k}": Search(k, 16, 0.25, 0.1, first, most, least) for k in orders}
    cases |= {f"slope, k = {k}": Search(k, 8, 0.3, 0.15, second, most) for k in (4, 8, 16)}
    cases["static, k = 16"] = Search(16, 16, 0.25, 0.1, first, most, static=True)
    cases[AVERAGES] = Averages(8, 16, 0.3, 200, averages, seed)
    cases[FLOOR] = Floor(8, 8, 0.4, floor, first)
    return cases | {DIGITS: Digits(seed=seed, **digits)}


def _contender(name: str, role: Any) -> Contender:
    kind = KINDS[name]

    def cases(case: str) -> bool:
        if case.startswith("slope") or case == AVERAGES:
            return kind != "full"
        return kind == "conv" if case == FLOOR else True

    return Contender(name, lambda case: case(kind), role, cases, once=True)


def _needed(r: Results, case: str, name: str) -> float:
    return r.outcomes[case, name].n


def _at_least(r: Results, case: str, over: str, under: str) -> float:
    """Ratio of the sizes; where the larger one was not reached, of the largest size that was tried."""
    found = r.outcomes[case, over]
    n = max(found.curve) if math.isinf(found.n) else found.n
    return n / _needed(r, case, under)


def _slope(r: Results, name: str) -> float:
    cases = [c for c in r.cases if c.startswith("slope")]
    return loglog_slope([r.cases[c].k for c in cases], [_needed(r, c, name) for c in cases])[0]


def _off(r: Results, name: str) -> float:
    outcome = r.outcomes[AVERAGES, name]
    return abs(outcome["measured"] / outcome["closed form"] - 1)


def _measure(case: Any, outcome: Any) -> float | None:
    if not isinstance(outcome, SampleComplexity):
        return None
    return float(max(outcome.curve)) if math.isinf(outcome.n) else float(outcome.n)


def plot(r: Results) -> list[Figure]:
    """Error against images, images against patches, and digits."""
    curves = {}
    for name in KINDS:
        curve = r.outcomes["order, k = 16", name].curve
        curves[name] = (list(curve), list(curve.values()))
    slopes = [c for c in r.cases if c.startswith("slope")]
    ks = [r.cases[c].k for c in slopes]
    needed = {name: (ks, [_needed(r, c, name) for c in slopes]) for name in (CONV, LOCAL)}
    on_digits = {}
    for name in KINDS:
        curve = r.outcomes[DIGITS, name].curve
        on_digits[name] = (list(curve), list(curve.values()))
    return [
        lines(
            curves, x="images", y="test error", log="x", reference={"target": 0.1},
            caption="16 patches of 16 pixels: the convolutional network crosses the line first, the fully connected "
            "one last or not at all (the search tries few sizes, and mostly near the crossing).",
        ),
        lines(
            needed, x="patches, k", y="images for an error of 0.15", log="xy",
            caption="Without weight sharing the number of images grows much faster with the number of patches.",
        ),
        lines(
            on_digits, x="images", y="test error", log="x", reference={"target": 0.2},
            caption="Digits at a random place on a noisy canvas: the same order.",
        ),
    ]  # fmt: skip


_C1 = "at k=16: LCN/CNN >= 5 (measured 11) and FCN/LCN >= 5 (measured >25)"
_C2 = "CNN slope <= 1.3, LCN slope >= CNN slope + 0.7"
_C3 = "1% at cos^2>.5 for CNN, 3% for LCN"
_C5 = "n for 80% accuracy by conv < local < full (ratio >= 2 each)"

claim = Claim(
    key="dynamic_signal",
    statement="Where a signal may appear in any patch, a network that shares its weights over patches learns it from "
    "several times fewer images than one that is merely local, and that from several times fewer than a fully "
    "connected one; the gap grows with the number of patches. Where the signal stays in its place it is the other way "
    "round.",
    paper_figure="up to logarithms a convolutional network needs k + d images, a locally connected one at least k d "
    "and no more than k (k + d), a fully connected one at least k^2 d, under training that commutes with rotations "
    "(abstract)",
    sizes={
        "quick": {
            "orders": (16,), "seeds": (3, 3), "least": 27, "most": 5300, "averages": 100, "floor": 1000,
            "digits": {"sizes": (300, 2700, 4050, 8100), "seeds": 1, "steps": 300},
        },
        "full": {
            "orders": (4, 8, 16), "seeds": (4, 4), "least": 8, "most": 12_000, "averages": 1000, "floor": 20_000,
            "digits": {"sizes": tuple(round(100 * 1.5**i) for i in range(12)), "seeds": 2, "steps": 400},
        },
    },
    problem=problem,
    contenders=[
        _contender(CONV, "method"),
        _contender(LOCAL, "baseline"),
        _contender(FULL, "baseline"),
        Contender(
            BAYES, lambda case: bayes_error(case.k, case.noise, random_state=0), "peer", lambda c: c == FLOOR, once=True
        ),
    ],
    measures=[
        Measure("images needed (or the most that were tried)", "", _measure),
        Measure("error", "", lambda case, o: o if isinstance(o, float) else None),
        Measure("squared cosine", "", lambda case, o: o["measured"] if isinstance(o, dict) else None),
    ],
    bars=[
        Bar("16 patches of 16 pixels: images of the locally connected over those of the convolutional network",
            "card, claim 1", _C1, ">=", 5, lambda r: _at_least(r, "order, k = 16", LOCAL, CONV), headline=True),
        Bar("16 patches of 16 pixels: images of the fully over those of the locally connected network (at least)",
            "card, claim 1", _C1, ">=", 5, lambda r: _at_least(r, "order, k = 16", FULL, LOCAL), headline=True),
        Bar("growth of the convolutional network's images with the number of patches (slope)", "card, claim 2", _C2,
            "<=", 1.3, lambda r: _slope(r, CONV),
            why="from three sizes on a grid with steps of 1.5, one step at either end is 0.3 in the slope, and at "
            "k = 4 the answer is the grid's first size: 8, 27 and 40 images with 3 seeds, 8, 27 and 61 with 4 or 16"),
        Bar("slope of the locally connected above that of the convolutional network", "card, claim 2", _C2, ">=", 0.7,
            lambda r: _slope(r, LOCAL) - _slope(r, CONV)),
        Bar("average over images and patches: squared cosine with the signal against the closed form", "card, claim 3",
            _C3, "<=", 0.01, lambda r: _off(r, CONV)),
        Bar("average over images of single patches: squared cosine with the signal against the closed form",
            "card, claim 3", _C3, "<=", 0.03, lambda r: _off(r, LOCAL)),
        Bar("many images: error of the convolutional network over the least possible", "card, claim 4",
            "CNN error at large n within 1.3x of bayes_error", "<=", 1.3,
            lambda r: r.value(FLOOR, CONV, "error") / r.value(FLOOR, BAYES, "error")),
        Bar("digits on canvases, 80 % right: images of the locally connected over those of the convolutional network "
            "(at least)", "card, claim 5", _C5, ">=", 2, lambda r: _at_least(r, DIGITS, LOCAL, CONV)),
        Bar("digits on canvases, 80 % right: images of the fully over those of the locally connected network "
            "(at least)", "card, claim 5", _C5, ">=", 2, lambda r: _at_least(r, DIGITS, FULL, LOCAL),
            why="measured 1.5, one step of the sizes, in quick and full. The order is as claimed. Not settled: "
            "beyond 1297 canvases the same digits come again at other places, which may help all alike; and the units "
            "at 25 overlapping places need not be as many as the patterns of a digit"),
    ],
    plot=plot,
    rounds={"quick": 1, "full": 1},
    threads=1,
)  # fmt: skip
