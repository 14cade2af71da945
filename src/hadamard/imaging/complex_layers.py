"""Layers for networks on complex images: convolution, batch normalisation and two activations.

References
----------
C. Trabelsi et al., "Deep complex networks", ICLR 2018, arXiv:1705.09792. M. Arjovsky, A. Shah, Y. Bengio, "Unitary
evolution recurrent neural networks", ICML 2016, arXiv:1511.06464 (modReLU).
"""

import math
from typing import Literal

import torch
from jaxtyping import Complex, Inexact
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.validation import check_option, check_range

__all__ = ["CReLU", "ComplexBatchNorm2d", "ComplexConv2d", "ModReLU", "as_channels", "as_complex"]


class ComplexConv2d(nn.Conv2d):
    """A convolution of complex images with complex weights, as one real convolution of twice as many channels.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device
        As for :class:`torch.nn.Conv2d`.
    dtype
        ``torch.complex64`` or ``torch.complex128``.
    init
        Scale of the initial weights' Rayleigh distributed moduli: ``"glorot"``, 1 / sqrt(fan in + fan out), or
        ``"he"``, 1 / sqrt(fan in). Phases are uniform and the bias is 0.

    Raises
    ------
    TypeError
        If ``dtype`` is not complex.

    Notes
    -----
    With weights A + iB, real and imaginary part are convolved by [[A, -B], [B, A]]. That gives what
    ``torch.nn.Conv2d(dtype=torch.complex64)`` gives, and it runs under autocast, which knows no complex numbers. Real
    and imaginary parts are neighbouring channels of images whose channels come last in memory, so that nothing is
    copied between these layers. Groups are left to torch.

    Examples
    --------
    >>> layer = ComplexConv2d(2, 3, 3, padding=1)
    >>> layer(torch.zeros(1, 2, 5, 5, dtype=torch.complex64)).shape, layer.weight.dtype
    (torch.Size([1, 3, 5, 5]), torch.complex64)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.complex64,
        *,
        init: str = "glorot",
    ) -> None:
        if not dtype.is_complex:
            raise TypeError(f"dtype must be complex, got {dtype}")
        self.init = check_option(init, "init", ("glorot", "he"))
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        field = math.prod(self.kernel_size)
        fan_in, fan_out = (n // self.groups * field for n in (self.in_channels, self.out_channels))
        sigma = 1 / math.sqrt(fan_in + (fan_out if self.init == "glorot" else 0))
        modulus = sigma * torch.empty_like(self.weight.real).exponential_().mul(2).sqrt()
        angle = torch.empty_like(modulus).uniform_(-math.pi, math.pi)
        self.weight.copy_(torch.polar(modulus, angle))
        if self.bias is not None:
            self.bias.zero_()

    def _conv_forward(
        self, input: Complex[Tensor, "b c h w"], weight: Tensor, bias: Tensor | None
    ) -> Complex[Tensor, "b d i j"]:
        if self.groups > 1:
            return super()._conv_forward(input, weight, bias)
        x = as_channels(input)
        padding: str | int | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode), 0
            x = x.contiguous(memory_format=torch.channels_last)
        a, b = torch.view_as_real(weight).unbind(-1)
        blocks = torch.stack([torch.stack([a, -b], 2), torch.stack([b, a], 2)], 1).flatten(2, 3).flatten(0, 1)
        blocks = blocks.contiguous(memory_format=torch.channels_last)
        offset = None if bias is None else torch.view_as_real(bias).flatten()
        y = F.conv2d(x, blocks, offset, self.stride, padding, self.dilation)
        return as_complex(y.to(a.dtype))


class ComplexBatchNorm2d(nn.Module):
    """Batch normalisation of complex images: real and imaginary part are whitened together.

    Each channel's values become uncorrelated to their conjugates (circular) with mean 0; then a linear map of (real,
    imaginary) part, which begins with the scale at which the mean squared modulus is 1, and an offset are learned.

    Parameters
    ----------
    num_features, eps, momentum, affine
        As for :class:`torch.nn.BatchNorm2d`; ``momentum`` is the weight of the new batch.
    dtype
        ``torch.complex64`` or ``torch.complex128``.

    Raises
    ------
    TypeError
        If ``dtype`` is not complex.
    ValueError
        If ``num_features`` is not positive.

    Examples
    --------
    >>> x = torch.randn(8, 2, 9, 9) + 3j * torch.randn(8, 2, 9, 9)
    >>> y = ComplexBatchNorm2d(2)(x).detach()
    >>> round(float(y.abs().square().mean()), 3), round(abs(complex(y.square().mean())), 3)
    (1.0, 0.0)
    """

    running_mean: Tensor
    running_covariance: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        dtype: torch.dtype = torch.complex64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_range(num_features, "num_features", 1, integer=True)
        if not dtype.is_complex:
            raise TypeError(f"dtype must be complex, got {dtype}")
        real = torch.empty(0, dtype=dtype).real.dtype
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        # rows: real-real, real-imaginary, imaginary-imaginary; begins with that of circular noise of power 1
        circular = torch.tensor([0.5, 0.0, 0.5], dtype=real, device=device)[:, None].repeat(1, num_features)
        self.register_buffer("running_mean", torch.zeros(num_features, dtype=dtype, device=device))
        self.register_buffer("running_covariance", circular)
        self.weight = nn.Parameter(circular.sqrt()) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, dtype=dtype, device=device)) if affine else None

    def forward(self, x: Complex[Tensor, "b c h w"]) -> Complex[Tensor, "b c h w"]:
        """Normalise images of shape (B, num_features, H, W)."""
        values = as_channels(x).movedim(1, -1)
        with torch.autocast(x.device.type, enabled=False):
            pixels = values.reshape(-1, 2 * self.num_features)
            if self.training:
                mean = pixels.mean(0)
                moments = (pixels - mean).T @ (pixels - mean) / len(pixels)
                blocks = moments.unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).diagonal(dim1=0, dim2=2)
                covariance = torch.stack([blocks[0, 0], blocks[0, 1], blocks[1, 1]])
                with torch.no_grad():
                    unbiased = covariance * (len(pixels) / max(len(pixels) - 1, 1))
                    self.running_mean.lerp_(torch.view_as_complex(mean.unflatten(0, (-1, 2))), self.momentum)
                    self.running_covariance.lerp_(unbiased, self.momentum)
            else:
                mean, covariance = torch.view_as_real(self.running_mean).flatten(), self.running_covariance
            matrix = torch.diag_embed(self._whitening(covariance)).movedim(2, 0).movedim(-1, 2)
            matrix = matrix.reshape(len(mean), len(mean))
            offset = -matrix @ mean
            if self.bias is not None:
                offset = offset + torch.view_as_real(self.bias).flatten()
            y = F.linear(pixels, matrix, offset)
        return as_complex(y.reshape(values.shape).movedim(-1, 1))

    def _whitening(self, covariance: Tensor) -> Tensor:
        """Map of (real, imaginary) part that each channel's covariance asks for, with its weight: (2, 2, C)."""
        a, b, d = covariance[0] + self.eps, covariance[1], covariance[2] + self.eps
        root = (a * d - b * b).clamp(min=self.eps**2).sqrt()
        scale = 1 / (root * (a + d + 2 * root).sqrt())  # of the inverse square root of [[a, b], [b, d]]
        p, q, s = (d + root) * scale, -b * scale, (a + root) * scale
        if self.weight is None:
            return torch.stack([torch.stack([p, q]), torch.stack([q, s])])
        u, v, w = self.weight
        return torch.stack([torch.stack([u * p + v * q, u * q + v * s]), torch.stack([v * p + w * q, v * q + w * s])])

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}"


