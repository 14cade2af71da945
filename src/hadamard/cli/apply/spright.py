"""``hadamard apply spright``: a table of values or a trained model in, its interactions out."""

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from hadamard.cli.tables import number, read_rows
from hadamard.transforms import sparse_wht
from hadamard.validation import check_range

__all__ = ["apply"]

_PICKLES = (".pkl", ".pickle", ".joblib")


def apply(
    source: Annotated[
        Path,
        typer.Argument(
            help="CSV of all 2^n values, one a row (bit q of the row's number, from 0, has weight 2^q), or of n bits "
            "and a value a row, in any order; or a fitted scikit-learn model (.skops, or a pickle: --allow-pickle)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write: coefficient, order, interaction.")],
    sparsity: Annotated[
        int, typer.Option(help="About how many interactions are expected; it stops at four times as many bins.")
    ] = 256,
    noise_std: Annotated[
        float, typer.Option(help="Standard deviation of the noise of one value; rounded values are noisy too.")
    ] = 0.0,
    points: Annotated[
        Path | None,
        typer.Option(help="Model: CSV of two rows of features, what bit 0 and bit 1 stand for; else zeros and ones."),
    ] = None,
    trust: Annotated[list[str] | None, typer.Option(help="Type that a .skops file may hold too; repeatable.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read a pickle, which can run any program: only if you made it.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the choice of values.")] = 0,
) -> None:
    """Find the interactions of a function of bits, such as a set function or a model's features switched on and off.

    The function is the sum of coefficient * product over the interaction's variables of (1 - 2 bit). Exits with 1 where
    not all of it was found.
    """
    check_range(sparsity, "--sparsity", 1, integer=True)
    check_range(noise_std, "--noise-std", 0)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: no folder {out.parent}")
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    function: Tensor | Callable[[Tensor], Tensor]
    if source.suffix.lower() in (".skops", *_PICKLES):
        function, names = _ask(_model(source, trust or [], allow_pickle), source, points)
    elif points is not None:
        raise ValueError("--points goes with a model (.skops), not with a table")
    else:
        function, names = _table(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is said below
        found = sparse_wht(
            function, len(names), sparsity=sparsity, method="nso" if noise_std else "noiseless", noise_std=noise_std,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["coefficient", "order", "interaction"])
        for value, index in zip(found.value.tolist(), found.indices.numpy()):
            variables = [name for name, takes_part in zip(names, index) if takes_part]
            writer.writerow([f"{value:.9g}", len(variables), " * ".join(variables) or "(constant)"])
    typer.echo(f"wrote {out}: {len(found.value)} interactions from {found.n_samples} of 2^{len(names)} values")
    if not found.converged:
        typer.echo(f"not all of it was found: {found.message}", err=True)
        raise typer.Exit(1)


def _table(path: Path) -> tuple[Tensor, list[str]]:
    """All values in the order of their bits, and the names of the bits."""
    header, rows = _numbers(path)
    if rows.shape[1] == 1:
        n = len(rows).bit_length() - 1
        if len(rows) != 1 << n or n == 0:
            raise ValueError(f"{path}: expected 2^n values, got {len(rows)}; is the file truncated?")
        return torch.from_numpy(rows[:, 0].copy()), [f"x{q}" for q in range(n)]
    n = rows.shape[1] - 1
    bits, values = rows[:, :-1], rows[:, -1]
    if not np.isin(bits, (0, 1)).all():
        raise ValueError(f"{path}: every column but the last must hold zeros and ones")
    if len(rows) != 1 << n:
        raise ValueError(f"{path}: expected all 2^{n} = {1 << n} rows, got {len(rows)}; is the file truncated?")
    place = bits.astype(np.int64) @ (1 << np.arange(n))
    if len(np.unique(place)) < len(rows):
        raise ValueError(f"{path}: some bits stand in it twice, so that others are missing")
    table = torch.zeros(1 << n, dtype=torch.float64)
    table[torch.from_numpy(place)] = torch.from_numpy(values.copy())
    return table, header[:-1] if header else [f"x{q}" for q in range(n)]


def _numbers(path: Path) -> tuple[list[str], np.ndarray]:
    """A CSV of finite numbers: its header, empty where it has none, and its rows."""
    (_, first), *rest = rows = read_rows(path)
    header = [] if any(map(_is_number, first)) else first
    values = [[number(text, where, "a value") for text in row] for where, row in (rest if header else rows)]
    if not values:
        raise ValueError(f"{path}: holds no values")
    return header, np.array(values)


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text)).item()
    except ValueError:
        return False


def _model(path: Path, trust: list[str], allow_pickle: bool) -> Any:
    """Load a fitted model without running anything from the file, unless it is a pickle and that is allowed."""
    if path.suffix.lower() in _PICKLES and not allow_pickle:
        raise ValueError(f"{path}: a pickle can run any program when it is read; save it with skops, or --allow-pickle")
    if path.suffix.lower() == ".skops":
        try:
            from skops import io
        except ImportError as error:
            raise ImportError(".skops files need skops: pip install 'hadamard[models]'") from error
    try:
        if path.suffix.lower() in _PICKLES:
            import joblib

            return joblib.load(path)
        unknown = sorted(set(io.get_untrusted_types(file=path)) - set(trust))
        model = None if unknown else io.load(path, trusted=trust)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: cannot be read, it may be damaged or truncated ({reason})") from error
    if unknown:
        raise ValueError(
            f"{path}: holds types that skops does not know; if you do: --trust {' --trust '.join(unknown)}"
        )
    return model


def _ask(model: Any, path: Path, points: Path | None) -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """The model as a function of bits: its prediction, or a binary classifier's probability of its second class."""
    if not hasattr(model, "predict") or not hasattr(model, "n_features_in_"):
        raise ValueError(f"{path}: expected a fitted scikit-learn model, got {type(model).__name__}")
    n = model.n_features_in_
    low, high = np.zeros(n), np.ones(n)
    if points is not None:
        _, rows = _numbers(points)
        if rows.shape != (2, n):
            raise ValueError(f"{points}: expected 2 rows of {n} features, got {len(rows)} of {rows.shape[1]}")
        low, high = rows
    classes = getattr(model, "classes_", None)
    if classes is not None and (len(classes) != 2 or not hasattr(model, "predict_proba")):
        raise ValueError(f"{path}: a classifier must have two classes and predict_proba, got {type(model).__name__}")

    def ask(bits: Tensor) -> Tensor:
        X = np.where(bits.numpy(), high, low)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            values = model.predict(X) if classes is None else model.predict_proba(X)[:, 1]
        return torch.from_numpy(np.asarray(values, dtype=np.float64))

    return ask, [str(name) for name in getattr(model, "feature_names_in_", [f"x{q}" for q in range(n)])]
