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

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import prune

from hadamard.lowrank import gram, gram_cholesky
from hadamard.optim.gradients import loss_gradients
from hadamard.optim.inverse_fisher import InverseFisher, split_blocks
from hadamard.validation import check_option, check_range

__all__ = ["cubic_amounts", "obs_correction", "prune_obs"]

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
    rounds: int = 16,
    per_sample: bool = False,
) -> None:
    """Prune a trained network with second-order information; in place of ``prune.global_unstructured``.

    It installs ordinary masks of ``torch.nn.utils.prune`` (``weight_orig``, ``weight_mask``; ``prune.remove`` makes
    them permanent) and changes the weights that stay. Call it again for gradual pruning, with training in between.

    Parameters
    ----------
    model
        The network, in the mode in which its gradients are to be taken (usually after ``model.eval()``).
    loader
        Batches ``(inputs, targets)``, at least one. It is read once a round, until there are ``ngrads`` gradients, so
        that one that shuffles gives other samples each time.
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
    rounds
        In how many rounds of equal fractions to prune, with new gradients in each, as the paper's code does. The
        quadratic model is good for small changes only: at high sparsity, one round instead of 16 costs most of the
        accuracy. Four may do where training follows.
    per_sample
        Whether each sample gives a gradient, all those of a batch at once (as :func:`loss_gradients` says), or each
        batch one: the mean over it, as in the paper's code. The Fisher matrix proper is that of samples.

    Raises
    ------
    TypeError
        If a parameter is not a floating tensor.
    ValueError
        If an option is out of range, the loader is empty or, for several rounds, an iterator that can be read only
        once, or a gradient is not finite.
    MemoryError
        If ``ngrads`` gradients do not fit into the memory that is free.

    Examples
    --------
    >>> net = torch.nn.Linear(4, 2)
    >>> batches = [(torch.randn(1, 4), torch.randn(1, 2)) for _ in range(16)]
    >>> prune_obs(net, batches, torch.nn.functional.mse_loss, amount=0.5)
    >>> int(net.weight_mask.sum()), prune.is_pruned(net)
    (4, True)
    """
    check_option(correction, "correction", ("joint", "independent", "none"))
    check_range(ngrads, "ngrads", 1, integer=True)
    check_range(rounds, "rounds", 1, integer=True)
    if rounds > 1 and isinstance(loader, Iterator):
        raise ValueError(f"loader must be one that can be read {rounds} times (or rounds 1), got an iterator")
    if parameters is None:
        parameters = [(module, "weight") for module in model.modules() if isinstance(module, _PRUNABLE)]
    if not parameters:
        raise ValueError("parameters must name at least one, got none")
    originals = [_original(module, name) for module, name in parameters]
    before = sum(int(_mask(module, name, p).sum()) for (module, name), p in zip(parameters, originals))
    left = before - _number(amount, before)
    for k in range(1, rounds + 1):
        alive = _flat(_mask(m, n, p) for (m, n), p in zip(parameters, originals)).bool()
        target = left if k == rounds or not left else round(before * (left / before) ** (k / rounds))
        count = int(alive.sum()) - target
        if not count and (k < rounds or not alive.any()):
            continue
        gradients = loss_gradients(model, loader, loss_fn, originals, ngrads, entries=alive, per_sample=per_sample)
        w = _flat(originals)
        w[alive], kept = _surgery(gradients, w[alive], count, damp, block_size, correction)
        alive[alive.clone()] = kept
        sizes = [p.numel() for p in originals]
        for (module, name), keep, new in zip(parameters, alive.split(sizes), w.split(sizes)):
            _install(module, name, keep, new)


def _surgery(
    gradients: Tensor, w: Tensor, count: int, damp: float, block_size: int | None, correction: str
) -> tuple[Tensor, Tensor]:
    """New weights, those removed unchanged, and which are kept."""
    inverse = InverseFisher(gradients, damp, block_size=block_size)
    diagonal = inverse.diag().clamp(min=torch.finfo(w.dtype).tiny)
    kept = torch.ones_like(w, dtype=torch.bool)
    kept[(w.square() / diagonal).argsort(stable=True)[:count]] = False
    if correction == "independent":
        change = inverse(-(w * ~kept) / diagonal)
    elif correction == "joint":
        change = obs_correction(gradients, w, kept, damp, block_size=block_size)
    else:
        change = torch.zeros_like(w)
    return w + change * kept, kept


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


def _mask(module: nn.Module, name: str, p: Tensor) -> Tensor:
    mask = getattr(module, name + "_mask", None)
    return torch.ones_like(p) if mask is None else mask


def _install(module: nn.Module, name: str, keep: Tensor, new: Tensor) -> None:
    """Add a mask in torch's way and write the weights that it lets through."""
    prune.custom_from_mask(module, name, keep.view_as(getattr(module, name)).to(new.dtype))
    with torch.no_grad():
        original = getattr(module, name + "_orig")
        original.copy_(new.view_as(original))
        setattr(module, name, original * getattr(module, name + "_mask"))


def _number(amount: float | int, alive: int) -> int:
    if isinstance(amount, int) and not isinstance(amount, bool):
        return check_range(amount, "amount", 0, alive)
    return round(check_range(amount, "amount", 0, 1) * alive)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])
