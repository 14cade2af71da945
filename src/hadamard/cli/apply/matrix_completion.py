"""``hadamard apply matrix_completion``: ratings in, predictions out."""

import csv
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from hadamard.cli.tables import number, read_rows
from hadamard.learning import complete

__all__ = ["apply"]


def apply(
    ratings: Annotated[
        Path, typer.Argument(help="CSV with the header user,item,rating; an empty rating is asked for.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write, with the header user,item,rating.")],
    pairs: Annotated[
        Path | None,
        typer.Option(help="CSV with the header user,item: the pairs to predict; else all that are missing."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Number of factors.")] = 10,
    reg: Annotated[float, typer.Option(help="Ridge on the factors; larger for fewer or noisier ratings.")] = 12.0,
    sweeps: Annotated[int, typer.Option(help="Sweeps of alternating least squares at most.")] = 20,
) -> None:
    """Predict missing ratings.

    Predicted are the pairs of PAIRS where it is given, else the rows of RATINGS whose rating is empty, else every pair
    of a user and an item that has no rating. Predictions are clipped to the range of the ratings.
    """
    known, asked = _read(ratings, with_rating=True)
    if not known:
        raise ValueError(f"{ratings}: holds no rating")
    users = {name: i for i, name in enumerate(dict.fromkeys(u for u, _ in known))}
    items = {name: i for i, name in enumerate(dict.fromkeys(i for _, i in known))}
    if pairs is not None:
        _, asked = _read(pairs, with_rating=False)
    if not asked:
        asked = [(u, i) for u in users for i in items if (u, i) not in known]
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: no folder {out.parent}")
    indices = torch.tensor([[users[u] for u, _ in known], [items[i] for _, i in known]])
    values = torch.tensor(list(known.values()), dtype=torch.float64)
    shape = (len(users), len(items))
    found = complete(
        indices, values, shape, min(rank, *shape), biases=True, reg=reg, max_iter=sweeps, tol=1e-3
    )  # fmt: skip
    # a user or an item that was never rated is its mean: zero factors and offsets, the mean being among the items'
    U = torch.cat([found.U, found.U.new_zeros(1, found.U.shape[1])])
    V = torch.cat([found.V, found.V.mean(0, keepdim=True)])
    U[-1, -1], V[-1, 1:-1] = 1, 0
    at = torch.tensor([[users.get(u, len(users)) for u, _ in asked], [items.get(i, len(items)) for _, i in asked]])
    low, high = float(values.min()), float(values.max())
    predicted = np.clip((U[at[0]] * V[at[1]]).sum(-1).numpy(), low, high) if asked else []
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "rating"])
        writer.writerows((u, i, f"{r:.4f}") for (u, i), r in zip(asked, predicted))


def _read(path: Path, with_rating: bool) -> tuple[dict[tuple[str, str], float], list[tuple[str, str]]]:
    """Ratings by pair, and the pairs whose rating is empty or that have no such column."""
    wanted = ["user", "item", "rating"] if with_rating else ["user", "item"]
    known: dict[tuple[str, str], float] = {}
    asked: dict[tuple[str, str], None] = {}
    (_, header), *rows = read_rows(path)
    if [name.lower() for name in header[: len(wanted)]] != wanted:
        raise ValueError(f"{path}: the header must be {','.join(wanted)}, got {','.join(header)}")
    for where, row in rows:
        pair = row[0], row[1]
        if not all(pair):
            raise ValueError(f"{where}: user and item must not be empty")
        if pair in known or pair in asked:
            raise ValueError(f"{where}: user {pair[0]} and item {pair[1]} stand in the file twice")
        if with_rating and row[2]:
            known[pair] = number(row[2], where, "rating")
        else:
            asked[pair] = None
    return known, list(asked)
