import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from typer import Typer
from typer.testing import CliRunner

from hadamard.cli.apply.learned_proximal import apply
from hadamard.cli.files import read_image, write_image
from hadamard.imaging import (
    ICNN,
    GaussianBlur,
    Inpainting,
    LearnedProximal,
    PatchAverage,
    PatchICNN,
    ProximalMatchingLoss,
    ProximalMatchingSchedule,
    pnp_admm,
    pnp_pgd,
    pretrained,
)
from hadamard.proximal import soft
from tests.suites.operators import OperatorSuite

MU = 0.3


class Quadratic(nn.Module):
    """y -> <y, Q y> / 2 with a positive definite Q."""

    def __init__(self, q):
        super().__init__()
        self.q = nn.Parameter(q)

    def forward(self, y):
        return (y @ self.q * y).sum(-1) / 2


def vectors(mu=MU, squares=False, seed=0, dim=3):
    generator = torch.Generator().manual_seed(seed)
    network = ICNN(dim, (8, 6), beta=3.0, squares=squares, generator=generator)
    if squares:
        nn.init.uniform_(network.first_square, 0, 1, generator=generator)
        nn.init.uniform_(network.first_head, 0, 1, generator=generator)
    return LearnedProximal(network, strong_convexity=mu).double()


def pictures():
    return LearnedProximal(
        PatchICNN(4, size=4, stride=2, beta=20.0, generator=torch.Generator().manual_seed(0)),
        strong_convexity=0.1,
        noise_level=0.1,
    ).double()


@pytest.fixture(params=["vectors", "squares", "pictures"])
def prox_and_points(request, generator):
    if request.param == "pictures":
        return pictures(), torch.rand(6, 1, 5, 7, dtype=torch.float64, generator=generator)
    f = vectors(squares=request.param == "squares")
    return f, 2 * torch.randn(6, 3, dtype=torch.float64, generator=generator)


def dot(a, b):
    return (a * b).flatten(1).sum(1)


class TestConvexity:
    def test_potential_is_convex(self, prox_and_points):
        f, y = prox_and_points
        a, b = y[:3], y[3:]
        gap = (f.potential(a) + f.potential(b)) / 2 - f.potential((a + b) / 2)
        assert (gap >= f.strong_convexity / 8 * dot(a - b, a - b) - 1e-10).all()

    def test_map_is_strongly_monotone(self, prox_and_points):
        f, y = prox_and_points
        a, b = y[:3], y[3:]
        assert (dot(f(a) - f(b), a - b) >= f.strong_convexity * dot(a - b, a - b) - 1e-10).all()

    def test_jacobian_is_symmetric_and_positive(self, prox_and_points):
        f, y = prox_and_points
        jacobian = torch.autograd.functional.jacobian(f, y[:1]).reshape(y[0].numel(), -1)
        assert torch.allclose(jacobian, jacobian.T, atol=1e-9)
        assert torch.linalg.eigvalsh(jacobian).min() >= f.strong_convexity - 1e-9

    def test_projection_restores_convexity_after_a_step(self):
        f = vectors(mu=0.0)
        optimizer = torch.optim.SGD(f.parameters(), lr=3.0)
        y = torch.linspace(-3, 3, 60, dtype=torch.float64).reshape(20, 3)
        f(y).square().mean().backward()
        optimizer.step()
        assert any((p < 0).any() for _, p in f.network.nonnegative())
        f.project_()
        jacobian = torch.func.vmap(torch.func.hessian(lambda v: f.network(v)))(y)
        assert torch.linalg.eigvalsh(jacobian).min() >= -1e-9

    def test_negative_weights_are_refused_when_loaded(self):
        f = vectors()
        state = copy.deepcopy(f.state_dict())
        state["network.core.0"][0, 0] = -0.5
        with pytest.raises(ValueError, match=r"core.0 must be nonnegative for the network to be convex, got -0.5"):
            f.load_state_dict(state)

    @settings(max_examples=15, deadline=None)
    @given(st.integers(4, 13), st.integers(4, 13))
    def test_pictures_of_any_size(self, height, width):
        f = pictures()
        y = torch.full((2, 1, height, width), 0.4, dtype=torch.float64)
        x = f(y)
        assert x.shape == y.shape
        # every pixel lies in equally many patches, so a constant picture stays constant away from rounding
        assert (x - x.mean()).abs().max() < 0.01

    def test_patches_start_as_a_denoiser(self, generator):
        f = LearnedProximal(PatchICNN(8, generator=generator), noise_level=0.1)
        ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
        noisy = ramp + 0.1 * torch.randn(ramp.shape, generator=generator)
        assert (f(noisy) - ramp).square().mean() < 0.3 * (noisy - ramp).square().mean()


