"""Which shapes of convolutions can be orthogonal, and why the others cannot."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from hadamard.validation import check_option, check_range

__all__ = ["OrthogonalExistence", "orthogonal_conv_exists", "per_axis"]


@dataclass(frozen=True)
class OrthogonalExistence:
    """The answer of :func:`orthogonal_conv_exists`; true in a condition where an orthogonal convolution exists.

    Attributes
    ----------
    exists
        Whether some kernel of this shape is orthogonal.
    reason
        Why, or why not, in one sentence.
    """

    exists: bool
    reason: str

    def __bool__(self) -> bool:
        return self.exists


def orthogonal_conv_exists(
    out_channels: int,
    in_channels: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding_mode: str = "circular",
    input_size: int | Sequence[int] | None = None,
    *,
    groups: int = 1,
) -> OrthogonalExistence:
    """Tell whether a convolution of this shape can be orthogonal: have orthonormal rows, or orthonormal columns.

    Parameters
    ----------
    out_channels, in_channels
        Channels M and C. Exchange them to ask for a transposed convolution, the adjoint.
    kernel_size, stride
        One number for two equal axes, or one an axis for one, two or three of them.
    padding_mode
        ``"circular"``; ``"zeros"``: ``(k - 1) // 2`` zeros before the first pixel and as many outputs as the stride
        leaves; or ``"valid"``: no padding.
    input_size
        Pixels along each axis. ``None``: images large enough for the conditions below to be sharp.
    groups
        Groups of channels, each of which is a convolution of its own.

    Returns
    -------
    OrthogonalExistence
        Whether one exists, and the reason.

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If a number is not positive, ``groups`` does not divide the channels, ``padding_mode`` is unknown, or
        ``input_size`` is no multiple of the stride or (without circular padding) smaller than ``2 k - 1``, where
        the conditions are not sharp.

    Notes
    -----
    With r the number of taps an axis that can be used at once:

    ========== ==================================== ===========================================================
    padding    orthonormal rows iff                 orthonormal columns iff
    ========== ==================================== ===========================================================
    circular   ``M <= C prod r``, r = min(k, S)     ``M >= C prod S`` and ``k >= S`` on every axis
    zeros      the same, r = min(k - p, S)          ``M >= C prod S`` and ``k - p >= S`` on every axis
    valid      as circular                          ``M >= C prod S`` and ``k = S`` on every axis
    ========== ==================================== ===========================================================

    where ``p = (k - 1) // 2`` is the padding. With zeros an output at the border sees a part of the window only, and
    has norm 1 all the same; so every other tap is zero everywhere, and what exists are patches side by side: for
    stride 1, convolutions with one tap. Without padding a pixel at the border is seen by fewer windows than one
    inside, and columns can only be orthonormal where the windows tile the image. For square kernels and circular
    padding this is theorem 4 of the paper (``M <= C k^2``, and ``S <= k``); the rest was derived anew, and is held
    against numerical minimisation in the tests.

    Examples
    --------
    >>> bool(orthogonal_conv_exists(64, 32, 3, stride=2))
    True
    >>> orthogonal_conv_exists(64, 32, 1, stride=2)
    OrthogonalExistence(exists=False, reason='rows: 64 output channels exceed 32 input x 1 tap(s); ...')
    """
    given = [len(v) for v in (kernel_size, stride) if not isinstance(v, int)]
    sizes = per_axis(kernel_size, "kernel_size", given[0] if given else 2)
    strides = per_axis(stride, "stride", len(sizes))
    if len(sizes) > 3:
        raise ValueError(f"kernel_size must have one to three axes, got {kernel_size}")
    for name, value in (("out_channels", out_channels), ("in_channels", in_channels), ("groups", groups)):
        check_range(value, name, 1, integer=True)
    if out_channels % groups or in_channels % groups:
        raise ValueError(f"groups must divide the channels {out_channels} and {in_channels}, got {groups}")
    check_option(padding_mode, "padding_mode", ("circular", "zeros", "valid"))
    rest = False
    if input_size is not None:
        n = per_axis(input_size, "input_size", len(sizes))
        rest = any(i % s for i, s in zip(n, strides))
        if rest and padding_mode != "valid":
            raise ValueError(f"input_size must be a multiple of the stride {strides}, got {n}")
        if padding_mode != "circular" and any(i < 2 * k - 1 for i, k in zip(n, sizes)):
            raise ValueError(f"input_size must be at least 2 k - 1 = {tuple(2 * k - 1 for k in sizes)}, got {n}")
    return _decide(out_channels // groups, in_channels // groups, sizes, strides, padding_mode, rest)


def _decide(
    m: int, c: int, sizes: tuple[int, ...], strides: tuple[int, ...], mode: str, rest: bool
) -> OrthogonalExistence:
    """Compare the channels of one group; ``rest``: whether windows of the stride's size leave pixels over."""
    reach = [k - (k - 1) // 2 if mode == "zeros" else k for k in sizes]
    taps = prod(min(k, s) for k, s in zip(reach, strides))
    only = ""
    if mode == "zeros" and max(sizes) > 1:
        stays = "kernels with one tap" if prod(strides) == 1 else "patches side by side"
        only = f"; with zeros at the border only {stays}, with circular padding others too"
    if m <= c * taps:
        return OrthogonalExistence(True, f"rows: {m} output channels are at most {c} input x {taps} tap(s){only}")
    rows = f"rows: {m} output channels exceed {c} input x {taps} tap(s)"
    columns = f"{m} output channels are at least {c} input x stride {strides}"
    if m < c * prod(strides):
        why = f"{m} output channels are fewer than {c} input x stride {strides}"
    elif any(k < s for k, s in zip(reach, strides)):
        why = f"kernel {sizes} leaves pixels out at stride {strides}{only}"
    elif mode == "valid" and (sizes != strides or rest):
        why = f"without padding windows {sizes} at stride {strides} do not tile the image, and its border is seen less"
    else:
        return OrthogonalExistence(True, f"columns: {columns}{only}")
    return OrthogonalExistence(False, f"{rows}; columns: {why}")


def per_axis(value: int | Sequence[int], name: str, axes: int) -> tuple[int, ...]:
    """One positive integer an axis, from one for all or one each."""
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes:
        raise ValueError(f"{name} must be one number or {axes}, got {value}")
    for v in values:
        check_range(v, name, 1, integer=True)
    return values
