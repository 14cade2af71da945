"""What a denoiser does to one picture: the eigenvectors of its Jacobian, and by how much it shrinks along each.

Near a noisy picture ``y`` a denoiser acts as its Jacobian ``J(y)``. Where ``J`` is nearly symmetric, it shrinks the
coefficients of ``y`` in an orthonormal basis that it has chosen for this picture, by its eigenvalues. What is kept
counts as dimensions, their number is the trace, and with Stein's formula it gives the error without the clean picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hadamard.solvers import hutchinson
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["JacobianSpectrum", "denoiser_jacobian", "effective_dimension", "sure"]

Denoise = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class JacobianSpectrum:
    """Eigenvalues and eigenvectors of a denoiser's Jacobian at one picture.

    Attributes
    ----------
    eigenvalues : Tensor
        Of the symmetric part, in descending order, shape (k,): the factors by which the denoiser shrinks.
    eigenvectors : Tensor
        Orthonormal, shape (k, *picture).
    asymmetry : float
        ``||J - J^T|| / ||J||``, Frobenius norms: 0 for a symmetric Jacobian, 1.41 for unrelated entries. The
        eigenvectors describe the denoiser where it is small; look at it first.
    remainder : float
        ``||D(y) - J y|| / ||D(y)||``: zero for a network without biases, otherwise the part that is not in ``J``.
    sigma : float
        The level of noise.
    denoised : Tensor
        ``D(y)``.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    asymmetry: float
    remainder: float
    sigma: float
    denoised: Tensor

    def coefficients(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, " k"]:
        """Inner products of a picture with the eigenvectors."""
        check_tensor(x, "x", dtype="floating", shape=tuple(self.eigenvectors.shape[1:]))
        return self.eigenvectors.flatten(1) @ x.flatten().to(self.eigenvectors)

    def oracle(self, clean: Float[Tensor, "*shape"]) -> Float[Tensor, " k"]:
        """The best factors in this basis, ``c^2 / (c^2 + sigma^2)``, which need the clean picture's coefficients c."""
        energy = self.coefficients(clean).square()
        return energy / (energy + self.sigma**2)

    def risk(self, clean: Float[Tensor, "*shape"], factors: Float[Tensor, " k"] | None = None) -> float:
        """Expected squared error, summed over the basis, of fixed factors in it.

        Parameters
        ----------
        clean
            The clean picture.
        factors
            ``None``: the oracle's, which give the least.
        """
        factors = self.oracle(clean) if factors is None else factors
        energy = self.coefficients(clean).square()
        return float(((1 - factors).square() * energy + factors.square() * self.sigma**2).sum())

    def __str__(self) -> str:
        values = self.eigenvalues
        return (
            f"{len(values)} eigenvalues from {float(values[0]):.3g} down to {float(values[-1]):.3g}, sum "
            f"{float(values.sum()):.4g}; asymmetry {self.asymmetry:.2g}, not in J y: {self.remainder:.2g}"
        )


