"""Operators of dynamic MRI: coils, differences, unfoldings."""

from collections.abc import Sequence

import torch
from jaxtyping import Complex
from torch import Tensor

from hadamard.operators import LinearOperator
from hadamard.validation import check_tensor

UNFOLDINGS = ("casorati", "mode-h", "mode-w")


class Coils(LinearOperator):
    """What each coil sees of a series: (..., 1, T, H, W) to (..., C, T, H, W).

    Parameters
    ----------
    sens
        Sensitivities of shape (..., C, H, W).
    frames
        Number of frames T.

    Examples
    --------
    >>> Coils(torch.ones(3, 4, 4, dtype=torch.complex64), frames=2)(torch.ones(1, 2, 4, 4)).shape
    torch.Size([3, 2, 4, 4])
    """

    sens: Tensor

    def __init__(self, sens: Complex[Tensor, "*batch c h w"], frames: int) -> None:
        coils, *size = check_tensor(sens, "sens", shape=(None, None, None), dtype="complex").shape[-3:]
        super().__init__((1, frames, *size), (coils, frames, *size))
        self.register_buffer("sens", sens.unsqueeze(-3))

    def A(self, x: Tensor) -> Tensor:
        """Multiply the series by every coil's sensitivity."""
        return self.check_in(x) * self.sens

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Multiply by the conjugate sensitivities and sum over the coils."""
        return (self.check_out(y) * self.sens.conj()).sum(-4, keepdim=True)


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
