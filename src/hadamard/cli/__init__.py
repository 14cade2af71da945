"""The ``hadamard`` command."""

import os
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from hadamard.cli.apply import ApplyGroup
from hadamard.cli.catalog import list_methods, show
from hadamard.cli.claims import claims, report
from hadamard.cli.data import data
from hadamard.cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The same answer from less: published methods, each with its paper's claim as something that you can run.",
)
app.command("list")(list_methods)
app.command()(show)
app.command()(claims)
app.command()(report)
app.command()(train)
app.add_typer(data, name="data")
_apply = typer.Typer(cls=ApplyGroup, no_args_is_help=True, help="Run a method on a file: file in, file out.")
_apply.callback()(lambda: None)
app.add_typer(_apply, name="apply")


def main() -> None:
    """Run the command; an error in what the user gave is one line and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except typer.TyperException as error:  # wrong options; without any, the help is there already
        _refuse(str(getattr(error, "format_message", lambda: error)()), getattr(error, "ctx", None))
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("HADAMARD_DEBUG"):
            raise
        _refuse(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(reason: str, context: Any = None) -> NoReturn:
    if reason:
        line = " ".join(reason.split())
        if context:
            line = f"{line.removesuffix('.')} (see '{context.command_path} --help')"
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]Error:[/] {escape(line)}")
    sys.exit(2)
