"""Conic programs: how each ends is said in one vocabulary; and a Cholesky factorisation that proves."""

from fractions import Fraction

import cvxpy
import numpy as np
import pytest
import torch

from hadamard.solvers import solve, verify_psd
from hadamard.solvers.conic import _STATUS


def lowest_circle():
    """min x + y on the unit circle: -sqrt(2)."""
    x = cvxpy.Variable(2)
    return cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(x)), [cvxpy.norm(x) <= 1]), x


@pytest.mark.parametrize(("solver", "digits"), [("CLARABEL", 1e-7), ("SCS", 1e-3)])
def test_optimal(solver, digits):
    problem, x = lowest_circle()
    found = solve(problem, solver)
    assert found.converged
    assert found.extras["status"] == "optimal"
    assert found.value == pytest.approx(-np.sqrt(2), abs=digits)
    assert found.residual < digits
    assert found.iterations > 0
    np.testing.assert_allclose(x.value, -np.sqrt(0.5), atol=digits)


def test_exponential_cone():
    """Entropy on the simplex: fairness needs it."""
    p = cvxpy.Variable(4)
    found = solve(cvxpy.Problem(cvxpy.Maximize(cvxpy.sum(cvxpy.entr(p))), [cvxpy.sum(p) == 1]))
    assert found.value == pytest.approx(np.log(4), abs=1e-6)


def test_infeasible_and_unbounded_do_not_raise():
    x = cvxpy.Variable()
    none = solve(cvxpy.Problem(cvxpy.Minimize(x), [x >= 1, x <= 0]))
    assert (none.extras["status"], none.converged, none.value) == ("infeasible", False, np.inf)
    assert none.message == "CLARABEL: no point satisfies the constraints"
    free = solve(cvxpy.Problem(cvxpy.Minimize(x)))
    assert (free.extras["status"], free.converged, free.value) == ("unbounded", False, -np.inf)


def test_inaccurate_warns():
    from sklearn.exceptions import ConvergenceWarning

    x, A = cvxpy.Variable(20), np.random.default_rng(0).standard_normal((30, 20))
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(A @ x - 1)), [cvxpy.norm1(x) <= 0.1])
    for solver, limit in (("SCS", {"max_iters": 3}), ("CLARABEL", {"max_iter": 3})):
        with pytest.warns(ConvergenceWarning, match=f"{solver}: stopped"):
            found = solve(problem, solver, **limit)
        assert not found.converged
        assert found.extras["status"] == "inaccurate"
        assert found.residual > 1e-6


def test_every_status_is_mapped():
    from cvxpy.settings import INF_OR_UNB, SOLUTION_PRESENT

    assert set(SOLUTION_PRESENT) | set(INF_OR_UNB) <= set(_STATUS)


@pytest.mark.bad_input
def test_bad_problems():
    x = cvxpy.Variable()
    with pytest.raises(TypeError, match=r"problem must be a cvxpy.Problem, got int"):
        solve(3)
    with pytest.raises(ValueError, match="solver must be one of 'CLARABEL', 'SCS', got 'MOSEK'"):
        solve(lowest_circle()[0], "MOSEK")
    with pytest.raises(ValueError, match="problem must be convex by cvxpy's rules"):
        solve(cvxpy.Problem(cvxpy.Minimize(-(x**2))))


# ---- semidefinite ---------------------------------------------------------------------------------------------------


def definite(A, margin=0.0):
    """Whether A - margin I is positive definite, in rational arithmetic."""
    M = [
        [Fraction(float(v)) - (Fraction(margin) if i == j else 0) for j, v in enumerate(row)] for i, row in enumerate(A)
    ]
    n = len(M)
    for k in range(n):
        if M[k][k] <= 0:
            return False
        for i in range(k + 1, n):
            factor = M[i][k] / M[k][k]
            M[i] = [a - factor * b for a, b in zip(M[i], M[k])]
    return True


def test_nothing_false_is_ever_proved():
    """Matrices within a few roundings of singular: what is verified is so exactly, and most that are clearly so are."""
    rng = np.random.default_rng(0)
    wrong = proved = near = 0
    for _ in range(150):
        n = rng.integers(2, 7)
        Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        eigenvalues = 10.0 ** rng.uniform(-4, 4, n)
        eigenvalues[0] = rng.choice([-1, 0, 1]) * 10.0 ** rng.uniform(-18, -8) * eigenvalues.max()
        A = (Q * eigenvalues) @ Q.T
        A = (A + A.T) / 2
        margin = float(rng.choice([0.0, eigenvalues[0], -1e-3, 1e-9]))
        said, true = verify_psd(A, margin).verified, definite(A, margin)
        wrong += said and not true
        proved += said
        near += true and not said
    assert wrong == 0
    assert proved > 20
    assert near > 0  # the test reaches into the region where rounding decides


def test_margin_is_the_least_eigenvalue_nearly():
    rng = np.random.default_rng(1)
    A = rng.standard_normal((40, 40))
    A = torch.as_tensor(A @ A.T + np.eye(40))
    least = float(torch.linalg.eigvalsh(A)[0])
    found = verify_psd(A, least - 1e-10)
    assert found.verified
    assert found.bound == least - 1e-10
    assert found.value == pytest.approx(least)
    refused = verify_psd(A, least + 1e-10)
    assert not refused.verified
    assert refused.bound == -np.inf
    assert "Cholesky does not prove" in refused.reason


def test_zero_needs_a_negative_margin():
    assert not verify_psd(np.zeros((3, 3))).verified
    assert verify_psd(np.zeros((3, 3)), -1e-300).verified


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("M", "error", "message"),
    [
        (np.ones((2, 3)), ValueError, r"M must be square and not empty, got shape \(2, 3\)"),
        (np.array([[1.0, 2.0], [0.0, 1.0]]), ValueError, "M must be symmetric, got entries that differ by 2"),
        (np.array([[np.nan]]), ValueError, "M must be finite"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "M must have a floating dtype"),
        ([[1.0]], TypeError, "M must be a floating tensor or array, got list"),
    ],
)
def test_bad_matrices(M, error, message):
    with pytest.raises(error, match=message):
        verify_psd(M)
