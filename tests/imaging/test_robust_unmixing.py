import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.base import clone
from sklearn.decomposition import NMF
from sklearn.utils.estimator_checks import check_estimator

from hadamard.claims.imaging.robust_unmixing_problem import match_columns
from hadamard.data import available, leaves_and_soils, mixed_scene, smooth_spectra
from hadamard.imaging import RobustUnmixing, fcls, noisy_bands, spa, unmix_cube, vca
from hadamard.imaging._abundances import Penalty, descend, exponents, hoyer, multiply, refit, residuals

SHORT = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
K, L = 3, 40


def scene(bad=0.0, seed=0, size=16, snr=30.0, bands=L):
    return mixed_scene(smooth_spectra(K, bands, random_state=1), size, bad=bad, snr=snr, random_state=seed)


def pixels(s):
    return s.cube.reshape(-1, s.cube.shape[-1])


def exact(seed=0, n=300):
    """Mixtures without noise, the pure pixels first."""
    rng = np.random.default_rng(seed)
    M = smooth_spectra(K, L, random_state=2)
    A = np.vstack([np.eye(K), rng.dirichlet(np.ones(K), n - K)])
    return A @ M, M, A


def rmse(model, s):
    shares = model.transform(pixels(s))
    order, _ = match_columns(model.endmembers_.T, s.endmembers.T)
    return float(np.sqrt(np.square(shares[:, order] - s.abundances.reshape(-1, K)).mean()))


# closed forms and brute force


@pytest.mark.parametrize("sparsity", ["none", "adaptive"])
def test_exact_mixtures_come_back(sparsity):
    X, M, A = exact()
    model = RobustUnmixing(K, sparsity=sparsity).fit(X)
    order, angles = match_columns(model.endmembers_.T, M.T)
    assert np.linalg.norm(X - model.inverse_transform(model.transform(X))) < 1e-3 * np.linalg.norm(X)
    assert angles.max() < 1e-3
    np.testing.assert_allclose(model.transform(X)[:, order], A, atol=1e-3)


def test_fully_constrained_least_squares_against_brute_force():
    """Over all supports: a least-squares problem with one equality each, the best that is feasible."""
    rng = np.random.default_rng(0)
    M, X, w = rng.random((4, 7)), rng.random((20, 7)), rng.random(7)
    best = np.zeros((20, 4))
    for n, x in enumerate(X):
        lowest = np.inf
        for mask in range(1, 16):
            rows = [k for k in range(4) if mask >> k & 1]
            m = M[rows]
            kkt = np.block([[2 * (m * w) @ m.T, np.ones((len(rows), 1))], [np.ones((1, len(rows))), np.zeros((1, 1))]])
            a = np.linalg.lstsq(kkt, np.append(2 * (m * w) @ x, 1), rcond=None)[0][:-1]
            value = (w * (x - a @ m) ** 2).sum()
            if a.min() >= 0 and value < lowest:
                lowest, best[n] = value, 0
                best[n, rows] = a
    found = fcls(torch.from_numpy(X), torch.from_numpy(M), weights=torch.from_numpy(w), tol=1e-12)
    np.testing.assert_allclose(found.numpy(), best, atol=1e-8)


def test_descent_without_exchange_is_nonnegative_least_squares():
    rng = np.random.default_rng(1)
    M, X = rng.random((4, 9)), rng.standard_normal((10, 9))
    H, B = torch.from_numpy(M @ M.T), torch.from_numpy(M @ X.T)
    found = descend(torch.zeros(4, 10, dtype=torch.float64), H, B, 0.0, 2000, exchange=False)
    np.testing.assert_allclose(found.mT.numpy(), [nnls(M.T, x)[0] for x in X], atol=1e-8)