def denoiser_jacobian(
    denoiser: Denoise,
    y: Float[Tensor, "*shape"],
    sigma: float,
    *,
    k: int | None = None,
    method: str = "exact",
    batch: int = 64,
    generator: torch.Generator | None = None,
) -> JacobianSpectrum:
    """Find the basis in which a denoiser shrinks a picture, and the factors.

    Parameters
    ----------
    denoiser
        ``D(x, sigma) -> x0`` on batches, as :func:`as_denoiser` makes it, in evaluation mode.
    y
        One noisy picture, without a batch dimension, P numbers in all.
    sigma
        Its level of noise, positive.
    k
        Number of eigenvectors, those of the greatest eigenvalues; ``None``: all, or 16 with ``"lanczos"``.
    method
        ``"exact"``: the whole Jacobian, P gradients and P^2 numbers; ``"lanczos"``: by products with vectors, about 20
        to 100 gradients of the network and k P numbers, for large pictures and latents.
    batch
        Gradients computed at once.
    generator
        Of the start of Lanczos' method and of the probes of asymmetry; ``None``: a fixed seed.

    Returns
    -------
    JacobianSpectrum

    Raises
    ------
    TypeError, ValueError
        If the denoiser is in training mode or changes the shape, ``y`` is not finite, or a number lies outside its
        range.

    Notes
    -----
    The analysis is that of [1]_. Here the symmetric part ``(J + J^T) / 2`` is decomposed; the paper's networks have
    Jacobians that are close to symmetric. ``"lanczos"`` needs forward-mode derivatives of the network, as
    nearly all of torch's operations have them; attention runs unfused meanwhile.

    **When not to use it**: where ``asymmetry`` is large, as in networks after few steps of training: then the
    denoiser does not shrink in any orthonormal basis.

    References
    ----------
    .. [1] Z. Kadkhodaie, F. Guth, E. P. Simoncelli, S. Mallat. Generalization in diffusion models arises from
           geometry-adaptive harmonic representations. ICLR 2024, arXiv:2310.02557.

    Examples
    --------
    A denoiser that keeps what is common to the pixels and halves the rest:

    >>> denoise = lambda x, sigma: (x + x.mean((1, 2), keepdim=True)) / 2
    >>> spectrum = denoiser_jacobian(denoise, torch.ones(2, 3), sigma=0.1)
    >>> spectrum.eigenvalues
    tensor([1.0000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000])
    """
    _check(denoiser, y, sigma)
    check_option(method, "method", ("exact", "lanczos"))
    check_range(batch, "batch", 1, integer=True)
    size = y.numel()
    most = size if method == "exact" else size - 1
    if k is not None:
        check_range(k, "k", 1, most, integer=True)
    with torch.no_grad():
        denoised = denoiser(y[None], sigma)[0]
    if denoised.shape != y.shape:
        raise ValueError(f"denoiser must keep the shape {tuple(y.shape)}, got {tuple(denoised.shape)}")
    flat = denoised.flatten().double()
    scale = float(flat.norm()) or 1.0
    if method == "exact":
        J = _jacobian(denoiser, y, sigma, batch).double()
        values, vectors = torch.linalg.eigh((J + J.T) / 2)
        keep = size if k is None else k
        values, vectors = values.flip(0)[:keep], vectors.flip(1)[:, :keep]
        asymmetry = float((J - J.T).norm() / J.norm()) if bool(J.any()) else 0.0
        remainder = float((flat - J @ y.flatten().double()).norm()) / scale
    else:
        values, vectors, asymmetry = _lanczos(denoiser, y, sigma, min(16, most) if k is None else k, generator)
        remainder = float((flat - _jvp(denoiser, y, sigma, y).flatten().double()).norm()) / scale
    return JacobianSpectrum(
        values.to(y), vectors.T.reshape(-1, *y.shape).to(y), asymmetry, remainder, float(sigma), denoised
    )


