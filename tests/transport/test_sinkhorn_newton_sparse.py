"""Sparse Newton steps for entropic transport: exactness, convergence, gradients, hard and bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from hadamard.transport import sinkhorn, sinkhorn_newton_sparse
from hadamard.transport.hessian import ReducedHessian, largest_entries, significant_entries
from tests.transport.problems import assignment, cloud, objective, unrolled, violation

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("reg", [1.0, 0.1, 0.02])
def test_against_pot(reg):
    import ot

    a, b, M = cloud()
    found = sinkhorn_newton_sparse(a, b, M, reg, tol=1e-13)
    want = ot.sinkhorn(a, b, M, reg, method="sinkhorn_log", stopThr=1e-14, numItermax=100_000)
    torch.testing.assert_close(found.plan, want, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.value, objective(found.plan, M, reg))


@pytest.mark.parametrize("seed", [0, 1, 2, 9, 71, 265])  # in the last three some sources exchange next to no mass
def test_machine_precision_in_few_steps_at_tiny_reg(seed):
    a, b, M = assignment(100, seed=seed)
    found = sinkhorn_newton_sparse(a, b, M, 1 / 1200, tol=1e-12)
    assert violation(found, a, b) < 2e-12
    assert found.extras["newton_steps"] <= 20
    f, g = found.potentials
    torch.testing.assert_close(((f[:, None] + g - M) * 1200).exp(), found.plan)


def test_against_exact_transport():
    import ot

    a, b, M = cloud(80, 60)
    exact, reg = float(ot.emd2(a.numpy(), b.numpy(), M.numpy())), 1e-3
    plan = sinkhorn_newton_sparse(a, b, M, reg, tol=1e-12).plan
    assert 0 <= float((plan * M).sum()) - exact <= reg * math.log(80 * 60)


def test_constant_costs_give_the_product():
    a, b, _ = cloud()
    found = sinkhorn_newton_sparse(a, b, torch.full((12, 9), 3.0, dtype=torch.float64), 0.1, warm_start=1, tol=1e-14)
    assert found.extras["newton_steps"] == 0
    torch.testing.assert_close(found.plan, a[:, None] * b)


def test_permutation_and_transposition():
    a, b, M = cloud(20, 30)
    i, j = torch.randperm(20), torch.randperm(30)
    plan = sinkhorn_newton_sparse(a, b, M, 0.01, tol=1e-13).plan
    torch.testing.assert_close(sinkhorn_newton_sparse(a[i], b[j], M[i][:, j], 0.01, tol=1e-13).plan, plan[i][:, j])
    torch.testing.assert_close(sinkhorn_newton_sparse(b, a, M.T, 0.01, tol=1e-13).plan, plan.T)


def test_start_from_potentials_whatever_their_constant():
    a, b, M = cloud(20, 30)
    found = sinkhorn_newton_sparse(a, b, M, 0.01, tol=1e-12)
    f, g = found.potentials
    again = sinkhorn_newton_sparse(a, b, M, 0.01, init=(f + 5, g - 5), tol=1e-11)
    assert again.iterations == 1
    torch.testing.assert_close(again.plan, found.plan)
    torch.testing.assert_close(again.value, found.value)
    torch.testing.assert_close(again.potentials, found.potentials)


def test_start_from_useless_potentials():
    a, b, M = cloud(20, 30)
    generator = torch.Generator().manual_seed(0)
    init = tuple(torch.randn(k, generator=generator, dtype=torch.float64) for k in (20, 30))
    found = sinkhorn_newton_sparse(a, b, M, 1e-3, init=init, tol=1e-10)
    torch.testing.assert_close(found.plan, sinkhorn_newton_sparse(a, b, M, 1e-3, tol=1e-12).plan)


def test_all_entries_give_newtons_method():
    a, b, M = cloud(40, 50)
    found = sinkhorn_newton_sparse(a, b, M, 0.01, rho=1.0, warm_start=3, tol=1e-13)
    assert found.extras["kept"] == [50.0] * found.extras["newton_steps"]
    sparse = sinkhorn_newton_sparse(a, b, M, 0.01, warm_start=3, tol=1e-13)
    torch.testing.assert_close(sparse.plan, found.plan)


def test_convergence_is_superlinear():
    a, b, M = cloud(150, 150)
    residuals = sinkhorn_newton_sparse(a, b, M, 1 / 300, warm_start=10, tol=1e-13).extras["residuals"]
    logs = [math.log(r) for r in residuals if r > 1e-13]
    slopes = [(z - y) / (y - x) for x, y, z in zip(logs, logs[1:], logs[2:])]
    assert sum(slopes[-3:]) / 3 > 1.3


def test_small_share_of_entries_is_slower():
    a, b, M = cloud(100, 100)
    own = sinkhorn_newton_sparse(a, b, M, 1 / 200, tol=1e-10)
    few = sinkhorn_newton_sparse(a, b, M, 1 / 200, rho=4 / 100, tol=1e-10, max_iter=1000)
    assert few.extras["kept"][0] == 4
    assert few.extras["newton_steps"] > 2 * own.extras["newton_steps"]
    torch.testing.assert_close(few.plan, own.plan)


def test_groups_of_points_that_hardly_exchange_mass():
    """Far groups with unequal mass: the kept entries fall apart and Newton's own step would be useless."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(60, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    x[:20] += 10
    y[:25] += 10
    M = torch.cdist(x, y).square()
    found = sinkhorn_newton_sparse(None, None, M, 1e-3 * float(M.max()), tol=1e-10)
    weights = torch.full((60,), 1 / 60, dtype=torch.float64)
    assert violation(found, weights, weights) < 1e-9


