"""The evidence page: every record of a folder as one HTML file that needs nothing else.

:func:`build` reads the records that claims have written, together with the committed ones of size ``gpu``, and
writes ``index.html`` beside them. It may be called again after each claim: the page is replaced whole.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from hadamard import catalog

__all__ = ["VERDICTS", "build", "number", "quantity", "read"]

Record = dict[str, Any]

VERDICTS = {
    "holds": "holds", "holds_weaker": "holds, weaker", "inconclusive": "inconclusive", "fails": "fails",
    "error": "error",
}  # fmt: skip
_EMPTY: Record = {
    "family": "", "title": "", "authors": "", "venue": "", "year": "", "arxiv": "", "size": "", "statement": "",
    "paper_figure": "", "command": "", "seed": None, "date": "", "seconds_total": None, "environment": {},
    "measurements": [], "bars": [], "cause": "", "traceback": "", "paper_headline": "not tested", "checkpoints": [],
    "timings": "measured", "plot": [],
}  # fmt: skip
_SENSES = {"<=": "≤", ">=": "≥", "<": "<", ">": ">", "==": "="}
_SCALES = {
    "s": [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")],
    "bytes": [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes")],
}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def build(directory: Path, total: int | None = None) -> Path:
    """Write ``index.html`` from the records in a folder.

    Parameters
    ----------
    directory
        Folder with one ``KEY.json`` a claim; files that are not records are passed over. Records of size ``gpu``
        are also taken from ``directory/gpu``, or from ``evidence/gpu`` below the working directory.
    total
        How many claims this run has in all, for "k of n claims so far"; ``None`` when it is over.

    Returns
    -------
    Path
        The page. It is replaced whole: a reader never sees half of it.

    Raises
    ------
    ImportError
        If plotly is missing.

    Examples
    --------
    >>> import tempfile
    >>> build(Path(tempfile.mkdtemp())).name
    'index.html'
    """
    here = _records(directory)
    now = {record["key"] for record in here if record["size"] == "gpu"}
    inside = directory / "gpu"
    earlier = [r for r in _records(inside if inside.is_dir() else Path("evidence/gpu")) if r["key"] not in now]
    shown = [_view(record, record["key"]) for record in here]
    claims = _ordered([*shown, *(_view(record, f"{record['key']}-gpu") for record in earlier)])
    text = _template().render(
        claims=claims,
        total=total,
        landed=len(here),
        earlier=len(earlier),
        families=_families(shown),
        counts=Counter(claim["verdict"] for claim in shown),
        verdicts=VERDICTS,
        machine=_machine(here[0]["environment"]) if here else "",
        plotly=_plotly(),
        drawn={claim["anchor"]: [_drawn(figure, claim) for figure in claim["figures"]] for claim in claims},
    )
    path = directory / "index.html"
    draft = directory / f".index.html.{os.getpid()}"
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def _records(directory: Path) -> list[Record]:
    return _ordered(record for path in directory.glob("*.json") if (record := read(path)) is not None)


def _ordered(records: Iterable[Record]) -> list[Record]:
    """In the catalog's order, and what it does not know after that by name."""
    order = {key: position for position, key in enumerate(catalog.methods())}
    return sorted(records, key=lambda record: (order.get(record["key"], len(order)), record["key"]))


def read(path: Path) -> Record | None:
    """One record, whole but for what a claim that broke could not say; ``None`` where the file is something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    if not isinstance(record, dict) or record.get("schema") != 1 or record.get("verdict") not in VERDICTS:
        return None
    return _EMPTY | record if isinstance(record.get("key"), str) else None


def _view(record: Record, anchor: str) -> Record:
    """A record with everything that the template shows of it put into words."""
    bars = [_bar(bar) for bar in record["bars"]]
    return record | {
        "anchor": anchor,
        "people": record["authors"],
        "where": " ".join(str(part) for part in (record["venue"], record["year"]) if part),
        "bars": bars,
        "lead": next((bar for bar in bars if bar["headline"]), bars[0] if bars else None),
        "columns": {row["measure"]: _plain_unit(row["unit"]) for row in record["measurements"]},
        "cases": _pivot(record["measurements"]),
        "figures": record["plot"] if isinstance(record["plot"], list) else [record["plot"]],
        "machine": _machine(record["environment"]),
        "software": _software(record["environment"]),
        "when": _day(record["date"]),
        "took": quantity(record["seconds_total"], "s"),
    }


def _drawn(figure: Mapping[str, Any], record: Record) -> Record:
    """What the page's script needs to draw a figure; nothing for pictures, which the template sets."""
    if "pictures" in figure:
        return {}
    ours = {row["contender"] for row in record["measurements"] if row["role"] == "method"}
    return {"data": figure["data"], "layout": figure.get("layout", {}), "ours": sorted(ours)}


def _bar(bar: Mapping[str, Any]) -> Record:
    """A bar with its value, interval and bound in words."""
    return {
        **bar,
        "got": number(bar["value"]),
        "spread": _spread(bar["low"], bar["high"]),
        "wanted": f"{_SENSES[bar['sense']]} {_as_given(bar['bound'])}",
    }


