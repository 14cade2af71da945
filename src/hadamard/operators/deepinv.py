"""To and from the physics of deepinv, the one place where a complex image is two real channels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hadamard.operators.base import LinearOperator
from hadamard.validation import check_tensor

__all__ = ["from_deepinv", "to_deepinv"]


def from_deepinv(physics: Any, in_shape: Sequence[int], *, complex_channels: bool = False) -> LinearOperator:
    """Use a linear physics of deepinv as an operator.

    Parameters
    ----------
    physics
        Anything with ``A(x)``, ``A_adjoint(y)`` and optionally ``A_dagger(y)`` on batches (B, \\*in_shape), such as a
        ``deepinv.physics.LinearPhysics``; its noise model takes no part.
    in_shape
        Shape of one image as the physics takes it, such as (C, H, W).
    complex_channels
        Whether the first axis of images and data is the real and the imaginary part, as in deepinv's MRI: the operator
        then takes complex tensors without that axis, so that (2, H, W) becomes (H, W).

    Returns
    -------
    LinearOperator
        Its ``A_dagger`` is the physics' own, where there is one.

    Raises
    ------
    TypeError
        If ``physics`` has no ``A`` or no ``A_adjoint``.
    ValueError
        If ``complex_channels`` and the images or the data do not start with an axis of size 2.

    Examples
    --------
    >>> class Blur:
    ...     def A(self, x):
    ...         return (x + x.roll(1, -1)) / 2
    ...
    ...     def A_adjoint(self, y):
    ...         return (y + y.roll(-1, -1)) / 2
    >>> op = from_deepinv(Blur(), (1, 4, 4))
    >>> op.out_shape, op(torch.ones(3, 2, 1, 4, 4)).shape
    ((1, 4, 4), torch.Size([3, 2, 1, 4, 4]))
    """
    for method in ("A", "A_adjoint"):
        if not callable(getattr(physics, method, None)):
            raise TypeError(f"physics must have a method {method}, got {type(physics).__name__}")
    state = [*physics.parameters(), *physics.buffers()] if isinstance(physics, nn.Module) else []
    like = next((t for t in state if t.dtype.is_floating_point), torch.empty(0))
    with torch.no_grad():
        out_shape = tuple(physics.A(like.new_zeros(1, *in_shape)).shape[1:])
    return _FromPhysics(physics, tuple(in_shape), out_shape, complex_channels)


def to_deepinv(op: LinearOperator, *, complex_channels: bool = False) -> Any:
    """Use an operator as a linear physics of deepinv.

    Parameters
    ----------
    op
        The operator.
    complex_channels
        Whether the operator takes and returns complex tensors; the physics' images and data then have the real and the
        imaginary part as their first axis after the batch.

    Returns
    -------
    deepinv.physics.LinearPhysics
        Without noise; ``A_dagger`` is the operator's, ``prox_l2`` and the rest are deepinv's.

    Raises
    ------
    ImportError
        If deepinv is not installed.

    Notes
    -----
    With ``physics = to_deepinv(op)``, ``physics(x)`` applies the operator to images (B, \\*op.in_shape), and
    ``from_deepinv(physics, physics.img_size)`` gives it back.
    """
    try:
        from deepinv.physics import LinearPhysics
    except ImportError as error:
        raise ImportError("to_deepinv needs deepinv: pip install deepinv") from error

    def adapt(method: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        if not complex_channels:
            return lambda u, **_: method(u)
        return lambda u, **_: _to_channels(method(_to_complex(u)))

    img_size = (2, *op.in_shape) if complex_channels else op.in_shape
    physics = LinearPhysics(A=adapt(op.A), A_adjoint=adapt(op.A_adjoint), img_size=img_size)
    physics.op = op  # a submodule, so that physics.to(...) moves its constants
    physics.A_dagger = adapt(op.A_dagger)
    return physics


class _FromPhysics(LinearOperator):
    """An operator that asks a physics."""

    def __init__(
        self, physics: Any, in_shape: tuple[int, ...], out_shape: tuple[int, ...], complex_channels: bool
    ) -> None:
        if complex_channels:
            for shape, name in ((in_shape, "in_shape"), (out_shape, "the shape of the data")):
                if len(shape) < 2 or shape[0] != 2:
                    raise ValueError(f"{name} must start with an axis of size 2 for complex_channels, got {shape}")
        first = 1 if complex_channels else 0
        super().__init__(in_shape[first:], out_shape[first:])
        self.physics, self.complex_channels = physics, complex_channels

    def A(self, x: Tensor) -> Tensor:
        return self._ask(self.physics.A, self.check_in(x), self.in_shape, self.out_shape)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self._ask(self.physics.A_adjoint, self.check_out(y), self.out_shape, self.in_shape)

    def A_dagger(self, y: Tensor) -> Tensor:
        if not callable(getattr(self.physics, "A_dagger", None)):
            return super().A_dagger(y)
        return self._ask(self.physics.A_dagger, self.check_out(y), self.out_shape, self.in_shape)

    def _ask(self, method: Any, u: Tensor, shape: tuple[int, ...], result: tuple[int, ...]) -> Tensor:
        """Call a method of the physics with all batch dimensions made one."""
        batch = u.shape[: u.ndim - len(shape)]
        u = u.reshape(-1, *shape)
        v = _to_complex(method(_to_channels(u))) if self.complex_channels else method(u)
        return v.reshape(*batch, *result)


def _to_complex(u: Tensor) -> Tensor:
    """(B, 2, ...) real to (B, ...) complex."""
    check_tensor(u, "x", dtype="floating", finite=False)
    return torch.complex(u[:, 0], u[:, 1])


def _to_channels(u: Tensor) -> Tensor:
    """(B, ...) complex or real to (B, 2, ...) real."""
    return torch.stack([u.real, u.imag if u.is_complex() else torch.zeros_like(u)], dim=1)
