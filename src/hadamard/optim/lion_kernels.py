"""Constraints and penalties for Lion-K: convex functions K*, each known by its value and by the gradient of K.

A function here takes a whole tensor as one variable. :class:`~hadamard.proximal.LInfBall` (Lion's own),
:class:`~hadamard.proximal.L2Ball` (rows), :class:`~hadamard.proximal.SpectralBall` and
:class:`~hadamard.proximal.SquaredL2` serve as well. With weight decay w the optimizer solves ``min f(x) +
K*(w x) / w``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.proximal import SpectralBall, indicator, keep_top_k, polar
from hadamard.validation import check_range

__all__ = ["EntropyBox", "LassoBox", "LqBall", "NewtonSchulzBall", "RidgeBox", "SparseBox"]


@dataclass(frozen=True)
class LqBall:
    """The ball ``||x||_q <= 1``; K is the p-norm with ``1/p + 1/q = 1``.

    Parameters
    ----------
    q
        Exponent, above 1 and finite. The closer to 1, the sparser the solutions; the larger, the closer to Lion.

    Examples
    --------
    >>> LqBall(2.0).grad_conjugate(torch.tensor([3.0, -4.0]))
    tensor([ 0.6000, -0.8000])
    >>> LqBall(2.0).distance(torch.tensor([3.0, -4.0]))
    tensor(4.)
    """

    q: float

    def __post_init__(self) -> None:
        check_range(self.q, "q", 1, float("inf"), closed="neither")

    def value(self, x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Give 0 in the ball (up to rounding) and ``inf`` outside."""
        return indicator(torch.linalg.vector_norm(x, self.q), 1.0)

    def distance(self, x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Evaluate the distance to the ball in the q-norm."""
        return (torch.linalg.vector_norm(x, self.q) - 1).clamp(min=0)

    def conjugate(self, s: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Evaluate ``||s||_p``."""
        return torch.linalg.vector_norm(s, self.q / (self.q - 1))

    def grad_conjugate(self, s: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Give ``sign(s) |s|^(p-1) / ||s||_p^(p-1)``, 0 where ``s`` is 0; the largest entry is divided out first."""
        p = self.q / (self.q - 1)
        largest = s.abs().amax()
        scaled = s / torch.where(largest > 0, largest, 1)
        powers = scaled.sign() * scaled.abs() ** (p - 1)
        norm = torch.linalg.vector_norm(scaled, p, dtype=torch.promote_types(s.dtype, torch.float32))
        return powers / torch.where(norm > 0, norm ** (p - 1), 1).to(s.dtype)


@dataclass(frozen=True)
class NewtonSchulzBall(SpectralBall):
    """:class:`~hadamard.proximal.SpectralBall` with the step by matrix products instead of a decomposition.

    Singular values of the momentum above 1e-5 of its Frobenius norm take part in full, smaller ones in part.

    Examples
    --------
    >>> NewtonSchulzBall().grad_conjugate(torch.diag(torch.tensor([3.0, -0.5]))).round(decimals=4) + 0.0
    tensor([[ 1.,  0.],
            [ 0., -1.]])
    """

    def grad_conjugate(self, s: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """Give ``radius`` times the polar factor of ``s``."""
        return self.radius * polar(s, method="newton_schulz")


@dataclass(frozen=True)
class SparseBox:
    """The vectors with ``max |x| <= 1`` and ``sum |x| <= k``; K sums the k largest moduli.

    Parameters
    ----------
    k
        How many entries of each tensor move in a step, at least 1.

    Examples
    --------
    >>> SparseBox(2).grad_conjugate(torch.tensor([0.1, -3.0, 2.0]))
    tensor([ 0., -1.,  1.])
    >>> SparseBox(1).project(torch.tensor([2.0, -1.5, 0.0]))
    tensor([ 0.7500, -0.2500,  0.0000])
    """

    k: int

    def __post_init__(self) -> None:
        check_range(self.k, "k", 1, integer=True)

    def value(self, x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Give 0 in the set (up to rounding) and ``inf`` outside."""
        return indicator(x.abs().amax(), 1.0) + indicator(x.abs().sum(), float(self.k))

    def project(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Shrink all moduli by the one number that brings their sum, after clipping at 1, down to ``k``."""
        low, high = x.new_zeros(()), x.abs().amax()
        for _ in range(60 if (x.abs().clamp(max=1).sum() > self.k) else 0):
            middle = (low + high) / 2
            above = (x.abs() - middle).clamp(0, 1).sum() > self.k
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        shift = high if x.abs().clamp(max=1).sum() > self.k else low
        return x.sign() * (x.abs() - shift).clamp(0, 1)

    def conjugate(self, s: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Sum the ``k`` largest moduli."""
        return s.abs().flatten().topk(min(self.k, s.numel())).values.sum()

    def grad_conjugate(self, s: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Give the sign of the ``k`` largest entries (of equal ones the first), 0 elsewhere."""
        return keep_top_k(s.flatten(), self.k).sign().view(s.shape)


@dataclass(frozen=True)
class _Box:
    """What the penalties inside the box ``max |x| <= 1`` share."""

    e: float

    def __post_init__(self) -> None:
        check_range(self.e, "e", 0, None, closed="neither")

    def project(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Clip at -1 and 1."""
        return x.clamp(-1, 1)


class LassoBox(_Box):
    """``e * sum |x|`` in the box ``max |x| <= 1``; K is ``sum max(|m| - e, 0)``, sign with a dead zone.

    Parameters
    ----------
    e
        Weight of the 1-norm and half-width of the dead zone, above 0.

    Examples
    --------
    >>> LassoBox(0.5).grad_conjugate(torch.tensor([0.4, -0.6]))
    tensor([ 0., -1.])
    """

    def value(self, x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Evaluate ``e * sum |x|``; ``inf`` outside the box."""
        return self.e * x.abs().sum() + indicator(x.abs().amax(), 1.0)

    def conjugate(self, s: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Evaluate ``sum max(|s| - e, 0)``."""
        return (s.abs() - self.e).clamp(min=0).sum()

    def grad_conjugate(self, s: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Give the sign where ``|s| > e``, 0 elsewhere."""
        return torch.where(s.abs() > self.e, s.sign(), 0)


class RidgeBox(_Box):
    """``e / 2 * sum x^2`` in the box ``max |x| <= 1``; K is Huber's function.

    Parameters
    ----------
    e
        Weight of the penalty and half-width of the linear zone of the step, above 0.

    Examples
    --------
    >>> RidgeBox(2.0).grad_conjugate(torch.tensor([1.0, -3.0]))
    tensor([ 0.5000, -1.0000])
    """

    def value(self, x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Evaluate ``e / 2 * sum x^2``; ``inf`` outside the box."""
        return self.e / 2 * x.square().sum() + indicator(x.abs().amax(), 1.0)

    def conjugate(self, s: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Evaluate Huber's function: ``s^2 / (2 e)`` up to ``e``, ``|s| - e / 2`` beyond."""
        return torch.where(s.abs() <= self.e, s.square() / (2 * self.e), s.abs() - self.e / 2).sum()

    def grad_conjugate(self, s: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Give ``s / e``, clipped at -1 and 1."""
        return (s / self.e).clamp(-1, 1)


class EntropyBox(_Box):
    """``e * sum (1 - sqrt(1 - x^2))`` in the box ``max |x| <= 1``; K is ``sum sqrt(m^2 + e^2) - e``, a smooth sign.

    Parameters
    ----------
    e
        Weight of the penalty and width of the smooth zone of the step, above 0.

    Examples
    --------
    >>> EntropyBox(3.0).grad_conjugate(torch.tensor([4.0]))
    tensor([0.8000])
    """

    def value(self, x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Evaluate ``e * sum (1 - sqrt(1 - x^2))``; ``inf`` outside the box."""
        return self.e * (1 - (1 - x.square()).clamp(min=0).sqrt()).sum() + indicator(x.abs().amax(), 1.0)

    def conjugate(self, s: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Evaluate ``sum sqrt(s^2 + e^2) - e``."""
        return ((s.square() + self.e**2).sqrt() - self.e).sum()

    def grad_conjugate(self, s: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Give ``s / sqrt(s^2 + e^2)``."""
        return s / (s.square() + self.e**2).sqrt()
