"""Put EvoNorm where a network has BatchNorm followed by an activation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from hadamard.layers.evonorm import evonorm

__all__ = ["convert_norm_act"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Mish)
_FUNCTIONS = {
    torch.relu, torch.relu_, F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.silu, F.gelu, F.hardswish, F.mish,
    "relu", "relu_",
}  # fmt: skip


def convert_norm_act(model: nn.Module, name: str, **options: Any) -> fx.GraphModule:
    """Replace every BatchNorm and the activation after it by one EvoNorm layer.

    A BatchNorm that no activation follows (the last one of a residual branch, a linear bottleneck) becomes an EvoNorm
    in linear mode: scale and shift only. Activations elsewhere, such as the one after a residual sum, stay.

    Parameters
    ----------
    model
        A network that ``torch.fx`` can trace. It is not changed; the result shares its other layers with it.
    name
        The layer to put in, as :func:`~hadamard.layers.evonorm.evonorm` names it.
    options
        Keyword arguments of that layer, such as ``groups``. The B series takes over the BatchNorm's ``momentum``
        unless it is given here, and ``sync=True`` from a ``SyncBatchNorm``.

    Returns
    -------
    torch.fx.GraphModule
        The rewritten network, in the mode (training or evaluation) of ``model``. Scales and shifts of the BatchNorms
        are carried over, so that one that starts at zero still does.

    Raises
    ------
    ValueError
        If the network cannot be traced, has no BatchNorm, or has one that is called at several places where an
        activation follows at some of them only.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    >>> [type(m).__name__ for m in convert_norm_act(net, "evonorm_s0", groups=4).children()]
    ['Conv2d', 'EvoNorm2dS0', 'Conv2d', 'EvoNorm2dS0']
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise ValueError(f"model could not be traced by torch.fx: {error}") from error
    modules = dict(model.named_modules())
    converted = fx.GraphModule(model, graph)
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], _NORMS):
            calls.setdefault(node.target, []).append(node)
    if not calls:
        raise ValueError(f"model must contain a BatchNorm, got none in {type(model).__name__}")
    for target, nodes in calls.items():
        activations = [_activation_after(node, modules) for node in nodes]
        if len({a is None for a in activations}) > 1:
            raise ValueError(f"{target} is called at {len(nodes)} places, and an activation follows at some only")
        for node, activation in zip(nodes, activations):
            if activation is not None:
                activation.replace_all_uses_with(node)
                graph.erase_node(activation)
        parent, _, last = target.rpartition(".")
        layer = _replacement(modules[target], name, activations[0] is not None, options)
        setattr(converted.get_submodule(parent), last, layer)
    converted.delete_all_unused_submodules()
    converted.recompile()
    return converted.train(model.training)


def _activation_after(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The activation that takes ``node``'s output, if nothing else does."""
    users = list(node.users)
    if len(users) != 1 or not users[0].args or users[0].args[0] is not node:
        return None
    if users[0].op == "call_module":
        return users[0] if isinstance(modules[str(users[0].target)], _ACTIVATIONS) else None
    return users[0] if users[0].target in _FUNCTIONS else None


def _replacement(norm: Any, name: str, apply_act: bool, options: dict[str, Any]) -> nn.Module:
    running = norm.running_var
    like = norm.weight if norm.weight is not None else running
    given = {"apply_act": apply_act, **options}
    if like is not None:
        given = {"device": like.device, "dtype": like.dtype, **given}
    if name.replace("evonorm_", "evonorm").startswith("evonormb"):
        momentum = {} if norm.momentum is None else {"momentum": norm.momentum}
        given = {**momentum, "sync": isinstance(norm, nn.SyncBatchNorm), **given}
    layer = evonorm(name, norm.num_features, **given)
    if norm.weight is not None:
        layer.load_state_dict({"weight": norm.weight, "bias": norm.bias}, strict=False)
    return layer
