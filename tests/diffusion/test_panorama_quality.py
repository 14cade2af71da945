"""WS-PSNR and WS-SSIM against loops and scikit-image."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from hadamard.diffusion import ws_psnr, ws_ssim


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_by_loops():
    x, y = draw(3, 8, 16), draw(3, 8, 16, seed=1)
    error = weight = 0.0
    for j in range(8):
        w = math.cos((j - 4 + 0.5) * math.pi / 8)
        for i in range(16):
            for c in range(3):
                error += w * float(x[c, j, i] - y[c, j, i]) ** 2
                weight += w
    assert float(ws_psnr(x, y)) == pytest.approx(10 * math.log10(weight / error))
    assert float(ws_psnr(2 * x, 2 * y, 2.0)) == pytest.approx(10 * math.log10(weight / error))


def test_poles_count_less():
    x = torch.zeros(1, 8, 16)
    pole, equator = x.clone(), x.clone()
    pole[:, 0], equator[:, 4] = 1.0, 1.0
    assert ws_psnr(pole, x) > ws_psnr(equator, x) + 5


def test_ssim_is_scikit_images_weighted():
    x = draw(2, 24, 48)
    y = x + 0.2 * draw(2, 24, 48, seed=1)
    maps = [
        structural_similarity(a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                              full=True)[1]
        for a, b in zip(x.numpy(), y.numpy())
    ]  # fmt: skip
    weights = np.cos((np.arange(24) - 12 + 0.5) * np.pi / 24)
    want = np.average(np.mean(maps, 0).mean(1), weights=weights)
    assert float(ws_ssim(x, y)) == pytest.approx(want, abs=1e-10)
    assert ws_ssim(torch.stack([x, y]), torch.stack([y, y])).tolist() == pytest.approx([want, 1.0])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((1, 8, 16), float("nan")), "x must be finite"),
        (torch.ones(8, 16), "the same shape"),
        (torch.ones(1, 8, 8), "the same shape"),
    ],
)
def test_bad_input(x, message):
    for measure in (ws_psnr, ws_ssim):
        with pytest.raises(ValueError, match=message):
            measure(x, torch.ones(1, 8, 16))
