"""Networks read as what two of their trajectories differ by: linear maps, and activations between them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from hadamard.certification.enclosure import Enclosed, stack
from hadamard.certification.quadratic_constraints import QuadraticConstraint, slope_restricted, sorting

__all__ = ["Residual"]

Rules = Mapping[type[nn.Module], Callable[[Any, int, str], QuadraticConstraint]]
LARGEST = 30_000_000  # entries of a dense matrix
_SLOPES: dict[type[nn.Module], Callable[[Any], tuple[float, float]]] = {
    nn.ReLU: lambda m: (0.0, 1.0),
    nn.ReLU6: lambda m: (0.0, 1.0),
    nn.LeakyReLU: lambda m: (min(m.negative_slope, 1.0), max(m.negative_slope, 1.0)),
    nn.Tanh: lambda m: (0.0, 1.0),
    nn.Hardtanh: lambda m: (0.0, 1.0),
    nn.Sigmoid: lambda m: (0.0, 0.25),
    nn.Softplus: lambda m: (0.0, 1.0),
    nn.SiLU: lambda m: (-0.1, 1.1),  # -0.09984.. and 1.09984..
}
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Residual(nn.Module):
    """Add what goes around to what goes through: ``shortcut(x) + inner(x)``.

    Parameters
    ----------
    inner
        The branch with activations.
    shortcut
        The other one; the identity by default.

    Examples
    --------
    >>> Residual(torch.nn.Linear(2, 2), torch.nn.Identity())(torch.zeros(1, 2)).shape
    torch.Size([1, 2])
    """

    def __init__(self, inner: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.shortcut = inner, nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add both branches."""
        return self.shortcut(x) + self.inner(x)


@dataclass(frozen=True)
class Layer:
    """One activation: what it reads, in terms of the input and of the units before; and its own units' columns."""

    read: Enclosed
    columns: slice
    constraint: QuadraticConstraint


@dataclass
class Trace:
    """The output and every activation's input as linear maps of the input and of all units' outputs."""

    inputs: int
    form: str
    rules: Rules
    shape: tuple[int, ...]
    columns: int = 0
    layers: list[Layer] = field(default_factory=list)

    @classmethod
    def of(cls, modules: list[nn.Module], shape: tuple[int, ...], form: str, rules: Rules) -> tuple["Trace", Enclosed]:
        """Follow the modules; the trace, and the output's map."""
        trace = cls(math.prod(shape), form, rules, shape, math.prod(shape))
        now = Enclosed(np.eye(trace.inputs))
        for module in modules:
            now = trace.follow(module, now)
        return trace, now.padded(trace.columns)

    def follow(self, module: nn.Module, now: Enclosed) -> Enclosed:
        """The map after a module."""
        if isinstance(module, nn.Sequential):
            for part in module:
                now = self.follow(part, now)
            return now
        if isinstance(module, Residual):
            entered = self.shape
            around = self.follow(module.shortcut, now)
            left, self.shape = self.shape, entered
            through = self.follow(module.inner, now)
            if left != self.shape:
                raise ValueError(f"the branches of Residual must agree in shape, got {left} and {self.shape}")
            return around.padded(self.columns) + through.padded(self.columns)
        matrix, shape = linear_map(module, self.shape)
        if shape is not None:
            self.shape = shape
            return now if matrix is None else matrix @ now
        return self._activate(module, now)

    def _activate(self, module: nn.Module, now: Enclosed) -> Enclosed:
        constraint, order = constraint_of(module, self.shape, self.form, self.rules)
        now = now[order]
        own = slice(self.columns, self.columns + constraint.write.shape[1])
        self.layers.append(Layer(constraint.read @ now, own, constraint))
        self.columns = own.stop
        write = constraint.write
        if sparse.issparse(write.middle):
            write = replace(write, middle=write.middle.toarray())
        return stack([(constraint.skip @ now).padded(own.start), write], axis=1)[np.argsort(order)]


def flat(model: nn.Module) -> list[nn.Module]:
    """The modules of nested Sequentials in order; whatever else is one step."""
    if isinstance(model, nn.Sequential):
        return [step for part in model for step in flat(part)]
    return [model]


def input_shape_of(steps: list[nn.Module]) -> tuple[int, ...] | None:
    """What the first layer says of the input's shape."""
    for step in steps:
        if isinstance(step, nn.Linear):
            return (step.in_features,)
        if isinstance(step, Residual):
            return input_shape_of(flat(step.inner)) or input_shape_of(flat(step.shortcut))
        if isinstance(step, nn.Conv1d | nn.Conv2d | nn.Flatten):
            return None
    return None


def linear_map(module: nn.Module, shape: tuple[int, ...]) -> tuple[Enclosed | None, tuple[int, ...] | None]:
    """A linear layer's matrix (``None``: the identity) and the shape behind it; ``None, None`` for an activation."""
    name = type(module).__name__
    if isinstance(module, _NOTHING):
        if not isinstance(module, nn.Identity) and module.training:
            raise ValueError(f"{name} is in training mode: call model.eval() first")
        return None, shape
    if isinstance(module, nn.Flatten):
        if module.start_dim != 1 or module.end_dim != -1:
            raise ValueError("Flatten must flatten all but the batch")
        return None, (math.prod(shape),)
    if isinstance(module, nn.Linear):
        if shape != (module.in_features,):
            raise ValueError(f"{name} expects {module.in_features} features, got shape {shape}; is a Flatten missing?")
        return Enclosed(_numbers(module.weight, f"{name}.weight")), (module.out_features,)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return _convolution(module, shape)
    if isinstance(module, _NORMS):
        return _batch_norm(module, shape)
    return None, None


