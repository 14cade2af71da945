"""Sparse Walsh-Hadamard transforms against brute force, and against spectra that are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from hadamard.spectral import fwht
from hadamard.transforms.spright import _bins, _cells, _signs, sparse_wht
from hadamard.transforms.spright_detectors import detector, random_full_rank

METHODS = ["noiseless", "nso", "so", "ml"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def spectrum(n, sparsity, seed, unit=False):
    """Distinct random indices and coefficients."""
    g = seeded(seed)
    k = torch.unique(torch.rand(sparsity, n, generator=g) < 0.5, dim=0)
    v = torch.randn(len(k), dtype=torch.float64, generator=g)
    return k, v.sign() if unit else v + 0.5 * v.sign()


def black_box(k, v, noise=0.0, seed=0):
    """The function with that spectrum, its noise, and a count of its calls' points."""
    g = seeded(seed)
    asked = []

    def function(points):
        asked.append(len(points))
        return _signs(points, k).double() @ v + noise * torch.randn(len(points), dtype=torch.float64, generator=g)

    return function, asked


def as_dict(found):
    return {tuple(row.tolist()): float(value) for row, value in zip(found.indices, found.value)}


@pytest.mark.parametrize(("n", "sparsity"), [(6, 3), (14, 16), (22, 64), (40, 64), (80, 20)])
def test_exact_samples_give_the_exact_spectrum(n, sparsity):
    k, v = spectrum(n, sparsity, n)
    function, asked = black_box(k, v)
    found = sparse_wht(function, n, sparsity=sparsity)
    assert found.converged
    assert found.unresolved_bins == 0
    assert found.n_samples == sum(asked)
    assert as_dict(found) == pytest.approx({tuple(row.tolist()): float(x) for row, x in zip(k, v)}, rel=1e-9)
    assert (found.value.abs().diff() <= 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_noisy_samples_give_the_support_and_close_coefficients(method, noise):
    n = 9 if method == "ml" else 16
    k, v = spectrum(n, 16, 1, unit=True)
    if method == "noiseless":
        noise = 0.0
    function, _ = black_box(k, v, noise)
    found = sparse_wht(function, n, bins=6, method=method, noise_std=noise, repeats=6)
    expected = {tuple(row.tolist()): float(x) for row, x in zip(k, v)}
    assert as_dict(found) == pytest.approx(expected, abs=0.1 * max(noise, 1e-6))


def test_noise_is_estimated_where_it_is_not_given():
    k, v = spectrum(16, 16, 2, unit=True)
    function, _ = black_box(k, v, 0.5)
    found = sparse_wht(function, 16, bins=6, method="nso", repeats=6)
    assert set(as_dict(found)) == {tuple(row.tolist()) for row in k}
    assert 0.5 * 0.5 / 8 < found.threshold < 3 * 0.5 / 8


@pytest.mark.parametrize(("method", "count"), [("noiseless", 13), ("nso", 2 * 13), ("so", 2 * 12), ("ml", 2 * 13)])
def test_the_sample_count_is_the_documented_one(method, count):
    function, asked = black_box(*spectrum(12, 2, 0))
    found = sparse_wht(function, 12, bins=4, groups=3, method=method, noise_std=0.0, repeats=2)
    assert found.n_samples == sum(asked) == 3 * 16 * count


@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 9), b=st.integers(1, 4), seed=st.integers(0, 999))
def test_bins_hold_the_aliased_spectrum(n, b, seed):
    """The identity that everything rests on, against the dense transform."""
    b = min(b, n)
    g = seeded(seed)
    x = torch.randn(1 << n, dtype=torch.float64, generator=g)
    X = fwht(x, norm="forward")
    M = random_full_rank(n, b, g)
    offsets = torch.rand(3, n, generator=g) < 0.5
    weights = torch.arange(n)
    U = _bins(lambda points: x[(points.long() << weights).sum(-1)], M, offsets, torch.float64)
    every = ((torch.arange(1 << n)[:, None] >> weights) & 1).bool()
    expected = torch.zeros_like(U)
    place = _cells(M[None], every)[0]
    expected.index_add_(0, place, (_signs(offsets, every).double() * X).T)
    torch.testing.assert_close(U, expected)


def test_a_tensor_is_read_only_where_it_is_needed():
    k, v = spectrum(10, 4, 3)
    every = ((torch.arange(1 << 10)[:, None] >> torch.arange(10)) & 1).bool()
    table = _signs(every, k).double() @ v
    found = sparse_wht(table, sparsity=4)
    torch.testing.assert_close(found.to_dense(), fwht(table, norm="forward"))
    torch.testing.assert_close(found.evaluate(every), table)
    assert found.n_samples < 1 << 10


