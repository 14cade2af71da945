"""Audits of classifiers that several clients share: which unfairness is global, which local, and which both.

With the sensitive attribute Z, the client S and the prediction Y, all discrete, global disparity is I(Z; Y) and local
disparity I(Z; Y | S), in bits; each is 0 exactly where decision rates are equal between groups (among all clients, or
in every client). A partial information decomposition of I(Z; Y, S) divides them:

    global = unique + redundant,    local = unique + masked.

References
----------
F. Hamman and S. Dutta, "Demystifying Local and Global Fairness Trade-offs in Federated Learning Using Partial
Information Decomposition", ICLR 2024, arXiv:2307.11333.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from hadamard.learning.partial_information import mutual_information, pid
from hadamard.validation import check_range

__all__ = ["ClientDisparity", "FairnessPID", "fairness_pid"]

_PARTS = ("global_", "local", "unique", "redundant", "masked")
_CHUNK = 20_000_000  # numbers in the multiplicities that are drawn at once
_BOOTSTRAP_TOL = 1e-6  # bits; far below the intervals

Table = Float[np.ndarray, "z y s"]


@dataclass(frozen=True)
class ClientDisparity:
    """One client's share of the table.

    Attributes
    ----------
    share
        Its share of all rows (or of their weight).
    disparity
        I(Z; Y | S = client), in bits; local disparity is the mean of these, weighted by the shares.
    parity_gap
        The largest difference of a decision's rate between two groups of this client.
    rates
        Rate of each decision by group, in the order of ``FairnessPID.decisions``; NaN for a group that it has not.
    """

    share: float
    disparity: float
    parity_gap: float
    rates: Mapping[Any, tuple[float, ...]]


@dataclass(frozen=True)
class FairnessPID:
    """What :func:`fairness_pid` found; disparities in bits.

    Attributes
    ----------
    global_, local
        I(Z; Y) and I(Z; Y | S).
    unique, redundant, masked
        What appears globally and locally, globally only, and locally only.
    parity_gap
        The largest difference of a decision's rate between two groups, all clients together.
    per_client
        A :class:`ClientDisparity` for each client.
    intervals
        Confidence interval of each disparity by name, such as ``intervals["local"]``; empty without bootstrap.
    bias
        Estimate of how much each disparity is too large, being an information from a finite sample.
    decisions, groups
        The labels in the order of the table's axes.
    joint
        The table P(z, y, s) itself.
    """

    global_: float
    local: float
    unique: float
    redundant: float
    masked: float
    parity_gap: float
    per_client: Mapping[Any, ClientDisparity]
    decisions: Sequence[Any]
    groups: Sequence[Any]
    joint: Table = field(repr=False)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    bias: Mapping[str, float] = field(default_factory=dict)


def fairness_pid(
    y_pred: ArrayLike,
    *,
    sensitive_features: ArrayLike,
    client: ArrayLike,
    sample_weight: ArrayLike | None = None,
    n_bootstrap: int = 500,
    level: float = 0.95,
    random_state: int | np.random.Generator | None = 0,
) -> FairnessPID:
    """Audit a classifier, federated or central, from a table of its predictions.

    Parameters
    ----------
    y_pred
        Predicted labels of shape (n,), or probabilities of shape (n, classes), whose rows sum to 1: then a decision is
        drawn from them.
    sensitive_features
        The sensitive attribute: shape (n,), or (n, k) for k attributes whose combinations are the groups. Arrays,
        lists, pandas series and frames.
    client
        The client (site, hospital, branch) of each row; shape (n,) or (n, k).
    sample_weight
        Weights of the rows, not negative.
    n_bootstrap
        Resamples for ``intervals`` and ``bias``; 0 for none.
    level
        Of the intervals.
    random_state
        Seed or generator of the resampling.

    Returns
    -------
    FairnessPID
        Disparities, their intervals, parity gaps, and a table for each client.

    Raises
    ------
    ValueError
        If lengths differ, labels are missing, weights are negative or all zero, or probabilities do not sum to 1.

    Notes
    -----
    Intervals reach from the estimate to the upper quantile of its bootstrap, as far down as up, and not below zero. The
    lower quantile would not do: an information from n rows is too large by about
    ``(groups - 1) (decisions - 1) / (2 n ln 2)`` bits, so that where there is no disparity, all resamples show some.
    Rows are resampled one by one; where they come in households, the intervals are too short.

    When not to use it: where errors matter rather than rates of decisions (equalised odds), and where the groups of a
    client are counted in tens, which the intervals show.

    Examples
    --------
    Client "b" prefers men and client "a" women: locally unfair, and it cancels.

    >>> sex, site = ["f", "m"] * 4, ["a"] * 4 + ["b"] * 4
    >>> found = fairness_pid([1, 0, 1, 0, 0, 1, 0, 1], sensitive_features=sex, client=site, n_bootstrap=0)
    >>> print(f"{found.global_:.1f} {found.local:.1f}: {found.unique:.1f} {found.redundant:.1f} {found.masked:.1f}")
    0.0 1.0: 0.0 0.0 1.0
    >>> found.parity_gap, found.per_client["a"].parity_gap
    (0.0, 1.0)
    """
    check_range(n_bootstrap, "n_bootstrap", 0, integer=True)
    check_range(level, "level", 0, 1, closed="neither")
    decisions, rates = _decisions(y_pred)
    groups, z = codes(sensitive_features, "sensitive_features", len(rates))
    clients, s = codes(client, "client", len(rates))
    weight = weights(sample_weight, len(rates))
    shape = (len(groups), len(decisions), len(clients))
    rows, counts = _distinct(z, s, rates, weight, shape)
    joint = (counts @ rows).reshape(shape)
    joint = joint / joint.sum()
    found = _disparities(joint[None], 1e-9)
    intervals, bias = {}, {}
    if n_bootstrap:
        drawn = _resample(rows, counts, shape, n_bootstrap, np.random.default_rng(random_state))
        for name, values in _disparities(drawn, _BOOTSTRAP_TOL).items():
            estimate, high = float(found[name][0]), float(np.quantile(values, (1 + level) / 2))
            high = max(high, estimate)
            intervals[name], bias[name] = (max(2 * estimate - high, 0.0), high), float(values.mean()) - estimate
    per_client = {}
    for i, label in enumerate(clients):
        table = joint[:, :, i]
        share = float(table.sum())
        by_group = {g: tuple(map(float, r)) for g, r in zip(groups, _rates(table), strict=True)}
        disparity = float(mutual_information(table)) / share if share else 0.0
        per_client[label] = ClientDisparity(share, disparity, _parity_gap(table), by_group)
    return FairnessPID(
        **{name: float(values[0]) for name, values in found.items()}, parity_gap=_parity_gap(joint.sum(2)),
        per_client=per_client, decisions=decisions, groups=groups, joint=joint, intervals=intervals, bias=bias,
    )  # fmt: skip


def codes(labels: ArrayLike, name: str, rows: int | None = None) -> tuple[list[Any], Int[np.ndarray, " n"]]:
    """The distinct labels and the index of each row's; several columns make tuples."""
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu()
    table = np.asarray(labels, dtype=None if hasattr(labels, "__array__") else object)  # a list keeps its kinds
    if table.ndim == 2 and table.shape[1] == 1:
        table = table[:, 0]
    if table.ndim not in (1, 2) or table.size == 0:
        raise ValueError(f"{name} must have shape (n,) or (n, k) and not be empty, got {table.shape}")
    if rows is not None and len(table) != rows:
        raise ValueError(f"{name} must have as many rows as the predictions, {rows}, got {len(table)}")
    if table.ndim == 2:
        columns = [codes(column, name) for column in table.T]
        together, index = np.unique(np.stack([c for _, c in columns], 1), axis=0, return_inverse=True)
        return [tuple(columns[i][0][c] for i, c in enumerate(row)) for row in together], index.reshape(-1)
    missing = table != table if table.dtype != object else np.array([v is None or v is not v or v != v for v in table])
    if missing.any():
        raise ValueError(f"{name} must not have missing labels, got {int(missing.sum())}")
    try:
        found, index = np.unique(table, return_inverse=True)
    except TypeError:
        kinds = sorted({type(v).__name__ for v in table})
        raise ValueError(f"{name} must have labels of one kind, got {', '.join(kinds)}") from None
    return found.tolist(), index


