"""The estimator of transport maps: a known map, scikit-learn's conventions, resuming, bad input."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from hadamard.transport import Euclidean, MongeMapEstimator

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(120, 2)), RNG.normal(size=(100, 2)) @ np.diag([2.0, 0.5]) + [3, -1]


class OntoItself(MongeMapEstimator):
    """The target is a part of the source: what is left are the conventions of an estimator."""

    def fit(self, X, y=None):
        return super().fit(X, X)


@pytest.mark.bad_input
@parametrize_with_checks([OntoItself(steps=2, batch_size=16, random_state=0)])
def test_sklearn_conventions(estimator, check):
    check(estimator)


def test_finds_the_map_between_gaussians():
    model = MongeMapEstimator(steps=150, batch_size=100, random_state=0).fit(X, Y)
    new = np.random.default_rng(1).normal(size=(500, 2))
    error = model.transform(new) - (new @ np.diag([2.0, 0.5]) + [3, -1])
    assert (error**2).sum(1).mean() < 0.1 * Y.var(0).sum()
    assert model.loss_curve_[-20:].mean() < 0.5 * model.loss_curve_[0]  # the entropy's part stays


def test_the_gap_keeps_a_map_from_wandering():
    """A network that starts as a rotation fits either way; only the gap turns it back."""
    turn = nn.Linear(2, 2)
    with torch.no_grad():
        turn.weight.copy_(torch.tensor([[-1.0, 0.2], [-0.2, -1.0]]))
    Z = RNG.normal(size=(100, 2))
    moved = {
        weight: np.square(
            MongeMapEstimator(turn, weight=weight, steps=120, batch_size=100, learning_rate=0.05, random_state=0)
            .fit(X, Z)
            .transform(X)
            - X
        ).mean()
        for weight in (0.0, 3.0)
    }
    assert moved[3.0] < 0.1 * moved[0.0]


def test_same_seed_same_map():
    one, two = (MongeMapEstimator(steps=3, batch_size=32, random_state=1).fit(X, Y).transform(X) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    other = MongeMapEstimator(steps=3, batch_size=32, random_state=2).fit(X, Y).transform(X)
    assert not np.array_equal(one, other)


def test_users_network_is_copied_and_types_are_kept():
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    model = MongeMapEstimator(network, cost=Euclidean(), steps=2).fit(X.astype(np.float32), Y)
    assert model.transform(X.astype(np.float32)).dtype == np.float32
    torch.testing.assert_close(network.weight, before)
    assert clone(model).get_params()["cost"] == Euclidean()


def test_in_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), MongeMapEstimator(steps=2, random_state=0))
    assert pipeline.fit(X, Y).transform(X).shape == X.shape
    assert list(pipeline.get_feature_names_out(["u", "v"])) == ["u", "v"]


def test_goes_on_from_a_saved_state(tmp_path):
    whole = MongeMapEstimator(steps=6, batch_size=32, random_state=0).fit(X, Y)
    state = tmp_path / "training.pt"
    model = MongeMapEstimator(steps=6, batch_size=32, random_state=0, state=state).fit(X, Y)
    np.testing.assert_array_equal(whole.transform(X), model.transform(X))
    again = MongeMapEstimator(steps=6, batch_size=32, random_state=0, state=state).fit(X, Y)
    np.testing.assert_array_equal(again.loss_curve_, whole.loss_curve_)
    np.testing.assert_array_equal(again.transform(X), whole.transform(X))


class Blowing(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float("inf")))

    def forward(self, x):
        return self.scale * x


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "arrays", "error", "message"),
    [
        ({}, (X, Y[:, :1]), ValueError, "X and Y must have as many features, got 2 and 1"),
        ({}, (X, np.full((5, 2), np.nan)), ValueError, "Input Y contains NaN"),
        ({}, (X[:0], Y), ValueError, "0 sample"),
        ({}, (X, Y[:1]), ValueError, "minimum of 2 is required"),
        ({"weight": -1.0}, (X, Y), ValueError, "weight must be >= 0"),
        ({"batch_size": 1}, (X, Y), ValueError, "batch_size must be >= 2"),
        ({"learning_rate": 0.0}, (X, Y), ValueError, "learning_rate must be > 0"),
        ({"steps": 0}, (X, Y), ValueError, "steps must be >= 1"),
        ({"fit_reg": 0.0}, (X, Y), ValueError, "relative_reg must be > 0"),
        ({"map": nn.Linear(2, 3)}, (X, Y), ValueError, r"map must keep the shape \(120, 2\), got \(120, 3\)"),
        ({"map": Blowing()}, (X, Y), FloatingPointError, "the map's values are not finite at step 0"),
    ],
)
def test_bad_input(change, arrays, error, message):
    with pytest.raises(error, match=message):
        MongeMapEstimator(**{"steps": 2, **change}).fit(*arrays)
