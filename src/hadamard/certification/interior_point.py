"""Two ways to solve a network's matrix inequality: a barrier method that uses its structure, and cvxpy's solvers.

A general solver sees ``n (n + 1) / 2`` equations between matrix entries. There are only as many unknowns as units,
and each touches a few rows: with ``P = rows M^-1 rows^T`` and ``Q = K P``, the barrier's gradient is the trace of
``Q``'s blocks and its Hessian the sums of ``Q o Q^T`` over them. One Newton step costs one Cholesky factorisation and
three products of matrices.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.linalg
from scipy import sparse

from hadamard.certification.lmi import LMI
from hadamard.results import Solution
from hadamard.solvers.conic import solve

__all__ = ["barrier", "by_cvxpy"]


def barrier(lmi: LMI, start: np.ndarray, *, tol: float = 1e-6, max_iter: int = 300) -> Solution:
    """Follow the central path of the logarithmic barrier by Newton's method.

    Parameters
    ----------
    lmi
        The program.
    start
        A strictly feasible point.
    tol
        Largest relative gap between the cost and the least one (which counts as 0 below 1e-14 of the start's).
    max_iter
        Greatest number of Newton steps.

    Returns
    -------
    Solution
        ``value`` is the point, which is strictly feasible; ``residual`` the bound on the relative gap.
    """
    rows = np.concatenate([t.rows.middle for t in lmi.terms])
    kernel = sparse.block_diag([t.kernel for t in lmi.terms], format="csr")
    owner = np.concatenate([t.owner for t in lmi.terms])
    members = sparse.csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))), (len(start), len(owner)))
    signed, cost, C = lmi.signed, lmi.cost, lmi.constant.middle
    degree = len(C) + int(signed.sum())
    # holds multipliers that nothing needs (of units that read or give nothing): they would grow for ever
    pull = np.where(signed, 1e-4 / np.where(signed, start, 1.0), 0.0)

    def factor(y: np.ndarray) -> np.ndarray | None:
        if (y[signed] <= 0).any():
            return None
        L, info = scipy.linalg.lapack.dpotrf(C + rows.T @ (y[owner, None] * (kernel @ rows)), lower=1, clean=1)
        return L if info == 0 and np.isfinite(L).all() else None

    def merit(weight: float, y: np.ndarray, L: np.ndarray) -> float:
        return (
            float((weight * cost + pull) @ y) - 2 * float(np.log(np.diagonal(L)).sum()) - float(np.log(y[signed]).sum())
        )

    y, L, steps, message = start.copy(), factor(start), 0, ""
    if L is None:
        return Solution(
            value=start, iterations=0, residual=np.inf, converged=False, message="the start is not feasible"
        )
    weight, zero = degree / float(cost @ y), 1e-14 * float(cost @ y)
    while float(cost @ y) > zero:
        W = scipy.linalg.solve_triangular(L, rows.T, lower=True, check_finite=False)
        Q = kernel @ (W.T @ W)
        gradient = weight * cost + pull - members @ np.diagonal(Q)
        hessian = members @ (members @ (Q * Q.T).T).T
        inverse = np.where(signed, 1 / np.where(signed, y, 1.0), 0.0)
        gradient -= inverse
        hessian[np.diag_indices_from(hessian)] += inverse**2
        step, decrement = _newton(hessian, gradient)
        if decrement < 0.3:  # central enough: the gap is degree / weight
            if degree / weight <= tol * float(cost @ y):
                break
            weight *= 10.0
            gradient = gradient + 0.9 * weight * cost
            step, decrement = _newton(hessian, gradient)
        steps += 1
        moved = _move(y, step, gradient, factor, partial(merit, weight), merit(weight, y, L))
        if moved is None or steps >= max_iter:
            message = "rounding ended the line search" if moved is None else f"stopped after {steps} Newton steps"
            break
        y, L = moved
    least = float(cost @ y)
    gap = 0.0 if least <= zero else degree / weight / least * (10.0 if message else 1.0)
    return Solution(value=y, iterations=steps, residual=gap, converged=gap <= tol, message=message or "central path")


def by_cvxpy(lmi: LMI, solver: str) -> Solution:
    """Hand the program to cvxpy: ``value`` is its point, which is nearly feasible."""
    import cvxpy

    y = cvxpy.Variable(len(lmi.cost))
    n = len(lmi.constant.middle)
    columns: list[np.ndarray] = [np.zeros(n * n) for _ in lmi.cost]
    for t in lmi.terms:
        for k in np.unique(t.owner):
            mine = np.flatnonzero(t.owner == k)
            part = t.rows.middle[mine]
            columns[k] += (part.T @ (t.kernel[mine][:, mine] @ part)).ravel()
    basis = sparse.csr_matrix(np.stack(columns, 1))
    M = cvxpy.reshape(basis @ y + lmi.constant.middle.ravel(), (n, n), order="C")
    rules = [(M + M.T) / 2 >> 0, y[np.flatnonzero(lmi.signed)] >= 0]
    found = solve(cvxpy.Problem(cvxpy.Minimize(lmi.cost @ y), rules), solver, warn=False)
    point = np.full(len(lmi.cost), np.nan) if y.value is None else np.asarray(y.value)
    return Solution(
        value=point, iterations=found.iterations, residual=found.residual, converged=found.converged,
        message=found.message or found.extras["status"],
    )  # fmt: skip


def _newton(hessian: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, float]:
    """Newton's step and its length in the Hessian's norm; equations that free multipliers leave open stay at rest."""
    scale = 1 / np.sqrt(np.maximum(np.diagonal(hessian), 1e-300))
    scaled = hessian * scale * scale[:, None]
    scaled[np.diag_indices_from(scaled)] += 1e-13
    try:
        step = -scale * scipy.linalg.cho_solve(scipy.linalg.cho_factor(scaled), scale * gradient)
    except scipy.linalg.LinAlgError:
        scaled[np.diag_indices_from(scaled)] += 1e-8
        step = -scale * scipy.linalg.solve(scaled, scale * gradient, assume_a="sym")
    return step, float(np.sqrt(max(-gradient @ step, 0.0)))


def _move(
    y: np.ndarray, step: np.ndarray, gradient: np.ndarray, factor: Callable[[np.ndarray], np.ndarray | None],
    merit: Callable[[np.ndarray, np.ndarray], float], now: float,
) -> tuple[np.ndarray, np.ndarray] | None:  # fmt: skip
    """Backtrack until the step is feasible and lowers the merit; ``None`` where rounding leaves no such step."""
    slope, size = float(gradient @ step), 1.0
    for _ in range(40):
        point = y + size * step
        L = factor(point)
        if L is not None and merit(point, L) <= now + 0.01 * size * slope + 1e-12 * abs(now):
            return point, L
        size *= 0.6
    return None
