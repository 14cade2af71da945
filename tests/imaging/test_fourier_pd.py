"""Complex layers, Fourier-PD and Fourier-PDUNet, and temperature from phase."""

import copy
import math

import pytest
import torch
from torch import nn

from hadamard.data import acquire_kspace, hyperthermia, mr_volumes, undersampling_mask
from hadamard.imaging import (
    ComplexBatchNorm2d,
    ComplexConv2d,
    CReLU,
    FourierPrimalDual,
    ModReLU,
    prf_temperature,
)
from hadamard.imaging.fourier_pd import _Demodulated
from hadamard.imaging.thermometry import GAMMA
from hadamard.operators import Fourier


def draw(*shape, dtype=torch.complex64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def trained(**options):
    """A network whose steps are not zero."""
    torch.manual_seed(0)
    network = FourierPrimalDual(**({"widths": (4, 8), "dual_width": 4} | options)).eval()
    nn.init.constant_(network.primal_steps, 0.5)
    return network


# ---- layers ----


@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"stride": 2}, {"padding": 1, "padding_mode": "circular"}, {"groups": 2}, {"bias": False}],
)
def test_convolution_is_torchs_complex_one(options):
    torch.manual_seed(0)
    mine, theirs = ComplexConv2d(4, 6, 3, **options), nn.Conv2d(4, 6, 3, dtype=torch.complex64, **options)
    theirs.load_state_dict(mine.state_dict())
    x = draw(2, 4, 7, 8)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_convolution_begins_at_its_scale():
    torch.manual_seed(0)
    for init, fan in (("glorot", 9 * (64 + 32)), ("he", 9 * 64)):
        layer = ComplexConv2d(64, 32, 3, init=init)
        assert (
            abs(float(layer.weight.detach().abs().square().mean()) * fan / 2 - 1) < 0.05
        )  # Rayleigh: mean square 2 sigma^2
        assert abs(complex(layer.weight.detach().mean())) < 1e-3
        assert not layer.bias.any()


def test_convolution_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ComplexConv2d(2, 3, 3)(draw(1, 2, 5, 5)).dtype == torch.complex64


def test_batch_norm_whitens():
    x = (draw(8, 2, 9, 9).real * 3 + 1j * draw(8, 2, 9, 9, seed=1).real) * torch.tensor(2 + 1j) + 5
    norm = ComplexBatchNorm2d(2, affine=False)
    y = norm(x)
    parts = torch.stack([y.real, y.imag]).movedim(2, 0).reshape(2, 2, -1)
    for channel in parts:
        torch.testing.assert_close(torch.cov(channel, correction=0), torch.eye(2), atol=1e-3, rtol=0)
    assert abs(complex(y.mean())) < 1e-5
    for _ in range(200):
        norm(x)
    torch.testing.assert_close(norm.eval()(x), y, rtol=2e-2, atol=2e-2)


def test_untrained_batch_norm_keeps_values():
    x = draw(2, 3, 4, 4)
    torch.testing.assert_close(ComplexBatchNorm2d(3).eval()(x), x, rtol=1e-4, atol=1e-4)


