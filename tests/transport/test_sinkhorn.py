"""Sinkhorn's iteration: POT's answer, gradients, forbidden pairs, points without mass, bad input."""

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from hadamard.transport import sinkhorn
from tests.transport.problems import assignment, cloud, objective, unrolled, violation

INF = float("inf")


@pytest.mark.parametrize("reg", [1.0, 0.1, 0.02])
def test_against_pot(reg):
    import ot

    a, b, M = cloud()
    found = sinkhorn(a, b, M, reg, tol=1e-12, max_iter=100_000)
    want = ot.sinkhorn(a, b, M, reg, method="sinkhorn_log", stopThr=1e-14, numItermax=100_000)
    torch.testing.assert_close(found.plan, want, rtol=1e-8, atol=1e-10)
    assert violation(found, a, b) < 1e-11
    assert found.converged
    torch.testing.assert_close(found.value, objective(found.plan, M, reg))


def test_potentials_make_the_plan():
    a, b, M = cloud()
    found = sinkhorn(a, b, M, 0.05)
    f, g = found.potentials
    torch.testing.assert_close(((f[:, None] + g - M) / 0.05).exp(), found.plan)


def test_small_reg_where_kernels_underflow():
    a, b, M = cloud()
    assert float(torch.exp(-2e3 * M / M.max()).min()) == 0
    found = sinkhorn(a, b, 2e3 * M / M.max(), 1.0, tol=1e-8)
    assert found.converged
    assert violation(found, a, b) < 1e-8


def test_shannon_entropy_is_kl_up_to_a_constant():
    a, b, M = assignment(20)
    reg = 0.1
    plan = sinkhorn(a, b, M, reg, tol=1e-12).plan
    kl = (plan * (plan / (a[:, None] * b)).log()).sum()
    torch.testing.assert_close(
        objective(plan, M, reg), (plan * M).sum() + reg * kl - 2 * reg * torch.tensor(20.0).log()
    )


def test_batch_is_every_problem_by_itself():
    a, b, M = cloud(batch=(2, 3))
    found = sinkhorn(a, b, M, 0.05, tol=1e-12)
    assert found.value.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = sinkhorn(a[i, j], b[i, j], M[i, j], 0.05, tol=1e-12)
            torch.testing.assert_close(found.plan[i, j], alone.plan, rtol=1e-7, atol=1e-10)
            torch.testing.assert_close(found.value[i, j], alone.value)


def test_points_without_mass():
    a, b, M = cloud(batch=(2,))
    a[:, 3], a[0, 5], b[1, 2] = 0, 0, 0
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    found = sinkhorn(a, b, M, 0.05, tol=1e-12)
    assert violation(found, a, b) < 1e-11
    assert torch.equal(torch.isneginf(found.potentials[0]), a == 0)
    assert torch.equal(torch.isneginf(found.potentials[1]), b == 0)
    assert float(found.plan[a == 0].sum()) == 0
    alone = sinkhorn(a[0][a[0] > 0], b[0], M[0][a[0] > 0], 0.05, tol=1e-12)
    torch.testing.assert_close(found.value[0], alone.value)
    again = sinkhorn(a, b, M, 0.05, init=found.potentials, tol=1e-11)
    assert again.iterations == 1


def test_forbidden_pairs_carry_nothing():
    a, b, M = cloud()
    M[0, :5] = INF
    found = sinkhorn(a, b, M, 0.1)
    assert found.plan[0, :5].tolist() == [0] * 5
    assert violation(found, a, b) < 1e-8
    assert torch.isfinite(found.value)


def test_float32_in_float32_out():
    a, b, M = cloud(dtype=torch.float32)
    found = sinkhorn(a, b, M, 0.05)
    want = sinkhorn(a.double(), b.double(), M.double(), 0.05)
    assert found.plan.dtype == found.value.dtype == found.potentials[0].dtype == torch.float32
    torch.testing.assert_close(found.plan.double(), want.plan, rtol=1e-5, atol=1e-7)


