"""Fourier-PD and Fourier-PDUNet: complex MR images from undersampled k-space, by complex networks on both in turn.

The phase is learned as well as the magnitude, so that what rests on it, such as thermometry, survives.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Inexact, Shaped
from torch import Tensor, nn

from hadamard.imaging.complex_layers import ComplexBatchNorm2d, ComplexConv2d, CReLU, ModReLU
from hadamard.imaging.unet import UNet
from hadamard.imaging.unrolled import LearnedPrimalDual
from hadamard.operators import Fourier, LinearOperator
from hadamard.training import load_checkpoint
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["FourierPrimalDual"]

_BLUR = 0.06  # cycles per pixel


class FourierPrimalDual(LearnedPrimalDual):
    """Reconstruct complex images from undersampled Cartesian k-space, by two rounds with U-Nets or ten without.

    It is called as ``network(y, mask)`` with k-space (B, C, H, W), zero frequency at ``(H // 2, W // 2)`` and zeros
    where nothing was measured, and returns complex images (B, C, H, W). Coils are reconstructed one by one.

    Parameters
    ----------
    n_primary, n_dual
        Channels of image and k-space; ``None``: 4 and 5, or 5 and 5 for ``primal="conv"``.
    n_iter
        Rounds; ``None``: 2, or 10 for ``primal="conv"``.
    primal
        ``"unet"``: a complex U-Net corrects the image (Fourier-PDUNet); ``"conv"``: three convolutions do (Fourier-PD,
        which begins with zeros).
    activation
        ``"crelu"`` or ``"modrelu"``.
    complex_primal
        ``False``: real networks correct the magnitude alone, at the zero-filled image's phase. For comparison; never
        for thermometry.
    data_consistency
        Put what was measured back into the result's k-space. Not in the paper. Measured noise comes back with it, but
        so does the phase of everything coarse, on which the temperature rests.
    smooth_phase
        Take the phase of the zero-filled image, blurred, from the images that a round's network sees, and give it back
        to what it returns, so that the network need not learn each correction at every phase. Not in the paper; for
        images whose phase varies slowly, as coils and heat make it.
    widths
        Channels of the U-Net's levels.
    dual_width
        Channels of the convolutions on k-space (and on images, for ``primal="conv"``).

    Raises
    ------
    ValueError
        If an option is not known or a number is not positive.

    Notes
    -----
    The paper's code scales k-space by its largest modulus in the batch; here each sample is scaled by its own, and
    images by that of the zero-filled one, so that results go with the data's unit and samples do not see each other.
    Convolutions on k-space go on around both axes, as k-space is periodic. The scales of the rounds' corrections are
    real, as the convolutions before them are complex already. When not to use it: far from the acquisition that it was
    trained on (sampling, resolution, noise), where compressed sensing is safe; and without training, where it returns
    the zero-filled image.

    References
    ----------
    R. Khatun, S. Chatterjee, C. Bert, M. Wadepohl, O. J. Ott, S. Semrau, R. Fietkau, A. Nürnberger, U. S. Gaipl,
    B. Frey. Complex-valued neural networks to speed-up MR thermometry during hyperthermia using Fourier PD and PDUNet.
    Scientific Reports 15, 2025. arXiv:2310.01073.

    Examples
    --------
    >>> from hadamard.operators import Fourier
    >>> mask = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    >>> y = Fourier((16, 16))(torch.ones(2, 1, 16, 16)) * mask
    >>> FourierPrimalDual(widths=(4, 8))(y, mask).shape
    torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        n_primary: int | None = None,
        n_dual: int = 5,
        n_iter: int | None = None,
        *,
        primal: str = "unet",
        activation: str = "crelu",
        complex_primal: bool = True,
        data_consistency: bool = False,
        smooth_phase: bool = False,
        widths: Sequence[int] = (32, 64, 128, 256),
        dual_width: int = 32,
    ) -> None:
        conv = check_option(primal, "primal", ("unet", "conv")) == "conv"
        check_option(activation, "activation", ("crelu", "modrelu"))
        n_primary, n_iter = n_primary or (5 if conv else 4), n_iter or (10 if conv else 2)
        for name, number in {"n_primary": n_primary, "n_dual": n_dual, "n_iter": n_iter}.items():
            check_range(number, name, 1, integer=True)
        check_range(dual_width, "dual_width", 1, integer=True)
        active = CReLU if activation == "crelu" else ModReLU

        def primal_block() -> nn.Module:
            before = n_primary + 1
            if conv and complex_primal:
                return _convolutions(before, dual_width, n_primary, active, padding_mode="replicate")
            if conv:
                layer = partial(nn.Conv2d, padding=1, padding_mode="replicate")
                return nn.Sequential(layer(before, dual_width, 3), nn.ReLU(), layer(dual_width, dual_width, 3),
                                     nn.ReLU(), layer(dual_width, n_primary, 3))  # fmt: skip
            if not complex_primal:
                return UNet(before, n_primary, widths)
            return UNet(before, n_primary, widths, conv=ComplexConv2d, norm=ComplexBatchNorm2d, activation=active)

        super().__init__(
            [_convolutions(n_dual + 2, dual_width, n_dual, active, padding_mode="circular") for _ in range(n_iter)],
            [primal_block() for _ in range(n_iter)],
            n_dual,
            n_primary,
            normalise=_largest,
            init="zeros" if conv and complex_primal else "inverse",
        )
        if smooth_phase and not complex_primal:
            raise ValueError("smooth_phase needs complex_primal, as magnitudes have no phase")
        self.complex_primal, self.data_consistency, self.smooth_phase = complex_primal, data_consistency, smooth_phase

    @classmethod
    def pretrained(cls) -> "FourierPrimalDual":
        """Load the small Fourier-PDUNet that comes with hadamard, in evaluation mode.

        It has ``data_consistency`` and ``smooth_phase``. It learned from slices of a person's and of monkeys' heads of
        64 x 64 pixels with generated phase, heat and noise (a twentieth to a sixtieth of the mean magnitude of tissue),
        of which a fourth to a sixteenth of k-space was measured: at random and denser in the middle, or in spokes. What
        its temperature is worth on other bodies is measured in its claim.

        Examples
        --------
        >>> y = torch.randn(1, 1, 64, 64, dtype=torch.complex64)
        >>> with torch.no_grad():
        ...     FourierPrimalDual.pretrained()(y).shape
        torch.Size([1, 1, 64, 64])
        """
        network = cls(widths=(8, 16, 32), dual_width=8, data_consistency=True, smooth_phase=True)
        return load_checkpoint("fourier_pd", network).eval()

    def forward(
        self, y: Inexact[Tensor, "b c h w"], mask: Shaped[Tensor, "..."] | nn.Module | None = None
    ) -> Inexact[Tensor, "b c h w"]:
        """Reconstruct images from k-space.

        Parameters
        ----------
        y
            k-space, complex, shape (B, C, H, W), orthonormal transform of the images.
        mask
            Ones where k-space was measured and zeros elsewhere, broadcasting against ``y``: what lies outside is set to
            0. ``None``: ``y`` is 0 there. Or a physics with such an attribute ``mask``, as deepinv calls its networks;
            then ``y`` may be real of shape (B, 2, H, W), and so is the result.

        Returns
        -------
        Tensor
            Complex images, shape (B, C, H, W).

        Raises
        ------
        TypeError
            If ``y`` is real.
        ValueError
            If ``y`` is not finite, or ``mask`` has other values than 0 and 1, no 1, or does not broadcast against y.
        """
        if mask is not None and not isinstance(mask, Tensor):
            return self._with_physics(y, mask)
        check_tensor(y, "y", ndim=4, dtype="complex")
        if mask is not None:
            known = _checked(mask, y)
            y = y * known
        elif self.data_consistency:
            known = (y != 0).to(y.real.dtype)
        batch, coils, height, width = y.shape
        single = y.reshape(batch * coils, 1, height, width)
        fourier = Fourier((height, width))
        start = fourier.A_adjoint(single)
        scale = _largest(start)[1]
        physics: LinearOperator = fourier if self.complex_primal else _Magnitude(fourier, start)
        if self.smooth_phase:
            physics = _Demodulated((height, width), single)
        image = super().forward(single / scale, physics) * scale
        if not self.complex_primal:
            image = image * torch.sgn(start)
        image = image.reshape(y.shape)
        if self.data_consistency:
            image = image + fourier.A_adjoint((y - fourier.A(image)) * known)
        return image

    def correct_image(self, block: nn.Module, x: Tensor, physics: LinearOperator) -> Tensor:
        """Apply a round's network to images, without their smooth phase if it is to be taken from them."""
        if isinstance(physics, _Demodulated):
            return block(x * physics.phase.conj()) * physics.phase
        return block(x)

    def _with_physics(self, y: Tensor, physics: nn.Module) -> Tensor:
        """Two real channels in and out, with the mask of a physics such as deepinv's MRI."""
        mask = getattr(physics, "mask", None)
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a tensor or a physics that has one, got {type(physics).__name__}")
        if y.is_complex():
            return self(y, mask)
        check_tensor(y, "y", ndim=4, shape=(2, None, None))
        image = self(torch.complex(y[:, :1], y[:, 1:]), mask[:, :1] if mask.ndim == 4 else mask)
        return torch.cat([image.real, image.imag], 1)


