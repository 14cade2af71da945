"""GloReDi: Fourier convolutions, the network, the two losses, the steps of teacher and student, and the units of CT."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import nn
from torch.nn import functional as F

from hadamard.imaging import (
    BandPassContrastive,
    DirectionalDistillation,
    FastFourierConv2d,
    FourierUnit,
    GloReDistiller,
    GloReNet,
    attenuation,
    hounsfield,
    photon_noise,
    unwindow,
    window,
)


class Drop(nn.Identity):
    def __init__(self, channels=0):
        super().__init__()


PLAIN = {"norm": Drop, "activation": Drop}


def small(**options):
    torch.manual_seed(0)
    return GloReNet(**({"width": 4, "n_enc": 1, "n_dec": 1} | options))


def images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- Fourier convolutions ----


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (4, 9), (1, 3)])
def test_a_fourier_unit_that_does_nothing(size):
    unit = FourierUnit(3, **PLAIN)
    unit.conv.weight.data = torch.eye(6)[:, :, None, None]
    x = images(2, 3, *size)
    torch.testing.assert_close(unit(x), x)


def test_fourier_unit_by_hand():
    """Every coefficient of the full spectrum, real and imaginary parts mixed by the matrix, and back."""
    torch.manual_seed(0)
    unit, x = FourierUnit(2, norm=Drop), images(1, 2, 4, 5)
    X = torch.fft.fft2(x, norm="ortho")[0]
    matrix = unit.conv.weight[:, :, 0, 0]
    parts = torch.stack([X[0].real, X[0].imag, X[1].real, X[1].imag])
    mixed = torch.einsum("ij,jhw->ihw", matrix, parts).relu()
    half = torch.complex(mixed[::2], mixed[1::2])[..., :3]  # what is kept of a real image's spectrum
    want = torch.fft.irfft2(half, s=(4, 5), norm="ortho")
    torch.testing.assert_close(unit(x)[0], want)


def test_layer_by_its_equations():
    torch.manual_seed(0)
    layer, x = FastFourierConv2d(4, 8, 3, global_in=0.5, global_out=0.25, **PLAIN), images(2, 4, 6, 7)
    near, far = (F.pad(part, (1, 1, 1, 1), mode="reflect") for part in x.split(2, 1))
    from_near = F.conv2d(near, layer.from_local.weight)
    y_near = from_near[:, :6] + F.conv2d(far, layer.from_global.weight)
    inner = F.conv2d(x[:, 2:], layer.spectral.first[0].weight)
    y_far = from_near[:, 6:] + F.conv2d(inner + layer.spectral.unit(inner), layer.spectral.last.weight)
    torch.testing.assert_close(layer(x), torch.cat([y_near, y_far], 1))


def test_without_global_channels_it_is_a_convolution():
    layer, x = FastFourierConv2d(3, 5, 3, global_in=0, global_out=0), images(2, 3, 9, 8)
    theirs = nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect", bias=False)
    theirs.weight.data = layer.from_local.weight.data
    torch.testing.assert_close(layer(x), theirs(x))
    assert layer.from_global is None
    assert layer.spectral is None


def test_what_the_spectral_part_does_to_a_shifted_image():
    """It moves along where the matrix multiplies complex numbers and nothing cuts them, and not in general."""
    torch.manual_seed(0)
    x, a, b = images(2, 3, 7, 6), torch.randn(3, 3), torch.randn(3, 3)
    rotations = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], 1).reshape(6, 6)
    linear, learned = FourierUnit(3, **PLAIN), FourierUnit(3).eval()
    linear.conv.weight.data = rotations[:, :, None, None]
    roll = lambda v: v.roll((2, 3), (2, 3))  # noqa: E731
    torch.testing.assert_close(linear(roll(x)), roll(linear(x)), rtol=1e-4, atol=1e-5)
    assert (learned(roll(x)) - roll(learned(x))).abs().max() > 0.01


@pytest.mark.parametrize(
    "shares", [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0.75), (0.75, 0), (0.5, 0.5), (1, 0.5), (0.5, 1)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_shapes_of_all_shares(shares, stride):
    for kernel, size in ((1, (5, 4)), (3, (6, 7)), (7, (9, 4))):
        layer = FastFourierConv2d(4, 6, kernel, stride, global_in=shares[0], global_out=shares[1])
        assert layer(images(2, 4, *size)).shape == (2, 6, *(math.ceil(n / stride) for n in size))


def test_layer_gradients():
    torch.manual_seed(0)
    layer = FastFourierConv2d(3, 4, 3, 2, global_in=0.4, global_out=0.5).double().eval()
    x = images(1, 3, 5, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    layer.train()
    layer(images(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_layer_in_half_precision():
    layer, x = FastFourierConv2d(4, 4, 3), images(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert (y.float() - layer(x)).abs().max() < 0.1
    assert FourierUnit(2).to(torch.bfloat16)(images(1, 2, 4, 4).bfloat16()).dtype == torch.bfloat16


# ---- the network ----


@pytest.mark.parametrize(
    "options", [{}, {"global_skip": True}, {"in_channels": 2}, {"n_enc": 0, "n_dec": 0}, {"downsamplings": 1}]
)
@pytest.mark.parametrize("size", [(16, 16), (9, 22), (8, 13)])
def test_any_size(options, size):
    network = small(**options)
    x = images(2, options.get("in_channels", 1), *size)
    y = network(x)
    assert y.shape == x.shape
    if not options.get("global_skip"):
        assert y.min() >= 0
        assert y.max() <= 1


def test_forward_is_encode_and_decode():
    network, x = small().eval(), images(2, 1, 12, 16)
    g = network.encode(x)
    assert g.shape == (2, 16, 3, 4)
    torch.testing.assert_close(network(x), network.decode(g).sigmoid())
    torch.testing.assert_close(small(global_skip=True).eval()(x), x + network.decode(g))


@pytest.mark.parametrize(("downsamplings", "shape"), [(1, (2, 8, 16, 24)), (2, (2, 16, 8, 12)), (3, (2, 32, 4, 6))])
def test_how_coarse_the_grid_is(downsamplings, shape):
    network, x = small(downsamplings=downsamplings), images(2, 1, 32, 48)
    assert network.encode(x).shape == shape
    assert network(x).shape == x.shape
    assert network.encoder[downsamplings][0].spectral is None  # there are no global channels yet
    assert network.encoder[downsamplings + 1].layers[0][0].spectral is not None


def test_all_of_the_representation_is_decoded():
    """No channel is left out and none is used twice, as in the paper's program."""
    network, g = small(n_dec=2).eval(), images(1, 16, 4, 4).requires_grad_()
    network.decode(g).square().sum().backward()
    assert (g.grad.abs().amax((0, 2, 3)) > 0).all()


