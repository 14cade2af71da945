"""Primal-Dual UNet: sparse-view tomography and radial MRI by a network that works on sinogram and image in turn.

Tomography gives a sinogram; radial MRI gives one too, by a Fourier transform along each spoke (Fourier slice theorem).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.imaging.unet import UNet
from hadamard.imaging.unrolled import LearnedPrimalDual
from hadamard.operators import Fourier, LinearOperator, Radon
from hadamard.training import load_checkpoint
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["PrimalDualUNet", "RadialMRI", "upsample_sinogram"]

_SAME = 1e-9  # angles that differ by less are one


class PrimalDualUNet(LearnedPrimalDual):
    """Reconstruct images from sparse sinograms, by two rounds with a U-Net or by ten with small convolutions.

    It is called as ``network(y, physics)`` with sinograms (B, 1, P, A), a :class:`~hadamard.operators.Radon` (or
    :class:`RadialMRI`'s ``radon``), and returns images (B, 1, N, N). Angles and sizes may be others in every call.

    Parameters
    ----------
    n_primary, n_dual
        Channels of image and sinogram; ``None``: 4 and 5, or 5 and 5 for ``primal="conv"``.
    n_iter
        Rounds; ``None``: 2, or 10 for ``primal="conv"``.
    primal
        ``"unet"``: a U-Net corrects the image (Primal-Dual UNet); ``"conv"``: three convolutions do (the Primal-Dual
        network, which begins with zeros).
    widths
        Channels of the U-Net's levels.
    dual_width
        Channels of the convolutions on sinograms (and on images, for ``primal="conv"``).
    angle_padding
        How sinograms go on at the first and last angle: ``"circular"``, right for a whole turn; ``"flip"``: with the
        detector reversed, right for a parallel beam over half a turn; ``"replicate"``; or ``"auto"``: whichever of the
        first two suits the physics.
    filter
        Of the filtered back-projection.

    Notes
    -----
    Images should be of the order of 1. The paper's networks pad circularly also where half a turn was measured. When
    not to use it: far from the images that it was trained on, where filtered back-projection and total variation are
    safe; and without training, where it returns the filtered back-projection.

    References
    ----------
    P. Ernst, S. Chatterjee, G. Rose, O. Speck, A. Nürnberger. Sinogram upsampling using Primal-Dual UNet for
    undersampled CT and radial MRI reconstruction. Neural Networks 166, 2023. arXiv:2112.13443.

    Examples
    --------
    >>> scan = Radon(16, torch.arange(6) * (torch.pi / 6))
    >>> y = scan(torch.rand(2, 1, 16, 16))
    >>> network = PrimalDualUNet(widths=(4, 8))
    >>> network(y, scan).shape
    torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        n_primary: int | None = None,
        n_dual: int = 5,
        n_iter: int | None = None,
        *,
        primal: str = "unet",
        widths: Sequence[int] = (32, 64, 128, 256),
        dual_width: int = 32,
        angle_padding: str = "auto",
        filter: str = "hann",
    ) -> None:
        conv = check_option(primal, "primal", ("unet", "conv")) == "conv"
        check_option(angle_padding, "angle_padding", ("auto", "circular", "flip", "replicate"))
        n_primary, n_iter = n_primary or (5 if conv else 4), n_iter or (10 if conv else 2)
        for name, number in {"n_primary": n_primary, "n_dual": n_dual, "n_iter": n_iter}.items():
            check_range(number, name, 1, integer=True)
        check_range(dual_width, "dual_width", 1, integer=True)

        def primal_block() -> nn.Module:
            if conv:
                return _Convolutions(n_primary + 1, dual_width, n_primary)
            return UNet(n_primary + 1, n_primary, widths)

        super().__init__(
            [_Convolutions(n_dual + 2, dual_width, n_dual) for _ in range(n_iter)],
            [primal_block() for _ in range(n_iter)],
            n_dual,
            n_primary,
            inverse=partial(_back_project, filter=filter),
            init="zeros" if conv else "inverse",
        )
        self.angle_padding = angle_padding

    @classmethod
    def pretrained(cls, data: str = "tomography") -> "PrimalDualUNet":
        """Load a small network that comes with hadamard, in evaluation mode.

        Parameters
        ----------
        data
            ``"tomography"``: it learned from generated phantoms and photographs of 64 x 64 pixels with values of the
            order of 1, seen at 6 to 24 angles by a parallel beam over half a turn or by a fan over a whole one.
            ``"radial"``: it went on to learn from MR images of heads with values in [0, 1], from 6 to 24 noisy spokes
            whose sinograms :func:`upsample_sinogram` brings to 96 angles, and wants to be given such.

        Examples
        --------
        >>> scan = Radon(64, torch.arange(12) * (torch.pi / 12))
        >>> with torch.no_grad():
        ...     PrimalDualUNet.pretrained()(scan(torch.ones(1, 1, 64, 64)), scan).shape
        torch.Size([1, 1, 64, 64])
        """
        name = {"tomography": "primal_dual_unet", "radial": "primal_dual_unet_radial"}
        module = cls(widths=(8, 16, 32, 48), dual_width=16)
        return load_checkpoint(name[check_option(data, "data", name)], module).eval()

    def correct_data(self, block: nn.Module, x: Tensor, physics: LinearOperator) -> Tensor:
        """Apply a round's network to sinograms that go on around."""
        angles = self.angle_padding
        if angles == "auto":
            half = (
                isinstance(physics, Radon)
                and physics.source is None
                and float(physics.angles.max() - physics.angles.min()) <= math.pi
            )
            angles = "flip" if half else "circular"
        return block(x, partial(_pad_sinogram, angles=angles))


