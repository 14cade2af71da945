"""``hadamard apply KEY``: one module a method that has a natural file form, loaded when it is called."""

from importlib import import_module
from typing import Any

import typer

from hadamard import catalog

__all__ = ["ApplyGroup"]


class ApplyGroup(typer.core.TyperGroup):
    """The commands are the catalog's rows that have a file form."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Keys that can be applied."""
        return [m.key for m in catalog.methods().values() if m.apply]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of one method, from ``hadamard.cli.apply.KEY``."""
        if not catalog.method(cmd_name).apply:
            raise ValueError(
                f"{cmd_name} has no file form; these have: {', '.join(self.list_commands(ctx)) or 'none yet'}"
            )
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(cmd_name)(import_module(f"hadamard.cli.apply.{cmd_name}").apply)
        return typer.main.get_command(single)
