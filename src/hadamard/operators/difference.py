"""Finite differences as an operator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hadamard.operators.base import LinearOperator

__all__ = ["Difference"]


class Difference(LinearOperator):
    """Forward differences along some dimensions, stacked on a new axis in front of the operator's own.

    The last difference along each dimension is zero (no wrap-around), so that the adjoint is minus the divergence.

    Parameters
    ----------
    shape
        Trailing shape (*shape) of the input; the output is (len(dims), *shape).
    dims
        Dimensions to take differences along, counted from the end (negative).

    Notes
    -----
    The norm squared is below 4 for each dimension.

    Examples
    --------
    >>> Difference((3,), (-1,))(torch.tensor([1.0, 2.0, 4.0]))
    tensor([[1., 2., 0.]])
    """

    def __init__(self, shape: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__(shape, (len(dims), *shape))
        self.dims = tuple(dims)

    def A(self, x: Tensor) -> Tensor:
        """Take the differences: (..., *shape) to (..., len(dims), *shape)."""
        steps = [torch.diff(x, dim=d, append=x.narrow(d, -1, 1)) for d in self.dims]
        return torch.stack(steps, dim=x.ndim - len(self.in_shape))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Take minus the divergence: (..., len(dims), *shape) to (..., *shape)."""
        total = torch.zeros_like(y.select(-1 - len(self.in_shape), 0))
        for d, p in zip(self.dims, y.unbind(-1 - len(self.in_shape))):
            inner = p.narrow(d, 0, p.shape[d] - 1)
            total.narrow(d, 1, p.shape[d] - 1).add_(inner)
            total.narrow(d, 0, p.shape[d] - 1).sub_(inner)
        return total
