"""Traces of matrices that are known by their products with vectors, and such products with a loss's Hessian."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_range

__all__ = ["hutchinson", "hvp"]


def hutchinson(
    matvec: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    probes: int = 100,
    rtol: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[float, float]:
    """Estimate a trace without bias: the mean of ``<v, A v>`` over vectors ``v`` of random signs.

    Parameters
    ----------
    matvec
        ``A v``, in the shape of ``v``; A need not be symmetric.
    shape
        Of ``v``.
    probes
        Greatest number of products, at least 2.
    rtol
        Stop, from 8 probes on, once the standard error is at most this share of the estimate.
    generator
        Of the signs; ``None``: a fixed seed.
    dtype, device
        Of ``v``.

    Returns
    -------
    float
        The estimate.
    float
        Its standard error. It is zero where the matrix is diagonal, for which one probe is exact.

    References
    ----------
    M. F. Hutchinson. A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines.
    Communications in Statistics 18(3), 1989.

    Examples
    --------
    >>> hutchinson(lambda v: torch.tensor([1.0, 2.0, 4.0]) * v, (3,), probes=2)
    (7.0, 0.0)
    """
    check_range(probes, "probes", 2, integer=True)
    check_range(rtol, "rtol", 0)
    generator = generator or torch.Generator().manual_seed(0)
    values: list[float] = []
    for _ in range(probes):
        signs = torch.randint(2, tuple(shape), generator=generator, device=generator.device)
        v = (2 * signs - 1).to(device=device if device is not None else generator.device, dtype=dtype)
        values.append(float((v * matvec(v)).double().sum()))
        if rtol and len(values) >= 8 and _error(values) <= rtol * abs(sum(values) / len(values)):
            break
    return sum(values) / len(values), _error(values)


def hvp(
    loss: Callable[[], Tensor] | Tensor, params: Sequence[Tensor], v: Sequence[Tensor]
) -> list[Float[Tensor, "..."]]:
    """Multiply a loss's Hessian by a vector, by differentiating ``<gradient, v>``.

    Parameters
    ----------
    loss
        A number that depends on ``params``, or a function that computes it.
    params
        Tensors that require gradients.
    v
        Tensors of their shapes.

    Returns
    -------
    list of Tensor
        Of the shapes of ``params``; zeros where the loss does not depend on one, or only linearly.

    Raises
    ------
    ValueError
        If ``v`` does not have the shapes of ``params``.

    Examples
    --------
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hvp(lambda: (w**3).sum(), [w], [torch.ones(2)])
    [tensor([ 6., 12.])]
    """
    params, v = list(params), list(v)
    if [p.shape for p in params] != [d.shape for d in v]:
        raise ValueError(f"v must have the shapes of params, {[tuple(p.shape) for p in params]}, "
                         f"got {[tuple(d.shape) for d in v]}")  # fmt: skip
    value = loss if isinstance(loss, Tensor) else loss()
    grads = torch.autograd.grad(value, params, create_graph=True, materialize_grads=True)
    inner = sum((g * d).sum() for g, d in zip(grads, v))
    if not (isinstance(inner, Tensor) and inner.requires_grad):
        return [torch.zeros_like(p) for p in params]
    return list(torch.autograd.grad(inner, params, retain_graph=isinstance(loss, Tensor), materialize_grads=True))


def _error(values: list[float]) -> float:
    """Standard error of a mean."""
    spread = torch.tensor(values, dtype=torch.float64).std()
    return float(spread) / len(values) ** 0.5
