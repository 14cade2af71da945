"""Products with Toeplitz matrices and their several-dimensional kin, by the FFT."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hadamard.spectral import convolve, good_size, spectrum
from hadamard.validation import check_range, check_tensor

__all__ = ["check_offsets", "offset_index", "toeplitz_matmul"]


def toeplitz_matmul(
    c: Float[Tensor, "..."], x: Float[Tensor, "*batch n f"], *, grid: Sequence[int] | None = None
) -> Float[Tensor, "..."]:
    """Multiply by the matrix ``T[i, j] = c[j - i]``, in O(n log n): ``y_i = sum_j c_{j - i} x_j``.

    Parameters
    ----------
    c
        One number an offset, the most negative first. In one dimension shape (..., n_out + n - 1): entry
        ``j - i + n_out - 1`` is that of offset ``j - i``, so that ``2 n - 1`` entries make a square matrix. On a grid
        shape (..., 2 h - 1, 2 w - 1). Its leading dimensions broadcast against those of ``x``.
    x
        Columns to multiply, shape (..., n, f); on a grid, n = h w positions row by row.
    grid
        Sizes (h, w), or of any number of dimensions, of a grid of positions whose offsets ``c`` lists in each
        dimension; the matrix is then block-Toeplitz with Toeplitz blocks.

    Returns
    -------
    Tensor
        Shape (..., n_out, f), in the dtype of ``x``; half precision is computed in float32.

    Raises
    ------
    ValueError
        If ``c`` has not as many entries as there are offsets.

    Notes
    -----
    Rounding errors are relative to the largest entry of ``y``, not to each: about 1e-7 of
    ``|c| |x|`` in float32.

    Examples
    --------
    >>> c = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])  # offset +1: everything moves up
    >>> toeplitz_matmul(c, torch.tensor([[1.0], [2.0], [3.0]])).mT.round().abs()
    tensor([[2., 3., 0.]])
    """
    check_tensor(c, "c", dtype="floating", finite=False)
    check_tensor(x, "x", dtype="floating", finite=False)
    lengths = check_offsets(c, "c", x.shape[-2], grid)
    return _multiply(c, x.mT, lengths, grid).mT


def _multiply(c: Tensor, x: Tensor, lengths: tuple[int, ...], grid: Sequence[int] | None) -> Tensor:
    """``toeplitz_matmul`` of rows instead of columns: (..., f, n) to (..., f, n_out).

    The offsets are wrapped around a circle that is large enough for all of them (circulant embedding).
    """
    shape = tuple(grid) if grid is not None else (x.shape[-1],)
    dims = tuple(range(-len(shape), 0))
    circle = tuple(good_size(c.shape[d]) for d in dims)
    for d, n, size in zip(dims, lengths, circle):  # offsets -(n_out - 1)..n - 1 become shifts 0..n_out - 1, and back
        back, ahead = c.flip(d).split([c.shape[d] - n, n], d)
        gap = [*ahead.shape[:d], size - c.shape[d], *ahead.shape[ahead.ndim + d + 1 :]]
        c = torch.cat([ahead, ahead.new_zeros(gap), back], d)
    c = c.to(x.dtype).unsqueeze(-len(shape) - 1)
    kernel, taps = spectrum(c, circle, dims), c
    for d, n, m in zip(dims, lengths, shape):  # the circle just fits a signal of max(n, m) and a kernel of min(n, m)
        taps = taps.narrow(d, 0, min(n, m))
    x = F.pad(x, (0, max(lengths[0] - shape[0], 0))) if grid is None else x.unflatten(-1, shape)
    return convolve(x, taps, dims=dims, spectrum=kernel).flatten(-len(shape))[..., : prod(lengths)]


def check_offsets(
    c: Tensor, name: str, n: int, grid: Sequence[int] | None, n_out: int | None = None
) -> tuple[int, ...]:
    """Check that ``c`` has an entry for each offset, and return the numbers of positions of the output."""
    if grid is not None:
        for size in grid:
            check_range(size, "grid", 1, integer=True)
        if prod(grid) != n or n_out not in (None, n):
            raise ValueError(f"grid must have as many points as there are positions, got {tuple(grid)} for {n}")
        check_tensor(c, name, shape=[2 * size - 1 for size in grid], finite=False)
        return tuple(grid)
    if n_out is None:
        n_out = c.shape[-1] - n + 1
    if n_out < 1 or c.shape[-1] != n_out + n - 1:
        wanted = f"n_out + n - 1 >= {n}" if n_out < 1 else f"{n_out + n - 1}"
        raise ValueError(f"{name} must have {wanted} offsets in its last dimension, got shape {tuple(c.shape)}")
    return (n_out,)


def offset_index(rows: Sequence[int], n_out: int, n: int, grid: Sequence[int] | None, device: torch.device) -> Tensor:
    """Where the offset from position ``i`` in ``rows`` to position ``j`` stands in the flattened ``c``: (rows, n)."""
    i, j = torch.arange(*rows, device=device), torch.arange(n, device=device)
    if grid is None:
        return j - i[:, None] + n_out - 1
    index = torch.zeros(len(i), n, dtype=torch.long, device=device)
    stride = prod(grid)
    for size in grid:
        stride //= size
        index = index * (2 * size - 1) + (j // stride % size) - (i // stride % size)[:, None] + size - 1
    return index
