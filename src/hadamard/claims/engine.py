"""Runs a claim: makes its cases, interleaves its contenders, reads its measures, holds them against its bars.

One claim gives one JSON file, written when it is done and never half: an interrupted run keeps what is finished.
"""

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import scipy.linalg  # noqa: F401  its BLAS is loaded, and limited with the others
import torch
from threadpoolctl import threadpool_limits
from torch.utils.benchmark import Timer, timer

from hadamard import catalog
from hadamard.claims.claim import Bar, Claim, Contender, Interval, Results
from hadamard.claims.environment import environment
from hadamard.claims.worker import Worker

__all__ = ["load", "measure", "run", "run_all", "write_json"]

_SHORT = 0.1  # seconds below which a call is repeated inside torch's own Timer
_WARM = 0.5  # seconds below which the first call is only a warm-up
Step = Callable[[float], None]


class DisagreementError(Exception):
    """The contenders do not agree on the answer, so their speeds cannot be compared."""


def load(key: str) -> Claim:
    """The claim of one method."""
    row = catalog.method(key)
    return import_module(f"hadamard.claims.{row.family}.{key}").claim


def run_all(
    keys: Sequence[str],
    size: str,
    out: Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    on_start: Callable[[str], None] = lambda key: None,
    on_step: Step = lambda fraction: None,
    on_done: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """Run several claims, one JSON file each in ``out``.

    Parameters
    ----------
    keys
        Methods, in the order in which they are run.
    size
        ``"quick"``, ``"full"`` or ``"gpu"``.
    out
        Folder of the records; made if it is missing.
    jobs
        Claims that run side by side. Above 1 nothing is timed: bars on seconds are then inconclusive.
    resume
        Keep the records of this size that are there and did not end in an error.
    on_start, on_step, on_done
        Called with the key, with the finished fraction of the claim that runs, and with its record.
    """
    out.mkdir(parents=True, exist_ok=True)
    records = {key: kept for key in keys if resume and (kept := _finished(out / f"{key}.json", size))}
    for record in records.values():
        on_done(record)
    todo = [key for key in keys if key not in records]
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_share, initargs=(jobs,)) as pool:
            futures = {pool.submit(run, key, size, out, timed=False): key for key in todo}
            try:
                for future in as_completed(futures):
                    records[futures[future]] = future.result()
                    on_done(records[futures[future]])
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    else:
        for key in todo:
            on_start(key)
            records[key] = run(key, size, out, on_step=on_step)
            on_done(records[key])
    return [records[key] for key in keys]


