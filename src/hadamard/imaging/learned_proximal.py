"""Learned proximal networks: denoisers that are exactly the proximal map of a prior, which can be evaluated.

A continuous map is the proximal map of some function R, convex or not, exactly if it is the gradient of a convex
function psi. So psi is an input-convex network, the denoiser is its gradient, and R follows from psi by duality.
Trained with the proximal matching loss on clean data and noise alone, the denoiser tends to the most probable clean
signal and R to ``-noise_level^2 log p(x)`` plus a constant.
"""

from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.imaging.convex_networks import PatchICNN
from hadamard.results import Solution, warn_short
from hadamard.solvers.lbfgs import minimize
from hadamard.training import load_checkpoint
from hadamard.validation import check_range, check_tensor

__all__ = ["LearnedProximal", "pretrained"]


class LearnedProximal(nn.Module):
    """A denoiser that is the proximal map of a prior R: ``forward(y)`` minimises ``R(u) + ||u - y||^2 / 2`` over ``u``.

    It is ``f(y) = grad psi(y)`` with ``psi(y) = network(y) + strong_convexity ||y||^2 / 2``. Any solver that alternates
    between data and a proximal map therefore converges with it, and says what it minimises.

    Parameters
    ----------
    network
        A convex function, such as :class:`ICNN` (vectors) or :class:`PatchICNN` (grey pictures): takes (batch, ...) and
        returns (batch,).
    strong_convexity
        Modulus mu, at least 0. Above 0 the denoiser is one-to-one, ``<f(a) - f(b), a - b> >= mu ||a - b||^2``, and R is
        finite everywhere; at 0 it is finite on the range of f. (Where an implementation adds ``alpha ||y||^2``,
        mu = 2 alpha.)
    noise_level
        Standard deviation of the noise that it was, or will be, trained to remove.

    Notes
    -----
    ``prox``, ``fn`` and ``forward(x, sigma)`` have the signatures that deepinv's priors and denoisers have. Another
    level than the trained one is reached by scaling: with ``c = sigma / noise_level``, ``c f(y / c)`` is exactly the
    proximal map of ``c^2 R(x / c)``; it suits noise of level sigma as far as the prior does not mind contrast.

    The gradient is taken inside ``forward``, so it works under ``torch.no_grad()`` and leaves the caller's tensor as it
    is.

    References
    ----------
    Z. Fang, S. Buchanan, J. Sulam. What's in a Prior? Learned Proximal Networks for Inverse Problems. ICLR 2024,
    arXiv:2310.14344.

    Examples
    --------
    >>> from hadamard.imaging import ICNN
    >>> f = LearnedProximal(ICNN(2, (8, 8), generator=torch.Generator().manual_seed(0)), strong_convexity=0.5)
    >>> y = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    >>> x = f.double()(y)
    >>> torch.allclose(f.inverse(x).value, y, atol=1e-5)
    True
    """

    def __init__(self, network: nn.Module, *, strong_convexity: float = 0.0, noise_level: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.strong_convexity = float(check_range(strong_convexity, "strong_convexity", 0))
        self.noise_level = float(check_range(noise_level, "noise_level", 0, closed="neither"))
        self.scale = 1.0

    def forward(self, y: Float[Tensor, "batch ..."], sigma: float | None = None) -> Float[Tensor, "batch ..."]:
        """Apply the proximal map, at noise level ``sigma`` (``None``: the one that it stands at)."""
        if sigma is not None:
            return self.at(sigma)(y)
        return self._value_and_gradient(y)[1]

    def potential(self, y: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """Evaluate the convex function psi whose gradient the proximal map is."""
        self._check(y, "y")
        squares = y.flatten(1).square().sum(1)
        return self.scale**2 * self.network(y / self.scale) + self.strong_convexity / 2 * squares

    def at(self, sigma: float) -> "LearnedProximal":
        """Give the proximal map for another noise level; it shares the weights."""
        check_range(sigma, "sigma", 0, closed="neither")
        other = copy(self)
        other.scale = float(sigma) / self.noise_level
        return other

    def inverse(self, x: Float[Tensor, "batch ..."], tol: float = 1e-6, max_iter: int = 1000) -> Solution:
        """Find the input that the proximal map sends to ``x``: the minimiser of ``psi(y) - <x, y>``, by L-BFGS.

        Parameters
        ----------
        x
            Where to invert; float64 (with weights in float64) for a small ``tol``.
        tol
            Bound on the largest entry of ``f(y) - x``.
        max_iter
            Greatest number of iterations.

        Returns
        -------
        Solution
            ``value`` of the shape of ``x``; ``extras["residuals"]`` the largest entry of ``abs(f(y) - x)`` for each
            element of the batch.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If ``tol`` was not met: too few iterations, or ``x`` is outside the range of f.
        """
        found = self._invert(x, tol, max_iter)
        if not found.converged:
            warn_short(found.message)
        return found

    def prior(self, x: Float[Tensor, "batch ..."], tol: float = 1e-5, max_iter: int = 1000) -> Float[Tensor, " batch"]:
        """Evaluate R, up to an additive constant; ``inf`` where f reaches no point within ``tol`` of ``x``."""
        found = self._invert(x, tol, max_iter)
        with torch.no_grad():
            value = self._prior(found.value, x, self.potential(found.value))
        return torch.where(found.extras["residuals"] <= tol, value, torch.inf)

    def prox_and_prior(
        self, y: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Apply the proximal map and evaluate R at the result, which needs no inversion."""
        psi, x = self._value_and_gradient(y)
        return x, self._prior(y, x, psi)

    def fn(self, x: Float[Tensor, "batch ..."], *args: Any, **kwargs: Any) -> Float[Tensor, " batch"]:
        """Evaluate R: :meth:`prior` under the name that deepinv calls it by."""
        return self.prior(x)

    def prox(self, x: Float[Tensor, "batch ..."], *args: Any, gamma: float = 1.0) -> Float[Tensor, "batch ..."]:
        """Minimise ``gamma R(u) + ||u - x||^2 / 2`` over ``u``.

        At ``gamma = 1`` this is the network. Below 1 it is ``f(v)`` at the minimiser ``v`` of the strongly convex
        ``gamma ||v||^2 / 2 + (1 - gamma) psi(v) - <x, v>``, found by L-BFGS. Above 1 the problem may have many
        solutions; for more smoothing use another level (:meth:`at`).
        """
        if check_range(gamma, "gamma", 0, 1, closed="right") == 1:
            return self(x)
        found = self._minimise(x, gamma, 1 - gamma, 1e-6, 1000)
        if not found.converged:
            warn_short(found.message)
        return self(found.value)

    def project_(self) -> "LearnedProximal":
        """Make the network convex again after a step of an optimizer."""
        project = getattr(self.network, "project_", None)
        if project is not None:
            project()
        return self

    def _prior(self, y: Tensor, x: Tensor, psi: Tensor) -> Tensor:
        """Evaluate R(x) where x = f(y): ``<y, x> - ||x||^2 / 2 - psi(y)``."""
        return ((y - x / 2) * x).flatten(1).sum(1) - psi

    def _value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate psi and f = grad psi; differentiable where autograd is on."""
        self._check(y, "y")
        record = torch.is_grad_enabled() and (y.requires_grad or any(p.requires_grad for p in self.parameters()))
        with torch.inference_mode(False), torch.enable_grad():
            y = y.clone() if y.is_inference() else y
            y = y if record and y.requires_grad else y.detach().requires_grad_()
            psi = self.potential(y)
            (gradient,) = torch.autograd.grad(psi.sum(), y, create_graph=record)
        return (psi, gradient) if record else (psi.detach(), gradient)

    def _invert(self, x: Tensor, tol: float, max_iter: int) -> Solution:
        return self._minimise(x, 0.0, 1.0, tol, max_iter)

    def _minimise(self, x: Tensor, quadratic: float, weight: float, tol: float, max_iter: int) -> Solution:
        """Minimise ``quadratic ||v||^2 / 2 + weight psi(v) - <x, v>`` over ``v`` for the whole batch at once."""
        self._check(check_tensor(x, "x", dtype="floating"), "x")
        x = x.detach()

        def value_and_gradient(v: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                psi, f = self._value_and_gradient(v)
                value = (quadratic / 2 * v.square() - x * v).sum() + weight * psi.sum()
                return value, quadratic * v + weight * f - x

        found = minimize(value_and_gradient, x, tol=tol, max_iter=max_iter, warn=False)
        residuals = value_and_gradient(found.value)[1].flatten(1).abs().amax(1)
        return Solution(
            value=found.value,
            iterations=found.iterations,
            residual=found.residual,
            converged=found.converged,
            message=found.message,
            extras={"residuals": residuals},
        )

    def _check(self, y: Tensor, name: str) -> None:
        check_tensor(y, name, dtype="floating")
        own = next(self.network.parameters(), y)
        if (y.dtype, y.device) != (own.dtype, own.device):
            raise TypeError(
                f"{name} must have the dtype and device of the weights, {own.dtype} on {own.device}, got {y.dtype} on "
                f"{y.device}; move one with .to()"
            )


def pretrained() -> LearnedProximal:
    """Load the prior of grey photographs with values in [0, 1] that comes with hadamard, trained at noise level 0.1.

    Returns
    -------
    LearnedProximal
        In float32 on the CPU, without gradients; for pictures of shape (batch, 1, height, width), both at least 8.
        Colours go through one at a time.

    Examples
    --------
    >>> denoiser = pretrained()
    >>> picture = torch.full((1, 1, 20, 30), 0.5)
    >>> bool((denoiser(picture, sigma=0.05) - picture).abs().max() < 0.02)
    True
    """
    module = LearnedProximal(PatchICNN(), strong_convexity=2e-6, noise_level=0.1)
    return load_checkpoint("learned_proximal_photographs", module).requires_grad_(False).eval()
