"""The spectral convolution."""

import pytest
import torch

from hadamard.pde import SpectralConv


def waves(shape, dtype=torch.float64):
    x, y = (torch.arange(n, dtype=dtype).reshape(s) / n for n, s in zip(shape, ((-1, 1), (1, -1))))
    field = torch.cos(2 * torch.pi * (2 * x - y)) + torch.sin(2 * torch.pi * (x + 2 * y)) + 0.5
    return torch.stack([field, field.square() - 1])[None]


def test_the_sum_it_stands_for(generator):
    conv = SpectralConv(2, 3, (2, 3), bias=True, generator=generator, dtype=torch.float64)
    conv.bias.data.normal_(generator=generator)
    x = torch.randn(4, 2, 7, 8, generator=generator, dtype=torch.float64)
    X, W, b = torch.fft.rfft2(x, norm="forward"), torch.view_as_complex(conv.weight), torch.view_as_complex(conv.bias)
    Y = torch.zeros(4, 3, 7, 5, dtype=torch.complex128)
    for row, place in ((0, 0), (1, 1), (-1, 2)):
        for column in range(3):
            Y[:, :, row, column] = X[:, :, row, column] @ W[:, :, place, column] + b[:, place, column]
    torch.testing.assert_close(conv(x), torch.fft.irfft2(Y, s=(7, 8), norm="forward"))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_any_number_of_dimensions(dims, generator):
    conv = SpectralConv(2, 3, (3,) * dims, generator=generator)
    assert conv(torch.randn(1, 2, *[8] * dims, generator=generator)).shape == (1, 3, *[8] * dims)
    assert conv(torch.randn(1, 2, *[8] * dims, generator=generator), shape=[5] * dims).shape == (1, 3, *[5] * dims)


def test_the_same_function_on_every_grid(generator):
    conv = SpectralConv(2, 2, (5, 5), bias=True, generator=generator, dtype=torch.float64)
    conv.bias.data.normal_(generator=generator)
    coarse, fine = conv(waves((16, 15))), conv(waves((32, 45)))
    torch.testing.assert_close(fine[..., ::2, ::3], coarse)
    torch.testing.assert_close(conv(waves((16, 15)), shape=(32, 45)), fine)


def test_enlarged_computes_the_same(generator):
    conv = SpectralConv(2, 3, (2, 3), bias=True, generator=generator, dtype=torch.float64)
    conv.bias.data.normal_(generator=generator)
    larger = conv.enlarged((5, 5))
    x = torch.randn(2, 2, 9, 10, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(larger(x), conv(x))
    assert larger.weight.shape == (2, 3, 9, 5, 2)
    plain = SpectralConv(1, 1, (2,)).enlarged((3,), bias=True)
    assert plain.bias is not None
    assert not plain.bias.any()


def test_it_commutes_with_shifts(generator):
    conv = SpectralConv(2, 2, (3, 3), generator=generator, dtype=torch.float64)
    x = torch.randn(1, 2, 8, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(conv(x.roll((1, 3), (2, 3))), conv(x).roll((1, 3), (2, 3)))


def test_gradients_and_state(generator):
    conv = SpectralConv(2, 2, (2, 2), bias=True, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, x)
    weight = conv.weight.detach().clone().requires_grad_()
    call = lambda weight: torch.func.functional_call(conv, {"weight": weight}, (x.detach(),))  # noqa: E731
    assert torch.autograd.gradcheck(call, weight)
    other = SpectralConv(2, 2, (2, 2), bias=True, dtype=torch.float64)
    other.load_state_dict(conv.state_dict())
    torch.testing.assert_close(other(x), conv(x), rtol=0, atol=0)


@pytest.mark.bad_input  # only to switch off the checked annotations, which torch.compile cannot trace
def test_autocast_and_compile(generator):
    conv = SpectralConv(2, 2, (3, 3), generator=generator)
    x = torch.randn(2, 2, 8, 8, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(conv(x), conv(x.clone()))
        half = conv(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), conv(x), rtol=0.05, atol=0.05)
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), conv(x))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpectralConv(0, 1, (2,)), "in_channels must be >= 1, got 0"),
        (lambda: SpectralConv(1, 1, ()), "modes must have one entry for each dimension of space"),
        (lambda: SpectralConv(1, 1, (5, 2))(torch.ones(1, 1, 8, 8)), "modes must be <= 4 along"),
        (lambda: SpectralConv(2, 1, (2, 2))(torch.ones(1, 1, 8, 8)), "x must have 2 channels"),
        (lambda: SpectralConv(1, 1, (2, 2)).enlarged((1, 2)), r"modes must be at least \(2, 2\), got \(1, 2\)"),
        (lambda: SpectralConv(1, 1, (2, 2), bias=True).enlarged((2, 2), bias=False), "bias must be True"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