def run(key: str, size: str, out: Path, *, timed: bool = True, on_step: Step = lambda fraction: None) -> dict[str, Any]:
    """Run one claim, write ``out/KEY.json``, and return the record; whatever goes wrong becomes its verdict."""
    started, row = time.perf_counter(), catalog.method(key)
    record: dict[str, Any] = {
        "schema": 1,
        **{name: getattr(row, name) for name in ("key", "family", "title", "venue", "year", "arxiv")},
        "authors": row.author_line,
        "size": size,
        "command": f"hadamard claims {key} --size {size}",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "timings": "measured" if timed else "not measured",
    }
    try:
        claim = load(key)
        record |= {"statement": claim.statement, "paper_figure": claim.paper_figure, "seed": claim.seed}
        record |= {"environment": environment(claim.requires), "checkpoints": _checkpoints(claim)}
        results = measure(claim, size, timed=timed, on_step=on_step)
        record |= judge(claim, results, timed)
        record |= {"measurements": _table(claim, results, timed), "plot": _figures(claim, results, timed)}
    except Exception as error:
        record |= {"verdict": "error", "cause": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    record["seconds_total"] = round(time.perf_counter() - started, 2)
    write_json(out / f"{key}.json", record)
    return record


def measure(claim: Claim, size: str, *, timed: bool = True, on_step: Step = lambda fraction: None) -> Results:
    """Run every contender on every case, interleaved by rounds, and read the measures off the first outcomes."""
    if size not in claim.sizes:
        raise ValueError(f"{claim.key} has no size {size!r}; it has {', '.join(claim.sizes)}")
    missing = [name for name in claim.requires if find_spec(name) is None]
    if missing:
        raise ImportError(f"{claim.key} compares with {', '.join(missing)}, which is not installed: run 'make setup'")
    threads = torch.get_num_threads()
    limits = threadpool_limits(claim.threads)  # the peers' BLAS too
    torch.set_num_threads(claim.threads or threads)
    workers: dict[bool, Worker] = {}
    try:
        results = Results(cases=claim.problem(seed=claim.seed, **claim.sizes[size]))
        rounds = claim.rounds.get(size, 1) if timed else 1
        first = [(c, k) for c in results.cases for k in claim.contenders if k.cases is None or k.cases(c)]
        turns = first + (rounds - 1) * [(c, k) for c, k in first if not k.once]
        if any(k.isolated for _, k in first):  # it gets ready while what is not timed runs
            workers[True] = Worker(claim.key, size, torchvision=True)
        for i, (name, contender) in enumerate(turns):
            if not contender.once and True in workers:
                workers[True].wait()
            _turn(claim, size, results, name, contender, workers, i < len(first))
            if i < len(first) and (i + 1 == len(first) or first[i + 1][0] != name):
                _check_agreement(claim, results, name)
            on_step((i + 1) / len(turns))
        return results
    finally:
        limits.restore_original_limits()
        torch.set_num_threads(threads)
        for worker in workers.values():
            worker.close()


def judge(claim: Claim, results: Results, timed: bool) -> dict[str, Any]:
    """Hold the results against the bars: the record's bars, verdict, cause and paper_headline."""
    bars = [_hold(bar, results, timed) for bar in claim.bars]
    holds = [bar["holds"] for bar in bars]
    if "no" in holds:
        verdict = "fails"
    elif "inconclusive" in holds:
        verdict = "inconclusive"
    else:
        verdict = "holds_weaker" if any(bar["weakened"] for bar in bars) else "holds"
    short = [bar for bar in bars if bar["holds"] != "yes"]
    causes = [f"{b['text']}: measured {_words(b)}, wanted {b['sense']} {b['bound']:g}. {b['why']}" for b in short]
    headline = [bar for bar in bars if bar["headline"]]
    if not headline:
        paper = "not tested"
    else:
        reached = all(bar["holds"] == "yes" and not bar["weakened"] for bar in headline)
        paper = "reproduced" if reached else "not at this size"
    return {"bars": bars, "verdict": verdict, "cause": " ".join(causes).strip(), "paper_headline": paper}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(record, indent=1, allow_nan=False, default=_plain) + "\n", encoding="utf-8")
    draft.replace(path)


def _turn(
    claim: Claim, size: str, results: Results, name: str, contender: Contender, workers: dict[bool, Worker], first: bool
) -> None:
    """One contender on one case in one round."""
    case = results.cases[name]
    if contender.isolated:
        outcome, seconds = workers[True].run(name, contender.name)
    else:
        start = timer()
        outcome = contender.run(case)
        seconds = timer() - start
        if first and _SHORT <= seconds < _WARM and not contender.once:  # the first call may have set things up
            start = timer()
            contender.run(case)
            seconds = timer() - start
        if seconds < _SHORT and not contender.once:
            call = Timer("run(case)", globals={"run": contender.run, "case": case}, num_threads=torch.get_num_threads())
            seconds = call.timeit(max(1, int(_SHORT / 2 / max(seconds, 1e-7)))).median
    results.samples.setdefault((name, contender.name, "seconds"), []).append(seconds)
    if not first:
        return
    results.outcomes[name, contender.name] = outcome
    for wanted in claim.measures:
        value = wanted.of(case, outcome)
        if value is not None:
            results.samples[name, contender.name, wanted.name] = [float(value)]
    if contender.memory:
        if contender.isolated not in workers:
            workers[contender.isolated] = Worker(claim.key, size, torchvision=contender.isolated)
        peak = workers[contender.isolated].peak_memory(name, contender.name)
        results.samples[name, contender.name, "peak_memory"] = [peak]


