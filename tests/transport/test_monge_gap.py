"""The Monge gap and the Sinkhorn divergence: closed forms, the exact gap, gradients, bad input."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from hadamard.transport import (
    Euclidean,
    Manhattan,
    MongeGapLoss,
    SinkhornDivergence,
    Sphere,
    SquaredEuclidean,
    monge_gap,
    sinkhorn_divergence,
)

FINE = {"tol": 1e-10, "max_iter": 100_000}


def points(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact_gap(x, y, cost):
    """Without entropy, by the network simplex."""
    M = cost.pairwise(x, y).numpy()
    return float(cost.paired(x, y).mean()) - ot.emd2([], [], M)


class Lorentzian:
    """A user's cost."""

    def pairwise(self, x, y):
        return self.paired(x[..., :, None, :], y[..., None, :, :])

    def paired(self, x, y):
        return (x - y).square().sum(-1).log1p()


class TestGap:
    @pytest.mark.parametrize("reg", [0.3, 1.0, 10.0])
    def test_value_is_the_plain_formula(self, reg):
        x, y = points(12, 2), points(12, 2, seed=1)
        M = SquaredEuclidean().pairwise(x, y)
        P = ot.sinkhorn([], [], M.numpy(), reg, method="sinkhorn_log", stopThr=1e-13, numItermax=10_000)
        entropic = float((P * M.numpy()).sum() + reg * (P[P > 0] * np.log(P[P > 0])).sum())
        got = monge_gap(x, y, reg=reg, **FINE)
        assert float(got) == pytest.approx(float(M.diagonal().mean()) - entropic, abs=1e-8)

    def test_dual_value_less_the_entropies_of_the_marginals(self):
        """The same number from a solver that penalises the divergence from the product of the marginals."""
        x, y, reg = points(20, 3), points(20, 3, seed=1), 1.0
        M = SquaredEuclidean().pairwise(x, y)
        _, log = ot.sinkhorn([], [], M.numpy(), reg, method="sinkhorn_log", stopThr=1e-13, numItermax=10_000, log=True)
        kl = reg * float(log["log_u"].mean() + log["log_v"].mean())  # f a + g b for P = exp(u + v - M / reg)
        want = float(M.diagonal().mean()) - kl
        assert float(monge_gap(x, y, reg=reg, **FINE)) == pytest.approx(want, abs=1e-6)

    @pytest.mark.parametrize("cost", [SquaredEuclidean(), Euclidean()], ids=lambda c: type(c).__name__)
    def test_value_and_gradient_are_otts(self, cost):
        """The same convention, no constant between: OTT too takes the entropies of the marginals off its dual value."""
        theirs = pytest.importorskip("ott.neural.methods.monge_gap", reason="needs OTT: pip install 'hadamard[ott]'")
        import jax
        from ott.geometry import costs

        x, y, reg = points(20, 3), points(20, 3, seed=1).requires_grad_(), 0.5
        gap = monge_gap(x, y, cost, reg=reg, **FINE)
        gap.backward()

        cost_fn = costs.Euclidean() if isinstance(cost, Euclidean) else costs.SqEuclidean()

        def value(y):
            options = {"epsilon": reg, "threshold": 1e-10, "max_iterations": 100_000}
            return theirs.monge_gap_from_samples(x.numpy(), y, cost_fn=cost_fn, **options)

        with jax.enable_x64(True):
            want, gradient = jax.value_and_grad(value)(y.detach().numpy())
        assert float(gap.detach()) == pytest.approx(float(want), abs=1e-8)
        np.testing.assert_allclose(y.grad.numpy(), np.array(gradient), atol=1e-8)

    @pytest.mark.parametrize(
        "cost", [SquaredEuclidean(), Euclidean(), Manhattan(), Lorentzian()], ids=lambda c: type(c).__name__
    )
    def test_falls_to_the_exact_gap_from_above(self, cost):
        x = points(30, 2)
        y = x[torch.randperm(30, generator=torch.Generator().manual_seed(1))] + 0.1 * points(30, 2, seed=2)
        exact = exact_gap(x, y, cost)
        gaps = [float(monge_gap(x, y, cost, reg=reg, **FINE)) for reg in (1.0, 0.1, 0.01, 0.001)]
        assert gaps == sorted(gaps, reverse=True)
        assert exact - 1e-9 <= gaps[-1] <= exact + 0.001 * 2 * math.log(30) + 1e-9

    def test_identity_and_translation_are_optimal(self):
        x = points(40, 3)
        for y in (x, x + 2.0):
            assert abs(exact_gap(x, y, SquaredEuclidean())) < 1e-9
            assert 0 <= float(monge_gap(x, y, reg=1e-4, **FINE)) < 1e-3

    def test_gradients_of_convex_functions_are_optimal_and_rotations_are_not(self):
        x = points(512, 4)
        A = points(4, 4, seed=1)
        assert exact_gap(x, x @ (A @ A.T) + 1, SquaredEuclidean()) < 1e-6
        turn = torch.linalg.matrix_exp(A - A.T)
        assert exact_gap(x, x @ turn, SquaredEuclidean()) > 0.1 * float((x - x @ turn).square().sum(1).mean())

    def test_gap_of_a_linear_map_of_a_gaussian(self):
        """In the limit it is 2 (nuclear norm - trace)."""
        x, A = points(2000, 2), torch.tensor([[1.0, -1.5], [1.2, 0.8]], dtype=torch.float64)
        want = 2 * float(torch.linalg.matrix_norm(A, "nuc") - A.trace())
        assert exact_gap(x, x @ A.T, SquaredEuclidean()) == pytest.approx(want, rel=0.05)

    def test_large_reg(self):
        """The plan is uniform: the mean cost of all pairs, less the entropy."""
        x, y, reg = points(15, 2), points(15, 2, seed=1), 1e6
        M = SquaredEuclidean().pairwise(x, y)
        want = M.diagonal().mean() - M.mean() + 2 * reg * math.log(15)
        torch.testing.assert_close(monge_gap(x, y, reg=reg, **FINE), want)

    def test_scales_with_the_cost(self):
        x, y = points(20, 2), points(20, 2, seed=1)
        once = monge_gap(x, y, SquaredEuclidean(), reg=0.2, **FINE)
        torch.testing.assert_close(monge_gap(x, y, SquaredEuclidean(3.0), reg=0.6, **FINE), 3 * once)
        relative = monge_gap(x, y, relative_reg=0.1, **FINE)
        torch.testing.assert_close(monge_gap(2 * x, 2 * y, relative_reg=0.1, **FINE), 4 * relative)

    def test_permutation_of_the_points_changes_nothing(self):
        x, y, i = points(20, 2), points(20, 2, seed=1), torch.randperm(20)
        torch.testing.assert_close(monge_gap(x[i], y[i], **FINE), monge_gap(x, y, **FINE))

    @settings(max_examples=20, deadline=None)
    @given(st.integers(2, 12), st.integers(1, 4), st.floats(0.03, 3), st.integers(0, 1000))
    def test_never_negative(self, n, d, reg, seed):
        x, y = points(n, d, seed=seed), points(n, d, seed=seed + 1)
        assert float(monge_gap(x, y, relative_reg=reg, tol=1e-6, max_iter=10_000)) >= -1e-6

    def test_stays_an_upper_bound_where_it_is_cut_short(self):
        x, y = points(60, 2), points(60, 2, seed=1)
        with pytest.warns(ConvergenceWarning):
            short = monge_gap(x, y, relative_reg=0.03, tol=1e-9, max_iter=2)
        assert float(short) >= float(monge_gap(x, y, relative_reg=0.03, tol=1e-9, max_iter=10_000))

    def test_batches_and_types(self):
        x, y = points(3, 10, 2), points(3, 10, 2, seed=1)
        both = monge_gap(x, y, reg=0.3, **FINE)
        torch.testing.assert_close(both, torch.stack([monge_gap(p, q, reg=0.3, **FINE) for p, q in zip(x, y)]))
        single = monge_gap(x.float(), y.float(), reg=0.3)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), both, rtol=1e-3, atol=1e-3)
        assert monge_gap(x.half(), y.half(), reg=0.3).dtype == torch.float32

    def test_duplicates_and_equal_points(self):
        x = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
        gap = monge_gap(x, x)
        gap.backward()
        assert 0 <= float(gap) < 0.2
        assert bool((x.grad == 0).all())

    @pytest.mark.parametrize("cost", [SquaredEuclidean(), Euclidean(), Lorentzian()], ids=lambda c: type(c).__name__)
    def test_gradient(self, cost):
        x, y = points(6, 2), points(6, 2, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda y: monge_gap(x, y, cost, reg=0.5, tol=1e-11), y)

    def test_gradient_by_the_newton_finish(self):
        x, y = points(6, 2), points(6, 2, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda y: monge_gap(x, y, reg=0.01, tol=1e-12), y)

    def test_no_gradient_through_the_relative_weight(self):
        x, y = points(8, 2), points(8, 2, seed=1).requires_grad_()
        reg = 0.2 * float(SquaredEuclidean().pairwise(x, y).mean())
        got, want = (
            torch.autograd.grad(monge_gap(x, y, tol=1e-12, **o), y)[0] for o in ({"relative_reg": 0.2}, {"reg": reg})
        )
        torch.testing.assert_close(got, want)

    def test_on_the_sphere(self):
        x = nn.functional.normalize(points(25, 3), dim=1)
        turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.2, 0], [-0.2, 0, 0], [0, 0, 0]], dtype=torch.float64))
        y = x @ turn
        exact = exact_gap(x, y, Sphere())
        assert exact <= float(monge_gap(x, y, Sphere(), reg=1e-3, **FINE)) <= exact + 1e-3 * 2 * math.log(25) + 1e-9


