"""Pruning by the optimal brain surgeon: remove the weights that cost least, and let the others make up for it.

To second order around a trained network, where the gradient vanishes, removing weight q raises the loss by ``w_q^2 / (2
[F^{-1}]_qq)`` at best, F being the Fisher matrix in the Hessian's place. Removing a set Q at once, the best change of
the weights K that stay minimises the quadratic form: ``F_KK^{-1} F_KQ w_Q``, which is
``G_K^T (m damp I + G_K G_K^T)^{-1} G_Q w_Q``, a combination of gradients whose coefficients solve an m x m system.

References
----------
E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order Information", NeurIPS
2021, arXiv:2107.03356. Optimal brain surgeon: B. Hassibi, D. Stork, NeurIPS 1992. Cubic schedule: M. Zhu, S. Gupta,
arXiv:1710.01878.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import prune

from hadamard.lowrank import gram, gram_cholesky
from hadamard.optim.inverse_fisher import InverseFisher, split_blocks
from hadamard.validation import check_option, check_range

__all__ = ["cubic_amounts", "loss_gradients", "obs_correction", "prune_obs"]

_PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prune_obs(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: Callable[[Tensor, Any], Tensor],
    amount: float | int,
    *,
    parameters: Sequence[tuple[nn.Module, str]] | None = None,
    ngrads: int = 256,
    damp: float = 1e-5,
    block_size: int | None = None,
    correction: str = "joint",
) -> None:
    """Prune a trained network with second-order information; in place of ``prune.global_unstructured``.

    It installs ordinary masks of ``torch.nn.utils.prune`` (``weight_orig``, ``weight_mask``; ``prune.remove`` makes
    them permanent) and changes the weights that stay. Call it again for gradual pruning, with training in between.

    Parameters
    ----------
    model
        The network, in the mode in which its gradients are to be taken (usually after ``model.eval()``).
    loader
        Batches ``(inputs, targets)``; each of the first ``ngrads`` gives one gradient, so that a batch size of 1 gives
        the empirical Fisher matrix of the samples. At least one.
    loss_fn
        ``loss_fn(model(inputs), targets)``, a scalar.
    amount
        As in torch: a fraction in [0, 1] or a number of the entries that are not pruned yet.
    parameters
        Pairs of module and parameter name, as for ``prune.global_unstructured``, compared with one another; by default
        the weights of all linear and convolutional layers.
    ngrads
        Greatest number of gradients, m; memory is that of 2 m copies of the weights.
    damp, block_size
        As in :class:`InverseFisher`. Blocks of some hundred entries make the scores less noisy where ``ngrads`` is
        small.
    correction
        How the weights that stay change: ``"joint"``: the best change given the whole set that is removed.
        ``"independent"``: the paper's, the sum of the best changes for each removal alone, exact for one removal and
        too much for many that are correlated. ``"none"``.

    Raises
    ------
    TypeError
        If a parameter is not a floating tensor.
    ValueError
        If an option is out of range, the loader is empty, or a gradient is not finite.

    Examples
    --------
    >>> net = torch.nn.Linear(4, 2)
    >>> batches = [(torch.randn(1, 4), torch.randn(1, 2)) for _ in range(16)]
    >>> prune_obs(net, batches, torch.nn.functional.mse_loss, amount=0.5)
    >>> int(net.weight_mask.sum()), prune.is_pruned(net)
    (4, True)
    """
    check_option(correction, "correction", ("joint", "independent", "none"))
    if parameters is None:
        parameters = [(module, "weight") for module in model.modules() if isinstance(module, _PRUNABLE)]
    if not parameters:
        raise ValueError("parameters must name at least one, got none")
    originals = [_original(module, name) for module, name in parameters]
    masks = [getattr(module, name + "_mask", torch.ones_like(p)) for (module, name), p in zip(parameters, originals)]
    alive = _flat(masks).bool()
    count = _number(amount, int(alive.sum()))
    gradients = loss_gradients(model, loader, loss_fn, originals, ngrads) * alive
    w = _flat(originals) * alive
    inverse = InverseFisher(gradients, damp, block_size=block_size)
    scores = (w.square() / inverse.diag().clamp(min=torch.finfo(w.dtype).tiny)).masked_fill(~alive, torch.inf)
    pruned = torch.zeros_like(alive)
    pruned[scores.argsort(stable=True)[:count]] = True
    kept = alive & ~pruned
    if correction == "independent":
        change = inverse(-(w * pruned) / inverse.diag())
    elif correction == "joint":
        change = obs_correction(gradients, w, kept, damp, block_size=block_size)
    else:
        change = torch.zeros_like(w)
    sizes = [p.numel() for p in originals]
    for (module, name), p, keep, delta in zip(parameters, originals, kept.split(sizes), change.split(sizes)):
        prune.custom_from_mask(module, name, keep.view_as(p).to(p.dtype))
        with torch.no_grad():
            original = getattr(module, name + "_orig")
            original += (delta * keep).view_as(original)
            setattr(module, name, original * getattr(module, name + "_mask"))


def obs_correction(
    gradients: Float[Tensor, "m d"],
    w: Float[Tensor, " d"],
    kept: Bool[Tensor, " d"],
    damp: float,
    *,
    block_size: int | None = None,
) -> Float[Tensor, " d"]:
    """Find the change of the kept weights that makes up best for setting the others to 0.

    It minimises ``delta^T F delta`` under ``delta = -w`` outside ``kept``, in time O(m^2 d).

    Parameters
    ----------
    gradients
        One in each row.
    w
        The weights.
    kept
        Which of them stay.
    damp, block_size
        As in :class:`InverseFisher`.

    Returns
    -------
    Tensor
        The change, 0 outside ``kept``.
    """
    blocks = split_blocks(gradients, block_size)
    B, m = blocks.shape[-1], len(gradients)
    stays = split_blocks(kept.to(gradients.dtype)[None], B)
    removed = split_blocks((w * ~kept)[None], B)
    G = blocks * stays
    residual = gram(blocks, removed)
    coefficients = torch.cholesky_solve(residual, gram_cholesky(gram(G), m * damp))
    return (coefficients.mT.to(G.dtype) @ G).flatten()[: len(w)].to(w.dtype)


def loss_gradients(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: Callable[[Tensor, Any], Tensor],
    parameters: Sequence[Tensor],
    ngrads: int = 256,
) -> Float[Tensor, "m d"]:
    """Compute the gradient of the loss on each of the first ``ngrads`` batches, as rows over all parameters.

    Parameters
    ----------
    model, loader, loss_fn, ngrads
        As in :func:`prune_obs`.
    parameters
        What to differentiate by, concatenated in this order.

    Returns
    -------
    Tensor
        One row a batch. Parameters that a batch does not use get 0.
    """
    check_range(ngrads, "ngrads", 1, integer=True)
    rows = []
    for _, (inputs, targets) in zip(range(ngrads), loader):
        with torch.enable_grad():
            loss = loss_fn(model(inputs), targets)
            grads = torch.autograd.grad(loss, list(parameters), allow_unused=True, materialize_grads=True)
        rows.append(_flat(grads))
    if not rows:
        raise ValueError("loader must give at least one batch, got none")
    return torch.stack(rows)


def cubic_amounts(sparsity: float, steps: int) -> list[float]:
    """Plan gradual pruning: amounts for ``steps`` calls that together prune ``sparsity`` of the entries.

    After call k of n, ``sparsity (1 - (1 - k/n)^3)`` of the entries are pruned: many while there are many to spare. The
    amounts are fractions of what is left, as ``torch.nn.utils.prune`` takes them.

    Parameters
    ----------
    sparsity
        Fraction that is pruned in the end, in [0, 1).
    steps
        Number of calls, at least 1.

    Examples
    --------
    >>> [round(a, 3) for a in cubic_amounts(0.9, 3)]
    [0.633, 0.636, 0.25]
    """
    check_range(sparsity, "sparsity", 0, 1, closed="left")
    check_range(steps, "steps", 1, integer=True)
    left = [1 - sparsity * (1 - (1 - k / steps) ** 3) for k in range(steps + 1)]
    return [1 - after / before for before, after in pairwise(left)]


def _original(module: nn.Module, name: str) -> Tensor:
    p = getattr(module, name + "_orig", None)
    p = getattr(module, name, None) if p is None else p
    if not isinstance(p, Tensor) or not p.is_floating_point():
        raise TypeError(f"parameters must name floating tensors, got {name!r} of {type(module).__name__}")
    return p


def _number(amount: float | int, alive: int) -> int:
    if isinstance(amount, int) and not isinstance(amount, bool):
        return check_range(amount, "amount", 0, alive)
    return round(check_range(amount, "amount", 0, 1) * alive)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])
