"""A beating-heart series and its undersampled acquisition, generated: dynamic MRI without a scanner.

Raw cine k-space is in no package that installs, so this draws a cross-section of a chest in which a heart contracts
while contrast agent washes in, gives it a smooth phase, and samples its Fourier transform frame by frame.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Complex
from scipy.ndimage import gaussian_filter
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["PROVENANCE", "acquire", "beating_heart", "coil_maps", "kt_mask"]

PROVENANCE = (
    "Generated, not measured: ellipses for chest wall, lungs, liver, spine and vessels; a left and a right ventricle "
    "whose radii follow two heartbeats; contrast that reaches the right ventricle, the left ventricle and the heart "
    "muscle one after the other; a smooth texture and a smooth, slowly drifting phase. Sampled per frame by the "
    "orthonormal discrete Fourier transform on whole phase-encoding lines, denser near the centre, with complex "
    "Gaussian noise."
)


def beating_heart(frames: int = 24, size: int = 96, *, random_state: int = 0) -> Complex[Tensor, "t h w"]:
    """Draw a complex series of a beating heart during contrast wash-in, with largest magnitude 1.

    Parameters
    ----------
    frames
        Number of frames; they span two heartbeats.
    size
        Height and width in pixels, at least 16.
    random_state
        Seed: places, sizes, brightness, texture and phase differ from one to the next, as patients do.

    Returns
    -------
    Tensor
        complex64 of shape (frames, size, size).

    Examples
    --------
    >>> series = beating_heart(8, 32)
    >>> series.shape, round(float(series.abs().max()), 4)
    (torch.Size([8, 32, 32]), 1.0)
    """
    check_range(frames, "frames", 1)
    check_range(size, "size", 16)
    rng = np.random.default_rng(random_state)
    time = np.arange(frames) / max(frames, 2)
    beat = 0.5 - 0.5 * np.cos(4 * math.pi * time + rng.uniform(-0.3, 0.3))  # 0: relaxed, 1: contracted; two beats
    still = np.zeros((1, size, size))
    for centre, radii, brightness in _CHEST:
        jitter = rng.uniform(-0.015, 0.015, 2)
        still = _paint(still, np.add(centre, jitter), np.multiply(radii, rng.uniform(0.94, 1.06)), brightness)
    texture = gaussian_filter(rng.standard_normal((size, size)), size / 32, mode="wrap")
    series = np.repeat(still * (1 + 0.06 * texture / texture.std()), frames, axis=0)
    heart = np.add((0.02, 0.12), rng.uniform(-0.03, 0.03, 2))
    reach = rng.uniform(0.94, 1.06)
    for offset, radii, squeeze, resting, gain, arrival in _HEART:
        level = resting + gain / (1 + np.exp(-(time - arrival) / 0.06))
        shrunk = reach * np.asarray(radii) * (1 - squeeze * beat)[:, None]
        swing = np.stack([0.01 * beat, -0.008 * beat], -1)
        series = _paint(series, heart + np.multiply(offset, reach) + swing, shrunk, level)
    y, x = _grid(size)
    a, b, c, drift = rng.uniform(-1, 1, 4)
    phase = 0.8 * (a * x + b * y + c * x * y)[None] + 0.15 * drift * np.sin(2 * math.pi * time)[:, None, None] * x
    return torch.from_numpy((series / series.max() * np.exp(1j * phase)).astype(np.complex64))


def kt_mask(
    frames: int, height: int, width: int, acceleration: float, *, centre: int = 4, random_state: int = 0
) -> Bool[Tensor, "t h w"]:
    """Draw which phase-encoding lines each frame acquires: the centre always, the rest at random, denser near it.

    Parameters
    ----------
    frames, height, width
        Shape of the k-space; lines run along the width, k-space is centred (zero frequency at ``height // 2``).
    acceleration
        Lines in all over lines acquired, at least 1.
    centre
        Lines around the zero frequency that every frame acquires.
    random_state
        Seed; every frame draws its own lines.

    Returns
    -------
    Tensor
        Boolean mask of shape (frames, height, width), with ``round(height / acceleration)`` lines a frame.

    Examples
    --------
    >>> kt_mask(3, 24, 24, 4).float().mean().item()
    0.25
    """
    check_range(acceleration, "acceleration", 1)
    rng = np.random.default_rng(random_state)
    lines = max(round(height / acceleration), 1)
    distance = np.abs(np.arange(height) - height // 2)
    fixed = np.argsort(distance, kind="stable")[: min(centre, lines)]
    others = np.setdiff1d(np.arange(height), fixed)
    density = (1 - distance[others] / (height / 2 + 1)) ** 2 + 0.05
    mask = np.zeros((frames, height, width), dtype=bool)
    for frame in mask:
        frame[fixed] = True
        frame[rng.choice(others, lines - len(fixed), replace=False, p=density / density.sum())] = True
    return torch.from_numpy(mask)


def coil_maps(coils: int, height: int, width: int, *, random_state: int = 0) -> Complex[Tensor, "c h w"]:
    """Draw smooth coil sensitivities around the body, scaled so that their squared moduli sum to 1 in every pixel.

    Parameters
    ----------
    coils, height, width
        Shape of the result.
    random_state
        Seed of the coils' phases and widths.

    Examples
    --------
    >>> bool(torch.allclose(coil_maps(4, 16, 16).abs().square().sum(0), torch.ones(16, 16)))
    True
    """
    rng = np.random.default_rng(random_state)
    y, x = (np.linspace(-1, 1, n) for n in (height, width))
    angle = 2 * math.pi * (np.arange(coils) + rng.uniform(0, 0.3)) / coils
    away = (y[:, None] - 1.1 * np.sin(angle)[:, None, None]) ** 2 + (x - 1.1 * np.cos(angle)[:, None, None]) ** 2
    turn = rng.uniform(-1, 1, (3, coils, 1, 1))
    maps = np.exp(
        -away / rng.uniform(1.2, 1.8, (coils, 1, 1)) + 1j * (3 * turn[0] + turn[1] * y[:, None] + turn[2] * x)
    )
    return torch.from_numpy((maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64))


def acquire(
    series: Complex[Tensor, "t h w"],
    mask: Bool[Tensor, "t h w"],
    sens: Complex[Tensor, "c h w"] | None = None,
    *,
    noise: float = 0.01,
    outliers: float = 0.0,
    random_state: int = 0,
) -> Complex[Tensor, "..."]:
    """Sample the k-space of a series (centred, orthonormal), with noise and, if asked for, outliers in the image.

    Parameters
    ----------
    series
        Complex images, (T, H, W).
    mask
        Which samples are acquired, (T, H, W).
    sens
        Coil sensitivities, (C, H, W); none: one coil that sees everything alike.
    noise
        Standard deviation of the complex noise, as a fraction of the largest magnitude of the series.
    outliers
        Fraction of the pixels of the series that are hit by a spike of the largest magnitude and random phase before
        they are sampled.
    random_state
        Seed of noise and outliers.

    Returns
    -------
    Tensor
        k-space of shape (T, H, W), or (C, T, H, W) with coils; zero where it was not acquired.

    Examples
    --------
    >>> series = beating_heart(4, 16)
    >>> acquire(series, kt_mask(4, 16, 16, 2)).shape
    torch.Size([4, 16, 16])
    """
    check_tensor(series, "series", ndim=3, dtype="complex")
    check_tensor(mask, "mask", ndim=3, shape=tuple(series.shape), dtype=torch.bool)
    check_range(outliers, "outliers", 0, 1)
    check_range(noise, "noise", 0)
    rng = np.random.default_rng(random_state)
    peak = float(series.abs().max())
    hit = torch.from_numpy(rng.random(series.shape) < outliers)
    spikes = torch.from_numpy(np.exp(2j * math.pi * rng.random(series.shape)))
    images = series + peak * hit * spikes.to(series.dtype)
    if sens is not None:
        images = images * sens[:, None]
    kspace = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(images, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
    draw = rng.standard_normal((2, *kspace.shape)) / math.sqrt(2)
    return (kspace + noise * peak * torch.from_numpy(draw[0] + 1j * draw[1]).to(kspace.dtype)) * mask


# Ellipses of the resting chest: centre (y, x) and radii in units of the field of view's half, brightness.
_CHEST = [
    ((0.00, 0.00), (0.78, 0.92), 0.55),  # fat under the skin
    ((0.00, 0.00), (0.72, 0.86), 0.30),  # chest wall
    ((-0.08, -0.46), (0.50, 0.30), 0.06),  # right lung
    ((-0.08, 0.48), (0.50, 0.30), 0.06),  # left lung
    ((0.48, -0.30), (0.22, 0.42), 0.42),  # liver
    ((0.50, 0.02), (0.13, 0.11), 0.22),  # spine
    ((0.50, 0.02), (0.05, 0.05), 0.65),  # spinal canal
    ((0.34, 0.14), (0.07, 0.07), 0.70),  # aorta
    ((-0.20, -0.40), (0.03, 0.03), 0.35),  # vessels in the lungs
    ((0.05, -0.55), (0.02, 0.03), 0.35),
    ((-0.30, 0.52), (0.03, 0.02), 0.35),
]
# Parts of the heart: offset, radii, fraction lost in contraction, resting brightness, contrast gain, arrival in [0, 1].
_HEART = [
    ((-0.02, -0.20), (0.24, 0.20), 0.16, 0.30, 0.00, 0.00),  # wall of the right ventricle
    ((-0.02, -0.20), (0.20, 0.16), 0.28, 0.45, 0.50, 0.20),  # right ventricle
    ((0.00, 0.06), (0.29, 0.27), 0.10, 0.28, 0.16, 0.65),  # heart muscle
    ((0.00, 0.06), (0.19, 0.17), 0.34, 0.45, 0.55, 0.40),  # left ventricle
    ((-0.07, 0.03), (0.035, 0.03), 0.20, 0.28, 0.16, 0.65),  # papillary muscles
    ((0.06, 0.11), (0.03, 0.035), 0.20, 0.28, 0.16, 0.65),
]


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = (np.arange(size) + 0.5) / size * 2 - 1
    return line[:, None], line[None, :]


def _paint(canvas: np.ndarray, centre: np.ndarray, radii: np.ndarray, brightness: float | np.ndarray) -> np.ndarray:
    """Lay an ellipse over every frame; pixels on its edge are covered in part, as a voxel averages."""
    y, x = _grid(canvas.shape[-1])
    centre, radii = (np.asarray(v, dtype=float).reshape(-1, 2)[:, :, None, None] for v in (centre, radii))
    distance = np.sqrt(((y - centre[:, 0]) / radii[:, 0]) ** 2 + ((x - centre[:, 1]) / radii[:, 1]) ** 2)
    covered = np.clip(0.5 + (1 - distance) * radii.min(1) * canvas.shape[-1] / 2, 0, 1)
    return canvas * (1 - covered) + covered * np.reshape(brightness, (-1, 1, 1))