def test_sparseness_of_one_entry_of_equal_entries_and_of_two():
    A = torch.tensor([[1.0, 0.25, 0.5], [0.0, 0.25, 0.5], [0.0, 0.25, 0.0], [0.0, 0.25, 0.0]])
    torch.testing.assert_close(hoyer(A), torch.tensor([1.0, 0.0, 2 - 2**0.5]))
    assert hoyer(torch.ones(1, 5)).eq(1).all()


def test_bands_residuals_from_matrix_products_are_those_of_the_residual(generator):
    X, A, M = (torch.rand(*s, generator=generator, dtype=torch.float64) for s in ((50, 9), (3, 50), (3, 9)))
    direct = (X - A.mT @ M).norm(dim=0)
    torch.testing.assert_close(residuals(X, A, M, X.square().sum(0), A @ X, A @ A.mT), direct)
    single = [t.float() for t in (X, A, M, X.square().sum(0), A @ X, A @ A.mT)]
    torch.testing.assert_close(residuals(*single), direct.float())


def test_weights_of_the_bands_cancel_in_the_endmembers_step(generator):
    """Each band's weight stands in numerator and denominator: explicit weights give the same spectra."""
    X, A, M, u = (torch.rand(*s, generator=generator, dtype=torch.float64) for s in ((50, 9), (3, 50), (3, 9), (9,)))
    plain = multiply(M, A @ A.mT, A @ X, 0.0)
    weighted = M * ((A @ X) * u) / ((A @ A.mT @ M) * u)
    torch.testing.assert_close(plain, weighted, rtol=1e-9, atol=0)
    lower = lambda m: (u * (X - A.mT @ m).square().sum(0)).sum()  # noqa: E731
    assert lower(refit(M, A @ X, A @ A.mT)) < lower(plain) < lower(M)


def test_the_penalty_touches_its_tangent_from_below(generator):
    A, around = torch.rand(2, 4, 20, generator=generator, dtype=torch.float64)
    penalty = Penalty(0.7, torch.linspace(0.2, 1, 20, dtype=torch.float64))
    tangent = penalty.value(around) + float((penalty.slope(around) * (A - around)).sum())
    assert penalty.value(A) <= tangent
    leaf = around.clone().requires_grad_()
    (0.7 * (leaf + 1e-3) ** penalty.exponents).sum().backward()
    torch.testing.assert_close(leaf.grad, penalty.slope(around))


# the algorithm


@SHORT
@pytest.mark.parametrize("loss", ["l21", "frobenius"])
@pytest.mark.parametrize(
    ("abundance", "sparsity"),
    [("simplex", "none"), ("simplex", "l1/2"), ("asc", "none"), ("asc", "l1"), ("asc", "l1/2"), ("nonneg", "none")],
)
def test_no_step_goes_up_while_the_guidance_is_fixed(loss, abundance, sparsity):
    model = RobustUnmixing(K, loss=loss, abundance=abundance, sparsity=sparsity, max_iter=60, tol=0.0)
    history = model.fit(pixels(scene(0.1))).objective_history_
    assert history[-1] < 0.999 * history[0]
    assert (np.diff(history) <= 1e-9 * history[:-1]).all()


@SHORT
def test_without_penalty_and_sum_it_is_multiplicative_nmf():
    X, *_ = exact()
    rng = np.random.default_rng(0)
    start = rng.random((K, L)) + 0.1
    ours = RobustUnmixing(
        K, loss="frobenius", sparsity="none", abundance="nonneg", init=start, max_iter=30, tol=0.0
    ).fit(X)
    A = fcls(torch.from_numpy(X), torch.from_numpy(start)).numpy().clip(1e-3)
    peer = NMF(K, init="custom", solver="mu", max_iter=30, tol=0)
    peer.fit_transform(X.T, W=start.T.copy(), H=A.T.copy())  # scikit-learn moves W first: there the spectra
    assert np.abs(ours.endmembers_ - start).max() > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spectra = NMF(K, init="custom", solver="mu", max_iter=30, tol=0).fit_transform(
            X.T, W=start.T.copy(), H=A.T.copy()
        )
    np.testing.assert_allclose(ours.endmembers_, spectra.T, rtol=1e-6, atol=1e-6)


