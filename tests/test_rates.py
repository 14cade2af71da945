"""Slopes of power laws."""

import numpy as np
import pytest

from hadamard.rates import loglog_slope


@pytest.mark.parametrize("power", [-1.5, 0.0, 0.5, 3.0])
def test_exact_power_law(power):
    x = np.array([3.0, 10.0, 17.0, 200.0])
    for got in loglog_slope(x, 7.0 * x**power):
        assert got == pytest.approx(power, abs=1e-12)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    x = np.geomspace(1, 100, 6)
    inside = 0
    for _ in range(400):
        slope, low, high = loglog_slope(x, x**2 * np.exp(0.1 * rng.standard_normal(6)))
        assert low < slope < high
        inside += low <= 2 <= high
    assert 0.91 <= inside / 400 <= 0.985


def test_two_points_have_no_interval():
    assert loglog_slope([1, 2], [1, 4]) == pytest.approx((2.0, 2.0, 2.0))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "x, y, message",
    [
        ([1, 2, 3], [1, 2], "x and y must have the same length, got 3 and 2"),
        ([1, 1], [1, 2], "x must hold at least two different values, got 1"),
        ([1], [1], "x must hold at least two different values, got 1"),
        ([], [], "x must hold at least two different values, got 0"),
        ([0, 1], [1, 2], "x must be positive and finite, got 0.0"),
        ([1, 2], [1, np.nan], "y must be positive and finite, got nan"),
        ([1, 2], [1, np.inf], "y must be positive and finite, got inf"),
        ([[1, 2]], [1, 2], r"x must have 1 dimension\(s\), got shape \(1, 2\)"),
    ],
)
def test_bad_input(x, y, message):
    with pytest.raises(ValueError, match=message):
        loglog_slope(x, y)