class CReLU(nn.Module):
    """ReLU of the real and of the imaginary part.

    It does not commute with a turn of the phase; :class:`ModReLU` does.

    Examples
    --------
    >>> CReLU()(torch.tensor([-1 + 2j]))
    tensor([0.+2.j])
    """

    def forward(self, x: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """Set negative parts to 0."""
        return torch.view_as_complex(torch.view_as_real(x).relu()) if x.is_complex() else x.relu()


class ModReLU(nn.Module):
    """ReLU of the modulus plus a learned threshold; the phase stays.

    Parameters
    ----------
    num_parameters
        Thresholds: 1, or one a channel.
    dtype, device
        Of the thresholds (real).

    Raises
    ------
    ValueError
        If ``num_parameters`` is not positive.

    Notes
    -----
    ``z -> z / |z| * max(|z| + b, 0)``, and 0 at 0. Thresholds begin near 0. Where ``b > 0`` the map jumps at 0.

    Examples
    --------
    >>> layer = ModReLU()
    >>> _ = nn.init.constant_(layer.threshold, -1.0)
    >>> layer(torch.tensor([[[[3.0 + 4.0j, 0.5j, 0.0]]]])).detach().flatten()
    tensor([2.4000+3.2000j, 0.0000+0.0000j, 0.0000+0.0000j])
    """

    def __init__(
        self, num_parameters: int = 1, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        check_range(num_parameters, "num_parameters", 1, integer=True)
        self.threshold = nn.Parameter(torch.randn(num_parameters, dtype=dtype, device=device) * 0.02)

    def forward(self, x: Complex[Tensor, "b c *shape"]) -> Complex[Tensor, "b c *shape"]:
        """Shrink or stretch moduli, channels on the second axis."""
        b = self.threshold.reshape(-1, *[1] * (x.ndim - 2))
        return torch.sgn(x) * (x.abs() + b).relu()


def as_channels(x: Tensor) -> Tensor:
    """Real and imaginary parts as neighbouring channels, which come last in memory: (B, 2 C, H, W).

    Examples
    --------
    >>> as_channels(torch.full((1, 1, 1, 1), 1 + 2j)).flatten()
    tensor([1., 2.])
    """
    return torch.view_as_real(x.movedim(1, -1)).flatten(-2).movedim(-1, 1)


def as_complex(x: Tensor) -> Tensor:
    """Undo :func:`as_channels`.

    Examples
    --------
    >>> as_complex(torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)).flatten()
    tensor([1.+2.j])
    """
    return torch.view_as_complex(x.movedim(1, -1).unflatten(-1, (-1, 2)).contiguous()).movedim(-1, 1)
