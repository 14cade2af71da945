"""Matrices of low rank, kept as their factors."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hadamard.results import Solution

__all__ = ["LowRank", "spectral_init"]


@dataclass(frozen=True, kw_only=True)
class LowRank(Solution):
    """A matrix ``U V^T`` kept as its two factors, with how it was found.

    Attributes
    ----------
    U, V
        Factors of shapes (n, k) and (m, k).
    value
        Root mean square error on the observed entries.
    extras
        ``rmse_history``: that error after each sweep.
    """

    U: Float[Tensor, "n k"]
    V: Float[Tensor, "m k"]

    def entries(self, indices: Int[Tensor, "2 count"]) -> Float[Tensor, " count"]:
        """Single entries, at ``indices`` (rows above columns), without forming the matrix."""
        rows, cols = (i.split(1 << 16) for i in indices)
        return torch.cat([(self.U[i] * self.V[j]).sum(-1) for i, j in zip(rows, cols)])

    def to_dense(self) -> Float[Tensor, "n m"]:
        """The whole matrix."""
        return self.U @ self.V.mT


def spectral_init(
    matrix: Tensor, transpose: Tensor, rank: int, *, clip: float | None = None, generator: torch.Generator | None = None
) -> Float[Tensor, "n k"]:
    """Leading left singular vectors by block power iteration, of a matrix that is given with its transpose.

    For the zero-filled matrix of observations these estimate the column space of the whole one. Rows of a norm above
    ``2 clip sqrt(k / n)`` are set to zero, so that no single row carries a direction, and the rest orthonormalised.
    """
    n, m = matrix.shape
    V = torch.randn(m, min(rank + 10, n, m), generator=generator, dtype=matrix.dtype, device=matrix.device)
    for _ in range(5):
        V = torch.linalg.qr(transpose @ (matrix @ V)).Q
    U = torch.linalg.svd(matrix @ V, full_matrices=False).U[:, :rank].contiguous()
    if clip is not None:
        U = torch.where(U.norm(dim=1, keepdim=True) > 2 * clip * (rank / n) ** 0.5, 0, U)
        U = torch.linalg.qr(U).Q
    return U
