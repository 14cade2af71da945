"""Pictures made smaller by an invertible network, so that they can be made large again, with two latent variables.

The network maps a picture and a latent of making it smaller, ``(x, z_down)``, one to one to a small picture and a
latent of making it larger, ``(y, z_up)``. What is kept is y, at 8 bits; the way back begins with 0 in place of z_up.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.imaging.couplings import Couplings
from hadamard.imaging.pictures import check_unit, enlarge, halve, to_eight_bits
from hadamard.imaging.rescaling_loss import RescalingCycle
from hadamard.training import load_checkpoint
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["DualLatentRescaler", "PictureAndLatent"]


@dataclass(frozen=True)
class PictureAndLatent:
    """One side of the bijection.

    Attributes
    ----------
    picture
        The small or the large picture.
    latent
        What belongs to it: ``z_up`` to the small one, ``z_down`` to the large one.
    """

    picture: Float[Tensor, "b c h w"]
    latent: Float[Tensor, "b d p q"]


class DualLatentRescaler(nn.Module):
    """Make pictures 2, 4 or 8 times smaller such that :meth:`upscale` restores much more than interpolation does.

    Parameters
    ----------
    scale
        2, 4 or 8.
    n_blocks
        Couplings for each halving.
    growth
        Channels that the convolutions in them add.
    n_latent_down
        Channels of z_down, at half the picture's resolution; 0 is the invertible rescaling network (IRN) itself.
    channels
        Of the pictures.
    clamp
        Bound on the logarithm of each coupling's scale.
    generator
        Draws the initial weights, with which the small picture consists of the means of squares of pixels.

    Notes
    -----
    Each halving is a Haar transform, whose low band (and, after the first, z_down) forms one branch of affine couplings
    and whose other bands form the other. The bands are scaled and ordered as in IRN: the low one is a mean, and HL
    comes before LH. The paper gives no code; that z_down joins the low branch after the first Haar transform is this
    library's reading of it. Both latents are 0 where the network is used, and where it is trained unless told
    otherwise; IRN draws z_up from a normal distribution.

    The small picture carries its details in its lowest bits: store it without loss (PNG, not JPEG), and do not filter
    it. When not to use it: if the original can be kept; if bytes count rather than pixels, where JPEG is better; and
    for a small picture that another network made, or made at another scale, which nothing can tell.

    References
    ----------
    M. Zhang, Z. Pan, X. Zhou, C.-C. J. Kuo. Enhancing Image Rescaling using Dual Latent Variables in Invertible Neural
    Network. ICPR 2022, arXiv:2207.11844. The network without z_down: M. Xiao et al. Invertible Image Rescaling. ECCV
    2020, arXiv:2005.05650.

    Examples
    --------
    >>> network = DualLatentRescaler(2, n_blocks=2, growth=8)
    >>> x = torch.rand(1, 3, 32, 48)
    >>> small = network.downscale(x)
    >>> small.shape, network.upscale(small).shape
    (torch.Size([1, 3, 16, 24]), torch.Size([1, 3, 32, 48]))
    """

    def __init__(
        self,
        scale: int = 2,
        n_blocks: int = 8,
        growth: int = 32,
        n_latent_down: int = 2,
        *,
        channels: int = 3,
        clamp: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_option(scale, "scale", (2, 4, 8))
        check_range(n_latent_down, "n_latent_down", 0, integer=True)
        check_range(channels, "channels", 1, integer=True)
        self.scale, self.channels, self.n_latent_down = scale, channels, n_latent_down
        low, width = channels + n_latent_down, 4 * channels + n_latent_down
        levels = []
        for _ in range(scale.bit_length() - 1):
            levels.append(Couplings(n_blocks, low, width - low, growth, clamp, generator=generator))
            width *= 4
        self.levels = nn.ModuleList(levels)

    @classmethod
    def pretrained(cls, scale: int = 2) -> "DualLatentRescaler":
        """Load the small network for colour photographs that comes with hadamard, in evaluation mode.

        Parameters
        ----------
        scale
            2 or 4.

        Examples
        --------
        >>> network = DualLatentRescaler.pretrained(4)
        >>> network.downscale(torch.full((1, 3, 16, 16), 0.5)).shape
        torch.Size([1, 3, 4, 4])
        """
        growth = {2: 16, 4: 8}[check_option(scale, "scale", (2, 4))]
        return load_checkpoint(f"dual_latent_rescaling_x{scale}", cls(scale, 2, growth)).eval()

    def downscale(
        self, x: Float[Tensor, "b c H W"], z_down: Float[Tensor, "b d p q"] | None = None, *, quantize: bool = True
    ) -> Float[Tensor, "b c h w"]:
        """Make pictures smaller.

        Parameters
        ----------
        x
            Of shape (B, channels, H, W), values in [0, 1], H and W multiples of ``scale``
            (:func:`hadamard.images.pad_to_multiple` makes them so).
        z_down
            Of shape (B, n_latent_down, H / 2, W / 2); ``None``: 0.
        quantize
            Round to multiples of 1 / 255 in [0, 1], as 8 bits store them.

        Raises
        ------
        TypeError
            If ``x`` is not a floating tensor (divide bytes by 255).
        ValueError
            If it has another shape, or values outside [0, 1].
        """
        small = self.encode(check_unit(x, "x"), z_down).picture
        return to_eight_bits(small) if quantize else small

    def upscale(
        self,
        small: Float[Tensor, "b c h w"],
        z_up: Float[Tensor, "b u h w"] | None = None,
        *,
        tau: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b c H W"]:
        """Make small pictures large again.

        Parameters
        ----------
        small
            Of shape (B, channels, h, w), values in [0, 1], made by :meth:`downscale` of the same network.
        z_up
            Of shape (B, 4^levels channels - channels + ..., h, w), as :meth:`encode` gives it; ``None``: 0, or drawn
            with standard deviation ``tau``.
        tau
            At 0 the result is the best guess; above it is one of many.
        generator
            Draws z_up.

        Returns
        -------
        Tensor
            Of shape (B, channels, h scale, w scale), values in [0, 1].

        Raises
        ------
        TypeError
            If ``small`` is not a floating tensor.
        ValueError
            If it, or ``z_up``, has another shape, or ``small`` values outside [0, 1].
        """
        check_unit(small, "small")
        if check_range(tau, "tau", 0) > 0 and z_up is None:
            z_up = tau * torch.randn(
                self._shape_up(small), generator=generator, dtype=small.dtype, device=small.device
            )  # fmt: skip
        return self.decode(small, z_up).picture.clamp(0, 1)

    def encode(self, x: Float[Tensor, "b c H W"], z_down: Float[Tensor, "b d p q"] | None = None) -> PictureAndLatent:
        """Map ``(x, z_down)`` to ``(y, z_up)``: the bijection, without rounding."""
        y = self._first(x, z_down)
        for i, couplings in enumerate(self._couplings()):
            y = couplings(y if i == 0 else halve(y))
        return PictureAndLatent(y[:, : self.channels], y[:, self.channels :])

    def decode(self, small: Float[Tensor, "b c h w"], z_up: Float[Tensor, "b u h w"] | None = None) -> PictureAndLatent:
        """Map ``(y, z_up)`` to ``(x, z_down)``: the inverse of :meth:`encode`, exactly but for rounding."""
        check_tensor(small, "small", ndim=4, shape=(self.channels, None, None), dtype="floating")
        shape = self._shape_up(small)
        z_up = small.new_zeros(shape) if z_up is None else check_tensor(z_up, "z_up", ndim=4, shape=shape)
        y = torch.cat([small, z_up], 1)
        for i, couplings in reversed(list(enumerate(self._couplings()))):
            y = couplings.inverse(y)
            y = enlarge(y) if i else y
        c, d = self.channels, self.n_latent_down
        return PictureAndLatent(enlarge(torch.cat([y[:, :c], y[:, c + d :]], 1)), y[:, c : c + d])

    def forward(
        self,
        x: Float[Tensor, "b c H W"],
        *,
        tau: float = 0.0,
        sigma_down: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> RescalingCycle:
        """Go down and up again, through 8 bits, with gradients (straight-through where it rounds).

        Parameters
        ----------
        x
            As for :meth:`downscale`.
        tau, sigma_down
            Standard deviations of z_up on the way up and z_down on the way down.
        generator
            Draws them.
        """
        check_unit(x, "x")

        def draw(shape: Any, sigma: float, name: str) -> Tensor:
            drawn = check_range(sigma, name, 0) > 0
            return sigma * torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device) if drawn else (
                x.new_zeros(shape)
            )  # fmt: skip

        z_down = draw(self._shape_down(x), sigma_down, "sigma_down")
        down = self.encode(x, z_down)
        up = self.decode(to_eight_bits(down.picture), draw(down.latent.shape, tau, "tau"))
        return RescalingCycle(down.picture, up.picture, down.latent, up.latent - z_down)

    def log_jacobian(
        self, x: Float[Tensor, "b c H W"], z_down: Float[Tensor, "b d p q"] | None = None
    ) -> Float[Tensor, " b"]:
        """The logarithm of the absolute determinant of the Jacobian of :meth:`encode`, for each picture."""
        y = self._first(x, z_down)
        halved = self.channels * x[0, 0].numel()  # each entry that a Haar transform yields is halved
        total = x.new_zeros(len(x))
        for i, couplings in enumerate(self._couplings()):
            y = y if i == 0 else halve(y)
            total = total - halved * torch.log(x.new_tensor(2.0))
            y, part = couplings.with_log_jacobian(y)
            halved, total = y[0].numel(), total + part
        return total

    def _first(self, x: Tensor, z_down: Tensor | None) -> Tensor:
        """The first Haar transform, with z_down behind its low band."""
        check_tensor(x, "x", ndim=4, shape=(self.channels, None, None), dtype="floating")
        if x.shape[-2] % self.scale or x.shape[-1] % self.scale:
            raise ValueError(
                f"x must have a height and width that are multiples of scale={self.scale}, got {x.shape[-2]} by "
                f"{x.shape[-1]}; see hadamard.images.pad_to_multiple"
            )
        shape = self._shape_down(x)
        bands = halve(x)
        if not self.n_latent_down:
            return bands
        z_down = x.new_zeros(shape) if z_down is None else check_tensor(z_down, "z_down", ndim=4, shape=shape)
        return torch.cat([bands[:, : self.channels], z_down, bands[:, self.channels :]], 1)

    @property
    def reach(self) -> int:
        """How many pixels of the small picture around a pixel it, and what is restored from it, may depend on."""
        coupling = 10  # ten 3x3 convolutions one after the other, at the resolution of their level
        return sum(-(-coupling * len(level) // (self.scale >> i + 1)) for i, level in enumerate(self._couplings()))

    def _couplings(self) -> list[Couplings]:
        return [cast(Couplings, level) for level in self.levels]

    def _shape_down(self, x: Tensor) -> tuple[int, ...]:
        return (len(x), self.n_latent_down, x.shape[-2] // 2, x.shape[-1] // 2)

    def _shape_up(self, small: Tensor) -> tuple[int, ...]:
        entries = self.channels * self.scale**2 + self.n_latent_down * (self.scale // 2) ** 2
        return (len(small), entries - self.channels, *small.shape[-2:])
