"""Convolutions without weight sharing: every output position has a kernel of its own.

The input is seen through a strided view of its windows. Only the input itself is kept for the backward pass, where the
windows are looked at again; ``torch.nn.Unfold`` with a product would keep every window, ``prod(kernel_size)`` times the
input.

References
----------
A. Lahoti, S. Karp, E. Winston, A. Singh, Y. Li, "Role of Locality and Weight Sharing in Image-Based Tasks: A Sample
Complexity Separation between CNNs, LCNs, and FCNs", ICLR 2024, arXiv:2403.15707.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.validation import check_range

__all__ = ["LocallyConnected1d", "LocallyConnected2d"]

Sizes = int | Sequence[int]


class _LocallyConnected(nn.Module):
    """Parameters and computation for any number of dimensions."""

    ndim = 0
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Sizes,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        bias: bool = True,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels: int = check_range(in_channels, "in_channels", 1, integer=True)
        self.out_channels: int = check_range(out_channels, "out_channels", 1, integer=True)
        self.input_size = self._sizes(input_size, "input_size", 1)
        self.kernel_size = self._sizes(kernel_size, "kernel_size", 1)
        self.stride = self._sizes(stride, "stride", 1)
        self.padding = self._sizes(padding, "padding", 0)
        room = [n + 2 * p - k for n, p, k in zip(self.input_size, self.padding, self.kernel_size)]
        if min(room) < 0:
            raise ValueError(
                f"kernel_size must fit into the padded input, got {self.kernel_size} with input_size={self.input_size} "
                f"and padding={self.padding}"
            )
        self.output_size = tuple(r // s + 1 for r, s in zip(room, self.stride))
        shape = (*self.output_size, out_channels, in_channels, *self.kernel_size)
        reach = 1 / math.sqrt(in_channels * math.prod(self.kernel_size))  # as torch.nn.Conv2d starts
        weight = torch.empty(shape, device=device, dtype=dtype)
        self.weight = nn.Parameter(weight.uniform_(-reach, reach, generator=generator))
        offset = torch.empty((out_channels, *self.output_size), device=device, dtype=dtype)
        self.bias = nn.Parameter(offset.uniform_(-reach, reach, generator=generator)) if bias else None

    def _sizes(self, value: Sizes, name: str, low: int) -> tuple[int, ...]:
        values = (value,) * self.ndim if isinstance(value, int) else tuple(value)
        if len(values) != self.ndim:
            raise ValueError(f"{name} must be an integer or {self.ndim} of them, got {value}")
        return tuple(check_range(v, name, low, integer=True) for v in values)

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch out *positions"]:
        """Apply each position's own kernel."""
        wanted = (self.in_channels, *self.input_size)
        if tuple(x.shape[1:]) != wanted:
            raise ValueError(f"x must have shape (batch, {', '.join(map(str, wanted))}), got {tuple(x.shape)}")
        if any(self.padding):
            x = nn.functional.pad(x, [p for size in reversed(self.padding) for p in (size, size)])
        weight: Tensor = self.weight
        if torch.is_autocast_enabled(x.device.type):
            x, weight = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight))
        y = _Apply.apply(x, weight, self.stride)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return (
            f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, bias={self.bias is not None}"
        )


class LocallyConnected1d(_LocallyConnected):
    """A one-dimensional convolution whose kernel differs from position to position.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, bias
        As in ``torch.nn.Conv1d``; padding is with zeros.
    input_size
        Length of the input: it fixes the number of kernels.
    generator
        For the first weights, which are those of ``torch.nn.Conv1d`` in distribution; ``None``: torch's own.
    device, dtype
        Of the parameters.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or is out of range, or the kernel does not fit; by ``forward``, if the input has
        another shape.

    Notes
    -----
    ``weight`` has shape (positions, out, in, kernel), ``bias`` (out, positions). With the same kernel at all positions
    it is a convolution.

    Do not use it where patterns may appear anywhere: each position must then see each pattern in training. Its weights
    are as many as a convolution's times the number of positions.

    Examples
    --------
    >>> layer = LocallyConnected1d(2, 8, input_size=20, kernel_size=4, stride=4)
    >>> layer(torch.randn(3, 2, 20)).shape, layer.weight.shape
    (torch.Size([3, 8, 5]), torch.Size([5, 8, 2, 4]))
    """

    ndim = 1


class LocallyConnected2d(_LocallyConnected):
    """A two-dimensional convolution whose kernel differs from position to position.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, bias
        As in ``torch.nn.Conv2d``; padding is with zeros.
    input_size
        Height and width of the input (or one number for both): they fix the number of kernels.
    generator
        For the first weights, which are those of ``torch.nn.Conv2d`` in distribution; ``None``: torch's own.
    device, dtype
        Of the parameters.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or is out of range, or the kernel does not fit; by ``forward``, if the input has
        another shape.

    Notes
    -----
    ``weight`` has shape (rows, columns, out, in, kernel rows, kernel columns), ``bias`` (out, rows, columns). With the
    same kernel at all positions it is a convolution.

    Do not use it where patterns may appear anywhere: each position must then see each pattern in training. Its weights
    are as many as a convolution's times the number of positions.

    Examples
    --------
    >>> layer = LocallyConnected2d(3, 8, input_size=(16, 12), kernel_size=3, padding=1)
    >>> layer(torch.randn(2, 3, 16, 12)).shape, layer.weight.shape
    (torch.Size([2, 8, 16, 12]), torch.Size([16, 12, 8, 3, 3, 3]))
    """

    ndim = 2


class _Apply(torch.autograd.Function):
    """``y[b, o, p] = sum over c and window offsets of x[b, c, window p] w[p, o, c, offset]``; keeps only x and w."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: tuple[int, ...]) -> Tensor:
        positions, offsets = _letters(len(stride))
        return torch.einsum(
            f"bc{positions}{offsets},{positions}oc{offsets}->bo{positions}",
            _windows(x, weight.shape[-len(stride) :], stride), weight,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, tuple[int, ...]], output: Tensor) -> None:
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        stride, kernel = ctx.stride, weight.shape[-len(ctx.stride) :]
        positions, offsets = _letters(len(stride))
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            windows = _windows(x, kernel, stride)
            equation = f"bo{positions},bc{positions}{offsets}->{positions}oc{offsets}"
            grad_weight = torch.einsum(equation, grad, windows)
        if ctx.needs_input_grad[0]:
            parts = torch.einsum(f"bo{positions},{positions}oc{offsets}->bc{positions}{offsets}", grad, weight)
            grad_x = torch.zeros_like(x)
            for offset in product(*(range(size) for size in kernel)):
                place = [slice(o, o + s * (n - 1) + 1, s) for o, s, n in zip(offset, stride, grad.shape[2:])]
                here: tuple[Any, ...] = (..., *place)
                grad_x[here] += parts[(slice(None),) * grad.ndim + offset]
        return grad_x, grad_weight, None


def _windows(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A view of shape (batch, channels, *positions, *offsets)."""
    for dim, (size, step) in enumerate(zip(kernel, stride), start=2):
        x = x.unfold(dim, size, step)
    return x


def _letters(ndim: int) -> tuple[str, str]:
    return "hw"[:ndim], "ij"[:ndim]
