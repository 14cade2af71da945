"""Random features: closed forms, brute force, and bounds that no draw may beat."""

import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from hadamard.layers import (
    BandlimitedRandomFeatures,
    BandlimitedRegressor,
    RandomFeatures,
    bandwidth_lower_bound,
    out_of_band_energy,
    ridgelet_transform,
)
from hadamard.layers._bandlimited import ACTIVATIONS, Ridge, RidgeFit, neighbour_frequency
from hadamard.layers.bandlimited_bounds import _NODE_FACTOR, RIDGELETS, _nodes

LINE = torch.linspace(-1, 1, 401, dtype=torch.float64)
X = LINE.numpy()[:, None]


def sine(frequency, x=LINE):
    return torch.sin(2 * math.pi * frequency * x)


def relative(model, y):
    return float(np.sqrt(np.mean((model.predict(X) - y) ** 2) / np.mean(y**2)))


@pytest.mark.bad_input
@parametrize_with_checks(
    [
        BandlimitedRegressor(20, random_state=0),
        BandlimitedRegressor(20, sampling="ridgelet", activation="tanh", random_state=0),
        BandlimitedRandomFeatures(20, random_state=0),
        BandlimitedRandomFeatures(20, sampling="ridgelet", activation="relu", random_state=0),
    ],
    expected_failed_checks=lambda estimator: {},
)
def test_scikit_learn_takes_them_for_its_own(estimator, check):
    check(estimator)


# The spectrum


@pytest.mark.parametrize(("bandwidth", "share"), [(2 * math.pi * 2.9, 1), (2 * math.pi * 3, 0.2), (2 * math.pi * 8, 0)])
def test_out_of_band_energy_of_sines_is_that_of_the_ones_above(bandwidth, share):
    x = torch.arange(64, dtype=torch.float64) / 64
    f = 2 * sine(3, x) + sine(7, x) + 5  # the constant does not count
    assert out_of_band_energy(f, bandwidth, 1 / 64) == pytest.approx(share, abs=1e-12)


def test_out_of_band_energy_in_two_variables_is_outside_the_box():
    x = torch.arange(32, dtype=torch.float64) / 32
    f = sine(2, x)[:, None] * sine(9, x)
    assert out_of_band_energy(f, 2 * math.pi * 5, 1 / 32) == pytest.approx(1)
    assert out_of_band_energy(f, 2 * math.pi * 5, [1 / 32, 1.0]) == pytest.approx(0, abs=1e-12)
    assert out_of_band_energy(torch.full((4, 4), 3.0), 0.0) == 0


def test_periodic_least_squares_reaches_exactly_the_energy_outside():
    """On one period, cosines and sines of whole frequencies within the band leave what Parseval says."""
    x = torch.arange(64, dtype=torch.float64) / 64
    f = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    phase = 2 * math.pi * x[:, None] * torch.arange(11)
    fit = RidgeFit(torch.cat([phase.cos(), phase.sin()], 1), f, 1e-10)
    left = fit.residuals(torch.zeros(1, dtype=torch.float64)).square().mean() / f.var(correction=0)
    assert out_of_band_energy(f, 2 * math.pi * 10, 1 / 64) == pytest.approx(float(left), rel=1e-10)


def test_ridgelet_transform_against_the_sum():
    g = torch.Generator().manual_seed(0)
    x, a = torch.randn(9, 3, generator=g, dtype=torch.float64), torch.randn(4, 3, generator=g, dtype=torch.float64)
    b, f, w = (torch.randn(n, generator=g, dtype=torch.float64) for n in (5, 9, 9))
    got = ridgelet_transform(f, x, a, b, torch.tanh, w)
    for k in range(4):
        for l in range(5):
            want = sum(w[i] * f[i] * math.tanh(float(a[k] @ x[i] - b[l])) for i in range(9))
            assert float(got[k, l]) == pytest.approx(float(want))


