"""What Lion-K's theory lets one look at while it runs: the constraint, the stationarity gap, the Lyapunov function.

References
----------
L. Chen, B. Liu, K. Liang, Q. Liu, "Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts", ICLR 2024,
arXiv:2310.05898.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hadamard.optim.lion_k import LionK, kernel_name
from hadamard.validation import check_range

__all__ = ["OdeParams", "constraint_distance", "fw_gap", "lyapunov", "ode_params"]


class OdeParams(NamedTuple):
    """The differential equation ``m' = -alpha grad f(x) - gamma m``, ``x' = grad K(m + epsilon m') - w x``."""

    alpha: float
    gamma: float
    epsilon: float


def ode_params(lr: float, betas: tuple[float, float]) -> OdeParams:
    """Find the differential equation of which LionK's update is the Euler step of length ``lr``.

    Parameters
    ----------
    lr, betas
        As for :class:`LionK`, with explicit decay.

    Returns
    -------
    OdeParams
        ``alpha = gamma = (1 - beta2) / lr`` and ``epsilon = lr (1 - beta1) / (1 - beta2)``, exactly.

    Examples
    --------
    >>> ode_params(0.01, (0.9, 0.99))
    OdeParams(alpha=1.0000000000000009, gamma=1.0000000000000009, epsilon=0.0999999999999999)
    """
    beta1, beta2 = betas
    return OdeParams((1 - beta2) / lr, (1 - beta2) / lr, lr * (1 - beta1) / (1 - beta2))


@torch.no_grad()
def lyapunov(optimizer: LionK, f_value: float | Tensor) -> float:
    """Evaluate the function that decreases along the optimizer's path (for small steps, and inside the constraint).

    Parameters
    ----------
    optimizer
        After at least one step.
    f_value
        The objective at the present parameters.

    Returns
    -------
    float
        ``f + K*(w x) / w + c (K*(w x) + K(m) - w <m, x>)`` with the weight decay w, minus the average gradient m, and
        ``c = lr beta1 / (1 - beta2 + lr w (1 - beta1))``: the paper's function in units of f. The last bracket is at
        least 0. Infinite outside the constraint.

    Raises
    ------
    TypeError
        If a kernel is only known by its gradient.
    """
    total = -float(f_value) if any(g["maximize"] for g in optimizer.param_groups) else float(f_value)
    for group, kernel, p in _each(optimizer, "lyapunov"):
        decay, lr, (beta1, beta2) = group["weight_decay"], float(group["lr"]), group["betas"]
        m = -optimizer.state[p]["exp_avg"] if optimizer.state[p] else torch.zeros_like(p)
        at_x = float(kernel.value(decay * p).sum())
        bracket = at_x + float(kernel.conjugate(m).sum()) - decay * float((m * p).sum())
        total += (at_x / decay if decay else 0.0) + lr * beta1 / (1 - beta2 + lr * decay * (1 - beta1)) * bracket
    return total


@torch.no_grad()
def fw_gap(optimizer: LionK) -> float:
    """Measure how far the parameters are from solving the constrained problem: 0 exactly at a stationary point.

    Parameters
    ----------
    optimizer
        With the gradient of the whole objective in place.

    Returns
    -------
    float
        ``<grad f, x> + (K*(w x) + K(-grad f)) / w`` with the weight decay w, at least 0; for a constraint this is the
        Frank-Wolfe gap, the largest ``<grad f, x - z>`` over its points z. Infinite outside the constraint.

    Raises
    ------
    TypeError
        If a kernel is only known by its gradient.
    ValueError
        If a weight decay is 0, so that there is no constraint, or a gradient is missing.
    """
    total = 0.0
    for group, kernel, p in _each(optimizer, "fw_gap"):
        decay = check_range(group["weight_decay"], "weight_decay", 0, None, closed="neither")
        if p.grad is None:
            raise ValueError(f"every parameter must have a gradient, got none for one of shape {tuple(p.shape)}")
        grad = -p.grad if group["maximize"] else p.grad
        total += float((grad * p).sum() + (kernel.value(decay * p).sum() + kernel.conjugate(-grad).sum()) / decay)
    return total


@torch.no_grad()
def constraint_distance(optimizer: LionK) -> float:
    """Measure how far the parameters are outside their constraint, as the largest distance of any tensor.

    Parameters
    ----------
    optimizer
        Whose parameters are looked at.

    Returns
    -------
    float
        Euclidean distance, or for a ball of another norm the distance in that norm; 0 inside, and where K* has no
        constraint or the weight decay is 0.

    Raises
    ------
    TypeError
        If a kernel is only known by its gradient.
    """
    largest = 0.0
    for group, kernel, p in _each(optimizer, "constraint_distance"):
        decay = group["weight_decay"]
        if decay and hasattr(kernel, "distance"):
            largest = max(largest, float(kernel.distance(decay * p)) / decay)
        elif decay and hasattr(kernel, "project"):
            largest = max(largest, float(torch.linalg.vector_norm(p - kernel.project(decay * p) / decay)))
    return largest


def _each(optimizer: LionK, what: str) -> Iterable[tuple[dict[str, Any], Any, Tensor]]:
    for group in optimizer.param_groups:
        if not hasattr(group["kernel"], "conjugate"):
            raise TypeError(f"{what} needs a kernel with value and conjugate, got {kernel_name(group['kernel'])}")
        for p in group["params"]:
            yield group, group["kernel"], p
