"""Maps of a matrix that change its singular values: polar factor, thresholding, clipping; the nuclear norm."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Inexact, Real
from torch import Tensor

from hadamard.lowrank import gram
from hadamard.proximal.base import indicator
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["Nuclear", "SpectralBall", "lmo_spectral", "polar", "spectral_ball", "svt"]


def polar(M: Inexact[Tensor, "*batch m n"], method: str = "svd") -> Inexact[Tensor, "*batch m n"]:
    """Find the nearest matrix whose singular values are all 1: ``U V^H`` for ``M = U diag(s) V^H``.

    Parameters
    ----------
    M
        Real or complex matrices of any shape.
    method
        ``"svd"``: exact; where ``M`` has zero singular values the factor is completed by arbitrary directions.
        ``"newton_schulz"``: matrix products only, for accelerators. Singular values above 1e-5 of ``M``'s Frobenius
        norm become 1 up to rounding; smaller ones come out between 0 and 1, and zero stays zero.

    Returns
    -------
    Tensor
        The polar factor; half precision is computed in single precision. Differentiable where ``M`` has full rank.

    Raises
    ------
    TypeError
        If ``M`` is not a floating or complex tensor.
    ValueError
        If ``M`` has fewer than two dimensions, is empty or not finite, or ``method`` is unknown.

    Notes
    -----
    The Newton-Schulz schedule takes ten quintic steps with the coefficients of [1]_, which lift every singular value
    above 1e-5 into (0.67, 1.2), and four steps of the cubically convergent quintic ``(15 x - 10 x^3 + 3 x^5) / 8``,
    which take those to 1.

    References
    ----------
    .. [1] K. Jordan et al. Muon: an optimizer for hidden layers in neural networks. 2024.

    Examples
    --------
    >>> polar(torch.tensor([[0.0, -2.0], [3.0, 0.0]])).round(decimals=4) + 0.0
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    check_tensor(M, "M", shape=(None, None))
    check_option(method, "method", ("svd", "newton_schulz"))
    X = M.float() if M.dtype in (torch.half, torch.bfloat16) else M
    return (_SpectralMap.apply(X, None, "svd") if method == "svd" else _newton_schulz(X)).to(M.dtype)


def lmo_spectral(G: Inexact[Tensor, "*batch m n"], method: str = "svd") -> Inexact[Tensor, "*batch m n"]:
    """Minimise ``<G, S>`` over the matrices ``S`` whose singular values are at most 1: minus the polar factor of ``G``.

    Parameters
    ----------
    G
        Real or complex matrices, typically a gradient.
    method
        As in :func:`polar`.

    Returns
    -------
    Tensor
        A minimiser; the minimum is minus the nuclear norm of ``G``.

    Examples
    --------
    >>> lmo_spectral(torch.tensor([[2.0, 0.0], [0.0, -3.0]])) + 0.0
    tensor([[-1.,  0.],
            [ 0.,  1.]])
    """
    return -polar(G, method)


