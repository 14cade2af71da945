"""How good a panorama is, each pixel weighted by the solid angle that it stands for.

References
----------
Y. Sun, A. Lu, L. Yu. Weighted-to-spherically-uniform quality evaluation for omnidirectional video. IEEE Signal
Processing Letters 24(9), 2017.

Y. Zhou, M. Yu, H. Ma, H. Shao, G. Jiang. Weighted-to-spherically-uniform SSIM objective quality evaluation for
panoramic video. ICSP 2018.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hadamard.validation import check_range, check_same, check_tensor

__all__ = ["solid_angle_weights", "ws_psnr", "ws_ssim"]

_RADIUS, _SIGMA = 5, 1.5  # of SSIM's window


def solid_angle_weights(height: int, like: Tensor) -> Float[Tensor, " h"]:
    """Weights of the rows: cos((j - H/2 + 1/2) pi / H), scaled to a mean of 1."""
    rows = torch.arange(height, dtype=torch.float64, device=like.device)
    weights = ((rows + 0.5 - height / 2) * (math.pi / height)).cos()
    return (weights / weights.mean()).to(like.dtype)


def ws_psnr(
    x: Float[Tensor, "*batch c h w"], reference: Float[Tensor, "*batch c h w"], data_range: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Peak signal-to-noise ratio in dB, weighted to be uniform on the sphere.

    Parameters
    ----------
    x, reference
        Panoramas (..., C, H, W), equirectangular.
    data_range
        Largest value less the smallest: 1 for [0, 1], 2 for [-1, 1].

    Raises
    ------
    ValueError
        If the shapes differ or a value is not finite.

    Examples
    --------
    >>> x = torch.zeros(3, 8, 16)
    >>> ws_psnr(x + 0.1, x)
    tensor(20.)
    """
    _check(x, reference, data_range)
    weights = solid_angle_weights(x.shape[-2], x)[:, None]
    error = ((x - reference).square() * weights).mean((-3, -2, -1))
    return 10 * (data_range**2 / error).log10()


def ws_ssim(
    x: Float[Tensor, "*batch c h w"], reference: Float[Tensor, "*batch c h w"], data_range: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Structural similarity, weighted to be uniform on the sphere; the mean over the channels.

    The local figure is that of Wang et al. (2004): an 11 x 11 Gaussian window of standard deviation 1.5, pictures
    mirrored at their edges.

    Parameters
    ----------
    x, reference, data_range
        As for :func:`ws_psnr`; at least six rows and columns.

    Raises
    ------
    ValueError
        If the shapes differ or a value is not finite.

    Examples
    --------
    >>> x = torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(0))
    >>> float(ws_ssim(x, x))
    1.0
    """
    _check(x, reference, data_range)
    if x.shape[-2] <= _RADIUS:
        raise ValueError(f"x must have more than {_RADIUS} rows, got shape {tuple(x.shape)}")
    a, b = (u.reshape(-1, 1, *u.shape[-2:]) for u in (x, reference))
    ma, mb, aa, bb, ab = _blur(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    local = (2 * ma * mb + c1) * (2 * (ab - ma * mb) + c2)
    local = local / ((ma**2 + mb**2 + c1) * (aa - ma**2 + bb - mb**2 + c2))
    weights = solid_angle_weights(x.shape[-2], x)[:, None]
    return (local.reshape(x.shape) * weights).mean((-3, -2, -1))


def _blur(x: Tensor) -> Tensor:
    steps = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64, device=x.device)
    window = (-(steps / _SIGMA).square() / 2).exp()
    window = (window / window.sum()).to(x.dtype)
    for axis in (-2, -1):
        x = x.movedim(axis, -1)
        n = x.shape[-1]
        mirrored = torch.cat([x[..., :_RADIUS].flip(-1), x, x[..., n - _RADIUS :].flip(-1)], -1)
        x = F.conv2d(mirrored, window[None, None, None]).movedim(-1, axis)
    return x


def _check(x: Tensor, reference: Tensor, data_range: float) -> None:
    check_tensor(x, "x", dtype="floating")
    check_tensor(reference, "reference", dtype="floating")
    check_same(x=x, reference=reference)
    check_range(data_range, "data_range", 0, closed="neither")
    if x.ndim < 3 or x.shape != reference.shape:
        shapes = f"{tuple(x.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"x and reference must have the same shape (..., C, H, W), got {shapes}")