def constraint_of(
    module: nn.Module, shape: tuple[int, ...], form: str, rules: Rules
) -> tuple[QuadraticConstraint, np.ndarray]:
    """What is known of an activation, and the order in which its groups' members are consecutive."""
    name, width = type(module).__name__, math.prod(shape)
    straight = np.arange(width)
    for kind, rule in rules.items():
        if isinstance(module, kind):
            return rule(module, width, form), straight
    slopes = _SLOPES.get(type(module))
    if slopes is not None:
        return slope_restricted(*slopes(module), width), straight
    if isinstance(module, nn.PReLU):
        slope = np.repeat(_numbers(module.weight, "PReLU.weight"), width // module.weight.numel())
        return slope_restricted(np.minimum(slope, 1.0), np.maximum(slope, 1.0), width), straight
    pixels = width // shape[0]
    own = getattr(module, "quadratic_constraint", None)
    if callable(own):
        axis = getattr(module, "dim", 1)
        if axis not in (1, -1) or (axis == -1 and len(shape) > 1):
            raise ValueError(f"{name} must act on the channels, dimension 1, got dim={axis}")
        return _repeated(own(shape[0], form), pixels), straight.reshape(-1, pixels).T.ravel()
    origin = type(module).__module__.split(".")[0]
    size: Any = getattr(module, "group_size", 0)
    if origin == "deel" and size != 0 and getattr(module, "_coefficient_lip", 1.0) == 1.0:
        order = straight.reshape(-1, pixels).T.ravel()
        return _repeated(sorting(shape[0], size or shape[0], form), pixels), order
    if origin == "orthogonium" and name == "MaxMin" and getattr(module, "axis", 1) == 1 and shape[0] % 2 == 0:
        return _repeated(sorting(shape[0], 2, form), pixels), straight.reshape(2, -1).T.ravel()
    known = ", ".join(sorted(kind.__name__ for kind in _SLOPES))
    raise ValueError(
        f"{name} is not known; known are Linear, Conv1d, Conv2d, BatchNorm, Flatten, Residual, GroupSort, MaxMin, "
        f"Householder, PReLU, {known}, and what `rules` names"
    )


def _repeated(constraint: QuadraticConstraint, times: int) -> QuadraticConstraint:
    """The same at every pixel."""
    if times == 1:
        return constraint
    eye = sparse.identity(times)

    def copies(x: Enclosed) -> Enclosed:
        if x.radius is None:
            return Enclosed(sparse.kron(eye, x.middle, format="csr"))
        return Enclosed(np.kron(np.eye(times), x.middle), np.kron(np.eye(times), x.radius))

    kernels = tuple((np.tile(K, (times, 1, 1)), sign) for K, sign in constraint.kernels)
    skip, read, write = (copies(x) for x in (constraint.skip, constraint.read, constraint.write))
    return replace(constraint, skip=skip, read=read, write=write, kernels=kernels)


def _convolution(module: nn.Conv1d | nn.Conv2d, shape: tuple[int, ...]) -> tuple[Enclosed, tuple[int, ...]]:
    """Its matrix, column by column: images of single ones, whose sums have one term."""
    dims = 1 if isinstance(module, nn.Conv1d) else 2
    name = type(module).__name__
    if len(shape) != dims + 1 or shape[0] != module.in_channels:
        raise ValueError(f"{name} expects {module.in_channels} channels and {dims} more dimensions, got shape {shape}")
    n = math.prod(shape)
    _numbers(module.weight, f"{name}.weight")
    with torch.no_grad():
        layer = type(module)(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,  # type: ignore[arg-type]
            module.dilation, module.groups, False, module.padding_mode, dtype=torch.float64,  # type: ignore[arg-type]
        )  # fmt: skip
        layer.weight.copy_(module.weight)
        one = layer(torch.zeros(1, *shape, dtype=torch.float64))
        if one.numel() * n > LARGEST:
            raise ValueError(f"{name} is a matrix of {one.numel()} x {n} entries here, above the limit of {LARGEST}")
        images = layer(torch.eye(n, dtype=torch.float64).reshape(n, *shape))
    return Enclosed(np.ascontiguousarray(images.reshape(n, -1).T.numpy())), tuple(one.shape[1:])


def _batch_norm(module: Any, shape: tuple[int, ...]) -> tuple[Enclosed, tuple[int, ...]]:
    name = type(module).__name__
    if module.training or module.running_var is None:
        raise ValueError(f"{name} needs running statistics and evaluation mode: call model.eval() first")
    if module.num_features != shape[0]:
        raise ValueError(f"{name} expects {module.num_features} channels, got shape {shape}")
    scale = 1 / np.sqrt(_numbers(module.running_var, f"{name}.running_var") + module.eps)
    if module.weight is not None:
        scale = scale * _numbers(module.weight, f"{name}.weight")
    return Enclosed.rounded(np.diag(np.repeat(scale, math.prod(shape[1:]))), 4), shape


def _numbers(x: Tensor, name: str) -> np.ndarray:
    if x.is_complex():
        raise ValueError(f"{name} must be real, got {x.dtype}")
    values = x.detach().double().cpu().numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(values)).sum())} NaN or infinite values")
    return values
