"""Weighted norms."""

import math

import pytest
import torch

from hadamard.spectral import frequencies, half_spectrum_counts, sobolev_weight, weighted_norm

F64 = torch.float64


@pytest.mark.parametrize("shape", [(8, 8), (7, 10), (6, 9)])
@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_weight_one_is_the_root_mean_square(shape, kind, generator):
    x = torch.randn(3, *shape, dtype=kind, generator=generator)
    torch.testing.assert_close(weighted_norm(x), x.abs().square().mean((-2, -1)).sqrt())
    torch.testing.assert_close(weighted_norm(x, squared=True), x.abs().square().mean((-2, -1)))


@pytest.mark.parametrize("s", [-2, -1, -0.5, 0, 1, 2])
@pytest.mark.parametrize("k", [(0, 0), (2, 1), (3, 0), (0, 4)])
def test_norm_of_a_single_wave(s, k):
    n, m, lx, ly, alpha = 9, 8, 2.0, 3.0, 0.3
    x, y = torch.arange(n, dtype=F64)[:, None] * lx / n, torch.arange(m, dtype=F64) * ly / m
    wave = 3 * torch.cos(2 * math.pi * (k[0] * x / lx - k[1] * y / ly))
    square = (alpha + 4 * math.pi**2 * ((k[0] / lx) ** 2 + (k[1] / ly) ** 2)) ** s
    mean = 9.0 if k in ((0, 0), (0, 4)) else 4.5  # a constant, and the Nyquist wave of an even axis
    weight = sobolev_weight(frequencies((n, m), (lx / n, ly / m), real=True, dtype=F64), s, alpha)
    assert float(weighted_norm(wave, weight, squared=True)) == pytest.approx(mean * square)


def test_other_dimensions(generator):
    x = torch.randn(4, 2, 6, dtype=F64, generator=generator)
    k = frequencies((4, 6), real=True, dtype=F64)
    weight = sobolev_weight(k, 1.0)
    torch.testing.assert_close(weighted_norm(x, weight, dims=(0, 2)), weighted_norm(x.movedim(1, 0), weight))


def test_duality(generator):
    weight = sobolev_weight(frequencies((8, 7), real=True, dtype=F64), 1.0, 0.1)
    r, phi = torch.randn(2, 50, 8, 7, dtype=F64, generator=generator)
    pairing = (r * phi).mean((-2, -1)).abs()
    assert bool((pairing <= weighted_norm(r, 1 / weight) * weighted_norm(phi, weight)).all())
    best = torch.fft.irfft2(torch.fft.rfft2(r) / weight, s=(8, 7))
    torch.testing.assert_close((r * best).mean((-2, -1)), weighted_norm(r, 1 / weight) * weighted_norm(best, weight))


def test_zero_frequency_without_alpha_counts_nothing():
    assert sobolev_weight([torch.tensor([0.0, 1.0])], -1, 0.0)[0] == 0
    assert sobolev_weight([torch.tensor([0.0, 1.0])], 0, 0.0).tolist() == [1, 1]
    assert [int(half_spectrum_counts(n).sum()) for n in (5, 6, 1, 2)] == [5, 6, 1, 2]


def test_gradients(generator):
    weight = sobolev_weight(frequencies((4, 5), real=True, dtype=F64), -1.0)
    x = torch.randn(2, 4, 5, dtype=F64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: weighted_norm(x, weight), x)


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match="alpha must be >= 0, got -1"):
        sobolev_weight([torch.ones(2)], 1, -1.0)
    with pytest.raises(TypeError, match="x must have a floating or complex dtype"):
        weighted_norm(torch.ones(2, 2, dtype=torch.int64))
