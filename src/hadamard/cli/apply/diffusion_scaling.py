"""``hadamard apply diffusion_scaling``: a table of runs in, their scaling law with forecasts and a picture out."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hadamard.cli.tables import number, read_rows
from hadamard.diffusion.diffusion_scaling import ScalingLaw, extrapolation_error

__all__ = ["apply"]


def apply(
    runs: Annotated[
        Path,
        typer.Argument(help="CSV with a header: sizes, and the loss in the last column; an empty loss is asked for."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="CSV to write: RUNS with the columns forecast, low and high.")
    ],
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Column that the loss depends on, such as parameters, compute or data; repeatable. Else all."
        ),
    ] = None,
    floor: Annotated[
        str, typer.Option(help="Whether the law has a loss that no size falls below: yes, no, or auto.")
    ] = "auto",
    score: Annotated[
        bool, typer.Option("--score", help="The last column is a score below 1 that rises: the law is of 1 - score.")
    ] = False,
    level: Annotated[float, typer.Option(help="Share of the bootstrapped laws between low and high.")] = 0.9,
    bootstrap: Annotated[int, typer.Option(help="Number of bootstrapped laws.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
) -> None:
    """Fit loss = E + sum of A * size^-a to finished runs, and forecast others before they are paid for.

    Beside OUT are written OUT.json, the law with its intervals, and OUT.png, the picture. The error that is printed is
    that of the dearest 40 % of the runs, forecast from the others.
    """
    names: dict[str, bool | str] = {"yes": True, "no": False, "auto": "auto"}
    if floor not in names:
        raise ValueError(f"--floor must be yes, no or auto, got {floor!r}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: no folder {out.parent}")
    columns, sizes, losses = _read(runs, by or [], score)
    known = np.isfinite(losses)
    law = ScalingLaw(names[floor], bootstrap=bootstrap, random_state=seed).fit(sizes[known], losses[known])
    forecast, (low, high) = law.predict(sizes), law.predict_interval(sizes, level)
    if score:
        losses, forecast, low, high = 1 - losses, 1 - forecast, 1 - high, 1 - low
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "score" if score else "loss", "forecast", "low", "high"])
        for size, value, *rest in zip(sizes, losses, forecast, low, high):
            cells = [f"{v:.9g}" for v in (*size, *rest)]
            writer.writerow([*cells[:-3], f"{value:.9g}" if np.isfinite(value) else "", *cells[-3:]])
    found: dict[str, Any] = {
        "columns": columns, "of": "1 - score" if score else "loss", "E": law.offset_, "A": law.scales_.tolist(),
        "a": law.exponents_.tolist(), "level": level, "intervals": law.intervals(level),
    }  # fmt: skip
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _draw(out.with_suffix(".png"), columns, sizes, losses, (forecast, low, high), "score" if score else "loss")
    typer.echo(f"{found['of']} = {_law(law, columns)}")
    if known.sum() > 2 * (2 * len(columns) + 1):
        error = extrapolation_error(law, sizes[known], losses[known] if not score else 1 - losses[known])
        typer.echo(f"the dearest 40 % of the runs, forecast from the others: {error:.1%} off")
    typer.echo(f"wrote {out}, {out.stem}.json and {out.stem}.png: {known.sum()} runs, {(~known).sum()} forecasts")


def _read(path: Path, by: Sequence[str], score: bool) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names and values of the sizes, and the losses, NaN where one is asked for."""
    (_, header), *rows = read_rows(path)
    missing = [name for name in by if name not in header[:-1]]
    if missing or len(header) < 2:
        raise ValueError(
            f"{path}: expected a header of columns of sizes and a last one of losses"
            + (f", with {', '.join(missing)}" if missing else "")
            + f", got {','.join(header)}"
        )
    at = [header.index(name) for name in by] if by else list(range(len(header) - 1))
    columns = [header[j] for j in at]
    sizes, losses = [], []
    for where, row in rows:
        sizes.append([number(row[j], where, header[j]) for j in at])
        losses.append(number(row[-1], where, header[-1]) if row[-1] else np.nan)
        for name, size in zip(columns, sizes[-1]):
            if size <= 0:
                raise ValueError(f"{where}: {name} must be positive, got {size:g}")
        if score and losses[-1] >= 1:
            raise ValueError(f"{where}: a score must be below 1, got {losses[-1]:g}")
        if losses[-1] <= 0 and not score:
            raise ValueError(f"{where}: a loss must be positive, got {losses[-1]:g}")
    if not rows:
        raise ValueError(f"{path}: holds no runs")
    found = np.array(losses)
    return columns, np.array(sizes), 1 - found if score else found


def _law(law: ScalingLaw, columns: Sequence[str]) -> str:
    floor = [f"{law.offset_:.4g}"] if law.floor_ else []
    terms = [f"{A:.4g} * {name}^-{a:.4g}" for A, a, name in zip(law.scales_, law.exponents_, columns)]
    return " + ".join(floor + terms)


def _draw(
    path: Path, columns: Sequence[str], sizes: np.ndarray, losses: np.ndarray, forecast: Sequence[np.ndarray], of: str
) -> None:
    """Runs and forecasts with their range, over each column."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(5 * len(columns), 4), layout="constrained")
    middle, low, high = forecast
    for j, (name, axes) in enumerate(zip(columns, np.atleast_1d(figure.subplots(1, len(columns), sharey=True)))):
        order = np.argsort(sizes[:, j], kind="stable")
        x = sizes[order, j]
        if len(columns) == 1:
            axes.fill_between(x, low[order], high[order], alpha=0.25, linewidth=0, label="range of bootstrapped laws")
            axes.plot(x, middle[order], label="law")
        else:
            axes.plot(x, middle[order], "_", markersize=14, label="law")
        asked = np.isnan(losses[order])
        bars = [np.maximum(middle[order] - low[order], 0), np.maximum(high[order] - middle[order], 0)]
        axes.errorbar(
            x[asked], middle[order][asked], [bar[asked] for bar in bars], fmt="s", capsize=3, label="forecast"
        )
        axes.plot(x, losses[order], "o", color="black", label="runs")
        axes.set(xscale="log", xlabel=name, yscale="linear" if of == "score" else "log")
        if j == 0:
            axes.set_ylabel(of)
            axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