def test_the_number_of_bins_grows_until_all_is_resolved():
    k, v = spectrum(20, 40, 4)
    function, asked = black_box(k, v)
    found = sparse_wht(function, 20)
    assert found.converged
    assert len(found.value) == len(k)
    assert found.n_samples == sum(asked)


def test_nothing_and_one_coefficient():
    zero = sparse_wht(lambda points: torch.zeros(len(points)), 12, sparsity=1)
    assert zero.converged
    assert len(zero.value) == 0
    assert zero.evaluate(torch.zeros(2, 12)).tolist() == [0, 0]
    constant = sparse_wht(lambda points: torch.full((len(points),), 3.0), 12, sparsity=1)
    assert as_dict(constant) == {(False,) * 12: 3.0}


@pytest.mark.parametrize("method", ["noiseless", "nso", "so"])
def test_a_dense_spectrum_is_reported_and_not_invented(method):
    table = torch.randn(1 << 10, dtype=torch.float64, generator=seeded(0))
    with pytest.warns(ConvergenceWarning, match="not sparse enough"):
        found = sparse_wht(table, bins=4, method=method, noise_std=0.0, repeats=2)
    assert not found.converged
    assert found.unresolved_bins > 0
    assert len(found.value) <= 4


def test_two_that_collide_everywhere_stay_unresolved():
    """With as many bins as index values, two indices in one bin of every group cannot be told apart by one hashing."""
    k, v = spectrum(8, 40, 5)
    function, _ = black_box(k, v)
    with pytest.warns(ConvergenceWarning, match="bins are unresolved"):
        found = sparse_wht(function, 8, bins=2)
    truth = {tuple(row.tolist()): float(x) for row, x in zip(k, v)}
    assert all(key in truth for key in as_dict(found))


def test_opposite_coefficients_in_one_bin_are_not_taken_for_none():
    """They cancel under the zero offset only."""
    k = torch.eye(10, dtype=torch.bool)[:2]
    function, _ = black_box(k, torch.tensor([1.0, -1.0], dtype=torch.float64))
    found = sparse_wht(function, 10, sparsity=2)
    assert sorted(found.value.tolist()) == pytest.approx([-1, 1])


def test_same_seed_same_samples():
    k, v = spectrum(14, 8, 6)
    seen = []

    def function(points):
        seen.append(points.clone())
        return _signs(points, k).double() @ v

    sparse_wht(function, 14, sparsity=8, generator=seeded(1))
    half = len(seen)
    sparse_wht(function, 14, sparsity=8, generator=seeded(1))
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:]))


def test_the_code_corrects_flipped_signs():
    """Every tenth sign of a codeword is wrong; the message comes out right."""
    n = 24
    decide = detector("so", n, 6, seeded(0))
    k = torch.rand(20, n, generator=seeded(1)) < 0.5
    V = _signs(decide.offsets, k).T.clone()
    V *= torch.where(torch.rand(V.shape, generator=seeded(2)) < 0.1, -1.0, 1.0)
    assert (decide(V, torch.zeros(20, n, 1, dtype=torch.bool), torch.zeros(20, dtype=torch.int64)) == k).all(
        1
    ).float().mean() > 0.9


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(6),), {}, "function must hold a power of two values, got 6"),
        ((torch.ones(8), 4), {}, r"function must hold 2\^n = 16 values, got 8"),
        ((lambda p: p,), {}, "n must be given where the function is not a tensor"),
        ((lambda p: p, 4), {}, r"the function must return shape \(80,\), got \(80, 4\)"),
        ((lambda p: p[:, 0] / 0.0, 4), {}, "the function must return finite values"),
        ((torch.ones(8),), {"bins": 4}, "bins must be >= 1 and <= 3, got 4"),
        ((torch.ones(8),), {"groups": 1}, "groups must be >= 2, got 1"),
        ((torch.ones(8),), {"method": "best"}, "method must be one of"),
        ((torch.ones(8),), {"noise_std": -1.0}, "noise_std must be >= 0, got -1.0"),
        ((torch.ones(8),), {"sparsity": 0}, "sparsity must be >= 1, got 0"),
        ((torch.ones(8),), {"method": "so", "repeats": 1}, "repeats must be >= 2, got 1"),
        ((torch.ones(8),), {"margin": 0.0}, "margin must be > 0, got 0"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        sparse_wht(*arguments, **options)


@pytest.mark.bad_input
def test_bad_points():
    found = sparse_wht(torch.ones(8))
    with pytest.raises(ValueError, match=r"points must have shape \(..., \*, 3\), got \(1, 2\)"):
        found.evaluate(torch.zeros(1, 2))