def test_activations():
    x, turn = draw(2, 3, 4, 4), torch.exp(torch.tensor(0.7j))
    layer = ModReLU(3)
    nn.init.constant_(layer.threshold, -0.3)
    torch.testing.assert_close(layer(turn * x), turn * layer(x))
    assert not torch.allclose(CReLU()(turn * x), turn * CReLU()(x))
    zero = torch.zeros(1, 3, 1, 1, dtype=torch.complex64, requires_grad=True)
    layer(zero).abs().sum().backward()
    assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize(
    "layer", [ComplexConv2d(2, 2, 3, dtype=torch.complex128), ComplexBatchNorm2d(2, dtype=torch.complex128)]
)
def test_gradients_of_layers(layer):
    x = draw(2, 2, 4, 4, dtype=torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(layer.train(), (x,), fast_mode=True)


# ---- networks ----


def test_untrained_networks_return_what_they_begin_with():
    mask = undersampling_mask(17, 16, 2)
    y = Fourier((17, 16))(draw(3, 1, 17, 16)) * mask
    zero_filled = Fourier((17, 16)).A_adjoint(y)
    torch.testing.assert_close(FourierPrimalDual(widths=(4, 8), dual_width=4)(y, mask), zero_filled)
    assert not FourierPrimalDual(primal="conv", n_iter=2, dual_width=4)(y, mask).any()
    magnitude = FourierPrimalDual(complex_primal=False, widths=(4, 8), dual_width=4)
    torch.testing.assert_close(magnitude(y, mask), zero_filled, rtol=1e-4, atol=1e-5)


def test_loop_against_its_equations():
    network, fourier = trained(n_iter=1), Fourier((16, 16))
    y = fourier(draw(2, 1, 16, 16))
    start = fourier.A_adjoint(y)
    unit = start.abs().amax((2, 3), keepdim=True)
    y1, f = y / unit, (start / unit).repeat(1, 4, 1, 1)
    scale = y1.abs().amax((2, 3), keepdim=True)
    h = network.dual_blocks[0](torch.cat([torch.zeros(2, 5, 16, 16) + 0j, fourier(f[:, :1]) / scale, y1 / scale], 1))
    back = fourier.A_adjoint(h.mean(1, keepdim=True) * scale)
    f = f + 0.5 * network.primal_blocks[0](torch.cat([f, back], 1))
    torch.testing.assert_close(network(y), f.mean(1, keepdim=True) * unit, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"primal": "conv", "n_iter": 2}, {"activation": "modrelu"}, {"complex_primal": False}, {"smooth_phase": True}],
)
def test_scale_coils_and_samples(options):
    network, y = trained(**options), draw(2, 2, 16, 12)
    image = network(y)
    assert image.dtype == torch.complex64
    torch.testing.assert_close(network(100 * y), 100 * image, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(network(y[1:, :1]), image[1:, :1], rtol=1e-3, atol=1e-4)
    assert not network(torch.zeros_like(y)).isnan().any()


def test_data_consistency_keeps_measurements():
    mask = undersampling_mask(16, 16, 4)
    y = draw(1, 1, 16, 16) * mask
    image = trained(data_consistency=True)(y, mask)
    torch.testing.assert_close(Fourier((16, 16))(image) * mask, y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained(data_consistency=True)(y), image)


def test_smooth_phase_is_not_the_networks_business():
    x = (1 + draw(1, 1, 32, 32).abs()) + 0j
    turn = torch.exp(torch.tensor(0.7j))
    y = Fourier((32, 32))(torch.cat([x, x * turn]))
    for smooth, low, high in ((True, 0.0, 1e-3), (False, 0.1, math.inf)):
        network = trained(smooth_phase=smooth)
        nn.init.zeros_(network.dual_steps)  # k-space is corrected at every phase
        plain, turned = network(y).detach().unbind()
        assert low <= float((turned - plain * turn).norm() / (plain - x[0]).norm()) < high
    line = torch.linspace(-1, 1, 32)
    bent = torch.exp(1j * (line[:, None] + 0.5 * line**2))
    phase = _Demodulated((32, 32), Fourier((32, 32))(bent)).phase
    assert (phase * bent.conj())[4:-4, 4:-4].angle().abs().max() < 0.1


def test_network_on_a_physics_with_real_channels():
    class MRI(nn.Module):
        mask = undersampling_mask(16, 16, 2)[None, None].float().expand(1, 2, 16, 16)

    network, y = trained(), draw(1, 1, 16, 16) * MRI.mask[0, 0]
    image = network(torch.cat([y.real, y.imag], 1), MRI())
    torch.testing.assert_close(torch.complex(image[:, :1], image[:, 1:]), network(y))


def test_gradients_and_state():
    single = trained(widths=(2, 2), dual_width=2, n_iter=1)
    other = FourierPrimalDual(widths=(2, 2), dual_width=2, n_iter=1).eval()
    other.load_state_dict(single.state_dict())
    x = draw(1, 1, 6, 5)
    for twin in (other, copy.deepcopy(single)):
        torch.testing.assert_close(twin(x), single(x))
    single(x).abs().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in single.parameters())