@pytest.mark.parametrize("eta", [1e4, 1e5])
def test_extremely_small_reg(eta):
    a, b, M = cloud(60, 60)
    found = sinkhorn_newton_sparse(a, b, M, 1 / eta, tol=1e-10)
    assert violation(found, a, b) < 1e-9
    assert found.extras["newton_steps"] < 80


def test_batch_is_every_problem_by_itself():
    a, b, M = cloud(batch=(2, 2))
    a[0, 0, 3], b[1, 1, 2] = 0, 0
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    found = sinkhorn_newton_sparse(a, b, M, 0.01, tol=1e-12)
    assert violation(found, a, b) < 1e-11
    assert torch.equal(torch.isneginf(found.potentials[0]), a == 0)
    for i in range(2):
        for j in range(2):
            alone = sinkhorn_newton_sparse(a[i, j], b[i, j], M[i, j], 0.01, tol=1e-12)
            torch.testing.assert_close(found.plan[i, j], alone.plan, rtol=1e-7, atol=1e-11)


def test_views_and_float32():
    a, b, M = cloud(dtype=torch.float32)
    found = sinkhorn_newton_sparse(a, b, M.T.contiguous().T, 0.05)
    want = sinkhorn_newton_sparse(a.double(), b.double(), M.double(), 0.05)
    assert found.plan.dtype == found.value.dtype == torch.float32
    torch.testing.assert_close(found.plan.double(), want.plan, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n, m", [(1, 1), (1, 4), (4, 1)])
def test_one_point(n, m):
    found = sinkhorn_newton_sparse(None, None, torch.rand(n, m, dtype=torch.float64), 1e-3)
    torch.testing.assert_close(found.plan, torch.full((n, m), 1 / (n * m), dtype=torch.float64))


def test_tiny_weights():
    a, b, M = cloud()
    a[0], b[1] = 1e-12, 1e-50
    a, b = a / a.sum(), b / b.sum()
    found = sinkhorn_newton_sparse(a, b, M, 0.01, tol=1e-13)
    torch.testing.assert_close(found.plan.sum(1), a, rtol=1e-2, atol=0)
    torch.testing.assert_close(found.plan.sum(0), b)


def test_forbidden_pairs_carry_nothing():
    a, b, M = cloud(20, 20)
    M[torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) < 0.3] = INF
    found = sinkhorn_newton_sparse(a, b, M, 0.01, tol=1e-12)
    assert float(found.plan[M == INF].sum()) == 0
    want = sinkhorn(a, b, M, 0.01, tol=1e-12, max_iter=100_000)
    torch.testing.assert_close(found.plan, want.plan, rtol=1e-7, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 25), st.integers(1, 25), st.floats(-3, 0.5), st.integers(0, 99))
def test_any_small_problem_is_solved(n, m, exponent, seed):
    a, b, M = cloud(n, m, seed=seed)
    found = sinkhorn_newton_sparse(a, b, M, 10**exponent, tol=1e-10)
    assert violation(found, a, b) < 1e-9


def test_stops_short_with_a_warning():
    a, b, M = assignment()
    with pytest.warns(ConvergenceWarning, match="stopped after 1 Newton steps at residual"):
        found = sinkhorn_newton_sparse(a, b, M, 1e-4, max_iter=1)
    assert not found.converged
    assert found.residual == pytest.approx(violation(found, a, b), abs=1e-9)
    with pytest.warns(ConvergenceWarning, match="can get no nearer in float64"):
        found = sinkhorn_newton_sparse(a, b, M, 1e-2, tol=0)
    assert found.residual < 1e-13


def test_value_gradients_are_the_plan_and_the_potentials():
    a, b, M = (t.requires_grad_() for t in cloud())
    found = sinkhorn_newton_sparse(a, b, M, 0.01, tol=1e-13)
    grads = torch.autograd.grad(found.value, (a, b, M))
    for grad, want in zip(grads, (*found.potentials, found.plan)):
        want = want.detach()
        torch.testing.assert_close(grad, want - want.mean() if want.ndim == 1 else want)
    M = M.detach()
    up, down = (sinkhorn_newton_sparse(a, b, M + s * torch.eye(12, 9), 0.01, tol=1e-13).value for s in (1e-5, -1e-5))
    slope = float((up - down).detach()) / 2e-5
    assert slope == pytest.approx(float(grads[2].diagonal().sum()), rel=1e-6)


