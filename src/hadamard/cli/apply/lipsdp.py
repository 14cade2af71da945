"""``hadamard apply lipsdp``: a network in, a proved Lipschitz bound out."""

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from hadamard.certification import lipschitz_bound, read_onnx, sampled_lower_bound
from hadamard.cli.files import guarded
from hadamard.cli.models import build_model, fit_weights, read_weights

__all__ = ["apply"]

_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


def apply(
    source: Annotated[
        Path,
        typer.Argument(help="Network (.onnx), weights (.safetensors, with --model), or a pickle (--allow-pickle)."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Result: .json, with the multipliers that prove it, or .csv."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="MODULE:FUNCTION or FILE.py:FUNCTION that builds the network for the weights; it is run."),
    ] = None,
    norm: Annotated[str, typer.Option(help="l2 or linf.")] = "l2",
    method: Annotated[
        str, typer.Option(help="reduced, nsr, lambda, residual, layer, recursion or product.")
    ] = "reduced",
    split: Annotated[int, typer.Option(help="Cut a large network into so many chains.")] = 1,
    solver: Annotated[str | None, typer.Option(help="barrier, CLARABEL or SCS.")] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Shape of one input, as 1x28x28, where the network does not tell it.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Inputs at which a lower bound is looked for; 0: none.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of these inputs.")] = 0,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read a pickle, which can run any program: only if you made it.")
    ] = False,
) -> None:
    """Bound how fast a network's output can change, with a proof, beside the product of norms and a lower bound."""
    if out is not None:
        if out.suffix.lower() not in (".json", ".csv"):
            raise ValueError(f"{out}: the result must end in .json or .csv")
        if not out.parent.is_dir():
            raise FileNotFoundError(f"{out}: no folder {out.parent}")
    if samples < 0:
        raise ValueError(f"--samples must be >= 0, got {samples}")
    network, shape = _read(source, model, allow_pickle)
    shape = shape if input_shape is None else _shape(input_shape)
    found = lipschitz_bound(network, norm, method, split=split, solver=solver, input_shape=shape)
    product = lipschitz_bound(network, norm, "product", input_shape=shape)
    lower = None
    if samples:
        generator = torch.Generator().manual_seed(seed)
        lower = sampled_lower_bound(network, norm, samples=samples, input_shape=shape, generator=generator)
    row = {
        "network": source.name, "norm": norm, "method": method, "solver": found.solver, "split": split,
        "bound": found.bound, "verified": found.verified, "product_of_norms": product.bound, "lower_bound": lower,
        "margin": found.margin, "matrix_side": found.size, "converged": found.converged, "seconds": found.seconds,
    }  # fmt: skip
    _show(row)
    if out is not None and out.suffix.lower() == ".json":
        proof = row | {"multipliers": [m.tolist() for m in found.multipliers]}
        out.write_text(json.dumps(proof, indent=1) + "\n", encoding="utf-8")
    elif out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
    if out is not None:
        typer.echo(f"wrote {out}")


def _show(row: dict[str, Any]) -> None:
    table = Table(title=f"{row['network']}, {row['norm']}", box=None, header_style="bold")
    table.add_column("")
    table.add_column("Lipschitz constant", justify="right")
    table.add_column("")
    if row["lower_bound"] is not None:
        table.add_row("at least (sampled)", f"{row['lower_bound']:.6g}", "computed")
    told = f"proved; margin {row['margin']:.1e}, {row['seconds']:.2f} s"
    table.add_row(f"at most ({row['method']})", f"{row['bound']:.6g}", told)
    table.add_row("product of norms", f"{row['product_of_norms']:.6g}", "proved")
    Console(soft_wrap=True, highlight=False).print(table)


def _read(source: Path, model: str | None, allow_pickle: bool) -> tuple[nn.Module, tuple[int, ...] | None]:
    """The network, and the shape of its input where the file tells it."""
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    ending = source.suffix.lower()
    if ending == ".onnx":
        if model is not None:
            raise ValueError("--model goes with weights (.safetensors): an .onnx file holds its network")
        return read_onnx(source)
    if ending in _PICKLES and not allow_pickle:
        raise ValueError(
            f"{source}: a pickle can run any program when it is read; save as safetensors, or --allow-pickle"
        )
    if ending not in (*_PICKLES, ".safetensors"):
        raise ValueError(f"{source}: expected .onnx, .safetensors or {', '.join(_PICKLES)}")
    loaded: Any
    if ending == ".safetensors":
        loaded = read_weights(source)
    else:
        loaded = guarded(source, lambda: torch.load(source, map_location="cpu", weights_only=False))
    if isinstance(loaded, nn.Module):
        return loaded.eval(), None
    if not isinstance(loaded, dict):
        raise ValueError(f"{source}: expected a network or its weights, got {type(loaded).__name__}")
    if model is None:
        raise ValueError(f"{source}: holds weights only, name the network by --model MODULE:FUNCTION")
    network = build_model(model)
    fit_weights(network, loaded, source, model)
    return network.eval(), None


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise ValueError(f"--input-shape must be like 1x28x28, got {text!r}")
    return sizes