def test_shipped_network_lowers_the_error_of_unseen_anatomy():
    """Of the complex image, over all volumes; its temperature is the claim's business."""
    anatomies = [volume[len(volume) // 2] for volume in mr_volumes("test").values()]
    g = torch.Generator().manual_seed(0)
    x = torch.cat([hyperthermia(anatomy, 2, generator=g).images for anatomy in anatomies])[:, None]
    mask = undersampling_mask(64, 64, 10, generator=g)
    y = acquire_kspace(x, mask, noise=0.01, generator=g)
    with torch.no_grad():
        image = FourierPrimalDual.pretrained()(y, mask)
    assert (image - x).norm() < 0.95 * (Fourier((64, 64)).A_adjoint(y) - x).norm()


# ---- temperature ----


def test_noise_is_as_the_formula_says():
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 200, 200, generator=g) / 30
    z, z_ref = 1 + torch.complex(noise[0], noise[1]), 1 + torch.complex(noise[2], noise[3])
    expected = math.sqrt(2) / (30 * 0.01e-6 * GAMMA * 1.5 * 0.02)
    assert abs(float(prf_temperature(z, z_ref, 0.02, 1.5).std()) / expected - 1) < 0.03


def test_simulated_temperature_comes_back():
    series = hyperthermia(torch.ones(40, 40), 5, peak=60.0, motion=0.0)
    options = {"te": series.te, "b0": series.b0, "drift_mask": series.unheated}
    found = prf_temperature(series.images, series.images[0], unwrap=-3, **options)
    torch.testing.assert_close(found, series.temperature, atol=0.5, rtol=0.01)  # beyond 39 degrees
    wrapped = prf_temperature(series.images, series.images[0], **options)
    assert (wrapped - series.temperature).abs().max() > 20


def test_skin_stays_cold_all_around():
    body = torch.zeros(64, 64)
    body[6:58, 10:54] = 1.0
    series = hyperthermia(body, 2, peak=8.0, motion=0.0, width=(0.3, 0.3))
    assert series.unheated[7, 11:53].all()
    assert series.unheated[7:57, 11].all()
    assert not series.unheated[20:44, 20:44].any()
    assert abs(float(series.temperature.max()) - 8) < 1e-4


def test_drift_does_not_matter_where_it_is_corrected():
    z_ref, line = draw(12, 14, dtype=torch.complex128), torch.linspace(-1, 1, 14, dtype=torch.float64)
    heated = z_ref.clone()
    heated[4:8, 4:8] *= torch.exp(torch.tensor(-0.5j))
    cold = torch.ones(12, 14, dtype=torch.bool)
    cold[4:8, 4:8] = False
    drifted = heated * torch.exp(1j * (3.0 + 0.4 * line))
    found = prf_temperature(drifted, z_ref, 0.02, 1.5, drift_mask=cold)
    want = prf_temperature(heated, z_ref, 0.02, 1.5)
    torch.testing.assert_close(found, want, atol=1e-9, rtol=1e-9)
    assert float(want[5, 5]) > 0  # phase falls where it gets warmer, for alpha < 0


def test_silent_pixels_are_nan():
    z = torch.tensor([[1.0 + 0j, 0.01]])
    assert prf_temperature(z, z, 0.02, 1.5, floor=0.1).isnan().tolist() == [[False, True]]


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FourierPrimalDual(primal="mlp"), ValueError, "primal must be one of"),
        (lambda: FourierPrimalDual(activation="relu"), ValueError, "activation must be one of"),
        (lambda: FourierPrimalDual(smooth_phase=True, complex_primal=False), ValueError, "smooth_phase needs complex"),
        (lambda: trained()(torch.ones(1, 1, 8, 8)), TypeError, "y must have a complex dtype"),
        (lambda: trained()(draw(1, 1, 8, 8) * math.nan), ValueError, "y must be finite"),
        (lambda: trained()(draw(1, 1, 8, 8), torch.ones(8, 7)), ValueError, "mask must broadcast against y of shape"),
        (lambda: trained()(draw(1, 1, 8, 8), torch.full((8, 8), 0.5)), ValueError, "mask must hold zeros and ones"),
        (lambda: trained()(draw(1, 1, 8, 8), torch.zeros(8, 8)), ValueError, "mask must have ones"),
        (lambda: trained()(draw(1, 1, 8, 8), object()), TypeError, "mask must be a tensor or a physics"),
        (lambda: ComplexConv2d(1, 1, 3, dtype=torch.float32), TypeError, "dtype must be complex"),
        (lambda: prf_temperature(draw(4, 4), torch.ones(4, 4), 0.02, 1.5), TypeError, "z_ref must have a complex"),
        (lambda: prf_temperature(draw(4, 4), draw(4, 4), 0.02, 0.0), ValueError, "b0 must be > 0"),
        (
            lambda: prf_temperature(draw(4, 4), draw(4, 4), 0.02, 1.5, drift_mask=torch.zeros(4, 4) > 0),
            ValueError,
            "drift_mask must have at least 3 pixels",
        ),
        (lambda: undersampling_mask(8, 8, 0.5), ValueError, "acceleration must be >= 1"),
        (lambda: hyperthermia(torch.zeros(8, 8)), ValueError, "anatomy must be >= 0 and not 0 everywhere"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.bad_input
def test_milliseconds_are_noticed():
    with pytest.warns(UserWarning, match="te is in seconds, got 20"):
        prf_temperature(draw(4, 4), draw(4, 4), 20.0, 1.5)
