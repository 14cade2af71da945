"""Conic programs by cvxpy, and a proof that a matrix is positive semidefinite.

A conic solver stops at a tolerance: its multipliers satisfy a matrix inequality nearly, and a bound that rests on them
is nearly a bound. :func:`verify_psd` closes that gap.

References
----------
S. M. Rump. Verification of positive definiteness. BIT Numerical Mathematics 46, 2006.
N. J. Higham. Accuracy and Stability of Numerical Algorithms, 2nd ed., theorem 10.3. SIAM, 2002.
"""

import warnings
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float
from torch import Tensor

from hadamard.results import Certificate, Solution, warn_short
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["solve", "verify_psd"]

_UNIT = 2.0**-53
_TINY = 2.0**-1022
_STATUS = {
    "optimal": ("optimal", ""),
    "optimal_inaccurate": ("inaccurate", "stopped near the optimum, outside its tolerance"),
    "infeasible": ("infeasible", "no point satisfies the constraints"),
    "infeasible_inaccurate": ("infeasible", "most likely no point satisfies the constraints"),
    "unbounded": ("unbounded", "the objective has no bound"),
    "unbounded_inaccurate": ("unbounded", "most likely the objective has no bound"),
    "infeasible_or_unbounded": ("infeasible", "no point satisfies the constraints, or the objective has no bound"),
    "user_limit": ("inaccurate", "stopped at its limit of iterations or time"),
}


def solve(problem: Any, solver: str = "CLARABEL", *, warn: bool = True, **options: Any) -> Solution:
    """Solve a ``cvxpy.Problem``, and say in one vocabulary how that ended.

    Parameters
    ----------
    problem
        A ``cvxpy.Problem``; its variables carry the solution afterwards, as cvxpy leaves it.
    solver
        ``"CLARABEL"`` (interior point) or ``"SCS"`` (first order: larger problems, fewer digits).
    warn
        Warn where the solver stopped short of its tolerance.
    **options
        Passed to the solver as cvxpy does.

    Returns
    -------
    Solution
        ``value`` is the optimal value (infinite where the problem is infeasible or unbounded, NaN after a failure);
        ``residual`` the largest violation of a constraint; ``converged`` is true only where the solver met its
        tolerance; ``extras["status"]`` is ``"optimal"``, ``"inaccurate"``, ``"infeasible"``, ``"unbounded"`` or
        ``"failed"``.

    Raises
    ------
    ImportError
        If cvxpy is not installed.
    TypeError
        If ``problem`` is no ``cvxpy.Problem``.
    ValueError
        If ``solver`` is another one, or the problem is not convex by cvxpy's rules.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If ``warn`` and the status is ``"inaccurate"`` or ``"failed"``.

    Examples
    --------
    >>> import cvxpy
    >>> x = cvxpy.Variable()
    >>> solve(cvxpy.Problem(cvxpy.Minimize(x), [x >= 2])).extras["status"]
    'optimal'
    """
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError("conic programs need cvxpy: pip install 'hadamard[conic]'") from error
    if not isinstance(problem, cvxpy.Problem):
        raise TypeError(f"problem must be a cvxpy.Problem, got {type(problem).__name__}")
    check_option(solver, "solver", ("CLARABEL", "SCS"))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            problem.solve(solver=solver, **options)
        status, words = _STATUS.get(problem.status, ("failed", f"stopped with status {problem.status}"))
    except cvxpy.error.DCPError as error:
        raise ValueError(f"problem must be convex by cvxpy's rules: {' '.join(str(error).split())[:200]}") from None
    except cvxpy.error.SolverError as error:
        status, words = "failed", f"failed ({' '.join(str(error).split())[:120]})"
    stats = problem.solver_stats if status != "failed" else None
    found = status in ("optimal", "inaccurate") and problem.value is not None
    violations = [float(np.max(c.violation(), initial=0.0)) for c in problem.constraints] if found else []
    message = f"{solver}: {words}" if words else ""
    if warn and status in ("inaccurate", "failed"):
        warn_short(message)
    infinite = status in ("infeasible", "unbounded") and problem.value is not None
    return Solution(
        value=float(problem.value) if found or infinite else float("nan"),
        iterations=int(getattr(stats, "num_iters", None) or 0),
        residual=max(violations, default=0.0 if found else float("inf")),
        converged=status == "optimal",
        message=message,
        extras={"status": status, "solver": solver},
    )


