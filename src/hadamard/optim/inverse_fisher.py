"""The inverse of a damped empirical Fisher matrix as an operator, from a few gradients and without a large matrix.

With gradients in the m rows of G, ``F = damp I + (1/m) G^T G``. Let ``L L^T = m damp I + G G^T`` be the m x m Cholesky
factorisation and ``W = L^{-1} G``. Then ``F^{-1} = (I - W^T W) / damp``, from which products, the diagonal and single
entries can be read.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.lowrank import gram, gram_cholesky
from hadamard.operators import LinearOperator
from hadamard.optim.memory import check_fits
from hadamard.validation import check_range, check_tensor

__all__ = ["InverseFisher"]

_ENTRIES = 1 << 24  # of the m x m matrices of blocks that are factored at a time


class InverseFisher(LinearOperator):
    """Products with ``(damp I + (1/m) sum_i g_i g_i^T)^{-1}`` in time and memory O(m d).

    ``A`` applies the inverse, ``A_dagger`` the Fisher matrix itself.

    Parameters
    ----------
    gradients
        One in each of m rows, of d parameters each: of single samples for the empirical Fisher matrix proper, or of
        small batches as the paper does. Half precision is stored in single.
    damp
        What is added to the diagonal, above 0.
    block_size
        Keep the blocks of this size along the diagonal of ``F`` and drop the rest (the last block may be smaller);
        ``None``: all of it.

    Raises
    ------
    TypeError
        If ``gradients`` is not a floating tensor.
    ValueError
        If it is not a matrix, is empty or not finite, or ``damp`` or ``block_size`` is out of range.
    MemoryError
        If another matrix of the size of ``gradients`` does not fit into the memory that is free.

    Notes
    -----
    Setting up takes O(m^2 d) operations, once. Rounding of the product is about ``eps |x| / damp`` of the gradients'
    precision: for ``damp`` below 1e-5 of the gradients' mean square norm use float64. Where d is at most a few
    thousand, the dense matrix serves as well.

    References
    ----------
    E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order Information",
    NeurIPS 2021, arXiv:2107.03356: the static algorithm. Its recursion over rank-one updates computes the same W, row
    by row and up to row scaling; here it is one factorisation and one triangular solve.

    Examples
    --------
    >>> inverse = InverseFisher(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), damp=0.5)
    >>> inverse(torch.ones(3))
    tensor([1.0000, 0.4000, 2.0000])
    >>> inverse.diag()
    tensor([1.0000, 0.4000, 2.0000])
    """

    W: Tensor
    factor: Tensor

    def __init__(self, gradients: Float[Tensor, "m d"], damp: float = 1e-5, *, block_size: int | None = None) -> None:
        check_tensor(gradients, "gradients", ndim=2, dtype="floating")
        super().__init__(gradients.shape[1:], gradients.shape[1:])
        self.damp = float(check_range(damp, "damp", 0, None, closed="neither"))
        if block_size is not None:
            check_range(block_size, "block_size", 1, integer=True)
        stored = torch.float64 if gradients.dtype == torch.float64 else torch.float32
        m, d = gradients.shape
        check_fits(m, d, stored, gradients.device, "gradients")
        blocks = split_blocks(gradients.detach(), block_size)
        W, factors = [], []
        for part in blocks.split(max(1, _ENTRIES // m**2)):
            L = gram_cholesky(gram(part), m * self.damp)
            columns = part.split(1 << 14, dim=-1)
            solved = [torch.linalg.solve_triangular(L, c.double(), upper=False).to(part.dtype) for c in columns]
            W.append(torch.cat(solved, dim=-1))
            factors.append(L)
        self.register_buffer("W", torch.cat(W))
        self.register_buffer("factor", torch.cat(factors))

    def A(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Apply the inverse."""
        columns = self._columns(self.check_in(x))
        return self._rows((columns - self.W.mT @ (self.W @ columns)) / self.damp, x)

    def A_adjoint(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Apply the inverse, which is symmetric."""
        return self.A(y)

    def A_dagger(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Apply the damped Fisher matrix."""
        columns, L = self._columns(self.check_out(y, "y")), self.factor.to(self.W.dtype)
        G_times = L @ (self.W @ columns)
        return self._rows(self.damp * columns + self.W.mT @ (L.mT @ G_times) / L.shape[-1], y)

    def diag(self) -> Float[Tensor, " d"]:
        """Compute the diagonal of the inverse."""
        return ((1 - self.W.square().sum(1)) / self.damp).flatten()[: self.in_shape[0]]

    def entry(self, i: int, j: int) -> float:
        """Compute one entry of the inverse in O(m).

        Parameters
        ----------
        i, j
            Row and column, each in [0, d).
        """
        d, B = self.in_shape[0], self.W.shape[-1]
        check_range(i, "i", 0, d, closed="left", integer=True)
        check_range(j, "j", 0, d, closed="left", integer=True)
        if i // B != j // B:
            return 0.0
        block = self.W[i // B].double()
        return float(float(i == j) - block[:, i % B] @ block[:, j % B]) / self.damp

    def _columns(self, x: Tensor) -> Tensor:
        """Blocks of x, with its batch as columns: (blocks, block size, batch)."""
        return split_blocks(x.reshape(-1, self.in_shape[0]), self.W.shape[-1]).mT

    def _rows(self, columns: Tensor, like: Tensor) -> Tensor:
        return columns.movedim(-1, 0).flatten(1)[:, : self.in_shape[0]].reshape(like.shape)

    def extra_repr(self) -> str:
        """Show the size, the number of gradients, and the blocks."""
        blocks, m, B = self.W.shape
        return f"{self.in_shape[0]} parameters, {m} gradients, damp={self.damp}" + f", blocks of {B}" * (blocks > 1)


def split_blocks(G: Any, block_size: int | None) -> Tensor:
    """Cut columns into blocks, (m, d) to (blocks, m, block size); the last is filled up with zeros."""
    G = G.float() if G.dtype in (torch.half, torch.bfloat16) else G
    B = min(block_size or G.shape[1], G.shape[1])
    return torch.nn.functional.pad(G, (0, -G.shape[1] % B)).unflatten(1, (-1, B)).movedim(1, 0)
