"""Histograms and costs: what is refused, what is dropped and put back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadamard.transport.problem import check_histograms

HALF = torch.tensor([0.5, 0.5], dtype=torch.float64)
COST = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
INF, NAN = float("inf"), float("nan")


def test_points_without_mass_are_dropped_and_put_back():
    a = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0]])
    b = torch.tensor([0.0, 0.25, 0.75])
    M = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0))
    *_, problem = check_histograms(a, b, M)
    assert problem.rows.tolist() == [0, 2]  # kept: the second problem has no mass at 0, the first one has
    assert problem.columns.tolist() == [1, 2]
    assert problem.a.tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert problem.a.dtype == problem.cost.dtype == torch.float64
    torch.testing.assert_close(problem.cost, M[:, [0, 2]][:, :, [1, 2]].double())
    torch.testing.assert_close(problem.restore_rows(problem.a), a.double())
    assert problem.restore_columns(problem.b, fill=-INF)[0].tolist() == [-INF, 0.25, 0.75]
    whole = problem.restore_pairs(problem.cost)
    torch.testing.assert_close(problem.keep_pairs(whole), problem.cost)
    assert float(whole.sum()) == float(problem.cost.sum())


def test_masses_that_differ_by_rounding_are_made_equal():
    a, b = torch.full((3,), 1 / 3), torch.full((7,), 1 / 7)
    *_, problem = check_histograms(a, b, torch.ones(3, 7))
    assert float((problem.a.sum() - problem.b.sum()).abs()) < 1e-15


def test_leading_dimensions_broadcast():
    a, b, M, problem = check_histograms(HALF, HALF.expand(3, 1, 2), COST.expand(4, 2, 2))
    assert a.shape == b.shape == (3, 4, 2)
    assert M.shape == (3, 4, 2, 2)
    assert problem.cost.shape == (12, 2, 2)
    assert problem.restore_pairs(problem.cost).shape == (3, 4, 2, 2)


def test_default_histograms_are_uniform():
    a, b, _, _ = check_histograms(None, None, torch.ones(4, 5))
    assert a.tolist() == [0.25] * 4
    assert b.dtype == torch.float32


def test_forbidden_pairs_that_leave_a_plan_pass():
    M = torch.tensor([[0.0, INF, INF], [1.0, 0.0, INF], [INF, 1.0, 0.0]])
    check_histograms(None, None, M)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "a, b, M, error, message",
    [
        ([0.5, 0.5], HALF, COST, TypeError, "a must be a torch.Tensor, got list"),
        (torch.tensor([1, 1]), HALF, COST, TypeError, "a must have a floating dtype, got torch.int64"),
        (HALF, HALF, COST.tolist(), TypeError, "M must be a torch.Tensor, got list"),
        (HALF, HALF, COST[0], ValueError, r"M must have shape \(..., n, m\), got \(2,\)"),
        (HALF, HALF, COST[:0], ValueError, "M must not be empty"),
        (torch.ones(3).double(), HALF, COST, ValueError, r"a must have shape \(..., 2\) for M of shape \(2, 2\)"),
        (HALF, HALF.float(), COST, ValueError, "a and b must have the same dtype"),
        (-HALF, HALF, COST, ValueError, "a must be >= 0, got -0.5"),
        (HALF, HALF * NAN, COST, ValueError, "b must be finite, got 2 NaN"),
        (HALF, 2 * HALF, COST, ValueError, "a and b must have equal mass, got 1 and 2"),
        (0 * HALF, 0 * HALF, COST, ValueError, "a must have positive mass"),
        (HALF, HALF, COST * NAN, ValueError, "M must hold costs that are finite or inf"),
        (HALF, HALF, COST - INF, ValueError, "M must hold costs that are finite or inf"),
        (HALF.expand(2, 2), HALF.expand(3, 2), COST, ValueError, "leading dimensions that broadcast"),
        (HALF, HALF, torch.tensor([[INF, INF], [0, 0]]).double(), ValueError, "forbids every pair of a row"),
        (HALF, HALF, torch.tensor([[INF, 0], [INF, 0]]).double(), ValueError, "forbids every pair of a column"),
        (
            torch.tensor([0.75, 0.25]).double(),
            HALF,
            torch.tensor([[0, INF], [0, 0]]).double(),
            ValueError,
            "at most 0.75 of the mass can be transported",
        ),
    ],
)
def test_bad_input(a, b, M, error, message):
    with pytest.raises(error, match=message):
        check_histograms(a, b, M)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=6), st.integers(1, 5))
def test_restore_undoes_keep(weights, m):
    a = torch.tensor(weights)
    if a.sum() == 0:
        a[0] = 1.0
    M = torch.arange(len(a) * m, dtype=torch.float32).reshape(len(a), m)
    *_, problem = check_histograms(a, torch.full((m,), float(a.sum()) / m), M)
    torch.testing.assert_close(problem.restore_rows(problem.a), a.double())
    torch.testing.assert_close(problem.restore_pairs(problem.cost), M.double() * (a > 0)[:, None])
