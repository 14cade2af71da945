"""What two sources say about a target: each alone, both alike, and only together.

The information I(Z; X, S) about a target Z is divided as in Bertschinger et al. (2014), whose measure is called BROJA:
the unique information of X is the least I(Z; X | S) over all joint distributions that have the same distributions of
the pairs (Z, X) and (Z, S).

References
----------
N. Bertschinger, J. Rauh, E. Olbrich, J. Jost and N. Ay, "Quantifying unique information", Entropy 16, 2014,
arXiv:1311.2852.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.special import xlogy

from hadamard.learning._broja import objective, solve_binary, solve_interior
from hadamard.results import Solution, warn_short
from hadamard.validation import check_option, check_range

__all__ = ["PID", "pid"]

Bits = float | Float[np.ndarray, "*batch"]


@dataclass(frozen=True, kw_only=True)
class PID(Solution):
    """What :func:`pid` found: numbers, or arrays where a batch was given.

    Attributes
    ----------
    value
        The optimal joint distribution, with the axes of the one given.
    residual
        How far from the optimum the four numbers may be: proved by a dual point, in the units asked for. Zero where
        all three variables are binary, where they are right to rounding.
    unique_1, unique_2
        What only the first source says, and what only the second does.
    redundant
        What both say alike.
    synergy
        What they say only together.
    """

    unique_1: Bits
    unique_2: Bits
    redundant: Bits
    synergy: Bits


def pid(
    joint: ArrayLike,
    target: int = 0,
    sources: Sequence[int] = (1, 2),
    base: float = 2,
    *,
    solver: str = "auto",
    tol: float = 1e-9,
    max_iter: int = 100,
) -> PID:
    """Divide the information that two sources have about a target into unique, redundant and synergistic parts.

    ``unique_1 + redundant`` is the information of the first source, ``unique_1 + synergy`` what it adds to the second,
    and all four sum to that of both; none is negative.

    Parameters
    ----------
    joint
        Probabilities of shape (..., a, b, c) with sum 1 over the last three axes; leading axes are a batch.
    target, sources
        Which of the last three axes (0, 1, 2) is the target, and which are the sources.
    base
        Of the logarithm: 2 for bits.
    solver
        ``"binary"``: exact, for three binary variables; ``"interior"``: an interior-point method for any alphabets;
        ``"auto"`` takes the first where it can.
    tol
        Distance from the optimum at which the interior-point method stops.
    max_iter
        Its steps at most.

    Returns
    -------
    PID
        The four parts.

    Raises
    ------
    ValueError
        If probabilities are negative, not finite or do not sum to 1, or the axes are not three different ones.

    Warns
    -----
    ConvergenceWarning
        If ``max_iter`` steps do not suffice.

    Notes
    -----
    Departs from the usual program for a general cone solver: binary variables have a closed form, and the
    interior-point method here works on all joints of a batch at once. It solves systems of
    ``|Z| (|X| + |S|)`` unknowns, so that alphabets of more than about a thousand in all are too large. Probabilities
    are taken as known: for samples see :func:`~hadamard.learning.fairness_pid`.

    Examples
    --------
    A target that is the exclusive or of its sources:

    >>> xor = np.zeros((2, 2, 2))
    >>> for x, s in np.ndindex(2, 2):
    ...     xor[x ^ s, x, s] = 1 / 4
    >>> found = pid(xor)
    >>> print(f"{found.unique_1:.3f} {found.unique_2:.3f} {found.redundant:.3f} {found.synergy:.3f}")
    0.000 0.000 0.000 1.000
    """
    check_option(solver, "solver", ("auto", "binary", "interior"))
    check_range(base, "base", 1, None, closed="neither")
    check_range(tol, "tol", 0, None, closed="neither")
    check_range(max_iter, "max_iter", 1, integer=True)
    axes = (target, *sources)
    if sorted(axes) != [0, 1, 2]:
        raise ValueError(f"target and sources must be the axes 0, 1 and 2, got {target} and {tuple(sources)}")
    given = _distribution(joint)
    batch = given.shape[:-3]
    p = np.moveaxis(given.reshape(-1, *given.shape[-3:]), [1 + axis for axis in axes], [1, 2, 3])
    binary = p.shape[1:] == (2, 2, 2)
    if solver == "binary" and not binary:
        raise ValueError(f"solver='binary' needs three binary variables, got shape {given.shape[-3:]}")
    if binary and solver != "interior":
        q, gap, steps = solve_binary(p), np.zeros(len(p)), 0
    else:
        q, gap, steps = solve_interior(p, tol * np.log(base), max_iter)
    gap = gap / np.log(base)
    parts: dict[str, Any] = {name: value.reshape(batch) for name, value in _parts(p, q, base).items()}
    if not batch:
        parts = {name: float(value) for name, value in parts.items()}
    residual, short = float(gap.max()), int((gap > tol).sum())
    message = (
        f"{short} of {len(p)} solved to {residual:.1e} only, above tol={tol}, in {max_iter} steps" if short else ""
    )
    if short:
        warn_short(f"pid: {message}")
    return PID(
        value=np.moveaxis(q, [1, 2, 3], [1 + axis for axis in axes]).reshape(given.shape),
        iterations=steps, residual=residual, converged=not short, message=message, **parts,
    )  # fmt: skip


def mutual_information(table: Float[np.ndarray, "*batch a b"], base: float = 2) -> Float[np.ndarray, "*batch"]:
    """The mutual information of two variables times the table's mass, which need not be 1."""
    mass = table.sum((-2, -1))
    rows, columns = table.sum(-1), table.sum(-2)
    value = xlogy(table, table).sum((-2, -1)) + xlogy(mass, mass) - xlogy(rows, rows).sum(-1)
    return np.asarray(np.maximum(value - xlogy(columns, columns).sum(-1), 0) / np.log(base))


def _parts(
    p: Float[np.ndarray, "batch z x s"], q: Float[np.ndarray, "batch z x s"], base: float
) -> dict[str, Float[np.ndarray, " batch"]]:
    """The four parts; rounding may not make any of them negative."""
    first, second = mutual_information(p.sum(3), base), mutual_information(p.sum(2), base)
    both = mutual_information(p.reshape(*p.shape[:2], -1), base)
    z = p.sum((2, 3))
    optimum = (objective(q) - xlogy(z, z).sum(1)) / np.log(base)
    unique = np.clip(optimum - second, np.maximum(first - second, 0), np.minimum(first, np.maximum(both - second, 0)))
    return {
        "unique_1": unique,
        "unique_2": np.maximum(second - first + unique, 0),
        "redundant": np.maximum(first - unique, 0),
        "synergy": np.maximum(both - second - unique, 0),
    }


def _distribution(joint: ArrayLike) -> Float[np.ndarray, "*batch a b c"]:
    p = np.asarray(joint, dtype=float)
    if p.ndim < 3 or p.size == 0:
        raise ValueError(f"joint must have shape (..., a, b, c) and not be empty, got {p.shape}")
    if not np.isfinite(p).all():
        raise ValueError(f"joint must be finite, got {int((~np.isfinite(p)).sum())} NaN or infinite values")
    if p.min() < 0:
        raise ValueError(f"joint must not be negative, got {p.min()}")
    sums = p.sum((-3, -2, -1))
    worst = sums.flat[np.abs(sums - 1).argmax()]
    if abs(worst - 1) > 1e-6:
        raise ValueError(f"joint must sum to 1, got {worst:.6g}")
    return p / sums[..., None, None, None]
