"""The compiled semi-dual: against the conjugates column by column, on every path."""

import pytest
import torch

from hadamard.kernels import using
from hadamard.kernels.semidual import reference, semi_dual
from hadamard.transport.semidual import SparseSquaredL2
from hadamard.transport.semidual import semi_dual as column_by_column

INF = torch.inf
PATHS = ("auto", "portable", "torch")


def problem(B, m, n, radius, dtype=torch.float64, seed=0):
    """Costs and radii; rounded costs have many ties."""
    g = torch.Generator().manual_seed(seed)
    C = torch.rand(B, m, n, generator=g, dtype=torch.float64).mul(16).round() / 16
    return C.to(dtype), (radius * torch.rand(B, m, generator=g, dtype=torch.float64)).to(dtype)


def cold(radius):
    return torch.full_like(radius, INF)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 3, 16, 70])
@pytest.mark.parametrize("B, m, n", [(3, 5, 7), (1, 9, 70), (2, 3, 1), (4, 2, 100)])
def test_against_the_conjugates(B, m, n, k, dtype, path):
    for radius in (1e-6, 0.05, 1.0, 40.0):
        C, r = problem(B, m, n, radius, dtype)
        C[0, 1, n // 2 + 1 :], r[-1, 0] = INF, 0  # forbidden pairs, and a column without mass
        level, g = cold(r), torch.Generator().manual_seed(1)
        for scale in (0, 0.01, 1, 1, 0.1, 100):  # levels that come from near, and from far away
            alpha = (scale * torch.randn(B, n, generator=g, dtype=torch.float64)).to(dtype)
            with using(path):
                value, rows = semi_dual(alpha, C, r, k, level)
            want, want_rows = column_by_column(alpha, C, r, SparseSquaredL2(1.0, k))
            exact = {"rtol": 100 * torch.finfo(dtype).eps, "atol": 40 * torch.finfo(dtype).eps * (scale + radius) * m}
            torch.testing.assert_close(value, want, **exact)
            torch.testing.assert_close(rows, want_rows, **exact)


@pytest.mark.parametrize("path", PATHS)
def test_of_equal_scores_the_lowest_index_is_kept(path):
    C = torch.zeros(1, 2, 40, dtype=torch.float64)
    C[0, 0, 20], C[0, 1, :3] = -1, 1
    level = cold(C[..., 0])
    for _ in range(2):
        with using(path):
            value, rows = semi_dual(torch.zeros(1, 40, dtype=torch.float64), C, torch.full_like(level, 4.5), 3, level)
        want = torch.zeros(40, dtype=torch.float64)
        want[[0, 1]] += 3.5 / 3
        want[20] += 3.5 / 3 + 1
        want[[3, 4, 5]] += 1.5
        torch.testing.assert_close(rows[0], want)
        squares = 2 * (3.5 / 3) ** 2 + (3.5 / 3 + 1) ** 2 + 3 * 1.5**2
        assert float(value) == pytest.approx((3.5 / 3 + 1) - squares / 2, rel=1e-12)  # <s, t> - |t|^2 / 2


@pytest.mark.parametrize("path", PATHS)
def test_tiny_radii_far_from_zero(path):
    """The threshold lies a few units in the last place below the largest score."""
    C, _ = problem(1, 4, 50, 1)
    r, alpha = torch.full((1, 4), 1e-14, dtype=torch.float64), torch.full((1, 50), 7.0, dtype=torch.float64)
    with using(path):
        value, rows = semi_dual(alpha, C, r, 50, cold(r))
    torch.testing.assert_close(float(value), float(((7 - C.amin(-1)) * r).sum()), rtol=1e-6, atol=0)
    assert float(rows.sum()) == pytest.approx(4e-14, rel=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_nan_is_passed_on(path):
    C, r = problem(2, 3, 20, 0.1)
    alpha = torch.zeros(2, 20, dtype=torch.float64)
    alpha[1, 4] = torch.nan
    with using(path):
        value, rows = semi_dual(alpha, C, r, 5, cold(r))
    assert torch.equal(torch.isnan(value), torch.tensor([False, True]))
    assert torch.equal(torch.isnan(rows).any(1), torch.tensor([False, True]))
    C[0, 0] = INF
    with using(path):
        value, rows = semi_dual(alpha, C, r, 5, cold(r))
    assert bool(torch.isnan(value).all())
    assert bool(torch.isnan(rows).any(1).all())


@pytest.mark.parametrize("path", PATHS)
def test_level_saves_time_only(path):
    C, r = problem(2, 4, 60, 0.5)
    alpha = torch.randn(2, 60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    want = semi_dual(alpha, C, r, 6, cold(r))
    for start in (-100.0, -1.0, 0.0, 1.0, 100.0):
        level = torch.full((4, 2), start, dtype=torch.float64).T  # not contiguous
        with using(path):
            got = semi_dual(alpha, C, r, 6, level)
            again = semi_dual(alpha, C, r, 6, level)
        assert bool((level != start).all())
        for first, second, result in zip(got, again, want):
            torch.testing.assert_close(first, result)
            torch.testing.assert_close(second, result)


def test_threads_share_problems_or_columns():
    threads = torch.get_num_threads()
    for B, m, n in ((7, 30, 2000), (1, 97, 5000)):
        C, r = problem(B, m, n, 0.3)
        alpha = torch.zeros(B, n, dtype=torch.float64)
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            try:
                results.append(semi_dual(alpha, C, r, 9, cold(r)))
            finally:
                torch.set_num_threads(threads)
        for one, three in zip(*results):
            torch.testing.assert_close(one, three)


def test_half_precision_takes_the_reference():
    C, r = problem(1, 3, 20, 0.5, torch.bfloat16)
    alpha = torch.zeros(1, 20, dtype=torch.bfloat16)
    for got, want in zip(semi_dual(alpha, C, r, 4, cold(r)), reference(alpha, C, r, 4, cold(r))):
        assert torch.equal(got, want)


@pytest.mark.parametrize("path", PATHS)
def test_operator(path):
    C, r = problem(2, 3, 20, 0.5)
    with using(path):
        torch.library.opcheck(
            torch.ops.hadamard.semi_dual.default, (torch.zeros(2, 20, dtype=torch.float64), C, r, 4, cold(r))
        )