def svt(M: Inexact[Tensor, "*batch m n"], t: float | Tensor, via: str = "auto") -> Inexact[Tensor, "*batch m n"]:
    """Shrink every singular value by ``t``: the proximal map of ``t`` times the nuclear norm.

    Parameters
    ----------
    M
        Real or complex matrices.
    t
        Threshold, at least 0: a number, or a real tensor that broadcasts against the batch, one threshold a matrix.
    via
        ``"svd"``: by the singular value decomposition. ``"gram"``: by the eigenvectors of the smaller Gram matrix,
        formed in double precision, in time O(m n min(m, n)) with one small eigenproblem. ``"auto"``: ``"gram"`` where
        one side is at least twice the other.

    Returns
    -------
    Tensor
        ``U diag(max(s - t, 0)) V^H``; half precision is computed in single precision. Differentiable in ``M`` and
        ``t``, also where singular values are equal or zero.

    Raises
    ------
    TypeError
        If ``M`` is not a floating or complex tensor.
    ValueError
        If ``M`` has fewer than two dimensions, is empty or not finite, ``t`` is negative or does not fit the batch, or
        ``via`` is unknown.

    Notes
    -----
    The Gram matrix squares the singular values, so that those below 1e-8 of the largest are lost to rounding: with
    ``t`` above 1e-6 of the largest this changes the result by less than 1e-9 of it.

    Examples
    --------
    >>> svt(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), 2.0)
    tensor([[1., 0.],
            [0., 0.],
            [0., 0.]])
    """
    check_tensor(M, "M", shape=(None, None))
    check_option(via, "via", ("auto", "gram", "svd"))
    rows, columns = M.shape[-2:]
    if via == "auto":
        via = "gram" if max(rows, columns) >= 2 * min(rows, columns) else "svd"
    X = M.float() if M.dtype in (torch.half, torch.bfloat16) else M
    check_range(t, "t", 0, elementwise=True)
    threshold = torch.as_tensor(t, dtype=X.dtype.to_real(), device=X.device)
    try:
        threshold = threshold.expand(M.shape[:-2])
    except RuntimeError:
        raise ValueError(f"t must broadcast to shape {tuple(M.shape[:-2])}, got {tuple(threshold.shape)}") from None
    return _SpectralMap.apply(X, threshold, via).to(M.dtype)


def spectral_ball(
    M: Inexact[Tensor, "*batch m n"], r: float | Tensor = 1.0, via: str = "auto"
) -> Inexact[Tensor, "*batch m n"]:
    """Project on the matrices whose largest singular value is at most ``r``.

    Parameters
    ----------
    M
        Real or complex matrices.
    r
        Radius, at least 0: a number, or a real tensor that broadcasts against the batch.
    via
        As in :func:`svt`.

    Returns
    -------
    Tensor
        ``U diag(min(s, r)) V^H``, computed as ``M - svt(M, r)``. Errors are those of :func:`svt`.

    Examples
    --------
    >>> spectral_ball(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 2.0)
    tensor([[2., 0.],
            [0., 1.]])
    """
    return M - svt(M, r, via)


