"""EvoNorm: the formulas against NumPy and timm, gradients, running statistics, and how torch's machinery takes it."""

import copy
import subprocess
import sys
from importlib.util import find_spec

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from hadamard.layers import (
    EvoNorm2dB0,
    EvoNorm2dB1,
    EvoNorm2dB2,
    EvoNorm2dS0,
    EvoNorm2dS1,
    EvoNorm2dS2,
    convert_norm_act,
    evonorm,
)

D = torch.float64
SERIES_B, SERIES_S = [EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2], [EvoNorm2dS0, EvoNorm2dS1, EvoNorm2dS2]
layers = pytest.mark.parametrize("kind", SERIES_B + SERIES_S, ids=lambda kind: kind.__name__[-2:])
series_b = pytest.mark.parametrize("kind", SERIES_B, ids=lambda kind: kind.__name__[-2:])
series_s = pytest.mark.parametrize("kind", SERIES_S, ids=lambda kind: kind.__name__[-2:])


def make(kind, channels=6, seed=0, dtype=D, **options):
    """A layer with random parameters, and two groups of channels where it has groups."""
    if kind in SERIES_S:
        options.setdefault("groups", 2)
    layer = kind(channels, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, dtype=dtype, generator=generator))
    return layer


def batch(*shape, dtype=D, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def literal(layer, x, left_var=None):
    """The six formulas in NumPy, letter by letter, for (N, C, H, W)."""
    name, eps = type(layer).__name__[-2:], layer.eps
    x = x.numpy()
    gamma, beta, v = (
        None if p is None else p.detach().numpy()[None, :, None, None] for p in (layer.weight, layer.bias, layer.v)
    )

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    if name[0] == "S":
        n, c = x.shape[:2]
        g = x.reshape(n, layer.groups, -1)
        second = (g**2).mean(2) if name == "S2" else g.var(2)
        r = np.sqrt(second + eps)[:, :, None].repeat(c // layer.groups, 2).reshape(n, c, 1, 1)
        return x * sigmoid(v * x if name == "S0" else x) / r * gamma + beta
    var = x.var((0, 2, 3), keepdims=True) if left_var is None else left_var.numpy()[None, :, None, None]
    inner = {
        "B0": lambda: v * x + np.sqrt(x.var((2, 3), keepdims=True) + eps),
        "B1": lambda: (x + 1) * np.sqrt((x**2).mean((2, 3), keepdims=True) + eps),
        "B2": lambda: np.sqrt((x**2).mean((2, 3), keepdims=True) + eps) - x,
    }[name]()
    assert (inner > np.sqrt(var + eps)).any()  # both sides of the maximum take part
    assert (inner < np.sqrt(var + eps)).any()
    return x / np.maximum(np.sqrt(var + eps), inner) * gamma + beta


# -- what it computes --


@layers
def test_formula(kind):
    layer, x = make(kind), batch(4, 6, 5, 3)
    np.testing.assert_allclose(layer(x).detach().numpy(), literal(layer, x), rtol=1e-12, atol=1e-12)
    if kind in SERIES_B:
        layer.running_var.uniform_(0.5, 2.0)
    wanted = literal(layer, x, getattr(layer, "running_var", None))
    np.testing.assert_allclose(layer.eval()(x).detach().numpy(), wanted, rtol=1e-12, atol=1e-12)


@layers
def test_gradients(kind):
    layer = make(kind, 4)
    names, parameters = zip(*layer.named_parameters())
    x = batch(2, 4, 2, 2).requires_grad_()

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (x,))

    for mode in (True, False):
        layer.train(mode)
        assert gradcheck(call, (x, *parameters))
    layer.train()
    assert gradgradcheck(call, (x, *parameters), fast_mode=True)


@layers
def test_keeps_only_the_input(kind):
    """Nothing but x and numbers a channel or a group is held between forward and backward."""
    layer, x = make(kind, 8, dtype=torch.float32), batch(4, 8, 16, 16, dtype=torch.float32).requires_grad_()
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    assert sum(storages.values()) <= 1.1 * x.numel() * 4


@layers
@pytest.mark.parametrize("shape", [(3, 6, 7), (3, 6, 4, 5), (2, 6, 3, 2, 4)], ids=["1d", "2d", "3d"])
def test_any_trailing_dimensions(kind, shape):
    layer, x = make(kind), batch(*shape)
    flat = layer(x.flatten(2)[..., None]).view(shape)
    torch.testing.assert_close(layer(x), flat, rtol=1e-12, atol=1e-12)


@layers
def test_channels_last(kind):
    layer, x = make(kind, dtype=torch.float32), batch(4, 6, 5, 3, dtype=torch.float32) + 10  # a mean that is not small
    y, grads = [], []
    for z in (x, x.to(memory_format=torch.channels_last)):
        z = z.detach().requires_grad_()
        y.append(layer(z))
        grads.append(torch.autograd.grad(y[-1].square().sum(), z)[0])
    assert y[1].is_contiguous(memory_format=torch.channels_last)
    exact = copy.deepcopy(layer).double()(x.double()).float()
    for z in y:
        torch.testing.assert_close(z, exact, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-2, atol=1e-2)


@layers
def test_linear_mode_only_scales_and_shifts(kind):
    layer, x = make(kind, apply_act=False), batch(4, 6, 5, 3)
    wanted = x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), wanted)
    assert layer.v is None
    assert "v" not in layer.state_dict()


