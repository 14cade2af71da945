"""Many small least-squares problems that share one matrix, solved all at once.

Row ``i`` of a partly observed matrix is explained by the rows of ``design`` at its observed columns:

    minimise over X:   1/2 sum_i sum_{j observed in row i} (M_ij - <X_i, design_j>)^2 + 1/2 sum_i ridge_i |X_i|^2.

Every solver takes the current ``X`` with its residual (the observed values of M - X design^T) and returns both after
the step, so that the observed error is known at all times without another pass over the data.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from hadamard.validation import check_tensor

__all__ = ["Observations", "Pattern", "check_unique", "conjugate", "exact", "observe", "sketched"]

_CHUNK = 1 << 21  # numbers held at once by what would otherwise be one k x k or L x k block a row


class Pattern:
    """Which entries of a matrix are observed, row by row, and the two products that need only those.

    Parameters
    ----------
    rows, cols
        Positions, sorted by row and then by column.
    shape
        Of the matrix.
    """

    def __init__(self, rows: Int64[Tensor, " nnz"], cols: Int64[Tensor, " nnz"], shape: tuple[int, int]) -> None:
        self.shape = shape
        self.rows, self.cols = rows, cols
        self.counts = torch.bincount(rows, minlength=shape[0])
        zero = self.counts.new_zeros(1)
        small = torch.int32 if max(rows.numel(), *shape) < 2**31 else torch.int64
        self.starts = torch.cat([zero, self.counts.cumsum(0)])
        self._crow, self._col = self.starts.to(small), cols.to(small)

    def matrix(self, values: Float[Tensor, " nnz"]) -> Tensor:
        """The CSR matrix with these values."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(self._crow, self._col, values, self.shape, check_invariants=False)

    def sample(self, X: Float[Tensor, "n k"], design: Float[Tensor, "m k"]) -> Float[Tensor, " nnz"]:
        """Entries of ``X design^T`` where observed."""
        pattern = self.matrix(X.new_zeros(self.rows.numel()))
        return torch.sparse.sampled_addmm(pattern, X, design.mT, beta=0.0).values()

    def spread(self, values: Float[Tensor, " nnz"], design: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
        """The matrix with these values, times ``design``: the adjoint of :meth:`sample` in ``X``."""
        return self.matrix(values) @ design

    def sum(self, values: Float[Tensor, " nnz"]) -> Float[Tensor, " n"]:
        """Sums over each row."""
        return self.matrix(values) @ values.new_ones(self.shape[1])

    def each(self, numbers: Shaped[Tensor, " n"]) -> Shaped[Tensor, " nnz"]:
        """A number a row, repeated for its entries."""
        return numbers.index_select(0, self.rows)

    @cached_property
    def padded(self) -> list[tuple[Tensor, Tensor]]:
        """Rows in groups of like length: their numbers, and their columns padded with ``m`` to the longest."""
        order = torch.argsort(self.counts, descending=True)
        groups, start, sizes = [], 0, self.counts[order].tolist()
        while start < len(sizes) and sizes[start]:
            stop, longest = start + 1, sizes[start]
            while stop < len(sizes) and sizes[stop] and sizes[stop] > 0.9 * longest - 4 and stop - start < 4096:
                stop += 1
            rows = order[start:stop]
            place = torch.arange(longest, device=rows.device)
            at = (self.starts[rows, None] + place).clamp(max=self.cols.numel() - 1)
            groups.append((rows, torch.where(place < self.counts[rows, None], self.cols[at], self.shape[1])))
            start = stop
        return groups


@dataclass(frozen=True)
class Observations:
    """Values seen at some positions of a matrix.

    Attributes
    ----------
    rows, cols
        The positions in the matrix and in its transpose.
    values
        In the order of ``rows``.
    to_cols
        ``values[to_cols]`` is in the order of ``cols``.
    """

    rows: Pattern
    cols: Pattern
    values: Float[Tensor, " nnz"]
    to_cols: Int64[Tensor, " nnz"]

    def with_values(self, values: Float[Tensor, " nnz"]) -> "Observations":
        """Other values at the same positions."""
        return replace(self, values=values)


def observe(indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Observations:
    """Check what was observed, and sort it by rows and by columns."""
    check_tensor(indices, "indices", ndim=2, shape=(2, None), dtype="integer")
    check_tensor(values, "values", ndim=1, shape=(indices.shape[1],), dtype="floating")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape must be two positive integers, got {shape}")
    i, j = indices.to(torch.int64)
    for name, index, size in (("row", i, shape[0]), ("column", j, shape[1])):
        if int(index.min()) < 0 or int(index.max()) >= size:
            ends = f"{int(index.min())} to {int(index.max())}"
            raise ValueError(f"indices must lie in the shape {tuple(shape)}, got {name}s {ends}")
    small = torch.int32 if shape[0] * shape[1] < 2**31 else torch.int64  # half the bytes sort in half the time
    key, order = (i * shape[1] + j).to(small).sort()
    check_unique(key, shape[1])
    i, j, values = (numbers.index_select(0, order) for numbers in (i, j, values))
    to_cols = (j * shape[0] + i).to(small).argsort()
    cols = Pattern(j.index_select(0, to_cols), i.index_select(0, to_cols), (shape[1], shape[0]))
    return Observations(Pattern(i, j, shape), cols, values, to_cols)


def check_unique(keys: Tensor, width: int) -> None:
    """Refuse repeated positions, given as sorted ``row * width + column``."""
    twice = keys[1:][keys[1:] == keys[:-1]]
    if twice.numel():
        where = divmod(int(twice[0]), width)
        raise ValueError(f"each position must be observed once, got {twice.numel()} repeated, the first at {where}")


def conjugate(
    pattern: Pattern,
    design: Float[Tensor, "m k"],
    X: Float[Tensor, "n k"],
    residual: Float[Tensor, " nnz"],
    ridge: Float[Tensor, " n"],
    steps: int,
    factors: Float[Tensor, "n k k"] | None = None,
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " nnz"]]:
    """A few steps of conjugate gradients from ``X``, one :meth:`Pattern.sample` and one ``spread`` each.

    This is CGLS: it works with the residual of the data, not of the normal equations, so that it neither forms a
    k x k matrix nor squares the condition number. Rows whose gradient has vanished stay as they are. ``factors``
    (Cholesky factors of approximate Gram matrices) precondition it.
    """
    X, residual = X.clone(), residual.clone()
    tiny, smallest = torch.finfo(X.dtype).tiny, torch.finfo(X.dtype).eps ** 2
    direction, gamma = torch.zeros_like(X), X.new_ones(X.shape[0])
    largest = torch.zeros_like(gamma)
    for _ in range(steps):
        gradient = pattern.spread(residual, design).addcmul_(ridge[:, None], X, value=-1)
        scaled = gradient if factors is None else torch.cholesky_solve(gradient[..., None], factors)[..., 0]
        before, gamma = gamma, (gradient * scaled).sum(-1)
        direction = torch.addcmul(scaled, (gamma / before.clamp(min=tiny))[:, None], direction)
        largest = torch.maximum(largest, gamma)
        image = pattern.sample(direction, design)
        curvature = pattern.sum(image * image) + ridge * (direction * direction).sum(-1)
        going = (gamma > smallest * largest) & (curvature > 0)
        length = torch.where(going, gamma / curvature.clamp(min=tiny), 0)
        X.addcmul_(length[:, None], direction)
        residual.addcmul_(pattern.each(length), image, value=-1)
    return X, residual


def exact(
    pattern: Pattern,
    design: Float[Tensor, "m k"],
    X: Float[Tensor, "n k"],
    residual: Float[Tensor, " nnz"],
    ridge: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " nnz"]]:
    """The minimiser, by a Cholesky decomposition a row; the nearest one to ``X`` where it is not unique."""
    gradient = pattern.spread(residual, design).addcmul_(ridge[:, None], X, value=-1)
    step = torch.zeros_like(X)
    k = design.shape[1]
    for rows, gram in _grams(pattern, design):
        gram.diagonal(dim1=-2, dim2=-1).add_(ridge[rows, None])
        factor, failed = torch.linalg.cholesky_ex(gram)
        solution = torch.cholesky_solve(gradient[rows, :, None], factor)
        pivots = factor.diagonal(dim1=-2, dim2=-1)
        small = pivots.amin(-1) <= (10 * k * torch.finfo(X.dtype).eps) ** 0.5 * pivots.amax(-1)
        singular = (failed > 0) | small | ~torch.isfinite(solution).all(-1).all(-1)
        if singular.any():
            inverse = torch.linalg.pinv(gram[singular], hermitian=True, rtol=10 * k * torch.finfo(X.dtype).eps)
            solution[singular] = inverse @ gradient[rows[singular], :, None]
        step[rows] = solution[..., 0]
    return X + step, residual - pattern.sample(step, design)


