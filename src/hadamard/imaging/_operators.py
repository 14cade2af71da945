"""Operators of dynamic MRI: unfoldings, and series that are stacked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hadamard.operators import LinearOperator

UNFOLDINGS = ("casorati", "mode-h", "mode-w")


class Unfold(LinearOperator):
    """A series as a matrix: (..., 1, T, H, W) to (..., rows, columns).

    Parameters
    ----------
    shape
        (1, T, H, W).
    mode
        ``"casorati"``: a row for each frame, T x HW; ``"mode-h"``: H x TW; ``"mode-w"``: W x TH.

    Examples
    --------
    >>> Unfold((1, 2, 3, 4), "mode-h")
    Unfold((1, 2, 3, 4) -> (3, 8))
    """

    def __init__(self, shape: Sequence[int], mode: str) -> None:
        self.axis = -3 + UNFOLDINGS.index(mode)
        rows = shape[self.axis]
        super().__init__(shape, (rows, torch.Size(shape).numel() // rows))

    def A(self, x: Tensor) -> Tensor:
        """Unfold the series."""
        return x.movedim(self.axis, -4).reshape(*x.shape[:-4], *self.out_shape)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Fold the matrix back (exactly: the unfolding is a permutation)."""
        _, *size = self.in_shape
        rows = size.pop(self.axis)
        return y.reshape(*y.shape[:-2], rows, 1, *size).movedim(-4, self.axis)


class Part(LinearOperator):
    """One of the series that are stacked on the channel axis: (..., P, T, H, W) to (..., 1, T, H, W).

    Parameters
    ----------
    shape
        (P, T, H, W).
    index
        Which one.
    """

    def __init__(self, shape: Sequence[int], index: int) -> None:
        super().__init__(shape, (1, *shape[1:]))
        self.index = index

    def A(self, x: Tensor) -> Tensor:
        """Take the series out."""
        return x.narrow(-4, self.index, 1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Put the series back among zeros."""
        after = self.in_shape[0] - 1 - self.index
        return torch.nn.functional.pad(y, (0, 0, 0, 0, 0, 0, self.index, after)) if self.in_shape[0] > 1 else y


class Total(LinearOperator):
    """The sum of the series that are stacked on the channel axis: (..., P, T, H, W) to (..., 1, T, H, W)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape, (*shape[:-4], 1, *shape[-3:]))

    def A(self, x: Tensor) -> Tensor:
        """Sum the series."""
        return x.sum(-4, keepdim=True) if self.in_shape[-4] > 1 else x

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Repeat the series (without copying)."""
        return y.expand(*y.shape[:-4], *self.in_shape[-4:])