@layers
def test_constant_input(kind):
    layer, x = make(kind), torch.full((2, 6, 3, 3), 0.7, dtype=D, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_scale():
    x = batch(3, 6, 5, 3)
    s0 = EvoNorm2dS0(6, groups=2, eps=1e-12, dtype=D)
    nn.init.zeros_(s0.v)
    std = x.reshape(3, 2, -1).std(2, correction=0).repeat_interleave(3, 1)[..., None, None]
    torch.testing.assert_close(s0(x), x / 2 / std)
    torch.testing.assert_close(s0(x), s0(7 * x))  # with v = 0 the scale of x is lost ...
    for kind in (EvoNorm2dS1, EvoNorm2dS2):
        layer = kind(6, groups=2, eps=1e-12, dtype=D)
        assert not torch.allclose(layer(x), layer(7 * x), rtol=0.1)  # ... but not in the others


@series_s
def test_samples_do_not_see_each_other(kind):
    layer, x = make(kind, dtype=torch.float32), batch(5, 6, 4, 4, dtype=torch.float32)
    alone = layer(x[2:3])
    assert torch.equal(layer(x)[2:3], alone)
    assert torch.equal(layer(torch.cat([100 * x, x[2:3]]))[-1:], alone)
    assert torch.equal(layer.eval()(x)[2:3], alone)


@series_s
def test_micro_batches_give_the_same_gradients(kind):
    x = batch(8, 6, 4, 4)
    grads = []
    for size in (8, 2, 1):
        layer = make(kind)
        for part in x.split(size):
            layer(part).square().sum().backward()
        grads.append(torch.cat([p.grad for p in layer.parameters()]))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads[2], grads[0], rtol=1e-12, atol=1e-12)


# -- running statistics --


@series_b
@pytest.mark.parametrize("unbiased", [False, True])
def test_running_variance(kind, unbiased):
    layer, x = make(kind, momentum=0.3, unbiased=unbiased), 3 * batch(4, 6, 5, 3)
    layer(x)
    wanted = 0.7 + 0.3 * x.var((0, 2, 3), correction=int(unbiased))
    torch.testing.assert_close(layer.running_var, wanted)
    layer.eval()(x)
    torch.testing.assert_close(layer.running_var, wanted)


@series_b
@pytest.mark.parametrize("unbiased", [False, True])
def test_single_value_a_channel(kind, unbiased):
    layer = make(kind, unbiased=unbiased)
    y = layer(batch(1, 6, 1, 1))
    assert y.isfinite().all()
    torch.testing.assert_close(layer.running_var, torch.full((6,), 0.9, dtype=D))


@series_b
def test_nan_stays_out_of_the_running_variance(kind):
    layer, x = make(kind), batch(4, 6, 5, 3)
    x[1, 2, 0, 0] = float("nan")
    y = layer(x)
    assert y[:, 2].isnan().any()
    assert y[:, [0, 1, 3, 4, 5]].isfinite().all()
    assert layer.running_var[2] == 1
    assert layer.running_var.isfinite().all()
    assert (layer.running_var[[0, 1, 3, 4, 5]] != 1).all()


@layers
def test_empty_batch(kind):
    layer, before = make(kind), copy.deepcopy(make(kind).state_dict())
    assert layer(torch.empty(0, 6, 4, 4, dtype=D)).shape == (0, 6, 4, 4)
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())


