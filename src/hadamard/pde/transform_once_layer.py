"""The layer of Transform Once, on coefficients: matrices for each coefficient, then matrices along each axis."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor, nn

from hadamard.pde.expansions import check_modes, expansion
from hadamard.validation import check_option, check_range

__all__ = ["T1Layer", "activate", "parts"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "sin": torch.sin,
    "tanh": torch.tanh,
}


class T1Layer(nn.Module):
    """``z + A_y A_x act(W z)`` on coefficients of shape (batch, channels, \\*modes): the layer of :class:`T1`.

    Parameters
    ----------
    channels
        Number of channels.
    n_modes
        As in :class:`T1`.
    transform
        ``"dct"``: real; ``"dft"``: complex, with ``2 n - 1`` coefficients along all axes but the last one.
    activation
        As in :class:`T1`.
    gain
        Factor of the branch at the start.
    generator, device, dtype
        As in :class:`T1`.

    Examples
    --------
    >>> T1Layer(8, (4, 6))(torch.randn(2, 8, 4, 6)).shape
    torch.Size([2, 8, 4, 6])
    """

    def __init__(
        self,
        channels: int,
        n_modes: Sequence[int],
        transform: str = "dct",
        activation: str = "gelu",
        gain: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        basis = expansion(transform)
        self.channels = check_range(channels, "channels", 1, integer=True)
        self.activation = check_option(activation, "activation", _ACTIVATIONS)
        self.gain, self.is_complex, self.shape = gain, basis.is_complex, basis.shape(check_modes(n_modes))
        two = (2,) if self.is_complex else ()
        make: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channel_mixing = nn.Parameter(torch.empty(*self.shape, channels, channels, *two, **make))
        self.axis_mixing = nn.ParameterList([torch.empty(channels, m, m, *two, **make) for m in self.shape])
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights that keep the variance, but for the activation's loss and the gain."""
        half = 0.5 if self.is_complex else 1.0  # each part carries half of a complex variance
        nn.init.normal_(self.channel_mixing, std=math.sqrt(half / self.channels), generator=generator)
        for axis, (A, m) in enumerate(zip(self.axis_mixing, self.shape)):
            gain = self.gain if axis == 0 else 1.0
            nn.init.normal_(A, std=gain * math.sqrt(half / m), generator=generator)

    def forward(self, z: Inexact[Tensor, "batch channels *modes"]) -> Inexact[Tensor, "batch channels *modes"]:
        """Mix channels, then modes along each axis."""
        if tuple(z.shape[1:]) != (self.channels, *self.shape):
            raise ValueError(f"z must have shape (batch, {self.channels}, {self.shape}), got {tuple(z.shape)}")
        W = parts(self.channel_mixing, self.is_complex)
        x = _products(z.flatten(2).permute(2, 0, 1), W.flatten(0, -3))
        x = activate(self.activation, x).permute(2, 1, 0).unflatten(2, self.shape)  # channels first: one matrix each
        for axis, weight in enumerate(self.axis_mixing):
            A, x = parts(weight, self.is_complex), x.movedim(2 + axis, -1)
            x = _products(x.reshape(self.channels, -1, A.shape[-1]), A).reshape(x.shape).movedim(-1, 2 + axis)
        return z + x.transpose(0, 1)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.channels}, {self.shape}, activation={self.activation!r}, is_complex={self.is_complex}"


class _Products(torch.autograd.Function):
    """``x @ A`` for stacks of matrices, copied to where a library multiplies them at once, in the backward pass too."""

    @staticmethod
    def forward(x: Tensor, A: Tensor) -> Tensor:
        return torch.bmm(x.contiguous(), A.contiguous())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, A = ctx.saved_tensors
        grad = grad.contiguous()
        return torch.bmm(grad, A.mH.contiguous()), torch.bmm(x.mH.contiguous(), grad)


def _products(x: Tensor, A: Tensor) -> Tensor:
    if torch.is_autocast_enabled(x.device.type) and not x.is_complex():
        dtype = torch.get_autocast_dtype(x.device.type)
        x, A = x.to(dtype), A.to(dtype)
    return torch.bmm(x, A) if torch.compiler.is_compiling() else _Products.apply(x, A)


def parts(weight: Tensor, is_complex: bool) -> Tensor:
    """A weight as it is meant: complex where its last dimension holds two parts."""
    return torch.view_as_complex(weight) if is_complex else weight


def activate(name: str, z: Tensor) -> Tensor:
    """Apply an activation, to each part of complex numbers."""
    act = _ACTIVATIONS[name]
    return torch.complex(act(z.real), act(z.imag)) if z.is_complex() else act(z)