class _Demodulated(Fourier):
    """The transform, which knows each sample's phase at a resolution of some ten pixels."""

    def __init__(self, shape: tuple[int, int], y: Tensor) -> None:
        super().__init__(shape)
        rows, columns = ((torch.arange(n, device=y.device) - n // 2) / n for n in shape)
        window = torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * _BLUR**2)).to(y.real.dtype)
        self.phase = torch.sgn(self.A_adjoint(y * window))


class _Magnitude(LinearOperator):
    """The transform of a real image times a known phase; samples differ in theirs."""

    def __init__(self, fourier: Fourier, start: Tensor) -> None:
        super().__init__(fourier.in_shape, fourier.out_shape)
        self.fourier, self.phase = fourier, torch.sgn(start)

    def A(self, x: Tensor) -> Tensor:
        return self.fourier.A(x * self.phase)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return (self.fourier.A_adjoint(y) * self.phase.conj()).real

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y)


def _convolutions(
    before: int, width: int, after: int, activation: type[nn.Module], padding_mode: Literal["circular", "replicate"]
) -> nn.Sequential:
    """Three complex 3x3 convolutions with activations between them."""
    layer = partial(ComplexConv2d, kernel_size=3, padding=1, padding_mode=padding_mode)
    active = (lambda: activation(width)) if activation is ModReLU else activation
    return nn.Sequential(layer(before, width), active(), layer(width, width), active(), layer(width, after))


def _largest(y: Tensor) -> tuple[Tensor, Tensor]:
    """No shift, and the largest modulus of each sample, or 1 where that is 0."""
    scale = y.abs().amax((-2, -1), keepdim=True)
    return torch.zeros_like(scale), torch.where(scale > 0, scale, 1)


def _checked(mask: Tensor, y: Tensor) -> Tensor:
    try:
        fits = torch.broadcast_shapes(mask.shape, y.shape) == y.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"mask must broadcast against y of shape {tuple(y.shape)}, got {tuple(mask.shape)}")
    if not torch.compiler.is_compiling():
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask must hold zeros and ones only")
        if not bool(mask.any()):
            raise ValueError("mask must have ones, got a mask with no sample")
    return mask.to(y.real.dtype)
