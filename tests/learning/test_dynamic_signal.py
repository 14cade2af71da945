"""A dynamic signal: closed forms of its averages, identities between the networks, and what training commutes with."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.utils.estimator_checks import parametrize_with_checks

from hadamard.learning import (
    DSDClassifier,
    PatchThresholdNet,
    bayes_error,
    make_dynamic_signal,
    sample_complexity,
    signal_errors,
    train_patches,
)

K, D = 5, 4


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def images(n=12, k=K, d=D, seed=0):
    return torch.randn(n, k * d, dtype=torch.float64, generator=seeded(seed))


def net(kind, k=K, d=D, threshold=0.3, **options):
    made = PatchThresholdNet(kind, k, d, generator=seeded(1), dtype=torch.float64, **options)
    with torch.no_grad():
        made.threshold.fill_(threshold)
    return made


def block_diagonal(weight):
    """Units that see one patch each, as a fully connected layer."""
    return torch.block_diag(*weight.detach().split(1))


@pytest.mark.bad_input
@parametrize_with_checks(
    [DSDClassifier(random_state=0), DSDClassifier("full", optimizer="gd", random_state=0)],
    expected_failed_checks=lambda estimator: {},
)
def test_scikit_learn_takes_it_for_its_own(estimator, check):
    check(estimator)


# The data


def test_moments_of_the_data():
    X, y, info = make_dynamic_signal(40_000, K, D, noise=0.5, random_state=0)
    assert X.shape == (40_000, K * D)
    assert set(y) == {-1, 1}
    assert np.linalg.norm(info.signal) == pytest.approx(1)
    aligned = (X * y[:, None]).reshape(-1, K, D)
    np.testing.assert_allclose(aligned.mean(0), np.tile(info.signal / K, (K, 1)), atol=0.015)
    noise = aligned - np.eye(K)[info.location][:, :, None] * info.signal
    np.testing.assert_allclose(np.cov(noise.reshape(len(y), -1).T), 0.25 * np.eye(K * D), atol=0.01)
    assert stats.chisquare(np.bincount(info.location)).pvalue > 1e-3
    assert stats.binomtest(int((y > 0).sum()), len(y)).pvalue > 1e-3


def test_options_of_the_data():
    signal = [3.0, 0.0]
    X, y, info = make_dynamic_signal(50, 3, 2, noise=0.0, signal=signal, static=True, random_state=0)
    np.testing.assert_array_equal(X[:, :2], y[:, None] * np.array(signal))
    assert not X[:, 2:].any()
    assert not info.location.any()
    again = make_dynamic_signal(50, 3, 2, noise=0.0, signal=signal, static=True, random_state=0)
    np.testing.assert_array_equal(again[1], y)


@pytest.mark.parametrize(("k", "d", "noise", "n"), [(4, 8, 0.3, 100)])
def test_averages_have_the_mean_and_covariance_that_the_paper_starts_from(k, d, noise, n):
    """The sum over patches is N(w, sigma^2 k / n); a single patch N(w / k, sigma^2 / n + w w^T (1/k - 1/k^2) / n)."""
    w = np.eye(d)[0]
    shared, single = [], []
    for seed in range(1500):
        X, y, _ = make_dynamic_signal(n, k, d, noise=noise, signal=w, random_state=seed)
        average = (X * y[:, None]).reshape(n, k, d).mean(0)
        shared.append(average.sum(0))
        single.append(average[0])
    np.testing.assert_allclose(np.mean(shared, 0), w, atol=0.01)
    np.testing.assert_allclose(np.cov(np.transpose(shared)), noise**2 * k / n * np.eye(d), atol=6e-4)
    np.testing.assert_allclose(np.mean(single, 0), w / k, atol=0.01)
    spread = noise**2 / n * np.eye(d) + np.outer(w, w) * (1 / k - 1 / k**2) / n
    np.testing.assert_allclose(np.cov(np.transpose(single)), spread, atol=3e-4)


@pytest.mark.parametrize("noise", [0.3, 0.7, 2.0])
def test_bayes_error_of_one_patch_is_that_of_two_gaussians(noise):
    assert bayes_error(1, noise, n_draws=400_000, random_state=0) == pytest.approx(stats.norm.sf(1 / noise), abs=2e-3)


def test_bayes_error_against_the_rule_itself():
    k, noise = 6, 0.5
    X, y, info = make_dynamic_signal(60_000, k, 3, noise=noise, random_state=0)
    s = X.reshape(-1, k, 3) @ info.signal / noise**2
    guess = np.logaddexp.reduce(s, 1) > np.logaddexp.reduce(-s, 1)
    assert bayes_error(k, noise, random_state=1) == pytest.approx(np.mean(guess != (y > 0)), abs=4e-3)
    assert bayes_error(k, 0.0) == 0
    assert bayes_error(k, 1e-3, n_draws=100) < 1e-12
    assert bayes_error(k, 0.5, n_draws=50, random_state=3) == bayes_error(k, 0.5, n_draws=50, random_state=3)


# The networks


@pytest.mark.parametrize("kind", ["conv", "local", "full"])
def test_networks_against_loops(kind):
    model, x = net(kind), images()
    w, b = model.weight.detach(), 0.3
    for i in range(len(x)):
        total = 0.0
        for j in range(K):
            patch = x[i, j * D : (j + 1) * D]
            z = float((w if kind == "conv" else w[j]) @ (x[i] if kind == "full" else patch))
            total += math.copysign(max(abs(z) - b, 0), z)
        assert float(model(x)[i].detach()) == pytest.approx(total)


def test_with_one_patch_the_three_are_one():
    x, first = images(k=1), net("conv", k=1)
    for kind in ("local", "full"):
        other = net(kind, k=1)
        other.weight.data.copy_(first.weight.data[None])
        torch.testing.assert_close(other(x), first(x))


def test_each_network_contains_the_one_before():
    x, conv, local, full = images(), net("conv"), net("local"), net("full")
    local.weight.data.copy_(conv.weight.data.expand(K, D))
    torch.testing.assert_close(local(x), conv(x))
    local = net("local")
    full.weight.data.copy_(block_diagonal(local.weight))
    torch.testing.assert_close(full(x), local(x))


def test_the_convolutional_network_does_not_see_the_order_of_patches():
    x, order = images(), torch.randperm(K, generator=seeded(3))
    shuffled = x.unflatten(1, (K, D))[:, order].flatten(1)
    torch.testing.assert_close(net("conv")(shuffled), net("conv")(x))
    assert not torch.allclose(net("local")(shuffled), net("local")(x))
    moved = net("local")
    moved.weight.data.copy_(moved.weight.data[order].clone())
    torch.testing.assert_close(moved(shuffled), net("local")(x))


@pytest.mark.parametrize("kind", ["conv", "local", "full"])
def test_gradients_oddness_and_side_by_side(kind):
    model, x = net(kind), images(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, model.weight, model.threshold))
    torch.testing.assert_close(model(-x), -model(x))
    many = net(kind, nets=3)
    xs = torch.stack([images(seed=s) for s in range(3)])
    for i in range(3):
        one = net(kind)
        one.weight.data.copy_(many.weight.data[i])
        torch.testing.assert_close(many(xs)[i], one(xs[i]))
    other = PatchThresholdNet(kind, K, D, dtype=torch.float64)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x))


# Training


def rotated_training(kind, optimizer):
    """Scores after training on images, and after training on the rotated ones from the rotated start."""
    X, y, _ = make_dynamic_signal(40, K, D, random_state=0)
    x, labels = torch.from_numpy(X), torch.from_numpy(y).double()
    width = K * D if kind == "full" else D
    Q = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=seeded(5))).Q
    turned = x @ Q.T if kind == "full" else (x.unflatten(1, (K, D)) @ Q.T).flatten(1)
    models = net(kind, threshold=0.0), net(kind, threshold=0.0)
    models[1].weight.data.copy_(models[1].weight.data @ Q.T)
    options = {"optimizer": optimizer, "learning_rate": 0.3 if optimizer == "gd" else 0.05, "steps": 60}
    return [train_patches(m, data, labels, **options)(data).detach() for m, data in zip(models, (x, turned))]


@pytest.mark.parametrize("kind", ["conv", "local", "full"])
def test_gradient_descent_commutes_with_rotations_and_adam_does_not(kind):
    plain, turned = rotated_training(kind, "gd")
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-5)
    plain, turned = rotated_training(kind, "adam")
    assert (turned - plain).abs().max() > 1e-2


def test_training_side_by_side_is_training_alone():
    xs = torch.stack([images(20, seed=s) for s in range(2)])
    ys = torch.where(torch.rand(2, 20, generator=seeded(0)) < 0.5, 1.0, -1.0).double()
    for optimizer in ("adam", "gd"):
        many = net("local", threshold=0.0, nets=2)
        start = many.weight.detach().clone()
        train_patches(many, xs, ys, steps=20, optimizer=optimizer)
        for i in range(2):
            one = net("local", threshold=0.0)
            one.weight.data.copy_(start[i])
            train_patches(one, xs[i], ys[i], steps=20, optimizer=optimizer)
            torch.testing.assert_close(one.weight, many.weight[i])
            torch.testing.assert_close(one.threshold, many.threshold[i])


def test_the_first_step_of_descent_is_the_average():
    """At tiny weights the gradient of the logistic loss is minus half the average of y x."""
    X, y, _ = make_dynamic_signal(30, K, D, random_state=0)
    model = net("local", threshold=0.0)
    model.weight.data.mul_(1e-12)
    x, labels = torch.from_numpy(X), torch.from_numpy(y).double()
    train_patches(model, x, labels, steps=1, learning_rate=2.0, optimizer="gd", learn_threshold=False)
    torch.testing.assert_close(model.weight.detach(), (x * labels[:, None]).mean(0).unflatten(0, (K, D)))


def test_the_threshold_is_learned_and_kept():
    X, y, _ = make_dynamic_signal(400, 8, 8, random_state=0)
    x, labels = torch.from_numpy(X), torch.from_numpy(y).double()
    fixed = train_patches(net("conv", 8, 8, threshold=0.0), x, labels, learn_threshold=False)
    learned = train_patches(net("conv", 8, 8, threshold=0.0), x, labels)
    assert float(fixed.threshold) == 0
    assert float(learned.threshold) > 0.3
    assert (learned(x) * labels > 0).sum() > (fixed(x) * labels > 0).sum()


def test_fewer_images_with_more_structure():
    conv, local, full = (np.mean(signal_errors(k, 300, range(4), 8, 8, 0.3)) for k in ("conv", "local", "full"))
    assert conv < 0.7 * local
    assert local < full
    static = np.mean(signal_errors("local", 300, range(4), 8, 8, 0.3, static=True))
    assert static < 0.5 * local  # where the signal does not move, locality is all it takes


def test_the_classifier_is_the_network():
    X, y, _ = make_dynamic_signal(200, 4, 6, random_state=0)
    model = DSDClassifier("conv", n_patches=4, random_state=0).fit(X, np.where(y > 0, "yes", "no"))
    assert model.score(X, np.where(y > 0, "yes", "no")) > 0.9
    assert model.coef_.shape == (6,)
    assert list(model.classes_) == ["no", "yes"]
    again = DSDClassifier("conv", n_patches=4, random_state=0).fit(X, y)
    np.testing.assert_array_equal(again.decision_function(X), model.decision_function(X))
    made = PatchThresholdNet("conv", 4, 6, dtype=torch.float64)
    made.weight.data.copy_(torch.from_numpy(model.coef_))
    made.threshold.data.fill_(model.threshold_)
    np.testing.assert_allclose(made(torch.from_numpy(X)).detach().numpy(), model.decision_function(X))


# The search


@pytest.mark.parametrize("answer", [1, 3, 7, 64, 200, 1000])
def test_the_search_finds_the_smallest_size(answer):
    asked = []

    def errors(n, seeds):
        asked.append(n)
        return [0.0 if n >= answer else 1.0 for _ in seeds]

    sizes = [1, 2, 3, 5, 7, 11, 64, 200, 700, 1000]
    found = sample_complexity(errors, sizes, 0.5)
    assert found.n == answer
    assert list(found.curve) == sorted(set(asked))
    assert len(asked) == len(set(asked)) <= 8


def test_the_search_averages_over_seeds_and_may_fail():
    found = sample_complexity(lambda n, seeds: [s / n for s in seeds], [1, 2, 4, 8], 0.5, seeds=[1, 3])
    assert found.n == 4
    assert found.curve[4] == 0.5
    assert sample_complexity(lambda n, seeds: [1.0], [1, 2, 4], 0.5, seeds=[0]).n == math.inf


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make_dynamic_signal(5, 0, 3), ValueError, "n_patches must be >= 1, got 0"),
        (lambda: make_dynamic_signal(5, 2, 1.5), TypeError, "patch_dim must be an integer"),
        (lambda: make_dynamic_signal(5, 2, 3, noise=-1.0), ValueError, "noise must be >= 0"),
        (lambda: make_dynamic_signal(5, 2, 3, signal=[1.0]), ValueError, "signal must be 3 finite numbers"),
        (lambda: make_dynamic_signal(5, 2, 1, signal=[np.nan]), ValueError, "signal must be 1 finite numbers"),
        (lambda: bayes_error(0, 1.0), ValueError, "n_patches must be >= 1"),
        (lambda: PatchThresholdNet("dense", 2, 3), ValueError, "kind must be one of 'conv', 'local', 'full'"),
        (lambda: net("conv")(torch.zeros(2, 7)), ValueError, r"x must have 20 columns, got shape \(2, 7\)"),
        (lambda: train_patches(net("conv"), images(), images()[:, 0], steps=0), ValueError, "steps must be >= 1"),
        (lambda: train_patches(net("conv"), images() * np.nan, images()[:, 0]), ValueError, "x must be finite"),
        (lambda: DSDClassifier(n_patches=3).fit(np.ones((4, 5)), [0, 1, 0, 1]), ValueError, "multiple of n_patches=3"),
        (lambda: DSDClassifier().fit(np.ones((4, 5)), [0, 0, 0, 0]), ValueError, "got one class only"),
        (lambda: DSDClassifier("dense").fit(np.ones((4, 5)), [0, 1, 0, 1]), ValueError, "kind must be one of"),
        (lambda: sample_complexity(lambda n, s: [0.0], [], 0.1), ValueError, "sizes must increase"),
        (lambda: sample_complexity(lambda n, s: [0.0], [2, 1], 0.1), ValueError, "sizes must increase"),
        (lambda: sample_complexity(lambda n, s: [0.0], [1], 0.1, []), ValueError, "seeds must not be empty"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
