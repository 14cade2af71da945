"""What a claim is made of: problem, contenders, measures, bars, and how to draw them.

A claim file builds one :class:`Claim` and calls it ``claim``. Everything else (interleaving, timing, memory,
resuming, the page) is the engine's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

import numpy as np
from scipy.special import bdtr

__all__ = ["Bar", "Claim", "Contender", "Interval", "Measure", "Results"]

Size = Literal["quick", "full", "gpu"]
Figure = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One of the programs that are compared.

    Attributes
    ----------
    name
        As it stands in tables and plots.
    run
        ``run(case) -> outcome``; only this call is timed.
    role
        ``"method"`` (ours), ``"baseline"`` (the paper's), ``"peer"`` (what people use today) or ``"ablation"``.
    cases
        Takes part in a case when ``cases(case_name)`` is true; ``None``: in all.
    isolated
        Run in a process of its own, in which the operators that torchvision needs are defined first (timm, deepinv).
    memory
        Measure the peak memory of one run, in a process of its own.
    once
        Run in the first round only: what it measures does not depend on time.
    """

    name: str
    run: Callable[[Any], Any]
    role: Literal["method", "baseline", "peer", "ablation"] = "method"
    cases: Callable[[str], bool] | None = None
    isolated: bool = False
    memory: bool = False
    once: bool = False


@dataclass(frozen=True)
class Measure:
    """A number that is read off an outcome: ``of(case, outcome)``; ``None`` where it does not apply."""

    name: str
    unit: str
    of: Callable[[Any, Any], float | None]


@dataclass(frozen=True)
class Interval:
    """A median with the interval that the repetitions leave it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Interval":
        """Median of ``samples`` with its order-statistic interval (at least 90 % where there are enough)."""
        ordered = sorted(samples)
        k = next(k for k in range(len(ordered) + 1) if bdtr(k, len(ordered), 0.5) >= 0.05)
        skip = k - 1 if k >= 1 else 0
        return cls(median(ordered), ordered[skip], ordered[-1 - skip])


@dataclass(frozen=True)
class Bar:
    """One bound that the measurements are held against.

    Attributes
    ----------
    text
        What must hold, in one line.
    source
        The card or issue that the bound comes from, such as ``"card, claim 1"``.
    original_bound
        The bound's own words, verbatim.
    sense, bound
        ``value sense bound`` must hold.
    value
        ``value(results)``: a number, or an :class:`Interval`.
    seconds
        Whether the value depends on time measured here: then it may be inconclusive, and exit codes ignore it.
    headline
        Whether this bar is the paper's own headline.
    weakened
        Why ``bound`` is not the original one; makes the verdict ``holds_weaker``.
    why
        What is known about the cause where the bar fails.
    """

    text: str
    source: str
    original_bound: str
    sense: Literal["<=", ">=", "<", ">", "=="]
    bound: float
    value: Callable[["Results"], float | Interval]
    seconds: bool = False
    headline: bool = False
    weakened: str = ""
    why: str = ""


@dataclass(frozen=True)
class Claim:
    """A paper's headline as an executable comparison.

    Attributes
    ----------
    key
        The method's key in the catalog.
    statement
        What is claimed, in our words.
    paper_figure
        What the paper reports, and where.
    sizes
        Keyword arguments of ``problem`` for each size; ``quick`` takes at most about 15 s on two cores, ``full`` at
        most 10 min.
    problem
        ``problem(seed=..., **sizes[size])`` returns the cases by name, in the order in which they are run.
    contenders, measures, bars
        What is compared, what is read off, and what must hold. ``seconds`` and ``peak_memory`` are measured by the
        engine.
    plot
        ``plot(results)`` returns one figure of :mod:`hadamard.claims.plots` or a list of them.
    requires
        Import names of the peers that must be installed.
    agree
        ``agree(case, outcomes)``, outcomes by contender, returns what they disagree on, or ``""``. A disagreement
        makes the claim an error: speed counts only at equal accuracy.
    rounds
        Interleaved repetitions at each size; 1 where nothing is timed.
    threads
        Threads of torch while it runs; ``None`` leaves them.
    checkpoints
        Names of the shipped checkpoints that it uses.
    """

    key: str
    statement: str
    paper_figure: str
    sizes: Mapping[str, Mapping[str, Any]]
    problem: Callable[..., Mapping[str, Any]]
    contenders: Sequence[Contender]
    measures: Sequence[Measure]
    bars: Sequence[Bar]
    plot: Callable[["Results"], Figure | list[Figure]]
    requires: Sequence[str] = ()
    agree: Callable[[Any, Mapping[str, Any]], str] | None = None
    rounds: Mapping[str, int] = field(default_factory=lambda: {"quick": 5, "full": 7, "gpu": 9})
    threads: int | None = None
    checkpoints: Sequence[str] = ()
    seed: int = 0


@dataclass
class Results:
    """What was measured: samples by case, contender and measure, in the order of the rounds.

    Attributes
    ----------
    cases
        The problem's cases by name.
    samples
        ``samples[case, contender, measure]`` lists one number a round (one in all for what does not depend on time).
    outcomes
        ``outcomes[case, contender]`` is the outcome of the first round.
    """

    cases: Mapping[str, Any]
    samples: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], Any] = field(default_factory=dict)

    def value(self, case: str, contender: str, measure: str) -> float:
        """The median of one measure."""
        return median(self.samples[case, contender, measure])

    def interval(self, case: str, contender: str, measure: str) -> Interval:
        """The median of one measure with its interval."""
        return Interval.of(self.samples[case, contender, measure])

    def ratio(self, case: str, over: str, under: str, measure: str = "seconds") -> Interval:
        """``over / under`` paired by round: the speed-up of ``under`` where the measure is seconds."""
        pairs = zip(self.samples[case, over, measure], self.samples[case, under, measure], strict=True)
        return Interval.of([a / b for a, b in pairs])

    def series(self, contender: str, measure: str, cases: Sequence[str] | None = None) -> list[float]:
        """Medians of one measure over the cases (those in which the contender takes part)."""
        names = self.cases if cases is None else cases
        return [self.value(c, contender, measure) for c in names if (c, contender, measure) in self.samples]

    def slope(self, x: Sequence[float], contender: str, measure: str, cases: Sequence[str] | None = None) -> Interval:
        """Slope of log(measure) against log(x), with the interval of the slopes of the single rounds."""
        names = list(self.cases if cases is None else cases)
        rounds = zip(*(self.samples[c, contender, measure] for c in names), strict=True)
        return Interval.of([float(np.polyfit(np.log(x), np.log(y), 1)[0]) for y in rounds])
