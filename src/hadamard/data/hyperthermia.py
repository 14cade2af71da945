"""Hyperthermia seen by MR thermometry, simulated on real anatomy: heat, magnitude, phase, motion, field drift, noise.

Raw thermometry series are in no package that installs. Here a magnitude image is given a smooth phase, as a coil does,
and is heated in one place while it moves and the main field drifts.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor
from torch.nn import functional as F

from hadamard.spectral.fft import fft_centred
from hadamard.validation import check_range, check_tensor

__all__ = ["HyperthermiaSeries", "acquire_kspace", "hyperthermia"]

_SHIFT = 2 * math.pi * 42.576e6 * -0.01e-6  # rad / (s T degree)


@dataclass(frozen=True)
class HyperthermiaSeries:
    """A series of images without noise, the first before heating.

    Attributes
    ----------
    images
        Complex images, shape (T, H, W).
    temperature
        The true change of temperature since the first image in degrees, shape (T, H, W); it moves with the body.
    body
        Where there is tissue, shape (T, H, W).
    tumour
        The heated region: tissue with more than half the greatest change at the end, shape (T, H, W).
    unheated
        Tissue whose change stays below 2 % of the greatest in every frame, at least the coldest tenth of the tissue:
        for the correction of drift, shape (H, W).
    te, b0
        Echo time in seconds and field in tesla.
    """

    images: Complex[Tensor, "t h w"]
    temperature: Float[Tensor, "t h w"]
    body: Bool[Tensor, "t h w"]
    tumour: Bool[Tensor, "t h w"]
    unheated: Bool[Tensor, "h w"]
    te: float
    b0: float


def hyperthermia(
    anatomy: Float[Tensor, "h w"],
    frames: int = 4,
    *,
    te: float = 0.020,
    b0: float = 1.5,
    peak: float = 8.0,
    width: tuple[float, float] = (0.09, 0.16),
    motion: float = 0.01,
    drift: float = 0.3,
    generator: torch.Generator | None = None,
) -> HyperthermiaSeries:
    """Heat an anatomy.

    Parameters
    ----------
    anatomy
        Magnitude image, shape (H, W), not negative.
    frames
        Images; the first is the reference.
    te, b0
        Echo time in seconds and field in tesla.
    peak
        Change of temperature in the middle of the hot spot at the end, in degrees; it is reached as
        ``1 - exp(-2 t)``.
    width
        Range of the standard deviation of the Gaussian hot spot, as fractions of the image's width.
    motion
        Largest shift by breathing, as a fraction of the image's width, along the height; a third of it along the width,
        and as much rotation in radians.
    drift
        Phase by which the field has drifted at the end, in radians: its mean, and half of it to either side.
    generator
        Draws everything; ``None``: a fixed seed.

    Returns
    -------
    HyperthermiaSeries
        The magnitude falls by 1 % a degree. The coil's phase is a polynomial of degree two that stays in place. The
        skin stays cold, as under the water bolus of an applicator, so that drift can be fitted all around the heat.

    Raises
    ------
    ValueError
        If the anatomy is not finite, negative or empty, or a number is out of range.

    Examples
    --------
    >>> series = hyperthermia(torch.ones(32, 32), frames=3)
    >>> series.images.shape, bool(series.tumour[-1].any())
    (torch.Size([3, 32, 32]), True)
    """
    check_tensor(anatomy, "anatomy", ndim=2, dtype="floating")
    check_range(frames, "frames", 2, integer=True)
    for name, value in {"te": te, "b0": b0, "peak": peak}.items():
        check_range(value, name, 0, closed="neither")
    check_range(motion, "motion", 0, 0.5)
    if not (anatomy >= 0).all() or not anatomy.any():
        raise ValueError("anatomy must be >= 0 and not 0 everywhere")
    generator = generator or torch.Generator().manual_seed(0)

    def number(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    y, x = (torch.linspace(-1, 1, m, dtype=anatomy.dtype) for m in anatomy.shape)
    y = y[:, None]
    smooth = F.avg_pool2d(anatomy[None, None], 5, 1, 2, count_include_pad=True)[0, 0]
    tissue = smooth > 0.12 * smooth.max()
    inside = _beneath_skin(tissue)
    where = (inside > 0.8 * inside.max()).nonzero()
    spot = where[int(torch.randint(len(where), (1,), generator=generator))]
    sigma = number(*width) * 2  # the image is 2 wide
    aspect = number(0.8, 1.25)
    away = ((y - y[spot[0], 0]) * aspect) ** 2 + ((x - x[spot[1]]) / aspect) ** 2
    heat = torch.exp(-away / (2 * sigma**2)) * inside
    heat = heat / heat.max()

    time = torch.arange(frames, dtype=anatomy.dtype) / (frames - 1)
    rise = peak * (1 - torch.exp(-2 * time)) / (1 - math.exp(-2))
    breath = torch.sin(2 * math.pi * (time * number(1.5, 3.0) + number(0, 0.2)))
    breath = motion * (breath - breath[0]).clamp(-1, 1)
    moved = _move(torch.stack([anatomy, heat, tissue.to(anatomy.dtype)]), breath, number(-1, 1) / 3, number(-1, 1))
    magnitude, heat, covered = moved.unbind(1)
    body = covered > 0.5
    temperature = rise[:, None, None] * heat

    bend = [number(-1.5, 1.5) for _ in range(5)]
    coil = bend[0] * x + bend[1] * y + bend[2] * x * y + bend[3] * x * x + bend[4] * y * y + number(-3, 3)
    tilt = number(0, 2 * math.pi)
    field = (
        drift
        * time[:, None, None]
        * (1 + 0.5 * (math.cos(tilt) * x + math.sin(tilt) * y))
        * (1 if number(0, 1) < 0.5 else -1)
    )
    phase = coil + field + _SHIFT * b0 * te * temperature
    images = torch.polar(magnitude * (1 - 0.01 * temperature), phase)
    return HyperthermiaSeries(
        images=images,
        temperature=temperature,
        body=body,
        tumour=body & (heat > 0.5),
        unheated=_coldest(heat.amax(0), body.all(0)),
        te=te,
        b0=b0,
    )


def acquire_kspace(
    images: Complex[Tensor, "*batch h w"],
    mask: Bool[Tensor, "h w"] | None = None,
    *,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Complex[Tensor, "*batch h w"]:
    """Sample the centred orthonormal k-space of images, with noise.

    Parameters
    ----------
    images
        Complex images, shape (..., H, W).
    mask
        True where k-space is measured; ``None``: everywhere.
    noise
        Standard deviation of the noise in the real and in the imaginary part, in the images' unit.
    generator
        Draws the noise; ``None``: a fixed seed.

    Returns
    -------
    Tensor
        k-space, 0 where it was not measured.

    Examples
    --------
    >>> acquire_kspace(torch.ones(2, 4, 4, dtype=torch.complex64)).abs().amax((1, 2))
    tensor([4., 4.])
    """
    check_tensor(images, "images", dtype="complex")
    check_range(noise, "noise", 0)
    kspace = fft_centred(images)
    if noise:
        generator = generator or torch.Generator().manual_seed(0)
        draw = torch.randn((2, *images.shape), generator=generator, dtype=images.real.dtype)
        kspace = kspace + noise * torch.complex(draw[0], draw[1])
    return kspace if mask is None else kspace * mask


def _beneath_skin(tissue: Tensor) -> Tensor:
    """0 in the outermost 5 % of the image's width, 1 from 12 % on; all 1 in a body too thin for that."""
    window = 2 * max(1, round(tissue.shape[-1] / 8)) + 1
    near = F.avg_pool2d(tissue[None, None].float(), window, 1, window // 2)[0, 0]  # a half at a straight edge
    depth = ((near - 0.75) / 0.25).clamp(0, 1)
    return depth if depth.max() > 0.5 else tissue.float()


def _coldest(heat: Tensor, body: Tensor) -> Tensor:
    return body & (heat <= max(0.02, float(heat[body].quantile(0.1))))


def _move(maps: Tensor, breath: Tensor, across: float, turn: float) -> Tensor:
    """Maps (C, H, W) at every moment, (T, C, H, W), shifted and turned a little."""
    angle, shift = breath * turn, 2 * breath
    rows = [torch.stack([angle.cos(), -angle.sin(), shift * across]), torch.stack([angle.sin(), angle.cos(), shift])]
    grid = F.affine_grid(torch.stack(rows).movedim(-1, 0), [len(breath), *maps.shape], align_corners=False)
    return F.grid_sample(maps.expand(len(breath), -1, -1, -1), grid, align_corners=False)
