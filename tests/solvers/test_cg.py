"""Conjugate gradients: dense solves, frozen systems, singular systems, gradients, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from hadamard.solvers import cg


def positive(n, *, seed=0, dtype=torch.float64, kappa=100.0):
    Q = torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(seed)))[0]
    return (Q * torch.logspace(0, torch.log10(torch.tensor(kappa)).item(), n, dtype=dtype)) @ Q.mH


def rows(M):
    """The map on a batch of rows."""
    return lambda x: x @ M.T


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
def test_against_a_dense_solve(batch, dtype):
    M, b = positive(12, dtype=dtype), torch.randn(*batch, 12, dtype=dtype)
    found = cg(rows(M), b, tol=1e-12)
    want = torch.linalg.solve(M, b[..., None])[..., 0]
    torch.testing.assert_close(found.value, want)
    assert found.converged
    assert found.message == ""
    assert found.residual <= 1e-12
    assert found.extras["residuals"].shape == found.extras["iterations"].shape == batch


def test_images_are_single_unknowns():
    M, b = positive(12), torch.randn(2, 1, 3, 4, dtype=torch.float64)
    found = cg(lambda x: (x.flatten(1) @ M.T).reshape(x.shape), b, ndim=3, tol=1e-10)
    torch.testing.assert_close(found.value.flatten(1), torch.linalg.solve(M, b.flatten(1).T).T)
    assert found.extras["residuals"].shape == (2,)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 20))
def test_one_and_many_take_the_same_path(seed, n):
    M, b = positive(n, seed=seed), torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    options = {"tol": 0.0, "max_iter": n // 2, "precondition": lambda r: r / M.diagonal(), "warn": False}
    one, many = cg(rows(M), b, **options), cg(rows(M), b[None], **options)
    assert one.iterations == many.iterations == n // 2
    torch.testing.assert_close(one.value, many.value[0], rtol=1e-9, atol=1e-9)
    assert one.residual == pytest.approx(many.residual, rel=1e-6)


def test_finished_systems_are_frozen():
    eigenvalues = torch.linspace(1, 50, 40, dtype=torch.float64)
    easy, hard = torch.zeros(40).double(), torch.ones(40).double()
    easy[3] = 1.0  # an eigenvector: one step
    seen = []

    def matvec(x):
        seen.append(1)
        return x * eigenvalues

    found = cg(matvec, torch.stack([easy, hard, torch.zeros_like(easy)]), tol=1e-10)
    assert found.extras["iterations"].tolist()[0] == 1
    assert found.extras["iterations"].tolist()[2] == 0
    assert found.extras["iterations"][1] == found.iterations == len(seen) > 10
    torch.testing.assert_close(found.value[0], easy / eigenvalues, rtol=0, atol=0)
    assert (found.value[2] == 0).all()


def test_quadratic_falls_with_every_step():
    M, b = positive(30, kappa=1e4), torch.randn(2, 30, dtype=torch.float64)
    values = []
    for steps in range(12):
        x = cg(rows(M), b, max_iter=steps, tol=0.0, warn=False).value
        values.append(0.5 * (x * (x @ M)).sum(-1) - (b * x).sum(-1))
    assert (torch.stack(values).diff(dim=0) < 0).all()


@pytest.mark.parametrize("batched", [False, True])
def test_singular_consistent_system_gets_the_smallest_solution(batched):
    B = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    M = B @ B.T
    b = M @ torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = cg(rows(M), b[None] if batched else b, tol=1e-10)
    torch.testing.assert_close(found.value.reshape(-1), torch.linalg.pinv(M) @ b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batched", [False, True])
def test_warm_start(batched):
    M, x = positive(10), torch.randn(10, dtype=torch.float64)
    b, x0 = M @ x, x.clone()
    found = cg(rows(M), b[None] if batched else b, x0=x0[None] if batched else x0, tol=1e-8)
    assert found.iterations == 0
    assert torch.equal(x0, x)
    found = cg(rows(M), b[None] if batched else b, x0=(x0 + 1e-3)[None] if batched else x0 + 1e-3, tol=1e-10)
    torch.testing.assert_close(found.value.reshape(-1), x)


@pytest.mark.parametrize("batched", [False, True])
def test_preconditioning_saves_steps(batched):
    d = torch.logspace(0, 6, 200, dtype=torch.float64)
    M = torch.diag(d) + 0.1 * positive(200, kappa=2.0)
    b = torch.ones(3, 200, dtype=torch.float64) if batched else torch.ones(200, dtype=torch.float64)
    plain = cg(rows(M), b, tol=1e-8, warn=False)
    found = cg(rows(M), b, tol=1e-8, precondition=lambda r: r / M.diagonal())
    assert found.iterations < plain.iterations / 10


def test_stopping_short_warns_unless_it_is_meant():
    M, b = positive(30, kappa=1e6), torch.ones(30, dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="cg stopped after 3 steps at relative residual .* above tol=1e-06"):
        found = cg(rows(M), b, max_iter=3)
    assert not found.converged
    assert found.iterations == 3
    assert cg(rows(M), b, max_iter=3, warn=False).message == found.message


@pytest.mark.parametrize("batched", [False, True])
def test_a_map_that_is_not_positive_is_told(batched):
    b = torch.ones(2, 2, dtype=torch.float64) if batched else torch.ones(2, dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="cg met a map that is not positive definite"):
        found = cg(lambda x: -x, b)
    assert not found.converged
    assert torch.isfinite(found.value).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradient_is_implicit(batch, dtype):
    B = torch.randn(5, 5, dtype=dtype, requires_grad=True)
    b = torch.randn(*batch, 5, dtype=dtype, requires_grad=True)

    def solve(B, b):
        M = B @ B.mH + torch.eye(5)
        return cg(lambda x: x @ M.T, b, tol=1e-14, max_iter=50, warn=False).value

    assert torch.autograd.gradcheck(solve, (B, b), atol=1e-6, fast_mode=True)


def test_nothing_is_recorded_without_need():
    M, calls = positive(6), []

    def matvec(x):
        calls.append(torch.is_grad_enabled())
        return x @ M.T

    found = cg(matvec, torch.ones(6, dtype=torch.float64))
    assert len(calls) == found.iterations
    assert not found.value.requires_grad


def test_single_precision():
    M, b = positive(20).float(), torch.ones(2, 20)
    found = cg(rows(M), b, tol=1e-5)
    assert found.value.dtype == torch.float32
    torch.testing.assert_close(found.value @ M.T, b, rtol=1e-3, atol=1e-3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda b: cg(rows(b), [1.0]), TypeError, "b must be a torch.Tensor, got list"),
        (lambda b: cg(lambda x: x, b * torch.nan), ValueError, "b must be finite, got 6 NaN"),
        (lambda b: cg(lambda x: x, b, tol=-1.0), ValueError, "tol must be >= 0, got -1.0"),
        (lambda b: cg(lambda x: x, b, ndim=3), ValueError, "ndim must be >= 1 and <= 2, got 3"),
        (lambda b: cg(lambda x: x, b, max_iter=1.5), TypeError, "max_iter must be an integer, got float 1.5"),
        (lambda b: cg(lambda x: x, b, max_iter=-1), ValueError, "max_iter must be >= 0, got -1"),
        (lambda b: cg(lambda x: x, b, x0=b[0]), ValueError, r"x0 must have the shape of b, \(2, 3\), got \(3,\)"),
        (lambda b: cg(lambda x: x, b, x0=b.double()), ValueError, "b and x0 must have the same dtype"),
        (
            lambda b: cg(lambda x: x[..., :1], b),
            ValueError,
            r"matvec must return a tensor of shape \(2, 3\), got \(2, 1\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(2, 3))
