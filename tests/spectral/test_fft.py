"""Conventions of the Fourier transform."""

import numpy as np
import pytest
import torch

from hadamard.spectral import fft_centred, frequencies, good_size, ifft_centred, radial_average


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (4, 9)])
@pytest.mark.parametrize("norm", ["ortho", "backward", "forward"])
def test_round_trip_and_origin(shape, norm, generator):
    x = torch.randn(2, *shape, dtype=torch.complex128, generator=generator)
    torch.testing.assert_close(ifft_centred(fft_centred(x, norm=norm), norm=norm), x)
    constant = fft_centred(torch.ones(shape, dtype=torch.float64))
    assert int(constant.abs().argmax()) == (shape[0] // 2) * shape[1] + shape[1] // 2


@pytest.mark.parametrize("n", [7, 8])
def test_centred_transform_is_the_sum_it_stands_for(n, generator):
    x = torch.randn(n, dtype=torch.complex128, generator=generator)
    grid = torch.arange(n, dtype=torch.float64) - n // 2
    matrix = torch.exp(-2j * torch.pi * grid[:, None] * grid[None] / n)
    torch.testing.assert_close(fft_centred(x, (-1,), "backward"), matrix @ x)


def test_parseval_for_the_orthonormal_transform(generator):
    x = torch.randn(9, 6, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(fft_centred(x).abs().square().sum(), x.square().sum())


@pytest.mark.parametrize("n", [1, 2, 3, 97, 1021, 4099])
def test_good_size_is_no_smaller_and_even_where_real(n):
    assert good_size(n) >= n
    assert n == 1 or good_size(n) % 2 == 0
    assert good_size(n, real=False) >= n


def test_frequencies_are_cycles_per_unit_length():
    fy, fx = frequencies((4, 6), spacing=(0.5, 0.1), real=True, dtype=torch.float64)
    np.testing.assert_allclose(fy.flatten(), np.fft.fftfreq(4, 0.5))
    np.testing.assert_allclose(fx.flatten(), np.fft.rfftfreq(6, 0.1))
    with pytest.raises(ValueError, match="spacing must have one entry for each of the 2 axes, got 3"):
        frequencies((4, 6), spacing=(1, 1, 1))


def test_radial_average_finds_the_ring_of_a_wave():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    wave = torch.cos(2 * torch.pi * (3 * x + 4 * y) / 32)
    power = torch.fft.fft2(wave).abs().square()
    assert int(radial_average(power).argmax()) == 5


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        fft_centred([1.0])
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        good_size(0)
