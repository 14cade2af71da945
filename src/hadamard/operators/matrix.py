"""A dense matrix as an operator."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Inexact
from torch import Tensor

from hadamard.operators.base import LinearOperator
from hadamard.validation import check_tensor

__all__ = ["Matrix"]


class Matrix(LinearOperator):
    """A dense matrix as an operator.

    Parameters
    ----------
    matrix
        Of shape (m, n), real or complex.
    in_shape, out_shape
        Shapes of ``n`` and ``m`` entries that inputs and outputs have; ``None``: vectors.

    Raises
    ------
    TypeError
        If ``matrix`` is not a floating or complex tensor.
    ValueError
        If it is not a matrix, not finite, or the shapes have other numbers of entries.

    Examples
    --------
    >>> op = Matrix(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    >>> op.A_dagger(torch.tensor([1.0, 1.0]))
    tensor([0.5000, 0.2500])
    """

    matrix: Tensor

    def __init__(
        self,
        matrix: Inexact[Tensor, "m n"],
        in_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
    ) -> None:
        m, n = check_tensor(matrix, "matrix", ndim=2).shape
        super().__init__((n,) if in_shape is None else in_shape, (m,) if out_shape is None else out_shape)
        for shape, size, name in ((self.in_shape, n, "in_shape"), (self.out_shape, m, "out_shape")):
            if np.prod(shape) != size:
                raise ValueError(f"{name} must have {size} entries, got {shape}")
        self.register_buffer("matrix", matrix)

    def A(self, x: Tensor) -> Tensor:
        """Apply the operator: (..., *in_shape) to (..., *out_shape)."""
        batch = self.check_in(x).shape[: x.ndim - len(self.in_shape)]
        return _matmul(x.reshape(*batch, -1), self.matrix.T).reshape(*batch, *self.out_shape)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint: (..., *out_shape) to (..., *in_shape)."""
        batch = self.check_out(y).shape[: y.ndim - len(self.out_shape)]
        return _matmul(y.reshape(*batch, -1), self.matrix.conj()).reshape(*batch, *self.in_shape)

    def A_dagger(self, y: Tensor) -> Tensor:
        """Apply the Moore-Penrose inverse (exact): (..., *out_shape) to (..., *in_shape)."""
        batch = self.check_out(y).shape[: y.ndim - len(self.out_shape)]
        inverse = torch.linalg.pinv(self.matrix)
        return _matmul(y.reshape(*batch, -1), inverse.T).reshape(*batch, *self.in_shape)


def _matmul(x: Tensor, matrix: Tensor) -> Tensor:
    """Matrix product in the wider of the two types."""
    dtype = torch.promote_types(x.dtype, matrix.dtype)
    return x.to(dtype) @ matrix.to(dtype)
