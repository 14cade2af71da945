"""A picture hidden in another one by an invertible network, with the dual latent variables of the rescaling network."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.imaging.couplings import Couplings
from hadamard.imaging.pictures import check_unit, to_eight_bits
from hadamard.spectral import haar2d, ihaar2d
from hadamard.validation import check_range, check_tensor

__all__ = ["DualLatentHider", "Hidden", "Revealed"]


@dataclass(frozen=True)
class Hidden:
    """What the way in gives: the picture that carries the secret, and the latent that is thrown away."""

    stego: Float[Tensor, "b c h w"]
    latent: Float[Tensor, "b u p q"]


@dataclass(frozen=True)
class Revealed:
    """What the way back gives: the secret, the cover and z_down."""

    secret: Float[Tensor, "b c h w"]
    cover: Float[Tensor, "b c h w"]
    latent: Float[Tensor, "b d p q"]


class DualLatentHider(nn.Module):
    """Hide a picture in a cover of its size: :meth:`hide` gives a picture that looks like the cover.

    Parameters
    ----------
    n_blocks
        Couplings; the paper that introduced the network (HiNet) has 16.
    growth
        Channels that the convolutions in them add.
    n_latent_down
        Channels of the second latent, which joins the cover's branch; 0 is HiNet's form.
    channels
        Of the pictures.
    clamp
        Bound on the logarithm of each coupling's scale.
    generator
        Draws the initial weights, with which the secret is dropped and the cover returned.

    Notes
    -----
    Cover and secret enter as their orthonormal Haar bands. The way back begins with 0 in place of what was thrown away.
    When not to use it: against whoever looks for hidden pictures, of whose tests this library makes none; and where the
    carrier is compressed with loss, which destroys the secret.

    References
    ----------
    M. Zhang et al. Enhancing Image Rescaling using Dual Latent Variables in Invertible Neural Network. ICPR 2022,
    arXiv:2207.11844. The network without the second latent: J. Jing et al. HiNet: Deep Image Hiding by Invertible
    Network. ICCV 2021.

    Examples
    --------
    >>> network = DualLatentHider(n_blocks=2, growth=8)
    >>> cover, secret = torch.rand(2, 1, 3, 16, 16)
    >>> network.reveal(network.hide(cover, secret)).shape
    torch.Size([1, 3, 16, 16])
    """

    def __init__(
        self,
        n_blocks: int = 16,
        growth: int = 32,
        n_latent_down: int = 2,
        *,
        channels: int = 3,
        clamp: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_range(n_latent_down, "n_latent_down", 0, integer=True)
        check_range(channels, "channels", 1, integer=True)
        self.channels, self.n_latent_down = channels, n_latent_down
        self.couplings = Couplings(
            n_blocks, 4 * channels + n_latent_down, 4 * channels, growth, clamp, generator=generator
        )  # fmt: skip

    def hide(
        self, cover: Float[Tensor, "b c h w"], secret: Float[Tensor, "b c h w"], *, quantize: bool = True
    ) -> Float[Tensor, "b c h w"]:
        """Hide a picture.

        Parameters
        ----------
        cover, secret
            Of one shape (B, channels, H, W), values in [0, 1], H and W even.
        quantize
            Round to multiples of 1 / 255 in [0, 1], as 8 bits store them.

        Raises
        ------
        TypeError
            If one is not a floating tensor.
        ValueError
            If their shapes differ or do not suit, or values lie outside [0, 1].
        """
        stego = self.encode(check_unit(cover, "cover"), check_unit(secret, "secret")).stego
        return to_eight_bits(stego) if quantize else stego

    def reveal(
        self, stego: Float[Tensor, "b c h w"], latent: Float[Tensor, "b u p q"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Find the secret again.

        Parameters
        ----------
        stego
            Of shape (B, channels, H, W), values in [0, 1], made by :meth:`hide` of the same network.
        latent
            What :meth:`encode` gave beside it, shape (B, 4 channels + n_latent_down, H / 2, W / 2); ``None``: 0.

        Raises
        ------
        TypeError
            If ``stego`` is not a floating tensor.
        ValueError
            If a shape does not suit, or values lie outside [0, 1].
        """
        return self.decode(check_unit(stego, "stego"), latent).secret.clamp(0, 1)

    def encode(
        self,
        cover: Float[Tensor, "b c h w"],
        secret: Float[Tensor, "b c h w"],
        z_down: Float[Tensor, "b d p q"] | None = None,
    ) -> Hidden:
        """Map ``(cover, secret, z_down)`` to ``(stego, latent)``: the bijection, without rounding."""
        first = self._bands(cover, "cover")
        if secret.shape != cover.shape:
            raise ValueError(f"secret must have the cover's shape {tuple(cover.shape)}, got {tuple(secret.shape)}")
        shape = (len(cover), self.n_latent_down, *first.shape[-2:])
        z_down = cover.new_zeros(shape) if z_down is None else check_tensor(z_down, "z_down", ndim=4, shape=shape[1:])
        y = self.couplings(torch.cat([first, z_down, self._bands(secret, "secret")], 1))
        return Hidden(_join(y[:, : 4 * self.channels]), y[:, 4 * self.channels :])

    def decode(self, stego: Float[Tensor, "b c h w"], latent: Float[Tensor, "b u p q"] | None = None) -> Revealed:
        """Map ``(stego, latent)`` to ``(cover, secret, z_down)``: the inverse of :meth:`encode`."""
        first = self._bands(stego, "stego")
        c, d = 4 * self.channels, self.n_latent_down
        shape = (len(stego), c + d, *first.shape[-2:])
        latent = stego.new_zeros(shape) if latent is None else check_tensor(latent, "latent", ndim=4, shape=shape[1:])
        x = self.couplings.inverse(torch.cat([first, latent], 1))
        return Revealed(_join(x[:, c + d :]), _join(x[:, :c]), x[:, c : c + d])

    def forward(self, cover: Float[Tensor, "b c h w"], secret: Float[Tensor, "b c h w"]) -> tuple[Hidden, Revealed]:
        """Hide and reveal, through 8 bits, with gradients; the carrier is given before it is rounded."""
        hidden = self.encode(check_unit(cover, "cover"), check_unit(secret, "secret"))
        return hidden, self.decode(to_eight_bits(hidden.stego))

    def _bands(self, x: Tensor, name: str) -> Tensor:
        check_tensor(x, name, ndim=4, shape=(self.channels, None, None), dtype="floating")
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise ValueError(f"{name} must have an even height and width, got {x.shape[-2]} by {x.shape[-1]}")
        return haar2d(x).flatten(1, 2)


def _join(bands: Tensor) -> Tensor:
    return ihaar2d(bands.unflatten(1, (4, -1)))
