"""Convolutions that are orthogonal by construction, with a kernel as small as asked for.

The kernel is a product, as polynomials in the shifts along each axis, of simple orthogonal factors: projections that
send one half of the channels a pixel on, ``P + z (I - P)``, one for each tap that the kernel has more than the stride;
an orthogonal matrix on patches of the stride's size; and, where channels are added, a matrix with orthonormal columns.
Each factor is orthogonal under circular padding at every image size, and so is their product.

References
----------
L. Xiao, Y. Bahri, J. Sohl-Dickstein, S. Schoenholz, J. Pennington, "Dynamical Isometry and a Mean Field Theory of
CNNs", ICML 2018, arXiv:1806.05393, and Q. Li, S. Haque, C. Anil, J. Lucas, R. Grosse, J.-H. Jacobsen, "Preventing
Gradient Attenuation in Lipschitz Constrained Convolutional Networks", NeurIPS 2019, arXiv:1911.00937, for products of
projections; stride by patches as in T. Boissin et al., "An Adaptive Orthogonal Convolution Scheme", ICML 2025,
arXiv:2501.07930.
"""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hadamard.layers.orthogonal_conv_existence import orthogonal_conv_exists, per_axis

__all__ = ["OrthogonalConv2d"]


class OrthogonalConv2d(nn.Conv2d):
    """A ``torch.nn.Conv2d`` with circular padding that is orthogonal exactly, before, during and after training.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype
        As in ``torch.nn.Conv2d``. A dilation needs stride 1.
    padding
        ``"same"``, or any number that leaves ``input / stride`` outputs: ``padding=1`` for three taps, for example.
    padding_mode
        ``"circular"``; with another one the layer would not be orthogonal.
    generator
        Draws the initial weights, on the device ``device``; ``None``: torch's global one, as ``torch.nn.Conv2d``.

    Raises
    ------
    ValueError
        If no orthogonal convolution of this shape exists, ``padding`` leaves another number of outputs, or the options
        do not go together; when called, if the image is no multiple of the stride.

    Notes
    -----
    Rows are orthonormal where ``out_channels <= in_channels * prod(stride)``: the transposed layer undoes nothing but
    what was dropped. Otherwise columns are, and ``|| layer(x) - bias || = || x ||``.

    ``weight`` is made from free parameters by ``torch.nn.utils.parametrize``: any optimizer trains them, and the
    kernel is orthogonal up to rounding at every step. It is made once a forward pass; with
    ``torch.nn.utils.parametrize.cached()`` once for all passes in the context, and
    ``torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")`` leaves an ordinary convolution with a
    fixed kernel. A kernel cannot be assigned, for its factors are not known; load a ``state_dict``.

    Projections have half the channels as their rank, so that the centre of the kernel stays in the middle. Not every
    orthogonal convolution is such a product. Where ``out_channels == in_channels * prod(stride)`` the orthogonal
    convolutions fall into pieces that are not connected, and training stays in the one where it starts. With one
    channel a group nothing but shifts is orthogonal.

    **Not for** networks whose accuracy matters alone: orthogonality takes away freedom, and a penalty
    (:class:`~hadamard.layers.OrthogonalRegularizer`) lets one choose how much. Not for images whose opposite borders
    have nothing to do with each other at a resolution where that matters.

    Examples
    --------
    >>> layer = OrthogonalConv2d(3, 16, 3, stride=2, padding=1)
    >>> x = torch.randn(1, 3, 32, 32)
    >>> torch.allclose((layer(x) - layer.bias.view(-1, 1, 1)).norm(), x.norm())
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = "same",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "circular",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes, strides = per_axis(kernel_size, "kernel_size", 2), per_axis(stride, "stride", 2)
        dilations = per_axis(dilation, "dilation", 2)
        if padding_mode != "circular":
            raise ValueError(f"padding_mode must be 'circular' for an orthogonal convolution, got {padding_mode!r}")
        if any(d > 1 and s > 1 for d, s in zip(dilations, strides)):
            raise ValueError(f"dilation needs stride 1 on its axis, got {dilations} and stride {strides}")
        found = orthogonal_conv_exists(out_channels, in_channels, sizes, strides, groups=groups)
        if not found:
            raise ValueError(f"no orthogonal convolution of this shape exists: {found.reason}")
        self._border = _border(padding, sizes, strides, dilations)
        super().__init__(
            in_channels, out_channels, sizes, strides, 0, dilations, groups, bias, "circular", device, dtype  # type: ignore[arg-type]
        )  # fmt: skip
        self.padding = padding if isinstance(padding, str) else (padding,) * 2 if isinstance(padding, int) else padding  # type: ignore[assignment]
        kernel = _ProjectionKernel(out_channels, in_channels, sizes, strides, groups)
        parametrize.register_parametrization(self, "weight", kernel)
        kernel.fixed = True
        self.reset_parameters(generator)

    def forward(self, x: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch m h_out w_out"]:
        """Convolve images of shape (N, C, H, W) or (C, H, W)."""
        if any(n % s for n, s in zip(x.shape[-2:], self.stride)):
            raise ValueError(f"x must have sides that are multiples of the stride {self.stride}, got {tuple(x.shape)}")
        padded = F.pad(x, self._border, mode="circular")
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: factors uniformly among all, the bias as in ``torch.nn.Conv2d``."""
        if not parametrize.is_parametrized(self, "weight"):
            super().reset_parameters()
            return
        with torch.no_grad():
            for factor in self.get_submodule("parametrizations.weight").parameters():
                drawn = torch.randn(factor.shape, generator=generator, device=factor.device, dtype=torch.float32)
                factor.copy_(_orthonormal(drawn))
            if self.bias is not None:
                bound = (self.in_channels // self.groups * prod(self.kernel_size)) ** -0.5
                self.bias.uniform_(-bound, bound, generator=generator)


class _ProjectionKernel(nn.Module):
    """Kernels from factors; see the module's docstring. Channels in the middle: the larger side's, at this stride."""

    def __init__(self, m: int, c: int, sizes: tuple[int, ...], strides: tuple[int, ...], groups: int) -> None:
        super().__init__()
        m, c = m // groups, c // groups
        self.patch = tuple(min(k, s) for k, s in zip(sizes, strides))
        middle = max(c, m // prod(strides))
        more = [k - p for k, p in zip(sizes, self.patch)]
        self.turns = [(axis, step) for step in range(max(more)) for axis, n in enumerate(more) if step < n]
        self.shapes: dict[str, tuple[int, ...]] = {"bases": (groups, len(self.turns), middle, middle // 2)}
        if middle > c:
            self.shapes["inner"] = (groups, middle, c)
        if middle == c or prod(self.patch) > 1:
            self.shapes["outer"] = (groups, m, middle * prod(self.patch))
        self.channels, self.fixed = c, False

    def forward(self, *factors: Tensor) -> Tensor:
        """Multiply the factors."""
        with torch.autocast(factors[0].device.type, enabled=False):
            matrices = dict(zip(self.shapes, map(_orthonormal, factors)))
            bases = matrices["bases"]
            groups, axes = bases.shape[0], len(self.patch)
            kernel = matrices.get("inner")
            if kernel is None:
                kernel = torch.eye(self.channels, dtype=bases.dtype, device=bases.device).expand(groups, -1, -1)
            kernel = _at_taps(kernel, axes)  # (groups, taps..., channels out, channels in)
            for (axis, step), basis in zip(self.turns, bases.unbind(1)):
                basis = _at_taps(basis, axes)
                kept = basis @ (basis.mT @ kernel)
                moved = kernel - kept
                if step % 2:
                    kept, moved = moved, kept
                kernel = _later(kept, axis, 0, 1) + _later(moved, axis, 1, 0)
            if "outer" in matrices:
                patches = matrices["outer"].unflatten(2, (*self.patch, -1)).movedim(1, -2)
                kernel = _compose(patches, kernel)
            weight = kernel.movedim((-2, -1), (1, 2)).flatten(0, 1)
        return weight.to(factors[0].dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Give the factors their shapes; no kernel is taken apart."""
        if self.fixed:
            raise ValueError("weight cannot be assigned, for its orthogonal factors are not known; load a state_dict")
        return tuple(weight.new_zeros(shape) for shape in self.shapes.values())


def _compose(patches: Tensor, kernel: Tensor) -> Tensor:
    """Product of two kernels in (groups, taps..., out, in): that of the right one first, then the left one."""
    taps = patches.shape[1:-2]
    total = None
    offsets = product(*map(range, taps))
    for at, patch in zip(offsets, patches.flatten(1, len(taps)).unbind(1)):
        part = _at_taps(patch, len(taps)) @ kernel
        for axis, (t, n) in enumerate(zip(at, taps)):
            part = _later(part, axis, t, n - 1 - t)
        total = part if total is None else total + part
    assert total is not None
    return total


def _at_taps(matrix: Tensor, axes: int) -> Tensor:
    """A matrix of each group as a kernel with one tap."""
    return matrix.view(matrix.shape[0], *[1] * axes, *matrix.shape[1:])


def _later(kernel: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Zeros before and after the taps along an axis."""
    return F.pad(kernel, [0, 0] * (kernel.ndim - 2 - axis) + [before, after])


def _orthonormal(matrix: Tensor) -> Tensor:
    """Orthonormal columns, or rows where there are fewer of them, that span what those of ``matrix`` do.

    A QR decomposition whose R has a positive diagonal: without that, columns change sign where an entry passes zero.
    """
    wide = matrix.shape[-2] < matrix.shape[-1]
    X = matrix.float() if matrix.dtype in (torch.half, torch.bfloat16) else matrix
    Q, R = torch.linalg.qr(X.mT if wide else X)
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return Q.mT if wide else Q


def _border(
    padding: str | int | Sequence[int], sizes: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> list[int]:
    """Pixels before and after each axis, the last axis first, as ``torch.nn.functional.pad`` takes them."""
    spans = [d * (k - 1) for k, d in zip(sizes, dilations)]
    if padding == "same":
        return [n for span in reversed(spans) for n in (span // 2, span - span // 2)]
    if isinstance(padding, str):
        raise ValueError(f"padding must be 'same' or a number, got {padding!r}")
    widths = (padding,) * 2 if isinstance(padding, int) else tuple(padding)
    if len(widths) != 2 or any(not span + 1 - s <= 2 * p <= span for p, span, s in zip(widths, spans, strides)):
        raise ValueError(
            f"padding must be 'same' or leave input / stride outputs, got {padding} for kernel {sizes}, "
            f"stride {strides} and dilation {dilations}"
        )
    return [n for p in reversed(widths) for n in (p, p)]
