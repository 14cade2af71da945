"""Singular value maps against the full decomposition, their definitions and cvxpy."""

import cvxpy as cp
import pytest
import torch

from hadamard.proximal import Nuclear, SpectralBall, lmo_spectral, polar, spectral_ball, svt
from tests.suites.proximal import ConvexSuite, ProjectionSuite

DTYPES = [torch.float64, torch.complex128]
SHAPES = [(6, 3), (3, 6), (4, 4), (2, 9, 3), (5, 1)]


class TestNuclear(ConvexSuite):
    shape = (4, 2)
    tol = 1e-9

    def function(self):
        return Nuclear(0.8)

    def cvxpy(self, u):
        return 0.8 * cp.normNuc(u), []


class TestSpectralBall(ConvexSuite):
    shape = (3, 3)

    def function(self):
        return SpectralBall(1.5)

    def cvxpy(self, u):
        return 0, [cp.sigma_max(u) <= 1.5]


class TestSpectralBallProjection(ProjectionSuite):
    shape = (2, 5)
    tol = 1e-9

    def project(self, x):
        return spectral_ball(x, 1.2)

    def distance(self, x):
        return (torch.linalg.matrix_norm(x, 2) - 1.2).clamp(min=0)

    def cvxpy(self, u):
        return [cp.sigma_max(u) <= 1.2]


