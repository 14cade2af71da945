"""Gradients of a network's loss as rows of a matrix: of each batch, or of each sample."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hadamard.optim.memory import check_fits
from hadamard.validation import check_range

__all__ = ["loss_gradients"]


def loss_gradients(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: Callable[[Tensor, Any], Tensor],
    parameters: Sequence[Tensor],
    ngrads: int = 256,
    *,
    entries: Bool[Tensor, " n"] | None = None,
    per_sample: bool = False,
) -> Float[Tensor, "m d"]:
    """Compute gradients of the loss on batches or on single samples, as rows over all parameters.

    Parameters
    ----------
    model
        The network, in the mode in which its gradients are to be taken (usually after ``model.eval()``).
    loader
        Batches ``(inputs, targets)``, read until there are ``ngrads`` gradients or it ends.
    loss_fn
        ``loss_fn(model(inputs), targets)``, a scalar.
    parameters
        What to differentiate by, concatenated in this order.
    ngrads
        Greatest number of gradients, m.
    entries
        Which entries of the parameters to keep; ``None``: all.
    per_sample
        ``False``: each batch gives one gradient. ``True``: each sample does, and those of a batch are computed at once
        (``torch.func.vmap``); ``inputs`` and ``targets`` must then be tensors with the samples along their first
        dimension, and the network one that treats samples alike (no batch statistics, no ``.item()``). The memory that
        this takes grows with the loader's batch size.

    Returns
    -------
    Tensor
        One gradient a row. Parameters that the loss does not depend on get 0.

    Raises
    ------
    ValueError
        If the loader is empty, or for ``per_sample`` a parameter is not the model's.
    MemoryError
        If as many gradients do not fit into the memory that is free.

    Examples
    --------
    >>> net = torch.nn.Linear(3, 1)
    >>> batches = [(torch.randn(8, 3), torch.randn(8, 1))]
    >>> loss_gradients(net, batches, torch.nn.functional.mse_loss, [net.weight], per_sample=True).shape
    torch.Size([8, 3])
    """
    check_range(ngrads, "ngrads", 1, integer=True)
    expected = min(ngrads, len(loader)) if isinstance(loader, Sized) and not per_sample else ngrads
    d = sum(p.numel() for p in parameters) if entries is None else int(entries.sum())
    check_fits(2 * expected, d, parameters[0].dtype, parameters[0].device, "ngrads")
    names = _names(model, parameters) if per_sample else {}
    pieces: list[Tensor] = []
    missing = ngrads
    for inputs, targets in loader:
        if per_sample:
            rows = _of_samples(model, inputs[:missing], targets[:missing], loss_fn, names)
        else:
            with torch.enable_grad():
                loss = loss_fn(model(inputs), targets)
                grads = torch.autograd.grad(loss, list(parameters), allow_unused=True, materialize_grads=True)
            rows = torch.cat([g.flatten() for g in grads])[None]
        pieces.append(rows if entries is None else rows[:, entries])
        missing -= len(rows)
        if not missing:
            break
    if not pieces:
        raise ValueError("loader must give at least one batch, got none")
    return torch.cat(pieces)


def _names(model: nn.Module, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    known = {id(p): name for name, p in model.named_parameters()}
    for p in parameters:
        if id(p) not in known:
            raise ValueError(f"parameters must be the model's, got another of shape {tuple(p.shape)}")
    return {known[id(p)]: p.detach() for p in parameters}


def _of_samples(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss_fn: Callable[[Tensor, Any], Tensor],
    parameters: Mapping[str, Tensor],
) -> Tensor:  # fmt: skip
    """Gradients of the samples of one batch, (batch, d)."""

    def loss(values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_fn(functional_call(model, dict(values), (x[None],)), y[None])

    # Hooks, as those of torch.nn.utils.prune, write tensors of vmap into the modules; what stood there is put back
    plain = [(m, {k: v for k, v in vars(m).items() if isinstance(v, Tensor)}) for m in model.modules()]
    try:
        grads = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(parameters, inputs, targets)
    finally:
        for module, tensors in plain:
            vars(module).update(tensors)
    return torch.cat([grads[name].flatten(1) for name in parameters], dim=1)
