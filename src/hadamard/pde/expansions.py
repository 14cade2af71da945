"""Two orthonormal bases of functions on the unit box, in which fields on a grid are expanded: cosines and waves.

Coefficients are those of the function, not of its samples: they are the same on every grid that resolves it, and the
mean square of a field is the sum of the squares of its coefficients (Parseval), where those of a half spectrum that
have a partner count twice.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from hadamard.spectral.dct import dct, idct
from hadamard.spectral.modes import irfftn_modes, rfftn_modes
from hadamard.validation import check_option, check_range

__all__ = ["EXPANSIONS", "Expansion", "expansion"]


class Expansion(ABC):
    """What a basis must know; ``n_modes`` holds the number of lowest frequencies of each axis."""

    is_complex: bool

    @abstractmethod
    def shape(self, n_modes: Sequence[int]) -> tuple[int, ...]:
        """Shape of the kept coefficients."""

    @abstractmethod
    def most(self, n: int) -> int:
        """The most modes that ``n`` points hold."""

    @abstractmethod
    def analyse(self, x: Tensor, n_modes: Sequence[int]) -> Tensor:
        """The lowest coefficients of fields on a grid, (..., *grid) to (..., *shape)."""

    @abstractmethod
    def synthesise(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """The fields on a grid, (..., *shape) to (..., *size)."""

    @abstractmethod
    def weight(self, n_modes: Sequence[int], like: Tensor) -> Tensor:
        """How often each coefficient counts in a sum of squares, broadcasting to ``shape``."""

    @abstractmethod
    def ramp(self, m: int) -> Tensor:
        """The lowest coefficients of the coordinate ``t`` on [0, 1]."""

    def project(self, z: Tensor, dims: int) -> Tensor:
        """The nearest coefficients that are a real field's."""
        return z

    def degrees(self, n_modes: Sequence[int]) -> int:
        """How many real numbers the kept coefficients of a real field are."""
        return math.prod(self.shape(n_modes))

    def square(self, z: Tensor, dims: int) -> Tensor:
        """Mean square over space of the fields that the coefficients stand for, of shape ``z.shape[:-dims]``."""
        modes = z.shape[-dims:]
        return ((z * z.conj()).real * self.weight(modes, z.real)).flatten(-dims).sum(-1)

    def ramps(self, n_modes: Sequence[int]) -> Tensor:
        """Coefficients of the coordinate along each axis, (axes, *shape)."""
        shape, lines = self.shape(n_modes), [self.ramp(m) for m in n_modes]
        grids = torch.zeros(len(shape), *shape, dtype=lines[0].dtype)
        for axis, line in enumerate(lines):
            place = grids[axis].movedim(axis, -1)  # a view, of which all other indices are 0
            while place.ndim > 1:
                place = place[0]
            place.copy_(self.along(line, axis == len(shape) - 1))
        return grids

    def along(self, line: Tensor, last: bool) -> Tensor:
        """Lay out the coefficients 0, 1, ... of a real function along an axis."""
        return line

    def check(self, size: Sequence[int], n_modes: Sequence[int]) -> None:
        """Refuse grids that are too coarse."""
        for n, m in zip(size, n_modes):
            if m > self.most(n):
                raise ValueError(f"n_modes must be <= {self.most(n)} along a dimension of {n} points, got {m}")


class Cosines(Expansion):
    """``sqrt(2) cos(pi k t)`` at the midpoints of cells: for fields without flux through the walls."""

    is_complex = False

    def shape(self, n_modes: Sequence[int]) -> tuple[int, ...]:
        """Shape of the kept coefficients."""
        return tuple(n_modes)

    def most(self, n: int) -> int:
        """The most modes that ``n`` points hold."""
        return n

    def analyse(self, x: Tensor, n_modes: Sequence[int]) -> Tensor:
        """The lowest coefficients of fields on a grid."""
        axes = tuple(range(-len(n_modes), 0))
        return dct(x, axes, tuple(n_modes)) / math.sqrt(math.prod(x.shape[-len(axes) :]))

    def synthesise(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """The fields on a grid."""
        return idct(z, tuple(range(-len(size), 0)), tuple(size)) * math.sqrt(math.prod(size))

    def weight(self, n_modes: Sequence[int], like: Tensor) -> Tensor:
        """How often each coefficient counts."""
        return like.new_ones(())

    def ramp(self, m: int) -> Tensor:
        """The lowest coefficients of the coordinate."""
        k = torch.arange(m, dtype=torch.float64)
        line = -2 * math.sqrt(2) * (k % 2) / (math.pi * k.clamp(min=1)).square()
        line[0] = 0.5
        return line


class Waves(Expansion):
    """``exp(2 pi i k t)`` with ``|k| < m``, with ``k >= 0`` along the last axis: for periodic fields."""

    is_complex = True

    def shape(self, n_modes: Sequence[int]) -> tuple[int, ...]:
        """Shape of the kept coefficients."""
        return (*(2 * m - 1 for m in n_modes[:-1]), n_modes[-1])

    def most(self, n: int) -> int:
        """The most modes that ``n`` points hold."""
        return (n + 1) // 2

    def degrees(self, n_modes: Sequence[int]) -> int:
        """How many real numbers the kept coefficients are."""
        return math.prod([2 * m - 1 for m in n_modes])

    def analyse(self, x: Tensor, n_modes: Sequence[int]) -> Tensor:
        """The lowest coefficients of fields on a grid."""
        half = x.dtype in (torch.float16, torch.bfloat16)
        return rfftn_modes(x.float() if half else x, tuple(n_modes))

    def synthesise(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """The fields on a grid."""
        return irfftn_modes(z, tuple(size))

    def weight(self, n_modes: Sequence[int], like: Tensor) -> Tensor:
        """How often each coefficient counts."""
        return torch.where(torch.arange(n_modes[-1], device=like.device) > 0, 2.0, 1.0).to(like.dtype)

    def ramp(self, m: int) -> Tensor:
        """The lowest coefficients of the coordinate."""
        k = torch.arange(m, dtype=torch.float64)
        line = torch.complex(torch.zeros_like(k), 1 / (2 * math.pi * k.clamp(min=1)))
        line[0] = 0.5
        return line

    def along(self, line: Tensor, last: bool) -> Tensor:
        """Lay out both signs along an axis but the last."""
        return line if last else torch.cat([line, line[1:].flip(0).conj()])

    def project(self, z: Tensor, dims: int) -> Tensor:
        """Make the plane of frequency 0 along the last axis its own mirror image."""
        plane = z[..., :1]  # k = 0 along the last axis: there k and -k along the others belong together
        axes = tuple(range(-dims, -1))
        mirrored = plane.flip(axes).roll((1,) * len(axes), axes).conj() if axes else plane.conj()
        return torch.cat([(plane + mirrored) / 2, z[..., 1:]], -1)


EXPANSIONS: dict[str, Expansion] = {"dct": Cosines(), "dft": Waves()}


def expansion(transform: str) -> Expansion:
    """The basis that a transform expands in: ``"dct"`` or ``"dft"``."""
    return EXPANSIONS[check_option(transform, "transform", EXPANSIONS)]


def check_modes(n_modes: Sequence[int]) -> tuple[int, ...]:
    """Numbers of modes as a tuple."""
    modes = tuple(check_range(m, "n_modes", 1, integer=True) for m in n_modes)
    if not modes:
        raise ValueError("n_modes must have one entry for each dimension of space, got none")
    return modes
