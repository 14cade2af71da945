"""Lower bounds on Lipschitz constants: the largest Jacobian that was met."""

import copy
import math

import torch
from torch import Tensor, nn

from hadamard.certification.networks import flat, input_shape_of
from hadamard.validation import check_option, check_range

__all__ = ["sampled_lower_bound"]


def sampled_lower_bound(
    model: nn.Module,
    norm: str = "l2",
    *,
    samples: int = 1000,
    rounds: int = 20,
    scale: float = 1.0,
    input_shape: tuple[int, ...] | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Search for an input where a network changes most.

    Parameters
    ----------
    model
        A network of :func:`hadamard.certification.lipschitz_bound`.
    norm
        ``"l2"`` or ``"linf"``, of inputs and outputs.
    samples
        Normally distributed inputs to start from.
    rounds
        How often the best 64 are moved at random, each staying where it was unless it gains.
    scale
        Standard deviation of the inputs.
    input_shape
        Shape of one input where the first layer does not tell it.
    generator
        Where the inputs come from.

    Returns
    -------
    float
        The largest norm of a Jacobian found, computed in float64 (and not proved). The Lipschitz constant is no
        smaller but for rounding.

    Raises
    ------
    ValueError
        If an option is not known or out of range, or ``input_shape`` is missing.

    Examples
    --------
    >>> round(sampled_lower_bound(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), samples=10), 3) <= 1.5
    True
    """
    check_option(norm, "norm", ("l2", "linf"))
    check_range(samples, "samples", 1, integer=True)
    check_range(rounds, "rounds", 0, integer=True)
    check_range(scale, "scale", 0, closed="neither")
    shape = input_shape_of(flat(model)) if input_shape is None else tuple(input_shape)
    if shape is None:
        raise ValueError("input_shape must be given: the first layer does not tell it")
    network = copy.deepcopy(model).double().cpu().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)

    def steepness(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = network(x).flatten(1)
            rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0].flatten(1) for column in y.unbind(1)]
        return torch.linalg.matrix_norm(torch.stack(rows, 1), 2 if norm == "l2" else math.inf)

    x = scale * torch.randn(samples, *shape, dtype=torch.float64, generator=generator)
    best = steepness(x)
    kept = best.topk(min(64, samples)).indices
    x, best = x[kept], best[kept]
    for k in range(rounds):
        size = scale * 0.5 ** (1 + k % 6)
        moved = x + size * torch.randn(x.shape, dtype=x.dtype, generator=generator)
        new = steepness(moved)
        better = new > best
        x[better], best[better] = moved[better], new[better]
    return float(best.max())
