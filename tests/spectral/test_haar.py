"""The Haar transform of one level."""

import pytest
import torch

from hadamard.spectral import haar2d, ihaar2d


def explicit():
    """The 4 x 4 matrix of one square, a, b, c, d."""
    return torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=torch.float64) / 2


def test_is_the_matrix_on_every_square(generator):
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64, generator=generator)
    squares = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)  # (2, 3, 3, 4, 4)
    torch.testing.assert_close(haar2d(x), torch.einsum("kp,bchwp->bkchw", explicit(), squares))


def test_pywavelets(generator):
    pywt = pytest.importorskip("pywt")
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64, generator=generator)
    low, details = pywt.dwt2(x.numpy(), "haar")
    for band, wanted in zip(haar2d(x).unbind(1), (low, *details), strict=True):
        torch.testing.assert_close(band, torch.from_numpy(wanted))


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 4, 6), (2, 5, 4, 2, 8)])
def test_inverse_adjoint_and_energy(shape, generator):
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    bands = haar2d(x)
    assert bands.shape == (shape[0], 4, *shape[1:-2], shape[-2] // 2, shape[-1] // 2)
    torch.testing.assert_close(ihaar2d(bands), x)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    y = torch.randn(bands.shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close((bands * y).sum(), (x * ihaar2d(y)).sum())


def test_gradient_and_dtype(generator):
    x = torch.randn(1, 4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ihaar2d(haar2d(x).tanh()), (x,))
    assert haar2d(torch.ones(1, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("function", "x", "message"),
    [
        (haar2d, torch.ones(1, 3, 4), "x must have an even height and width, got 3 by 4"),
        (haar2d, torch.ones(4, 4), r"x must have at least 3 dimensions, got shape \(4, 4\)"),
        (haar2d, torch.ones(1, 4, 4, dtype=torch.long), "x must have a floating dtype"),
        (ihaar2d, torch.ones(1, 3, 4, 4), r"bands must have the four bands on axis 1, got shape \(1, 3, 4, 4\)"),
        (ihaar2d, torch.ones(4, 4, 4), r"bands must have at least 4 dimensions, got shape \(4, 4, 4\)"),
    ],
)
def test_bad_input(function, x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        function(x)