def test_stops_short_with_a_warning():
    a, b, M = assignment(40)
    with pytest.warns(ConvergenceWarning, match="sinkhorn stopped after 5 iterations"):
        found = sinkhorn(a, b, M, 1e-3, max_iter=5)
    assert not found.converged
    assert found.iterations == 5
    assert found.residual == pytest.approx(violation(found, a, b), abs=1e-9)


def test_value_gradients_are_the_plan_and_the_potentials():
    a, b, M = (t.requires_grad_() for t in cloud())
    found = sinkhorn(a, b, M, 0.1, tol=1e-13)
    grads = torch.autograd.grad(found.value, (a, b, M))
    for grad, want in zip(grads, (*found.potentials, found.plan)):
        want = want.detach()
        torch.testing.assert_close(grad, want - want.mean() if want.ndim == 1 else want)
    # by finite differences, along a direction that keeps the mass
    shift = torch.zeros_like(a)
    shift[0], shift[1] = 1e-6, -1e-6
    a, b, M = (t.detach() for t in (a, b, M))
    up, down = (sinkhorn(a + s, b, M, 0.1, tol=1e-13).value for s in (shift, -shift))
    assert float((up - down) / 2e-6) == pytest.approx(float(grads[0][0] - grads[0][1]), rel=1e-6)


def test_gradients_through_plan_and_potentials():
    inputs = [t.requires_grad_() for t in cloud(6, 5)]
    weights = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    to_f, to_g = weights[:, 0], weights[1]

    def loss(plan, f, g):
        return (weights * plan).sum() + (to_f * f).sum() + (to_g * g).sum()

    a, b, M = inputs
    plain = torch.autograd.grad(loss(*unrolled(a, b, M, 0.2)), inputs)
    found = sinkhorn(a, b, M, 0.2, tol=1e-14)
    ours = torch.autograd.grad(loss(found.plan, *found.potentials), inputs)
    torch.testing.assert_close(ours[2], plain[2], rtol=1e-7, atol=1e-9)
    for got, want in zip(ours[:2], plain[:2]):  # a and b: determined up to a constant only
        torch.testing.assert_close(got - got.mean(), want - want.mean(), rtol=1e-7, atol=1e-9)


def test_gradients_of_a_broadcast_batch():
    a, b, M = cloud()
    a.requires_grad_()
    costs = torch.stack([M, 2 * M])
    found = sinkhorn(a, b, costs, 0.1, tol=1e-13)
    (grad,) = torch.autograd.grad(found.value.sum() + found.plan[1, 0, 0], a)
    each = [sinkhorn(a, b, cost, 0.1, tol=1e-13) for cost in costs]
    (want,) = torch.autograd.grad(each[0].value + each[1].value + each[1].plan[0, 0], a)
    torch.testing.assert_close(grad, want, rtol=1e-7, atol=1e-9)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"reg": 0}, ValueError, "reg must be > 0, got 0"),
        ({"reg": "small"}, TypeError, "reg must be a number, got str"),
        ({"tol": -1}, ValueError, "tol must be >= 0, got -1"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1, got 0"),
        ({"max_iter": 1.5}, TypeError, "max_iter must be an integer"),
        ({"init": torch.zeros(12)}, TypeError, "init must be a pair of potentials"),
        ({"init": (torch.zeros(9), torch.zeros(12))}, ValueError, r"init\[0\] must have shape \(..., 12\), got \(9,\)"),
        ({"init": (torch.zeros(12), torch.full((9,), -INF))}, ValueError, r"init\[1\] must be finite where there is"),
    ],
)
def test_bad_input(change, error, message):
    a, b, M = cloud()
    arguments = {"reg": 0.1, **change}
    with pytest.raises(error, match=message):
        sinkhorn(a, b, M, **arguments)
