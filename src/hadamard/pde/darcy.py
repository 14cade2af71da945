"""Darcy's law ``-div(a grad u) = f`` on a square, u = 0 on its boundary: finite volumes."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.solvers.cg import cg
from hadamard.validation import check_range, check_tensor

__all__ = ["darcy", "darcy_operator"]


def darcy(
    a: Float[Tensor, "*batch n m"], f: Float[Tensor, "*#batch n m"] | float = 1.0, *, length: float = 1.0,
    tol: float = 1e-6, max_iter: int = 1000,
) -> Float[Tensor, "*batch n m"]:  # fmt: skip
    """Solve for the pressure: preconditioned conjugate gradients on the five-point stencil.

    Parameters
    ----------
    a
        Permeability in each cell, > 0; it may jump.
    f
        Source in each cell.
    length
        Of the side along each axis; cells are ``length / n`` by ``length / m``.
    tol
        Relative residual at which a system is finished.
    max_iter
        Greatest number of iterations.

    Returns
    -------
    Tensor
        Pressure at the midpoints of the cells; differentiable in ``a`` and ``f`` at the cost of one more solve.

    Raises
    ------
    ValueError
        If ``a`` is not positive, or an argument is out of range.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If a system did not meet ``tol`` (in float32 take ``tol >= 1e-5``).

    Notes
    -----
    Second order where ``a`` is smooth. The preconditioner is the inverse of the Laplacian by sine transforms, so the
    number of iterations depends on the contrast ``max(a) / min(a)`` and not on the grid.

    Examples
    --------
    >>> u = darcy(torch.ones(16, 16, dtype=torch.float64))
    >>> round(float(u.max()), 2)  # the torsion problem: 0.0737 in the limit
    0.07
    """
    check_tensor(a, "a", dtype="floating")
    if a.ndim < 2 or min(a.shape[-2:]) < 2:
        raise ValueError(f"a must have shape (..., n, m) with at least 2 cells each way, got {tuple(a.shape)}")
    check_range(a, "a", 0, None, closed="neither", elementwise=True)
    check_range(length, "length", 0, None, closed="neither")
    b = torch.as_tensor(f, dtype=a.dtype, device=a.device).expand(a.shape)
    check_tensor(b, "f", dtype="floating")
    spacing = tuple(length / n for n in a.shape[-2:])
    sines, rates = zip(*(_sine_basis(n, h, a) for n, h in zip(a.shape[-2:], spacing)))
    typical = a.detach().mean((-2, -1), keepdim=True) * (rates[0][:, None] + rates[1])

    def precondition(r: Tensor) -> Tensor:
        return sines[0].mT @ ((sines[0] @ r @ sines[1].mT) / typical) @ sines[1]

    def matvec(u: Tensor) -> Tensor:
        return darcy_operator(a, u, length=length)

    return cg(matvec, b, precondition=precondition, tol=tol, max_iter=max_iter, ndim=2).value


def darcy_operator(
    a: Float[Tensor, "*batch n m"], u: Float[Tensor, "*batch n m"], *, length: float = 1.0
) -> Float[Tensor, "*batch n m"]:
    """``-div(a grad u)`` in each cell: fluxes through faces, with the harmonic mean of the two permeabilities.

    Examples
    --------
    >>> darcy_operator(torch.ones(2, 2), torch.ones(2, 2))  # all flux leaves through the boundary, half a cell away
    tensor([[16., 16.],
            [16., 16.]])
    """
    total = torch.zeros_like(a * u)
    for axis, n in ((-2, a.shape[-2]), (-1, a.shape[-1])):
        left, right = a.narrow(axis, 0, n - 1), a.narrow(axis, 1, n - 1)
        inner = 2 * left * right / (left + right) * u.diff(dim=axis)
        first, last = (
            2 * a.narrow(axis, 0, 1) * u.narrow(axis, 0, 1),
            -2 * a.narrow(axis, n - 1, 1) * u.narrow(axis, n - 1, 1),
        )
        total = total - torch.cat([first, inner, last], axis).diff(dim=axis) * (n / length) ** 2
    return total


def _sine_basis(n: int, h: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal eigenvectors (rows) and eigenvalues of (-1, 2, -1) / h^2 between walls half a cell away."""
    k = torch.arange(1, n + 1, dtype=torch.float64, device=like.device)
    basis = torch.sin(math.pi / n * k[:, None] * (k - 0.5)) * math.sqrt(2 / n)
    basis[-1] /= math.sqrt(2)
    return basis.to(like.dtype), ((2 / h * torch.sin(math.pi * k / (2 * n))) ** 2).to(like.dtype)