class RadialMRI(LinearOperator):
    """Radial MRI of a real image as tomography: the Fourier transform of each projection is a spoke of k-space.

    Parameters
    ----------
    size
        Height and width of the image.
    angles
        Of the spokes, radians, shape (A,).
    detectors
        Samples of a spoke ``P``; ``None``: as many as a pixel's resolution takes.
    dtype
        ``torch.float32`` or ``torch.float64``.

    Attributes
    ----------
    radon
        The transform whose sinograms :meth:`sinogram` gives: the physics for :class:`PrimalDualUNet`.

    Notes
    -----
    Spokes have shape (..., P, A), complex, the middle of k-space at ``P // 2``; sample ``j`` of a spoke at angle
    ``theta`` lies at frequency ``(j - P // 2) / P`` cycles per pixel in the direction (cos theta, sin theta) (to the
    right and upwards). Their scale is that of the sum of the pixels over ``sqrt(P)``.

    Examples
    --------
    >>> op = RadialMRI(8, torch.arange(3) * (torch.pi / 3))
    >>> spokes = op(torch.ones(8, 8))
    >>> spokes.shape, spokes[op.out_shape[0] // 2].abs().mul(op.out_shape[0] ** 0.5).round()
    (torch.Size([12, 3]), tensor([64., 64., 64.]))
    """

    def __init__(
        self,
        size: int,
        angles: Float[Tensor, " A"],
        *,
        detectors: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        radon = Radon(size, angles, detectors=detectors, dtype=dtype)
        super().__init__(radon.in_shape, radon.out_shape)
        self.radon, self.fourier = radon, Fourier(radon.out_shape, (-2,))
        # the middle of the detector lies between two bins where their number is even, and the grid's at P // 2
        P = radon.out_shape[0]
        shift = (P // 2 - (P - 1) / 2) * (torch.arange(P, dtype=torch.float64) - P // 2) / P
        self.register_buffer("phase", torch.exp(2j * math.pi * shift)[:, None].to(_complex(dtype)))

    phase: Tensor

    def A(self, x: Inexact[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch P A"]:
        """Transform images to spokes."""
        return self.fourier.A(self.radon.A(x)) * self.phase.conj()

    def A_adjoint(self, y: Inexact[Tensor, "*batch P A"]) -> Inexact[Tensor, "*batch n n"]:
        """Apply the adjoint of :meth:`A`."""
        return self.radon.A_adjoint(self.fourier.A_adjoint(self.check_out(y) * self.phase))

    def A_dagger(self, y: Inexact[Tensor, "*batch P A"], filter: str = "ramp") -> Inexact[Tensor, "*batch n n"]:
        """Reconstruct by filtered back-projection, whose ramp compensates for the density of the samples."""
        return self.radon.A_dagger(self.fourier.A_adjoint(self.check_out(y) * self.phase), filter)

    def sinogram(self, y: Complex[Tensor, "*batch P A"]) -> Float[Tensor, "*batch P A"]:
        """Turn spokes into a sinogram: the real part of their inverse Fourier transforms."""
        return self.fourier.A_adjoint(self.check_out(y) * self.phase).real


def upsample_sinogram(y: Float[Tensor, "*batch P A"], physics: Radon, full: Radon) -> Float[Tensor, "*batch P F"]:
    """Interpolate a sinogram linearly to more angles.

    Parameters
    ----------
    y
        Sinograms, shape (..., P, A).
    physics
        At whose angles they were measured.
    full
        At whose angles they are wanted; otherwise the same scan.

    Returns
    -------
    Tensor
        Sinograms of ``full``; where an angle was measured, as it was measured.

    Raises
    ------
    ValueError
        If ``y`` does not fit ``physics``, or the two scans differ in more than their angles.

    Notes
    -----
    Between the last and the first angle it goes on around: after half a turn a parallel beam sees the same from the
    other side, with the detector reversed.

    Examples
    --------
    >>> few, many = (Radon(8, torch.arange(n) * (torch.pi / n)) for n in (4, 8))
    >>> y = few(torch.ones(8, 8))
    >>> bool(torch.equal(upsample_sinogram(y, few, many)[:, ::2], y))
    True
    """
    check_tensor(y, "y", shape=physics.out_shape)
    same = ("in_shape", "source", "step", "pixel_size")
    if any(getattr(physics, name) != getattr(full, name) for name in same) or physics.out_shape[0] != full.out_shape[0]:
        raise ValueError("full must be the same scan as physics but for its angles")
    half = physics.source is None
    turn = math.pi if half else 2 * math.pi
    angles, order = (physics.angles % (2 * math.pi)).sort()
    columns = y[..., order.to(y.device)]
    if half:  # the other half of the turn, seen from behind
        angles, again = torch.cat([angles, (angles + math.pi) % (2 * math.pi)]).sort()
        columns = torch.cat([columns, columns.flip(-2)], -1)[..., again.to(y.device)]
    after = torch.searchsorted(angles, full.angles % (2 * math.pi) + _SAME) % len(angles)
    before = (after - 1) % len(angles)
    way = (full.angles - angles[before] + _SAME) % (2 * math.pi)
    gap = (angles[after] - angles[before]) % (2 * math.pi)
    weight = torch.where(way < 2 * _SAME, 0, way / torch.where(gap > _SAME, gap, turn)).to(y)
    before, after = before.to(y.device), after.to(y.device)
    return torch.lerp(columns[..., before], columns[..., after], weight)


class _Convolutions(nn.Sequential):
    """Three 3x3 convolutions with PReLU between them, on images or on what is padded in another way."""

    def __init__(self, before: int, width: int, after: int) -> None:
        convolutions = [nn.Conv2d(a, b, 3) for a, b in ((before, width), (width, width), (width, after))]
        for convolution in convolutions:
            nn.init.zeros_(cast(Tensor, convolution.bias))
        first, second, third = convolutions
        super().__init__(first, nn.PReLU(width), second, nn.PReLU(width), third)

    def forward(self, x: Tensor, pad: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                x = F.pad(x, (1, 1, 1, 1), mode="replicate") if pad is None else pad(x)
            x = layer(x)
        return x


def _pad_sinogram(x: Tensor, angles: str) -> Tensor:
    """One more bin on either side, as the last one reads, and one more angle."""
    first, last = (x[..., :1], x[..., -1:]) if angles == "replicate" else (x[..., -1:], x[..., :1])
    if angles == "flip":
        first, last = first.flip(-2), last.flip(-2)
    return F.pad(torch.cat([first, x, last], -1), (0, 0, 1, 1), mode="replicate")


def _back_project(physics: LinearOperator, y: Tensor, filter: str) -> Tensor:
    """Filtered back-projection with this filter, or the inverse that the physics has."""
    return physics.A_dagger(y, filter) if isinstance(physics, Radon) else physics.A_dagger(y)


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64
