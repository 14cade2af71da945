"""Operators that act on each axis by its own matrix, and the bicubic change of scale as one."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Inexact
from torch import Tensor

from hadamard.operators.base import LinearOperator
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["Separable", "bicubic"]

_BOUNDARIES = ("symmetric", "circular", "truncate")


class Separable(LinearOperator):
    """A matrix along each of the last axes: the Kronecker product of the matrices, never formed.

    Parameters
    ----------
    matrices
        Of shapes (m_1, n_1), ..., (m_k, n_k), for the last k axes in their order. Gradients flow into them.

    Raises
    ------
    TypeError
        If a matrix is not a floating or complex tensor.
    ValueError
        If there is none, or one is not a matrix or not finite.

    Examples
    --------
    >>> op = Separable([torch.tensor([[1.0, 1.0]]), 2 * torch.eye(3)])
    >>> op(torch.arange(6.0).reshape(2, 3))
    tensor([[ 6., 10., 14.]])
    >>> op.A_dagger(torch.tensor([[6.0, 10.0, 14.0]]))
    tensor([[1.5000, 2.5000, 3.5000],
            [1.5000, 2.5000, 3.5000]])
    """

    def __init__(self, matrices: Sequence[Inexact[Tensor, "_ _"]]) -> None:
        for i, matrix in enumerate(matrices):
            check_tensor(matrix, f"matrices[{i}]", ndim=2)
        if not matrices:
            raise ValueError("matrices must hold at least one matrix, got none")
        super().__init__([M.shape[1] for M in matrices], [M.shape[0] for M in matrices])
        for i, matrix in enumerate(matrices):
            self.register_buffer(f"matrix_{i}", matrix)

    @property
    def matrices(self) -> list[Tensor]:
        """One matrix an axis."""
        return [getattr(self, f"matrix_{i}") for i in range(len(self.in_shape))]

    def A(self, x: Tensor) -> Tensor:
        """Apply the operator: (..., n_1, ..., n_k) to (..., m_1, ..., m_k)."""
        return self._along(self.check_in(x), _product)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint: (..., m_1, ..., m_k) to (..., n_1, ..., n_k)."""
        return self._along(self.check_out(y), lambda M, x: _product(M.mH, x))

    def A_dagger(self, y: Tensor, rtol: float | None = None) -> Tensor:
        """Apply the Moore-Penrose inverse, exactly: that of a Kronecker product is the product of the inverses.

        Parameters
        ----------
        y
            Of shape (..., m_1, ..., m_k).
        rtol
            Singular values of each matrix below ``rtol`` times its largest count as zero; ``None``: as in
            :func:`torch.linalg.pinv`.
        """
        return self.pinv(rtol)(self.check_out(y))

    def pinv(self, rtol: float | None = None) -> "Separable":
        """Give the Moore-Penrose inverse as an operator, decomposed once; ``rtol`` as for :meth:`A_dagger`."""
        return Separable([torch.linalg.pinv(M, rtol=rtol) for M in self.matrices])

    def solve(self, y: Tensor) -> Tensor:
        """Solve ``A x = y`` for square matrices, one axis after the other.

        Raises
        ------
        ValueError
            If a matrix is not square.
        torch.linalg.LinAlgError
            If one is singular.
        """
        for i, M in enumerate(self.matrices):
            if M.shape[0] != M.shape[1]:
                raise ValueError(f"solve needs square matrices, got matrices[{i}] of shape {tuple(M.shape)}")
        return self._along(self.check_out(y), _solution)

    def _along(self, x: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Apply to each axis, those first that shrink it."""
        k = len(self.in_shape)
        for i in sorted(range(k), key=lambda i: self.matrices[i].shape[0] / self.matrices[i].shape[1]):
            x = apply(self.matrices[i], x.movedim(i - k, -1)).movedim(-1, i - k)
        return x


def bicubic(
    factor: int,
    size: Sequence[int],
    a: float = -0.5,
    antialias: bool = True,
    boundary: str | Sequence[str] = "symmetric",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Separable:
    """Bicubic reduction of pictures by a whole factor, as an operator.

    Parameters
    ----------
    factor
        How many times smaller the output is.
    size
        Sizes of the picture's axes, all of them multiples of ``factor``.
    a
        The kernel's parameter: -0.5 is Keys' and MATLAB's, and torch's with ``antialias=True``; -0.75 is torch's
        without, and OpenCV's.
    antialias
        Stretch the kernel by the factor, so that no frequency folds.
    boundary
        One name for all axes or one an axis. ``"symmetric"``: the picture is mirrored with its edge pixels repeated
        (MATLAB's); ``"circular"``: it is periodic (the longitude of a panorama); ``"truncate"``: what lies outside is
        left out and the weights are scaled to sum to one (torch's with ``antialias=True``).
    dtype, device
        Of the operator's matrices.

    Returns
    -------
    Separable
        From (..., *size) to (..., *size / factor). Its ``A_dagger`` is exact.

    Raises
    ------
    ValueError
        If a size is no multiple of the factor, or a boundary unknown.

    Examples
    --------
    >>> bicubic(2, (4, 6))(torch.ones(3, 4, 6)).shape
    torch.Size([3, 2, 3])
    """
    check_range(factor, "factor", 1, integer=True)
    sides = [boundary] * len(size) if isinstance(boundary, str) else list(boundary)
    if len(sides) != len(size):
        raise ValueError(f"boundary must have one entry for each of the {len(size)} axes, got {len(sides)}")
    for n, side in zip(size, sides):
        check_option(side, "boundary", _BOUNDARIES)
        if n % factor or n < 1:
            raise ValueError(f"size must hold multiples of factor={factor}, got {tuple(size)}")
    rows = [_reduction(n, factor, a, factor if antialias else 1, side) for n, side in zip(size, sides)]
    return Separable([M.to(dtype=dtype, device=device) for M in rows])


def _reduction(n: int, factor: int, a: float, stretch: int, boundary: str) -> Tensor:
    """The matrix of one axis, (n / factor, n)."""
    centres = (torch.arange(n // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    reach = 2 * stretch + 1
    taps = centres.floor()[:, None] + torch.arange(1 - reach, reach + 1, dtype=torch.float64)
    weights = _keys((taps - centres[:, None]) / stretch, a)
    index = taps.long()
    if boundary == "circular":
        index = index.remainder(n)
    elif boundary == "symmetric":
        index = index.remainder(2 * n)
        index = torch.minimum(index, 2 * n - 1 - index)
    else:
        weights = weights * ((index >= 0) & (index < n))
        index = index.clamp(0, n - 1)
    return torch.zeros(len(centres), n, dtype=torch.float64).scatter_add_(1, index, weights / weights.sum(1, True))


def _keys(t: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel (Keys, 1981)."""
    t = t.abs()
    inside = ((a + 2) * t - (a + 3)) * t.square() + 1
    outside = a * (((t - 5) * t + 8) * t - 4)
    return torch.where(t <= 1, inside, torch.where(t < 2, outside, 0.0))


def _product(M: Tensor, x: Tensor) -> Tensor:
    """Apply a matrix along the last axis, in the wider of the two types."""
    dtype = torch.promote_types(x.dtype, M.dtype)
    return x.to(dtype) @ M.to(dtype).mT


def _solution(M: Tensor, y: Tensor) -> Tensor:
    """Solve along the last axis, in the wider of the two types."""
    dtype = torch.promote_types(y.dtype, M.dtype)
    columns = y.to(dtype).reshape(-1, y.shape[-1]).mT
    return torch.linalg.solve(M.to(dtype), columns).mT.reshape(y.shape)
