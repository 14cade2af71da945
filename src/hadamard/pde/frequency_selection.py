"""How many coefficients to keep: the error that no reduced-order network can fall below, measured on data."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from hadamard.pde.expansions import check_modes, expansion
from hadamard.validation import check_range, check_tensor

__all__ = ["coefficient_loss", "suggest_modes", "truncation_error"]


def coefficient_loss(
    z: Inexact[Tensor, "batch channels *modes"], y: Float[Tensor, "batch channels *grid"], transform: str = "dct"
) -> Float[Tensor, ""]:
    """Mean relative L2 error of the fields that coefficients stand for, without transforming back.

    By Parseval it is the loss in space, exactly: what ``y`` has above the kept modes counts as error.

    Parameters
    ----------
    z
        Coefficients, as :class:`T1` gives with ``output="coefficients"``.
    y
        Target fields on any grid that resolves as many modes.
    transform
        The network's, ``"dct"`` or ``"dft"``.

    Raises
    ------
    ValueError
        If a target is zero everywhere, or batch, channels or dimensions do not fit.

    Examples
    --------
    >>> from hadamard.pde import T1
    >>> y = torch.rand(2, 1, 16, 16)
    >>> net = T1((4, 4), 1, 1, 8, output="coefficients")
    >>> z = net(torch.rand(2, 1, 16, 16))
    >>> space = (net.synthesise(z, (16, 16)) - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
    >>> bool(torch.allclose(coefficient_loss(z, y), space.mean()))
    True
    """
    basis = expansion(transform)
    check_tensor(y, "y", dtype="floating", ndim=z.ndim)
    if z.shape[:2] != y.shape[:2]:
        raise ValueError(f"y must have shape (batch, channels) = {tuple(z.shape[:2])} as z has, got {tuple(y.shape)}")
    dims = z.ndim - 2
    n_modes = [(m + 1) // 2 if basis.is_complex else m for m in z.shape[2:-1]] + [z.shape[-1]]
    with torch.autocast(z.device.type, enabled=False):
        target = basis.analyse(y, n_modes)
        whole = y.square().flatten(2).mean(2)
        above = (whole - basis.square(target, dims)).clamp(min=0)
        wrong = (basis.square(z - target, dims) + above).sum(1)
        whole = whole.sum(1)
    if not torch.compiler.is_compiling() and not bool((whole > 0).all()):
        raise ValueError("y must not vanish everywhere: the error relative to it is not defined")
    return (wrong / whole).sqrt().mean()


def truncation_error(
    fields: Float[Tensor, "batch *channels_and_grid"], n_modes: Sequence[int], transform: str = "dct"
) -> Float[Tensor, " batch"]:
    """Relative L2 error of each sample if all but its lowest coefficients are dropped: a floor under any T1's error.

    Parameters
    ----------
    fields
        Samples, channels if there are any, then the grid.
    n_modes
        Modes kept along each of the grid's axes.
    transform
        ``"dct"`` or ``"dft"``.

    Raises
    ------
    ValueError
        If there are more modes than the grid has, or a sample is zero everywhere.

    Examples
    --------
    >>> t = (torch.arange(32) + 0.5) / 32
    >>> truncation_error((1 + torch.cos(5 * torch.pi * t))[None], (6,)).round(decimals=3)
    tensor([0.])
    """
    basis, modes = expansion(transform), check_modes(n_modes)
    check_tensor(fields, "fields", dtype="floating")
    _check_ndim(fields, len(modes))
    basis.check(fields.shape[-len(modes) :], modes)
    dtype, fields = fields.dtype, fields.double()  # a small difference of squares
    kept = basis.square(basis.analyse(fields, modes), len(modes)).reshape(len(fields), -1).sum(1)
    whole = fields.square().flatten(-len(modes)).mean(-1).reshape(len(fields), -1).sum(1)
    if not bool((whole > 0).all()):
        raise ValueError("fields must not vanish everywhere: the error relative to them is not defined")
    return (1 - kept / whole).clamp(min=0).sqrt().to(dtype)


def suggest_modes(
    fields: Float[Tensor, "batch *channels_and_grid"],
    tol: float = 0.01,
    transform: str = "dct",
    *,
    dims: int = 2,
    quantile: float = 0.95,
) -> tuple[int, ...]:
    """The fewest modes along each axis with which targets can be met to a relative L2 error of ``tol``.

    Parameters
    ----------
    fields
        Targets (and inputs, if they matter to that detail) of the training set: samples, channels, grid.
    tol
        Largest :func:`truncation_error` allowed.
    transform
        ``"dct"`` or ``"dft"``.
    dims
        How many of the last dimensions are space.
    quantile
        Of the samples, how many must meet ``tol``. Leave some room below 1 where the training set is large, and test
        on samples left out.

    Returns
    -------
    tuple of int
        For :class:`T1`. Starting from the whole grid, the axis that loses least gives up modes, until one more would be
        too much.

    Raises
    ------
    ValueError
        If ``tol`` cannot be met (waves drop the Nyquist frequency of an even grid), or an argument is out of range.

    Examples
    --------
    >>> t = (torch.arange(32) + 0.5) / 32
    >>> suggest_modes((torch.cos(5 * torch.pi * t)[:, None] * torch.cos(2 * torch.pi * t))[None])
    (6, 3)
    """
    basis = expansion(transform)
    check_tensor(fields, "fields", dtype="floating")
    check_range(tol, "tol", 0, 1, closed="neither")
    check_range(quantile, "quantile", 0, 1, closed="right")
    check_range(dims, "dims", 1, integer=True)
    _check_ndim(fields, dims)
    size = fields.shape[-dims:]
    whole = tuple(basis.most(n) for n in size)
    x = fields.double()
    z = basis.analyse(x, whole)
    squares = (z * z.conj()).real * basis.weight(whole, z.real)
    squares = squares.reshape(len(x), -1, *squares.shape[-dims:]).sum(1)
    if basis.is_complex:  # frequencies k and -k of an axis go together
        for axis in range(dims - 1):
            m, line = whole[axis], squares.movedim(1 + axis, -1)
            folded = line[..., :m].clone()
            folded[..., 1:] += line[..., m:].flip(-1)
            squares = folded.movedim(-1, 1 + axis)
    total = x.square().flatten(-dims).mean(-1).reshape(len(x), -1).sum(1)
    if not bool((total > 0).all()):
        raise ValueError("fields must not vanish everywhere: the error relative to them is not defined")
    kept = squares
    for axis in range(1, dims + 1):
        kept = kept.cumsum(axis)

    def error(modes: list[int]) -> float:
        within = kept
        for m in modes:
            within = within[:, m - 1]
        missing = (1 - within / total).clamp(min=0)
        return float(torch.quantile(missing, quantile, interpolation="higher")) ** 0.5

    modes = list(whole)
    if error(modes) > tol:
        raise ValueError(f"tol must be at least {error(modes):.3g}, the error of all modes, got {tol}")
    while True:
        fewer = [[m - (i == axis) for i, m in enumerate(modes)] for axis in range(dims) if modes[axis] > 1]
        best = min(fewer, key=error, default=modes)
        if best is modes or error(best) > tol:
            return tuple(modes)
        modes = best


def _check_ndim(fields: Tensor, dims: int) -> None:
    if fields.ndim < dims + 1:
        raise ValueError(f"fields must have a batch and {dims} dimension(s) of space, got shape {tuple(fields.shape)}")
