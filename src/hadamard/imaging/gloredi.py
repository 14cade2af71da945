"""GloReDi: clean images of sparse-view tomography by a network that sees the whole image, taught by one that sees more.

A student network is given the filtered back-projection of K views. While it learns, a teacher of the same architecture
is given that of 2 K views of the same slice, and the student's inner representation is drawn towards the teacher's.
When it is used there is neither teacher nor sinogram: an image goes in, an image comes out.

References
----------
Z. Li, C. Ma, J. Chen, J. Zhang, H. Shan. Learning to Distill Global Representation for Sparse-View CT. ICCV 2023,
arXiv:2308.08463.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from hadamard.images import pad_to_multiple
from hadamard.imaging.distillation import BandPassContrastive, DirectionalDistillation
from hadamard.imaging.fast_fourier_conv import FastFourierConv2d
from hadamard.training import load_checkpoint
from hadamard.validation import check_range, check_tensor

__all__ = ["GloReDistiller", "GloReNet"]

_LEAST = 8  # pixels along a side: two on the coarsest grid
_FAR = 16.0  # from [0, 1]: what no filtered back-projection of an image in [0, 1] reaches, and Hounsfield units do


class GloReNet(nn.Module):
    """An encoder and a decoder of fast Fourier convolutions, on a grid four times as coarse as the image.

    Parameters
    ----------
    in_channels
        Of the images, before and after.
    width
        Channels at full resolution; four times as many on the coarse grid.
    n_enc, n_dec
        Residual blocks of the encoder and of the decoder.
    global_ratio
        Share of the coarse grid's channels that are global, in [0, 1]: 0 makes it a network of 3x3 convolutions.
    global_skip
        Add the network's output to the image that it was given, instead of confining it to [0, 1] by a sigmoid.

    Raises
    ------
    TypeError
        If an image is complex.
    ValueError
        If a number is out of range; if an image is not finite, smaller than 8 x 8 pixels, or far outside [0, 1].

    Notes
    -----
    Images are windowed to [0, 1] first (:func:`~hadamard.imaging.window`), not given in Hounsfield units. In training,
    batches of one image are normalised by that image's own statistics; larger batches are better.

    Where it departs from the paper's program: there, the decoder takes the first three quarters of the channels for the
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
    ) -> None:
        super().__init__()
        for name, number in {"in_channels": in_channels, "width": width}.items():
            check_range(number, name, 1, integer=True)
        for name, number in {"n_enc": n_enc, "n_dec": n_dec}.items():
            check_range(number, name, 0, integer=True)
        check_range(global_ratio, "global_ratio", 0, 1)
        self.global_skip = global_skip
        self.encoder = nn.Sequential(
            _layer(in_channels, width, 7),
            _layer(width, 2 * width, 3, stride=2),
            _layer(2 * width, 4 * width, 3, stride=2, global_out=global_ratio),
            *(_Residual(4 * width, global_ratio) for _ in range(n_enc)),
        )
        self.decoder = nn.Sequential(
            *(_Residual(4 * width, global_ratio) for _ in range(n_dec)),
            *_double(4 * width, 2 * width),
            *_double(2 * width, width),
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
        return load_checkpoint("gloredi", cls(width=16, n_enc=2, n_dec=1)).eval()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Clean images (B, in_channels, H, W) of any size, with values of about [0, 1]."""
        _check(x, "x")
        padded, crop = pad_to_multiple(x, 4)
        return self.finish(crop(self.decode(self.encoder(padded))), x)

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d H W"]:
        """Represent images on the coarse grid: (B, in_channels, H, W) to (B, 4 * width, H / 4, W / 4), global last.

        Raises
        ------
        ValueError
            If height or width is no multiple of 4.
        """
        _check(x, "x")
        if x.shape[-1] % 4 or x.shape[-2] % 4:
            raise ValueError(f"x must have a height and width that are multiples of 4, got {tuple(x.shape[-2:])}")
        return self.encoder(x)

    def decode(self, g: Float[Tensor, "b d H W"]) -> Float[Tensor, "b c h w"]:
        """Turn a representation into images (B, in_channels, 4 H, 4 W), before :meth:`finish`."""
        return self.decoder(g)

    def finish(self, y: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Confine the decoder's images to [0, 1], or add them to the input where there is a global skip."""
        return x + y if self.global_skip else y.sigmoid()


class GloReDistiller(nn.Module):
    """Train a network beside a teacher that sees twice as many views.

    Each step has two halves. The teacher's encoder learns to reconstruct through a copy of the student's decoder; then
    the student learns to reconstruct and to represent a slice as the teacher does.

    Parameters
    ----------
    student
        The network to be trained, in place; the teacher begins as its copy.
    momentum
        Of the decoder's copy: the weight of its old values in each step; 0 copies, 1 never changes.
    direction, contrast
        Weights of :class:`~hadamard.imaging.DirectionalDistillation` and
        :class:`~hadamard.imaging.BandPassContrastive`; with 0 a term is not computed.
    share
        Of the representation's channels that are distilled, the first ones, in (0, 1].
    band_pass
        The contrastive loss; ``None``: with the paper's settings.

    Raises
    ------
    ValueError
        If a number is out of range, or the images of a step differ in shape.

    Notes
    -----
    One optimizer serves both halves, as the teacher's encoder and the student share no parameter: give it
    ``[p for p in distiller.parameters() if p.requires_grad]``. It must skip parameters without a gradient, as torch's
    do. Running means of normalisations in the decoder's copy follow with the same momentum. The loss on images is the
    smooth l1 norm. The paper trains with the teacher for 140 epochs and with the loss on images alone for the last ten:
    call :meth:`pixel_loss` for those.

    ``x_mid`` is meant to show more views than ``x_sparse``; nothing in the images tells, so this is not checked. The
    contrastive loss needs a bank of slices that are other ones than those of the batch: fewer than there are in all.

    Examples
    --------
    >>> distiller = GloReDistiller(GloReNet(width=4, n_enc=1, n_dec=1))
    >>> optimizer = torch.optim.Adam([p for p in distiller.parameters() if p.requires_grad], 5e-4)
    >>> few, more, truth = torch.rand(3, 2, 1, 16, 16)
    >>> sorted(distiller.training_step(optimizer, few, more, truth))
    ['contrast', 'direction', 'pixel', 'student', 'teacher']
    """

    def __init__(
        self,
        student: GloReNet,
        *,
        momentum: float = 0.0,
        direction: float = 0.1,
        contrast: float = 1e-6,
        share: float = 0.5,
        band_pass: BandPassContrastive | None = None,
    ) -> None:
        super().__init__()
        check_range(direction, "direction", 0)
        check_range(contrast, "contrast", 0)
        self.momentum = check_range(momentum, "momentum", 0, 1)
        self.share = check_range(share, "share", 0, 1, closed="right")
        self.weights = {"direction": direction, "contrast": contrast}
        self.student, self.teacher = student, copy.deepcopy(student)
        self.teacher.decoder.requires_grad_(False)
        self.pixel = nn.SmoothL1Loss()
        self.directions = DirectionalDistillation()
        self.band_pass = BandPassContrastive() if band_pass is None else band_pass

    def training_step(
        self,
        optimizer: Optimizer,
        x_sparse: Float[Tensor, "b c h w"],
        x_mid: Float[Tensor, "b c h w"],
        truth: Float[Tensor, "b c h w"],
    ) -> dict[str, float]:
        """Make one step of the teacher and one of the student.

        Parameters
        ----------
        optimizer
            Of all parameters that require a gradient.
        x_sparse, x_mid
            Back-projections of K and of 2 K views, shape (B, C, H, W) with H and W multiples of 4.
        truth
            What they should have been.

        Returns
        -------
        dict
            The losses ``teacher`` and ``student``, and the latter's terms ``pixel``, ``direction`` and ``contrast``,
            without their weights.
        """
        teacher = self.teacher_step(optimizer, x_mid, truth)
        optimizer.zero_grad(set_to_none=True)
        losses = self.student_losses(x_sparse, x_mid, truth)
        losses["student"].backward()
        optimizer.step()
        return {"teacher": teacher} | {name: float(loss.detach()) for name, loss in losses.items()}

    def teacher_step(
        self, optimizer: Optimizer, x_mid: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"]
    ) -> float:
        """Make the teacher's step and return its loss; see :meth:`training_step`."""
        self._follow()
        optimizer.zero_grad(set_to_none=True)
        loss = self.pixel_loss(x_mid, truth, self.teacher)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def student_losses(
        self, x_sparse: Float[Tensor, "b c h w"], x_mid: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the student's loss and its terms, none of which has a gradient in the teacher."""
        _check_pair(x_sparse, "x_sparse", truth)
        _check_pair(x_mid, "x_mid", truth)
        own = self.student.encode(x_sparse)
        with torch.no_grad():
            shown = self.teacher.encode(x_mid)
        losses = {"pixel": self.pixel(self.student.finish(self.student.decode(own), x_sparse), truth)}
        taught = max(int(self.share * own.shape[1]), 1)
        zero = own.new_zeros(())
        for name, loss in {"direction": self.directions, "contrast": self.band_pass}.items():
            losses[name] = loss(own[:, :taught], shown[:, :taught]) if self.weights[name] else zero
        total = losses["pixel"] + sum(weight * losses[name] for name, weight in self.weights.items())
        return losses | {"student": total}

    def pixel_loss(
        self, x: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"], network: GloReNet | None = None
    ) -> Float[Tensor, ""]:
        """Compute the loss on images alone, of the student or of another network."""
        _check_pair(x, "x", truth)
        return self.pixel((network or self.student)(x), truth)

    @torch.no_grad()
    def _follow(self) -> None:
        """The decoder's copy moves towards the student's."""
        own = self.student.decoder.state_dict()
        for name, value in self.teacher.decoder.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(own[name], 1 - self.momentum)
            else:
                value.copy_(own[name])


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


def _check(x: Tensor, name: str) -> None:
    """Images, finite, of a size and in a range that the network can do something with."""
    check_tensor(x, name, ndim=4, dtype="floating")
    if min(x.shape[-2:]) < _LEAST:
        raise ValueError(f"{name} must have at least {_LEAST} x {_LEAST} pixels, got {tuple(x.shape[-2:])}")
    if not torch.compiler.is_compiling():
        low, high = (float(v) for v in x.detach().aminmax())
        if low < -_FAR or high > 1 + _FAR:
            raise ValueError(
                f"{name} must be images windowed to about [0, 1], got values from {low:.4g} to {high:.4g}; "
                "hadamard.imaging.window turns Hounsfield units into them"
            )


def _check_pair(x: Tensor, name: str, truth: Tensor) -> None:
    _check(x, name)
    check_tensor(truth, "truth", ndim=4, dtype="floating")
    if x.shape != truth.shape:
        raise ValueError(f"{name} and truth must have the same shape, got {tuple(x.shape)} and {tuple(truth.shape)}")