@series_b
def test_sync_in_one_process(kind, tmp_path):
    x, results = batch(4, 6, 5, 3), []
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for sync in (False, True):
            layer, z = make(kind, sync=sync, unbiased=True), x.clone().requires_grad_()
            y = layer(z)
            y.square().sum().backward()
            results.append((y, z.grad, layer.running_var))
    finally:
        torch.distributed.destroy_process_group()
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def _rank(rank, store, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    layer = make(EvoNorm2dB0, sync=True)
    part = batch(5, 6, 4, 3).split([3, 2])[rank].clone().requires_grad_()  # unequal shares
    y = layer(part)
    y.square().sum().backward()
    queue.put((rank, y.detach().numpy(), part.grad.numpy(), layer.running_var.numpy()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sync_between_two_processes(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, f"{tmp_path}/store", queue)) for rank in range(2)]
    for process in processes:
        process.start()
    parts = sorted(queue.get(timeout=100) for _ in processes)
    for process in processes:
        process.join()
    layer, x = make(EvoNorm2dB0), batch(5, 6, 4, 3).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), y.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([p[2] for p in parts]), x.grad.numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(parts[0][3], layer.running_var.numpy(), rtol=1e-12)
    np.testing.assert_allclose(parts[1][3], layer.running_var.numpy(), rtol=1e-12)


# -- torch's machinery --


@layers
def test_state_dict_round_trip(kind):
    layer, other = make(kind), make(kind, seed=5)
    layer(batch(4, 6, 5, 3))
    other.load_state_dict(layer.state_dict())
    x = batch(4, 6, 5, 3, seed=2)
    assert torch.equal(layer.eval()(x), other.eval()(x))


@layers
def test_half_precision_takes_its_statistics_in_float32(kind):
    layer, x = make(kind, dtype=torch.float32), (batch(4, 6, 8, 8, dtype=torch.float32) + 3).bfloat16()
    exact = layer(x.float())
    x.requires_grad_()
    y = layer(x)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.03, atol=0.03)
    large = kind(6, dtype=torch.float32)((300 * batch(2, 6, 8, 8, dtype=torch.float32)).half())  # squares overflow half
    assert large.isfinite().all()


@layers
def test_autocast(kind):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), make(kind, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(batch(2, 3, 8, 8, dtype=torch.float32))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in net.parameters())


@pytest.fixture
def unchecked():
    """No annotation checks, whose wrappers the compiler cannot look through."""
    jaxtyping.config.update("jaxtyping_disable", True)


@layers
def test_compile_and_export(kind, unchecked):
    layer, x = make(kind, dtype=torch.float32), batch(4, 6, 5, 3, dtype=torch.float32)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    ours, theirs = layer(x), compiled(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for a, b in zip(layer.parameters(), twin.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    if kind in SERIES_B:
        torch.testing.assert_close(layer.running_var, twin.running_var)
    layer.eval()
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiles_to_machine_code(unchecked):
    layer, x = make(EvoNorm2dS0, dtype=torch.float32), batch(4, 6, 5, 3, dtype=torch.float32)
    torch.testing.assert_close(torch.compile(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_checkpointing_and_function_transforms():
    layer, x = make(EvoNorm2dS0), batch(2, 6, 3, 3).requires_grad_()
    (wanted,) = torch.autograd.grad(layer(x).square().sum(), x)
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x)[0], wanted)
    torch.testing.assert_close(torch.func.grad(lambda z: layer(z).square().sum())(x.detach()), wanted)


PEER = """
import sys, torch
from hadamard.claims.torchvision_shim import install
install()
import timm.layers as peers
import hadamard.layers as ours
torch.manual_seed(0)
for name in ("B0", "B1", "B2", "S0", "S1", "S2"):
    for act in (True, False):
        options = {"groups": 4} if name[0] == "S" else {"unbiased": True}
        mine = getattr(ours, f"EvoNorm2d{name}")(16, apply_act=act, eps=1e-3, **options)
        options.pop("unbiased", None)
        theirs = getattr(peers, f"EvoNorm2d{name}")(16, apply_act=act, eps=1e-3, **options)
        with torch.no_grad():
            for p in theirs.parameters():
                p.normal_()
        mine.load_state_dict(theirs.state_dict())
        for mode in (True, False):
            mine.train(mode), theirs.train(mode)
            x = torch.randn(4, 16, 6, 5)
            grads = []
            for layer in (mine, theirs):
                z = x.clone().requires_grad_()
                y = layer(z)
                layer.zero_grad()
                y.square().sum().backward()
                grads.append([y.detach(), z.grad, *(p.grad for p in layer.parameters())])
            for a, b in zip(*grads):
                worst = float((a - b).abs().max() / b.abs().max())
                assert worst < 1e-5, (name, act, mode, worst)
        theirs.load_state_dict(mine.state_dict())
        if name[0] == "B":
            assert torch.equal(mine.running_var, theirs.running_var)
print("agree")
"""


@pytest.mark.slow
def test_agrees_with_timm_and_shares_its_state_dicts():
    """In a process of its own, because timm needs torchvision."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    done = subprocess.run([sys.executable, "-c", PEER], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "agree", done.stderr


# -- putting it into a network --


class Block(nn.Module):
    """A residual block that shares one ReLU between its places."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels, momentum=0.2)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x):
        return self.relu(self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))) + x)


