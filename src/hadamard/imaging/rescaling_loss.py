"""What invertible rescaling networks are trained with."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_range

__all__ = ["RescalingCycle", "rescaling_loss"]


@dataclass(frozen=True)
class RescalingCycle:
    """Down and up again, with what a loss looks at.

    Attributes
    ----------
    small
        The small picture before it is rounded to 8 bits.
    restored
        The picture as it comes back after that.
    z_up
        The latent that is thrown away, of the way down.
    z_down
        The latent that the way back ends with, less the one that the way down began with.
    """

    small: Float[Tensor, "b c h w"]
    restored: Float[Tensor, "b c H W"]
    z_up: Float[Tensor, "b u h w"]
    z_down: Float[Tensor, "b d p q"]


def rescaling_loss(
    cycle: RescalingCycle,
    x: Float[Tensor, "b c H W"],
    reference: Float[Tensor, "b c h w"],
    *,
    guide: float | None = None,
    latent: float = 1.0,
    down: float = 1.0,
) -> Float[Tensor, ""]:
    """Weigh the small picture's distance from a reference, the restored one's from the original, and the latents.

    Parameters
    ----------
    cycle
        What the network made of ``x``.
    x
        The pictures.
    reference
        What the small ones should look like: a bicubic reduction (:func:`hadamard.operators.bicubic`).
    guide
        Weight of the squared distance from it; ``None``: the square of the scale, as IRN has it (4 and 16). Large
        weights keep the small picture near the reference, small ones let it carry more.
    latent
        Weight of half the square of z_up.
    down
        Weight of the square of what z_down came back wrong by.

    Returns
    -------
    Tensor
        ``(guide |small - reference|^2 + |restored - x|_1 + latent |z_up|^2 / 2 + down |dz_down|^2)`` over the number of
        entries of ``x``. The weights are those of sums, so that they mean what they mean in IRN.

    Examples
    --------
    >>> from hadamard.imaging import DualLatentRescaler
    >>> network, x = DualLatentRescaler(2, n_blocks=1, growth=4), torch.full((1, 3, 8, 8), 0.2)
    >>> rescaling_loss(network(x), x, x[..., ::2, ::2]).item() < 1e-6
    True
    """
    for name, weight in {"latent": latent, "down": down, "guide": 0.0 if guide is None else guide}.items():
        check_range(weight, name, 0)
    if guide is None:
        guide = (x.shape[-1] // reference.shape[-1]) ** 2
    total = guide * (cycle.small - reference).square().sum() + (cycle.restored - x).abs().sum()
    total = total + latent / 2 * cycle.z_up.square().sum() + down * cycle.z_down.square().sum()
    return total / torch.numel(x)
