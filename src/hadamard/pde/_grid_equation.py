"""What describes an equation on a grid, as users give it: axes, terms, highest frequencies, values."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hadamard.pde.spectral_mixture import SMOOTHNESS, mean_spacing
from hadamard.validation import check_range, check_tensor

__all__ = ["on_grid", "read_axes", "read_frequencies", "read_terms"]

Given = float | Tensor | Callable[..., Tensor]


def read_axes(axes: Sequence[Tensor]) -> list[Tensor]:
    """The axes in float64."""
    if len(axes) not in (1, 2):
        raise ValueError(f"axes must be one or two, got {len(axes)}")
    for i, x in enumerate(axes):
        check_tensor(x, f"axes[{i}]", ndim=1, dtype="floating")
        if len(x) < 4:
            raise ValueError(f"axes[{i}] must have at least 4 points, got {len(x)}")
        if not bool((x.diff() > 0).all()):
            raise ValueError(f"axes[{i}] must be strictly increasing")
    return [x.detach().double() for x in axes]


def read_terms(terms: Mapping[Any, Any], d: int, envelope: str, kernel: str) -> list[tuple[tuple[int, ...], Any]]:
    """Orders as tuples, with their coefficients."""
    if not terms:
        raise ValueError("terms must hold at least one derivative, got none")
    result = []
    for key, c in terms.items():
        order = (key,) if isinstance(key, int) else tuple(key)
        if len(order) != d or not all(isinstance(a, int) and a >= 0 for a in order):
            raise ValueError(f"terms must have keys of {d} order(s) of derivative, got {key!r}")
        if max(order) > SMOOTHNESS[envelope]:
            raise ValueError(f"terms must have orders of at most {SMOOTHNESS[envelope]} for {kernel=}, got {key!r}")
        result.append((order, c))
    return result


def read_frequencies(top: float | Sequence[float] | None, grid: Sequence[Tensor]) -> list[float]:
    """Highest frequency an axis at the start."""
    nyquist = [1 / (2 * mean_spacing(x)) for x in grid]
    if top is None:
        return nyquist
    tops = [top] * len(grid) if isinstance(top, (int, float)) else list(top)
    if len(tops) != len(grid):
        raise ValueError(f"max_frequency must have one entry for each of the {len(grid)} axes, got {len(tops)}")
    for value, limit in zip(tops, nyquist):
        check_range(value, "max_frequency", 0, closed="neither")
        if value > limit * (1 + 1e-9):
            warnings.warn(
                f"max_frequency={value:g} is above the grid's Nyquist frequency {limit:g}: higher frequencies alias",
                stacklevel=3,
            )
    return [float(value) for value in tops]


def on_grid(given: Given, name: str, grid: Sequence[Tensor]) -> Tensor:
    """A number, a tensor or a function of the coordinates as values on the whole grid."""
    value = given(*torch.meshgrid(*grid, indexing="ij")) if callable(given) else given
    if not isinstance(value, Tensor):
        value = grid[0].new_tensor(check_range(value, name))
    check_tensor(value, name, dtype="real")
    shape = tuple(len(x) for x in grid)
    try:
        return value.detach().to(grid[0]).expand(shape)
    except RuntimeError:
        raise ValueError(f"{name} must broadcast to the grid's shape {shape}, got {tuple(value.shape)}") from None
