"""``hadamard list`` and ``hadamard show``."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from hadamard import catalog

__all__ = ["list_methods", "show"]


def list_methods(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array instead of a table.")] = False,
) -> None:
    """List the methods."""
    rows = catalog.select([family] if family else [])
    if as_json:
        json.dump([row.summary() for row in rows], sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    table = Table(box=None, header_style="bold")
    for column in ("key", "family", "takes the place of", "saves", "paper"):
        table.add_column(column, no_wrap=column in ("key", "family", "paper"), overflow="fold")
    for row in rows:
        table.add_row(
            f"[bold]{row.key}[/]", row.family, escape(row.drops_into), escape(row.saves), f"arXiv:{row.arxiv}"
        )
    Console().print(table)


def show(
    key: Annotated[str, typer.Argument(help="A method's key; see 'hadamard list'.")],
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Only the paper's BibTeX entry.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of evidence to read the last verdict from.")] = Path("evidence"),
) -> None:
    """Show what a method is for, how it is used, its paper and its last verdict."""
    row = catalog.method(key)
    if bibtex:
        sys.stdout.write(row.bibtex() + "\n")
        return
    console = Console()
    console.print(f"[bold]{row.key}[/] ({row.family}): {escape(row.what)}\n")
    console.print(Syntax(row.usage.strip(), "python", background_color="default"))
    console.print(f"\n[bold]API[/]    {', '.join(row.api)}")
    console.print(f"[bold]Takes the place of[/]  {escape(row.drops_into)}    [bold]Saves[/]  {escape(row.saves)}")
    console.print(
        f"[bold]Paper[/]  {escape(row.title)}. {escape(row.author_line)}. {row.venue} {row.year}, arXiv:{row.arxiv}"
    )
    for verb, there in (("apply", row.apply), ("train", row.train)):
        if there:
            console.print(f"[bold]Command[/]  hadamard {verb} {key} --help")
    console.print(f"[bold]Verdict[/]  {_verdict(out / f'{key}.json')}")


def _verdict(path: Path) -> str:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return f"none yet; run 'hadamard claims {path.stem}'"
    cause = f": {escape(record['cause'])}" if record.get("cause") else ""
    return f"{record['verdict']} at size {record['size']}, {record['date'][:10]}{cause}"
