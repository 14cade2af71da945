"""T1, its start, its loss and the choice of modes: closed forms, brute force, invariances."""

import math

import pytest
import torch
from torch import nn

from hadamard.pde import (
    T1,
    SpectralConv,
    T1Layer,
    coefficient_loss,
    suggest_modes,
    truncation_error,
    variance_preserving_,
)
from hadamard.pde.expansions import expansion

TRANSFORMS = ("dct", "dft")
double = {"dtype": torch.float64}


def awake(net, generator):
    """A network whose output does not begin at zero."""
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net


def band_limited(transform, n_modes, size, generator, channels=1):
    """The same random fields on grids of any size."""
    basis = expansion(transform)
    z = torch.randn(2, channels, *basis.shape(n_modes), generator=generator, **double)
    if basis.is_complex:
        z = basis.project(torch.complex(z, torch.randn(z.shape, generator=generator, **double)), len(n_modes))
    return [basis.synthesise(z, s) for s in size], z


# ---- expansions ----


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("n_modes", "sizes"), [((3, 4), ((8, 9), (16, 11))), ((5,), ((9,), (20,)))])
def test_expansion_of_what_it_holds(transform, n_modes, sizes, generator):
    """Coefficients are found again on every grid, and Parseval holds."""
    fields, z = band_limited(transform, n_modes, sizes, generator)
    basis = expansion(transform)
    for x in fields:
        torch.testing.assert_close(basis.analyse(x, n_modes), z, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(basis.square(z, len(n_modes)), x.square().flatten(2).mean(-1))


@pytest.mark.parametrize(("transform", "start"), [("dct", 0.5), ("dft", 0.0)])
def test_ramp_is_the_coordinate(transform, start):
    n = 4096
    t = (torch.arange(n, **double) + start) / n
    exact = expansion(transform).analyse(t[None], (6,))[0]
    torch.testing.assert_close(expansion(transform).ramp(6), exact, rtol=0, atol=2e-4)
    grids = expansion(transform).ramps((3, 4))
    x = expansion(transform).synthesise(grids, (64, 64))
    assert float(x[0].std(1).max()) < 1e-12  # the first coordinate does not vary along the second axis
    assert float(x[1].std(0).max()) < 1e-12
    assert float(x[0, 40, 0] - x[0, 20, 0]) > 0.1


# ---- the network against the same computed in space and by loops ----


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_layer_is_its_formula(transform, generator):
    layer = awake(T1Layer(3, (2, 3), transform, "tanh", **double), generator)
    shape, parts = layer.shape, torch.view_as_complex if layer.is_complex else (lambda w: w)
    z = torch.randn(2, 3, *shape, generator=generator, dtype=torch.complex128 if layer.is_complex else torch.float64)
    W, (Ay, Ax) = parts(layer.channel_mixing), [parts(A) for A in layer.axis_mixing]
    x = torch.einsum("bcyx,yxcd->bdyx", z, W)
    x = torch.complex(x.real.tanh(), x.imag.tanh()) if layer.is_complex else x.tanh()
    expected = z + torch.einsum("bcyx,cyv,cxu->bcvu", x, Ay, Ax)
    torch.testing.assert_close(layer(z), expected)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_lift_after_truncation_is_lift_before(transform, generator):
    net = awake(T1((3, 4), 2, 1, 5, 1, transform=transform, **double), generator)
    x = torch.randn(2, 2, 16, 15, generator=generator, **double)
    after = net._lift(net.analyse(x))
    grid = torch.view_as_complex(net.grid) if net.basis.is_complex else net.grid
    coordinates = net.basis.synthesise(grid, (16, 15)).expand(2, 2, 16, 15)
    before = net.lift(torch.cat([x, coordinates], 1).movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(net.analyse(before), after, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_output_is_real_and_coefficients_are_its_own(transform, generator):
    net = awake(T1((3, 4), 1, 2, 4, 2, transform=transform, **double), generator)
    x = torch.randn(2, 1, 12, 10, generator=generator, **double)
    y = net(x)
    net.output = "coefficients"
    torch.testing.assert_close(net.analyse(y), net(x))
    assert y.dtype == torch.float64


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_same_operator_on_every_grid(transform, generator):
    net = awake(T1((4, 5), 1, 1, 4, 2, transform=transform, **double), generator)
    (coarse, fine), _ = band_limited(transform, (4, 5), ((16, 20), (32, 40)), generator)
    a, b = net(coarse), net(fine)
    net.output = "coefficients"
    torch.testing.assert_close(net.basis.analyse(a, (4, 5)), net.basis.analyse(b, (4, 5)))
    torch.testing.assert_close(net(coarse), net(fine))


def test_layer_without_mixing_is_the_identity(generator):
    layer = T1Layer(3, (4, 5))
    nn.init.zeros_(layer.channel_mixing)
    z = torch.randn(2, 3, 4, 5, generator=generator)
    assert torch.equal(layer(z), z)


def test_samples_do_not_see_each_other(generator):
    net = awake(T1((4, 4), 1, 1, 4, 2, **double), generator)
    x = torch.randn(5, 1, 8, 8, generator=generator, **double)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(net(x[order]), net(x)[order])


def test_one_and_three_dimensions_and_one_point(generator):
    for modes, size in (((5,), (12,)), ((2, 3, 2), (4, 6, 5)), ((1, 4), (1, 8))):
        for transform in TRANSFORMS:
            net = T1(modes, 1, 1, 3, 2, transform=transform)
            size = tuple(max(n, 2 * m - 1) for n, m in zip(size, modes))
            assert net(torch.randn(2, 1, *size, generator=generator)).shape == (2, 1, *size)


# ---- the loss ----


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_loss_of_coefficients_is_loss_in_space(transform, generator):
    net = awake(T1((3, 4), 1, 2, 4, 1, transform=transform, **double), generator)
    x, y = (torch.randn(3, c, 16, 12, generator=generator, **double) for c in (1, 2))
    space = ((net(x) - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)).mean()
    net.output = "coefficients"
    torch.testing.assert_close(coefficient_loss(net(x), y, transform), space)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_gradients(transform, generator):
    net = T1((2, 3), 1, 1, 2, 1, projection_channels=2, transform=transform, output="coefficients", **double)
    net = awake(net, generator)
    x, y = (torch.randn(2, 1, 6, 7, generator=generator, **double) for _ in range(2))

    def loss(x, *weights):
        names = [name for name, _ in net.named_parameters()]
        return coefficient_loss(torch.func.functional_call(net, dict(zip(names, weights)), (x,)), y, transform)

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), *net.parameters()))
    assert torch.autograd.gradgradcheck(lambda x: loss(x, *net.parameters()), (x,))


