"""A few long rows, handled through their inner products.

For m rows of n numbers, m much smaller than n, everything that is equivariant under rotations of the long side
(projections on leading subspaces, damped inverses, distances, robust means) is a combination of the rows. Its m
coefficients follow from the Gram matrix ``K = X X^H`` alone. So a method reads the rows once to form K, works on an
m x m matrix in double precision, and reads them once more to combine them: O(m n) and O(m^2 n) work that streams, and
nothing of size n x n. Gram matrices of pieces of the columns add, whether the pieces are parameters of a network or
shards on several machines.
"""

import torch
from jaxtyping import Float64, Inexact
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["combine", "gram", "gram_cholesky", "gram_coordinates"]

_CHUNK = 1 << 14  # columns converted to double precision at a time: they stay in the cache


def gram(X: Inexact[Tensor, "*batch m n"], Y: Inexact[Tensor, "*batch k n"] | None = None) -> Inexact[Tensor, "..."]:
    """Compute the inner products of rows, ``X Y^H``, in double precision whatever the dtype of the rows.

    Parameters
    ----------
    X, Y
        Rows, real or complex; ``Y`` is ``X`` by default. Products of single- and half-precision numbers are exact, so
        that the result is positive semidefinite up to rounding of its own precision. NaN and infinity go through.

    Returns
    -------
    Tensor
        Of shape (*batch, m, k), float64 or complex128. Differentiable.

    Raises
    ------
    TypeError
        If a matrix is not a floating or complex tensor.
    ValueError
        If one has fewer than two dimensions or is empty, or they have different numbers of columns.

    Examples
    --------
    >>> gram(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    tensor([[25.,  3.],
            [ 3.,  1.]], dtype=torch.float64)
    """
    check_tensor(X, "X", shape=(None, None), finite=False)
    if Y is not None:
        check_tensor(Y, "Y", shape=(None, X.shape[-1]), finite=False)
    total = _double(X.new_zeros(()))
    # An accelerator has no cache to stay in, and memory for larger chunks
    chunk = _CHUNK if X.device.type == "cpu" else 64 * _CHUNK
    for start in range(0, X.shape[-1], chunk):
        left = _double(X[..., start : start + chunk])
        right = left if Y is None else _double(Y[..., start : start + chunk])
        total = total + left @ right.mH
    return total


def combine(coefficients: Inexact[Tensor, "*k m"], X: Inexact[Tensor, "m n"]) -> Inexact[Tensor, "*k n"]:
    """Combine rows, ``coefficients @ X``, in the dtype of the rows (half precision is summed in single).

    Parameters
    ----------
    coefficients
        One set of coefficients, or several.
    X
        Rows. Where a row's coefficients are all 0 it is not looked at: it may hold NaN.

    Examples
    --------
    >>> combine(torch.tensor([2.0, 0.0]), torch.tensor([[1.0, 3.0], [torch.nan, 0.0]]))
    tensor([2., 6.])
    """
    check_tensor(X, "X", ndim=2, finite=False)
    check_tensor(coefficients, "coefficients", ndim=(1, 2), shape=(len(X),))
    used = (coefficients != 0).reshape(-1, len(X)).any(0)
    if not bool(used.all()):
        coefficients, X = coefficients[..., used], X[used]
    if X.dtype not in (torch.half, torch.bfloat16):
        return coefficients.to(X.dtype) @ X
    chunks = X.split(64 * _CHUNK, dim=-1)
    return torch.cat([(coefficients.float() @ chunk.float()).to(X.dtype) for chunk in chunks], dim=-1)


def gram_cholesky(K: Float64[Tensor, "*batch m m"], ridge: float) -> Float64[Tensor, "*batch m m"]:
    """Factor ``K + ridge I = L L^T`` with a lower triangular ``L``.

    Parameters
    ----------
    K
        Gram matrices. Equal or zero rows are no hindrance.
    ridge
        What is added to the diagonal, above 0. Where it is lost to the rounding of ``K``, as much as that is added.

    Raises
    ------
    ValueError
        If ``K`` is not positive semidefinite up to rounding.

    Examples
    --------
    >>> gram_cholesky(torch.tensor([[0.0, 0.0], [0.0, 3.0]], dtype=torch.float64), 1.0)
    tensor([[1., 0.],
            [0., 2.]], dtype=torch.float64)
    """
    check_tensor(K, "K", shape=(None, None), dtype=torch.float64)
    check_range(ridge, "ridge", 0, None, closed="neither")
    m = K.shape[-1]
    identity = torch.eye(m, dtype=K.dtype, device=K.device)
    L, info = torch.linalg.cholesky_ex(K + ridge * identity)
    if bool(info.any()):
        rounding = 4 * m * torch.finfo(K.dtype).eps * K.diagonal(dim1=-2, dim2=-1).sum(-1)
        L, info = torch.linalg.cholesky_ex(K + (ridge + rounding[..., None, None]) * identity)
        if bool(info.any()):
            raise ValueError("K must be positive semidefinite, got a matrix with negative eigenvalues")
    return L


def gram_coordinates(
    K: Float64[Tensor, "m m"], rtol: float = 1e-12
) -> tuple[Float64[Tensor, "m r"], Float64[Tensor, "r m"]]:
    """Find coordinates of rows in an orthonormal basis of their span, from their Gram matrix.

    Parameters
    ----------
    K
        Gram matrix of rows X.
    rtol
        Directions whose eigenvalue is at most ``rtol`` of the largest are dropped.

    Returns
    -------
    Z : Tensor
        Coordinates: ``Z Z^T = K`` up to what was dropped. Leading directions first.
    B : Tensor
        Coefficients of the basis: ``B X`` has orthonormal rows, and ``X = Z B X``.

    Examples
    --------
    >>> Z, B = gram_coordinates(torch.tensor([[4.0, 4.0], [4.0, 4.0]], dtype=torch.float64))
    >>> Z.abs()
    tensor([[2.],
            [2.]], dtype=torch.float64)
    """
    check_tensor(K, "K", ndim=2, dtype=torch.float64)
    squares, U = (x.flip(-1) for x in torch.linalg.eigh(K))
    kept = squares > rtol * squares[0].clamp(min=0)
    s, U = squares[kept].sqrt(), U[:, kept]
    return U * s, (U / s).T


def _double(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)
