from itertools import pairwise

import pytest
import torch
from torch import nn

from hadamard.data import c_alpha_images, disc_images
from hadamard.diffusion import (
    BFBatchNorm2d,
    BiasFreeUNet,
    DiffusersDenoiser,
    ScoreSampler,
    as_denoiser,
    denoiser_jacobian,
    effective_dimension,
    generalisation_report,
    sure,
)
from hadamard.spectral import radial_average

D64 = torch.float64


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _prior(p=6):
    """A covariance with its best denoiser of pictures of p numbers."""
    A = torch.randn(p, p, generator=_generator(), dtype=D64)
    C = A @ A.T / p
    return C, lambda x, s: x @ torch.linalg.solve(C + s**2 * torch.eye(p, dtype=D64), C)


def _net(channels=6, dtype=D64):
    """A network whose normalisation has seen data, in evaluation mode."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = BiasFreeUNet(1, channels, 2).to(dtype)
    for _ in range(5):
        net(torch.rand(8, 1, 8, 8, generator=_generator(), dtype=dtype))
    return net.eval()


# the network


def test_homogeneous_and_equal_to_its_jacobian():
    net = _net()
    y = torch.rand(1, 1, 8, 8, generator=_generator(1), dtype=D64)
    torch.testing.assert_close(net(3.7 * y), 3.7 * net(y))
    spectrum = denoiser_jacobian(as_denoiser(net, "noise"), y[0], 0.3)
    assert spectrum.remainder < 1e-10


def test_batch_norm_by_its_formula_and_running_values():
    norm = BFBatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5, generator=_generator()) * torch.tensor([1.0, 2.0, 5.0])[:, None, None] + 1
    sd = (x.var((0, 2, 3), unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), x / sd[:, None, None])  # the mean stays
    torch.testing.assert_close(norm.running_sd, 0.9 + 0.1 * sd)
    for _ in range(200):
        norm(x)
    torch.testing.assert_close(norm.eval()(x), x / sd[:, None, None])


def test_gradients_of_every_layer():
    net = BiasFreeUNet(1, 2, 1).double()
    x = torch.rand(2, 1, 4, 4, generator=_generator(), dtype=D64, requires_grad=True)
    assert torch.autograd.gradcheck(BFBatchNorm2d(1).double(), x)
    assert torch.autograd.gradcheck(lambda x: net.eval()(x), x)


@pytest.mark.bad_input  # no annotation checks, through which the compiler cannot look
def test_state_autocast_and_compile():
    net = _net(dtype=torch.float32)
    other = BiasFreeUNet(1, 6, 2).eval()
    other.load_state_dict(net.state_dict())
    y = torch.rand(2, 1, 8, 12, generator=_generator())
    assert torch.equal(net(y), other(y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(net(y).float(), other.float()(y).float(), rtol=0.1, atol=0.1)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(y), net(y))


def test_official_state_dict_loads_and_computes_the_same():
    """The authors' layers by their names, put together here from torch's own."""
    ours = _net(dtype=torch.float32)
    theirs = {}
    for name, value in ours.state_dict().items():
        normed = value.ndim == 1
        theirs["module." + (name.replace(".weight", ".gammas") if normed else name)] = (
            value.reshape(1, -1, 1, 1) if normed else value
        )
    loaded = BiasFreeUNet.from_official(theirs)
    y = torch.rand(2, 1, 8, 8, generator=_generator())
    assert torch.equal(loaded(y), ours(y))
    with pytest.raises(ValueError, match="state_dict must be that of the authors' UNet"):
        BiasFreeUNet.from_official({"a": torch.ones(1)})


# the spectrum


def test_wiener_filter_shrinks_by_s_over_s_plus_sigma_squared():
    C, denoise = _prior()
    s, U = torch.linalg.eigh(C)
    found = denoiser_jacobian(denoise, torch.randn(6, generator=_generator(), dtype=D64), 0.5)
    torch.testing.assert_close(found.eigenvalues, (s / (s + 0.25)).flip(0))
    torch.testing.assert_close((found.eigenvectors @ U.flip(1)).abs(), torch.eye(6, dtype=D64), atol=1e-8, rtol=0)
    assert found.asymmetry < 1e-12


def test_jacobian_agrees_with_finite_differences_and_lanczos():
    net = _net()
    denoise = as_denoiser(net, "noise")
    y = torch.rand(1, 8, 8, generator=_generator(2), dtype=D64)
    eye = torch.eye(64, dtype=D64).reshape(64, 1, 8, 8)
    with torch.no_grad():
        columns = (denoise(y + 1e-6 * eye, 0.3) - denoise(y - 1e-6 * eye, 0.3)).flatten(1) / 2e-6
    J = columns.T
    exact = denoiser_jacobian(denoise, y, 0.3)
    torch.testing.assert_close(exact.eigenvalues, torch.linalg.eigvalsh((J + J.T) / 2).flip(0), atol=1e-6, rtol=1e-5)
    assert exact.asymmetry == pytest.approx(float((J - J.T).norm() / J.norm()), rel=1e-5)
    few = denoiser_jacobian(denoise, y, 0.3, k=5, method="lanczos")
    torch.testing.assert_close(few.eigenvalues, exact.eigenvalues[:5])
    alike = (few.eigenvectors.flatten(1) * exact.eigenvectors[:5].flatten(1)).sum(1).abs()
    torch.testing.assert_close(alike, torch.ones(5, dtype=D64), atol=1e-5, rtol=0)
    assert few.asymmetry == pytest.approx(exact.asymmetry, rel=0.3)
    assert few.remainder < 1e-10


def test_a_bias_shows_in_the_remainder():
    _, denoise = _prior()
    y = torch.randn(6, generator=_generator(), dtype=D64)
    biased = denoiser_jacobian(lambda x, s: denoise(x, s) + 1, y, 0.5)
    assert biased.remainder == pytest.approx(6**0.5 / float((denoise(y[None], 0.5) + 1).norm()))


def test_oracle_factors_minimise_the_risk():
    _, denoise = _prior()
    x = torch.randn(6, generator=_generator(3), dtype=D64)
    spectrum = denoiser_jacobian(denoise, x, 0.5)
    c = spectrum.eigenvectors @ x
    assert spectrum.risk(x) == pytest.approx(float((0.25 * c**2 / (c**2 + 0.25)).sum()))
    for k in range(6):
        for step in (-1e-3, 1e-3):
            factors = spectrum.oracle(x).clone()
            factors[k] += step
            assert spectrum.risk(x, factors) > spectrum.risk(x)


def test_effective_dimension_both_ways_and_sure():
    C, denoise = _prior()
    sigma = 0.5
    J = torch.linalg.solve(C + sigma**2 * torch.eye(6, dtype=D64), C)
    root = torch.linalg.cholesky(C)
    x = torch.randn(4000, 6, generator=_generator(), dtype=D64) @ root.T
    y = x + sigma * torch.randn(x.shape, generator=_generator(1), dtype=D64)
    trace, error = effective_dimension(denoise, y[0], sigma)
    assert (trace, error) == (pytest.approx(float(J.trace())), 0)
    guess, error = effective_dimension(denoise, y[0], sigma, method="hutchinson", probes=500, rtol=0)
    assert abs(guess - trace) < 4 * error
    difference = torch.tensor([sure(denoise, v, sigma)[0] for v in y[:400]]) - (
        denoise(y[:400], sigma) - x[:400]
    ).square().mean(1)
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / 20
    risk = sigma**2 * float(J.trace()) / 6  # of the best denoiser of a normal law
    assert float((denoise(y, sigma) - x).square().mean()) == pytest.approx(risk, rel=0.05)


def test_a_unet_of_diffusers_can_be_analysed():
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(4, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    denoise = DiffusersDenoiser(unet.eval(), diffusers.DDIMScheduler())
    y = torch.rand(1, 4, 4, generator=_generator())
    exact, few = denoiser_jacobian(denoise, y, 0.5), denoiser_jacobian(denoise, y, 0.5, k=3, method="lanczos")
    torch.testing.assert_close(few.eigenvalues, exact.eigenvalues[:3], rtol=1e-3, atol=1e-3)
    assert exact.remainder > 1e-3


# the sampler


def test_sampler_recovers_a_normal_law():
    """In many dimensions the noise is read off well, and the spread is that of the law."""
    p = 256
    scale = torch.linspace(0.5, 0.05, p)
    draw = ScoreSampler(lambda x, s: 0.5 + (x - 0.5) * scale**2 / (scale**2 + s[:, None] ** 2), h0=0.02, beta=0.02)
    x = draw((300, p), _generator())
    torch.testing.assert_close(x.mean(0), torch.full((p,), 0.5), atol=0.12, rtol=0)
    assert float(x.std(0)[:50].mean() / scale[:50].mean()) == pytest.approx(1, abs=0.15)


def test_beta_one_puts_no_noise_back():
    seen = []

    def denoise(x, s):
        seen.append(x.clone())
        return 0.25 + 0 * x

    ScoreSampler(denoise, h0=0.1, beta=1)((1, 64), _generator())
    for t, (before, after) in enumerate(pairwise(seen[:-1]), 1):
        h = 0.1 * t / (1 + 0.1 * (t - 1))
        torch.testing.assert_close(after, before - h * (before - 0.25))


def test_constraint_is_met():
    M = torch.linalg.qr(torch.randn(64, 5, generator=_generator()))[0]
    truth = 0.5 + torch.randn(64, generator=_generator(1))

    def project(x, s):  # pictures are anything; the noise is what is off the middle
        return 0.5 + (x - 0.5) * 0.9

    x = ScoreSampler(project, h0=0.1, beta=0.5, sigma_L=0.002)((2, 64), _generator(2), constraint=(M, truth @ M))
    torch.testing.assert_close(x @ M, (truth @ M).expand(2, 5), atol=1e-5, rtol=0)
    free = ScoreSampler(project, h0=0.1, beta=0.5, sigma_L=0.002)((2, 64), _generator(2))
    assert float((free @ M - truth @ M).abs().max()) > 0.3


# memorisation


def test_report_tells_memory_from_knowledge():
    a, b, test = torch.rand(3, 20, 1, 8, 8, generator=_generator())

    def remember(known):
        def denoise(x, s):
            d = torch.cdist(x.flatten(1), known.flatten(1)).square() / (2 * torch.as_tensor(s).reshape(-1, 1) ** 2)
            return (torch.softmax(-d, 1) @ known.flatten(1)).reshape(x.shape)

        return denoise

    def sampler(model):
        return ScoreSampler(model, h0=0.1, beta=0.5)

    learnt = generalisation_report(remember(a), remember(b), a, b, test, [0.1, 0.3], 8, sampler=sampler)
    assert min(learnt.gap) > 3
    assert learnt.nearest > 0.999
    assert learnt.pairs < 0.9
    same = generalisation_report(remember(a), remember(a), a, b, test, [0.1], 4, sampler=sampler)
    assert (same.variance[0], round(same.pairs, 6)) == (0, 1)
    assert torch.equal(same.samples_a, same.samples_b)
    with pytest.raises(ValueError, match="train_a and test must have no picture in common, got 20"):
        generalisation_report(remember(a), remember(b), a, b, a, [0.1], 4)


# pictures of known rate


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_regularity_of_regions(alpha):
    from hadamard.data.piecewise_smooth import _field

    power = radial_average(torch.fft.fft2(_field((200, 64, 64), alpha, 2, _generator())).abs().square()).mean(0)
    k = torch.arange(2, 30).double()
    slope = torch.linalg.lstsq(
        torch.stack([k.log(), torch.ones_like(k)], 1), power[2:30].double().log()[:, None]
    ).solution[0]  # fmt: skip
    assert float(slope) == pytest.approx(-2 * alpha, abs=0.1)


def test_pictures_lie_in_their_range_and_repeat():
    for make in (c_alpha_images, disc_images):
        x = make(20, 16)
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
        assert torch.equal(x, make(20, 16))
        assert float(x.flatten(1).std(1).min()) > 0.001


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BiasFreeUNet(channels=0), "channels must be >= 1, got 0"),
        (lambda: BiasFreeUNet(channels=4)(torch.ones(1, 1, 12, 12)), "y must have height and width"),
        (lambda: denoiser_jacobian(nn.BatchNorm1d(3), torch.ones(3), 1.0), "denoiser must be in evaluation mode"),
        (lambda: denoiser_jacobian(lambda x, s: x[:, :2], torch.ones(3), 1.0), "denoiser must keep the shape"),
        (lambda: denoiser_jacobian(lambda x, s: x, torch.ones(3), 0.0), "sigma must be > 0"),
        (lambda: denoiser_jacobian(lambda x, s: x, torch.ones(3), 1.0, k=4), "k must be >= 1 and <= 3, got 4"),
        (lambda: denoiser_jacobian(lambda x, s: x, torch.full((3,), torch.nan), 1.0), "y must be finite"),
        (lambda: ScoreSampler(lambda x, s: x, beta=0.0), "beta must be > 0"),
        (lambda: ScoreSampler(lambda x, s: x)((1, 4), constraint=(torch.ones(4, 2), torch.ones(2))), "orthonormal"),
        (lambda: c_alpha_images(0), "n must be >= 1"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("denoise", "message"),
    [(lambda x, s: -3 * x, "the sampler diverges"), (lambda x, s: x - 0.5, "did not end in max_iter=50")],
)
def test_sampler_says_where_it_fails(denoise, message):
    with pytest.raises(RuntimeError, match=message):
        ScoreSampler(denoise, max_iter=50)((2, 64))
