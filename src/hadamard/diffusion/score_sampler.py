"""Samples of the density that a denoiser knows, by steps along its score with less and less noise."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_range, check_tensor

__all__ = ["ScoreSampler"]


class ScoreSampler:
    """Draw pictures with a denoiser, blind or not: it moves towards what the denoiser returns and puts some noise back.

    Parameters
    ----------
    denoiser
        ``D(x, sigma) -> x0`` on batches, as :func:`as_denoiser` makes it.
    sigma_0, sigma_L
        Level of noise at the start and at the end. A network that was trained little does not end below what it
        can tell from a clean picture: choose ``sigma_L`` above it.
    h0
        First step size; it grows towards 1, ``h_t = h0 t / (1 + h0 (t - 1))``.
    beta
        From 0 to 1: how much faster than necessary noise is taken away; 1 puts none back, small ones take more steps.
    mean
        Of the start, the middle of the pictures' range.
    max_iter
        Greatest number of steps.

    Notes
    -----
    The level of noise is read off what the denoiser takes away, ``||y - D(y)|| / sqrt(P)``, for each picture by itself
    [1]_; a denoiser that is told the level is told that of the step before.

    **When not to use it**: with a model that has a scheduler of diffusers, whose solvers take fewer steps.

    References
    ----------
    .. [1] Z. Kadkhodaie, E. P. Simoncelli. Stochastic Solutions for Linear Inverse Problems using the Prior Implicit
           in a Denoiser. NeurIPS 2021, arXiv:2007.13640.

    Examples
    --------
    >>> denoise = lambda x, sigma: x * 0 + 0.25  # knows one picture only
    >>> ScoreSampler(denoise, h0=0.1)((2, 1, 16, 16), torch.Generator().manual_seed(0)).unique()
    tensor([0.2500])
    """

    def __init__(
        self,
        denoiser: Callable[[Tensor, Any], Tensor],
        sigma_0: float = 1.0,
        sigma_L: float = 0.01,
        h0: float = 0.01,
        beta: float = 0.1,
        *,
        mean: float = 0.5,
        max_iter: int = 5000,
    ) -> None:
        self.denoiser, self.mean = denoiser, mean
        self.sigma_0 = check_range(sigma_0, "sigma_0", 0, None, closed="neither")
        self.sigma_L = check_range(sigma_L, "sigma_L", 0, sigma_0, closed="neither")
        self.h0 = check_range(h0, "h0", 0, 1, closed="right")
        self.beta = check_range(beta, "beta", 0, 1, closed="right")
        self.max_iter = check_range(max_iter, "max_iter", 1, integer=True)

    @torch.no_grad()
    def __call__(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        *,
        constraint: tuple[Float[Tensor, "p m"], Float[Tensor, "..."]] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "b *shape"]:
        """Draw pictures.

        Parameters
        ----------
        shape
            Of the batch: (B, C, H, W).
        generator
            Of the noise; ``None``: a fixed seed.
        constraint
            Measurements that the pictures must have: a matrix M of orthonormal columns, shape (P, m), and
            ``M^T x``, shape (m,) or (B, m).
        dtype, device
            Of the pictures.

        Returns
        -------
        Tensor
            After a last denoising, and with exactly the measurements that were given.

        Raises
        ------
        ValueError
            If the columns of M are not orthonormal.
        RuntimeError
            If the noise grows above twice that of the start (more in pictures of few pixels), or is not gone after
            ``max_iter`` steps.
        """
        generator = generator or torch.Generator().manual_seed(0)
        device = device if device is not None else generator.device
        y = self.mean + self.sigma_0 * self._noise(shape, generator, dtype, device)
        along = [-1] + [1] * (y.ndim - 1)
        M, seen = _measurements(constraint, y)
        sigma = torch.full((len(y),), self.sigma_0, dtype=dtype, device=device)
        limit = self.sigma_0 * (2 + 8 / y[0].numel() ** 0.5)  # estimates from few pixels scatter
        for t in range(1, self.max_iter + 1):
            d = y - self.denoiser(y, sigma)
            if M is not None:
                flat = d.flatten(1)
                d = (flat - flat @ M @ M.T + (y.flatten(1) @ M - seen) @ M.T).reshape(y.shape)
            sigma = d.flatten(1).square().mean(1).sqrt().clamp(min=1e-3 * self.sigma_L)
            if not bool((sigma <= limit).all()):
                raise RuntimeError(
                    f"the sampler diverges: noise of {float(sigma.max()):.3g} at step {t}, from {self.sigma_0:g}; "
                    "the denoiser does not know such noise, or h0 is too large"
                )
            open_ = (sigma > self.sigma_L).reshape(along)
            if not bool(open_.any()):
                x = self.denoiser(y, sigma)
                return x if M is None or seen is None else x - ((x.flatten(1) @ M - seen) @ M.T).reshape(x.shape)
            h = self.h0 * t / (1 + self.h0 * (t - 1))
            gamma = ((1 - self.beta * h) ** 2 - (1 - h) ** 2) ** 0.5 * sigma.reshape(along)
            step = gamma * self._noise(shape, generator, dtype, device) - h * d
            y = torch.where(open_, y + step, y)
        raise RuntimeError(
            f"the sampler did not end in max_iter={self.max_iter} steps: noise of {float(sigma.max()):.3g}, "
            f"above sigma_L={self.sigma_L:g}"
        )

    @staticmethod
    def _noise(shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype, device: Any) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=dtype).to(device)


def _measurements(constraint: tuple[Tensor, Tensor] | None, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if constraint is None:
        return None, None
    M, seen = (part.to(y) for part in constraint)
    check_tensor(M, "constraint's matrix", ndim=2, dtype="floating")
    if M.shape[0] != y[0].numel():
        raise ValueError(f"constraint's matrix must have {y[0].numel()} rows, got {M.shape[0]}")
    check_tensor(seen, "constraint's measurements", shape=(M.shape[1],), dtype="floating")
    off = float((M.T @ M - torch.eye(M.shape[1]).to(M)).abs().max())
    if off > 1e-4:
        raise ValueError(f"constraint's matrix must have orthonormal columns, got inner products off by {off:.2g}")
    return M, seen