class TestProx:
    def test_minimises_what_it_says(self, prox_and_points):
        """R(u) + |u - y|^2 / 2 is smallest at f(y) among points of the range, whose R is known without inversion."""
        f, y = prox_and_points
        x, r = f.prox_and_prior(y)
        other = y + 0.3 * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        u, r_u = f.prox_and_prior(other)
        assert (r_u + dot(u - y, u - y) / 2 >= r + dot(x - y, x - y) / 2 - 1e-9).all()

    def test_inverse_round_trip(self, prox_and_points):
        f, y = prox_and_points
        with torch.no_grad():
            x = f(y)
        found = f.inverse(x, tol=1e-7)
        assert found.converged
        assert (f(found.value) - x).abs().max() <= 1e-5
        assert torch.allclose(found.value, y, atol=1e-4)

    def test_prior_agrees_with_what_the_map_knows(self, prox_and_points):
        f, y = prox_and_points
        with torch.no_grad():
            x, r = f.prox_and_prior(y)
        assert torch.allclose(f.prior(x), r, atol=1e-6)
        assert torch.equal(f.fn(x), f.prior(x))

    def test_quadratic_in_closed_form(self, generator):
        m = torch.randn(3, 3, dtype=torch.float64, generator=generator)
        q = m @ m.T + torch.eye(3)
        f = LearnedProximal(Quadratic(q))
        x = torch.randn(4, 3, dtype=torch.float64, generator=generator)
        assert torch.allclose(f(x), x @ q)
        expected = ((x @ (torch.linalg.inv(q) - torch.eye(3))) * x).sum(1) / 2
        assert torch.allclose(f.prior(x, tol=1e-7), expected, atol=1e-6)

    @pytest.mark.parametrize("gamma", [0.25, 0.7, 1.0])
    def test_weaker_prior_in_closed_form(self, gamma, generator):
        q = torch.diag(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
        x = torch.randn(4, 3, dtype=torch.float64, generator=generator)
        curvature = gamma * (1 / q.diagonal() - 1) + 1
        assert torch.allclose(LearnedProximal(Quadratic(q)).prox(x, gamma=gamma), x / curvature, atol=1e-5)

    def test_other_noise_levels_scale_the_prior(self, generator):
        f = pictures()
        y = torch.rand(2, 1, 6, 6, dtype=torch.float64, generator=generator)
        c = 0.4
        network = LearnedProximal(f.network, strong_convexity=f.strong_convexity, noise_level=0.1)
        assert torch.allclose(f(y, sigma=0.04), c * network(y / c))
        _, r = f.at(0.04).prox_and_prior(y)
        assert torch.allclose(r, c**2 * network.prox_and_prior(y / c)[1])
        assert f.scale == 1.0

    def test_a_point_outside_the_range_has_infinite_prior(self):
        f = LearnedProximal(ICNN(1, (4,), generator=torch.Generator().manual_seed(0)))  # bounded gradient
        assert torch.isinf(f.double().prior(torch.tensor([[100.0]], dtype=torch.float64), max_iter=3)).all()
        with pytest.warns(ConvergenceWarning, match="minimize stopped"):
            f.inverse(torch.tensor([[100.0]], dtype=torch.float64), max_iter=3)


class TestAutograd:
    def test_double_backward(self, generator):
        f = vectors(squares=True)
        y = torch.randn(2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
        assert torch.autograd.gradcheck(f, y)
        names, values = zip(*f.named_parameters())

        def map_of(*parameters):
            return torch.func.functional_call(f, dict(zip(names, parameters)), (y.detach(),))

        assert torch.autograd.gradcheck(map_of, values)

    def test_works_without_gradients_and_leaves_the_input_alone(self, generator):
        f, y = vectors(), torch.randn(2, 3, dtype=torch.float64, generator=generator)
        kept = y.clone()
        with torch.no_grad():
            x = f(y)
        assert not x.requires_grad
        assert not y.requires_grad
        assert torch.equal(y, kept)
        with torch.inference_mode():
            assert torch.equal(f(y.clone()), x)
        assert f(y).requires_grad
        assert not y.requires_grad

    def test_state_dict_and_copies(self):
        f, y = vectors(), torch.ones(1, 3, dtype=torch.float64)
        g = vectors(seed=1)
        g.load_state_dict(f.state_dict())
        assert torch.equal(f(y), g(y))
        assert torch.equal(copy.deepcopy(f)(y), f(y))


class TestLosses:
    def test_values_and_limit(self, generator):
        a, b = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
        e = (a - b).square().sum(1)
        assert torch.allclose(ProximalMatchingLoss(2.0)(a, b), 1 - torch.exp(-e / 4).mean())
        assert 0 <= ProximalMatchingLoss(2.0)(a, b) < 1
        wide = ProximalMatchingLoss(1e2)(a.double(), b.double())
        assert math.isclose(float(wide), float(e.mean()) / 1e4, rel_tol=1e-2)

    def test_saturation_warns(self):
        with pytest.warns(UserWarning, match=r"saturated at gamma=0.1 \(mean weight 0.0e\+00\)"):
            ProximalMatchingLoss(0.1)(torch.ones(1, 4), torch.zeros(1, 4))

    def test_schedule(self):
        schedule = ProximalMatchingSchedule(400, 100, 60)
        gammas = [schedule.loss(step).gamma for step in range(60, 100)]
        assert isinstance(schedule.loss(59), nn.L1Loss)
        assert gammas == pytest.approx([12.8] * 10 + [6.4] * 10 + [3.2] * 10 + [1.6] * 10)

    def test_finds_the_mode(self):
        """Of a value that is 0 with probability 0.6 and 3 otherwise, the squared error gives 1.2, this loss 0."""
        data = torch.tensor([0.0] * 6 + [3.0] * 4)[:, None]
        guess = torch.full((1, 1), 1.2, requires_grad=True)
        optimizer = torch.optim.Adam([guess], lr=0.05)
        for gamma in (4.0, 2.0, 1.0, 0.5):
            for _ in range(60):
                optimizer.zero_grad()
                ProximalMatchingLoss(gamma)(guess.expand(10, 1), data).backward()
                optimizer.step()
        assert abs(float(guess)) < 0.05


class TestBlur(OperatorSuite):
    dtypes = (torch.float64,)

    def operator(self):
        return GaussianBlur((3, 5), 0.7)

    def dense(self):
        def matrix(n):
            out = torch.zeros(n, n, dtype=torch.float64)
            weights = torch.exp(-torch.arange(-40, 41).double().square() / (2 * 0.7**2))
            reach = min(n - 1, 3)
            kept = weights[40 - reach : 41 + reach] / weights[40 - reach : 41 + reach].sum()
            for i in range(n):
                for k, w in zip(range(-reach, reach + 1), kept):
                    j = i + k
                    out[i, -1 - j if j < 0 else 2 * n - 1 - j if j >= n else j] += w
            return out

        return torch.kron(matrix(3), matrix(5))


class TestInpainting(OperatorSuite):
    dtypes = (torch.float64,)
    exact_dagger = True

    def operator(self):
        return Inpainting(torch.tensor([[True, False, True], [False, True, True]]))

    def dense(self):
        return torch.diag(torch.tensor([1.0, 0, 1, 0, 1, 1], dtype=torch.float64))


class TestPlugAndPlay:
    def test_descends_its_objective_to_a_fixed_point(self, generator):
        f = pretrained().double().at(0.1)
        blur = GaussianBlur((12, 12), 1.0)
        y = blur(torch.rand(2, 1, 12, 12, dtype=torch.float64, generator=generator))
        found = pnp_pgd(blur, y, f, step=0.99, tol=1e-7, max_iter=400)
        assert found.converged
        assert (found.objective.diff() <= 1e-12 * found.objective.abs().max()).all()
        again = f(found.value - 0.99 * blur.A_adjoint(blur(found.value) - y))
        assert (again - found.value).abs().max() < 1e-6

    def test_objective_is_the_one_of_the_prior(self, generator):
        f, blur = pictures(), GaussianBlur((6, 6), 0.8)
        y = torch.rand(1, 1, 6, 6, dtype=torch.float64, generator=generator)
        found = pnp_pgd(blur, y, f, step=0.5, tol=0.0, max_iter=3, warn=False)
        expected = (blur(found.value) - y).square().sum() / 2 + f.prior(found.value).sum() / 0.5
        assert torch.isclose(found.objective[-1], expected, atol=1e-5)
        found = pnp_admm(blur, y, f, rho=0.3, tol=0.0, max_iter=3, warn=False)
        expected = (blur(found.value) - y).square().sum() / 2 + 0.3 * f.prior(found.value).sum()
        assert torch.isclose(found.objective[-1], expected, atol=1e-5)

    def test_lasso_by_both_solvers(self, generator):
        """With the soft threshold as denoiser both solve the lasso; the optimum does not depend on rho."""
        blur = GaussianBlur((4, 5), 0.6)
        y = torch.randn(4, 5, dtype=torch.float64, generator=generator)
        weight = 0.1
        by_pgd = pnp_pgd(blur, y, lambda v: soft(v, 0.9 * weight), step=0.9, tol=1e-9, max_iter=2000).value
        gradient = blur(blur(by_pgd) - y)
        assert (gradient.abs() <= weight + 1e-6).all()
        assert torch.allclose(gradient[by_pgd != 0], -weight * by_pgd.sign()[by_pgd != 0], atol=1e-6)
        for rho in (0.1, 0.5):
            found = pnp_admm(blur, y, lambda v, rho=rho: soft(v, weight / rho), rho=rho, tol=1e-5, max_iter=500)
            assert torch.allclose(found.value, by_pgd, atol=1e-3)

    def test_short_stop_warns_and_says_so(self):
        y = torch.ones(1, 1, 8, 8)
        with pytest.warns(ConvergenceWarning, match="pnp_pgd stopped after 2 iterations"):
            found = pnp_pgd(GaussianBlur((8, 8), 1.0), y, lambda x: 0.5 * x, tol=1e-9, max_iter=2)
        assert not found.converged
        assert found.residuals.shape == (2,)
        assert found.objective is None

    def test_callback_sees_every_iteration(self):
        seen = []
        pnp_admm(
            GaussianBlur((8, 8), 1.0),
            torch.rand(1, 1, 8, 8),
            lambda x: x,
            max_iter=3,
            tol=0.0,
            warn=False,
            callback=lambda k, x: seen.append((k, tuple(x.shape))),
        )
        assert seen == [(k, (1, 1, 8, 8)) for k in range(3)]

    def test_patch_average_covers_every_size(self, generator):
        x = torch.rand(2, 1, 19, 30, generator=generator)
        for size, stride in ((8, 8), (8, 3), (64, 64)):
            assert torch.allclose(PatchAverage(lambda v: 3 * v, size, stride)(x), 3 * x)


class TestPretrained:
    def test_denoises_a_photograph_at_several_levels(self, generator):
        from hadamard.data import photographs

        clean = photographs("test")["camera"][None, None, 150:250, 200:301]
        f = pretrained()
        for sigma, gain in ((0.1, 7.0), (0.05, 5.0)):
            noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
            before, after = ((x - clean).square().mean() for x in (noisy, f(noisy, sigma)))
            assert 10 * math.log10(before / after) > gain

    def test_prior_prefers_the_clean_picture(self, generator):
        from hadamard.data import photographs

        clean = photographs("test")["cat"][None, None, 150:166, 200:216].double()
        f = pretrained().double()
        with torch.no_grad():
            clean = f(clean)
            noisy = f(clean + 0.1 * torch.randn(clean.shape, dtype=clean.dtype, generator=generator)) + 0.02
        assert f.prox_and_prior(clean)[1] < f.prox_and_prior(noisy + 0.2 * torch.randn_like(noisy))[1]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: ICNN(0), ValueError, "in_dim must be >= 1, got 0"),
        (lambda: ICNN(2, ()), ValueError, "hidden must name at least one layer"),
        (lambda: ICNN(2, beta=0), ValueError, "beta must be > 0, got 0"),
        (lambda: PatchICNN(size=8, stride=3), ValueError, "stride must be a power of two, divide size"),
        (lambda: PatchICNN(noise_level=0), ValueError, "noise_level must be > 0"),
        (lambda: vectors(mu=-1.0), ValueError, "strong_convexity must be >= 0"),
        (lambda: LearnedProximal(ICNN(2), noise_level=0.0), ValueError, "noise_level must be > 0"),
        (lambda: vectors()(torch.ones(2, 3).long()), TypeError, "y must have a floating dtype"),
        (lambda: vectors()(torch.ones(2, 3, dtype=torch.cfloat)), TypeError, "y must have a floating dtype"),
        (lambda: vectors()(torch.ones(2, 3)), TypeError, "y must have the dtype and device of the weights"),
        (lambda: vectors()(torch.full((2, 3), torch.nan).double()), ValueError, "y must be finite"),
        (lambda: vectors()(torch.ones(2, 4).double()), ValueError, r"y must have shape \(..., 3\), got \(2, 4\)"),
        (lambda: vectors()([1.0]), TypeError, "y must be a torch.Tensor, got list"),
        (lambda: vectors().at(0.0), ValueError, "sigma must be > 0, got 0.0"),
        (lambda: vectors().prox(torch.ones(1, 3).double(), gamma=1.5), ValueError, "gamma must be > 0 and <= 1"),
        (lambda: pictures()(torch.ones(1, 3, 8, 8).double()), ValueError, r"y must have shape \(..., 1, \*, \*\)"),
        (lambda: pictures()(torch.ones(1, 1, 3, 8).double()), ValueError, "y must be at least 4 by 4 pixels"),
        (lambda: ProximalMatchingLoss(0.0), ValueError, "gamma must be > 0, got 0.0"),
        (lambda: ProximalMatchingLoss(1.0)(torch.ones(2), torch.ones(3)), ValueError, "target must have the shape"),
        (lambda: ProximalMatchingSchedule(4, 10, 11), ValueError, "pretrain must be >= 0 and <= 10, got 11"),
        (lambda: GaussianBlur((4,), 1.0), ValueError, "shape must be height and width"),
        (lambda: GaussianBlur((4, 4), 0.0), ValueError, "sigma must be > 0"),
        (lambda: Inpainting(torch.zeros(2, 2).bool()), ValueError, "known must be true somewhere"),
        (lambda: PatchAverage(nn.Identity(), 4, 5), ValueError, "stride must be >= 1 and <= 4, got 5"),
        (
            lambda: pnp_pgd(None, torch.ones(2), lambda x: x),
            TypeError,
            "operator must have the methods A and A_adjoint",
        ),
        (
            lambda: pnp_pgd(GaussianBlur((4, 4), 1.0), torch.full((4, 4), torch.nan), lambda x: x),
            ValueError,
            "y must be finite",
        ),
        (
            lambda: pnp_pgd(GaussianBlur((4, 4), 1.0), torch.ones(4, 4), lambda x: x, x0=torch.ones(3, 4)),
            ValueError,
            "x0 must have the shape of the image",
        ),
        (
            lambda: pnp_pgd(GaussianBlur((4, 4), 1.0), torch.ones(4, 4), lambda x: x / 0),
            ValueError,
            "must keep the image finite, got NaN or infinity in iteration 0",
        ),
        (
            lambda: pnp_admm(GaussianBlur((4, 4), 1.0), torch.ones(4, 4), lambda x: x, rho=0.0),
            ValueError,
            "rho must be",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.fixture
def cli():
    app = Typer(pretty_exceptions_enable=False)
    app.command()(apply)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def photograph():
    from hadamard.data import photographs

    return photographs("test", colour=True)["cat"][:, 100:149, 150:211].permute(1, 2, 0).numpy()


def psnr(a, b):
    return -10 * math.log10(float(np.mean((a - b) ** 2)))


class TestCommand:
    def test_denoises_in_colour(self, cli, photograph, tmp_path):
        noisy = photograph + 0.1 * np.random.default_rng(0).standard_normal(photograph.shape)
        write_image(tmp_path / "noisy.png", noisy)
        done = cli(tmp_path / "noisy.png", "--out", tmp_path / "clean.png")
        assert done.exit_code == 0, done.exception
        restored = read_image(tmp_path / "clean.png")
        assert restored.shape == photograph.shape
        assert psnr(restored, photograph) > psnr(np.clip(noisy, 0, 1), photograph) + 5

    def test_deblurs_grey(self, cli, photograph, tmp_path):
        grey = photograph.mean(-1)
        blurred = GaussianBlur(grey.shape, 1.5)(torch.from_numpy(grey)).numpy()
        write_image(tmp_path / "blurred.tif", blurred + 0.01 * np.random.default_rng(0).standard_normal(grey.shape))
        done = cli(tmp_path / "blurred.tif", "-o", tmp_path / "sharp.png", "--task", "deblur", "--blur", 1.5)
        assert done.exit_code == 0, done.exception
        assert psnr(read_image(tmp_path / "sharp.png"), grey) > psnr(blurred, grey) + 1.5

    def test_fills_missing_pixels(self, cli, photograph, tmp_path):
        missing = np.random.default_rng(0).random(photograph.shape[:2]) < 0.5
        missing[20:24, 20:40] = True
        write_image(tmp_path / "mask.png", missing.astype(float))
        write_image(tmp_path / "holes.png", photograph * ~missing[..., None])
        arguments = ("--task", "inpaint", "--mask", tmp_path / "mask.png")
        done = cli(tmp_path / "holes.png", "--out", tmp_path / "full.png", *arguments)
        assert done.exit_code == 0, done.exception
        assert psnr(read_image(tmp_path / "full.png"), photograph) > 28

    @pytest.mark.bad_input
    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["none.png"], "none.png: no such file"),
            (["cut.png"], "cut.png: cannot be read, it may be damaged or truncated"),
            (["tiny.png"], "tiny.png: must be at least 8 by 8 pixels, got 4 by 9"),
            (["good.png", "--task", "colourise"], "--task must be one of 'denoise', 'deblur', 'inpaint'"),
            (["good.png", "--task", "deblur"], "--blur goes with --task deblur, got none"),
            (["good.png", "--blur", "2"], "--blur goes with --task deblur, not denoise"),
            (["good.png", "--task", "deblur", "--blur", "-1"], "--blur must be >= 0.1"),
            (["good.png", "--sigma", "-1"], "--sigma must be >= 0"),
            (
                ["good.png", "--task", "inpaint", "--mask", "tiny.png"],
                "the mask must have the picture's size, 16 by",
            ),
            (["good.png", "--task", "inpaint", "--mask", "white.png"], "the mask is white everywhere"),
            (["good.png", "--iterations", "0"], "--iterations must be >= 1"),
        ],
    )
    def test_bad_input(self, cli, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        write_image("good.png", np.full((16, 20), 0.5))
        write_image("tiny.png", np.full((4, 9), 0.5))
        write_image("white.png", np.ones((16, 20)))
        (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-30])
        done = cli(*arguments, "--out", "out.png")
        assert message in str(done.exception)
        assert not (tmp_path / "out.png").exists()
