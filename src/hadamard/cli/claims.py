"""``hadamard claims`` and ``hadamard report``."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hadamard import catalog

__all__ = ["claims", "report"]

_COLOURS = {"holds": "green", "holds_weaker": "green", "inconclusive": "yellow", "fails": "red", "error": "bold red"}


class Size(StrEnum):
    """Sizes of a claim's problem."""

    quick = "quick"
    full = "full"
    gpu = "gpu"


def claims(
    names: Annotated[list[str] | None, typer.Argument(help="Methods or families; all of them by default.")] = None,
    size: Annotated[Size, typer.Option(help="quick: seconds; full: up to 10 minutes; gpu: on a GPU.")] = Size.quick,
    out: Annotated[Path, typer.Option(help="Folder for the records and the page.")] = Path("evidence"),
    jobs: Annotated[int, typer.Option(min=1, help="Claims side by side; above 1 nothing is timed.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what an interrupted run has finished.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when a bar falls short.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as a JSON array.")] = False,
    expected: Annotated[Path | None, typer.Option(help="Exit with 1 when a bar holds otherwise than here.")] = None,
) -> None:
    """Run methods beside their papers' baselines and today's peers, and say what holds.

    Exit codes: 0 every claim reached a verdict, 1 a bar fell short under --strict or differs from --expected,
    2 wrong input, 3 a claim ended in an error.
    """
    from hadamard.claims import engine, page
    from hadamard.claims import expected as bookkeeping

    keys = [row.key for row in catalog.select(names or [])]
    console = Console(stderr=as_json)
    shown: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            overall = progress.add_task("claims", total=len(keys))
            current = progress.add_task("", total=100, visible=jobs == 1)

            def on_start(key: str) -> None:
                progress.reset(current, description=key, total=100)

            def on_step(fraction: float) -> None:
                progress.update(current, completed=round(100 * fraction))

            def on_done(record: dict[str, Any]) -> None:
                shown.append(record)
                page.build(out, total=len(keys))
                progress.advance(overall)
                progress.console.print(_line(record))

            records = engine.run_all(
                keys, size.value, out, jobs=jobs, resume=resume, on_start=on_start, on_step=on_step, on_done=on_done
            )
    except KeyboardInterrupt:
        console.print(f"Stopped after {len(shown)} of {len(keys)} claims; the same command with --resume goes on.")
        raise typer.Exit(130) from None
    if as_json:
        json.dump(records, sys.stdout, indent=1)
        sys.stdout.write("\n")
    console.print(_table(records))
    console.print(f"Evidence: {out / 'index.html'}")
    raise typer.Exit(
        _exit_code(records, strict, bookkeeping.differences(records, expected) if expected else [], console)
    )


def report(
    directory: Annotated[Path, typer.Argument(help="Folder with the claims' records.")],
    write_expected: Annotated[Path | None, typer.Option(help="Write down which bars hold, for --expected.")] = None,
) -> None:
    """Build the evidence page again from a folder of records."""
    from hadamard.claims import expected as bookkeeping
    from hadamard.claims import page

    if not directory.is_dir():
        raise ValueError(f"directory {str(directory)!r} does not exist")
    Console().print(f"Evidence: {page.build(directory)}")
    if write_expected:
        records = [
            json.loads(path.read_text()) for key in catalog.methods() if (path := directory / f"{key}.json").exists()
        ]
        bookkeeping.write_expected([r for r in records if r["size"] == "quick"], write_expected)


def _exit_code(records: list[dict[str, Any]], strict: bool, changed: list[str], console: Console) -> int:
    for record in records:
        if record["verdict"] == "error":
            console.print(f"[bold red]{record['key']}[/] ended in an error: {escape(record['cause'])}")
    for line in changed:
        console.print(f"[bold red]changed[/] {escape(line)}")
    if any(record["verdict"] == "error" for record in records):
        return 3
    short = [bar for record in records for bar in record["bars"] if bar["holds"] == "no" and not bar["seconds"]]
    return 1 if changed or (strict and short) else 0


def _line(record: dict[str, Any]) -> str:
    colour = _COLOURS[record["verdict"]]
    return f"{record['key']:<28} [{colour}]{record['verdict']:<12}[/] {record['seconds_total']:6.1f} s"


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", title="Claims", title_justify="left")
    for name in ("key", "verdict", "paper's headline", "bars", "what was measured"):
        table.add_column(name, overflow="fold")
    for record in records:
        bars = record.get("bars", [])
        held = f"{sum(bar['holds'] == 'yes' for bar in bars)}/{len(bars)}"
        telling = next((bar for bar in bars if bar["headline"]), bars[0] if bars else None)
        measured = record.get("cause", "")
        if telling is not None:
            value = "not measured" if telling["value"] is None else f"{telling['value']:.3g}"
            measured = f"{telling['text']}: {value}"
        verdict = f"[{_COLOURS[record['verdict']]}]{record['verdict']}[/]"
        table.add_row(record["key"], verdict, record.get("paper_headline", ""), held, escape(measured))
    return table
