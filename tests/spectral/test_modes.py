"""Truncated spectra."""

import pytest
import torch

from hadamard.spectral import embed, irfftn_modes, resample, rfftn_modes, truncate


@pytest.mark.parametrize(("shape", "modes"), [((8,), (3,)), ((9, 8), (5, 4)), ((6, 7, 10), (2, 4, 5))])
@pytest.mark.parametrize("norm", ["forward", "backward", "ortho"])
def test_pruned_transform_is_the_truncated_one(shape, modes, norm, generator):
    x = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    dims = tuple(range(1, len(shape) + 1))
    whole = torch.fft.rfftn(x, dim=dims, norm=norm)
    part = truncate(whole, modes)
    torch.testing.assert_close(rfftn_modes(x, modes, norm), part)
    back = embed(part, whole.shape[1:])
    torch.testing.assert_close(truncate(back, modes), part, rtol=0, atol=0)
    torch.testing.assert_close(irfftn_modes(part, shape, norm), torch.fft.irfftn(back, s=shape, dim=dims, norm=norm))


def test_embed_puts_each_frequency_where_it_belongs():
    for n in (7, 8, 11):
        k = torch.fft.fftfreq(n, 1 / n)
        assert truncate(k, (3,), real_last=False).tolist() == [0, 1, 2, -2, -1]
        placed = embed(torch.tensor([0.0, 1, 2, -2, -1]), (n,), real_last=False)
        assert bool(((placed == k) | (placed == 0)).all())
        assert int((placed != 0).sum()) == 4


def test_embed_is_the_adjoint_of_truncate(generator):
    X = torch.randn(9, 6, dtype=torch.complex128, generator=generator)
    Y = torch.randn(5, 4, dtype=torch.complex128, generator=generator)
    left = torch.vdot(Y.flatten(), truncate(X, (3, 4)).flatten())
    torch.testing.assert_close(left, torch.vdot(embed(Y, (9, 6)).flatten(), X.flatten()))


@pytest.mark.parametrize(("coarse", "fine"), [((9, 8), (12, 16)), ((8, 10), (9, 11)), ((16, 7), (9, 40))])
def test_band_limited_fields_are_resampled_exactly(coarse, fine):
    def field(shape):
        x, y = (torch.arange(n, dtype=torch.float64).reshape(s) / n for n, s in zip(shape, ((-1, 1), (1, -1))))
        return 0.3 + torch.cos(2 * torch.pi * (2 * x - 3 * y)) + torch.sin(2 * torch.pi * (3 * x + y))

    torch.testing.assert_close(resample(field(coarse), fine), field(fine))


def test_the_nyquist_frequency_is_dropped_unless_nothing_changes():
    wave = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert resample(wave, (8,)).abs().max() < 1e-6
    assert resample(wave, (4,)) is wave


def test_gradients(generator):
    x = torch.randn(5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resample(x, (8, 9)), x)


@pytest.mark.bad_input
def test_bad_input():
    x = torch.ones(8, 8)
    with pytest.raises(ValueError, match="modes must be <= 4 along a dimension of 8 points, got 5"):
        rfftn_modes(x, (2, 5))
    with pytest.raises(ValueError, match="modes must be >= 1, got 0"):
        rfftn_modes(x, (0, 2))
    with pytest.raises(ValueError, match="there must be 1 to 2 numbers"):
        rfftn_modes(x, (2, 2, 2))
    with pytest.raises(ValueError, match="got 3 for 5 frequencies"):
        embed(torch.ones(5, 3), (3, 3))
    with pytest.raises(ValueError, match="an odd number of frequencies along a two-sided dimension, got 4"):
        embed(torch.ones(4, 3), (8, 3))
    with pytest.raises(TypeError, match="x must have a floating dtype"):
        resample(torch.ones(4, dtype=torch.complex64), (8,))