def test_convert_puts_the_layer_where_the_pair_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Block())
    new = convert_norm_act(model, "evonorm_b0", eps=1e-3)
    pair, inner, last = new.get_submodule("1"), new.get_submodule("3.norm1"), new.get_submodule("3.norm2")
    assert [type(m) for m in (pair, inner, last)] == [EvoNorm2dB0] * 3
    assert [m.apply_act for m in (pair, inner, last)] == [True, True, False]
    assert inner.momentum == 0.2
    assert pair.eps == 1e-3
    assert torch.equal(last.weight, torch.zeros(4))
    x = batch(2, 1, 6, 6, dtype=torch.float32)
    stem = pair(model[0](x))
    inside = new.get_submodule("3.conv2")(inner(new.get_submodule("3.conv1")(stem)))
    torch.testing.assert_close(new(x), torch.relu(last(inside) + stem))  # the ReLU after the sum is still there
    assert isinstance(model[1], nn.BatchNorm2d)  # the model itself is as it was
    new(x).sum().backward()
    assert model[0].weight.grad is not None  # and shares its other layers
    again = convert_norm_act(model.eval(), "evonorms0", groups=2)
    assert not again.training
    assert again.get_submodule("1").groups == 2


def test_convert_understands_functions_and_methods():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.BatchNorm3d(4, affine=False)

        def forward(self, x):
            x = nn.functional.silu(self.a(x)) + self.b(x).relu()
            return self.c(x[..., None, None]) * 2

    new = convert_norm_act(Net(), "evonorm_b2")
    assert [new.a.apply_act, new.b.apply_act, new.c.apply_act] == [True, True, False]
    assert [new.a.sync, new.b.sync, new.c.sync] == [False, True, False]
    assert new(batch(2, 4, 5, dtype=torch.float32)).shape == (2, 4, 5, 1, 1)


@pytest.mark.bad_input
def test_convert_refuses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return torch.relu(self.norm(x)) + self.norm(2 * x)

    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="norm is called at 2 places, and an activation follows at some only"):
        convert_norm_act(Twice(), "evonorm_s0")
    with pytest.raises(ValueError, match="model could not be traced by torch.fx"):
        convert_norm_act(Branches(), "evonorm_s0")
    with pytest.raises(ValueError, match="model must contain a BatchNorm, got none in Conv2d"):
        convert_norm_act(nn.Conv2d(1, 1, 1), "evonorm_s0")
    with pytest.raises(ValueError, match="name must be one of 'evonorm_b0', .* got 'evonorm_x9'"):
        convert_norm_act(nn.Sequential(nn.BatchNorm2d(4)), "evonorm_x9")


# -- names and bad input --


def test_names():
    assert isinstance(evonorm("evonorm_s2", 8), EvoNorm2dS2)
    assert isinstance(evonorm("evonormb1", 8), EvoNorm2dB1)


def test_groups_are_lowered_until_they_divide():
    assert EvoNorm2dS0(24, groups=32).groups == 24
    assert EvoNorm2dS0(48, groups=32).groups == 24
    assert EvoNorm2dS0(7, groups=4).groups == 1
    assert EvoNorm2dS0(12, group_size=4).groups == 3


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: EvoNorm2dS0(8)(torch.zeros(2, 8)), r"x must have shape \(N, C, ...\) .* got \(2, 8\)"),
        (lambda: EvoNorm2dB0(8)(torch.zeros(2, 4, 3, 3)), r"x must have 8 channels .* got shape \(2, 4, 3, 3\)"),
        (lambda: EvoNorm2dS0(8, group_size=3), "group_size must divide num_features, got 3 and 8"),
        (lambda: EvoNorm2dS0(8, groups=0), "groups must be a positive integer, got 0"),
        (lambda: EvoNorm2dS0(0), "num_features must be a positive integer, got 0"),
        (lambda: EvoNorm2dB0(8, momentum=1.5), "momentum must be >= 0 and <= 1, got 1.5"),
        (lambda: EvoNorm2dS1(8, eps=0.0), "eps must be > 0, got 0.0"),
        (lambda: evonorm("batchnorm", 8), "name must be one of .* got 'batchnorm'"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
