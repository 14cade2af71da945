"""What networks that keep pictures at 8 bits do to them: check, halve, enlarge and round them."""

import torch
from torch import Tensor

from hadamard.proximal import to_grid
from hadamard.spectral import haar2d, ihaar2d
from hadamard.validation import check_range, check_tensor

__all__ = ["check_unit", "enlarge", "halve", "to_eight_bits"]

_ORDER = (0, 2, 1, 3)  # IRN's order of the bands: LL, HL, LH, HH


def halve(x: Tensor) -> Tensor:
    """Haar transform of every channel, band by band; the low one is a mean."""
    return (haar2d(x)[:, _ORDER] / 2).flatten(1, 2)


def enlarge(y: Tensor) -> Tensor:
    """Undo :func:`halve`."""
    return ihaar2d(2 * y.unflatten(1, (4, -1))[:, _ORDER])


def to_eight_bits(x: Tensor) -> Tensor:
    """Round to multiples of 1 / 255 in [0, 1]; straight through for gradients."""
    return to_grid(255 * x, 1.0) / 255


def check_unit(x: Tensor, name: str) -> Tensor:
    """Values in [0, 1], for the wrong scale would go unnoticed."""
    check_tensor(x, name, dtype="floating")
    if not torch.compiler.is_compiling():
        check_range(x, name, 0, 1, elementwise=True)
    return x