class TestDivergence:
    def test_against_pot(self):
        x, y, reg = points(8, 2), points(6, 2, seed=1) + 1, 2.0
        want = ot.bregman.empirical_sinkhorn_divergence(x.numpy(), y.numpy(), reg, numIterMax=10_000, stopThr=1e-13)
        plain = 0.0
        for (p, q), s in (((x, y), 1), ((x, x), -0.5), ((y, y), -0.5)):
            M = SquaredEuclidean().pairwise(p, q).numpy()
            P = ot.sinkhorn([], [], M, reg, method="sinkhorn_log", stopThr=1e-13, numItermax=10_000)
            plain += s * ((P * M).sum() + reg * (P * np.log(P)).sum())
        got = float(sinkhorn_divergence(x, y, reg=reg, **FINE))
        assert got == pytest.approx(plain, abs=1e-6)
        assert got == pytest.approx(float(want), rel=0.3)  # POT's leaves out the entropies

    def test_of_equal_populations_and_translations(self):
        x = points(20, 2)
        assert abs(float(sinkhorn_divergence(x, x.clone(), **FINE))) < 1e-9
        torch.testing.assert_close(
            sinkhorn_divergence(x, x + torch.tensor([3.0, 4.0]), reg=0.5, **FINE), torch.tensor(25.0).double()
        )

    def test_gradient(self):
        x, y = points(4, 1).requires_grad_(), points(3, 1, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, y: sinkhorn_divergence(x, y, reg=0.5, tol=1e-11), (x, y))