def test_ridgelet_transform_with_cosines_is_the_fourier_transform():
    f = torch.exp(-LINE.square() * 40)
    omega = torch.linspace(-20, 20, 21, dtype=torch.float64)
    got = ridgelet_transform(f, LINE, omega, torch.zeros(1), "cos", 2 / 400)[:, 0]
    torch.testing.assert_close(got, math.sqrt(math.pi / 40) * torch.exp(-omega.square() / 160), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("rho", "activation", "constant"), [("gauss2", "gauss", 2 * math.pi), ("gauss3", "tanh", None)]
)
def test_the_ridgelet_transform_gives_the_function_back(rho, activation, constant):
    """S R f = K f, with K = int sigma^(w) conj rho^(w) / |w| dw; for tanh, sigma^ = -i pi / sinh(pi w / 2)."""
    constant = 2 * math.pi
    if activation == "tanh":
        w = (torch.arange(200_000, dtype=torch.float64) + 0.5) * 1e-4
        rho_hat = math.sqrt(2 * math.pi) * w**3 * torch.exp(-w * w / 2)  # times -i, of (3 - z^2) z exp(-z^2/2)
        constant = float((2 * math.pi / torch.sinh(math.pi * w / 2) * rho_hat / w).sum() * 1e-4)
    x, h = torch.linspace(-6, 6, 241, dtype=torch.float64), 0.15
    f = torch.exp(-x.square() / 2) * (1 + x)
    a, b = (torch.arange(-n, n + 1, dtype=torch.float64) * h for n in (120, 220))
    R = ridgelet_transform(f, x, a, b, rho, weights=0.05)
    for x0 in (-1.0, 0.0, 0.7, 2.0):
        again = float((R * ACTIVATIONS[activation](a[:, None] * x0 - b)).sum()) * h * h / constant
        assert again == pytest.approx(math.exp(-(x0**2) / 2) * (1 + x0), abs=1e-2)


@pytest.mark.parametrize(("name", "order"), [("gauss2", 2), ("gauss3", 3), ("gauss4", 4)])
def test_ridgelets_are_derivatives_of_a_gaussian(name, order):
    z = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    value = torch.exp(-z * z / 2)
    for _ in range(order):
        value = torch.autograd.grad(value.sum(), z, create_graph=True)[0]
    sign = torch.sign((value * RIDGELETS[name](z)).sum())
    torch.testing.assert_close(RIDGELETS[name](z), sign * value)


# The bound


@pytest.mark.parametrize("activation", ["cos", "sin"])
@pytest.mark.parametrize("m", [3, 60, 300])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_draw_of_any_width_beats_the_bound(activation, m, seed):
    g = torch.Generator().manual_seed(seed)
    bandwidth = 2 * math.pi * 4
    y = sine(8)
    features = Ridge(
        bandwidth * (2 * torch.rand(m, 1, generator=g).double() - 1), 9 * torch.rand(m).double(), activation
    )
    fit = RidgeFit(features(LINE[:, None]), y, 1e-13)
    for alpha in (1e-18, 1e-8, 1.0):
        coef, intercept = fit.coefficients(alpha)
        error = (features(LINE[:, None]) @ coef + intercept - y).square().mean().sqrt()
        found = bandwidth_lower_bound(LINE, y, bandwidth, coefficient_sum=float(coef.abs().sum()), probes=200)
        assert found.verified
        assert found.bound <= float(error)
        assert found.bound > 0.6 or alpha < 1e-9  # huge output weights imitate anything


def test_the_bound_lies_close_below_what_is_reached():
    for factor in (0.25, 0.5):
        found = bandwidth_lower_bound(LINE, sine(8), 2 * math.pi * 8 * factor, coefficient_sum=100.0)
        assert 0.95 * found.value <= found.bound <= found.value
    wide = bandwidth_lower_bound(LINE, sine(8), 2 * math.pi * 9)
    assert wide.bound < 1e-3
    assert wide.value < 1e-3


def test_the_bound_falls_with_the_band_and_with_the_coefficients():
    bounds = [bandwidth_lower_bound(LINE, sine(8), b).bound for b in (10, 20, 30, 45)]
    assert sorted(bounds, reverse=True) == bounds
    bounds = [bandwidth_lower_bound(LINE, sine(8), 40, coefficient_sum=B).bound for B in (0, 1, 100, 1e4)]
    assert sorted(bounds, reverse=True) == bounds
    assert bounds[0] == pytest.approx(float(sine(8).std(correction=0)))


def test_the_bound_in_two_variables_and_for_tanh_is_an_estimate_that_holds():
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(300, 2, generator=g, dtype=torch.float64) - 1
    y = torch.sin(12 * x[:, 0] + 9 * x[:, 1])
    for activation in ("cos", "tanh"):
        found = bandwidth_lower_bound(x, y, 2.0, activation=activation, coefficient_sum=50.0)
        assert not found.verified
        assert "random features" in found.reason
        assert 0.5 * found.value < found.bound <= found.value