def effective_dimension(
    denoiser: Denoise,
    y: Float[Tensor, "*shape"],
    sigma: float,
    *,
    method: str = "trace",
    probes: int = 100,
    rtol: float = 0.05,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Count the dimensions that a denoiser keeps of a picture: the trace of its Jacobian.

    Parameters
    ----------
    denoiser, y, sigma
        As for :func:`denoiser_jacobian`.
    method
        ``"trace"``: exact, P gradients; ``"hutchinson"``: from random signs.
    probes, rtol, generator
        Of :func:`hadamard.solvers.hutchinson`.

    Returns
    -------
    float
        Between 0 and P for a denoiser that shrinks.
    float
        Its standard error; 0 where it is exact.

    Examples
    --------
    >>> effective_dimension(lambda x, sigma: x / 4, torch.ones(1, 2, 4), 1.0)
    (2.0, 0.0)
    """
    _check(denoiser, y, sigma)
    check_option(method, "method", ("trace", "hutchinson"))
    if method == "trace":
        return float(_jacobian(denoiser, y, sigma, 64).double().trace()), 0.0

    def product(v: Tensor) -> Tensor:
        return _vjp(denoiser, y, sigma, v[None])[0]

    return hutchinson(product, y.shape, probes, rtol, generator, dtype=y.dtype, device=y.device)


def sure(denoiser: Denoise, y: Float[Tensor, "*shape"], sigma: float, **options: Any) -> tuple[float, float]:
    """Estimate a denoiser's mean squared error a pixel without the clean picture, by Stein's formula.

    Parameters
    ----------
    denoiser, y, sigma
        As for :func:`denoiser_jacobian`; the noise must be normal and of exactly this level.
    options
        Of :func:`effective_dimension`.

    Returns
    -------
    float
        ``(||D(y) - y||^2 + 2 sigma^2 tr J - P sigma^2) / P``, unbiased over the noise; for one picture it scatters and
        may be negative.
    float
        Standard error of its trace.

    References
    ----------
    C. M. Stein. Estimation of the mean of a multivariate normal distribution. Annals of Statistics 9(6), 1981.

    Examples
    --------
    >>> sure(lambda x, sigma: x, torch.ones(4), 0.5)  # the identity's error is that of the noise
    (0.25, 0.0)
    """
    dimension, error = effective_dimension(denoiser, y, sigma, **options)
    with torch.no_grad():
        moved = float((denoiser(y[None], sigma)[0] - y).double().square().sum())
    factor = 2 * sigma**2 / y.numel()
    return moved / y.numel() + factor * dimension - sigma**2, factor * error


def _check(denoiser: Denoise, y: Tensor, sigma: float) -> None:
    check_tensor(y, "y", dtype="floating")
    check_range(sigma, "sigma", 0, None, closed="neither")
    if isinstance(denoiser, nn.Module) and any(m.training for m in denoiser.modules()):
        raise ValueError("denoiser must be in evaluation mode, where pictures of a batch do not meet: call eval()")


def _vjp(denoiser: Denoise, y: Tensor, sigma: float, v: Tensor) -> Tensor:
    """``J^T v`` for a batch of vectors, each beside its own copy of the picture."""
    with torch.enable_grad():
        copies = y.detach().expand(len(v), *y.shape).clone().requires_grad_()
        output = denoiser(copies * 1, sigma)
        if not output.requires_grad:
            return torch.zeros_like(v)
        return torch.autograd.grad(output, copies, v, materialize_grads=True)[0].detach()


def _jvp(denoiser: Denoise, y: Tensor, sigma: float, v: Tensor) -> Tensor:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
        return torch.func.jvp(lambda x: denoiser(x[None], sigma)[0], (y,), (v,))[1]


def _jacobian(denoiser: Denoise, y: Tensor, sigma: float, batch: int) -> Tensor:
    """Rows of J: gradients of each output number."""
    basis = torch.eye(y.numel(), dtype=y.dtype, device=y.device).reshape(-1, *y.shape)
    return torch.cat([_vjp(denoiser, y, sigma, part) for part in basis.split(batch)]).flatten(1)


def _lanczos(
    denoiser: Denoise, y: Tensor, sigma: float, k: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, float]:
    from scipy.sparse.linalg import LinearOperator, eigsh

    def both(v: Tensor) -> tuple[Tensor, Tensor]:
        return _jvp(denoiser, y, sigma, v), _vjp(denoiser, y, sigma, v[None])[0]

    def product(v: np.ndarray) -> np.ndarray:
        ahead, back = both(torch.as_tensor(v, dtype=y.dtype, device=y.device).reshape(y.shape))
        return ((ahead + back) / 2).flatten().double().cpu().numpy()

    generator = generator or torch.Generator().manual_seed(0)
    draw = [torch.randn(y.shape, generator=generator, device=generator.device).to(y) for _ in range(9)]
    pairs = [both(v) for v in draw[1:]]
    different = sum(float((a - b).double().square().sum()) for a, b in pairs)
    whole = sum(float(a.double().square().sum()) for a, _ in pairs) or 1.0
    operator = LinearOperator((y.numel(), y.numel()), matvec=product, dtype=np.float64)
    tol = 1e-8 if y.dtype == torch.float64 else 1e-4
    values, vectors = eigsh(operator, k, which="LA", tol=tol, v0=draw[0].flatten().double().cpu().numpy())
    order = np.argsort(values)[::-1].copy()
    return torch.from_numpy(values[order]), torch.from_numpy(vectors[:, order].copy()), (different / whole) ** 0.5
