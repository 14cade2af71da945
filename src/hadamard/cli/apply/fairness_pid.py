"""``hadamard apply fairness_pid``: a table of predictions in, an audit and a picture of the trade-off out."""

import csv
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hadamard.cli.tables import number, read_rows
from hadamard.learning import AGLFOP, FairnessPID, fairness_pid

__all__ = ["apply"]


def apply(
    table: Annotated[Path, typer.Argument(help="CSV with a header and a row for each decision.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write: quantity,client,value,low,high.")],
    prediction: Annotated[str, typer.Option(help="Column of the predicted label.")] = "prediction",
    sensitive: Annotated[
        str, typer.Option(help="Column of the sensitive attribute; several, with commas, for their combinations.")
    ] = "sensitive",
    client: Annotated[str, typer.Option(help="Column of the client (site, branch).")] = "client",
    label: Annotated[str, typer.Option(help="Column of the true label, for --plot.")] = "label",
    weight: Annotated[str, typer.Option(help="Column of weights; none by default.")] = "",
    plot: Annotated[
        Path | None, typer.Option(help="Picture to write: the best accuracy within budgets, and this model.")
    ] = None,
    budgets: Annotated[int, typer.Option(help="Budgets along each axis of the picture.", min=2)] = 8,
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
) -> None:
    """Audit a classifier for global and local fairness.

    Disparities are in bits, with intervals; parity gaps are differences of rates. With --plot the file says the best
    accuracy that any classifier could have with these disparities, too.
    """
    (_, header), *rows = read_rows(table)
    if not rows:
        raise ValueError(f"{table}: holds no rows")
    for path in filter(None, (out, plot)):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: no folder {path.parent}")

    def column(name: str) -> np.ndarray:
        if name not in header:
            raise ValueError(f"{table}: no column {name!r}; it has {', '.join(header)}")
        at = header.index(name)
        for where, row in rows:
            if not row[at]:
                raise ValueError(f"{where}: {name} must not be empty")
        return np.array([row[at] for _, row in rows])

    groups = np.column_stack([column(name.strip()) for name in sensitive.split(",")])
    options: dict[str, Any] = {"sensitive_features": groups, "client": column(client)}
    if weight:
        texts = column(weight)
        options["sample_weight"] = np.array([number(str(t), where, weight) for t, (where, _) in zip(texts, rows)])
    decisions = column(prediction)
    audit = fairness_pid(decisions, level=level, **options)
    lines = _lines(audit)
    if plot is not None:
        labels = column(label)
        limit = AGLFOP(labels, **options)
        most = limit.solve()
        ends = (1.1 * max(pair) for pair in ((most.global_, audit.global_), (most.local, audit.local)))
        axes = limit.frontier(*(np.linspace(0, max(end, 1e-3), budgets) for end in ends)).plot(
            models=[("model", audit)]
        )
        axes.figure.savefig(plot)
        weights = options.get("sample_weight", np.ones(len(rows)))
        lines.append(("accuracy", "", float(np.average(decisions == labels, weights=weights)), None))
        lines.append(("best_accuracy", "", limit.solve(audit.global_, audit.local).bound, None))
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["quantity", "client", "value", "low", "high"])
        for quantity, where, value, interval in lines:
            writer.writerow([quantity, where, *("" if v is None or math.isnan(v) else f"{v:.6g}" for v in
                             (value, *(interval or (None, None))))])  # fmt: skip


def _lines(audit: FairnessPID) -> list[tuple[str, str, float, tuple[float, float] | None]]:
    names = {"global": "global_", "local": "local", "unique": "unique", "redundant": "redundant", "masked": "masked"}
    found = [(name, "", getattr(audit, key), audit.intervals.get(key)) for name, key in names.items()]
    found.append(("parity_gap", "", audit.parity_gap, None))
    for client, mine in audit.per_client.items():
        for quantity in ("share", "disparity", "parity_gap"):
            found.append((quantity, str(client), getattr(mine, quantity), None))
    return found