def verify_psd(M: Float[Tensor, "n n"] | Float[np.ndarray, "n n"], margin: float = 0.0) -> Certificate:
    """Prove that every eigenvalue of a symmetric matrix is at least ``margin``, despite rounding.

    Parameters
    ----------
    M
        A symmetric matrix in float64 (or float32); its entries are taken as exact. What they stand for may differ:
        put a bound on the spectral norm of that difference into ``margin``.
    margin
        The least eigenvalue that is wanted, of either sign.

    Returns
    -------
    Certificate
        ``value`` is the least eigenvalue as computed; ``bound`` what was proved to lie below it (``margin``, or minus
        infinity); ``verified`` whether the proof went through.

    Raises
    ------
    TypeError
        If ``M`` is neither a floating tensor nor an array.
    ValueError
        If it is not square, not symmetric, empty or not finite.

    Notes
    -----
    A Cholesky factorisation of :math:`B = M - sI` that runs to its end has
    :math:`R^T R = B + \\Delta` with :math:`\\|\\Delta\\|_2 \\le \\gamma/(1-\\gamma)\\,\\mathrm{tr}\\,B`,
    :math:`\\gamma = (n+1)u/(1-(n+1)u)`, whatever the order of its sums. So the eigenvalues of ``M`` are at least
    :math:`s` less that, less the rounding of the subtraction and what underflow may add; ``s`` is chosen so that this
    is ``margin``. The proof can fail for a matrix that is definite by less than about ``n * u * trace(M)``; it never
    succeeds for one that is not.

    Examples
    --------
    >>> import torch
    >>> verify_psd(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64), margin=0.99).verified
    True
    >>> verify_psd(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)).verified
    False
    """
    if isinstance(M, Tensor):
        check_tensor(M, "M", ndim=2, dtype="floating")
        A = M.detach().double().cpu().numpy()
    elif isinstance(M, np.ndarray) and np.issubdtype(M.dtype, np.floating):
        A = M.astype(np.float64)
    else:
        raise TypeError(f"M must be a floating tensor or array, got {type(M).__name__}")
    check_range(margin, "margin", -np.finfo(float).max, np.finfo(float).max)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not A.size:
        raise ValueError(f"M must be square and not empty, got shape {A.shape}")
    if not np.isfinite(A).all():
        raise ValueError(f"M must be finite, got {int((~np.isfinite(A)).sum())} NaN or infinite values")
    if not np.array_equal(A, A.T):
        raise ValueError(f"M must be symmetric, got entries that differ by {np.abs(A - A.T).max():.3g}")
    least = float(scipy.linalg.eigvalsh(A, subset_by_index=[0, 0])[0])
    margin = float(margin)
    if proved_above(A, margin):
        return Certificate(value=least, bound=margin, verified=True)
    reason = f"Cholesky does not prove that the least eigenvalue, computed as {least:.3g}, is at least {margin:.3g}"
    return Certificate(value=least, bound=float("-inf"), verified=False, reason=reason)


def proved_above(A: np.ndarray, margin: float) -> bool:
    """Whether the eigenvalues of a symmetric float64 array are proved to be at least ``margin``.

    The bare test of :func:`verify_psd`: arguments are not checked.
    """
    n, diagonal = len(A), np.diagonal(A)
    trace = float(np.maximum(diagonal - margin, 0).sum())
    gamma = (n + 1) * _UNIT / (1 - 2 * (n + 1) * _UNIT)
    largest = float(np.abs(diagonal).max()) + abs(margin)
    # 1.01 pays for the rounding of these few sums themselves (n u is far below 1 %)
    loss = 1.01 * (gamma * trace + 2 * _UNIT * largest + 4 * (n + 1) * (2 * (n + 1) + largest) * _TINY)
    shift = float(np.nextafter(margin + 1.01 * loss, np.inf))
    B = A.copy()
    B[np.diag_indices(n)] = diagonal - shift
    if not np.isfinite(B).all() or (n + 1) * _UNIT > 1e-3:
        return False
    factor, info = scipy.linalg.lapack.dpotrf(B, lower=1, overwrite_a=1)
    return info == 0 and bool(np.isfinite(factor).all())
