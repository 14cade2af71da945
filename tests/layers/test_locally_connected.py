"""Locally connected layers against loops of convolutions."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from hadamard.layers import LocallyConnected1d, LocallyConnected2d

CASES = [
    (LocallyConnected1d, (2, 3, 9, 4, 1, 0)),
    (LocallyConnected1d, (1, 2, 12, 3, 3, 0)),
    (LocallyConnected1d, (2, 2, 8, 3, 2, 2)),
    (LocallyConnected2d, (2, 3, (5, 6), 3, 1, 1)),
    (LocallyConnected2d, (3, 2, (7, 6), (3, 2), (2, 3), (1, 0))),
    (LocallyConnected2d, (1, 4, 6, 2, 2, 0)),
]


def make(kind, arguments, **options):
    layer = kind(*arguments, generator=torch.Generator().manual_seed(0), dtype=torch.float64, **options)
    x = torch.randn(4, arguments[0], *layer.input_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return layer, x


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_each_position_is_a_convolution_with_its_own_kernel(kind, arguments):
    layer, x = make(kind, arguments)
    conv = nn.functional.conv1d if layer.ndim == 1 else nn.functional.conv2d
    got = layer(x)
    for position in torch.cartesian_prod(*map(torch.arange, layer.output_size)).reshape(-1, layer.ndim).tolist():
        everywhere = conv(x, layer.weight[tuple(position)], stride=layer.stride, padding=layer.padding)
        here = (..., *position)
        torch.testing.assert_close(got[here], everywhere[here] + layer.bias[here])
    assert got.shape[2:] == layer.output_size


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_with_one_kernel_it_is_torchs_layer(kind, arguments):
    layer, x = make(kind, arguments, bias=False)
    peer = (nn.Conv1d if layer.ndim == 1 else nn.Conv2d)(
        *arguments[:2], *arguments[3:], bias=False, dtype=torch.float64
    )
    with torch.no_grad():
        layer.weight.copy_(peer.weight.expand_as(layer.weight))
    torch.testing.assert_close(layer(x), peer(x))


@pytest.mark.parametrize(("kind", "arguments"), CASES[1:5])
def test_gradients(kind, arguments):
    layer, x = make(kind, arguments)
    x = x[:2].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.weight, layer.bias))
    assert torch.autograd.gradgradcheck(lambda x, *_: layer(x), (x, layer.weight, layer.bias))


def test_only_the_input_is_kept():
    layer, x = make(LocallyConnected2d, (2, 3, 16, 5, 1, 0))
    kept = []

    def keep(t):
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x)
    assert sum(kept) == x.numel() + layer.weight.numel()


def test_first_weights_state_and_types():
    layer = LocallyConnected2d(4, 8, 10, 3, generator=torch.Generator().manual_seed(0))
    reach = 1 / math.sqrt(4 * 9)
    for p in layer.parameters():
        assert 0.95 * reach < p.abs().max() <= reach
    other = LocallyConnected2d(4, 8, 10, 3, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 4, 10, 10)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.to(torch.float64)(x.double()).dtype == torch.float64
    assert "input_size=(10, 10)" in repr(layer)
    torch.testing.assert_close(layer(x.double().contiguous(memory_format=torch.channels_last)), layer(x.double()))
    each = torch.func.vmap(lambda row: layer(row[None])[0])(x.double())
    torch.testing.assert_close(each, layer(x.double()))


COMPILE = """
import torch
from hadamard.layers import LocallyConnected2d

layer, x = LocallyConnected2d(2, 3, 6, 3, padding=1), torch.randn(2, 2, 6, 6, requires_grad=True)
compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x), layer(x))
ours, theirs = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (layer, compiled))
torch.testing.assert_close(ours, theirs)
"""


def test_compiles():
    """In a process of its own: here annotations are checked by code that dynamo does not trace."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True, capture_output=True, timeout=120)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1, 5, 3), ValueError, "in_channels must be >= 1, got 0"),
        ((1, 1, (5, 5, 5), 3), ValueError, "input_size must be an integer or 2 of them"),
        ((1, 1, 5, 6), ValueError, r"kernel_size must fit into the padded input, got \(6, 6\)"),
        ((1, 1, 5, 3, 0), ValueError, "stride must be >= 1, got 0"),
        ((1, 1, 5, 3, 1, -1), ValueError, "padding must be >= 0, got -1"),
        ((1, 1, 5, (3, 2.5)), TypeError, "kernel_size must be an integer, got float 2.5"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LocallyConnected2d(*arguments)


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 1, 5, 5\), got \(2, 1, 5, 6\)"):
        LocallyConnected2d(1, 1, 5, 3)(torch.zeros(2, 1, 5, 6))