def sketched(
    pattern: Pattern, design: Float[Tensor, "m k"], ridge: Float[Tensor, " n"], generator: torch.Generator
) -> Float[Tensor, "n k k"]:
    """Cholesky factors of each row's Gram matrix, estimated from a sketch of ``6 k`` rows; they precondition CG.

    Each observation is added with a random sign to one of the ``6 k`` buckets of its row (CountSketch); a row with
    fewer observations than that keeps each apart, so that its factor is exact.
    """
    k, buckets = design.shape[1], 6 * design.shape[1]
    n, device = pattern.shape[0], design.device
    place = torch.arange(pattern.rows.numel(), device=device) - pattern.each(pattern.starts[:-1])
    drawn = torch.randint(buckets, place.shape, generator=generator, device=device)
    bucket = torch.where(pattern.each(pattern.counts) > buckets, drawn, place)
    sign = torch.randint(2, place.shape, generator=generator, device=device).to(design.dtype) * 2 - 1
    factors = design.new_empty(n, k, k)
    for first in range(0, n, size := max(1, _CHUNK // (buckets * k))):
        last = min(first + size, n)
        part = slice(int(pattern.starts[first]), int(pattern.starts[last]))
        target, order = ((pattern.rows[part] - first) * buckets + bucket[part]).sort()
        sketch = Pattern(target, pattern.cols[part][order], ((last - first) * buckets, pattern.shape[1]))
        rows = sketch.spread(sign[part][order], design).view(-1, buckets, k)
        gram = rows.mT @ rows
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        diagonal.add_(ridge[first:last, None])
        size_of = diagonal.mean(-1, keepdim=True)  # a trace of zero is an empty row: any factor does
        diagonal.add_(torch.where(size_of > 0, size_of * torch.finfo(gram.dtype).eps ** 0.5, 1))
        factors[first:last] = torch.linalg.cholesky(gram)
    return factors


def _grams(pattern: Pattern, design: Float[Tensor, "m k"]) -> Iterator[tuple[Tensor, Tensor]]:
    """Gram matrices of the observed rows of ``design``, for a group of rows at a time."""
    extended = torch.cat([design, design.new_zeros(1, design.shape[1])])
    for rows, cols in pattern.padded:
        size = max(1, _CHUNK // max(cols.shape[1] * design.shape[1], 1))
        for some, at in zip(rows.split(size), cols.split(size)):
            block = extended[at]
            yield some, block.mT @ block
