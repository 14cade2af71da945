"""Projection onto an even grid, with the straight-through gradient that lets networks be trained through it."""

from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["round_ste", "to_grid"]


def round_ste(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Round to whole numbers, halves to the even one, with the gradient of the identity (straight-through).

    Parameters
    ----------
    x
        Any shape.

    Raises
    ------
    TypeError
        If ``x`` is not a floating tensor.

    Examples
    --------
    >>> x = torch.tensor([0.5, 1.5, -0.7], requires_grad=True)
    >>> round_ste(x).detach()
    tensor([ 0.,  2., -1.])
    >>> torch.autograd.grad(round_ste(x).sum(), x)
    (tensor([1., 1., 1.]),)
    """
    check_tensor(x, "x", dtype="floating", finite=False)
    return _StraightThrough.apply(x)


def to_grid(
    x: Float[Tensor, "*shape"],
    scale: float | Float[Tensor, "..."],
    zero: float | Real[Tensor, "..."] = 0,
    qmin: int = 0,
    qmax: int = 255,
) -> Float[Tensor, "*shape"]:
    """Move values to the nearest point of the grid ``scale * (q - zero)``, q whole and in [qmin, qmax].

    Parameters
    ----------
    x
        Any shape.
    scale
        Distance of neighbouring points, above 0: a number, or a tensor that broadcasts to ``x``.
    zero
        The whole number that stands for 0: a number, or a tensor that broadcasts to ``x``.
    qmin, qmax
        Ends of the grid.

    Returns
    -------
    Tensor
        Of the shape of ``x``. Its gradient is 1 where ``x`` rounds to a point of the grid and 0 where it is moved to
        one of the ends; that of a scale that is a tensor follows from the same rule.

    Raises
    ------
    TypeError
        If ``x`` is not a floating tensor.
    ValueError
        If a scale is not above 0, or ``qmin`` above ``qmax``.

    Examples
    --------
    >>> to_grid(torch.tensor([0.3, 0.24, 9.0]), 0.25, qmax=3)
    tensor([0.2500, 0.2500, 0.7500])
    """
    check_tensor(x, "x", dtype="floating", finite=False)
    if not torch.compiler.is_compiling():
        check_range(scale, "scale", 0, None, "neither", elementwise=True)
    check_range(qmax, "qmax", qmin, integer=True)
    return (torch.clamp(round_ste(x / scale) + zero, qmin, qmax) - zero) * scale


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
