"""Flag aggregator: the mean of the workers' gradients, within the subspace that explains most workers.

Gradients ``g_1..g_p`` of ``p`` workers, up to some of which are faulty, are scaled to length 1, and an orthonormal
``m x n`` matrix Y is sought that explains most of them. Worker i is explained by ``v_i = |Y g_i|^2`` in [0, 1], and the
sum of ``sqrt(1 - v_i)``, a median among subspaces, minds a worker that is not explained less than a sum of squares
would. The aggregate is ``Y^T Y (g_1 + .. + g_p) / p``. How many workers are faulty need not be known.

The sum is made smaller by least squares with weights ``1 / sqrt(1 - v_i)``, again and again. Only inner products of the
gradients enter, so that after one pass that forms their p x p Gram matrix, all happens in p dimensions, and a second
pass combines the gradients with p coefficients. The differences of gradients, which the regularised loss holds to the
same subspace, add the Laplacian of a graph to the weights.

References
----------
H. Almasi, H. Mishra, B. Vamanan, S. N. Ravi, "Flag Aggregator: Scalable Distributed Training under Failures and
Augmented Losses using Convex Optimization", ICLR 2024, arXiv:2302.05865. The paper decomposes the n x p matrix of
gradients in each iteration.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from hadamard.lowrank import combine, gram, gram_coordinates
from hadamard.results import Solution
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["FlagAggregate", "flag_aggregate", "flag_coefficients"]

Gradients = (
    Float[Tensor, "p *n"] | Sequence[Shaped[Tensor, "p ..."]] | Mapping[Any, Shaped[Tensor, "p ..."]]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FlagAggregate(Solution):
    """What the workers' gradients were aggregated to, and how well each was explained.

    Attributes
    ----------
    value
        The aggregated gradient, in the layout in which the gradients came; from a Gram matrix, the coefficients.
    coefficients
        One for each worker, float64: ``value`` is the sum of the gradients times these; 0 for workers left out.
    scores
        How much of each worker's gradient the subspace explains, in [0, 1]; 0 for workers left out.
    weights
        Each worker's weight in the least squares that gave the subspace; 0 for workers left out.
    losses
        The loss of the start, and after each reweighting. It never grows.
    rank
        Dimension of the subspace: ``m``, or less where the gradients span less.
    iterations, residual, converged, message
        Reweightings, the relative decrease of the loss in the last one, whether it met ``tol``, and why not.
    """

    coefficients: Float64[Tensor, " p"]
    scores: Float64[Tensor, " p"]
    weights: Float64[Tensor, " p"]
    losses: tuple[float, ...]
    rank: int


@torch.no_grad()
def flag_aggregate(
    grads: Gradients,
    m: int | None = None,
    reg: float = 0.0,
    *,
    rescale: str = "median_norm",
    max_iter: int = 5,
    tol: float = 1e-4,
    eps: float = 1e-7,
) -> FlagAggregate:
    """Aggregate the gradients of several workers, some of which may be faulty; in place of ``grads.mean(0)``.

    Parameters
    ----------
    grads
        Gradients, workers along the first dimension: one tensor of shape (p, ...), or a sequence or mapping of such
        tensors, one for each parameter (what ``torch.func.vmap(torch.func.grad(loss), ...)`` returns). Each may have
        its own dtype and device. A worker with NaN or infinite numbers is left out with a warning, and so is, silently,
        one whose gradient is zero.
    m
        Dimension of the subspace, from 1 to p; by default half of the workers that are not left out and one more,
        ``ceil((p + 1) / 2)``. With ``m = p`` nothing is cut away.
    reg
        Weight of the pairs of workers, at least 0: ``reg / (p (p - 1))`` times the sum over ordered pairs of
        ``sqrt(1 - |Y (g_i - g_j)|^2 / |g_i - g_j|^2)`` joins the loss.
    rescale
        ``"median_norm"``: multiply by the (lower) median of the workers' lengths, so that the result has the scale of
        a mean and learning rates stay. ``"none"``: as in the paper, gradients count with length 1, and so the result is
        at most 1 long however near the optimum is.
    max_iter
        Reweightings at most, at least 0. With 0 the subspace is that of the plain singular value decomposition. A step
        of training is not better for the last digits of a subspace: the default stops before them, without a warning.
    tol
        Stop earlier when a reweighting makes the loss smaller by at most ``tol`` of itself.
    eps
        Added under the roots, above 0: keeps the weight of a worker that is fully explained finite.

    Returns
    -------
    FlagAggregate
        The aggregated gradient with scores by worker. If no worker is left, it is the mean, zero or not finite.

    Raises
    ------
    TypeError
        If ``grads`` holds something other than floating tensors, or ``m`` is not an integer.
    ValueError
        If numbers of workers differ, a tensor is empty or lacks a dimension, or an option is out of range.

    Warns
    -----
    RuntimeWarning
        If workers are left out for NaN or infinite numbers; the message names them.

    Notes
    -----
    Time is O(p^2 n) for the Gram matrix, O(p n) for the combination and O(p^3) for a reweighting, whatever n. Not
    differentiable.

    Departures from the paper: the mean is taken over the projections (the paper's text does so; its published code
    divides by ``m``), the scale is restored unless ``rescale="none"``, and the start is the unweighted decomposition.
    The published code does one iteration from a random subspace, which for n much larger than m explains nothing, so
    that all weights are equal and the result is that of ``max_iter=0``.

    When not to use it: with workers whose data differ much in kind, what few of them know is cut away. Among gradients
    that are mostly noise, any m of them explain themselves: scores then say which ones were chosen, not which are
    right, and what protects is the common length. Faulty workers that agree with each other (copies of one wrong
    gradient) explain each other and lower the protection. For a guarantee at a known number of faults, use a rule that
    is told that number.

    Examples
    --------
    Four workers agree, one sends something else, a hundred times as long:

    >>> grads = torch.tensor([[1.0, 2.0, 0.0]] * 4 + [[0.0, 0.0, 300.0]])
    >>> result = flag_aggregate(grads, m=1)
    >>> result.value
    tensor([0.8000, 1.6000, 0.0000])
    >>> result.scores.round(decimals=3)
    tensor([1., 1., 1., 1., 0.], dtype=torch.float64)
    """
    tensors = _tensors(grads)
    rows = [x.reshape(len(x), -1) for x in tensors]
    K = torch.stack([gram(x).cpu() for x in rows]).sum(0)
    found = flag_coefficients(K, m, reg, rescale=rescale, max_iter=max_iter, tol=tol, eps=eps)
    values = [combine(found.coefficients.to(x.device), x).view(t.shape[1:]) for x, t in zip(rows, tensors)]
    if isinstance(grads, Tensor):
        return replace(found, value=values[0])
    return replace(found, value=dict(zip(grads, values)) if isinstance(grads, Mapping) else values)


@torch.no_grad()
def flag_coefficients(
    K: Float64[Tensor, "p p"],
    m: int | None = None,
    reg: float = 0.0,
    *,
    rescale: str = "median_norm",
    max_iter: int = 5,
    tol: float = 1e-4,
    eps: float = 1e-7,
) -> FlagAggregate:
    """Find the coefficients of the aggregate from the Gram matrix of the gradients, wherever those lie.

    Gram matrices of pieces of the gradients add: with each piece on another machine, p x p numbers are exchanged.

    Parameters
    ----------
    K
        Inner products of the workers' gradients (:func:`hadamard.lowrank.gram`). A row whose diagonal entry is NaN,
        infinite or 0 belongs to a worker that is left out.
    m, reg, rescale, max_iter, tol, eps
        As in :func:`flag_aggregate`.

    Returns
    -------
    FlagAggregate
        Its ``value`` are the coefficients.

    Raises
    ------
    TypeError, ValueError
        As in :func:`flag_aggregate`, or if ``K`` is not a square matrix in double precision.

    Examples
    --------
    >>> flag_coefficients(torch.eye(2, dtype=torch.float64)).value
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    check_tensor(K, "K", ndim=2, dtype=torch.float64, finite=False)
    p = len(K)
    check_tensor(K, "K", shape=(p, p), dtype=torch.float64, finite=False)
    check_options(p, m, reg, rescale, max_iter, tol, eps)
    squares = K.diagonal()
    finite, used = squares.isfinite(), squares.isfinite() & (squares > 0)
    if not bool(finite.all()):
        left_out = ", ".join(str(i) for i in (~finite).nonzero()[:, 0].tolist())
        warnings.warn(f"left out worker(s) {left_out}: gradients not finite", RuntimeWarning, stacklevel=3)
    if not bool(used.any()):
        mean, zero = torch.full_like(squares, 1 / p), torch.zeros_like(squares)
        return FlagAggregate(value=mean, coefficients=mean, scores=zero, weights=zero, losses=(), rank=0,
                             iterations=0, residual=0.0, converged=True)  # fmt: skip
    lengths = squares[used].sqrt()
    Z, B = gram_coordinates(K[used][:, used] / lengths / lengths[:, None])
    rank = min(m or (len(Z) + 2) // 2, Z.shape[1])
    Y, scores, weights, losses = _subspace(Z, rank, reg, max_iter, tol, eps)
    step = B.T @ (Y @ (Y.T @ Z.mean(0))) / lengths
    if rescale == "median_norm":
        step = step * lengths.median()
    coefficients, all_scores, all_weights = torch.zeros(3, p, dtype=K.dtype, device=K.device)
    coefficients[used], all_scores[used], all_weights[used] = step, scores, weights
    residual = (losses[-2] - losses[-1]) / losses[-2] if len(losses) > 1 else 0.0
    converged = residual <= tol
    message = "" if converged else f"stopped after {max_iter} reweightings, the last of which gained {residual:.1e}"
    return FlagAggregate(value=coefficients, coefficients=coefficients, scores=all_scores, weights=all_weights,
                         losses=tuple(losses), rank=rank, iterations=len(losses) - 1, residual=residual,
                         converged=converged, message=message)  # fmt: skip


def check_options(
    p: int | None, m: int | None, reg: float, rescale: str, max_iter: int, tol: float, eps: float
) -> None:  # fmt: skip
    """Check what the functions and the hook have in common; ``p`` where it is known."""
    if m is not None:
        check_range(m, "m", 1, p, integer=True)
    check_range(reg, "reg", 0, torch.inf, closed="left")
    check_option(rescale, "rescale", ("none", "median_norm"))
    check_range(max_iter, "max_iter", 0, integer=True)
    check_range(tol, "tol", 0)
    check_range(eps, "eps", 0, torch.inf, closed="neither")


def _tensors(grads: Any) -> list[Tensor]:
    """The tensors of the parameters, checked."""
    if isinstance(grads, Tensor):
        check_tensor(grads, "grads", dtype="floating", finite=False)
        if grads.ndim < 2:
            raise ValueError(f"grads must have shape (workers, ...), got {tuple(grads.shape)}")
        return [grads]
    if not isinstance(grads, (Sequence, Mapping)):
        raise TypeError(f"grads must be a tensor, or a sequence or mapping of tensors, got {type(grads).__name__}")
    named = dict(grads.items() if isinstance(grads, Mapping) else enumerate(grads))
    if not named:
        raise ValueError("grads must not be empty")
    for key, x in named.items():
        check_tensor(x, f"grads[{key!r}]", dtype="floating", finite=False)
    if all(x.ndim < 2 for x in named.values()):
        raise ValueError(
            "grads must hold one tensor (workers, ...) for each parameter, got vectors only: stack gradients of workers"
        )
    workers = {key: len(x) for key, x in named.items()}
    if len(set(workers.values())) > 1:
        raise ValueError(f"grads must have the same number of workers in each tensor, got {workers}")
    return list(named.values())


def _subspace(
    Z: Tensor, rank: int, reg: float, max_iter: int, tol: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """The subspace (r, rank) of unit rows Z (p, r), scores and weights of the rows, and the losses on the way."""
    p = len(Z)
    K = Z @ Z.T
    distances = (K.diagonal()[:, None] + K.diagonal() - 2 * K).clamp(min=0)  # squared
    pairs = (distances > 1e-12) * (reg / (p * (p - 1)) if p > 1 else 0.0)
    weights, links, losses = torch.ones(p, dtype=Z.dtype, device=Z.device), torch.zeros_like(K), list[float]()
    while True:
        laplacian = torch.diag(weights + links.sum(1)) - links
        Y = torch.linalg.eigh(Z.T @ laplacian @ Z)[1][:, Z.shape[1] - rank :]
        P = Z @ Y
        scores = P.square().sum(1).clamp(max=1)
        missed = (1 - scores + eps).sqrt()
        loss = missed.sum()
        if reg:
            explained = (scores[:, None] + scores - 2 * P @ P.T) / distances.clamp(min=1e-12)
            missed_pairs = (1 - explained.clamp(0, 1) + eps).sqrt()
            loss = loss + (pairs * missed_pairs).sum()
        losses.append(float(loss))
        if len(losses) > max_iter or (len(losses) > 1 and losses[-2] - losses[-1] <= tol * losses[-2]):
            return Y, scores, weights, losses
        weights = 1 / missed
        if reg:
            links = 2 * pairs / missed_pairs / distances.clamp(min=1e-12)
