"""How wrong a predicted flow is, from its residual alone: negative Sobolev norms as error estimators.

References
----------
S. Cao, F. Brarda, R. Li, Y. Xi, "Spectral-Refiner: Accurate Fine-Tuning of Spatiotemporal Fourier Neural Operator for
Turbulent Flows", ICLR 2025, arXiv:2405.17211.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from hadamard.pde.navier_stokes import NavierStokes2D
from hadamard.spectral.fft import frequencies
from hadamard.spectral.norms import sobolev_weight, weighted_norm
from hadamard.validation import check_range, check_tensor

__all__ = ["ALPHA", "SobolevLoss", "residual_norm"]

ALPHA = 10**-1.5


class SobolevLoss(nn.Module):
    """Mean over a batch of Sobolev norms ``(sum_k (alpha + 4 pi^2 |k|^2)^s |x^(k) - y^(k)|^2)^(1/2)``.

    Parameters
    ----------
    s
        Order; 0 is the root mean square, whatever ``alpha``.
    alpha
        What the zero frequency counts, to the power of ``s``.
    length
        Of the periodic box, one for all axes or one an axis.
    dims
        Number of axes of space, the last ones of the fields.
    relative
        Divide by the norm of the target.

    Notes
    -----
    ``s`` is the order of the norm, as in the paper: amplitudes are multiplied by ``(alpha + 4 pi^2 |k|^2)^(s / 2)``.
    (The paper's published code applies the exponent ``s / 4``, and no order of it is L2.)

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(8) / 8
    >>> wave = torch.sin(2 * torch.pi * x)[None]
    >>> SobolevLoss(0, dims=1)(wave, 0 * wave), SobolevLoss(1, alpha=0.0, dims=1)(wave, 0 * wave) / (2 * torch.pi)
    (tensor(0.7071), tensor(0.7071))
    """

    def __init__(
        self, s: float = -1.0, alpha: float = ALPHA, length: float | Sequence[float] = 1.0, dims: int = 2,
        relative: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.s, self.relative = s, relative
        self.alpha = check_range(alpha, "alpha", 0)
        self.dims = check_range(dims, "dims", 1, integer=True)
        self.length = [length] * dims if isinstance(length, (int, float)) else list(length)
        if len(self.length) != dims:
            raise ValueError(f"length must be one number or {dims}, got {len(self.length)}")

    def forward(
        self, x: Float[Tensor, "batch *space"], y: Float[Tensor, "batch *space"] | None = None
    ) -> Float[Tensor, ""]:
        """The norm of ``x - y`` (of ``x`` where there is no ``y``); dimensions before those of space are averaged."""
        check_tensor(x, "x", dtype="floating", finite=False)
        axes = tuple(range(-self.dims, 0))
        spacing = [size / n for size, n in zip(self.length, x.shape[-self.dims :])]
        grids = frequencies(x.shape[-self.dims :], spacing, real=True, dtype=x.dtype, device=x.device)
        weight = sobolev_weight(grids, self.s, self.alpha)
        norm = _over_slices(x if y is None else x - y, weight, axes)
        if self.relative:
            if y is None:
                raise ValueError("y must be given where the loss is relative")
            norm = norm / _over_slices(y, weight, axes)
        return norm.mean()


def residual_norm(
    pde: NavierStokes2D,
    w: Float[Tensor, "*batch t nx ny"],
    dt: float,
    *,
    s: float = -1.0,
    alpha: float = ALPHA,
    t: float = 0.0,
) -> Float[Tensor, "*batch"]:
    """Estimate the error of a trajectory without knowing the truth: the norm of its residual.

    ``(dt sum_l ||r_l||_s^2)^(1/2)`` with the residuals ``r_l`` of :meth:`NavierStokes2D.residual`, the norm of
    L2(0, T; H^s). Where convection at a speed U prevails, an error of frequency k leaves a residual of ``2 pi |k| U``
    times its size: with ``s = -1`` errors count alike whatever their frequency, with ``s = 0`` fine ones count more.

    Parameters
    ----------
    pde
        The equation.
    w
        The known start and the predicted slices at equal distances ``dt``.
    dt, t
        Time between slices and of the first one.
    s, alpha
        Order of the norm, and what its zero frequency counts.

    Notes
    -----
    The residual is that of Crank-Nicolson, so the estimate does not fall below the error O(dt^2) of that scheme. It
    compares trajectories; a constant relates it to the error, which depends on the flow and on T.

    Examples
    --------
    >>> import torch
    >>> from hadamard.pde import grid_points
    >>> x, y = grid_points((8, 8))
    >>> flow = NavierStokes2D(1e-3)
    >>> w = flow.solve(torch.sin(2 * torch.pi * x) * torch.cos(2 * torch.pi * y), dt=0.1, steps=4)
    >>> residual_norm(flow, w, 0.1) < 1e-4 < residual_norm(flow, w.flip(0), 0.1)
    tensor(True)
    """
    residual = pde.residual(w, dt, t)
    weight = pde.sobolev_weight(w, s, alpha)
    return (dt * weighted_norm(residual, weight, squared=True).sum(-1)).sqrt()


def _over_slices(x: Tensor, weight: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Root of the mean square over the dimensions between the batch's and space."""
    square = weighted_norm(x, weight, axes, squared=True)
    return square.flatten(1).mean(1).sqrt() if square.ndim > 1 else square.sqrt()
