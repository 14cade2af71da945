"""Convex functions, each against its definition and against cvxpy."""

import cvxpy as cp
import pytest
import torch

from hadamard.proximal import L1, L2, ConvexFunction, L2Ball, LInfBall, SquaredL2, indicator
from tests.suites.proximal import ConvexSuite


class TestL1(ConvexSuite):
    def function(self):
        return L1(0.8)

    def cvxpy(self, u):
        return 0.8 * cp.norm1(u), []


class TestL1OfImages(ConvexSuite):
    shape = (2, 3)

    def function(self):
        return L1(0.8, dim=(-2, -1))

    def cvxpy(self, u):
        return 0.8 * cp.sum(cp.abs(u)), []


class TestL2(ConvexSuite):
    def function(self):
        return L2(1.5)

    def cvxpy(self, u):
        return 1.5 * cp.norm2(u), []


class TestL2OfImages(ConvexSuite):
    shape = (2, 3)

    def function(self):
        return L2(1.5, dim=(-2, -1))

    def cvxpy(self, u):
        return 1.5 * cp.norm(u, "fro"), []


class TestSquaredL2(ConvexSuite):
    def function(self):
        return SquaredL2(0.6)

    def cvxpy(self, u):
        return 0.3 * cp.sum_squares(u), []


class TestLInfBall(ConvexSuite):
    def function(self):
        return LInfBall(0.7)

    def cvxpy(self, u):
        return 0, [cp.norm_inf(u) <= 0.7]


class TestL2Ball(ConvexSuite):
    def function(self):
        return L2Ball(2.5)

    def cvxpy(self, u):
        return 0, [cp.norm2(u) <= 2.5]


@pytest.mark.parametrize("norm, ball", [(L1(0.6), LInfBall(0.6)), (L2(0.6), L2Ball(0.6))])
def test_norms_and_balls_are_conjugate(norm, ball):
    x = torch.randn(20, 4, dtype=torch.float64)
    torch.testing.assert_close(norm.value(x), ball.conjugate(x))
    torch.testing.assert_close(norm.conjugate(x), ball.value(x))
    torch.testing.assert_close(norm.prox(x, 2.0) + 2 * ball.prox(x / 2, 0.5), x)


def test_indicator_forgives_rounding_only():
    for dtype, slack in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        norm = torch.tensor([1.0, 1.0 + slack, 1.001], dtype=dtype)
        assert indicator(norm, 1.0).tolist() == [0.0, 0.0, float("inf")]


def test_without_a_value_it_is_no_convex_function():
    assert not isinstance(object(), ConvexFunction)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: L1(-1.0), ValueError, "weight must be >= 0, got -1.0"),
        (lambda: L2(float("nan")), ValueError, "weight must be >= 0, got nan"),
        (lambda: SquaredL2(0.0), ValueError, "weight must be > 0, got 0.0"),
        (lambda: LInfBall(-1.0), ValueError, "radius must be >= 0, got -1.0"),
        (lambda: L2Ball("1"), TypeError, "radius must be a number, got str"),
        (lambda: L1().prox(torch.ones(2), -1.0), ValueError, "t must be >= 0, got -1.0"),
        (lambda: SquaredL2().prox(torch.ones(2), -1.0), ValueError, "step must be >= 0, got -1.0"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
