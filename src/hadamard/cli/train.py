"""``hadamard train``."""

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

from hadamard import catalog

__all__ = ["train"]


def train(
    key: Annotated[str, typer.Argument(help="A method that ships trained weights.")],
    size: Annotated[str, typer.Option(help="full: what is shipped; quick: a smaller budget.")] = "full",
    out: Annotated[Path | None, typer.Option(help="Folder for the weights; where the shipped ones lie.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from what an interrupted training left.")] = True,
    device: Annotated[str, typer.Option(help="Where to train, for methods that can choose: cpu, cuda, ...")] = "cpu",
) -> None:
    """Train a method's shipped weights again, its contenders by the same command and budget."""
    row = catalog.method(key)
    if not row.train:
        able = [m.key for m in catalog.methods().values() if m.train]
        raise ValueError(f"{key} has nothing to train; these have: {', '.join(able) or 'none yet'}")
    run = import_module(f"hadamard.claims.{row.family}.{key}").train
    place = {}
    if device != "cpu":
        if "device" not in signature(run).parameters:
            raise ValueError(f"{key} trains on the CPU only, got --device {device}")
        place = {"device": device}
    run(size=size, out=out, resume=resume, **place)