@pytest.mark.parametrize("phase", [0.5, 30.0, 200.0])
def test_the_nodes_see_the_largest_product(phase):
    """Against a grid that is a hundred times finer, for vectors that make it hard: large at the ends only."""
    g = torch.Generator().manual_seed(0)
    t = torch.linspace(-phase, phase, 257, dtype=torch.float64)
    fine = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None] * t
    v = torch.randn(257, 6, generator=g, dtype=torch.float64)
    v[:, 3:] *= (t / phase)[:, None] ** 8
    top = (fine.cos() @ v).abs().amax(0)
    nodes = _nodes(phase)[:, None] * t
    assert ((nodes.cos() @ v).abs().amax(0) / _NODE_FACTOR >= top).all()


# The linear fit


def problem(n=30, m=12):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, m, generator=g, dtype=torch.float64), torch.randn(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("alpha", [1e-8, 0.3, 10.0])
@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_the_fit_is_that_of_scikit_learn(alpha, shape):
    H, y = problem(*shape)
    coef, intercept = RidgeFit(H, y, 0.0).coefficients(alpha)
    peer = SklearnRidge(alpha=alpha, solver="svd").fit(H.numpy(), y.numpy())
    np.testing.assert_allclose(coef.numpy(), peer.coef_, atol=1e-7)
    assert float(intercept) == pytest.approx(peer.intercept_)


def test_without_a_penalty_it_is_least_squares():
    H, y = problem()
    coef, intercept = RidgeFit(H, y, 0.0).coefficients(0.0)
    want = np.linalg.lstsq(np.c_[H.numpy(), np.ones(30)], y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(np.r_[coef.numpy(), float(intercept)], want)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_leave_one_out_is_that_of_thirty_fits(alpha):
    H, y = problem()
    score = float(RidgeFit(H, y, 0.0).scores(torch.tensor([alpha], dtype=torch.float64), "loo"))
    left_out = cross_val_predict(SklearnRidge(alpha=alpha, solver="svd"), H.numpy(), y.numpy(), cv=LeaveOneOut())
    assert score == pytest.approx(np.mean((left_out - y.numpy()) ** 2))


def test_generalised_cross_validation_has_the_average_leverage():
    """And so equals leave-one-out where all leverages are the same: all cosines and sines of a period."""
    phase = 2 * math.pi * torch.arange(40, dtype=torch.float64)[:, None] / 40 * torch.arange(1, 6)
    H, y = torch.cat([phase.cos(), phase.sin()], 1), problem(40)[1]
    alphas = torch.tensor([0.0, 1.0, 100.0], dtype=torch.float64)
    fit = RidgeFit(H, y, 0.0)
    torch.testing.assert_close(fit.scores(alphas, "gcv"), fit.scores(alphas, "loo"))


def test_rank_counts_directions():
    H, y = problem()
    assert RidgeFit(torch.cat([H, H], 1), y, 1e-8).rank == 12
    assert RidgeFit(torch.ones(5, 3, dtype=torch.float64), y[:5], 1e-8).rank == 0


def test_neighbours_show_the_frequency():
    assert neighbour_frequency(LINE[:, None], sine(6)) == pytest.approx(2 * math.pi * 6, rel=0.02)
    points = 2 * torch.rand(1500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    assert neighbour_frequency(points, torch.sin(4 * points.sum(1))) == pytest.approx(4, rel=0.1)
    assert neighbour_frequency(LINE[:, None], torch.full_like(LINE, 0.1)) == 0


# The estimators


@pytest.mark.parametrize(("activation", "frequency"), [("cos", 2), ("cos", 8), ("cos", 20), ("tanh", 2), ("tanh", 8)])
def test_the_band_is_found(activation, frequency):
    y = sine(frequency).numpy()
    auto = BandlimitedRegressor(200, activation=activation, standardize=False, random_state=0).fit(X, y)
    unit = BandlimitedRegressor(200, bandwidth=1, activation="cos", standardize=False, random_state=0).fit(X, y)
    assert relative(auto, y) < 0.02
    assert relative(unit, y) > 0.5


def test_it_says_what_limits_the_fit():
    y = sine(16).numpy()
    rate = 2 * math.pi * 16

    def fit(m, factor, **options):
        return BandlimitedRegressor(m, bandwidth=rate * factor, standardize=False, random_state=0, **options).fit(X, y)

    narrow, wide, right = fit(100, 0.25), fit(100, 5), fit(100, 1.5)
    assert [m.diagnosis_ for m in (narrow, wide, right)] == ["bandwidth-limited", "width-limited", "resolved"]
    assert narrow.out_of_band_energy_ > 0.9
    assert narrow.lower_bound_ <= np.sqrt(np.mean((narrow.predict(X) - y) ** 2))
    assert wide.out_of_band_energy_ == right.out_of_band_energy_ == 0
    noisy = sine(4).numpy() + np.random.default_rng(0).normal(size=len(y))
    model = BandlimitedRegressor(100, bandwidth=1.5 * rate / 4, standardize=False, random_state=0).fit(X, noisy)
    assert model.diagnosis_ == "resolved"


@pytest.mark.parametrize("activation", ["cos", "tanh", "gauss", "relu"])
def test_ridgelet_sampling_mends_too_wide_a_band(activation):
    y = sine(6).numpy()
    options = {"bandwidth": 2 * math.pi * 6 * 8, "activation": activation, "standardize": False, "random_state": 0}
    uniform, ridgelet = (BandlimitedRegressor(100, sampling=s, **options).fit(X, y) for s in ("uniform", "ridgelet"))
    assert relative(ridgelet, y) < 0.6 * relative(uniform, y)
    assert np.abs(ridgelet.weights_).max() <= options["bandwidth"]


def test_draws_follow_the_ridgelet_transform():
    """Of a sine, cosines near its frequency are drawn, within what the length of the interval resolves."""
    model = BandlimitedRegressor(50, bandwidth=400, sampling="ridgelet", standardize=False, random_state=0)
    near = np.abs(np.abs(model.fit(X, sine(16).numpy()).weights_) - 2 * math.pi * 16) < 10
    assert near.mean() > 0.5  # 10 of 400 in a uniform draw


def test_seeds_scale_and_width_one():
    y = sine(3).numpy()
    first, again, other = (BandlimitedRegressor(30, random_state=s).fit(X, y) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.predict(X), again.predict(X))
    assert not np.array_equal(first.weights_, other.weights_)
    scaled = BandlimitedRegressor(30, random_state=0).fit(1000 * X + 7, y)
    np.testing.assert_allclose(scaled.predict(1000 * X + 7), first.predict(X), atol=1e-6)
    assert BandlimitedRegressor(1, random_state=0).fit(X, y).coef_.shape == (1,)


def test_few_samples_many_features_duplicates_constants():
    y = sine(3).numpy()
    assert relative(BandlimitedRegressor(500, random_state=0).fit(X[::10], y[::10]), y) < 0.2  # m > n
    doubled = BandlimitedRegressor(50, random_state=0).fit(np.r_[X, X], np.r_[y, y])
    assert relative(doubled, y) < 1e-3
    constant = BandlimitedRegressor(random_state=0).fit(X, np.full(len(X), 0.1))
    assert constant.bandwidth_ == constant.out_of_band_energy_ == 0
    np.testing.assert_allclose(constant.predict(X), 0.1)
    assert BandlimitedRegressor(random_state=0).fit(X[:1], y[:1]).predict(X[:1]) == pytest.approx(y[:1])
    many = np.linspace(-1, 1, 2600)[:, None]  # more than are used for the choice
    assert (
        BandlimitedRegressor(60, random_state=0).fit(many, np.sin(9 * many[:, 0])).score(many, np.sin(9 * many[:, 0]))
        > 0.999
    )


def test_rules_and_penalties():
    noisy = sine(3).numpy() + 0.3 * np.random.default_rng(0).normal(size=len(X))
    errors = {a: BandlimitedRegressor(100, alpha=a, random_state=0).fit(X, noisy) for a in ("gcv", "loo", 1e3)}
    assert relative(errors["gcv"], sine(3).numpy()) < 0.2
    assert relative(errors["loo"], sine(3).numpy()) < 0.2
    assert errors[1e3].alpha_ == 1e3
    assert clone(errors["loo"]).alpha == "loo"


def test_the_transformer_in_a_pipeline_is_the_regressor():
    y = sine(8).numpy()
    options = {"bandwidth": 80.0, "random_state": 0}
    pipe = make_pipeline(BandlimitedRandomFeatures(100, **options), SklearnRidge(1e-3, solver="svd")).fit(X, y)
    whole = BandlimitedRegressor(100, alpha=1e-3, rcond=0.0, **options).fit(X, y)
    np.testing.assert_allclose(pipe.predict(X), whole.predict(X), atol=1e-8)
    assert BandlimitedRandomFeatures(10, random_state=0).fit(X, y).bandwidth_ > 20
    assert BandlimitedRandomFeatures(10, random_state=0).fit(X).bandwidth_ == math.sqrt(6)
    names = BandlimitedRandomFeatures(3).fit(X).get_feature_names_out()
    assert list(names) == [f"bandlimitedrandomfeatures{i}" for i in range(3)]


# The layer


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_layer_against_loops_and_its_gradient(activation):
    layer = RandomFeatures(3, 5, 2.0, activation, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    got = layer(x)
    for i in range(4):
        for j in range(5):
            z = sum(layer.weight[j, k] * x[i, k] for k in range(3)) + layer.bias[j]
            torch.testing.assert_close(got[i, j], ACTIVATIONS[activation](z))
    assert torch.autograd.gradcheck(layer, (x,))
    assert layer.weight.abs().max() <= 2
    assert layer.bias.abs().max() <= layer.bias_range == (math.pi if activation in ("cos", "sin") else 2 * math.sqrt(3))


def test_the_layer_is_a_module():
    layer = RandomFeatures(3, 5, generator=torch.Generator().manual_seed(0))
    other = RandomFeatures(3, 5, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 7, 3)
    assert layer(x).shape == (2, 7, 5)
    assert list(layer.parameters()) == []
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    state = torch.get_rng_state()
    RandomFeatures(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.to(torch.float16).weight.dtype == torch.float16
    assert "bandwidth=1" in repr(layer)


@pytest.mark.bad_input  # annotations are checked by code that dynamo does not trace
def test_the_layer_compiles():
    layer = RandomFeatures(3, 5, 4.0, "tanh")
    x = torch.randn(6, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


# Bad input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_components": 0}, ValueError, "n_components must be >= 1, got 0"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth must be > 0, got 0.0"),
        ({"bandwidth": "wide"}, ValueError, "bandwidth must be one of 'auto', got 'wide'"),
        ({"bandwidth": float("nan")}, ValueError, "bandwidth must be > 0, got nan"),
        ({"activation": "swish"}, ValueError, "activation must be one of 'cos'"),
        ({"bias_range": -1.0}, ValueError, "bias_range must be >= 0"),
        ({"alpha": -1.0}, ValueError, "alpha must be >= 0"),
        ({"alpha": "aic"}, ValueError, "alpha must be one of 'gcv', 'loo'"),
        ({"sampling": "fourier"}, ValueError, "sampling must be one of 'uniform', 'ridgelet'"),
        ({"rcond": 1.0}, ValueError, "rcond must be >= 0 and < 1"),
    ],
)
def test_bad_parameters(change, error, message):
    with pytest.raises(error, match=message):
        BandlimitedRegressor(**change).fit(X, X[:, 0])


@pytest.mark.bad_input
def test_bad_data():
    with pytest.raises(ValueError, match="NaN"):
        BandlimitedRegressor().fit(np.full((3, 1), np.nan), np.ones(3))
    with pytest.raises(ValueError, match="requires y to be passed"):
        BandlimitedRandomFeatures(sampling="ridgelet").fit(X)
    with pytest.raises(ValueError, match="bandwidth must be > 0"):
        RandomFeatures(2, 3, bandwidth=0)
    with pytest.raises(ValueError, match="x and y must have as many points, got 401 and 3"):
        bandwidth_lower_bound(LINE, LINE[:3], 1.0)
    with pytest.raises(ValueError, match="coefficient_sum must be >= 0"):
        bandwidth_lower_bound(LINE, LINE, 1.0, coefficient_sum=-1.0)
    with pytest.raises(ValueError, match="bandwidth must be >= 0"):
        out_of_band_energy(LINE, -1.0)
    with pytest.raises(ValueError, match="spacing must have one entry for each of the 1 axes"):
        out_of_band_energy(LINE, 1.0, [1.0, 2.0])
    with pytest.raises(ValueError, match="rho must be one of"):
        ridgelet_transform(LINE, LINE, LINE, LINE, "morlet")
    with pytest.raises(ValueError, match="a and x must have as many columns, got 2 and 1"):
        ridgelet_transform(LINE, LINE, torch.ones(4, 2), LINE)
    with pytest.raises(ValueError, match="values must be finite"):
        ridgelet_transform(LINE * float("nan"), LINE, LINE, LINE)
