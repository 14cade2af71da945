"""The heat equation ``u_t = diffusivity * laplacian(u)`` on a box, solved exactly in its eigenfunctions."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.spectral.fft import frequencies
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["heat"]


def heat(
    u: Float[Tensor, "*batch_and_space"],
    times: Float[Tensor, " t"] | Sequence[float],
    diffusivity: float = 1.0,
    *,
    dims: int = 1,
    length: float = 1.0,
    boundary: str = "periodic",
) -> Float[Tensor, "..."]:
    """Evolve temperatures: each eigenfunction of the Laplacian decays at its own rate.

    Parameters
    ----------
    u
        Temperatures at time 0 of shape (..., \\*space): at the points ``i length / n`` of a periodic axis of n points,
        else at the midpoints ``(i + 1/2) length / n`` of n cells.
    times
        When to evaluate, at least 0.
    diffusivity
        In units of length^2 / time.
    dims
        Number of dimensions of space.
    length
        Of the box along each of them.
    boundary
        ``"periodic"``, ``"neumann"`` (no flux) or ``"dirichlet"`` (temperature 0).

    Returns
    -------
    Tensor
        Of shape (..., t, \\*space): exact for the trigonometric interpolant of ``u``, whatever the time.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Boundaries are reflections: the field is continued evenly (no flux) or oddly (zero) to twice the length, where it is
    periodic. A field that does not meet the boundary's condition converges slowly with the number of points.

    Examples
    --------
    >>> x = torch.arange(8) / 8
    >>> u = heat(torch.sin(2 * torch.pi * x), [0.0, 0.01])
    >>> round(float(u[1, 2] / u[0, 2]), 4), round(math.exp(-0.01 * (2 * math.pi) ** 2), 4)
    (0.6738, 0.6738)
    """
    check_tensor(u, "u", dtype="floating")
    check_range(diffusivity, "diffusivity", 0)
    check_range(dims, "dims", 1, u.ndim, integer=True)
    check_range(length, "length", 0, None, closed="neither")
    check_option(boundary, "boundary", ("periodic", "neumann", "dirichlet"))
    moments = torch.as_tensor(times, dtype=u.dtype, device=u.device)
    check_range(check_tensor(moments, "times", ndim=1), "times", 0, elementwise=True)
    axes, shape = tuple(range(-dims, 0)), u.shape[-dims:]
    for axis in axes if boundary != "periodic" else ():
        u = torch.cat([u, (1 if boundary == "neumann" else -1) * u.flip(axis)], axis)
    sizes = u.shape[-dims:]
    spacing = [length / n for n in shape]
    grids = frequencies(sizes, spacing, real=True, dtype=u.dtype, device=u.device)
    square = sum((2 * math.pi * k).square() for k in grids)
    assert isinstance(square, Tensor)
    decay = torch.exp(-diffusivity * moments.reshape(-1, *[1] * dims) * square)
    v = torch.fft.irfftn(torch.fft.rfftn(u, dim=axes).unsqueeze(-dims - 1) * decay, s=sizes, dim=axes)
    for axis, n in zip(axes, shape):
        v = v.narrow(axis, 0, n)
    return v
