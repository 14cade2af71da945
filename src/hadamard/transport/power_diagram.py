"""Power diagrams by inner products: which of many sites a point belongs to, without the matrix of all pairs.

A site ``y_i`` with height ``h_i`` owns the points ``x`` at which ``<x, y_i> + h_i`` is largest. The same cells belong
to the weighted distances ``|x - y_i|^2 / 2 - alpha_i`` with ``h_i = alpha_i - |y_i|^2 / 2``.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["assign", "measure_cells"]

_SITES = 8192  # in one block, so that some rows of points fit beside them
_BLOCK = {"cpu": 1 << 19, "cuda": 1 << 26}  # scores at a time: those that stay in the cache, or fill the device


def assign(
    x: Float[Tensor, "m d"], sites: Float[Tensor, "n d"], heights: Float[Tensor, " n"], block: int | None = None
) -> tuple[Float[Tensor, " m"], Int64[Tensor, " m"]]:
    """Find the cell of every point, block by block.

    Parameters
    ----------
    x
        Points, shape (m, d).
    sites, heights
        Of the diagram, shapes (n, d) and (n,); a height of minus infinity leaves a site without a cell.
    block
        Most scores that are in memory at a time; ``None``: what suits the device.

    Returns
    -------
    values, indices : Tensor
        The largest ``<x, y_i> + h_i`` and the lowest ``i`` that attains it, shape (m,).

    Examples
    --------
    >>> assign(torch.tensor([[-3.0], [0.2], [1.0]]), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, 0.0]))
    (tensor([3.5000, 0.3000, 1.0000]), tensor([0, 0, 1]))
    """
    block = block or _BLOCK.get(x.device.type, 1 << 24)
    width = min(len(sites), _SITES, block)
    parts = list(zip(range(0, len(sites), width), sites.split(width), heights.split(width)))
    values = torch.empty(len(x), dtype=x.dtype, device=x.device)
    indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
    rows = max(1, block // width)
    for points, value, index in zip(x.split(rows), values.split(rows), indices.split(rows)):
        for first, y, h in parts:
            best, where = torch.addmm(h, points, y.T).max(1)
            if first == 0:
                value.copy_(best)
                index.copy_(where)
                continue
            better = best > value
            value[better], index[better] = best[better], where[better] + first
    return values, indices


def measure_cells(
    draw: Callable[[int], Tensor], sites: Tensor, heights: Tensor, samples: int, centre: Tensor | None = None
) -> tuple[Tensor, float]:
    """Estimate the cells' masses; and, of sites that lack their centre, the mean of ``u(x) - |x|^2 / 2``.

    Parameters
    ----------
    draw
        Gives so many points.
    sites, heights
        Of the diagram, shapes (n, d) and (n,).
    samples
        Number of points.
    centre
        What was subtracted from the sites, shape (d,); ``None``: no mean is taken.

    Returns
    -------
    masses : Tensor
        Float64, shape (n,), summing to 1.
    mean : float
        0 without a centre.

    Examples
    --------
    >>> line = lambda count: torch.linspace(0, 1, count)[:, None]
    >>> measure_cells(line, torch.tensor([[0.0], [1.0]]), torch.tensor([0.25, 0.0]), 4)[0]
    tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    counts = torch.zeros(len(sites), dtype=torch.int64, device=sites.device)
    total, heights = 0.0, heights.to(sites.dtype)
    step = max(1000, (1 << 22) // sites.shape[1])
    for first in range(0, samples, step):
        x = draw(min(step, samples - first))
        best, where = assign(x, sites, heights)
        counts += torch.bincount(where, minlength=len(sites))
        if centre is not None:
            total += float((best + x @ centre - x.square().sum(1) / 2).double().sum())
    return counts.double() / samples, total / samples
