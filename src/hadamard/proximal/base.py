"""Convex functions: value, proximal map, conjugate; norms, their balls, and half the squared norm."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Inexact, Real
from torch import Tensor

from hadamard.proximal.projections import l2_ball
from hadamard.proximal.thresholds import soft, soft_group, squared_modulus
from hadamard.validation import check_range

__all__ = ["L1", "L2", "ConvexFunction", "L2Ball", "LInfBall", "SquaredL2", "indicator"]

Dims = int | tuple[int, ...]


@runtime_checkable
class ConvexFunction(Protocol):
    """What a convex function ``f`` can be asked; ``value`` always, and whichever of the following are known.

    ========================  ==========================================================================
    ``value(x)``              ``f(x)``, one number a variable; ``inf`` outside the domain
    ``prox(x, step)``         the minimiser of ``step * f(u) + ||u - x||^2 / 2`` over ``u``
    ``conjugate(s)``          the conjugate function ``f*(s)``, the largest ``<s, x> - f(x)`` over ``x``
    ``grad_conjugate(s)``     the ``x`` that attains it; of several the one of smallest norm, 0 for ``s = 0``
    ``project(x)``            the nearest point of the domain
    ========================  ==========================================================================

    A method that is not known is absent. The inner product is the real part of ``sum(conj(s) * x)``. A function of this
    module says which dimensions make up one variable; the others are batch dimensions, and ``value`` and ``conjugate``
    have their shape.

    Examples
    --------
    >>> isinstance(L1(), ConvexFunction)
    True
    """

    def value(self, x: Tensor) -> Tensor:
        """Evaluate the function."""


@dataclass(frozen=True)
class L1:
    """The 1-norm, ``weight * sum(abs(x))``.

    Parameters
    ----------
    weight
        Factor, at least 0.
    dim
        Dimension(s) that make up one variable.

    Examples
    --------
    >>> L1(2.0).value(torch.tensor([1.0, -3.0]))
    tensor(8.)
    >>> L1(2.0).prox(torch.tensor([1.0, -3.0]), 0.5)
    tensor([ 0., -2.])
    """

    weight: float = 1.0
    dim: Dims = -1

    def __post_init__(self) -> None:
        check_range(self.weight, "weight", 0)

    def value(self, x: Inexact[Tensor, "..."]) -> Real[Tensor, "..."]:
        """Evaluate ``weight * sum(abs(x))``."""
        return self.weight * x.abs().sum(self.dim)

    def prox(self, x: Inexact[Tensor, "*shape"], step: float | Tensor) -> Inexact[Tensor, "*shape"]:
        """Shrink every modulus by ``step * weight``."""
        return soft(x, step * self.weight)

    def conjugate(self, s: Inexact[Tensor, "..."]) -> Real[Tensor, "..."]:
        """Give 0 where no modulus exceeds ``weight``, and ``inf`` elsewhere."""
        return indicator(s.abs().amax(self.dim), self.weight)


@dataclass(frozen=True)
class L2:
    """The 2-norm, ``weight * sqrt(sum(abs(x)^2))``; summed over the batch, the group norm.

    Parameters
    ----------
    weight
        Factor, at least 0.
    dim
        Dimension(s) that make up one variable.

    Examples
    --------
    >>> L2().prox(torch.tensor([3.0, 4.0]), 1.0)
    tensor([2.4000, 3.2000])
    """

    weight: float = 1.0
    dim: Dims = -1

    def __post_init__(self) -> None:
        check_range(self.weight, "weight", 0)

    def value(self, x: Inexact[Tensor, "..."]) -> Real[Tensor, "..."]:
        """Evaluate ``weight * ||x||``."""
        return self.weight * _norm(x, self.dim)

    def prox(self, x: Inexact[Tensor, "*shape"], step: float | Tensor) -> Inexact[Tensor, "*shape"]:
        """Shrink the norm by ``step * weight``."""
        return soft_group(x, step * self.weight, self.dim)

    def conjugate(self, s: Inexact[Tensor, "..."]) -> Real[Tensor, "..."]:
        """Give 0 where the norm does not exceed ``weight``, and ``inf`` elsewhere."""
        return indicator(_norm(s, self.dim), self.weight)


@dataclass(frozen=True)
class SquaredL2:
    """Half the squared 2-norm, ``weight / 2 * sum(abs(x)^2)``.

    Parameters
    ----------
    weight
        Factor, above 0.
    dim
        Dimension(s) that make up one variable.

    Examples
    --------
    >>> SquaredL2(2.0).value(torch.tensor([3.0, 4.0]))
    tensor(25.)
    >>> SquaredL2(2.0).grad_conjugate(torch.tensor([3.0, 4.0]))
    tensor([1.5000, 2.0000])
    """

    weight: float = 1.0
    dim: Dims = -1

    def __post_init__(self) -> None:
        check_range(self.weight, "weight", 0, closed="neither")

    def value(self, x: Inexact[Tensor, "..."]) -> Real[Tensor, "..."]:
        """Evaluate ``weight / 2 * ||x||^2``."""
        return self.weight / 2 * squared_modulus(x).sum(self.dim)

    def prox(self, x: Inexact[Tensor, "*shape"], step: float | Tensor) -> Inexact[Tensor, "*shape"]:
        """Divide by ``1 + step * weight``."""
        check_range(step, "step", 0, elementwise=True)
        return x / (1 + step * self.weight)

    def conjugate(self, s: Inexact[Tensor, "..."]) -> Real[Tensor, "..."]:
        """Evaluate ``||s||^2 / (2 weight)``."""
        return squared_modulus(s).sum(self.dim) / (2 * self.weight)

    def grad_conjugate(self, s: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """Divide by ``weight``."""
        return s / self.weight


@dataclass(frozen=True)
class LInfBall:
    """The indicator of ``max(abs(x)) <= radius``; its conjugate is ``radius`` times the 1-norm.

    Parameters
    ----------
    radius
        Greatest modulus, at least 0.
    dim
        Dimension(s) that make up one variable.

    Examples
    --------
    >>> ball = LInfBall(0.5)
    >>> ball.project(torch.tensor([1.0, 0.25])), ball.grad_conjugate(torch.tensor([-3.0, 0.0]))
    (tensor([0.5000, 0.2500]), tensor([-0.5000,  0.0000]))
    """

    radius: float = 1.0
    dim: Dims = -1

    def __post_init__(self) -> None:
        check_range(self.radius, "radius", 0)

    def value(self, x: Inexact[Tensor, "..."]) -> Real[Tensor, "..."]:
        """Give 0 in the ball (up to rounding) and ``inf`` outside."""
        return indicator(x.abs().amax(self.dim), self.radius)

    def project(self, x: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """Clip every modulus."""
        return l2_ball(x[..., None], self.radius)[..., 0] if x.is_complex() else x.clamp(-self.radius, self.radius)

    def prox(self, x: Inexact[Tensor, "*shape"], step: float | Tensor) -> Inexact[Tensor, "*shape"]:
        """Project, whatever ``step``."""
        return self.project(x)

    def conjugate(self, s: Inexact[Tensor, "..."]) -> Real[Tensor, "..."]:
        """Evaluate ``radius * sum(abs(s))``."""
        return self.radius * s.abs().sum(self.dim)

    def grad_conjugate(self, s: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """Give ``radius`` times the sign, 0 where ``s`` is 0."""
        return self.radius * s.sgn()


@dataclass(frozen=True)
class L2Ball:
    """The indicator of ``||x|| <= radius``; its conjugate is ``radius`` times the 2-norm.

    Parameters
    ----------
    radius
        Greatest norm, at least 0.
    dim
        Dimension(s) that make up one variable.

    Examples
    --------
    >>> L2Ball().grad_conjugate(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """

    radius: float = 1.0
    dim: Dims = -1

    def __post_init__(self) -> None:
        check_range(self.radius, "radius", 0)

    def value(self, x: Inexact[Tensor, "..."]) -> Real[Tensor, "..."]:
        """Give 0 in the ball (up to rounding) and ``inf`` outside."""
        return indicator(_norm(x, self.dim), self.radius)

    def project(self, x: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """Scale down to the ball."""
        return l2_ball(x, self.radius, self.dim)

    def prox(self, x: Inexact[Tensor, "*shape"], step: float | Tensor) -> Inexact[Tensor, "*shape"]:
        """Project, whatever ``step``."""
        return self.project(x)

    def conjugate(self, s: Inexact[Tensor, "..."]) -> Real[Tensor, "..."]:
        """Evaluate ``radius * ||s||``."""
        return self.radius * _norm(s, self.dim)

    def grad_conjugate(self, s: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """Scale to norm ``radius``; 0 where ``s`` is 0."""
        norm = squared_modulus(s).sum(self.dim, keepdim=True).sqrt()
        return s * torch.where(norm > 0, self.radius / norm, 0)


def indicator(norm: Real[Tensor, "*batch"], radius: float) -> Real[Tensor, "*batch"]:
    """Give 0 where ``norm <= radius`` up to rounding, and ``inf`` elsewhere.

    Parameters
    ----------
    norm
        Norms.
    radius
        What they may not exceed, but for a relative ``eps^(2/3)`` of their type.

    Examples
    --------
    >>> indicator(torch.tensor([1.0, 1.1]), 1.0)
    tensor([0., inf])
    """
    slack = torch.finfo(norm.dtype).eps ** (2 / 3)
    return torch.where(norm <= radius * (1 + slack), 0.0, torch.inf).to(norm.dtype)


def _norm(x: Tensor, dim: Dims) -> Tensor:
    """The 2-norm, with gradient 0 at zero."""
    square = squared_modulus(x).sum(dim)
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt() * (square > 0)
