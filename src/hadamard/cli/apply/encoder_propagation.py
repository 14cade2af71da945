"""``hadamard apply encoder_propagation``: pictures of a local pipeline, plain and accelerated, and what each took."""

import csv
from inspect import Parameter, signature
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from hadamard.cli.files import write_image
from hadamard.cli.pipelines import load_pipeline
from hadamard.diffusion import EncoderPropagation
from hadamard.validation import check_range

__all__ = ["apply"]

_COLUMNS = ("sampler", "steps", "encoder runs", "seconds", "rms difference")


def apply(
    source: Annotated[Path, typer.Argument(help="Folder of a diffusers pipeline, as save_pretrained writes it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures and timing.csv.")],
    prompt: Annotated[str | None, typer.Option(help="What to draw, for a pipeline that takes a text.")] = None,
    label: Annotated[int | None, typer.Option("--class", help="Class, for a UNet that takes one.")] = None,
    seed: Annotated[int, typer.Option(help="Of the starting noise.")] = 0,
    count: Annotated[int, typer.Option(help="Pictures.")] = 1,
    steps: Annotated[int, typer.Option(help="Steps of the plain sampler.")] = 50,
    key_steps: Annotated[
        str, typer.Option(help="50ls, 50if, a number m (every m-th step) or a list: 0,1,2,5,10.")
    ] = "50ls",
    parallel: Annotated[bool, typer.Option(help="Decode the steps up to the next key step in one batch.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    progress: Annotated[bool, typer.Option(help="Show diffusers' progress bars.")] = True,
) -> None:
    """Draw pictures by the plain sampler, by encoder propagation, and by as many plain steps as take the same time.

    All start from the same noise. The table says how long each took and how far its pictures are from the plain ones,
    in units of white.
    """
    check_range(count, "--count", 1, integer=True)
    check_range(steps, "--steps", 1, integer=True)
    pipe = load_pipeline(source, progress).to(device)
    _bind_class(pipe, source, label, count)
    options = _options(pipe, source, prompt, count)
    fast = EncoderPropagation(pipe, _keys(key_steps), parallel=parallel)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: there is no folder {out.parent}")

    def draw(name: str, n: int) -> tuple[np.ndarray, float]:
        pipe.set_progress_bar_config(desc=name, disable=not progress)
        options["generator"] = torch.Generator().manual_seed(seed)
        start = perf_counter()
        images = pipe(num_inference_steps=n, output_type="np", **options).images
        return np.asarray(images), perf_counter() - start

    draw("warming up", 1)
    plain, whole = draw("plain", steps)
    with fast:
        quick, short = draw("encoder propagation", steps)
    fewer = min(max(round(steps * short / whole), 1), steps)
    less, time = draw("fewer steps", fewer)
    off = lambda images: f"{float(np.sqrt(np.mean((images - plain) ** 2))):.4f}"  # noqa: E731
    rows = [
        ("plain", steps, steps, f"{whole:.2f}", off(plain)),
        ("encoder propagation", steps, fast.key_calls, f"{short:.2f}", off(quick)),
        ("fewer steps", fewer, fewer, f"{time:.2f}", off(less)),
    ]
    out.mkdir(exist_ok=True)
    for (name, *_), images in zip(rows, (plain, quick, less)):
        for i, image in enumerate(images):
            write_image(out / f"{name.replace(' ', '_')}_{i}.png", image.squeeze(-1) if image.shape[-1] == 1 else image)
    with (out / "timing.csv").open("w", newline="") as file:
        csv.writer(file).writerows([_COLUMNS, *rows])
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
    typer.echo(f"wrote {out}: {len(rows) * count} pictures and timing.csv")


def _bind_class(pipe: Any, source: Path, label: int | None, count: int) -> None:
    """Let an unconditional pipeline's UNet draw one class; diffusers has no pipeline that hands it on."""
    classes = getattr(pipe.unet.config, "num_class_embeds", None)
    if (label is None) != (classes is None):
        raise ValueError(f"{source}: its UNet takes {'no class, got' if classes is None else 'one, give'} --class")
    if classes is None or label is None:
        return
    check_range(label, "--class", 0, classes - 1, integer=True)
    run, labels = pipe.unet.forward, torch.full((count,), label, device=pipe.device)
    pipe.unet.forward = lambda sample, timestep, **more: run(sample, timestep, labels, **more)


def _options(pipe: Any, source: Path, prompt: str | None, count: int) -> dict[str, Any]:
    """What this pipeline is called with, besides steps and noise."""
    takes = signature(pipe.__call__).parameters
    if (prompt is None) == ("prompt" in takes):
        raise ValueError(
            f"{source}: its pipeline takes {'a text, give' if prompt is None else 'no text, got'} --prompt"
        )
    options: dict[str, Any] = {"num_images_per_prompt" if "prompt" in takes else "batch_size": count}
    options |= {"prompt": prompt} if prompt is not None else {}
    lacking = [
        name for name, p in takes.items()
        if p.default is Parameter.empty and p.kind is Parameter.POSITIONAL_OR_KEYWORD and name not in options
    ]  # fmt: skip
    if lacking:
        raise ValueError(f"{source}: {type(pipe).__name__} needs {', '.join(lacking)}, which cannot be given here")
    return options


def _keys(words: str) -> str | int | list[int]:
    parts = words.split(",")
    if not all(part.strip().isdigit() for part in parts):
        return words
    return [int(part) for part in parts] if len(parts) > 1 else int(words)