def test_gradients_through_the_plan():
    inputs = [t.requires_grad_() for t in cloud(7, 5)]
    weights = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = torch.autograd.grad((weights * unrolled(*inputs, 0.1)[0]).sum(), inputs)
    found = sinkhorn_newton_sparse(*inputs, 0.1, tol=1e-14)
    ours = torch.autograd.grad((weights * found.plan).sum(), inputs)
    torch.testing.assert_close(ours[2], plain[2], rtol=1e-7, atol=1e-9)
    for got, want in zip(ours[:2], plain[:2]):
        torch.testing.assert_close(got - got.mean(), want - want.mean(), rtol=1e-7, atol=1e-9)


def test_gradcheck_in_the_costs_of_a_sparse_plan():
    a, b, M = cloud(4, 5)

    def solve(cost):
        found = sinkhorn_newton_sparse(a, b, cost, 0.02, tol=1e-13)
        return found.value, found.plan

    assert torch.autograd.gradcheck(solve, M.requires_grad_(), atol=1e-5)


def test_points_without_mass_get_no_gradient():
    a, b, M = cloud()
    a[2] = 0
    a = (a / a.sum()).requires_grad_()
    found = sinkhorn_newton_sparse(a, b, M.requires_grad_(), 0.05)
    (found.value + found.plan[0, 0]).backward()
    assert float(a.grad[2]) == 0
    assert torch.isfinite(a.grad).all()
    assert float(M.grad[2].abs().sum()) == 0


def test_significant_entries_against_sorting():
    P = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 20
    budget = torch.tensor([1e-3, 1e-6, 1e-1], dtype=torch.float64)
    places = significant_entries(P, budget)
    assert torch.equal(places, places.sort().values)
    for k in range(3):
        kept = torch.zeros(600, dtype=torch.bool)
        kept[places[places // 600 == k] - 600 * k] = True
        dropped = P[k].flatten()[~kept]
        assert float(dropped.sum()) <= float(budget[k])
        assert float(dropped.max()) < float(P[k].flatten()[kept].min())
        best = int((P[k].flatten().sort().values.cumsum(0) <= budget[k]).sum())
        octave = int((P[k].flatten() <= 2 * dropped.max()).sum())
        assert len(dropped) <= best <= octave  # no more than a factor of two in the threshold is given away


def test_largest_entries_of_each_plan():
    P = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0))
    places = largest_entries(P, 0.25)
    for k in range(2):
        assert places[5 * k : 5 * k + 5].tolist() == sorted((P[k].flatten().topk(5).indices + 20 * k).tolist())


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_reduced_hessian_against_its_dense_form(share, generator):
    P = torch.rand(2, 6, 8, generator=generator, dtype=torch.float64) ** 4
    rows, columns, places = P.sum(2), P.sum(1), largest_entries(P, share)
    kept = torch.zeros_like(P).flatten().scatter_(0, places, P.flatten()[places]).view_as(P)
    dense = torch.diag_embed(rows + 0.1) - kept / columns[:, None, :] @ kept.mT
    hessian = ReducedHessian(P, rows, columns, places, damping=torch.full_like(rows, 0.1))
    rhs = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(hessian(rhs), (dense @ rhs[:, :, None])[:, :, 0])
    torch.testing.assert_close(hessian.jacobi, 1 / dense.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(hessian.solve(rhs, 1e-12)[0], torch.linalg.solve(dense, rhs))
    one = ReducedHessian(P[:1], rows[:1], columns[:1], largest_entries(P[:1], share), damping=0.1)
    torch.testing.assert_close(one.solve(rhs[:1], 1e-12)[0], torch.linalg.solve(dense[:1], rhs[:1]))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"reg": -1.0}, ValueError, "reg must be > 0, got -1.0"),
        ({"reg": NAN}, ValueError, "reg must be > 0, got nan"),
        ({"rho": 0.0}, ValueError, "rho must be > 0 and <= 1, got 0.0"),
        ({"rho": "all"}, ValueError, "rho must be one of 'auto', got 'all'"),
        ({"warm_start": 0}, ValueError, "warm_start must be >= 1, got 0"),
        ({"tol": "tight"}, TypeError, "tol must be a number, got str"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1, got 0"),
        ({"init": torch.zeros(12)}, TypeError, "init must be a pair of potentials"),
        ({"a": torch.ones(12, dtype=torch.float64)}, ValueError, "a and b must have equal mass, got 12 and 1"),
        ({"M": torch.full((12, 9), NAN, dtype=torch.float64)}, ValueError, "M must hold costs that are finite or inf"),
        ({"b": torch.ones(9)}, ValueError, "a and b must have the same dtype"),
    ],
)
def test_bad_input(change, error, message):
    a, b, M = cloud()
    with pytest.raises(error, match=message):
        sinkhorn_newton_sparse(**{"a": a, "b": b, "M": M, "reg": 0.1, **change})