def test_modules_are_the_functions():
    x, y = points(10, 2), points(10, 2, seed=1)
    torch.testing.assert_close(MongeGapLoss(reg=0.3)(x, y), monge_gap(x, y, reg=0.3))
    torch.testing.assert_close(
        SinkhornDivergence(Euclidean(), reg=0.3)(x, y), sinkhorn_divergence(x, y, Euclidean(), reg=0.3)
    )
    assert repr(MongeGapLoss(reg=0.3)) == (
        "MongeGapLoss(SquaredEuclidean(scale=1.0), reg=0.3, relative_reg=0.05, tol=0.001, max_iter=1000)"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": points(4, 2)}, ValueError, r"y must hold the images of x, of shape \(5, 2\), got \(4, 2\)"),
        ({"y": points(5, 3)}, ValueError, "y must hold the images of x"),
        ({"x": points(0, 2), "y": points(0, 2)}, ValueError, "x must not be empty"),
        ({"x": points(5)}, ValueError, r"x must have shape \(..., n, d\)"),
        ({"y": points(5, 2) * float("nan")}, ValueError, "y must be finite"),
        ({"y": points(5, 2).float()}, (TypeError, ValueError), "x and y must"),
        ({"x": torch.ones(5, 2, dtype=torch.int64)}, TypeError, "x must have a floating dtype"),
        ({"reg": 0.0}, ValueError, "reg must be > 0"),
        ({"reg": -1.0}, ValueError, "reg must be > 0"),
        ({"relative_reg": 0.0}, ValueError, "relative_reg must be > 0"),
        ({"tol": -1.0}, ValueError, "tol must be >= 0"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1"),
        ({"cost": "euclidean"}, TypeError, "cost must have the methods pairwise and paired, got str"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"x": points(5, 2), "y": points(5, 2), **change}
    with pytest.raises(error, match=message):
        monge_gap(**arguments)


@pytest.mark.bad_input
def test_divergence_of_other_dimensions():
    with pytest.raises(ValueError, match="points of the same dimension, got 2 and 3"):
        sinkhorn_divergence(points(5, 2), points(5, 3))
