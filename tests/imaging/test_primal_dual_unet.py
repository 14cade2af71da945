"""Primal-Dual UNet, its loop and its U-Net; radial MRI as tomography; sinograms interpolated to more angles."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from hadamard.imaging import LearnedPrimalDual, PrimalDualUNet, RadialMRI, UNet, upsample_sinogram
from hadamard.imaging.primal_dual_unet import _Convolutions, _pad_sinogram
from hadamard.operators import LinearOperator, NonUniformFourier, Radon
from tests.suites.operators import OperatorSuite


def turn(count, whole=math.pi):
    return torch.arange(count, dtype=torch.float64) * (whole / count)


@pytest.fixture(scope="module")
def scan():
    return Radon(16, turn(6))


@pytest.fixture
def images():
    return torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def trained(**options):
    """A network whose steps are not zero."""
    torch.manual_seed(0)
    network = PrimalDualUNet(**({"widths": (4, 8), "dual_width": 6} | options)).eval()
    nn.init.constant_(network.primal_steps, 0.5)
    return network


class Counted(LinearOperator):
    """A physics that counts how many images and sinograms pass through it."""

    def __init__(self, op):
        super().__init__(op.in_shape, op.out_shape)
        self.op, self.forward_passes, self.inverse_passes = op, 0, 0

    def A(self, x):
        self.forward_passes += x.shape[:-2].numel()
        return self.op.A(x)

    def A_adjoint(self, y):
        return self.op.A_adjoint(y)

    def A_dagger(self, y):
        self.inverse_passes += y.shape[:-2].numel()
        return self.op.A_dagger(y)


# ---- the network ----


def test_untrained_it_returns_what_it_begins_with(scan, images):
    y = scan(images)
    assert torch.equal(PrimalDualUNet(widths=(4, 8))(y, scan), scan.A_dagger(y, "hann"))
    assert torch.equal(PrimalDualUNet(primal="conv", n_iter=2)(y, scan), torch.zeros_like(images))


def test_loop_against_its_equations(scan, images):
    """Every step written out; here the channels are averaged after the physics."""
    network = trained(filter="ramp")
    y = scan(images)
    shift, scale = y.mean((2, 3), keepdim=True), y.std((2, 3), correction=0, keepdim=True)
    f, h = scan.A_dagger(y).repeat(1, 4, 1, 1), torch.zeros(3, 5, *scan.out_shape)
    for i in range(2):
        projected = (scan.A(f).mean(1, keepdim=True) - shift) / scale
        h = h + network.dual_steps[i] * network.dual_blocks[i](
            torch.cat([h, projected, (y - shift) / scale], 1), lambda v: _pad_sinogram(v, "flip")
        )
        back = scan.A_dagger(h * scale + shift).mean(1, keepdim=True)
        f = f + network.primal_steps[i] * network.primal_blocks[i](torch.cat([f, back], 1))
    torch.testing.assert_close(network(y, scan), f.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("primal", "rounds", "start"), [("unet", 2, 1), ("conv", 10, 0)])
def test_physics_is_applied_once_a_round_to_one_channel(primal, rounds, start, scan, images):
    physics = Counted(scan)
    PrimalDualUNet(primal=primal, widths=(4, 8), dual_width=4)(scan(images), physics)
    assert physics.forward_passes == rounds * len(images)
    assert physics.inverse_passes == (rounds + start) * len(images)


def test_samples_do_not_see_each_other(scan, images):
    network = trained()
    y = scan(images) * torch.tensor([1.0, 10.0, 0.1])[:, None, None, None]
    torch.testing.assert_close(network(y, scan)[1:2], network(y[1:2], scan))


@pytest.mark.parametrize("geometry", [{}, {"geometry": "fan", "source_distance": 40.0, "detector_distance": 20.0}])
def test_any_angles_and_sizes(geometry):
    network = trained()
    for size, angles in ((16, 8), (21, 9)):
        physics = Radon(size, turn(angles, 2 * math.pi), **geometry)
        assert network(physics(torch.rand(2, 1, size, size)), physics).shape == (2, 1, size, size)


@pytest.mark.parametrize("padding", ["circular", "flip"])
def test_turning_the_scan_turns_the_correction(padding):
    """A shift of the angles commutes with the convolutions, with the detector reversed where it comes from behind."""
    torch.manual_seed(0)
    block = trained().dual_blocks[0]
    if padding == "flip":  # a filter that is symmetric along the detector sees no side
        for layer in block:
            if isinstance(layer, nn.Conv2d):
                layer.weight.data += layer.weight.data.flip(2)
    x = torch.randn(1, 7, 9, 6)
    back = (lambda v: v.flip(2)) if padding == "flip" else (lambda v: v)
    roll = lambda v: torch.cat([back(v[..., -1:]), v[..., :-1]], -1)  # noqa: E731
    pad = lambda v: _pad_sinogram(v, padding)  # noqa: E731
    torch.testing.assert_close(block(roll(x), pad), roll(block(x, pad)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("whole", "geometry", "padding"),
    [
        (math.pi, {}, "flip"),
        (2 * math.pi, {}, "circular"),
        (2 * math.pi, {"geometry": "fan", "source_distance": 40.0, "detector_distance": 20.0}, "circular"),
    ],
)
def test_padding_suits_the_physics(whole, geometry, padding):
    physics = Radon(16, turn(8, whole), **geometry)
    y = physics(torch.rand(1, 1, 16, 16))
    assert torch.equal(trained()(y, physics), trained(angle_padding=padding)(y, physics))
    assert not torch.equal(trained()(y, physics), trained(angle_padding="replicate")(y, physics))


def test_padding_by_hand():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    rows = {"circular": [2.0, 1.0, 2.0, 1.0], "flip": [4.0, 1.0, 2.0, 3.0], "replicate": [1.0, 1.0, 2.0, 2.0]}
    for kind, row in rows.items():
        padded = _pad_sinogram(x, kind)[0, 0]
        assert padded.shape == (4, 4)
        assert padded[0].tolist() == padded[1].tolist() == row


def test_gradients(scan):
    physics = Radon(6, turn(4), dtype=torch.float64)
    network = trained(widths=(2, 2), dual_width=2, n_primary=2, n_dual=2, n_iter=1).double()
    y = physics(torch.rand(1, 1, 6, 6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: network(y, physics), (y,), fast_mode=True)
    network(y, physics).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_learns_on_a_few_images(scan):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    spots = torch.rand(8, 1, 4, 4, generator=g)
    x = torch.nn.functional.interpolate(spots, 16, mode="nearest")
    network, y = PrimalDualUNet(widths=(8, 16), dual_width=8), scan(x)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    before = (network(y, scan) - x).square().mean().item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = (network(y, scan) - x).abs().mean()
        loss.backward()
        optimizer.step()
    assert (network(y, scan) - x).square().mean() < 0.4 * before


def test_state_copies_and_pickles(scan, images):
    network, y = trained(), scan(images)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(twin(y, scan), network(y, scan))
    other = PrimalDualUNet(widths=(4, 8), dual_width=6).eval()
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(y, scan), network(y, scan))


def test_constant_data_does_no_harm(scan):
    assert torch.isfinite(trained()(torch.zeros(1, 1, *scan.out_shape), scan)).all()


# ---- the U-Net ----


def test_unet_by_hand():
    """Every step of two levels written out."""
    torch.manual_seed(0)
    net, x = UNet(2, 3, (4, 5)), torch.randn(2, 2, 6, 7)
    assert [type(layer) for layer in net.down[0]] == 2 * [nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
    fine = net.down[0](x)
    coarse = net.down[1](nn.functional.avg_pool2d(fine, 2))
    back = net.narrow[0](nn.functional.interpolate(coarse, (6, 7), mode="bilinear"))
    want = net.last(net.up[0](torch.cat([fine, back], 1)))
    torch.testing.assert_close(net(x), want)


class Drop(nn.Identity):
    def __init__(self, channels):
        super().__init__()


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (4, 7)])
def test_unet_keeps_sizes_and_types(size):
    for dtype in (torch.float32, torch.float64):
        net = UNet(2, 3, (4, 6, 8)).to(dtype)
        y = net(torch.randn(2, 2, *size, dtype=dtype))
        assert y.shape == (2, 3, *size)
        assert y.dtype == dtype


def test_complex_unet():
    class ComplexReLU(nn.Module):
        def forward(self, x):
            return torch.complex(x.real.relu(), x.imag.relu())

    def conv(a, b, k, padding=0):
        return nn.Conv2d(a, b, k, padding=padding, dtype=torch.complex64)

    net = UNet(1, 1, (3, 4), conv=conv, norm=Drop, activation=ComplexReLU)
    y = net(torch.randn(1, 1, 6, 5, dtype=torch.complex64))
    assert y.dtype == torch.complex64
    y.abs().sum().backward()


# ---- radial MRI ----


class TestRadialMRI(OperatorSuite):
    def operator(self):
        return RadialMRI(5, turn(3), dtype=torch.float64)

    def dense(self):
        P = 9
        k, s = torch.arange(P) - P // 2, torch.arange(P) - (P - 1) / 2
        waves = torch.exp(-2j * math.pi / P * torch.outer(k, s).to(torch.complex128)) / math.sqrt(P)
        return torch.einsum("kp,pan->kan", waves, self._radon(P).to(torch.complex128)).reshape(P * 3, 25)

    def _radon(self, P):
        return Radon(5, turn(3), dtype=torch.float64).to_dense(torch.float64).reshape(P, 3, 25)


class TestEvenRadialMRI(OperatorSuite):
    """An even number of bins, whose middle lies between two."""

    def operator(self):
        return RadialMRI(4, turn(3), dtype=torch.float64)

    def dense(self):
        P = 6
        k, s = torch.arange(P) - P // 2, torch.arange(P) - (P - 1) / 2
        waves = torch.exp(-2j * math.pi / P * torch.outer(k.double(), s.double()).to(torch.complex128)) / math.sqrt(P)
        radon = Radon(4, turn(3), dtype=torch.float64).to_dense(torch.float64).reshape(P, 3, 16)
        return torch.einsum("kp,pan->kan", waves, radon.to(torch.complex128)).reshape(P * 3, 16)


def test_spokes_are_samples_of_k_space():
    """Against the transform at the spokes' points, of a smooth image; low frequencies, as bins are averages."""
    size, angles = 64, turn(7)
    op = RadialMRI(size, angles, dtype=torch.float64)
    line = torch.linspace(-1, 1, size).double()
    x = torch.exp(-12 * (line - 0.2) ** 2 - 9 * (line[:, None] + 0.1) ** 2)
    P = op.out_shape[0]
    k = 2 * math.pi * (torch.arange(P, dtype=torch.float64) - P // 2) / P
    middle = abs(k) < 0.8
    points = torch.stack([-k[:, None] * angles.sin(), k[:, None] * angles.cos()])[:, middle]  # rows go downwards
    half = (size - 1) / 2 - size // 2  # from the middle of the image to its pixel n // 2
    shifted = torch.exp(1j * half * points.sum(0))
    exact = NonUniformFourier(points.flatten(1), (size, size))(x).reshape(points.shape[1:]) * shifted * size
    assert (op(x)[middle] * math.sqrt(P) - exact).norm() < 2e-2 * exact.norm()


def test_radial_mri_is_tomography(scan, images):
    op = RadialMRI(16, turn(6))
    spokes = op(images)
    torch.testing.assert_close(op.sinogram(spokes), scan(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(op.A_dagger(spokes).real, scan.A_dagger(scan(images)), rtol=1e-3, atol=1e-4)
    network = trained()
    torch.testing.assert_close(
        network(op.sinogram(spokes), op.radon), network(scan(images), scan), rtol=1e-3, atol=1e-4
    )


# ---- more angles ----


@pytest.mark.parametrize("geometry", [{}, {"geometry": "fan", "source_distance": 40.0, "detector_distance": 20.0}])
def test_upsampled_sinogram_of_a_disc(geometry):
    """A smooth disc off the centre: nearly what more angles would have measured; measured angles are kept."""
    whole = 2 * math.pi if geometry else math.pi
    few, many = (Radon(32, turn(n, whole) + 0.1, **geometry) for n in (24, 48))
    line = torch.linspace(-1, 1, 32)
    x = torch.exp(-8 * (line - 0.3) ** 2 - 8 * (line[:, None] + 0.2) ** 2)
    got, exact = upsample_sinogram(few(x), few, many), many(x)
    assert torch.equal(got[:, ::2], few(x))
    assert (got - exact).norm() < 0.01 * exact.norm()
    assert (got[:, -1] - exact[:, -1]).norm() < 0.02 * exact[:, -1].norm()  # around the end


def test_upsampling_takes_angles_in_any_order():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    few, shuffled, many = Radon(16, turn(12)), Radon(16, turn(12)[order]), Radon(16, turn(30))
    x = torch.rand(16, 16)
    torch.testing.assert_close(
        upsample_sinogram(shuffled(x), shuffled, many), upsample_sinogram(few(x), few, many), rtol=1e-5, atol=1e-5
    )


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PrimalDualUNet(primal="mlp"), "primal must be one of"),
        (lambda: PrimalDualUNet(angle_padding="zeros"), "angle_padding must be one of"),
        (lambda: PrimalDualUNet(n_dual=0), "n_dual must be >= 1, got 0"),
        (lambda: PrimalDualUNet(dual_width=0), "dual_width must be >= 1, got 0"),
        (lambda: LearnedPrimalDual([], [], 1, 1, init="ones"), "init must be one of"),
        (lambda: UNet(1, 1, ()), "widths must name at least one level"),
        (lambda: UNet(1, 0), "out_channels must be >= 1, got 0"),
        (lambda: UNet(1, 1)(torch.zeros(1, 1, 7, 20)), r"x must have at least 8 x 8 pixels, got \(7, 20\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.bad_input
def test_bad_data(scan):
    network, y = trained(), torch.zeros(1, 1, *scan.out_shape)
    with pytest.raises(ValueError, match=r"y must have shape \(..., 1, 24, 6\), got \(1, 1, 6, 24\)"):
        network(y.mT, scan)
    with pytest.raises(ValueError, match="y must be finite"):
        network(y + torch.nan, scan)
    with pytest.raises(ValueError, match="full must be the same scan as physics but for its angles"):
        upsample_sinogram(y, scan, Radon(16, turn(9), detectors=20))
    with pytest.raises(ValueError, match=r"y must have shape"):
        upsample_sinogram(y.mT, scan, scan)


def test_convolutions_begin_without_offset():
    assert all((layer.bias == 0).all() for layer in _Convolutions(2, 3, 4) if isinstance(layer, nn.Conv2d))