def _pivot(rows: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Measurements with one line a case and contender and one cell a measure."""
    lines: dict[tuple[str, str], Record] = {}
    for row in rows:
        line = lines.setdefault((row["case"], row["contender"]), {"role": row["role"], "cells": {}, "n": 0})
        line["cells"][row["measure"]] = _cell(row)
        line["n"] = max(line["n"], row["n"])
    cases: dict[str, list[Record]] = {}
    for (case, contender), line in lines.items():
        cases.setdefault(case, []).append({"contender": contender, **line})
    return [{"name": case, "lines": members} for case, members in cases.items()]


def _cell(row: Mapping[str, Any]) -> Record:
    factor, _ = _scale(row["median"], row["unit"])
    text = number(row["median"]) if _plain_unit(row["unit"]) else quantity(row["median"], row["unit"])
    return {"text": text, "spread": _spread(row["low"], row["high"], factor)}


def _spread(low: float | None, high: float | None, factor: float = 1.0) -> str:
    """An interval in words; nothing where it is a point."""
    return "" if low is None or high is None or low == high else f"[{number(low / factor)}, {number(high / factor)}]"


def number(value: float | None) -> str:
    """Three significant digits in words, whole numbers up to 100 000 in full.

    Examples
    --------
    >>> [number(v) for v in (None, 562, 0.04567, 12345.6, 6.02e23, -4.2e-9)]
    ['–', '562', '0.0457', '12,300', '6.02 × 10²³', '−4.2 × 10⁻⁹']
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e5:
        return f"{int(value):,}".replace("-", "−")
    mantissa, exponent = f"{value:.2e}".split("e")
    if -4 < int(exponent) < 6:
        text = f"{float(f'{value:.3g}'):,.{max(0, 2 - int(exponent))}f}"
    else:
        text = f"{float(mantissa):g} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return text.replace("-", "−")


def _as_given(value: float) -> str:
    """A bound in the digits in which it was set."""
    return f"{value:g}".replace("-", "−") if 1e-3 <= abs(value) < 1e5 else number(value)


def quantity(value: float | None, unit: str) -> str:
    """A number with its unit: seconds and bytes in the multiple that reads best.

    Examples
    --------
    >>> quantity(0.01234, "s"), quantity(7.6e7, "bytes"), quantity(12, "sweeps")
    ('12.3 ms', '76 MB', '12 sweeps')
    """
    if value is None:
        return "–"
    factor, label = _scale(value, unit)
    return f"{number(value / factor)} {label}".rstrip()


def _scale(value: float | None, unit: str) -> tuple[float, str]:
    """The factor and name of the multiple of ``unit`` in which ``value`` is shown."""
    if unit not in _SCALES or not value:
        return 1.0, unit
    steps = _SCALES[unit]
    return next((step for step in steps if abs(value) >= step[0]), steps[-1])


def _plain_unit(unit: str) -> str:
    """The unit that stands at the head of a column; none where every cell carries its own multiple."""
    return "" if unit in _SCALES else unit


def _families(claims: Iterable[Record]) -> list[Record]:
    """The claims by family, with their verdicts counted."""
    groups: dict[str, list[Record]] = {}
    for claim in claims:
        groups.setdefault(claim["family"], []).append(claim)
    return [
        {"name": name, "claims": members, "counts": Counter(member["verdict"] for member in members)}
        for name, members in groups.items()
    ]


def _machine(environment: Mapping[str, Any]) -> str:
    parts = [environment.get("cpu")]
    if cores := environment.get("cores"):
        parts.append(f"{cores} core{'s' if cores != 1 else ''}")
    if memory := environment.get("memory_gb"):
        parts.append(f"{memory:g} GB memory")
    parts.append(environment.get("gpu") or ("no GPU" if environment else None))
    return ", ".join(part for part in parts if part)


def _software(environment: Mapping[str, Any]) -> str:
    python = [f"Python {environment['python']}"] if environment.get("python") else []
    return ", ".join([*python, *(f"{name} {found}" for name, found in environment.get("versions", {}).items())])


def _day(date: str) -> str:
    """An ISO date as a reader writes it, or as it came."""
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        return date
    return f"{moment.day} {moment:%B %Y}"


def _template() -> Any:
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup, escape

    def code(text: str) -> Markup:
        """Escaped text in which `words between backticks` are set as code."""
        parts = str(escape(text)).split("`")
        even = len(parts) % 2 == 1
        return Markup("".join(f"<code>{p}</code>" if i % 2 and even else p for i, p in enumerate(parts)))

    room = Environment(
        loader=PackageLoader("hadamard.claims", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    room.filters["code"] = code
    room.globals["asset"] = lambda name: Markup(files("hadamard.claims").joinpath(name).read_text(encoding="utf-8"))
    return room.get_template("page.html")


def _plotly() -> Any:
    from markupsafe import Markup

    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("the evidence page needs plotly: pip install 'hadamard[claims]'") from error
    return Markup(get_plotlyjs())
