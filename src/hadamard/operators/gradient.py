"""The gradient of linear maps that autograd cannot see through."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["with_adjoint"]


def with_adjoint(x: Tensor, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a linear map that autograd cannot see through; its gradient is ``adjoint``.

    Parameters
    ----------
    x
        The input.
    forward, adjoint
        The map and its adjoint; each may leave torch. Both may be differentiated any number of times.

    Returns
    -------
    Tensor
        ``forward(x)``.

    Examples
    --------
    >>> x = torch.ones(2, requires_grad=True)
    >>> y = with_adjoint(x, lambda u: torch.from_numpy(3 * u.numpy()), lambda v: 3 * v)
    >>> y.sum().backward()
    >>> x.grad
    tensor([3., 3.])
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return forward(x)
    return _Linear.apply(x, forward, adjoint)


class _Linear(torch.autograd.Function):
    """A linear map whose backward is the adjoint, itself a linear map of the same kind."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.maps, ctx.complex = (forward, adjoint), x.is_complex()
        return forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        forward, adjoint = ctx.maps
        grad = _Linear.apply(grad, adjoint, forward)
        return (grad if ctx.complex or not grad.is_complex() else grad.real), None, None
