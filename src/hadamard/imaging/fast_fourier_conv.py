"""Fast Fourier convolutions: layers that see the whole image at once, in the place of ``nn.Conv2d``.

The channels of an image are of two kinds, local ones first, global ones after them. A layer computes

    y_local = conv(x_local) + conv(x_global),        y_global = conv(x_local) + S(x_global),

where ``S`` is a 1x1 convolution of the spectrum of the global channels: every output pixel depends on every input pixel
after a single layer, at the cost of an FFT.

References
----------
L. Chi, B. Jiang, Y. Mu. Fast Fourier Convolution. NeurIPS 2020.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.validation import check_range, check_tensor

__all__ = ["FastFourierConv2d", "FourierUnit"]

Channels = Callable[[int], nn.Module]
Activation = Callable[[], nn.Module]


class FourierUnit(nn.Module):
    """A 1x1 convolution, a normalisation and an activation of an image's spectrum.

    Parameters
    ----------
    channels
        Of the images, before and after.
    norm, activation
        Called as ``norm(2 * channels)`` and ``activation()``; of the real and imaginary parts.

    Notes
    -----
    Of the orthonormal half spectrum, whose real and imaginary parts are channels of their own, next to each other.
    Half-precision images are transformed in single precision. Images are taken to be periodic.

    Examples
    --------
    >>> FourierUnit(3)(torch.ones(2, 3, 7, 5)).shape
    torch.Size([2, 3, 7, 5])
    """

    def __init__(self, channels: int, *, norm: Channels = nn.BatchNorm2d, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        check_range(channels, "channels", 1, integer=True)
        self.conv = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.norm, self.activation = norm(2 * channels), activation()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map images (B, channels, H, W) to images of the same shape."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        X = torch.view_as_real(torch.fft.rfft2(wide, norm="ortho"))  # (B, C, H, W // 2 + 1, 2)
        parts = X.permute(0, 1, 4, 2, 3).flatten(1, 2)
        parts = self.activation(self.norm(self.conv(parts.to(x.dtype))))
        parts = parts.unflatten(1, (-1, 2)).to(wide.dtype)
        Y = torch.complex(parts[:, :, 0], parts[:, :, 1])
        return torch.fft.irfft2(Y, s=x.shape[-2:], norm="ortho").to(x.dtype)


class FastFourierConv2d(nn.Module):
    """A convolution, part of which is made in the spectrum: the place of ``nn.Conv2d`` with ``padding="same"``.

    Parameters
    ----------
    in_channels, out_channels
        Of the images.
    kernel_size
        Of the convolutions in space, odd.
    stride
        1 or 2; with 2, height and width are halved, rounded up.
    global_in, global_out
        Share of the input's and output's channels that are global (the last ones), in [0, 1]; rounded down to whole
        channels. With 0 of the input there is no spectral part, with 0 of both the layer is a convolution.
    norm, activation
        In the spectral part, called as ``norm(channels)`` and ``activation()``.

    Raises
    ------
    TypeError
        If the image is complex.
    ValueError
        If a number is out of range, or the image is too small to be mirrored at its edges.

    Notes
    -----
    There is no bias, as a normalisation follows; edges are mirrored for the convolutions in space, periodic for the
    spectral part. The spectral part is a 1x1 convolution to half of the channels, normalised and activated, a
    :class:`FourierUnit` whose result is added to what it is given, and a 1x1 convolution to all channels. Before it,
    with stride 2, the mean of each 2x2 pixels is taken.

    When not to use it: where what is far away does not matter (denoising of white noise), and on images so small that
    a few 3x3 convolutions see all of them.

    Examples
    --------
    >>> layer = FastFourierConv2d(8, 16, 3, stride=2)
    >>> layer(torch.ones(1, 8, 10, 13)).shape
    torch.Size([1, 16, 5, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        global_in: float = 0.75,
        global_out: float = 0.75,
        norm: Channels = nn.BatchNorm2d,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        for name, number in {"in_channels": in_channels, "out_channels": out_channels}.items():
            check_range(number, name, 1, integer=True)
        check_range(stride, "stride", 1, 2, integer=True)
        if check_range(kernel_size, "kernel_size", 1, integer=True) % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        far_in = int(in_channels * check_range(global_in, "global_in", 0, 1))
        far_out = int(out_channels * check_range(global_out, "global_out", 0, 1))
        near_in, near_out = in_channels - far_in, out_channels - far_out
        self.stride, self.reach, self.split = stride, kernel_size // 2, (near_in, far_in)

        def conv(a: int, b: int) -> nn.Conv2d | None:
            return nn.Conv2d(a, b, kernel_size, stride, bias=False) if a and b else None

        # one convolution of the local channels gives both kinds of output
        self.from_local = conv(near_in, out_channels)
        self.from_global = conv(far_in, near_out)
        self.spectral = _Spectral(far_in, far_out, norm, activation) if far_in and far_out else None
        self.out_split = (near_out, far_out)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d H W"]:
        """Map images (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        check_tensor(x, "x", ndim=4, dtype="floating", finite=False)
        if min(x.shape[-2:]) <= self.reach:
            raise ValueError(f"x must have more than {self.reach} pixels each way, got {tuple(x.shape[-2:])}")
        near, far = x.split(self.split, 1)
        y_near: Tensor | None = None
        y_far: Tensor | None = None
        if self.from_local is not None:
            y_near, y_far = self._mirrored(self.from_local, near).split(self.out_split, 1)
        if self.from_global is not None:
            y_near = _sum(y_near, self._mirrored(self.from_global, far))
        if self.spectral is not None:
            y_far = _sum(y_far, self.spectral(F.avg_pool2d(far, 2, ceil_mode=True) if self.stride == 2 else far))
        return torch.cat([y for y in (y_near, y_far) if y is not None], 1)

    def _mirrored(self, conv: nn.Module, x: Tensor) -> Tensor:
        return conv(F.pad(x, (self.reach,) * 4, mode="reflect"))


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


class _Spectral(nn.Module):
    """Half as many channels, the Fourier unit beside the identity, and all channels again."""

    def __init__(self, before: int, after: int, norm: Channels, activation: Activation) -> None:
        super().__init__()
        inner = max(after // 2, 1)
        self.first = nn.Sequential(nn.Conv2d(before, inner, 1, bias=False), norm(inner), activation())
        self.unit = FourierUnit(inner, norm=norm, activation=activation)
        self.last = nn.Conv2d(inner, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.unit(x))
