"""Orthogonal convolutions: measures against the dense matrix, existence against minimisation, the exact layer."""

import copy
import itertools
import math
from importlib.util import find_spec

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize

from hadamard.layers import (
    OrthogonalConv2d,
    OrthogonalRegularizer,
    conv_singular_values,
    isometry_bounds,
    lorth,
    orthogonal_conv_exists,
)
from hadamard.operators import LinearOperator
from hadamard.solvers import minimize

D = torch.float64
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Convolution(LinearOperator):
    """A convolution as an operator, whose dense form is the brute force here."""

    def __init__(self, weight, input_size, stride=1, groups=1, padding_mode="circular"):
        self.axes = weight.ndim - 2
        self.strides = (stride,) * self.axes if isinstance(stride, int) else stride
        sizes = (input_size,) * self.axes if isinstance(input_size, int) else input_size
        spans = [0 if padding_mode == "valid" else k - 1 for k in weight.shape[2:]]
        outputs = [(n + s - k) // t + 1 for n, s, k, t in zip(sizes, spans, weight.shape[2:], self.strides)]
        super().__init__((weight.shape[1] * groups, *sizes), (weight.shape[0], *outputs))
        self.pads = [n for s in reversed(spans) for n in (s // 2, s - s // 2)]
        self.weight, self.groups = weight, groups
        self.mode = "circular" if padding_mode == "circular" else "constant"

    def A(self, x):
        for axis, (n, before, after) in enumerate(zip(x.shape[2:], self.pads[-2::-2], self.pads[::-2])):
            if self.mode == "circular":  # any number of times around, unlike F.pad
                x = x.index_select(2 + axis, torch.arange(-before, n + after) % n)
        x = x if self.mode == "circular" else F.pad(x, self.pads)
        return CONV[self.axes](x, self.weight, None, self.strides, 0, 1, self.groups)

    def A_adjoint(self, y):
        raise AssertionError


def dense(weight, input_size, stride=1, groups=1, padding_mode="circular"):
    return Convolution(weight, input_size, stride, groups, padding_mode).to_dense(weight.dtype)


def deviation(matrix):
    """The smaller Gram matrix minus the identity."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return gram - torch.eye(len(gram), dtype=gram.dtype)


def paper(weight, stride):
    """The regulariser as the paper writes it, for square 2-D kernels."""
    m, c, k, _ = weight.shape
    p = (k - 1) // stride * stride
    found = F.conv2d(weight, weight, stride=stride, padding=p)
    found[range(m), range(m), p // stride, p // stride] -= 1
    return found.square().sum() - max(m - c * stride**2, 0)


def kernel(*shape, seed=0, dtype=D, scale=1.0):
    return scale * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# weight's shape, stride, groups, input size
CASES = [
    ((4, 6, 3, 3), 1, 1, 6), ((6, 4, 3, 3), 1, 1, 5), ((4, 2, 3, 3), 2, 1, 6), ((12, 2, 4, 4), 2, 1, 8),
    ((8, 2, 3, 3), 2, 1, 6), ((9, 2, 3, 3), 3, 1, 9), ((6, 2, 3, 3), 2, 3, 6), ((4, 3, 2, 5), (2, 1), 1, (4, 9)),
    ((5, 3, 4), 1, 1, 8), ((3, 2, 5), 2, 1, 10), ((4, 2, 2, 2, 2), 1, 1, 3), ((9, 1, 2, 3, 2), (2, 1, 2), 1, (4, 5, 4)),
]  # fmt: skip
cases = pytest.mark.parametrize(("shape", "stride", "groups", "size"), CASES, ids=str)


# -- measures --


@cases
def test_regulariser_is_the_error_of_the_dense_matrix(shape, stride, groups, size):
    weight = kernel(*shape)
    matrix = dense(weight, size, stride, groups)
    outputs = matrix.shape[0] // shape[0]
    torch.testing.assert_close(outputs * lorth(weight, stride, groups), deviation(matrix).square().sum())


def test_identity_needs_a_large_image():
    weight = kernel(4, 6, 3, 3)
    assert abs(16 * lorth(weight) / deviation(dense(weight, 4)).square().sum() - 1) > 0.01


@pytest.mark.parametrize(
    ("shape", "stride"), [((4, 6, 3, 3), 1), ((6, 4, 3, 3), 1), ((12, 2, 4, 4), 2), ((9, 2, 3, 3), 2)]
)
def test_regulariser_is_the_papers(shape, stride):
    weight = kernel(*shape)
    torch.testing.assert_close(lorth(weight, stride), paper(weight, stride))


@cases
def test_singular_values_of_the_dense_matrix(shape, stride, groups, size):
    """Images smaller than the kernel too: one pixel a stride."""
    weight = kernel(*shape)
    for n in (size, stride):
        wanted = torch.linalg.svdvals(dense(weight, n, stride, groups))
        torch.testing.assert_close(conv_singular_values(weight, n, stride, groups), wanted, rtol=1e-9, atol=1e-9)


@cases
@pytest.mark.parametrize("near", [0.0, 0.01, 0.3])
def test_bounds_hold_at_every_size(shape, stride, groups, size, near):
    weight = kernel(*shape, scale=0.1)
    if len(shape) == 4:
        layer = OrthogonalConv2d(shape[1] * groups, shape[0], shape[2:], stride, groups=groups, dtype=D)
        weight = layer.weight.detach() + near * kernel(*shape)
    low, high = isometry_bounds(weight, stride, groups)
    assert low <= 1 <= high
    sizes = size if isinstance(size, tuple) else (size,) * (len(shape) - 2)
    for times in (1, 2):
        values = conv_singular_values(weight, tuple(times * n for n in sizes), stride, groups)
        assert low - 1e-12 <= values.min()
        assert values.max() <= high + 1e-12
    k = [-(-k // s) for k, s in zip(shape[2:], (stride,) * 3 if isinstance(stride, int) else stride)]
    shifts = math.prod(2 * n - 1 for n in k)
    assert high**2 - 1 <= (shifts * lorth(weight, stride, groups)).sqrt() + 1e-12  # tighter than the paper's
    for mode in ("zeros", "valid"):  # from above for every padding
        assert torch.linalg.matrix_norm(dense(weight, size, stride, groups, mode), ord=2) <= high + 1e-12


def test_bounds_are_tight_for_one_shift():
    weight = torch.tensor([[[0.6]]], dtype=D)
    assert isometry_bounds(weight) == pytest.approx((0.6, math.sqrt(1.64)))


def test_zero_at_shifts_and_permutations():
    weight = torch.zeros(3, 3, 3, 3, dtype=D)
    for i, (j, u, v) in enumerate([(2, 0, 1), (0, 2, 2), (1, 1, 0)]):
        weight[i, j, u, v] = 1 - 2 * (i % 2)
    assert lorth(weight) == 0
    assert isometry_bounds(weight) == (1, 1)
    assert lorth(torch.linalg.qr(kernel(5, 5))[0][:, :3, None, None]) < 1e-28


@pytest.mark.parametrize(("c", "m", "stride"), [(6, 4, 1), (2, 8, 2), (5, 5, 1)])
def test_scaling_and_mixing(c, m, stride):
    weight = OrthogonalConv2d(c, m, 3, stride, dtype=D).weight.detach()
    smaller = min(m, c * stride**2)
    for scale in (0.5, 1.7):
        wanted = torch.tensor((scale**2 - 1) ** 2 * smaller, dtype=D)
        torch.testing.assert_close(lorth(scale * weight, stride), wanted)
    weight = kernel(m, c, 3, 3)
    mixed = torch.einsum("ij,jckl->ickl", torch.linalg.qr(kernel(m, m))[0], weight)
    torch.testing.assert_close(lorth(mixed, stride), lorth(weight, stride))


def test_transposed_and_flat_kernels():
    weight = kernel(4, 6, 3, 3)
    torch.testing.assert_close(lorth(weight), lorth(weight.transpose(0, 1)))
    torch.testing.assert_close(lorth(weight[..., :1]), lorth(weight[..., 0]))
    x, layer = kernel(1, 4, 8, 8), nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False, dtype=D)
    exact = OrthogonalConv2d(6, 4, 4, 2, padding=1, dtype=D)
    layer.weight = nn.Parameter(exact.weight.detach())
    assert lorth(layer.weight, 2) < 1e-25
    inside = layer(F.pad(x, [2] * 4))  # far from the border the transposed layer keeps lengths, too
    torch.testing.assert_close(inside.norm(), x.norm())


def test_groups_are_separate():
    weight = kernel(6, 2, 3, 3)
    parts = weight.chunk(3)
    torch.testing.assert_close(lorth(weight, 1, 3), sum(lorth(p) for p in parts))
    bounds = [isometry_bounds(p) for p in parts]
    assert isometry_bounds(weight, 1, 3) == pytest.approx((min(b[0] for b in bounds), max(b[1] for b in bounds)))


@pytest.mark.parametrize(("shape", "stride", "groups"), [((2, 3, 3, 3), 1, 1), ((9, 2, 3, 3), 2, 1), ((4, 1, 4), 1, 2)])
def test_gradients(shape, stride, groups):
    weight = kernel(*shape).requires_grad_()
    assert gradcheck(lambda w: lorth(w, stride, groups), weight)
    assert gradgradcheck(lambda w: lorth(w, stride, groups), weight, fast_mode=True)
    assert gradcheck(lambda w: conv_singular_values(w, 4, stride, groups)[:3], weight)


def test_precision():
    weight = kernel(4, 3, 3, 3, dtype=torch.float32)
    exact = lorth(weight.double())
    torch.testing.assert_close(lorth(weight), exact.float())
    half = lorth(weight.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-2, atol=0)
    assert conv_singular_values(weight.bfloat16(), 4).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(lorth(weight), exact.float())


# -- existence --


@pytest.mark.parametrize(
    ("m", "c", "k", "s", "wanted"),
    [(4, 6, 3, 1, True), (4, 2, 3, 2, True), (3, 1, 1, 2, False), (10, 2, 1, 2, False), (10, 2, 3, 2, True),
     (8, 8, 1, 1, True), (9, 1, 3, 3, True), (5, 1, 2, 3, False), (4, 1, 2, 3, True), (9, 1, 2, 3, False)],
)  # fmt: skip
def test_theorem_for_circular_padding(m, c, k, s, wanted):
    found = orthogonal_conv_exists(m, c, k, s)
    assert found.exists is bool(found) is wanted
    assert wanted == (m <= c * k**2 if m <= c * s**2 else s <= k)
    assert found.reason


def test_existence_of_groups_and_uneven_kernels():
    assert orthogonal_conv_exists(8, 4, 1, 2, groups=4).exists is orthogonal_conv_exists(2, 1, 1, 2).exists
    assert orthogonal_conv_exists(4, 1, (1, 4), (4, 4))
    assert not orthogonal_conv_exists(5, 1, (1, 4), (4, 4))
    assert not orthogonal_conv_exists(4, 1, (1, 4), (4, 1))  # one axis has too few taps, and the other cannot help
    assert not orthogonal_conv_exists(4, 1, (4, 1), (1, 4))
    assert orthogonal_conv_exists(4, 1, 3, 2, "valid", 7)
    assert orthogonal_conv_exists(5, 1, 2, 2, "valid", 8)
    assert not orthogonal_conv_exists(5, 1, 2, 2, "valid", 7)  # a pixel is left over


def smallest_deviation(m, c, k, s, mode, size, generator):
    """The least squared error that L-BFGS finds from a few starts, on the dense matrix of a 1-D convolution."""
    least = math.inf
    for _ in range(8):
        start = torch.randn(m, c, k, dtype=D, generator=generator) / math.sqrt(c * k)
        found = minimize(
            lambda w: deviation(dense(w, (size,), s, 1, mode)).square().sum(), start, max_iter=200, tol=1e-7, warn=False
        )  # fmt: skip
        least = min(least, found.extras["fun"])
        if least < 1e-6:
            break
    return least, found.value


GRID = list(itertools.product((1, 2, 3, 4, 6), (1, 2), (1, 2, 3, 4), (1, 2, 3)))


def check_existence(grid, mode):
    generator = torch.Generator().manual_seed(0)
    for m, c, k, s in grid:
        size = s * ((2 * k - 1) // s + 2) + (k if mode == "valid" else 0)
        found = orthogonal_conv_exists(m, c, (k,), (s,), mode, None if mode == "valid" and size % s else size)
        least, _ = smallest_deviation(m, c, k, s, mode, size, generator)
        assert bool(found) == (least < 1e-6), (m, c, k, s, least, found.reason)
        assert least < 1e-6 or least > 0.1, (m, c, k, s, least)


@pytest.mark.parametrize("mode", ["circular", "zeros", "valid"])
def test_existence_is_what_minimisation_finds(mode):
    check_existence(GRID[::7], mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["circular", "zeros", "valid"])
def test_existence_is_what_minimisation_finds_on_the_whole_grid(mode):
    check_existence(GRID, mode)


def test_zero_padding_leaves_one_tap():
    _, weight = smallest_deviation(2, 3, 3, 1, "zeros", 6, torch.Generator().manual_seed(3))
    assert weight[..., [0, 2]].abs().max() < 1e-2 < weight[..., 1].abs().max()
    assert "one tap" in orthogonal_conv_exists(2, 3, 3, 1, "zeros").reason


# -- the exact layer --

LAYERS = [
    (6, 4, 3, 1, {}), (4, 6, 3, 1, {"padding": 1}), (2, 4, 3, 2, {"padding": 1}), (2, 12, 4, 2, {"padding": 1}),
    (2, 9, 3, 2, {}), (5, 5, 5, 1, {"padding": 2}), (3, 3, 2, 1, {}), (4, 8, 3, 1, {"groups": 2}),
    (4, 4, 3, 1, {"groups": 4}), (1, 3, 2, 3, {}), (3, 4, (2, 5), (2, 1), {}), (3, 5, (3, 1), 1, {"dilation": 2}),
    (2, 33, 3, 2, {"bias": False}), (3, 12, 2, 2, {"padding": 0}), (3, 2, 1, 1, {}),
]  # fmt: skip
layers = pytest.mark.parametrize(("c", "m", "k", "stride", "options"), LAYERS, ids=str)


@layers
def test_exact_layer_is_orthogonal_at_every_size(c, m, k, stride, options):
    layer = OrthogonalConv2d(c, m, k, stride, dtype=D, generator=torch.Generator().manual_seed(1), **options)
    assert isinstance(layer, nn.Conv2d)
    plain = nn.Conv2d(c, m, k, stride, **{**options, "padding": 0}, dtype=D)
    assert layer.weight.shape == plain.weight.shape
    for size in ((6, 12), (12, 6)):
        matrix = torch.func.jacrev(lambda x: layer(x).flatten())(kernel(c, *size)).flatten(1)
        assert matrix.shape[0] == m * math.prod(size) // math.prod(layer.stride)
        assert deviation(matrix).abs().max() < 1e-12
    assert lorth(layer.weight, stride, layer.groups) < 1e-24


@layers
def test_exact_layer_is_what_conv2d_would_be(c, m, k, stride, options):
    """Integer padding, stride, dilation and groups mean what they mean there."""
    options = {"padding": "same", **options}
    if options["padding"] == "same" and stride != 1:
        options["padding"] = [(n - 1) // 2 for n in ((k, k) if isinstance(k, int) else k)]  # torch refuses "same"
    layer = OrthogonalConv2d(c, m, k, stride, dtype=D, **options)
    plain = nn.Conv2d(c, m, k, stride, padding_mode="circular", dtype=D, **options)
    plain.load_state_dict({"weight": layer.weight, **({"bias": layer.bias} if plain.bias is not None else {})})
    x = kernel(2, c, 6, 12)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer(x[0]), plain(x)[0])


def test_kernel_fills_its_window_around_the_centre():
    weight = OrthogonalConv2d(8, 8, 5, dtype=D, generator=torch.Generator().manual_seed(0)).weight.detach()
    energy = weight.square().sum((0, 1))
    assert (energy > 1e-3).all()
    centre = (energy * torch.arange(5)).sum() / energy.sum()
    assert abs(centre - 2) < 1e-9
    odd = OrthogonalConv2d(1, 1, 5, dtype=D).weight.detach()
    assert odd[0, 0, 2, 2].abs() == 1


@pytest.mark.parametrize(("c", "m", "k", "stride"), [(4, 4, 3, 1), (1, 8, 3, 2), (3, 5, 2, 1), (1, 1, 3, 1)])
def test_gradients_of_the_exact_layer(c, m, k, stride):
    layer = OrthogonalConv2d(c, m, k, stride, dtype=D)
    names, parameters = zip(*layer.named_parameters())
    x = kernel(1, c, 4, 4).requires_grad_()

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (x,))

    assert gradcheck(call, (x, *parameters))


@pytest.mark.parametrize(("c", "m", "k", "stride"), [(4, 4, 3, 1), (2, 6, 3, 1), (2, 9, 4, 2)])
def test_kernel_has_no_jumps(c, m, k, stride):
    """No factor changes sign where one of its entries passes zero."""
    layer = OrthogonalConv2d(c, m, k, stride, dtype=D)
    for factor in layer.get_submodule("parametrizations.weight").parameters():
        for entry in factor.detach().flatten():  # views: written in place
            kernels = []
            for value in (-1e-9, 1e-9):
                before = entry.clone()
                entry.fill_(value)
                kernels.append(layer.weight.detach())
                entry.copy_(before)
            torch.testing.assert_close(kernels[0], kernels[1], rtol=0, atol=1e-6)


def test_stays_orthogonal_while_it_is_trained():
    torch.manual_seed(0)
    layer, target = OrthogonalConv2d(4, 4, 3, padding=1), OrthogonalConv2d(4, 4, 3, padding=1)
    optimizer, x, losses = torch.optim.Adam(layer.parameters(), lr=0.03), torch.randn(8, 4, 8, 8), []
    wanted = target(x).detach()
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]  # square layers fall into components that training does not leave
    assert lorth(layer.weight) < 1e-10


def test_same_generator_same_layer():
    one, two = (OrthogonalConv2d(4, 6, 3, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    before = torch.random.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    one.reset_parameters(torch.Generator().manual_seed(6))
    assert not torch.equal(one.weight, two.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_state_dict_copy_and_removal(tmp_path):
    layer, other, x = OrthogonalConv2d(4, 6, 3), OrthogonalConv2d(4, 6, 3), torch.randn(2, 4, 8, 8)
    assert not torch.equal(layer(x), other(x))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other.load_state_dict(torch.load(tmp_path / "layer.pt"))
    assert torch.equal(layer(x), other(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    with parametrize.cached():
        assert layer.weight is layer.weight
    wanted = layer(x)
    parametrize.remove_parametrizations(layer, "weight")
    assert sorted(dict(layer.named_parameters())) == ["bias", "weight"]
    torch.testing.assert_close(layer(x), wanted)


def test_reduced_precision():
    layer, x = OrthogonalConv2d(8, 8, 3, padding=1), torch.randn(2, 8, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        assert lorth(layer.weight) < 1e-10
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    layer.to(torch.bfloat16)
    assert layer(x.bfloat16()).dtype == layer.weight.dtype == torch.bfloat16
    assert lorth(layer.weight) < 1e-2


def test_channels_last():
    layer, x = OrthogonalConv2d(8, 8, 3), torch.randn(2, 8, 8, 8)
    y = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, layer(x))


@pytest.fixture
def unchecked():
    """No annotation checks, whose wrappers the compiler cannot look through."""
    jaxtyping.config.update("jaxtyping_disable", True)


def test_compile(unchecked):
    layer, x = OrthogonalConv2d(4, 6, 3, padding=1), torch.randn(2, 4, 8, 8)
    plain = nn.Conv2d(4, 6, 3)
    twin = copy.deepcopy(layer)
    for net in (layer, twin):
        regularizer = OrthogonalRegularizer(plain, 0.5)

        def loss(x, net=net, regularizer=regularizer):
            return net(x).square().sum() + net(x).sum() + regularizer()

        call = torch.compile(loss, backend="aot_eager") if net is twin else loss
        plain.zero_grad()
        call(x).backward()
        net.extra = plain.weight.grad.clone()
    torch.testing.assert_close(layer.extra, twin.extra, rtol=1e-4, atol=1e-4)
    for a, b in zip(layer.parameters(), twin.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_compiles_to_machine_code(unchecked):
    layer, x = OrthogonalConv2d(4, 6, 3, padding=1), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(torch.compile(layer)(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(find_spec("orthogonium") is None, reason="orthogonium is not installed")
@pytest.mark.parametrize(("c", "m", "k", "stride"), [(4, 4, 3, 1), (4, 8, 4, 2), (6, 4, 3, 1)])
def test_peers_layer_is_orthogonal_by_our_measures(c, m, k, stride):
    from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d

    torch.manual_seed(0)
    weight = AdaptiveOrthoConv2d(c, m, k, stride=stride, padding=1).weight.detach().double()
    assert lorth(weight, stride) < 1e-3  # a few steps of Bjorck's iteration
    values = conv_singular_values(weight, 8, stride)
    assert values.min() > 0.99
    assert values.max() < 1.01


# -- the regulariser --


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        options = {"padding_mode": "circular", "dtype": D}
        self.stem = nn.Conv2d(3, 8, 3, padding=1, **options)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2, **options),
            nn.ReLU(),
            nn.Conv2d(8, 16, 4, stride=2, padding=1, **options),
        )
        self.exact = OrthogonalConv2d(16, 16, 3, dtype=D)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2, dtype=D)
        self.head = nn.Linear(4, 2, dtype=D)


def test_penalty_is_the_sum_over_convolutions():
    net = Net()
    regularizer = OrthogonalRegularizer(net, 0.25)
    wanted = {
        "stem": lorth(net.stem.weight),
        "body.0": lorth(net.body[0].weight, 1, 2),
        "body.2": lorth(net.body[2].weight, 2),
        "up": lorth(net.up.weight, 2),
    }
    assert list(regularizer.layers) == list(wanted)
    assert regularizer.values() == pytest.approx({name: float(v.detach()) for name, v in wanted.items()})
    torch.testing.assert_close(regularizer(), 0.25 * sum(wanted.values()))
    regularizer().backward()
    assert net.stem.weight.grad.abs().sum() > 0
    assert net.head.weight.grad is None
    assert list(OrthogonalRegularizer(net, 1, skip=["body", "up"], linear=True).layers) == ["stem", "head"]
    linear = OrthogonalRegularizer(net.head, 1, linear=True)()
    torch.testing.assert_close(linear, deviation(net.head.weight).square().sum())
    assert list(OrthogonalRegularizer(net, 1, skip=["bod"]).layers) == list(wanted)  # names, not beginnings of names


def test_dilated_layers_of_stride_one():
    """The kernel with zeros in between has the same L_orth."""
    weight = kernel(4, 3, 3, 3)
    stretched = torch.zeros(4, 3, 5, 5, dtype=D)
    stretched[..., ::2, ::2] = weight
    torch.testing.assert_close(lorth(stretched), lorth(weight))


def test_training_with_it_makes_a_network_isometric():
    torch.manual_seed(0)
    net = nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular")
    regularizer = OrthogonalRegularizer(net, 1.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        regularizer().backward()
        optimizer.step()
    values = conv_singular_values(net.weight.detach(), 16)
    assert values.min() > 0.99
    assert values.max() < 1.01


def test_zero_padding_warns():
    with pytest.warns(UserWarning, match=r"2 layer\(s\) pad with zeros \(0, 1\)"):
        OrthogonalRegularizer(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding="same")), 1)


# -- bad input --


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lorth(torch.ones(2, 2)), "weight must have 3 or 4 or 5 dimension"),
        (lambda: lorth(torch.full((2, 2, 3), float("nan"))), "weight must be finite"),
        (lambda: lorth(torch.ones(2, 0, 3)), "weight must not be empty"),
        (lambda: lorth(torch.ones(2, 2, 3), groups=3), "groups must divide the 2 filters of weight, got 3"),
        (lambda: lorth(torch.ones(2, 2, 3), (1, 2)), r"stride must be one number or 1, got \(1, 2\)"),
        (lambda: lorth(torch.ones(2, 2, 3), 0), "stride must be >= 1, got 0"),
        (
            lambda: conv_singular_values(torch.ones(2, 2, 3), 5, 2),
            r"input_size must be a multiple of the stride \(2,\)",
        ),
        (lambda: orthogonal_conv_exists(0, 1, 3), "out_channels must be >= 1, got 0"),
        (lambda: orthogonal_conv_exists(4, 3, 3, groups=2), "groups must divide the channels 4 and 3, got 2"),
        (lambda: orthogonal_conv_exists(4, 3, 3, padding_mode="reflect"), "padding_mode must be one of"),
        (lambda: orthogonal_conv_exists(4, 3, 3, 2, input_size=7), "input_size must be a multiple of the stride"),
        (lambda: orthogonal_conv_exists(4, 3, 3, 1, "zeros", 4), "input_size must be at least 2 k - 1"),
        (lambda: orthogonal_conv_exists(4, 3, (1, 1, 1, 1)), "kernel_size must have one to three axes"),
        (lambda: OrthogonalConv2d(4, 4, 3, padding_mode="zeros"), "padding_mode must be 'circular'"),
        (lambda: OrthogonalConv2d(4, 4, 3, padding=0), "padding must be 'same' or leave input / stride outputs, got 0"),
        (lambda: OrthogonalConv2d(4, 4, 3, padding="valid"), "padding must be 'same' or a number, got 'valid'"),
        (lambda: OrthogonalConv2d(4, 64, 1, 2), "no orthogonal convolution of this shape exists: rows: 64 output"),
        (lambda: OrthogonalConv2d(4, 4, 3, 2, dilation=2), "dilation needs stride 1"),
        (lambda: OrthogonalConv2d(1, 4, 2, 2)(torch.ones(1, 1, 5, 4)), "x must have sides that are multiples"),
        (lambda: setattr(OrthogonalConv2d(4, 4, 3), "weight", torch.ones(4, 4, 3, 3)), "weight cannot be assigned"),
        (lambda: OrthogonalRegularizer(nn.ReLU(), 1), "model must have a convolution to penalise, got none in ReLU"),
        (lambda: OrthogonalRegularizer(nn.Conv2d(2, 2, 1), -1), "lam must be >= 0, got -1"),
        (lambda: OrthogonalRegularizer(nn.Sequential(nn.Conv2d(2, 9, 1, 2)), 1), "0 cannot be orthogonal .* into skip"),
        (lambda: OrthogonalRegularizer(nn.Sequential(nn.Conv2d(2, 9, 3, 2, dilation=2)), 1), "0 must not have both"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
