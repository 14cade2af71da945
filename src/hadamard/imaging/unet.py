"""The U-Net of the reconstruction networks, for any size of image, real or complex."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Inexact
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.imaging.complex_layers import as_channels, as_complex
from hadamard.validation import check_range, check_tensor

__all__ = ["UNet"]

Layer = Callable[..., nn.Module]


class UNet(nn.Module):
    """Convolutions on coarser and coarser grids and back, with what each level saw handed over to the way back.

    Parameters
    ----------
    in_channels, out_channels
        Of the images.
    widths
        Channels of each level, the finest first. Every level halves height and width.
    conv, norm, activation
        What makes the layers, called as ``conv(in, out, kernel_size, padding=...)``, ``norm(channels)`` and
        ``activation()``. Complex layers make a complex network.

    Raises
    ------
    ValueError
        If ``widths`` is empty or a number is not positive.

    Notes
    -----
    A level is twice a 3x3 convolution, an activation and a normalisation, in this order [2]_. The way down averages
    2x2 pixels, the way up interpolates linearly to the size of the level above, so that odd sizes need no padding.

    References
    ----------
    .. [1] O. Ronneberger, P. Fischer, T. Brox. U-Net: Convolutional networks for biomedical image segmentation.
           MICCAI 2015. arXiv:1505.04597.
    .. [2] P. Ernst, S. Chatterjee, G. Rose, O. Speck, A. Nürnberger. Sinogram upsampling using Primal-Dual UNet for
           undersampled CT and radial MRI reconstruction. Neural Networks 166, 2023. arXiv:2112.13443.

    Examples
    --------
    >>> UNet(1, 2, (4, 8))(torch.zeros(3, 1, 9, 6)).shape
    torch.Size([3, 2, 9, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = (32, 64, 128, 256),
        *,
        conv: Layer = nn.Conv2d,
        norm: Layer = nn.BatchNorm2d,
        activation: Layer = nn.ReLU,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("widths must name at least one level, got none")
        for name, numbers in (("in_channels", [in_channels]), ("out_channels", [out_channels]), ("widths", widths)):
            for number in numbers:
                check_range(number, name, 1, integer=True)

        def level(before: int, after: int) -> nn.Sequential:
            steps = ((conv(n, after, 3, padding=1), activation(), norm(after)) for n in (before, after))
            return nn.Sequential(*(layer for step in steps for layer in step))

        self.down = nn.ModuleList(level(a, b) for a, b in pairwise((in_channels, *widths)))
        back = list(pairwise(reversed(widths)))
        self.narrow = nn.ModuleList(conv(a, b, 1) for a, b in back)
        self.up = nn.ModuleList(level(2 * b, b) for _, b in back)
        self.last = conv(widths[0], out_channels, 1)

    def forward(self, x: Inexact[Tensor, "b c h w"]) -> Inexact[Tensor, "b d h w"]:
        """Map images (B, in_channels, H, W) to (B, out_channels, H, W).

        Raises
        ------
        ValueError
            If the images are smaller than a pixel on the coarsest level.
        """
        least = 2 ** (len(self.down) - 1)
        check_tensor(x, "x", ndim=4, finite=False)
        if min(x.shape[-2:]) < least:
            raise ValueError(f"x must have at least {least} x {least} pixels, got {tuple(x.shape[-2:])}")
        seen: list[Tensor] = []
        for i, level in enumerate(self.down):
            x = level(parts(partial(F.avg_pool2d, kernel_size=2), seen[-1]) if i else x)
            seen.append(x)
        for narrow, level, skip in zip(self.narrow, self.up, reversed(seen[:-1])):
            enlarge = partial(F.interpolate, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = level(torch.cat([skip, narrow(parts(enlarge, x))], 1))
        return self.last(x)


def parts(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a real linear map of each channel's image to real and imaginary part.

    Examples
    --------
    >>> parts(lambda v: 2 * v, torch.full((1, 1, 1, 1), 1 + 1j)).flatten()
    tensor([2.+2.j])
    """
    return as_complex(f(as_channels(x))) if x.is_complex() else f(x)