def test_it_learns_to_diffuse(generator):
    """The heat equation multiplies each cosine by a number of its own: one layer is enough."""
    (x,), _ = band_limited("dct", (6, 6), ((16, 16),), generator)
    x = torch.cat([x] + [band_limited("dct", (6, 6), ((16, 16),), generator)[0][0] for _ in range(31)]).float()
    k = torch.arange(6.0)
    decay = torch.exp(-0.05 * (k[:, None] ** 2 + k**2))
    net = T1((6, 6), 1, 1, 8, 1, projection_channels=8, generator=generator, output="coefficients")
    y = net.synthesise(net.analyse(x) * decay, (16, 16))
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = coefficient_loss(net(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


# ---- the start ----


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_variance_stays_over_eight_layers(transform, generator):
    make = {"resolution": (64, 64), "positional_embedding": None, "generator": generator}
    net = T1((12, 12), 8, 1, 32, 8, transform=transform, **make)
    x = torch.randn(8, 8, 64, 64, generator=generator)
    scale = math.sqrt(net.basis.degrees(net.n_modes))
    z = net._lift(net.analyse(x)) * scale
    start = float(net.basis.square(z.detach() / scale, 2).mean())
    for layer in net.layers:
        z = layer(z)
    end = float(net.basis.square(z.detach() / scale, 2).mean())
    assert 0.7 < start < 1.3
    assert 0.3 <= end <= 3


def test_output_begins_near_zero(generator):
    y = T1((4, 4), 1, 1, 8, 2)(torch.randn(2, 1, 8, 8, generator=generator))
    assert y.abs().max().item() < 1e-6


def test_spectral_convolutions_keep_white_noise(generator):
    net = nn.Sequential(*[SpectralConv(24, 24, (6, 6)) for _ in range(3)])
    assert variance_preserving_(net, (32, 32), generator) is net
    x = torch.randn(8, 24, 32, 32, generator=generator)
    first = net[0](x).var().item()
    assert 0.8 < first < 1.2


# ---- choosing modes ----


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_truncation_error_is_what_is_lost(transform, generator):
    x = torch.randn(3, 2, 9, 12, generator=generator, **double)
    basis = expansion(transform)
    lost = x - basis.synthesise(basis.analyse(x, (3, 5)), (9, 12))
    expected = lost.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    torch.testing.assert_close(truncation_error(x, (3, 5), transform), expected)
    assert truncation_error(x[:, 0], (3, 5), transform).shape == (3,)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_no_network_is_below_the_floor(transform, generator):
    net = awake(T1((3, 3), 1, 1, 4, 1, transform=transform, **double), generator)
    x, y = (torch.randn(3, 1, 12, 12, generator=generator, **double) for _ in range(2))
    error = (net(x) - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
    assert bool((error >= truncation_error(y, (3, 3), transform)).all())


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_suggested_modes_meet_the_tolerance_and_none_is_spare(transform, generator):
    wide, _ = band_limited(transform, (6, 4), ((24, 21),), generator)
    x = wide[0] + 1e-3 * torch.randn(2, 1, 24, 21, generator=generator, **double)
    modes = suggest_modes(x, 0.05, transform)
    assert float(truncation_error(x, modes, transform).max()) <= 0.05
    for axis in range(2):
        fewer = tuple(m - (a == axis) for a, m in enumerate(modes))
        assert float(truncation_error(x, fewer, transform).max()) > 0.05
    assert modes <= (6, 4)


def test_suggestion_finds_the_band():
    t = (torch.arange(32, **double) + 0.5) / 32
    field = torch.cos(5 * math.pi * t)[:, None] * torch.cos(2 * math.pi * t)
    assert suggest_modes(field[None], 1e-3) == (6, 3)
    t = torch.arange(32, **double) / 32
    wave = torch.cos(2 * math.pi * (5 * t[:, None] - 2 * t))
    assert suggest_modes(wave[None], 1e-3, "dft") == (6, 3)


# ---- as a module ----


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_state_dict_round_trip_and_generator(transform, generator):
    make = {"transform": transform, "resolution": (16, 16)}
    net = T1((3, 4), 1, 1, 4, 2, generator=torch.Generator().manual_seed(1), **make)
    same = T1((3, 4), 1, 1, 4, 2, generator=torch.Generator().manual_seed(1), **make)
    other = T1((3, 4), 1, 1, 4, 2, **make)
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 16, 16, generator=generator)
    assert torch.equal(net(x), same(x))
    assert torch.equal(net(x), other(x))


def test_autocast_and_half(generator):
    net = awake(T1((4, 4), 1, 1, 4, 2), generator)
    x = torch.randn(2, 1, 16, 16, generator=generator)
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = net(x)
    cast.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    assert (cast.float() - exact).norm() < 0.05 * exact.norm()
    half = net.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.bad_input  # annotations that are checked at run time do not compile
def test_compile_and_export(generator):
    net = awake(T1((4, 4), 1, 1, 4, 2), generator)
    x = torch.randn(2, 1, 16, 16, generator=generator)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: T1((), 1, 1, 4), "n_modes must have one entry"),
        (lambda: T1((4, 0), 1, 1, 4), "n_modes must be >= 1, got 0"),
        (lambda: T1((4,), 1, 0, 4), "out_channels must be >= 1, got 0"),
        (lambda: T1((4,), 1, 1, 4, transform="fft"), "transform must be one of 'dct', 'dft', got 'fft'"),
        (lambda: T1((4,), 1, 1, 4, activation="elu"), "activation must be one of"),
        (lambda: T1((4,), 1, 1, 4, output="field"), "output must be one of"),
        (lambda: T1((4,), 1, 1, 4, resolution=(3,)), "n_modes must be <= 3 along a dimension of 3 points, got 4"),
        (lambda: T1((4,), 1, 1, 4, resolution=(8, 8)), "resolution must have 1 entries, got 2"),
        (lambda: T1((4,), 1, 1, 4)(torch.ones(1, 1, 3)), "n_modes must be <= 3 along a dimension of 3 points, got 4"),
        (lambda: T1((4,), 1, 1, 4, transform="dft")(torch.ones(1, 1, 6)), "n_modes must be <= 3 along a dimension"),
        (lambda: T1((4,), 2, 1, 4)(torch.ones(1, 1, 8)), "x must have 2 channels, got 1"),
        (lambda: T1((4,), 1, 1, 4)(torch.ones(1, 8)), r"x must have 3 dimension\(s\)"),
        (lambda: T1((4,), 1, 1, 4)(torch.ones(1, 1, 8) * torch.nan), "x must be finite"),
        (lambda: T1Layer(2, (3,))(torch.ones(1, 2, 4)), r"z must have shape \(batch, 2, \(3,\)\)"),
        (lambda: coefficient_loss(torch.ones(1, 1, 3), torch.zeros(1, 1, 8)), "y must not vanish everywhere"),
        (lambda: coefficient_loss(torch.ones(2, 1, 3), torch.ones(1, 1, 8)), r"y must have shape \(batch, channels\)"),
        (lambda: truncation_error(torch.ones(1, 8), (9,)), "n_modes must be <= 8"),
        (lambda: truncation_error(torch.ones(8), (2,)), r"fields must have a batch and 1 dimension\(s\)"),
        (lambda: truncation_error(torch.zeros(1, 8), (2,)), "fields must not vanish everywhere"),
        (lambda: suggest_modes(torch.ones(1, 8, 8), 0.0), "tol must be > 0 and < 1, got 0.0"),
        (lambda: suggest_modes(torch.tensor([[1.0, -1.0] * 4]), 0.1, "dft", dims=1), "tol must be at least 1"),
        (lambda: variance_preserving_(nn.Linear(2, 2), (8,)), "module must have at least one SpectralConv"),
        (lambda: variance_preserving_(SpectralConv(2, 2, (4,)), (8, 8)), "resolution must have 1 entries, got 2"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.bad_input
def test_bad_types():
    with pytest.raises(TypeError, match="x must have a floating dtype, got torch.complex64"):
        T1((4,), 1, 1, 4)(torch.ones(1, 1, 8, dtype=torch.complex64))
    with pytest.raises(TypeError, match="x must have a floating dtype, got torch.int64"):
        T1((4,), 1, 1, 4)(torch.ones(1, 1, 8, dtype=torch.int64))
