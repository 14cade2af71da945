"""Matrices known up to rounding: a midpoint in float64 and a bound on the error of every entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

__all__ = ["Enclosed"]

_UNIT = 2.0**-53
_TINY = 2.0**-1022
_PAY = 1 + 1e-9  # for the rounding of the radii, whose sums have far fewer than 1e6 terms


@dataclass(frozen=True)
class Enclosed:
    """All matrices within ``radius`` of ``middle``, entry by entry (``None``: exactly that one).

    Sums and products enclose whatever the exact ones of the enclosed matrices can be. ``middle`` may be a sparse
    matrix where it is exact and stands on the left of a product.

    Examples
    --------
    >>> third = Enclosed.rounded(np.array([[1 / 3]]))
    >>> bool((third @ third).radius > 0)
    True
    """

    middle: Any
    radius: np.ndarray | None = None

    @classmethod
    def rounded(cls, x: np.ndarray, operations: int = 1) -> "Enclosed":
        """Enclose what so many correctly rounded operations (or library calls within an ulp) made of each entry."""
        return cls(x, _PAY * (2 * operations * _UNIT) * np.abs(x) + operations * _TINY)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.middle.shape

    @property
    def T(self) -> "Enclosed":
        """The transpose."""
        return Enclosed(self.middle.T, None if self.radius is None else self.radius.T)

    def __getitem__(self, where: Any) -> "Enclosed":
        return Enclosed(self.middle[where], None if self.radius is None else self.radius[where])

    def __matmul__(self, other: "Enclosed") -> "Enclosed":
        left, right = abs(self.middle), abs(other.middle)
        terms = self.shape[1]
        if sparse.issparse(self.middle):
            terms = int(np.diff(self.middle.tocsr().indptr).max(initial=0))
        gamma = (terms + 1) * _UNIT / (1 - (terms + 1) * _UNIT)
        radius = gamma * (left @ right) + terms * _TINY
        if other.radius is not None:
            radius = radius + left @ other.radius
        if self.radius is not None:
            radius = radius + self.radius @ (right if other.radius is None else right + other.radius)
        return Enclosed(self.middle @ other.middle, _PAY * np.asarray(radius))

    def __add__(self, other: "Enclosed") -> "Enclosed":
        middle = self.middle + other.middle
        return Enclosed(middle, _PAY * (self._radii() + other._radii() + 2 * _UNIT * np.abs(middle)))

    def __neg__(self) -> "Enclosed":
        return Enclosed(-self.middle, self.radius)

    def symmetric(self) -> "Enclosed":
        """Use that the enclosed matrix is symmetric: the middle becomes so too."""
        middle = (self.middle + self.middle.T) / 2
        radii = self._radii()
        return Enclosed(middle, _PAY * ((radii + radii.T) / 2 + 2 * _UNIT * np.abs(middle)))

    def padded(self, columns: int) -> "Enclosed":
        """Zeros on the right, up to so many columns."""
        wide = ((0, 0), (0, columns - self.shape[1]))
        return Enclosed(np.pad(self.middle, wide), None if self.radius is None else np.pad(self.radius, wide))

    def spread(self) -> float:
        """Return a bound on the spectral norm of the error of a symmetric matrix: its largest row sum."""
        return 0.0 if self.radius is None else float(_PAY * self.radius.sum(1).max())

    def _radii(self) -> np.ndarray:
        return np.zeros(self.shape) if self.radius is None else self.radius


def stack(parts: Sequence[Enclosed], axis: int = 0) -> Enclosed:
    """Put one below (or beside) another."""
    middle = np.concatenate([p.middle for p in parts], axis)
    if all(p.radius is None for p in parts):
        return Enclosed(middle)
    return Enclosed(middle, np.concatenate([p._radii() for p in parts], axis))