@SHORT
def test_half_norm_nmf_against_a_plain_implementation():
    """Qian et al. (2011): multiplicative updates, a row for the sums, the penalty's slope in the denominator."""
    X = pixels(scene())
    start = X[:: len(X) // K][:K]
    model = RobustUnmixing(
        K, loss="frobenius", sparsity="l1/2", abundance="asc", reg=0.5, init=start, max_iter=25, tol=0.0
    ).fit(X)
    broken = noisy_bands(torch.from_numpy(X))
    A = fcls(torch.from_numpy(X), torch.from_numpy(start), weights=(~broken).double()).numpy().clip(1e-3)
    M = start.clip(1e-3 * start.mean())
    delta = np.sqrt(2 * 15 * 0.5 * (M**2).sum() / K)
    for _ in range(25):
        M = M * (A.T @ X) / (A.T @ A @ M)
        wide, tall = np.hstack([X, np.full((len(X), 1), delta)]), np.hstack([M, np.full((K, 1), delta)])
        A = (A * (wide @ tall.T) / (A @ (tall @ tall.T) + 0.5 * 0.5 / np.sqrt(A + 1e-3))).clip(1e-10)
    np.testing.assert_allclose(model.endmembers_, M, rtol=1e-9)


@SHORT
def test_a_band_of_noise_leaves_the_shares_as_they_are_without_it():
    s = scene(bands=60)
    X = pixels(s)
    loud = X.copy()
    loud[:, 7] = np.random.default_rng(0).random(len(X))
    options = {"max_iter": 100, "tol": 0.0}
    with_it, without = RobustUnmixing(K, **options).fit(loud), RobustUnmixing(K, **options).fit(np.delete(X, 7, 1))
    np.testing.assert_allclose(with_it.transform(loud), without.transform(np.delete(X, 7, 1)), atol=1e-2)
    assert with_it.bad_bands_.tolist() == [band == 7 for band in range(60)]
    squared = RobustUnmixing(K, loss="frobenius", **options).fit(loud)
    assert np.abs(squared.transform(loud) - with_it.transform(loud)).max() > 1e-2


@SHORT
def test_broken_bands_spoil_the_squared_loss_only():
    s = scene(0.1, size=24)
    fits = {loss: RobustUnmixing(K, loss=loss, max_iter=200).fit(pixels(s)) for loss in ("l21", "frobenius")}
    assert rmse(fits["l21"], s) < 0.04
    assert rmse(fits["l21"], s) < 0.5 * rmse(fits["frobenius"], s)
    assert (fits["l21"].bad_bands_ == s.bad_bands).all()


@SHORT
@pytest.mark.parametrize(("abundance", "off"), [("simplex", 1e-12), ("asc", 1e-2)])
def test_shares_sum_to_one(abundance, off):
    shares = RobustUnmixing(K, abundance=abundance, max_iter=50).fit_transform(pixels(scene()))
    assert shares.min() >= 0
    assert np.abs(shares.sum(1) - 1).max() < off


@SHORT
def test_shares_under_a_soft_sum_are_near_those_on_the_simplex():
    X = pixels(scene())
    model = RobustUnmixing(K, abundance="asc", sparsity="none", max_iter=50).fit(X)
    weights = torch.from_numpy(model.channel_weights_)
    strict = fcls(torch.from_numpy(X), torch.from_numpy(model.endmembers_), weights=weights)
    np.testing.assert_allclose(model.transform(X), strict.numpy(), atol=3e-2)


@SHORT
def test_the_guidance_is_the_purity_and_bounds_the_exponent():
    s = scene(size=24)
    model = RobustUnmixing(K, max_iter=100, h_max=0.7).fit(pixels(s))
    true = hoyer(torch.from_numpy(s.abundances.reshape(-1, K)).mT).numpy()
    assert np.corrcoef(model.guidance_, true.clip(max=0.7))[0, 1] > 0.9
    assert 0 <= model.guidance_.min() <= model.guidance_.max() == pytest.approx(0.7)


@SHORT
def test_scale_and_order_of_pixels_do_not_matter():
    X = pixels(scene(0.05))
    fit = lambda x: RobustUnmixing(K, max_iter=50, tol=0.0).fit(x)  # noqa: E731
    plain, scaled = fit(X), fit(1000 * X)
    np.testing.assert_allclose(scaled.endmembers_, 1000 * plain.endmembers_, rtol=1e-6)
    np.testing.assert_allclose(scaled.transform(1000 * X), plain.transform(X), atol=1e-6)
    order = np.random.default_rng(0).permutation(len(X))
    moved = fit(X[order])
    np.testing.assert_allclose(moved.transform(X), plain.transform(X), atol=1e-6)
    np.testing.assert_allclose(moved.guidance_, plain.guidance_[order], atol=1e-6)


@SHORT
def test_float32_follows_float64():
    X = pixels(scene(0.05))
    double, single = (RobustUnmixing(K, max_iter=30).fit(x) for x in (X, X.astype(np.float32)))
    assert single.endmembers_.dtype == single.transform(X.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(single.endmembers_, double.endmembers_, atol=5e-3)


def test_one_endmember_and_constant_pixels():
    X = np.ones((30, 5)) * np.linspace(1, 2, 5)
    model = RobustUnmixing(1).fit(X)
    np.testing.assert_allclose(model.endmembers_[0], X[0], rtol=1e-9)
    assert (model.transform(X) == 1).all()
    two = RobustUnmixing(2).fit(X)
    np.testing.assert_allclose(two.inverse_transform(two.transform(X)), X, rtol=1e-6)


@SHORT
def test_a_dead_band_and_a_black_pixel():
    X = pixels(scene()).copy()
    X[:, 3], X[5] = 0, 0
    model = RobustUnmixing(K, max_iter=30).fit(X)
    assert np.isfinite(model.transform(X)).all()
    assert model.endmembers_[:, 3].max() < 1e-12


# where to start


@pytest.mark.parametrize("find", [spa, vca])
def test_pure_pixels_are_found(find):
    X, *_ = exact()
    assert sorted(find(torch.from_numpy(X), K).tolist()) == [0, 1, 2]
    assert sorted(find(torch.from_numpy(X).float(), K).tolist()) == [0, 1, 2]


@SHORT
@pytest.mark.parametrize("init", ["spa", "vca", "random"])
def test_the_start_is_reproducible(init):
    X = pixels(scene(0.1))
    one, two = (RobustUnmixing(K, init=init, max_iter=20, random_state=3).fit(X) for _ in range(2))
    assert np.array_equal(one.endmembers_, two.endmembers_)


@pytest.mark.parametrize("bad", [0.0, 0.05, 0.2])
def test_noisy_bands_are_found(bad):
    s = scene(bad, size=24, bands=60)
    assert noisy_bands(torch.from_numpy(pixels(s))).tolist() == s.bad_bands.tolist()


# the shapes that it comes in


def test_columns_are_matched(generator):
    truth = torch.rand(9, 4, generator=generator).numpy()
    order, angles = match_columns(3 * truth[:, [2, 0, 3, 1]], truth)
    assert order.tolist() == [1, 3, 0, 2]
    assert angles.max() < 1e-3


@SHORT
def test_a_cube_has_maps():
    s = scene(0.1)
    result = unmix_cube(s.cube, K, max_iter=20)
    model = RobustUnmixing(K, max_iter=20).fit(pixels(s))
    assert np.array_equal(result.abundances, model.transform(pixels(s)).reshape(16, 16, K))
    assert np.array_equal(result.guidance.ravel(), model.guidance_)
    assert not result.converged
    assert result.message


@pytest.mark.filterwarnings("ignore")
@pytest.mark.bad_input
@pytest.mark.parametrize("abundance", ["simplex", "asc"])
def test_scikit_learn_accepts_the_estimator(abundance):
    estimator = RobustUnmixing(2, abundance=abundance, max_iter=50, random_state=0)
    results = check_estimator(estimator, expected_failed_checks={}, on_skip=None)
    assert {r["status"] for r in results} <= {"passed", "skipped"}
    assert clone(estimator).abundance == abundance


@SHORT
@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_endmembers": 41}, r"n_endmembers must be >= 1 and <= min\(n_samples, n_features\), got n_endmembers=41"),
        ({"n_endmembers": 0}, "n_endmembers must be >= 1"),
        ({"loss": "l2"}, "loss must be one of 'l21', 'frobenius', got 'l2'"),
        ({"sparsity": "l0"}, "sparsity must be one of"),
        ({"abundance": "free"}, "abundance must be one of"),
        ({"init": "kmeans"}, "init must be one of 'spa', 'vca', 'random'"),
        ({"init": np.ones((2, L))}, r"init must have shape \(3, 40\), got \(2, 40\)"),
        ({"init": -np.ones((3, L))}, "init must be >= 0, got -1.0"),
        ({"reg": -1.0}, "reg must be >= 0, got -1.0"),
        ({"asc": 0}, "asc must be > 0, got 0"),
        ({"h_max": 1.0}, "h_max must be >= 0 and < 1, got 1.0"),
        ({"max_iter": 0}, "max_iter must be >= 1, got 0"),
        ({"tol": -1}, "tol must be >= 0, got -1"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        RobustUnmixing(**{"n_endmembers": K, "max_iter": 5} | change).fit(pixels(scene()))


@SHORT
@pytest.mark.bad_input
def test_bad_data():
    X = pixels(scene()).copy()
    with pytest.raises(ValueError, match="cube must have shape"):
        unmix_cube(X, K)
    with pytest.raises(ValueError, match=r"X must have shape \(\.\.\., 7\)|endmembers must have shape"):
        fcls(torch.from_numpy(X), torch.ones(2, 7, dtype=torch.float64))
    for find in (spa, vca):
        with pytest.raises(ValueError, match="n_endmembers must be >= 1 and <= 40"):
            find(torch.from_numpy(X), 41)
    with pytest.raises(ValueError, match=r"X must have 3 columns \(shares\), got 4"):
        RobustUnmixing(K, max_iter=5).fit(X).inverse_transform(np.ones((2, 4)))
    X[0, :2] = -1
    with pytest.warns(UserWarning, match="X has 2 values below zero, taken for zero"):
        RobustUnmixing(K, max_iter=5).fit(X)
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        RobustUnmixing(K).fit(X)


# the library


@pytest.mark.skipif(not available("leaves_and_soils"), reason="run `hadamard data fetch leaves_and_soils`")
def test_leaves_and_soils():
    library = leaves_and_soils(2101)
    assert library.values.shape == (6, 2101)
    assert (library.wavelengths == np.arange(400, 2501)).all()
    assert 0 < library.values.min() < library.values.max() < 1
    green = library.values[library.names.index("green leaf")]
    at = lambda nm: green[int(nm) - 400]  # noqa: E731
    assert at(550) > 1.5 * at(670)  # the green peak
    assert at(800) > 4 * at(670)  # the red edge
    assert at(1650) > 2 * at(1940)  # water
    assert (leaves_and_soils(10).values[:, -1] == library.values[:, -1]).all()


def test_purer_pixels_get_smaller_exponents():
    shares = torch.tensor([[1.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.0]])
    p = exponents(shares, "adaptive", 0.8, torch.ones(3))
    half = (3**0.5 - 2**0.5) / (3**0.5 - 1)  # Hoyer's sparseness of two equal entries of three
    torch.testing.assert_close(p, 1 - 0.3 * torch.tensor([0.8, 0.0, half]), rtol=1e-5, atol=1e-6)