def reach(network, size=64):
    """Share of the pixels on which one element of the representation depends."""
    x = (0.5 + 0.1 * images(1, 1, size, size, dtype=torch.float64)).requires_grad_()
    g = network.double().eval().encode(x)
    g[0, :, size // 8, size // 8].sum().backward()
    return float((x.grad[0, 0].abs() > 1e-12).double().mean())


def test_one_element_sees_the_whole_image():
    assert reach(small()) == 1
    assert reach(small(global_ratio=0)) < 0.4


def test_network_gradients_and_copies():
    network = small(width=2).double()
    for name in ("encoder", "decoder"):
        assert sum(p.numel() for p in getattr(network, name).parameters()) > 0
    network.eval()
    x = images(1, 1, 8, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(network, (x,), fast_mode=True)
    twin = GloReNet(width=2, n_enc=1, n_dec=1).double().eval()
    twin.load_state_dict(network.state_dict())
    torch.testing.assert_close(twin(x), network(x))
    torch.testing.assert_close(copy.deepcopy(network)(x), network(x))


def test_samples_do_not_see_each_other():
    network, x = small().eval(), images(3, 1, 16, 16)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-4, atol=1e-6)


COMPILE = """
import torch
from hadamard.imaging import GloReNet
network, x = GloReNet(width=4, n_enc=1, n_dec=1).eval(), torch.rand(1, 1, 16, 16)
torch.testing.assert_close(torch.compile(network, backend="aot_eager", fullgraph=True)(x), network(x))
"""


def test_compiles():
    """In a process of its own: here annotations are checked by code that dynamo does not trace."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True, capture_output=True, timeout=120)


# ---- the losses ----


def test_directions():
    loss = DirectionalDistillation()
    g = images(2, 5, 3, 4)
    scale = 0.1 + images(2, 1, 3, 4, seed=1)
    assert float(loss(g * scale, g)) == pytest.approx(0, abs=1e-6)
    assert float(loss(-g, g)) == pytest.approx(2)
    other = images(2, 5, 3, 4, seed=2) - 0.5
    cosines = [
        1 - np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
        for a, b in zip(g.permute(0, 2, 3, 1).reshape(-1, 5).numpy(), other.permute(0, 2, 3, 1).reshape(-1, 5).numpy())
    ]
    assert float(loss(g, other)) == pytest.approx(np.mean(cosines), rel=1e-5)


def test_only_the_student_is_drawn():
    for loss in (DirectionalDistillation(), BandPassContrastive(bank=0)):
        own, shown = images(2, 3, 8, 8).requires_grad_(), images(2, 3, 8, 8, seed=1).requires_grad_()
        loss(own, shown).backward()
        assert own.grad.abs().sum() > 0
        assert shown.grad is None


@pytest.mark.parametrize(("size", "band"), [((8, 8), (0.1, 0.6)), ((9, 6), (0.2, 0.5)), ((5, 5), (0, 1))])
def test_features_are_the_band_of_the_cosine_transform(size, band):
    g = images(2, 3, *size, dtype=torch.float64)
    X = dctn(g.numpy(), axes=(2, 3), norm="ortho")
    at = np.maximum(np.arange(size[0])[:, None] / size[0], np.arange(size[1]) / size[1])
    inside = (at >= band[0]) & (at <= band[1])
    want = X[..., inside].reshape(2, -1)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    found = BandPassContrastive(band=band).features(g)
    np.testing.assert_allclose(found.numpy(), want, atol=1e-10)
    assert found.shape[1] == 3 * {(8, 8): 24, (9, 6): 16, (5, 5): 25}[size]  # (8, 8): 5 x 5 but the constant


def test_contrast_against_a_loop():
    loss = BandPassContrastive(bank=3, tau=0.5)
    bank = [images(3, 2, 8, 8, seed=5)]
    loss(bank[0], bank[0])
    own, shown = images(4, 2, 8, 8), images(4, 2, 8, 8, seed=1)
    a, b, memory = (loss.features(g).double() for g in (own, shown, bank[0]))
    vectors, terms = torch.cat([a, b]), []
    for i in range(8):
        others = [vectors[j] for j in range(8) if j != i] + list(memory)
        weights = [math.exp(float(vectors[i] @ v) / 0.5) for v in others]
        terms.append(-math.log(math.exp(float(vectors[i] @ vectors[(i + 4) % 8]) / 0.5) / sum(weights)))
    assert float(loss(own, shown)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_bank_is_first_in_first_out_and_has_no_gradient():
    loss = BandPassContrastive(bank=5)
    batches = [images(2, 1, 8, 8, seed=k).requires_grad_() for k in range(4)]
    for k, g in enumerate(batches):
        assert (float(loss(g, g).detach()) > 0) == (k == 3)  # nothing until the bank is full
    want = torch.cat([loss.features(g) for g in batches])[-5:]
    torch.testing.assert_close(loss.memory, want)
    assert not loss.memory.requires_grad
    loss.eval()
    loss(batches[0], batches[0])
    torch.testing.assert_close(loss.memory, want)
    twin = BandPassContrastive(bank=5)
    twin.load_state_dict(loss.state_dict())
    torch.testing.assert_close(twin.memory, want)


# ---- teacher and student ----


def trainer(network=None, rate=1e-2, **options):
    distiller = GloReDistiller(network or small(), **({"direction": 0.1, "contrast": 0.0} | options))
    return distiller, torch.optim.Adam([p for p in distiller.parameters() if p.requires_grad], rate)


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(module, before):
    return all(torch.equal(p, q) for p, q in zip(module.parameters(), before))


def test_who_moves_in_which_half():
    distiller, optimizer = trainer()
    few, more, truth = images(3, 2, 1, 16, 16)
    parts = distiller.student, distiller.teacher.encoder, distiller.teacher.decoder
    student, encoder, decoder = map(weights, parts)
    distiller.teacher_step(optimizer, more, truth)
    assert same(distiller.student, student)
    assert same(distiller.teacher.decoder, decoder)  # a copy of a decoder that has not moved
    assert not same(distiller.teacher.encoder, encoder)
    encoder = weights(distiller.teacher.encoder)
    distiller.student_losses(few, more, truth)["student"].backward()
    assert all(p.grad is None for p in distiller.teacher.parameters())
    optimizer.step()
    assert same(distiller.teacher.encoder, encoder)
    assert not same(distiller.student.encoder, student[: len(list(distiller.student.encoder.parameters()))])


def test_step_by_hand():
    """The paper's order: copy the decoder, move the teacher, look at the moved teacher, move the student."""
    distiller, optimizer = trainer(rate=1e-2, direction=0.3)
    own, teacher = copy.deepcopy(distiller.student), copy.deepcopy(distiller.teacher)
    few, more, truth = images(3, 2, 1, 16, 16)
    losses = distiller.training_step(optimizer, few, more, truth)

    loss = F.smooth_l1_loss(teacher(more), truth)
    assert losses["teacher"] == pytest.approx(loss.item())
    loss.backward()
    torch.optim.Adam(teacher.encoder.parameters(), 1e-2).step()
    teacher.zero_grad()
    g = own.encode(few)
    pixel = F.smooth_l1_loss(own.decode(g).sigmoid(), truth)
    direction = 1 - F.cosine_similarity(g[:, :8], teacher.encode(more)[:, :8].detach(), dim=1).mean()
    (pixel + 0.3 * direction).backward()
    torch.optim.Adam(own.parameters(), 1e-2).step()
    assert losses["pixel"] == pytest.approx(pixel.item())
    assert losses["direction"] == pytest.approx(direction.item(), rel=1e-4)
    assert losses["student"] == pytest.approx((pixel + 0.3 * direction).item())
    assert losses["contrast"] == 0
    for mine, theirs in ((distiller.student, own), (distiller.teacher.encoder, teacher.encoder)):
        for p, q in zip(mine.parameters(), theirs.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("momentum", "copied"), [(0.0, 1.0), (1.0, 0.0), (0.75, 0.25)])
def test_copy_of_the_decoder(momentum, copied):
    distiller, _ = trainer(momentum=momentum)
    old = {name: value.clone() for name, value in distiller.teacher.decoder.state_dict().items()}
    with torch.no_grad():
        for value in distiller.student.decoder.state_dict().values():
            value.add_(1)
    distiller._follow()
    for name, value in distiller.teacher.decoder.state_dict().items():
        torch.testing.assert_close(value, old[name] + (copied if value.is_floating_point() else 1))


def test_terms_without_weight_are_not_computed():
    distiller, optimizer = trainer(direction=0.0)
    distiller.directions = distiller.band_pass = None
    losses = distiller.training_step(optimizer, *images(3, 2, 1, 16, 16))
    assert losses["student"] == losses["pixel"]


def test_the_same_seed_gives_the_same_bits():
    found = []
    for _ in range(2):
        distiller, optimizer = trainer(contrast=0.1, band_pass=BandPassContrastive(bank=2))
        for k in range(3):
            losses = distiller.training_step(optimizer, *images(3, 2, 1, 16, 16, seed=k))
        found.append(losses)
    assert found[0] == found[1]


def test_student_learns():
    distiller, optimizer = trainer(small(global_skip=True), rate=5e-3, contrast=1e-3)
    truth = F.interpolate(images(4, 1, 4, 4), 16)
    noise = images(4, 1, 16, 16, seed=1) - 0.5
    losses = [distiller.training_step(optimizer, truth + noise, truth + noise / 2, truth) for _ in range(30)]
    assert losses[-1]["pixel"] < 0.4 * losses[0]["pixel"]
    assert losses[-1]["teacher"] < losses[-1]["pixel"]  # it sees less noise


# ---- units and noise ----


def test_units():
    hu = torch.tensor([-1000.0, -250.0, 0.0, 60.0, 2000.0])
    torch.testing.assert_close(hounsfield(attenuation(hu)), hu, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(unwindow(window(hu)), hu, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(attenuation(hu, water=1.0) / 3, window(hu), rtol=1e-5, atol=1e-6)
    assert attenuation(torch.zeros(1)).item() == pytest.approx(0.192)


def test_photons():
    y = torch.full((200, 200), 2.0)
    noisy = photon_noise(y, 1e4, generator=torch.Generator().manual_seed(0))
    assert float(noisy.mean()) == pytest.approx(2, abs=1e-3)
    assert float(noisy.std()) == pytest.approx(math.sqrt(math.exp(2) / 1e4), rel=0.05)
    assert float(photon_noise(torch.tensor([[50.0]]), 100.0)) == pytest.approx(math.log(100))  # none arrives
    again = photon_noise(y, 1e4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FourierUnit(0), "channels must be >= 1, got 0"),
        (lambda: FastFourierConv2d(4, 4, 2), "kernel_size must be odd, got 2"),
        (lambda: FastFourierConv2d(4, 4, 3, 3), "stride must be >= 1 and <= 2, got 3"),
        (lambda: FastFourierConv2d(4, 4, global_in=1.5), "global_in must be >= 0 and <= 1, got 1.5"),
        (lambda: FastFourierConv2d(4, 4, 7)(images(1, 4, 3, 9)), "x must have more than 3 pixels each way, got"),
        (lambda: GloReNet(width=0), "width must be >= 1, got 0"),
        (lambda: GloReNet(n_enc=-1), "n_enc must be >= 0, got -1"),
        (lambda: GloReNet(global_ratio=-0.1), "global_ratio must be >= 0 and <= 1, got -0.1"),
        (lambda: small()(images(1, 1, 7, 9)), r"x must have at least 8 x 8 pixels, got \(7, 9\)"),
        (lambda: small().encode(images(1, 1, 10, 12)), r"multiples of 4, got \(10, 12\)"),
        (lambda: small(downsamplings=1).encode(images(1, 1, 9, 12)), r"multiples of 2, got \(9, 12\)"),
        (lambda: small(downsamplings=3)(images(1, 1, 15, 32)), r"x must have at least 16 x 16 pixels, got"),
        (lambda: GloReNet(downsamplings=0), "downsamplings must be >= 1, got 0"),
        (lambda: small()(1000 * images(1, 1, 8, 8)), r"windowed to about \[0, 1\], got values from .* to 99"),
        (lambda: small()(images(1, 1, 8, 8) / 0 - 1), "x must be finite"),
        (lambda: GloReDistiller(small(), momentum=2), "momentum must be >= 0 and <= 1, got 2"),
        (lambda: GloReDistiller(small(), direction=-1), "direction must be >= 0, got -1"),
        (lambda: GloReDistiller(small(), share=0), "share must be > 0 and <= 1, got 0"),
        (lambda: BandPassContrastive(bank=-1), "bank must be >= 0, got -1"),
        (lambda: BandPassContrastive(band=(0.6, 0.1)), r"band\[1\] must be >= 0.6 and <= 1, got 0.1"),
        (lambda: BandPassContrastive(tau=0), "tau must be > 0, got 0"),
        (lambda: BandPassContrastive(band=(0.01, 0.1)).features(images(1, 1, 4, 4)), "band must hold a frequency"),
        (lambda: DirectionalDistillation()(images(1, 2, 4, 4), images(1, 3, 4, 4)), "must have the same shape"),
        (lambda: photon_noise(torch.ones(2, 2), 0), "photons must be > 0, got 0"),
        (lambda: window(torch.ones(2), width=0), "width must be > 0, got 0"),
        (lambda: hounsfield(torch.ones(2), water=-1), "water must be > 0, got -1"),
    ],
)  # fmt: skip
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.bad_input
def test_bad_types_and_pairs():
    with pytest.raises(TypeError, match="x must have a floating dtype, got torch.complex64"):
        small()(torch.ones(1, 1, 8, 8, dtype=torch.complex64))
    distiller, optimizer = trainer()
    few, truth = images(2, 1, 16, 16), images(2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"x and truth must have the same shape, got \(1, 1, 16, 16\) and"):
        distiller.training_step(optimizer, few, few[:1], truth)
    with pytest.raises(ValueError, match="x_sparse and truth must have the same shape"):
        distiller.training_step(optimizer, few[:1], few, truth)
    loss = BandPassContrastive(bank=2)
    loss(few[:, :, :8, :8], few[:, :, :8, :8])
    with pytest.raises(ValueError, match="student must give 24 features, as those in the bank, got"):
        loss(few, few)
