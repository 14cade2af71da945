"""Points of periodic grids, and a field that benchmarks share."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["diagonal_forcing", "grid_points"]


def grid_points(
    shape: Sequence[int], length: float | Sequence[float] = 1.0, like: Tensor | None = None
) -> list[Tensor]:
    """Coordinates of the points of a periodic grid, shaped so that they broadcast to it.

    Parameters
    ----------
    shape
        Numbers of points.
    length
        Of the box, one for all axes or one an axis; the first point is 0, the last one spacing short of it.
    like
        A tensor whose dtype and device to take.

    Examples
    --------
    >>> x, y = grid_points((4, 2))
    >>> x.flatten(), y.flatten()
    (tensor([0.0000, 0.2500, 0.5000, 0.7500]), tensor([0.0000, 0.5000]))
    """
    lengths = [length] * len(shape) if isinstance(length, (int, float)) else list(length)
    like = torch.empty(0) if like is None else like
    lines = [torch.arange(n).to(like) * (size / n) for n, size in zip(shape, lengths)]
    return [line.reshape([-1 if a == axis else 1 for a in range(len(shape))]) for axis, line in enumerate(lines)]


def diagonal_forcing(x: Float[Tensor, "nx 1"], y: Float[Tensor, "1 ny"], t: float = 0.0) -> Float[Tensor, "nx ny"]:
    """The steady forcing ``0.1 (sin 2 pi (x + y) + cos 2 pi (x + y))`` of the benchmark of Fourier neural operators.

    Examples
    --------
    >>> diagonal_forcing(*grid_points((2, 2)))
    tensor([[ 0.1000, -0.1000],
            [-0.1000,  0.1000]])
    """
    phase = 2 * math.pi * (x + y)
    return 0.1 * (torch.sin(phase) + torch.cos(phase))
