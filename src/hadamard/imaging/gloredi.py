"""GloReDi: clean images of sparse-view tomography by a network that sees the whole image, taught by one that sees more.

A student network is given the filtered back-projection of K views. While it learns, a teacher of the same architecture
is given that of 2 K views of the same slice, and the student's inner representation is drawn towards the teacher's.
When it is used there is neither teacher nor sinogram: an image goes in, an image comes out.

References
----------
Z. Li, C. Ma, J. Chen, J. Zhang, H. Shan. Learning to Distill Global Representation for Sparse-View CT. ICCV 2023,
arXiv:2308.08463.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.images import pad_to_multiple
from hadamard.imaging.fast_fourier_conv import FastFourierConv2d
from hadamard.training import load_checkpoint
from hadamard.validation import check_range, check_tensor

__all__ = ["GloReNet"]

_LEAST = 8  # pixels along a side, and two on the coarse grid
_FAR = 16.0  # from [0, 1]: what no filtered back-projection of an image in [0, 1] reaches, and Hounsfield units do


class GloReNet(nn.Module):
    """An encoder and a decoder of fast Fourier convolutions, on a grid coarser than the image.

    Parameters
    ----------
    in_channels
        Of the images, before and after.
    width
        Channels at full resolution; twice as many after each downsampling.
    n_enc, n_dec
        Residual blocks of the encoder and of the decoder.
    global_ratio
        Share of the coarse grid's channels that are global, in [0, 1]: 0 makes it a network of 3x3 convolutions.
    global_skip
        Add the network's output to the image that it was given, instead of confining it to [0, 1] by a sigmoid.
    downsamplings
        How often the encoder halves height and width, in 1, 2, ...

    Raises
    ------
    TypeError
        If an image is complex.
    ValueError
        If a number is out of range; if an image is not finite, smaller than 8 x 8 pixels or 2 x 2 cells of the grid, or
        far outside [0, 1].

    Notes
    -----
    Images are windowed to [0, 1] first (:func:`~hadamard.imaging.window`), not given in Hounsfield units. In training,
    batches of one image are normalised by that image's own statistics; larger batches are better.

    Both ``global_skip`` and the number of downsamplings are options of the paper's program, which trains for 150 epochs
    on images of 256 x 256 pixels without the former and with two of the latter. All detail is then drawn anew from the
    coarse grid, which takes long to learn. With a skip, what the input shows is there from the start, which helps where
    there are many views; but then the streaks have to be drawn to be taken away, which takes long to learn where there
    are few.

    Where it departs from the paper's program: there, a skip is added to what the sigmoid gives, which takes nothing
    away; here, to what the decoder gives. There, the decoder takes the first three quarters of the channels for the
    global ones (the encoder's are the last), so that a quarter is never decoded; here, the split is the encoder's.

    When not to use it: where the sinogram is at hand and time is not short, in which case
    :class:`~hadamard.imaging.PrimalDualUNet` or total variation can hold the result against the data. What this network
    makes up is not checked against anything.

    Examples
    --------
    >>> network = GloReNet(width=4, n_enc=1, n_dec=1)
    >>> network(torch.rand(2, 1, 30, 41)).shape
    torch.Size([2, 1, 30, 41])
    >>> network.encode(torch.rand(2, 1, 32, 40)).shape
    torch.Size([2, 16, 8, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 64,
        n_enc: int = 7,
        n_dec: int = 2,
        global_ratio: float = 0.75,
        *,
        global_skip: bool = False,
        downsamplings: int = 2,
    ) -> None:
        super().__init__()
        for name, number in {"in_channels": in_channels, "width": width}.items():
            check_range(number, name, 1, integer=True)
        for name, number in {"n_enc": n_enc, "n_dec": n_dec}.items():
            check_range(number, name, 0, integer=True)
        check_range(global_ratio, "global_ratio", 0, 1)
        check_range(downsamplings, "downsamplings", 1, integer=True)
        self.global_skip, self.coarser = global_skip, 2**downsamplings
        widths = [width * 2**i for i in range(downsamplings + 1)]
        steps = list(pairwise(widths))
        self.encoder = nn.Sequential(
            _layer(in_channels, width, 7),
            *(_layer(a, b, 3, stride=2) for a, b in steps[:-1]),
            _layer(*steps[-1], 3, stride=2, global_out=global_ratio),
            *(_Residual(widths[-1], global_ratio) for _ in range(n_enc)),
        )
        self.decoder = nn.Sequential(
            *(_Residual(widths[-1], global_ratio) for _ in range(n_dec)),
            *(layer for a, b in reversed(steps) for layer in _double(b, a)),
            nn.Conv2d(width, in_channels, 7, padding=3, padding_mode="reflect"),
        )

    @classmethod
    def pretrained(cls) -> "GloReNet":
        """Load the small network that comes with hadamard, in evaluation mode.

        It learned from slices of MR volumes and generated phantoms of 64 x 64 pixels, whose values (attenuation
        relative to water's, over 3) lie in [0, 1], and their back-projections from 8 to 32 views of a fan.

        Examples
        --------
        >>> with torch.no_grad():
        ...     GloReNet.pretrained()(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 1, 64, 64])
        """
        return load_checkpoint("gloredi", cls(width=16, n_enc=2, n_dec=1, global_skip=True, downsamplings=1)).eval()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Clean images (B, in_channels, H, W) of any size, with values of about [0, 1]."""
        check_images(x, "x", max(_LEAST, 2 * self.coarser))
        padded, crop = pad_to_multiple(x, self.coarser)
        return self.finish(crop(self.decode(self.encoder(padded))), x)

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d H W"]:
        """Represent images on the coarse grid, global channels last.

        With the two downsamplings of the default, (B, in_channels, H, W) becomes (B, 4 * width, H / 4, W / 4).

        Raises
        ------
        ValueError
            If height or width is no multiple of the grid's cell.
        """
        check_images(x, "x", max(_LEAST, 2 * self.coarser))
        if x.shape[-1] % self.coarser or x.shape[-2] % self.coarser:
            raise ValueError(
                f"x must have a height and width that are multiples of {self.coarser}, got {tuple(x.shape[-2:])}"
            )
        return self.encoder(x)

    def decode(self, g: Float[Tensor, "b d H W"]) -> Float[Tensor, "b c h w"]:
        """Turn a representation into images, of the size that was encoded, before :meth:`finish`."""
        return self.decoder(g)

    def finish(self, y: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Confine the decoder's images to [0, 1], or add them to the input where there is a global skip."""
        return x + y if self.global_skip else y.sigmoid()


class _Residual(nn.Module):
    """Two fast Fourier convolutions, whose result is added to what they are given."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_layer(channels, channels, 3, ratio, ratio) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _layer(
    before: int, after: int, kernel: int, global_in: float = 0.0, global_out: float = 0.0, stride: int = 1
) -> nn.Sequential:
    conv = FastFourierConv2d(before, after, kernel, stride, global_in=global_in, global_out=global_out)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


def _double(before: int, after: int) -> list[nn.Module]:
    """Twice the resolution."""
    up = nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1)
    return [up, nn.BatchNorm2d(after), nn.ReLU()]


def check_images(x: Tensor, name: str, least: int = _LEAST) -> None:
    """Images, finite, of a size and in a range that the network can do something with."""
    check_tensor(x, name, ndim=4, dtype="floating")
    if min(x.shape[-2:]) < least:
        raise ValueError(f"{name} must have at least {least} x {least} pixels, got {tuple(x.shape[-2:])}")
    if not torch.compiler.is_compiling():
        low, high = (float(v) for v in x.detach().aminmax())
        if low < -_FAR or high > 1 + _FAR:
            raise ValueError(
                f"{name} must be images windowed to about [0, 1], got values from {low:.4g} to {high:.4g}; "
                "hadamard.imaging.window turns Hounsfield units into them"
            )
