"""``hadamard apply lora_limits``: a model, its adapter and a text in; which heads are in the efficient regime out."""

import csv
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hadamard.cli.files import existing
from hadamard.cli.pretrained import read_adapter, read_model
from hadamard.compression import norm_report
from hadamard.validation import check_range

__all__ = ["apply"]

_SHOWN = ("layer", "heads", "channels", "entry", "threshold", "adapter", "below", "score", "affordable", "cheaper")


def apply(
    model: Annotated[Path, typer.Argument(help="Folder of a model of transformers, as save_pretrained writes it.")],
    text: Annotated[Path, typer.Option("--text", help="Text in UTF-8 of the kind that the adapter is trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write: one line a head.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter that PEFT saved.")] = None,
    length: Annotated[int, typer.Option(help="Tokens of the text that are used.")] = 512,
    eps: Annotated[float, typer.Option(help="Relative error of a weight that the polynomial is to meet.")] = 1e-3,
) -> None:
    """Measure every head's scores, and what they may be for LoRA's gradient to take a time linear in the length."""
    check_range(length, "--length", 2, integer=True)
    check_range(eps, "--eps", 0, closed="neither")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: no folder {out.parent}")
    try:
        words = existing(text).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{text}: is not a text file in UTF-8") from None
    network, tokenizer = read_model(model)
    if adapter is not None:
        network = read_adapter(network, adapter)
    tokens = tokenizer(words, truncation=True, max_length=length, return_tensors="pt").input_ids
    if tokens.shape[1] < 2:
        raise ValueError(f"{text}: must hold at least two tokens, got {tokens.shape[1]}")
    report = norm_report(network, tokens, eps=eps)
    rows = report.rows()
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*_SHOWN)
    for row in report.layers():
        table.add_row(*(f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in _SHOWN))
    Console().print(table)
    typer.echo(report.advice())
    typer.echo(f"wrote {out}: {len(rows)} heads on {tokens.shape[1]} tokens")
