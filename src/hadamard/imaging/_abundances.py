"""The alternating steps of unmixing: bands' weights, endmembers, abundances, and how mixed each pixel is.

Pixels are columns of the abundances ``A`` (K, N) and rows of the data ``X`` (N, L), so that reductions over the few
endmembers run along the slow axis.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Penalty", "descend", "exponents", "hoyer", "multiply", "refit", "residuals", "scale", "settle", "weigh"]

_SWEEPS = 3  # of coordinate descent on the endmembers
_DAMPING = 0.3  # weight of the new guidance
_CHUNK = 1 << 16  # pixels whose residual is held at once


@dataclass(frozen=True)
class Penalty:
    """``weight * sum_n sum_k a_kn^{p_n}``, linearised from above at the current abundances.

    Attributes
    ----------
    weight
        At least 0.
    exponents
        p_n in (0, 1]: shape (N,), or one number.
    floor
        Added to the abundances: keeps the slope of a^p finite at 0.
    """

    weight: float
    exponents: Tensor
    floor: float = 1e-3

    def value(self, A: Tensor) -> float:
        """The penalty."""
        return self.weight * float(self._power(A, 0).sum()) if self.weight else 0.0

    def slope(self, A: Tensor) -> Tensor | float:
        """Its derivative: the tangent lies above the concave function."""
        return self.weight * self.exponents * self._power(A, -1) if self.weight else 0.0

    def _power(self, A: Tensor, shift: int) -> Tensor:
        return torch.exp(torch.log(A + self.floor) * (self.exponents + shift))  # several times quicker than pow


def hoyer(A: Tensor) -> Tensor:
    """How pure each column is: 1 with one non-zero entry, 0 where all are equal (1 where there is only one row)."""
    root = A.shape[0] ** 0.5
    if root == 1:
        return A.new_ones(A.shape[1])
    norm = A.square().sum(0).sqrt().clamp(min=torch.finfo(A.dtype).tiny)
    return ((root - A.sum(0) / norm) / (root - 1)).clamp(0, 1)


def exponents(A: Tensor, sparsity: str, h_max: float, before: Tensor | None = None) -> Tensor:
    """p_n = 1 - h_n, averaged with those before; 1 to begin with. Where they are not learned, what they are."""
    if sparsity != "adaptive":
        return A.new_full(A.shape[1:], 0.5 if sparsity == "l1/2" else 1.0)
    if before is None:
        return A.new_ones(A.shape[1:])
    return torch.lerp(before, 1 - hoyer(A).clamp(max=h_max), _DAMPING)


def weigh(norms: Tensor, squares: Tensor, loss: str) -> tuple[Tensor, float]:
    """Weights of the bands, under which the squared error touches the loss from above, and the loss."""
    if loss == "frobenius":
        return torch.full_like(norms, 0.5), 0.5 * float(norms.square().sum())
    least = 1e-8 * float(squares.mean().sqrt()) + torch.finfo(norms.dtype).tiny
    return 0.5 / norms.clamp(min=least), float(norms.sum())


def scale(norms: Tensor, A: Tensor, loss: str) -> float:
    """The loss at the start, the median band's for all of them, over the penalty with p = 1/2."""
    typical = norms.median()  # broken bands do not count
    each = typical if loss == "l21" else typical.square() / 2
    return len(norms) * float(each) / Penalty(1.0, A.new_tensor(0.5)).value(A)


def residuals(X: Tensor, A: Tensor, M: Tensor, squares: Tensor, AX: Tensor, AA: Tensor) -> Tensor:
    """Norm of each band's residual, shape (L,).

    In float64 from what the endmembers' step needs anyway, ``|x|^2 - 2 <m, A x> + <m, A A^T m>``, which is good to 1e-8
    of the band's norm; in float32, where this cancels, from the residual itself.
    """
    if X.dtype == torch.float64:
        return (squares - 2 * (M * AX).sum(0) + (M * (AA @ M)).sum(0)).clamp(min=0).sqrt()
    parts = zip(X.split(_CHUNK), A.split(_CHUNK, dim=1))
    return sum((x - a.mT @ M).square().sum(0) for x, a in parts).sqrt()


def refit(M: Tensor, AX: Tensor, AA: Tensor) -> Tensor:
    """Lower the squared error over the endmembers, one at a time, each to its minimum.

    The weights of the bands cancel here: bands are independent of each other.
    """
    M = M.clone()
    for _ in range(_SWEEPS):
        for k in range(M.shape[0]):
            M[k] = (M[k] + (AX[k] - AA[k] @ M) / AA[k, k].clamp(min=1e-12)).clamp(min=0)
    return M


def multiply(A: Tensor, H: Tensor, B: Tensor, slope: Tensor | float) -> Tensor:
    """One multiplicative step on ``<A, H A> - 2 <B, A> + <slope, A>`` over A >= 0; zeros stay zero."""
    tiny = torch.finfo(A.dtype).eps
    return A * (B.clamp(min=0) / (H @ A + slope / 2 + tiny))


def descend(A: Tensor, H: Tensor, B: Tensor, slope: Tensor | float, sweeps: int, *, exchange: bool = True) -> Tensor:
    """Coordinate descent on ``<A, H A> - 2 <B, A> + <slope, A>`` over A >= 0, for all pixels at once.

    With ``exchange`` two shares of a pixel change at a time, by what takes the minimum along the exchange: their sum
    stays. Without it, one. Nothing goes up.
    """
    A, rows = A.clone(), range(len(A))
    gradient = 2 * (H @ A - B) + slope
    for _ in range(sweeps):
        for i in rows:
            if not exchange:
                step = torch.maximum(gradient[i] / (-2 * H[i, i]), -A[i])
                A[i] += step
                gradient += 2 * H[i][:, None] * step
            for j in rows[i + 1 :] if exchange else ():
                change = 2 * (H[i] - H[j])
                curvature = (change[i] - change[j]).clamp(min=torch.finfo(A.dtype).tiny)
                step = torch.minimum(torch.maximum((gradient[j] - gradient[i]) / curvature, -A[i]), A[j])
                A[i] += step
                A[j] -= step
                gradient += change[:, None] * step
    return A


def settle(A: Tensor, H: Tensor, B: Tensor, slope: Tensor | float, sweeps: int, singly: bool) -> Tensor:
    """Sweeps of :func:`descend` by exchange; with ``singly`` also one share at a time after each."""
    for _ in range(sweeps):
        A = descend(A, H, B, slope, 1)
        if singly:
            A = descend(A, H, B, slope, 1, exchange=False)
    return A
