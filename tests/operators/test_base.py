"""Linear operators: composition, scaling, stacking, pseudo-inverse, norm."""

import warnings

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from hadamard.operators import LinearOperator, Matrix, operator_norm, stack, with_adjoint
from tests.suites.operators import OperatorSuite


def matrix(m, n, *, seed=0, dtype=torch.float64):
    return torch.randn(m, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class TestMatrix(OperatorSuite):
    exact_dagger = True

    def operator(self):
        return Matrix(matrix(6, 4))

    def dense(self):
        return matrix(6, 4)


class TestComplexMatrix(OperatorSuite):
    exact_dagger = True

    def operator(self):
        return Matrix(matrix(3, 6, dtype=torch.complex128), in_shape=(2, 3), out_shape=(3, 1))

    def dense(self):
        return matrix(3, 6, dtype=torch.complex128)


class TestRankDeficientMatrix(OperatorSuite):
    exact_dagger = True

    def operator(self):
        return Matrix(self.dense())

    def dense(self):
        return matrix(5, 2) @ matrix(2, 6, seed=1)


class TestComposition(OperatorSuite):
    tol = 1e-11

    def operator(self):
        return Matrix(matrix(3, 5, seed=1)) @ Matrix(matrix(5, 4, dtype=torch.complex128), in_shape=(2, 2))

    def dense(self):
        return matrix(3, 5, seed=1).to(torch.complex128) @ matrix(5, 4, dtype=torch.complex128)


class TestScaled(OperatorSuite):
    exact_dagger = True

    def operator(self):
        return (2.0 - 1.0j) * Matrix(matrix(4, 3))

    def dense(self):
        return (2.0 - 1.0j) * matrix(4, 3)


class TestStack(OperatorSuite):
    def operator(self):
        return stack(
            [Matrix(matrix(3, 4), (2, 2)), Matrix(matrix(3, 4, seed=1), (2, 2)), 2.0 * Matrix(matrix(3, 4), (2, 2))]
        )

    def dense(self):
        return torch.cat([matrix(3, 4), matrix(3, 4, seed=1), 2 * matrix(3, 4)])


class NumPyMap(LinearOperator):
    """An operator that leaves torch."""

    def __init__(self):
        super().__init__((4,), (3,))
        self.register_buffer("M", matrix(3, 4))

    def A(self, x):
        return with_adjoint(x, lambda u: torch.from_numpy(u.numpy() @ self.M.T.numpy()), self.A_adjoint)

    def A_adjoint(self, y):
        return with_adjoint(y, lambda u: torch.from_numpy(u.numpy() @ self.M.numpy()), self.A)


class TestWithAdjoint(OperatorSuite):
    def operator(self):
        return NumPyMap()

    def dense(self):
        return matrix(3, 4)


def test_real_input_of_a_complex_map_gets_a_real_gradient():
    M = matrix(3, 4, dtype=torch.complex128)
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def forward(u):
        return M @ u.to(M.dtype)

    def adjoint(v):
        return M.mH @ v.to(M.dtype)

    assert torch.autograd.gradcheck(lambda x: with_adjoint(x, forward, adjoint), (x,))


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_default_pseudo_inverse_is_least_squares_of_smallest_norm(shape):
    M = matrix(*shape)
    op = Matrix(M) @ Matrix(torch.eye(shape[1], dtype=torch.float64))
    y = torch.randn(3, shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(op.A_dagger(y), y @ torch.linalg.pinv(M).T, rtol=1e-4, atol=1e-4)


def test_default_pseudo_inverse_warns_when_it_stops_short():
    op = Matrix(torch.diag(torch.logspace(0, -7, 300, dtype=torch.float64))) @ Matrix(
        torch.eye(300, dtype=torch.float64)
    )
    y = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with pytest.warns(ConvergenceWarning, match="cg stopped after 1000 steps at relative residual .* above tol=1e-06"):
        op.A_dagger(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_of_a_slowly_separating_spectrum(dtype):
    s = torch.linspace(0, 1, 400, dtype=dtype)
    norm = operator_norm(Matrix(torch.diag(s)), tol=1e-3)
    assert 0.999 <= norm <= 1 + 1e-5


def test_norm_is_not_taken_in_by_a_crowd_of_smaller_singular_values():
    class Diagonal(LinearOperator):
        def A(self, x):
            return torch.cat([x[..., :-1], 1.05 * x[..., -1:]], -1)

        A_adjoint = A

    assert operator_norm(Diagonal((10_000,), (10_000,)), tol=5e-3) == pytest.approx(1.05, rel=1e-3)


def test_norm_of_zero_and_of_identity():
    assert operator_norm(Matrix(torch.zeros(3, 3))) == 0.0
    assert operator_norm(Matrix(torch.eye(3))) == pytest.approx(1.0, abs=1e-6)


def test_norm_is_reproducible_and_leaves_the_global_state():
    op = Matrix(matrix(30, 20))
    state = torch.get_rng_state()
    norms = {operator_norm(op, generator=torch.Generator().manual_seed(3)) for _ in range(2)}
    assert len(norms) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_norm_warns_when_it_stops_short():
    with pytest.warns(ConvergenceWarning, match="operator_norm stopped after 3 steps"):
        operator_norm(Matrix(torch.diag(torch.linspace(0, 1, 400))), tol=1e-6, max_iter=3)


def test_constants_move_and_show():
    op = (Matrix(matrix(2, 3)) @ Matrix(matrix(3, 2))).to(torch.float32)
    assert op.to_dense().dtype == torch.float32
    assert "(2,) -> (3,)" in repr(op)


def test_calling_is_applying():
    op, x = Matrix(matrix(2, 3)), torch.ones(3, dtype=torch.float64)
    assert torch.equal(op(x), op.A(x))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda op: op(torch.ones(4)), ValueError, r"x must have shape \(..., 3\), got \(4,\)"),
        (lambda op: op.A_adjoint(torch.ones(3)), ValueError, r"y must have shape \(..., 2\), got \(3,\)"),
        (lambda op: op([1.0, 2.0, 3.0]), TypeError, "x must be a torch.Tensor, got list"),
        (lambda op: op(torch.ones(3, dtype=torch.int64)), TypeError, "x must have a floating or complex dtype"),
        (lambda op: op @ op, ValueError, r"the left operator of @ must take .* \(2,\), got one that takes \(3,\)"),
        (lambda op: 0.0 * op, ValueError, "the factor of an operator must be a finite number other than 0, got 0.0"),
        (lambda op: float("nan") * op, ValueError, "the factor of an operator must be a finite number"),
        (lambda op: stack([]), ValueError, "operators must be at least one, all of the same shapes, got none"),
        (lambda op: stack([op, Matrix(torch.ones(3, 3))]), ValueError, "operators must be at least one"),
        (lambda op: Matrix(torch.ones(3)), ValueError, r"matrix must have 2 dimension\(s\), got shape \(3,\)"),
        (lambda op: Matrix(torch.full((2, 2), torch.nan)), ValueError, "matrix must be finite, got 4 NaN"),
        (lambda op: Matrix(torch.ones(2, 3), (2, 2)), ValueError, r"in_shape must have 3 entries, got \(2, 2\)"),
        (lambda op: Matrix(torch.ones(2, 3), (0,)), ValueError, r"in_shape must hold positive integers, got \(0,\)"),
        (lambda op: operator_norm(op, tol=0.0), ValueError, "tol must be > 0 and < 1, got 0.0"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(Matrix(torch.ones(2, 3)))


def test_norm_refuses_an_operator_that_overflows():
    op = Matrix(torch.full((2, 2), 1e30)) @ Matrix(torch.full((2, 2), 1e30))
    with pytest.raises(ValueError, match="op must give finite output"), warnings.catch_warnings():
        operator_norm(op)
