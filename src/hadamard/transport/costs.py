"""Costs of moving a point to another: of every pair, and of points that are paired already."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_range

__all__ = ["Cost", "Euclidean", "Manhattan", "Sphere", "SquaredEuclidean"]


@runtime_checkable
class Cost(Protocol):
    """What a cost has to offer; any object with these two methods is one."""

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the cost of every pair: (..., n, d) and (..., m, d) to (..., n, m)."""

    def paired(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the cost between points that are paired already: (..., d) and (..., d) to (...)."""


@dataclass(frozen=True)
class SquaredEuclidean:
    """The cost ``scale * ||x - y||^2``; its transport cost is the squared 2-Wasserstein distance.

    Parameters
    ----------
    scale
        Factor, above 0.

    Examples
    --------
    >>> SquaredEuclidean(0.5).pairwise(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[12.5000,  2.0000]])
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.scale, "scale", 0, closed="neither")

    def pairwise(self, x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Compute the cost of every pair: (..., n, d) and (..., m, d) to (..., n, m)."""
        return self.scale * _distances(x, y, 2).square()

    def paired(self, x: Float[Tensor, "*#batch d"], y: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch"]:
        """Compute the cost between points that are paired already: (..., d) and (..., d) to (...)."""
        return self.scale * (x - y).square().sum(-1)


@dataclass(frozen=True)
class Euclidean:
    """The cost ``||x - y||_2``; its transport cost is the 1-Wasserstein distance.

    Examples
    --------
    >>> Euclidean().paired(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]))
    tensor(5.)
    """

    def pairwise(self, x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Compute the cost of every pair: (..., n, d) and (..., m, d) to (..., n, m)."""
        return _distances(x, y, 2)

    def paired(self, x: Float[Tensor, "*#batch d"], y: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch"]:
        """Compute the cost between points that are paired already: (..., d) and (..., d) to (...)."""
        return torch.linalg.vector_norm(x - y, dim=-1)


@dataclass(frozen=True)
class Manhattan:
    """The cost ``||x - y||_1``; its transport cost is the 1-Wasserstein distance of that norm.

    Examples
    --------
    >>> Manhattan().paired(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]))
    tensor(7.)
    """

    def pairwise(self, x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Compute the cost of every pair: (..., n, d) and (..., m, d) to (..., n, m)."""
        return _distances(x, y, 1)

    def paired(self, x: Float[Tensor, "*#batch d"], y: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch"]:
        """Compute the cost between points that are paired already: (..., d) and (..., d) to (...)."""
        return (x - y).abs().sum(-1)


@dataclass(frozen=True)
class Sphere:
    """The length of the shortest arc between two points of the unit sphere, in radians.

    Points must have norm 1; the distance is ``2 atan2(||x - y||, ||x + y||)``, which keeps all digits where points are
    near to each other or to their antipodes, with gradients that stay finite.

    Examples
    --------
    >>> Sphere().paired(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(1.5708)
    """

    def pairwise(self, x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Compute the cost of every pair: (..., n, d) and (..., m, d) to (..., n, m)."""
        _check_unit(x=x, y=y)
        return 2 * torch.atan2(_distances(x, y, 2), _distances(x, -y, 2))

    def paired(self, x: Float[Tensor, "*#batch d"], y: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch"]:
        """Compute the cost between points that are paired already: (..., d) and (..., d) to (...)."""
        _check_unit(x=x, y=y)
        return 2 * torch.atan2(torch.linalg.vector_norm(x - y, dim=-1), torch.linalg.vector_norm(x + y, dim=-1))


def _check_unit(**points: Tensor) -> None:
    for name, x in points.items():
        worst = float((torch.linalg.vector_norm(x.detach(), dim=-1) - 1).abs().max())
        if not worst < 1e-3:
            raise ValueError(
                f"{name} must hold points of the unit sphere, got a norm that differs from 1 by {worst:.3g}"
            )


def _distances(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Distances of all pairs; without the matrix product that loses half of the digits of small ones."""
    return torch.cdist(x, y, p=p, compute_mode="donot_use_mm_for_euclid_dist")
