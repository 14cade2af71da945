"""L-BFGS on torch functions."""

import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from scipy.optimize import rosen, rosen_der
from sklearn.exceptions import ConvergenceWarning

from hadamard.solvers import minimize


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_quadratic():
    generator = torch.Generator().manual_seed(0)
    B = torch.randn(20, 20, dtype=torch.float64, generator=generator)
    M, b = B @ B.T + torch.eye(20), torch.randn(20, dtype=torch.float64, generator=generator)
    found = minimize(lambda x: 0.5 * x @ M @ x - b @ x, torch.zeros(20, dtype=torch.float64), tol=1e-6)
    torch.testing.assert_close(found.value, torch.linalg.solve(M, b), rtol=1e-5, atol=1e-5)
    assert found.converged
    assert found.residual <= 1e-6
    assert found.extras["fun"] == pytest.approx(float(-0.5 * b @ torch.linalg.solve(M, b)))


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_rosenbrock_follows_dtype(dtype, tol):
    seen = set()

    def fun(x):
        seen.add((x.dtype, tuple(x.shape)))
        return rosenbrock(x.flatten())

    found = minimize(fun, torch.zeros(2, 5, dtype=dtype), tol=tol)
    assert seen == {(dtype, (2, 5))}
    assert found.value.dtype == dtype
    assert found.value.shape == (2, 5)
    torch.testing.assert_close(found.value, torch.ones(2, 5, dtype=dtype), rtol=0, atol=10 * tol)


def test_no_worse_than_scipy_itself():
    options = {"gtol": 1e-8, "ftol": 0.0, "maxcor": 20, "maxls": 40}
    peer = scipy_minimize(rosen, [0.0] * 8, jac=rosen_der, method="L-BFGS-B", options=options)
    found = minimize(rosenbrock, torch.zeros(8, dtype=torch.float64), tol=1e-8)
    assert found.extras["evaluations"] <= peer.nfev + 2
    torch.testing.assert_close(found.value, torch.from_numpy(peer.x), rtol=0, atol=1e-7)


def test_a_given_gradient_is_used():
    def fun(x):
        x = x.detach()
        return (x**4).sum() / 4 - x.sum(), x**3 - 1

    found = minimize(fun, torch.full((3,), 5.0, dtype=torch.float64), tol=1e-9)
    torch.testing.assert_close(found.value, torch.ones(3, dtype=torch.float64))


def test_backtracks_where_the_function_is_not_finite():
    x0 = torch.tensor([1e-3, 1.0, 10.0, 100.0], dtype=torch.float64)
    weights = torch.arange(1, 5, dtype=torch.float64)
    found = minimize(lambda x: -(weights * torch.log(x)).sum() + x.sum() ** 2, x0, tol=1e-8)
    torch.testing.assert_close(found.value, weights / 20**0.5, rtol=1e-6, atol=1e-6)


def test_parameters_keep_no_gradient():
    w = torch.ones(2, requires_grad=True)
    found = minimize(lambda x: ((x - w) ** 2).sum(), torch.zeros(2))
    assert w.grad is None
    assert not found.value.requires_grad


def test_works_without_grad_mode():
    with torch.no_grad():
        assert minimize(lambda x: (x**2).sum(), torch.ones(2)).converged


def test_stopping_short_warns_unless_it_is_meant():
    x0 = torch.zeros(10, dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="minimize stopped after 3 iterations at gradient .* above tol=1e-06"):
        found = minimize(rosenbrock, x0, max_iter=3)
    assert not found.converged
    assert not minimize(rosenbrock, x0, max_iter=3, warn=False).converged


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "fun, x0, options, error, message",
    [
        (torch.sum, [1.0], {}, TypeError, "x0 must be a torch.Tensor, got list"),
        (torch.sum, torch.ones(2, dtype=torch.int64), {}, TypeError, "x0 must have a floating dtype"),
        (torch.sum, torch.tensor([torch.inf]), {}, ValueError, "x0 must be finite"),
        (torch.sum, torch.ones(2), {"tol": -1.0}, ValueError, "tol must be >= 0, got -1.0"),
        (torch.sum, torch.ones(2), {"max_iter": 0}, ValueError, "max_iter must be >= 1, got 0"),
        (lambda x: x, torch.ones(2), {}, ValueError, "fun must return one number as a tensor"),
        (lambda x: 1.0, torch.ones(2), {}, ValueError, "fun must return one number as a tensor, got 1.0"),
        (lambda x: (x.sum(), x[:1]), torch.ones(2), {}, ValueError, r"gradient of shape \(2,\), got \(1,\)"),
        (lambda x: x.log().sum(), -torch.ones(2), {}, ValueError, "fun and its gradient must be finite at x0, got nan"),
    ],
)
def test_bad_input(fun, x0, options, error, message):
    with pytest.raises(error, match=message):
        minimize(fun, x0, **options)
