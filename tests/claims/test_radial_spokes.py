"""Spokes of the claim on Primal-Dual UNets: where they lie, their scale, and what gridding makes of them."""

import math

import torch

from hadamard.claims.imaging.primal_dual_unet_radial import ALL, acquire, full_sinogram, gridding, radial, spokes_name


def blob(size, row=4.0, column=-6.0, width=5.0):
    """A smooth spot beside the middle: what lies where, and no more than the grid resolves."""
    line = torch.arange(size) - (size - 1) / 2
    return torch.exp(-((line[:, None] - row) ** 2 + (line - column) ** 2) / (2 * width**2))[None, None]


def test_spokes_are_the_sum_over_pixels_that_defines_them():
    size, physics = 16, radial(5, 16)
    x = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    spokes = acquire(x, physics, torch.Generator().manual_seed(1), noise=0.0)[0, 0]
    P, line = physics.out_shape[0], torch.arange(size) - (size - 1) / 2
    for a, theta in enumerate(physics.radon.angles):
        across = theta.cos() * line - theta.sin() * line[:, None]  # to the right and upwards
        k = (torch.arange(P) - P // 2)[:, None, None] / P
        brute = (x[0, 0] * torch.exp(-2j * math.pi * k * across)).sum((1, 2)) / math.sqrt(P)
        torch.testing.assert_close(spokes[:, a], brute.to(spokes.dtype), rtol=1e-3, atol=1e-3)


def test_of_a_smooth_image_they_are_those_of_the_projections():
    x, physics = blob(64), radial(12)
    spokes, projected = acquire(x, physics, torch.Generator(), noise=0.0), physics(x)
    assert (spokes - projected).norm() < 0.02 * projected.norm()


def test_the_noise_is_that_of_each_part():
    physics = radial(24)
    noise = acquire(torch.zeros(1, 1, 64, 64), physics, torch.Generator().manual_seed(0), noise=0.3)
    for part in (noise.real, noise.imag):
        assert abs(float(part.std()) / 0.3 - 1) < 0.05


def test_gridding_gives_back_what_all_spokes_saw():
    x, physics = blob(64), radial(ALL)
    y = acquire(x, physics, torch.Generator(), noise=0.0)
    for window in (False, True):
        image = gridding(y, physics, window)
        assert (image - x).norm() < 0.05 * x.norm()


def test_the_full_sinogram_keeps_the_angles_that_were_measured():
    x, physics = blob(64), radial(24)
    y = acquire(x, physics, torch.Generator(), noise=0.0)
    full = full_sinogram(y, physics)
    assert full.shape[-1] == ALL
    torch.testing.assert_close(full[..., :: ALL // 24], physics.sinogram(y), rtol=1e-4, atol=1e-4)
    assert spokes_name(24) == "radial MRI, 24 noisy spokes"
