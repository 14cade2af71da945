"""Semi-discrete transport against quantiles, cells that are known, discrete transport, and its own convex energy."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from hadamard.transport import SemiDiscreteOT, semi_discrete_ot
from hadamard.transport.power_diagram import assign

LINE = torch.tensor([[0.3], [-1.0], [2.0], [0.5]], dtype=torch.float64)
SHARES = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=seeded(seed), dtype=dtype)


@pytest.mark.bad_input
@parametrize_with_checks([SemiDiscreteOT(tol=1.0, random_state=0)])
def test_sklearn_conventions(estimator, check):
    check(estimator)


class TestAssign:
    @pytest.mark.parametrize("block", [1, 7, 40, 100, 10_000])
    def test_blocks_are_one_sweep(self, block):
        x, y, h = cloud(50, 3), cloud(37, 3, 1), cloud(37, 1, 2)[:, 0]
        scores = x @ y.T + h
        values, indices = assign(x, y, h, block)
        assert torch.equal(indices, scores.argmax(1))
        torch.testing.assert_close(values, scores.amax(1))

    @pytest.mark.parametrize("block", [2, 100])
    def test_the_lowest_of_equals(self, block):
        y = torch.ones(5, 1)
        assert torch.equal(assign(torch.ones(3, 1), y, torch.tensor([0.0, 1, 1, 0, 1]), block)[1], torch.ones(3).long())

    def test_weighted_nearest_neighbours(self):
        x, y, alpha = cloud(200, 4), cloud(30, 4, 1), cloud(30, 1, 2)[:, 0]
        nearest = (torch.cdist(x, y).square() / 2 - alpha).argmin(1)
        assert torch.equal(assign(x, y, alpha - y.square().sum(1) / 2)[1], nearest)


@pytest.mark.parametrize("source", ["normal", "uniform"])
def test_on_a_line_it_is_the_quantile_function(source):
    T = semi_discrete_ot(LINE, source, SHARES, tol=0.01)
    order = LINE[:, 0].argsort()
    u = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
    x = torch.special.ndtri(u) if source == "normal" else u
    steps = SHARES[order].cumsum(0)
    quantiles = order[torch.searchsorted(steps, u)]
    clear = (u[:, None] - steps).abs().amin(1) > 0.01
    assert torch.equal(T.assign(x[:, None])[clear], quantiles[clear])
    assert T.converged
    assert T.residual <= 0.01


def test_the_value_on_a_line():
    """Mean of |x - T(x)|^2 / 2 by quadrature of the quantile coupling."""
    T = semi_discrete_ot(LINE, "normal", SHARES, tol=0.005)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    order = LINE[:, 0].argsort()
    y = LINE[order[torch.searchsorted(SHARES[order].cumsum(0), u)], 0]
    exact = float((torch.special.ndtri(u) - y).square().mean() / 2)
    assert abs(T.value - exact) < 0.01 * exact


@pytest.mark.parametrize("share", [0.5, 0.2, 0.9])
def test_two_targets_of_a_gaussian(share):
    """The boundary is a hyperplane across the line between them, at a normal quantile: h is known."""
    y = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    T = semi_discrete_ot(y, "normal", torch.tensor([share, 1 - share], dtype=torch.float64), tol=0.004)
    expected = -norm.ppf(1 - share) * float((y[0] - y[1]).norm())  # h_0 - h_1
    assert abs(float(T.heights[0] - T.heights[1]) - expected) < 0.03


def test_four_quadrants_and_a_square():
    """In the unit square, four targets placed like its quarters own them; three strips are found as well."""
    y = torch.tensor([[0.0, 0.0], [0.0, 1], [1, 0], [1, 1]]) * 5 - 2
    T = semi_discrete_ot(y, "uniform", tol=0.01)
    x = torch.rand(2000, 2, generator=seeded(1))
    x = x[((x - 0.5).abs() > 0.01).all(1)]
    assert torch.equal(T.assign(x), (2 * (x[:, 0] > 0.5) + (x[:, 1] > 0.5)).long())
    strips = semi_discrete_ot(torch.tensor([[0.0, 7.0], [1.0, 7.0], [4.0, 7.0]]), "uniform", tol=0.01)
    clear = ((x[:, :1] - torch.tensor([1 / 3, 2 / 3])).abs() > 0.01).all(1)
    assert torch.equal(strips.assign(x)[clear], (x[clear, 0] * 3).long())


def test_masses_by_quadrature_in_the_plane():
    """On a fine grid of the unit square, which is no sample, the cells have the masses that were asked for."""
    y, nu = cloud(12, 2), torch.linspace(1, 4, 12, dtype=torch.float64)
    T = semi_discrete_ot(y, "uniform", nu, tol=0.01)
    line = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    masses = torch.bincount(T.assign(torch.cartesian_prod(line, line)), minlength=12) / 400**2
    assert float((masses - nu / nu.sum()).abs().sum()) < 0.01
    assert abs(float(T.weights.sum()) - 1) < 1e-12


def test_it_solves_the_discrete_problem_for_sources_of_many_points():
    """Cost and potentials beside the exact ones of linear programming, for the same sample."""
    y, x = cloud(20, 3, 1), cloud(4000, 3)
    T = semi_discrete_ot(y, lambda count, generator: x[torch.randint(4000, (count,), generator=generator)], tol=0.01)
    M = torch.cdist(x, y).square() / 2
    _, log = ot.emd(np.full(4000, 1 / 4000), np.full(20, 1 / 20), M.numpy(), log=True)
    cost = float(M.gather(1, T.assign(x)[:, None]).mean())
    assert abs(T.value - log["cost"]) < 0.005 * log["cost"]
    assert abs(cost - log["cost"]) < 0.01 * log["cost"]
    exact = torch.from_numpy(log["v"])
    torch.testing.assert_close(T.potentials - T.potentials.mean(), exact - exact.mean(), rtol=0, atol=0.06)


def test_the_same_potentials_as_pot():
    y = cloud(15, 2)
    ours = semi_discrete_ot(y, tol=0.01).potentials
    rng = np.random.default_rng(0)
    theirs = torch.from_numpy(
        ot.semidiscrete.solve_semidiscrete(
            y.numpy(), lambda b: rng.normal(size=(b, 2)), max_iter=2000, batch_size=256, lr0=10, decreasing_reg=False
        )
    )
    torch.testing.assert_close(2 * (ours - ours.mean()), theirs - theirs.mean(), rtol=0, atol=0.05)


def test_masses_are_the_gradient_of_a_convex_energy():
    """With common samples: finite differences along random lines, and convexity along them."""
    x, y, nu = cloud(4000, 3), cloud(9, 3, 1), torch.full((9,), 1 / 9, dtype=torch.float64)
    h, direction = 0.1 * cloud(9, 1, 2)[:, 0], cloud(9, 1, 3)[:, 0]

    def energy(h):
        return float(assign(x, y, h)[0].mean() - (nu * h).sum())

    masses = torch.bincount(assign(x, y, h)[1], minlength=9) / 4000
    step = 1e-3
    slope = (energy(h + step * direction) - energy(h - step * direction)) / (2 * step)
    assert abs(slope - float(((masses - nu) * direction).sum())) < 2e-3
    along = [energy(h + t * direction) for t in torch.linspace(-2, 2, 41).tolist()]
    assert (np.diff(along, 2) >= -1e-12).all()


def test_the_solution_has_the_least_energy():
    y = cloud(30, 4)
    T = semi_discrete_ot(y, tol=0.03)
    x = cloud(100_000, 4, 5)

    def energy(h):
        return float(assign(x, y, h)[0].mean() - h.mean())

    least = energy(T.heights)
    assert all(energy(T.heights + 0.1 * cloud(30, 1, seed)[:, 0]) > least for seed in range(5))


def test_translation_and_scale_of_the_targets():
    y = cloud(20, 3)
    one = semi_discrete_ot(y, tol=0.05)
    moved = semi_discrete_ot(4 * y + torch.tensor([100.0, -30, 7], dtype=torch.float64), tol=0.05)
    torch.testing.assert_close(moved.heights, 4 * one.heights)
    x = cloud(500, 3, 1)
    assert torch.equal(moved.assign(x), one.assign(x))


def test_cyclically_monotone():
    T, x = semi_discrete_ot(cloud(40, 5), tol=0.2), cloud(60, 5, 1)
    gains = x @ T(x).T
    for seed in range(200):
        ring = torch.randperm(60, generator=seeded(seed))[: 2 + seed % 6]
        assert gains[ring, ring].sum() >= gains[ring, ring.roll(1)].sum() - 1e-9


@pytest.mark.parametrize(("n", "d", "scale"), [(300, 2, 1.0), (300, 40, 1e-3), (200, 40, 1e3)])
def test_masses_in_many_dimensions_and_scales(n, d, scale):
    y = scale * (cloud(n, d, dtype=torch.float32) * torch.logspace(0, -1 if d == 2 else -2, d) + 3)
    T = semi_discrete_ot(y, tol=0.1)
    masses = T.masses(500 * n, seeded(3))
    assert (T.residual, T.extras["empty"]) < (0.1, 1)
    assert float((masses - 1 / n).abs().sum()) < 0.1
    assert abs(float(masses.sum()) - 1) < 1e-12


def test_errors_fall_as_one_over_the_root_of_the_iterations():
    y, errors = cloud(50, 10), []
    for steps in (20, 80, 320):
        with pytest.warns(ConvergenceWarning):
            T = semi_discrete_ot(y, tol=1e-9, max_iter=steps)
        errors.append(float((T.masses(400_000) - 1 / 50).abs().sum()))
    assert errors[2] < 0.4 * errors[0]
    assert errors[1] < errors[0]


def test_equal_targets_count_once_and_weightless_ones_never():
    y = torch.tensor([[0.0], [1.0], [0.0], [2.0], [5.0]])
    T = semi_discrete_ot(y, "uniform", torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0]), tol=0.02)
    torch.testing.assert_close(T.weights, torch.tensor([0.5, 0.25, 0, 0.25, 0], dtype=torch.float64))
    assert torch.isinf(T.heights).tolist() == [False, False, True, False, True]
    x = torch.tensor([[0.05], [0.4], [0.6], [0.9]])
    assert T.assign(x).tolist() == [0, 0, 1, 3]


def test_one_target_takes_all():
    T = semi_discrete_ot(torch.tensor([[3.0, 4.0]]))
    assert torch.equal(T(torch.zeros(5, 2)), torch.tensor([[3.0, 4.0]]).expand(5, 2))
    assert T.residual == 0


def test_same_generator_same_bits_and_global_state_untouched():
    before = torch.get_rng_state()
    one, two = (semi_discrete_ot(cloud(20, 2), tol=0.2, generator=seeded(7)) for _ in range(2))
    other = semi_discrete_ot(cloud(20, 2), tol=0.2, generator=seeded(8))
    assert torch.equal(one.heights, two.heights)
    assert not torch.equal(one.heights, other.heights)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_goes_on_from_a_saved_state(tmp_path):
    y, state = cloud(20, 2), tmp_path / "state.pt"
    whole = semi_discrete_ot(y, tol=1e-6, max_iter=300)
    semi_discrete_ot(y, tol=1e-6, max_iter=120, state=state)
    measured = torch.load(state)
    assert measured["iteration"] == 120
    resumed = semi_discrete_ot(y, tol=1e-6, max_iter=300, state=state)
    assert resumed.iterations == 300
    assert math.isclose(resumed.residual, whole.residual, rel_tol=0.5)
    again = semi_discrete_ot(y, tol=1e-6, max_iter=300, state=state)
    assert torch.equal(again.heights, resumed.heights)
    with pytest.raises(ValueError, match="state must be a file of the same problem"):
        semi_discrete_ot(y + 1, state=state)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_solve_that_is_cut_off_ends_with_the_same_bits(tmp_path):
    y, state, left = cloud(20, 2), tmp_path / "state.pt", [270]

    def source(count, generator):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return torch.randn(count, 2, generator=generator, dtype=torch.float64)

    with pytest.raises(KeyboardInterrupt):
        semi_discrete_ot(y, source, tol=1e-6, max_iter=400, state=state)
    resumed = semi_discrete_ot(y, source, tol=1e-6, max_iter=400, state=state)
    whole = semi_discrete_ot(y, tol=1e-6, max_iter=400)
    assert torch.equal(resumed.heights, whole.heights)
    assert resumed.extras["history"] == whole.extras["history"]


def test_too_long_a_step_empties_cells_and_says_so():
    with pytest.warns(ConvergenceWarning, match=r"the mass error is .* above tol=0.1; \d+ of 50 cells are empty"):
        T = semi_discrete_ot(cloud(50, 2), learning_rate=1e4, max_iter=5)
    assert not T.converged
    assert T.extras["empty"] > 10


def test_progress(capsys):
    semi_discrete_ot(cloud(10, 2), progress=True)
    assert "semi-discrete transport" in capsys.readouterr().out


def test_estimator_agrees_with_the_function():
    X = cloud(30, 3).numpy()
    model = SemiDiscreteOT(random_state=0).fit(X.astype(np.float32), sample_weight=np.arange(30.0))
    assert model.heights_[0] == -np.inf
    z = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_array_equal(model.transform(z), X.astype(np.float32)[model.assign(z)])
    assert model.transform(z).dtype == np.float32
    assert abs(model.cell_masses(50_000) - np.arange(30) / 435).sum() < 0.12


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.full((3, 2), torch.nan)}, ValueError, "target must be finite, got 6 NaN"),
        ({"target": torch.ones(3)}, ValueError, r"target must have 2 dimension\(s\), got shape \(3,\)"),
        ({"target": torch.ones(3, 2).long()}, TypeError, "target must have a floating dtype"),
        ({"target": torch.ones(0, 2)}, ValueError, "target must not be empty"),
        ({"weights": torch.ones(4)}, ValueError, r"weights must have shape \(..., 3\), got \(4,\)"),
        ({"weights": torch.tensor([1.0, -1, 1])}, ValueError, "weights must be >= 0, got -1.0"),
        ({"weights": torch.zeros(3)}, ValueError, "weights must not all be zero"),
        ({"source": "cauchy"}, ValueError, "source must be one of 'normal', 'uniform', got 'cauchy'"),
        ({"source": lambda n, g: torch.ones(n, 5)}, ValueError, r"source must return points of shape \(\d+, 2\)"),
        ({"source": lambda n, g: torch.full((n, 2), torch.inf)}, ValueError, "what source returns must be finite"),
        ({"tol": 0.0}, ValueError, "tol must be > 0, got 0.0"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be > 0, got 0.0"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        semi_discrete_ot(**{"target": cloud(3, 2)} | change)


@pytest.mark.bad_input
def test_bad_points():
    with pytest.raises(ValueError, match=r"x must have shape \(..., 2\), got \(5, 3\)"):
        semi_discrete_ot(cloud(3, 2), tol=0.5)(torch.ones(5, 3))
