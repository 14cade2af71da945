"""Arguments checked and errors worded in one place.

Every public function checks its arguments here, at the boundary: the error names the argument, says what was
expected, and says what came.
"""

from collections.abc import Collection, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_option", "check_range", "check_same", "check_tensor"]

_KINDS = {
    "floating": lambda d: d.is_floating_point,
    "complex": lambda d: d.is_complex,
    "inexact": lambda d: d.is_floating_point or d.is_complex,
    "integer": lambda d: not (d.is_floating_point or d.is_complex or d == torch.bool),
    "real": lambda d: not (d.is_complex or d == torch.bool),
}


def check_tensor(
    x: Any,
    name: str,
    *,
    ndim: int | Collection[int] | None = None,
    shape: Sequence[int | None] | None = None,
    dtype: str | torch.dtype | None = "inexact",
    finite: bool = True,
) -> Tensor:
    """Check that ``x`` is a tensor of the expected rank, shape and type, and return it.

    Parameters
    ----------
    x
        What the caller was given.
    name
        The argument's name, for the message.
    ndim
        Number of dimensions, or the numbers that are allowed.
    shape
        Expected shape; ``None`` entries are free. Checked against the trailing dimensions, so that leading batch
        dimensions pass (use ``ndim`` to forbid them).
    dtype
        A ``torch.dtype`` or one of ``"floating"``, ``"complex"``, ``"inexact"`` (floating or complex),
        ``"integer"``, ``"real"`` (floating or integer); ``None`` accepts any.
    finite
        Refuse NaN and infinity.

    Raises
    ------
    TypeError
        If ``x`` is not a tensor or has another dtype.
    ValueError
        If the shape is another one, a dimension is empty, or a value is not finite.

    Examples
    --------
    >>> check_tensor(torch.ones(2, 3), "M", ndim=2).shape
    torch.Size([2, 3])
    >>> check_tensor(torch.tensor([1.0, float("nan")]), "a")
    Traceback (most recent call last):
        ...
    ValueError: a must be finite, got 1 NaN or infinite value in a tensor of shape (2,)
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if isinstance(dtype, torch.dtype):
        if x.dtype != dtype:
            raise TypeError(f"{name} must have dtype {dtype}, got {x.dtype}")
    elif dtype is not None and not _KINDS[dtype](x.dtype):
        wanted = "a floating or complex" if dtype == "inexact" else f"a{'n' if dtype == 'integer' else ''} {dtype}"
        raise TypeError(f"{name} must have {wanted} dtype, got {x.dtype}")
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed is not None and x.ndim not in allowed:
        wanted = " or ".join(str(d) for d in sorted(allowed))
        raise ValueError(f"{name} must have {wanted} dimension(s), got shape {tuple(x.shape)}")
    if shape is not None:
        tail = tuple(x.shape[max(x.ndim - len(shape), 0) :])
        if len(tail) != len(shape) or any(want is not None and want != got for want, got in zip(shape, tail)):
            wanted = ", ".join("*" if s is None else str(s) for s in shape)
            raise ValueError(f"{name} must have shape (..., {wanted}), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")
    if finite and not _all_finite(x):
        bad = int((~torch.isfinite(x.detach())).sum())
        if bad:
            plural = "" if bad == 1 else "s"
            raise ValueError(
                f"{name} must be finite, got {bad} NaN or infinite value{plural} in a tensor of shape {tuple(x.shape)}"
            )
    return x


def check_range(
    value: Any,
    name: str,
    low: float | None = None,
    high: float | None = None,
    closed: str = "both",
    *,
    integer: bool = False,
    elementwise: bool = False,
) -> Any:
    """Check that a number lies in an interval, and return it.

    Parameters
    ----------
    value
        A real number (not a bool, not NaN).
    name
        The argument's name, for the message.
    low, high
        The ends; ``None`` is unbounded.
    closed
        Which ends belong to the interval: ``"both"``, ``"left"``, ``"right"`` or ``"neither"``.
    integer
        Refuse numbers that are not of an integer type.
    elementwise
        Accept a tensor of any shape too, all of whose entries must lie in the interval.

    Raises
    ------
    TypeError
        If ``value`` is not a real number, or not an integer where that is asked for.
    ValueError
        If it lies outside; of a tensor's entries the message shows one that does.

    Examples
    --------
    >>> check_range(0.5, "momentum", 0, 1, closed="left")
    0.5
    >>> check_range(0, "reg", 0, None, closed="neither")
    Traceback (most recent call last):
        ...
    ValueError: reg must be > 0, got 0
    """
    if elementwise and isinstance(value, Tensor):
        check_tensor(value, name, dtype="real", finite=False)
        smallest, largest = value.detach().aminmax()  # both are NaN where any entry is
        check_range(smallest.item(), name, low, high, closed)
        check_range(largest.item(), name, low, high, closed)
        return value
    real = not (isinstance(value, Tensor) and (value.is_complex() or value.dtype == torch.bool or value.numel() != 1))
    if not real or not hasattr(value, "__float__") or isinstance(value, bool) or getattr(value, "ndim", 0) > 0:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if integer and not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {value}")
    left = low is None or (value >= low if closed in ("both", "left") else value > low)
    right = high is None or (value <= high if closed in ("both", "right") else value < high)
    if not (left and right) or value != value:
        ends = []
        if low is not None:
            ends.append(f"{'>=' if closed in ('both', 'left') else '>'} {low}")
        if high is not None:
            ends.append(f"{'<=' if closed in ('both', 'right') else '<'} {high}")
        raise ValueError(f"{name} must be {' and '.join(ends) or 'a number'}, got {value}")
    return value


def check_option(value: Any, name: str, options: Collection[Any]) -> Any:
    """Check that ``value`` is one of ``options``, and return it.

    Raises
    ------
    ValueError
        If it is none of them; the message lists them.

    Examples
    --------
    >>> check_option("svd", "method", ("svd", "newton_schulz"))
    'svd'
    """
    if value not in list(options):
        raise ValueError(f"{name} must be one of {', '.join(repr(o) for o in options)}, got {value!r}")
    return value


def check_same(**tensors: Tensor | None) -> None:
    """Check that tensors live on one device and share one dtype (``None`` entries are skipped).

    Raises
    ------
    ValueError
        Naming the two arguments that differ.

    Examples
    --------
    >>> check_same(a=torch.ones(2), b=torch.ones(3))
    >>> check_same(a=torch.ones(2), M=torch.ones(2, dtype=torch.float64))
    Traceback (most recent call last):
        ...
    ValueError: a and M must have the same dtype, got torch.float32 and torch.float64
    """
    given = {name: x for name, x in tensors.items() if x is not None}
    first = next(iter(given), "")
    for name, x in given.items():
        for what in ("device", "dtype"):
            mine, other = getattr(given[first], what), getattr(x, what)
            if mine != other:
                raise ValueError(f"{first} and {name} must have the same {what}, got {mine} and {other}")


def _all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite, as far as one pass tells: a sum of finite values may still overflow.

    While ``torch.compile`` traces, values are not looked at: that would break the graph.
    """
    if torch.compiler.is_compiling() or not (x.dtype.is_floating_point or x.dtype.is_complex):
        return True
    return bool(torch.isfinite(x.detach().sum()))
