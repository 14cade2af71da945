"""Made-up records of every verdict, with every kind of plot, for the page's tests."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from hadamard.claims import plots

ENVIRONMENT = {
    "cpu": "A processor",
    "cores": 2,
    "memory_gb": 7.8,
    "gpu": None,
    "python": "3.11.2",
    "versions": {"hadamard": "0.1.0", "torch": "2.13.0+cpu"},
}


def records() -> Iterator[dict[str, Any]]:
    """The method that holds first, the claim that broke last."""
    return iter([_holds(), _holds_weaker(), _inconclusive(), _fails(), _error()])


def _holds() -> dict[str, Any]:
    sizes = [100, 200, 400, 800]
    speeds = {"Newton": ("method", 1e-5), "Sinkhorn": ("baseline", 9e-5), "POT": ("peer", 6e-5)}
    rows = [
        _row(f"n = {n}", name, role, "seconds", "s", t * n**1.5) for n in sizes for name, (role, t) in speeds.items()
    ]
    rows += [_row("n = 100", name, role, "peak_memory", "bytes", 3e6, 0.0, 1) for name, (role, _) in speeds.items()]
    curves = {name: (sizes, [t * n**1.5 for n in sizes]) for name, (_, t) in speeds.items()}
    steps = {name: {"small": 1e3 * t, "large": 4e3 * t} for name, (_, t) in speeds.items()}
    errors = {name: {"small": 80 * t, "large": 300 * t} for name, (_, t) in speeds.items()}
    return _record(
        "sparse_newton",
        "transport",
        "holds",
        statement="Entropic transport to `1e-9` in a fifth of the time, <script>alert('no')</script> & exactly.",
        measurements=rows,
        bars=[
            _bar("Speed-up over Sinkhorn at n = 800", 5, 8.43, "yes", spread=0.06, headline=True),
            _bar("Largest marginal error", 1e-9, 4.2e-13, "yes", sense="<="),
        ],
        plot=[
            plots.lines(curves, x="points n", y="seconds", log="xy", caption="Ours lies below at every size."),
            plots.bars(steps, y="milliseconds a step", errors=errors, caption="One step costs least in ours."),
        ],
    )


def _holds_weaker() -> dict[str, Any]:
    losses = {"EvoNorm S0": ([1, 2, 3], [2.0, 1.2, 0.7]), "GroupNorm": ([1, 2, 3], [2.1, 1.4, 0.9])}
    figure = plots.lines(losses, x="epoch", y="loss", reference={"chance": 2.3}, markers=False, caption="Both fall.")
    return _record(
        "kernel_layer",
        "layers",
        "holds_weaker",
        paper_headline="not at this size",
        measurements=[
            _row("digits", "EvoNorm S0", "method", "accuracy", "%", 97.9),
            _row("digits", "GroupNorm", "baseline", "accuracy", "%", 97.1),
        ],
        bars=[_bar("Accuracy against GroupNorm, in points", -0.5, 0.8, "yes", weakened="three seeds instead of ten")],
        plot=figure,
    )


def _inconclusive() -> dict[str, Any]:
    noise = np.random.default_rng(0)
    titles = ("truth", "ours, 31.2 dB", "filtered back-projection, 24.0 dB")
    trained = {
        "name": "lpn_digits",
        "date": "2025-11-20",
        "command": "hadamard train picture_prior",
        "sha256": "ab" * 32,
        "data": "scikit-learn digits",
    }
    return _record(
        "picture_prior",
        "imaging",
        "inconclusive",
        cause="Its interval straddles the bound.",
        measurements=[
            _row("blur", "LPN", "method", "seconds", "s", 0.0123),
            _row("blur", "CNN", "peer", "seconds", "s", 0.0131),
        ],
        bars=[_bar("Time against the CNN", 1.0, 1.06, "inconclusive", spread=0.2)],
        checkpoints=[trained],
        plot=[
            plots.pictures({title: noise.random((48, 64)) for title in titles}, caption="The middle keeps the edges."),
            plots.pictures({"dot": np.eye(8), "colour": noise.random((3, 64, 64))}),
        ],
    )


def _fails() -> dict[str, Any]:
    heights = {"Lion-K": {"quadratic": 250}, "AdamW": {"quadratic": 90}}
    return _record(
        "slow_step",
        "optim",
        "fails",
        cause="At this size the overhead of a step outweighs what it saves.",
        bars=[_bar("Steps to the optimum", 100, 250, "no", sense="<=", why="AdamW needs fewer on a problem so easy")],
        measurements=[_row("quadratic", "Lion-K", "method", "steps", "steps", 250.0, 0.0, 1)],
        plot=plots.bars(heights, y="steps", caption="AdamW needs fewer."),
    )


def _error() -> dict[str, Any]:
    """What is left of a record when the claim could not even be loaded."""
    whole = _record("broken_peer", "optim", "error", cause="ImportError: no peer", traceback="Traceback <most recent>")
    absent = ("statement", "bars", "measurements", "plot", "environment", "paper_headline", "paper_figure", "seed")
    return {name: value for name, value in whole.items() if name not in absent}


def _record(key: str, family: str, verdict: str, **more: Any) -> dict[str, Any]:
    record = {
        "schema": 1,
        "key": key,
        "family": family,
        "title": f"On {key}",
        "authors": "Marie Curie, Emmy Noether",
        "venue": "ICLR",
        "year": 2024,
        "arxiv": "2401.12253",
        "size": "quick",
        "statement": f"{key} does it with less.",
        "paper_figure": "5 to 15 times faster (figure 3)",
        "command": f"hadamard claims {key} --size quick",
        "seed": 0,
        "date": "2025-11-23T13:44:01+00:00",
        "seconds_total": 9.2,
        "environment": ENVIRONMENT,
        "measurements": [],
        "bars": [],
        "verdict": verdict,
        "cause": "",
        "paper_headline": "reproduced",
        "checkpoints": [],
        "timings": "measured",
        "plot": [],
    }
    return record | more


def _row(
    case: str, contender: str, role: str, measure: str, unit: str, median: float, spread: float = 0.1, n: int = 5
) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case, "contender": contender, "role": role, "measure": measure, "unit": unit}
    return row | {"median": median, "low": median * (1 - spread), "high": median * (1 + spread), "n": n}


def _bar(
    text: str, bound: float, value: float, holds: str, *, spread: float = 0.0, sense: str = ">=", **more: Any
) -> dict[str, Any]:
    bar: dict[str, Any] = {"text": text, "source": "card, claim 1", "original_bound": f"bound {bound:g}"}
    bar |= {"sense": sense, "bound": bound, "value": value, "low": value * (1 - spread), "high": value * (1 + spread)}
    return bar | {"holds": holds, "seconds": spread > 0, "headline": False, "weakened": "", "why": ""} | more