@dataclass(frozen=True)
class Nuclear:
    """The nuclear norm, ``weight`` times the sum of the singular values of the last two dimensions.

    Parameters
    ----------
    weight
        Factor, at least 0.

    Examples
    --------
    >>> Nuclear().value(torch.tensor([[3.0, 0.0], [0.0, -1.0]]))
    tensor(4.)
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.weight, "weight", 0)

    def value(self, x: Inexact[Tensor, "*batch m n"]) -> Real[Tensor, "*batch"]:
        """Evaluate ``weight`` times the sum of the singular values."""
        return self.weight * torch.linalg.matrix_norm(x, "nuc")

    def prox(self, x: Inexact[Tensor, "*batch m n"], step: float | Tensor) -> Inexact[Tensor, "*batch m n"]:
        """Shrink every singular value by ``step * weight``."""
        return svt(x, step * self.weight)

    def conjugate(self, s: Inexact[Tensor, "*batch m n"]) -> Real[Tensor, "*batch"]:
        """Give 0 where no singular value exceeds ``weight``, and ``inf`` elsewhere."""
        return indicator(torch.linalg.matrix_norm(s, 2), self.weight)


@dataclass(frozen=True)
class SpectralBall:
    """The indicator of the matrices with singular values at most ``radius``; its conjugate scales the nuclear norm.

    Parameters
    ----------
    radius
        Greatest singular value, at least 0.

    Examples
    --------
    >>> SpectralBall(2.0).project(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([[2., 0.],
            [0., 1.]])
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.radius, "radius", 0)

    def value(self, x: Inexact[Tensor, "*batch m n"]) -> Real[Tensor, "*batch"]:
        """Give 0 in the ball (up to rounding) and ``inf`` outside."""
        return indicator(torch.linalg.matrix_norm(x, 2), self.radius)

    def project(self, x: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch m n"]:
        """Clip the singular values."""
        return spectral_ball(x, self.radius)

    def prox(self, x: Inexact[Tensor, "*batch m n"], step: float | Tensor) -> Inexact[Tensor, "*batch m n"]:
        """Project, whatever ``step``."""
        return self.project(x)

    def conjugate(self, s: Inexact[Tensor, "*batch m n"]) -> Real[Tensor, "*batch"]:
        """Evaluate ``radius`` times the nuclear norm."""
        return self.radius * torch.linalg.matrix_norm(s, "nuc")

    def grad_conjugate(self, s: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch m n"]:
        """Give ``radius * U V^H`` over the directions of nonzero singular values; 0 where ``s`` is 0."""
        U, sigma, Vh = torch.linalg.svd(s, full_matrices=False)
        floor = torch.finfo(s.dtype).eps * max(s.shape[-2:]) * sigma[..., :1]
        return self.radius * (U * (sigma > floor)[..., None, :]) @ Vh


class _SpectralMap(torch.autograd.Function):
    """``U diag(f(s)) V^H`` with ``f(s) = max(s - t, 0)``, or ``f = 1`` where ``t`` is ``None``.

    ``short`` and ``long`` hold the singular vectors of the shorter and of the longer side.
    """

    @staticmethod
    def forward(ctx: Any, M: Tensor, t: Tensor | None, via: str) -> Tensor:
        wide = M.shape[-1] > M.shape[-2]
        if via == "gram":
            squares, short = torch.linalg.eigh(gram(M if wide else M.mH))
            s, long = squares.clamp(min=0).sqrt(), M
        else:
            U, s, Vh = torch.linalg.svd(M, full_matrices=False)
            short, long = (U, Vh.mH) if wide else (Vh.mH, U)
        f = torch.ones_like(s) if t is None else torch.clamp(s - t[..., None], min=0)
        ctx.save_for_backward(short, s, long, f, t)
        ctx.via, ctx.wide = via, wide
        if via == "svd":
            return (U * f[..., None, :]) @ Vh
        factor = ((short * _divide(f, s)[..., None, :]) @ short.mH).to(M.dtype)
        return factor @ M if wide else M @ factor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Apply the derivative, which is self-adjoint: divided differences of ``f``, taken as an odd function."""
        V, s, U, f, t = ctx.saved_tensors
        G = (grad.mH if ctx.wide else grad).to(V.dtype)
        if ctx.via == "gram":
            U = ((U.mH if ctx.wide else U).to(V.dtype) @ V) * _divide(torch.ones_like(s), s)[..., None, :]
        GV = G @ V
        inner = U.mH @ GV
        slope = torch.zeros_like(s) if t is None else (f > 0).to(s.dtype)
        column, row = (..., slice(None), None), (..., None, slice(None))
        close = torch.finfo(s.dtype).eps ** 0.5 * s.amax(-1)[..., None, None]
        hermitian = _divide(f[column] - f[row], s[column] - s[row], close, slope[row])
        skew = _divide(f[column] + f[row], s[column] + s[row])
        core = (hermitian * (inner + inner.mH) + skew * (inner - inner.mH)) / 2
        outside = (GV - U @ inner) * _divide(f, s)[..., None, :]
        grad_M = ((U @ core + outside) @ V.mH).to(grad.dtype)
        grad_t = None if t is None else -(inner.diagonal(dim1=-2, dim2=-1).real * slope).sum(-1).to(t.dtype)
        return (grad_M.mH if ctx.wide else grad_M), grad_t, None


def _divide(over: Tensor, under: Tensor, zero: float | Tensor = 0.0, otherwise: float | Tensor = 0.0) -> Tensor:
    """``over / under``, and ``otherwise`` where ``abs(under) <= zero``."""
    vanishes = under.abs() <= zero
    return torch.where(vanishes, otherwise, over / torch.where(vanishes, 1, under))


def _newton_schulz(X: Tensor) -> Tensor:
    """Polar factor by matrix products."""
    wide = X.shape[-1] > X.shape[-2]
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp(min=torch.finfo(X.dtype).tiny)
    for a, b, c in 10 * [(3.4445, -4.7750, 2.0315)] + 4 * [(15 / 8, -10 / 8, 3 / 8)]:
        G = X @ X.mH if wide else X.mH @ X
        P = b * G + c * G @ G
        X = a * X + (P @ X if wide else X @ P)
    return X