def weights(sample_weight: ArrayLike | None, rows: int) -> Float[np.ndarray, " n"]:
    """Weights of the rows, checked; ones where none are given."""
    if sample_weight is None:
        return np.ones(rows)
    weight = np.asarray(sample_weight, dtype=float)
    if weight.shape != (rows,):
        raise ValueError(f"sample_weight must have shape ({rows},), got {weight.shape}")
    if not (np.isfinite(weight).all() and weight.min() >= 0 and weight.sum() > 0):
        raise ValueError(f"sample_weight must be finite, >= 0 and not all zero, got a minimum of {weight.min()}")
    return weight


def _decisions(y_pred: ArrayLike) -> tuple[list[Any], Float[np.ndarray, "n y"]]:
    """The decisions, and how often each row takes each of them."""
    given = np.asarray(y_pred.detach().cpu() if hasattr(y_pred, "detach") else y_pred)
    if given.ndim < 2 or given.shape[1] == 1:
        decisions, y = codes(y_pred, "y_pred")
        return decisions, np.eye(len(decisions))[y]
    if given.ndim != 2 or given.dtype.kind != "f":
        raise ValueError(
            f"y_pred must be labels (n,) or floating probabilities (n, k), got {given.dtype} {given.shape}"
        )
    sums = given.sum(1)
    if not (np.isfinite(given).all() and given.min() >= 0 and np.abs(sums - 1).max() < 1e-3):
        raise ValueError(f"y_pred of shape {given.shape} must hold probabilities with sum 1 in each row")
    return list(range(given.shape[1])), (given / sums[:, None]).astype(float)