def _check_agreement(claim: Claim, results: Results, name: str) -> None:
    if claim.agree is None:
        return
    outcomes = {k: outcome for (case, k), outcome in results.outcomes.items() if case == name}
    difference = claim.agree(results.cases[name], outcomes)
    if difference:
        raise DisagreementError(f"case {name}: {difference}")


def _hold(bar: Bar, results: Results, timed: bool) -> dict[str, Any]:
    """One bar with its value and whether it holds."""
    fields = {name: getattr(bar, name) for name in ("text", "source", "original_bound", "sense", "bound")}
    fields |= {name: getattr(bar, name) for name in ("seconds", "headline", "weakened", "why")}
    if bar.seconds and not timed:
        return fields | {"value": None, "low": None, "high": None, "holds": "inconclusive"}
    got = bar.value(results)
    got = got if isinstance(got, Interval) else Interval(float(got), float(got), float(got))
    if bar.seconds:
        ends = {_compare(got.low, bar), _compare(got.high, bar)}
        holds = "inconclusive" if len(ends) == 2 else ("yes" if ends.pop() else "no")
    else:
        holds = "yes" if _compare(got.value, bar) else "no"
    return fields | {"value": _finite(got.value), "low": _finite(got.low), "high": _finite(got.high), "holds": holds}


def _compare(value: float, bar: Bar) -> bool:
    return {
        "<=": value <= bar.bound, ">=": value >= bar.bound, "<": value < bar.bound, ">": value > bar.bound,
        "==": value == bar.bound,
    }[bar.sense]  # fmt: skip


def _table(claim: Claim, results: Results, timed: bool) -> list[dict[str, Any]]:
    units = {m.name: m.unit for m in claim.measures} | {"seconds": "s", "peak_memory": "bytes"}
    roles = {k.name: k.role for k in claim.contenders}
    rows = []
    for (case, contender, name), samples in results.samples.items():
        if name == "seconds" and not timed:
            continue
        got = Interval.of(samples)
        row: dict[str, Any] = {
            "case": case,
            "contender": contender,
            "role": roles[contender],
            "measure": name,
            "unit": units[name],
        }
        row |= {"median": _finite(got.value), "low": _finite(got.low), "high": _finite(got.high), "n": len(samples)}
        rows.append(row)
    return rows


def _figures(claim: Claim, results: Results, timed: bool) -> list[dict[str, Any]]:
    figures = claim.plot(results)
    figures = figures if isinstance(figures, list) else [figures]
    if not timed:
        note = " Seconds in it are not to be relied on: several claims ran side by side."
        figures = [figure | {"caption": figure.get("caption", "") + note} for figure in figures]
    return figures


def _checkpoints(claim: Claim) -> list[dict[str, Any]]:
    if not claim.checkpoints:
        return []
    from hadamard.training import provenance

    return [{"name": name, **provenance(name)} for name in claim.checkpoints]


def _finished(path: Path, size: str) -> dict[str, Any] | None:
    """The record of an earlier run of this size that reached a verdict."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return record if record.get("size") == size and record.get("verdict") != "error" else None


def _share(jobs: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _words(bar: Mapping[str, Any]) -> str:
    if bar["value"] is None:
        return "nothing" if bar["holds"] == "inconclusive" else "no finite value"
    return f"{bar['value']:.3g}" + (f" [{bar['low']:.3g}, {bar['high']:.3g}]" if bar["low"] != bar["high"] else "")


def _plain(value: Any) -> Any:
    """Numbers of NumPy and torch as JSON's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
