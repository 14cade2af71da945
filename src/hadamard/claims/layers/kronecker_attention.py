"""Attention to pairs: near-linear time for bounded entries, where that ends, and what attention to one cannot do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.layers.kronecker_attention_training import train
from hadamard.claims.plots import bars, lines
from hadamard.layers import kronecker_attention, polynomial_error

__all__ = ["claim"]

POLYNOMIAL, EXACT, EINSUM = "hadamard, polynomial", "exact, block by block", "exact, all triples at once"
PAIRS = "ordinary attention (to single positions)"
TRIPLES, SINGLES = "attention to pairs of positions", "attention to single positions"
DEGREES, MATCH = "least degree", "Match-3"
_BOUNDS, _DEGREES = (0.5, 1.0, 1.5, 2.0), (2, 4, 6, 8)


def _einsum(q: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]) -> Tensor:
    """Attention to pairs as it is written down, with all weights in memory."""
    scores = torch.einsum("bia,bja,bla->bijl", q, *keys) / q.shape[-1]
    weights = scores.flatten(2).softmax(-1).view(scores.shape)
    return torch.einsum("bijl,bjd,bld->bid", weights, *values)


@dataclass(frozen=True)
class _Input:
    q: Tensor
    keys: tuple[Tensor, Tensor]
    values: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Accuracy(_Input):
    """Entries up to a bound: how far polynomials of several degrees are from exact attention."""

    def __call__(self, kind: str) -> Any:
        """The exact output, or errors and their certificates by degree."""
        if kind != POLYNOMIAL:
            return _einsum(self.q, self.keys, self.values)
        exact = kronecker_attention(self.q, self.keys, self.values, method="exact")
        outcome: dict[str, Any] = {"exact": exact, "errors": {}, "certified": {}}
        for degree in _DEGREES:
            y = kronecker_attention(self.q, self.keys, self.values, method="polynomial", degree=degree, tol=None)
            outcome["errors"][degree] = float((y - exact).abs().max())
            outcome["certified"][degree] = polynomial_error(self.q, self.keys, self.values, degree).bound
        return outcome


@dataclass(frozen=True)
class _Timing(_Input):
    """One head over ``n`` positions."""

    def __call__(self, kind: str) -> Tensor:
        """Run one contender."""
        if kind == EINSUM:
            return _einsum(self.q, self.keys, self.values)
        if kind == PAIRS:
            return F.scaled_dot_product_attention(self.q[None], self.keys[0][None], self.values[0][None])[0]
        options: dict[str, Any] = {"method": "exact"} if kind == EXACT else {"method": "polynomial", "degree": 4}
        return kronecker_attention(self.q, self.keys, self.values, tol=None, **options)


@dataclass(frozen=True)
class _Transition:
    """The least even degree that reaches an error of 1e-3, as the entries grow."""

    inputs: tuple[_Input, ...]

    def __call__(self, kind: str) -> list[tuple[float, int]]:
        """Largest score and least degree for each input; weights by the polynomial of all scores, whatever its rank."""
        found = []
        for case in self.inputs:
            scores = torch.einsum("bia,bja,bla->bijl", case.q, *case.keys) / case.q.shape[-1]
            exact, term, degree = _einsum(case.q, case.keys, case.values), torch.ones_like(scores), 0
            series = term
            while True:
                y = torch.einsum("bijl,bjd,bld->bid", series, *case.values) / series.sum((-1, -2))[..., None]
                if float((y - exact).abs().max()) <= 1e-3:
                    break
                for t in (degree + 1, degree + 2):
                    term = term * scores / t
                    series = series + term
                degree += 2
            found.append((float(scores.abs().max()), degree))
        return found


@dataclass(frozen=True)
class _Match:
    """Match-3 with one layer."""

    n: int
    modulus: int
    frequencies: int
    steps: int
    rates: tuple[float, ...]
    seeds: int

    def __call__(self, kind: str) -> dict[str, Any]:
        """Every rate with the first seed, the best one with the others."""
        options = {"n": self.n, "modulus": self.modulus, "frequencies": self.frequencies}
        order = 3 if kind == TRIPLES else 2
        first = {rate: train(order, 0, self.steps, rate, **options) for rate in self.rates}
        best = max(first, key=lambda rate: first[rate]["accuracy"])
        runs = [first[best], *(train(order, seed, self.steps, best, **options) for seed in range(1, self.seeds))]
        return {
            "balanced accuracy": fmean(run["accuracy"] for run in runs),
            "positive": fmean(run["positive"] for run in runs),
            "parameters": runs[0]["parameters"],
            "best rate": best,
            "losses": runs[0]["losses"],
            "runs": [run["accuracy"] for run in runs],
        }


def _problem(
    seed: int, exact: tuple[int, ...], long: tuple[int, ...], bounds: tuple[float, ...], match: Mapping[str, Any]
) -> Mapping[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int, bound: float, dtype: torch.dtype = torch.float64, count: int = 1) -> Any:
        def entries(size: float) -> Tensor:
            return (size * (2 * torch.rand(count, n, 4, generator=generator, dtype=torch.float64) - 1)).to(dtype)

        return entries(bound), (entries(bound), entries(bound)), (entries(bound), entries(bound))

    cases: dict[str, Any] = {f"entries up to {bound:g}": _Accuracy(*draw(128, bound, count=4)) for bound in _BOUNDS}
    cases |= {f"n = {n}": _Timing(*draw(n, 1.0, torch.float32)) for n in (*exact, *long)}
    cases[DEGREES] = _Transition(tuple(_Input(*draw(48, bound)) for bound in bounds))
    return cases | {MATCH: _Match(**match)}


def _n(case: str) -> int:
    return int(case.removeprefix("n = ")) if case.startswith("n = ") else 0


def _contender(kind: str, role: Any, where: Callable[[str], bool], once: bool = False) -> Contender:
    return Contender(kind, lambda case: case(kind), role, where, once=once)


def _measure(name: str, unit: str) -> Measure:
    return Measure(name, unit, lambda case, outcome: outcome.get(name) if isinstance(outcome, dict) else None)


def _error(r: Results, bound: float, degree: int) -> float:
    return r.outcomes[f"entries up to {bound:g}", POLYNOMIAL]["errors"][degree]


def _above_certificate(r: Results) -> float:
    """The largest ratio of an error, less rounding, to its certificate."""
    outcomes = [r.outcomes[f"entries up to {bound:g}", POLYNOMIAL] for bound in _BOUNDS]
    return max((o["errors"][g] - 1e-14) / o["certified"][g] for o in outcomes for g in _DEGREES)


def _slope(r: Results, kind: str, low: int) -> Any:
    sizes = [_n(c) for c in r.cases if (c, kind) in r.outcomes and _n(c) >= low]
    return r.slope(sizes, kind, "seconds", [f"n = {n}" for n in sizes])


def _growth(r: Results) -> float:
    """Slope of the least degree in the largest score, over the larger half of the inputs."""
    found = r.outcomes[DEGREES, POLYNOMIAL]
    scores, degrees = zip(*found[len(found) // 2 :])
    return float(np.polyfit(scores, degrees, 1)[0])


def _agree(case: Any, outcomes: Mapping[str, Any]) -> str:
    if isinstance(case, _Accuracy):
        difference = float((outcomes[POLYNOMIAL]["exact"] - outcomes[EINSUM]).abs().max())
        return f"{EXACT} and {EINSUM} differ by {difference:.2g}" if difference > 1e-10 else ""
    if isinstance(case, _Timing) and EXACT in outcomes:
        for other, limit in ((POLYNOMIAL, 1e-3), (EINSUM, 1e-5)):
            difference = float((outcomes[EXACT] - outcomes.get(other, outcomes[EXACT])).abs().max())
            if difference > limit:
                return f"{EXACT} and {other} differ by {difference:.2g}"
    return ""


def _plot(r: Results) -> list[dict[str, Any]]:
    def times(kind: str) -> tuple[list[float], list[float]]:
        names = [c for c in r.cases if _n(c) and (c, kind) in r.outcomes]
        return [_n(c) for c in names], [r.value(c, kind, "seconds") for c in names]

    found, match = r.outcomes[DEGREES, POLYNOMIAL], {k: r.outcomes[MATCH, k] for k in (TRIPLES, SINGLES)}
    return [
        lines({k: times(k) for k in (POLYNOMIAL, EXACT, EINSUM, PAIRS)}, x="positions", y="seconds", log="xy",
              caption="One head of 4 channels, entries up to 1, degree 4. All triples cost n^3; the polynomial is "
              "linear in n, and cheaper than ordinary attention to single positions once sequences are long."),
        lines({f"entries up to {b:g}": (_DEGREES, [_error(r, b, g) for g in _DEGREES]) for b in _BOUNDS},
              x="degree", y="largest error", log="y",
              caption="Two degrees gain orders of magnitude while entries are small, and little once they reach 2."),
        lines({"least degree": ([s for s, _ in found], [g for _, g in found])}, x="largest score",
              y="degree for an error of 1e-3",
              caption="The degree grows in proportion to the largest score, and the rank, C(4 + degree, 4), with its "
              "fourth power: near-linear time ends where entries are no longer bounded."),
        bars({k: {f"seed {i}": a for i, a in enumerate(match[k]["runs"])} for k in match}, y="balanced accuracy (%)",
             caption="Match-3, one layer, the same number of parameters and steps: 50 % is guessing."),
    ]  # fmt: skip


_C1 = (
    "the error falls >= 100x from g=2 to g=4 at B=1, and grows by >= 1e4 from B=1 to B=2 at g=6 (the bounded-entry "
    "transition)."
)
_C2 = "slope poly <= 1.2, exact >= 2.3 (n>=128), ratio at 512 >= 50x (measured 218x)."
_C3 = (
    "one third-order layer, head dim 8, vs one pairwise layer at equal parameters, same steps: accuracy >= +10 points."
)
_C4 = "find the least g with error<=1e-3 as B grows; g/R should approach linear (slope 1 .. 3 in R for large R)."
_MATCH = {"n": 6, "modulus": 30, "frequencies": 8}  # half of the tokens complete a triple

claim = Claim(
    key="kronecker_attention",
    statement="Attention to all pairs of positions, whose cost is cubic, is computed in linear time to any accuracy "
    "while entries are bounded: the error of a polynomial of degree 4 falls a hundredfold against degree 2, and the "
    "degree that an accuracy needs grows in proportion to the largest score, which is where near-linear time ends. One "
    "layer of it tells nearly all tokens that complete a triple with sum zero; one layer of ordinary attention of the "
    "same size stays near what a token can tell from pairs, with one of them counted twice.",
    paper_figure="Theorems, no experiments: n^(1 + o(1)) time for entries up to o((log n)^(1/3)), none below "
    "n^(3 - o(1)) for larger ones under the strong exponential time hypothesis; triple detection, impossible for "
    "ordinary attention units, becomes possible (abstract).",
    sizes={
        "quick": {"exact": (128, 256, 512), "long": (1024, 4096, 16384), "bounds": (1.0, 1.5, 2.0, 2.5, 3.0, 3.5),
                  "match": {**_MATCH, "steps": 500, "rates": (2e-2,), "seeds": 1}},
        "full": {"exact": (64, 128, 256, 512), "long": (1024, 2048, 4096, 8192, 16384, 65536),
                 "bounds": (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
                 "match": {**_MATCH, "steps": 1500, "rates": (1e-2, 2e-2), "seeds": 3}},
    },
    problem=_problem,
    contenders=[
        _contender(POLYNOMIAL, "method", lambda c: _n(c) > 0),
        _contender(POLYNOMIAL, "method", lambda c: c.startswith("entries") or c == DEGREES, once=True),
        _contender(EXACT, "baseline", lambda c: 0 < _n(c) <= 512),
        _contender(EINSUM, "peer", lambda c: 0 < _n(c) <= 256),
        _contender(EINSUM, "baseline", lambda c: c.startswith("entries"), once=True),
        _contender(PAIRS, "peer", lambda c: 0 < _n(c) <= 16384),
        _contender(TRIPLES, "method", lambda c: c == MATCH, once=True),
        _contender(SINGLES, "baseline", lambda c: c == MATCH, once=True),
    ],
    measures=[
        _measure("balanced accuracy", "%"), _measure("positive", "%"), _measure("parameters", ""),
        _measure("best rate", ""),
    ],
    bars=[
        Bar("entries up to 1: error of degree 2 over that of degree 4", "card, claim C1", _C1, ">=", 100,
            lambda r: _error(r, 1.0, 2) / _error(r, 1.0, 4)),
        Bar("degree 6: error at entries up to 2 over that at entries up to 1", "card, claim C1", _C1, ">=", 1e4,
            lambda r: _error(r, 2.0, 6) / _error(r, 1.0, 6)),
        Bar("errors over their certificates: the largest", "card, section 8",
            "certificate >= true error on random draws", "<=", 1, _above_certificate),
        Bar("polynomial, time against n from 1024 on: slope of the logarithms", "card, claim C2", _C2, "<=", 1.2,
            lambda r: _slope(r, POLYNOMIAL, 1024), seconds=True, headline=True),
        Bar("exact, time against n from 128 on: slope of the logarithms", "card, claim C2", _C2, ">=", 2.3,
            lambda r: _slope(r, EXACT, 128), seconds=True),
        Bar("n = 512: time of exact attention over the polynomial's", "card, claim C2", _C2, ">=", 50,
            lambda r: r.ratio("n = 512", EXACT, POLYNOMIAL), seconds=True),
        Bar("Match-3: points of balanced accuracy above attention to single positions", "card, claim C3", _C3, ">=", 10,
            lambda r: r.value(MATCH, TRIPLES, "balanced accuracy") - r.value(MATCH, SINGLES, "balanced accuracy"),
            headline=True),
        Bar("least degree against the largest score: slope, not more than", "card, claim C4", _C4, "<=", 3, _growth),
        Bar("least degree against the largest score: slope, not less than", "card, claim C4", _C4, ">=", 1, _growth),
    ],
    plot=_plot,
    agree=_agree,
    threads=1,
    rounds={"quick": 2, "full": 3},
)  # fmt: skip