def _distinct(
    z: Int[np.ndarray, " n"], s: Int[np.ndarray, " n"], rates: Float[np.ndarray, "n y"],
    weight: Float[np.ndarray, " n"], shape: tuple[int, ...],
) -> tuple[Any, Int[np.ndarray, " distinct"]]:  # fmt: skip
    """Rows that differ, as a sparse matrix of their contributions to the table, and how often each is there."""
    from scipy.sparse import csr_array

    rows, counts = np.unique(np.column_stack([z, s, rates * weight[:, None]]), axis=0, return_counts=True)
    z, s, y = rows[:, 0].astype(int), rows[:, 1].astype(int), np.arange(shape[1])
    columns = np.ravel_multi_index((z[:, None], y[None], s[:, None]), shape)
    ends = np.arange(len(rows) + 1) * shape[1]
    return csr_array((rows[:, 2:].ravel(), columns.ravel(), ends), shape=(len(rows), int(np.prod(shape)))), counts


def _resample(
    rows: Any, counts: Int[np.ndarray, " distinct"], shape: tuple[int, ...], n: int, random: np.random.Generator
) -> Float[np.ndarray, "n z y s"]:
    """Tables of resampled rows."""
    chunk = max(1, _CHUNK // len(counts))
    total = int(counts.sum())
    sizes = [min(chunk, n - start) for start in range(0, n, chunk)]
    drawn = [random.multinomial(total, counts / total, size) @ rows for size in sizes]
    tables = np.concatenate(drawn).reshape(n, *shape)
    return tables / tables.sum((1, 2, 3), keepdims=True)


def _disparities(joint: Float[np.ndarray, "batch z y s"], tol: float) -> dict[str, Float[np.ndarray, " batch"]]:
    parts = pid(joint, tol=tol)
    values = (
        parts.unique_1 + parts.redundant, parts.unique_1 + parts.synergy,
        parts.unique_1, parts.redundant, parts.synergy,
    )  # fmt: skip
    return {name: np.asarray(value) for name, value in zip(_PARTS, values, strict=True)}


def _rates(table: Float[np.ndarray, "z y"]) -> Float[np.ndarray, "z y"]:
    """Rates of the decisions in each group; NaN where there is nobody."""
    mass = table.sum(1, keepdims=True)
    return np.where(mass > 0, table / np.where(mass > 0, mass, 1), np.nan)


def _parity_gap(table: Float[np.ndarray, "z y"]) -> float:
    present = table[table.sum(1) > 0]
    return float(np.ptp(_rates(present), axis=0).max()) if len(present) else 0.0
