"""Half of an image's pixels under Gaussian noise, the other half made up from them: one branch of a dual smoothing."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["SplitNoise"]

Fill = Callable[[Tensor, Tensor], Tensor]
_FILLS = ("nearest", "mean", "maxpool")


class SplitNoise(nn.Module):
    """Keep one of two complementary halves of the pixels, add noise to it, and fill the holes from what was kept.

    Put it before a classifier to train one branch of :class:`DualSmooth`. What comes out depends on the noisy kept
    pixels alone, so that a certificate of the kept half carries over to the whole image.

    Parameters
    ----------
    sigma
        Standard deviation of the noise, in the units of the image.
    branch
        0 keeps one half, 1 the other.
    split
        ``"checkerboard"``: pixels with an even sum of row and column belong to branch 0; or a mask of shape (H, W),
        true where they do. All channels share it.
    fill
        What a hole is given: ``"nearest"``, the nearest kept pixel; ``"mean"``, the mean of the kept ones among its
        four neighbours; ``"maxpool"``, the largest in its block of 2 x 2, as in the paper's code (height and width
        even). The last two take the nearest where there are none. Or ``fill(noisy, mask)``, a deterministic function of
        the noisy image of shape (N, C, H, W), zero in the holes, and of the mask of kept pixels, which returns an image
        of that shape; what it puts on kept pixels is dropped.

    Raises
    ------
    ValueError
        If an option or number is out of range, a half is empty, or the mask has another size than the image.

    Examples
    --------
    >>> left = SplitNoise(0.25, branch=0)
    >>> left(torch.zeros(2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        sigma: float,
        branch: int,
        split: str | Bool[Tensor, "h w"] = "checkerboard",
        fill: str | Fill = "nearest",
    ) -> None:
        super().__init__()
        self.sigma = float(check_range(sigma, "sigma", 0, None, "neither"))
        self.branch = check_option(branch, "branch", (0, 1))
        if isinstance(split, Tensor):
            check_tensor(split, "split", ndim=2, dtype=torch.bool)
            if bool(split.all()) or not bool(split.any()):
                raise ValueError("split must leave pixels to both branches, got a mask that is the same everywhere")
        else:
            check_option(split, "split", ("checkerboard",))
        if not callable(fill):
            check_option(fill, "fill", _FILLS)
        self.split, self.fill = split, fill
        self._plans: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    def extra_repr(self) -> str:
        """What stands between the brackets when it is printed."""
        split = self.split if isinstance(self.split, str) else f"mask {tuple(self.split.shape)}"
        return f"sigma={self.sigma}, branch={self.branch}, split={split}, fill={self.fill}"

    def mask(self, height: int, width: int) -> Bool[Tensor, "h w"]:
        """Which pixels this branch keeps."""
        if isinstance(self.split, Tensor):
            if self.split.shape != (height, width):
                raise ValueError(
                    f"split must have the image's size, {height} by {width}, got {tuple(self.split.shape)}"
                )
            return self.split if self.branch == 0 else ~self.split
        if height * width < 2:
            raise ValueError(f"x must have at least two pixels to split, got {height} by {width}")
        return (torch.arange(height)[:, None] + torch.arange(width)) % 2 == self.branch

    def forward(
        self, x: Float[Tensor, "n c h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Draw the noise and build the branch's images.

        Parameters
        ----------
        x
            Clean images.
        generator
            Draws the noise; torch's own by default.
        """
        height, width = x.shape[-2:]
        kept, source, mask = self._plan(height, width, x.device)
        values = x.flatten(-2)[..., kept]
        noise = torch.randn(values.shape, generator=generator, device=x.device, dtype=x.dtype)
        nearest = (values + self.sigma * noise)[..., source].unflatten(-1, (height, width))
        if self.fill == "nearest":
            return nearest
        if self.fill == "mean":
            filled = _mean(nearest, mask)
        elif self.fill == "maxpool":
            filled = _max_pool(nearest, mask)
        else:
            assert callable(self.fill)
            filled = self.fill(nearest * mask, mask)
            if not isinstance(filled, Tensor) or filled.shape != x.shape:
                raise ValueError(f"fill must return a tensor of shape {tuple(x.shape)}, got {_shape(filled)}")
        return torch.where(mask, nearest, filled)

    def _plan(
        self, height: int, width: int, device: torch.device
    ) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " d"], Bool[Tensor, "h w"]]:
        """The kept pixels' places, for each pixel the number of the kept one nearest to it, and the mask."""
        key = (height, width, device)
        if key not in self._plans:
            from scipy.ndimage import distance_transform_edt

            mask = self.mask(height, width).cpu()
            rows, columns = distance_transform_edt(~mask.numpy(), return_distances=False, return_indices=True)
            number = mask.flatten().long().cumsum(0) - 1
            source = number[torch.from_numpy(rows * width + columns).long().flatten()]
            kept = mask.flatten().nonzero()[:, 0]
            self._plans[key] = (kept.to(device), source.to(device), mask.to(device))
        return self._plans[key]


def _mean(nearest: Tensor, mask: Tensor) -> Tensor:
    """The mean of the kept pixels above, below, left and right; the nearest one where none of them is kept."""
    counted = _neighbours(mask.to(nearest.dtype))
    return torch.where(counted > 0, _neighbours(nearest * mask) / counted.clamp(min=1), nearest)


def _neighbours(x: Tensor) -> Tensor:
    """The sum of the four neighbours, zero beyond the border."""
    p = F.pad(x, (1, 1, 1, 1))
    return p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]


def _max_pool(nearest: Tensor, mask: Tensor) -> Tensor:
    """The largest kept pixel of each block of 2 x 2; the nearest kept one where the block has none."""
    height, width = mask.shape
    if height % 2 or width % 2:
        raise ValueError(f"x must have an even height and width for fill='maxpool', got {height} by {width}")
    largest = F.max_pool2d(torch.where(mask, nearest, -torch.inf), 2)
    largest = largest.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return torch.where(largest > -torch.inf, largest, nearest)


def _shape(x: object) -> str:
    return str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__
