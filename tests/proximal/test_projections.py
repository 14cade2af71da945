"""Projections: definition, cvxpy, brute force over supports, gradients, bad input."""

from itertools import combinations

import cvxpy as cp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadamard.proximal import box, l1_ball, l2_ball, simplex
from tests.suites.proximal import ProjectionSuite


class TestSimplex(ProjectionSuite):
    def project(self, x):
        return simplex(x, 1.7)

    def distance(self, x):
        return (x.sum(-1) - 1.7).abs() + (-x).clamp(min=0).amax(-1)

    def cvxpy(self, u):
        return [u >= 0, cp.sum(u) == 1.7]


class TestL1Ball(ProjectionSuite):
    def project(self, x):
        return l1_ball(x, 1.7)

    def distance(self, x):
        return (x.abs().sum(-1) - 1.7).clamp(min=0)

    def cvxpy(self, u):
        return [cp.norm1(u) <= 1.7]


class TestL2Ball(ProjectionSuite):
    def project(self, x):
        return l2_ball(x, 1.7)

    def distance(self, x):
        return (torch.linalg.vector_norm(x, dim=-1) - 1.7).clamp(min=0)

    def cvxpy(self, u):
        return [cp.norm2(u) <= 1.7]


class TestBox(ProjectionSuite):
    def project(self, x):
        return box(x, -0.4, 1.1)

    def distance(self, x):
        return (x - x.clamp(-0.4, 1.1)).abs().amax(-1)

    def cvxpy(self, u):
        return [u >= -0.4, u <= 1.1]


def by_sorting(x, radius=1.0):
    """The textbook projection on the simplex."""
    u = x.sort(dim=-1, descending=True).values
    mean = (u.cumsum(-1) - radius) / torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    rho = (u > mean).sum(-1, keepdim=True)
    return (x - mean.gather(-1, rho - 1)).clamp(min=0)