def matrices(shape, dtype, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def through_svd(M, f):
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    return (U * f(s)[..., None, :]) @ Vh


@pytest.mark.parametrize("via", ["auto", "gram", "svd"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_svt_and_ball_against_the_decomposition(shape, dtype, via):
    M = matrices(shape, dtype)
    torch.testing.assert_close(svt(M, 0.9, via), through_svd(M, lambda s: (s - 0.9).clamp(min=0)))
    torch.testing.assert_close(spectral_ball(M, 0.9, via), through_svd(M, lambda s: s.clamp(max=0.9)))


@pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-6])
def test_gram_is_accurate_for_small_thresholds(ratio):
    s = torch.logspace(0, -9, 10, dtype=torch.float64)
    M = (polar(matrices((60, 10), torch.float64)) * s) @ polar(matrices((10, 10), torch.float64))
    torch.testing.assert_close(svt(M, ratio, "gram"), svt(M, ratio, "svd"), rtol=0, atol=1e-9)


def test_gram_of_single_precision_is_as_good_as_the_decomposition():
    M = matrices((500, 8), torch.float64)
    want = svt(M, 5.0, "svd")
    for via in ("gram", "svd"):
        got = svt(M.float(), 5.0, via)
        assert got.dtype == torch.float32
        assert (got - want).abs().max() < 2e-6 * M.abs().max()


def test_one_threshold_a_matrix():
    M, t = matrices((2, 3, 5, 2), torch.float64), torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    got = svt(M, t)
    for j in range(3):
        torch.testing.assert_close(got[:, j], svt(M[:, j], float(t[j])))


@pytest.mark.parametrize("via", ["gram", "svd"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_in_both_arguments(shape, dtype, via):
    M = matrices(shape, dtype).requires_grad_()
    t = torch.full(shape[:-2], 0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda M, t: svt(M, t, via), (M, t), fast_mode=True)
    assert torch.autograd.gradcheck(lambda M, t: spectral_ball(M, t, via), (M, t), fast_mode=True)


@pytest.mark.parametrize("via", ["gram", "svd"])
def test_gradient_at_equal_and_at_zero_singular_values(via):
    M = torch.zeros(7, 4, dtype=torch.float64)
    M[0, 0] = M[1, 1] = 2.0
    assert torch.autograd.gradcheck(lambda M: svt(M, 0.7, via), (M.requires_grad_(),))
    low_rank = (matrices((7, 1), torch.float64) @ matrices((1, 4), torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda M: svt(M, 0.7, via), (low_rank,))


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES])
@pytest.mark.parametrize("shape", SHAPES)
def test_polar(shape, dtype, method):
    M = matrices(shape, dtype)
    P = polar(M, method)
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    assert ((torch.linalg.svdvals(P) - 1).abs() < tol).all()
    torch.testing.assert_close(P, through_svd(M, torch.ones_like), rtol=0, atol=10 * tol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (3, 3)])
def test_polar_gradient(shape, method, dtype):
    assert torch.autograd.gradcheck(
        lambda M: polar(M, method), (matrices(shape, dtype).requires_grad_(),), atol=1e-4, fast_mode=True
    )


def test_polar_gradient_at_the_identity():
    assert torch.autograd.gradcheck(polar, (torch.eye(3, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_newton_schulz_reaches_small_singular_values(dtype):
    s = torch.logspace(0, -4.5, 12, dtype=dtype)
    M = (polar(matrices((40, 12), dtype)) * s) @ polar(matrices((12, 12), dtype))
    values = torch.linalg.svdvals(polar(M, "newton_schulz"))
    assert ((values - 1).abs() < 20 * torch.finfo(dtype).eps).all()
    tiny = torch.linalg.svdvals(polar(torch.diag(torch.tensor([1.0, 1e-9, 0.0], dtype=dtype)), "newton_schulz"))
    assert (tiny <= 1 + 1e-6).all()
    assert tiny[-1] == 0


def test_polar_of_rank_deficient_is_completed():
    for M in (torch.zeros(4, 3), torch.ones(4, 3)):
        assert ((torch.linalg.svdvals(polar(M)) - 1).abs() < 1e-5).all()
        assert torch.isfinite(polar(M, "newton_schulz")).all()


def test_half_precision_comes_back():
    M = matrices((4, 3), torch.float32).bfloat16()
    for P in (polar(M), polar(M, "newton_schulz"), svt(M, 0.1)):
        assert P.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
def test_lmo_attains_the_nuclear_norm_and_nothing_beats_it(dtype):
    G = matrices((5, 3), dtype)
    best = (G.conj() * lmo_spectral(G)).sum().real
    torch.testing.assert_close(best, -torch.linalg.matrix_norm(G, "nuc"))
    for seed in range(20):
        S = polar(matrices((5, 3), dtype, seed + 1))
        assert (G.conj() * S).sum().real >= best - 1e-12


def test_nuclear_norm_and_ball_are_conjugate():
    M = matrices((4, 5, 3), torch.float64)
    f, ball = Nuclear(0.6), SpectralBall(0.6)
    torch.testing.assert_close(f.value(M), ball.conjugate(M))
    torch.testing.assert_close(f.prox(M, 2.0) + 2 * ball.prox(M / 2, 0.5), M)


def test_maximiser_of_low_rank_has_its_rank():
    M = matrices((5, 2), torch.float64) @ matrices((2, 4), torch.float64)
    values = torch.linalg.svdvals(SpectralBall(3.0).grad_conjugate(M))
    torch.testing.assert_close(values, torch.tensor([3.0, 3.0, 0.0, 0.0]).double())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda M: polar(M[0]), ValueError, r"M must have shape \(..., \*, \*\), got \(2,\)"),
        (lambda M: polar(M, "qr"), ValueError, "method must be one of 'svd', 'newton_schulz', got 'qr'"),
        (lambda M: polar(M.long()), TypeError, "M must have a floating or complex dtype, got torch.int64"),
        (lambda M: polar(M * torch.nan), ValueError, "M must be finite, got 6 NaN or infinite values"),
        (lambda M: lmo_spectral(M[:0]), ValueError, r"M must not be empty, got shape \(0, 2\)"),
        (lambda M: svt(M, -1.0), ValueError, "t must be >= 0, got -1.0"),
        (lambda M: svt(M, torch.ones(2)), ValueError, r"t must broadcast to shape \(\), got \(2,\)"),
        (lambda M: svt(M, 1.0, "eig"), ValueError, "via must be one of 'auto', 'gram', 'svd', got 'eig'"),
        (lambda M: spectral_ball(M * torch.inf), ValueError, "M must be finite"),
        (lambda M: Nuclear(-1.0), ValueError, "weight must be >= 0, got -1.0"),
        (lambda M: SpectralBall(-1.0), ValueError, "radius must be >= 0, got -1.0"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(3, 2))
