"""Large pictures in overlapping tiles."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.validation import check_range, check_tensor

__all__ = ["PatchAverage"]


class PatchAverage(nn.Module):
    """Apply a denoiser to overlapping tiles of a large picture and average where they overlap, to bound the memory.

    The average of proximal maps of parts is no longer exactly one of the whole; with tiles much larger than the
    denoiser's reach the difference stays near their edges.

    Parameters
    ----------
    denoiser
        Takes and returns (batch, channels, height, width).
    size, stride
        Side of the tiles and the distance between neighbours, in pixels; ``stride`` is at most ``size``.

    Examples
    --------
    >>> PatchAverage(lambda x: 2 * x, size=8, stride=4)(torch.ones(1, 1, 13, 9)).unique()
    tensor([2.])
    """

    def __init__(self, denoiser: Callable[[Tensor], Tensor], size: int = 256, stride: int = 192) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.size = check_range(size, "size", 1, integer=True)
        self.stride = check_range(stride, "stride", 1, size, integer=True)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        """Denoise a picture of any size."""
        check_tensor(x, "x", ndim=4, dtype="floating")
        total, cover = torch.zeros_like(x), x.new_zeros(x.shape[-2:])
        for top in self._origins(x.shape[-2]):
            for left in self._origins(x.shape[-1]):
                tile = (..., slice(top, top + self.size), slice(left, left + self.size))
                total[tile] += self.denoiser(x[tile])
                cover[tile] += 1
        return total / cover

    def _origins(self, length: int) -> list[int]:
        """First pixels of the tiles along one side; the last tile ends with the picture."""
        last = max(length - self.size, 0)
        return [*range(0, last, self.stride), last]