def brute_force(x, radius, k):
    """The nearest of the projections on every support of k entries."""
    best, distance = None, torch.inf
    for support in combinations(range(len(x)), k):
        p = torch.zeros_like(x)
        p[list(support)] = by_sorting(x[list(support)], radius)
        if (p - x).norm() < distance - 1e-12:
            best, distance = p, (p - x).norm()
    return best, distance


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 8), k=st.integers(1, 8), seed=st.integers(0, 10_000), radius=st.sampled_from([1e-9, 0.3, 1.0, 8.0])
)
def test_sparse_simplex_against_all_supports(m, k, seed, radius):
    x = torch.randn(m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    got = simplex(x, radius, k=k)
    _, distance = brute_force(x, radius, min(k, m))
    assert (got >= 0).all()
    assert int((got > 0).sum()) <= k
    assert got.sum().item() == pytest.approx(radius, rel=1e-9)
    assert (got - x).norm().item() == pytest.approx(float(distance), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 300), seed=st.integers(0, 10_000), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_simplex_against_sorting(n, seed, scale):
    x = scale * torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(simplex(x), by_sorting(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "x", [2.0 ** -torch.arange(60).double(), -(2.0 ** torch.arange(60).double()), torch.zeros(60).double()]
)
def test_simplex_of_hard_spectra(x):
    torch.testing.assert_close(simplex(x), by_sorting(x), rtol=1e-12, atol=1e-12)


def test_simplex_ties_go_to_the_lowest_index():
    assert simplex(torch.tensor([0.0, 1.0, 1.0, 1.0]), k=2).tolist() == [0.0, 0.5, 0.5, 0.0]


def test_simplex_along_any_dimension_with_a_radius_a_vector():
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    radius = torch.rand(3, dtype=torch.float64)
    for k in (None, 2):
        got = simplex(x, radius, dim=1, k=k)
        torch.testing.assert_close(got.sum(1), radius.expand(2, 3))
        for i in range(2):
            for j in range(3):
                torch.testing.assert_close(got[i, :, j], simplex(x[i, :, j], float(radius[j]), k=k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.0, 1e-30, 1e-12])
def test_tiny_radius(dtype, radius):
    x = torch.tensor([1.0, 1.0, 0.5, -3.0], dtype=dtype)
    for got in (simplex(x, radius), simplex(x, radius, k=2), l1_ball(x, radius)):
        assert got.abs().sum().item() == pytest.approx(radius, rel=1e-5, abs=0)
        assert got[:3].min() >= 0


def test_tiny_radius_is_accurate_far_from_zero():
    x = torch.tensor([1e6, 1e6 - 1, 0.0], dtype=torch.float64) + 0.125
    torch.testing.assert_close(simplex(x, 2e-9), torch.tensor([2e-9, 0.0, 0.0], dtype=x.dtype), rtol=1e-12, atol=0)


def test_forbidden_entries():
    x = torch.tensor([[0.2, -torch.inf, 0.1], [-torch.inf, -torch.inf, 3.0]], dtype=torch.float64, requires_grad=True)
    got = simplex(x)
    torch.testing.assert_close(got, torch.tensor([[0.55, 0.0, 0.45], [0.0, 0.0, 1.0]]).double())
    got.square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("k", [None, 2])
def test_simplex_gradient_in_both_arguments(k):
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    radius = torch.tensor([0.5, 1.0, 9.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, r: simplex(x, r, k=k), (x, radius))
    assert torch.autograd.gradgradcheck(lambda x, r: simplex(x, r, k=k) ** 2, (x, radius))


@pytest.mark.parametrize("function", [l1_ball, l2_ball])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_ball_gradients_in_both_arguments(function, dtype):
    x = torch.randn(3, 5, dtype=dtype, generator=torch.Generator().manual_seed(2)).requires_grad_()
    radius = torch.tensor([0.5, 1.0, 90.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, radius))


def test_complex_balls_keep_the_phase():
    x = torch.randn(4, 6, dtype=torch.complex128)
    torch.testing.assert_close(l1_ball(x, 0.5).abs(), l1_ball(x.abs(), 0.5))
    torch.testing.assert_close(l1_ball(x, 0.5) * x.abs(), l1_ball(x, 0.5).abs() * x)


def test_inside_nothing_moves():
    x = torch.tensor([0.1, -0.2, 0.0])
    for got in (l1_ball(x), l2_ball(x), box(x, -1.0, 1.0), box(x)):
        assert torch.equal(got, x)


def test_l2_ball_over_several_dimensions():
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    radius = torch.rand(4, dtype=torch.float64)
    torch.testing.assert_close(l2_ball(x, radius, dim=(1, 2)).flatten(1), l2_ball(x.flatten(1), radius))


def test_box_with_one_end_and_tensor_ends():
    x = torch.tensor([-2.0, 0.5, 2.0])
    assert box(x, low=0.0).tolist() == [0.0, 0.5, 2.0]
    assert box(x, high=torch.tensor([0.0, 0.0, 3.0])).tolist() == [-2.0, 0.0, 2.0]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: simplex([1.0]), TypeError, "x must be a torch.Tensor, got list"),
        (lambda x: simplex(x.long()), TypeError, "x must have a floating dtype, got torch.int64"),
        (lambda x: simplex(x.to(torch.complex64)), TypeError, "x must have a floating dtype, got torch.complex64"),
        (lambda x: simplex(x[:0]), ValueError, r"x must not be empty, got shape \(0, 3\)"),
        (lambda x: simplex(x * torch.nan), ValueError, "x must have a largest entry that is finite in every vector"),
        (lambda x: simplex(x * torch.inf), ValueError, "x must have a largest entry that is finite in every vector"),
        (lambda x: simplex(x * -torch.inf), ValueError, "got NaN, inf or only -inf"),
        (lambda x: simplex(x, -1.0), ValueError, "radius must be >= 0, got -1.0"),
        (lambda x: simplex(x, torch.tensor([1.0, -1.0])), ValueError, "radius must be >= 0, got -1.0"),
        (lambda x: simplex(x, torch.ones(3)), ValueError, r"radius must broadcast to shape \(2,\), got \(3,\)"),
        (lambda x: simplex(x, k=0), ValueError, "k must be >= 1, got 0"),
        (lambda x: simplex(x, k=1.0), TypeError, "k must be an integer, got float 1.0"),
        (lambda x: l1_ball(x * torch.nan), ValueError, "x must be finite, got 6 NaN or infinite values"),
        (lambda x: l1_ball(x, -1.0), ValueError, "radius must be >= 0, got -1.0"),
        (lambda x: l2_ball(x * torch.inf), ValueError, "x must be finite"),
        (lambda x: l2_ball(x, torch.ones(3, 2)), ValueError, r"radius must broadcast to shape \(2,\), got \(3, 2\)"),
        (lambda x: box(x, 1.0, 0.0), ValueError, "low must not exceed high, got 1.0 and 0.0"),
        (lambda x: box(x.to(torch.complex64), 0.0), TypeError, "x must have a floating dtype"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(2, 3))
