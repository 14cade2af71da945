"""The search space in which EvoNorm was found: layers as small random computation graphs, mutated and rejected.

A graph starts from the input ``x``, the constant 0, and two learned numbers a channel, ``v0`` (starts at 0) and ``v1``
(starts at 1). Each further node applies one elementary operation to earlier nodes; the last node is the output, which
a scale and a shift follow. Two cheap tests sort out most candidates: one that does not learn anything in a hundred
steps, or whose gradients can be made to explode, is not worth a full training run.

References
----------
H. Liu, A. Brock, K. Simonyan, Q. V. Le, "Evolving Normalization-Activation Layers", NeurIPS 2020, arXiv:2004.02967.
The guarded forms of the partial functions, the small network of the two tests and the logarithm in the ascent are
this implementation's; the evolution over several architectures is left to the caller.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hadamard.results import Certificate
from hadamard.validation import check_range, check_tensor

__all__ = ["GraphLayer", "LayerGraph", "quality", "stability"]

INPUTS = ("x", "0", "v0", "v1")
_EPS = 1e-5
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "div": lambda a, b: a * b / (b.square() + _EPS**2),
    "max": torch.maximum,
}
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": lambda a: a.sign() * (a.abs() + _EPS).log(),
    "abs": torch.abs,
    "square": torch.square,
    "sqrt": lambda a: a.sign() * (a.abs() + _EPS).sqrt(),
}
_MOMENTS = tuple(f"{m}_{over}" for m in ("mean", "std", "rms") for over in ("bwh", "wh", "whc", "whg"))
OPERATIONS = (*_BINARY, *_UNARY, *_MOMENTS)


@dataclass(frozen=True)
class LayerGraph:
    """A layer as a list of elementary operations.

    Attributes
    ----------
    nodes
        One tuple a node: the operation's name and the numbers of its operands. Operands 0 to 3 are ``x``, 0, ``v0``
        and ``v1``; operand 4 is the first node, and so on. Operations: ``add mul div max`` of two operands;
        ``neg sigmoid tanh exp log abs square sqrt`` and the moments ``mean_D std_D rms_D`` of one, taken over
        D = ``bwh`` (batch and space), ``wh`` (space), ``whc`` (space and channels) or ``whg`` (space and groups of
        channels).

    Raises
    ------
    ValueError
        If there is no node, an operation is unknown, or an operand does not come before its node.

    Examples
    --------
    >>> s0 = LayerGraph((("mul", 0, 3), ("sigmoid", 4), ("mul", 0, 5), ("std_whg", 0), ("div", 6, 7)))
    >>> str(s0)
    'div(mul(x, sigmoid(mul(x, v1))), std_whg(x))'
    >>> s0.uses_batch
    False
    """

    nodes: tuple[tuple, ...]

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ValueError("nodes must not be empty")
        for i, (operation, *operands) in enumerate(self.nodes):
            if operation not in OPERATIONS:
                raise ValueError(f"nodes[{i}] must be one of {', '.join(OPERATIONS)}, got {operation!r}")
            wanted = 2 if operation in _BINARY else 1
            if len(operands) != wanted or not all(0 <= k < i + len(INPUTS) for k in operands):
                raise ValueError(f"nodes[{i}] ({operation}) must name {wanted} earlier operand(s), got {operands}")

    @classmethod
    def random(cls, size: int, generator: torch.Generator) -> "LayerGraph":
        """A graph of ``size`` nodes, each operation and operand drawn uniformly."""
        return cls(tuple(_draw(i, generator) for i in range(size)))

    def mutate(self, generator: torch.Generator) -> "LayerGraph":
        """The same graph with one node, drawn uniformly, made anew."""
        i = _below(len(self.nodes), generator)
        return LayerGraph((*self.nodes[:i], _draw(i, generator), *self.nodes[i + 1 :]))

    def __call__(
        self, x: Float[Tensor, "n c h w"], v0: Float[Tensor, " c"], v1: Float[Tensor, " c"], groups: int
    ) -> Float[Tensor, "n c h w"]:
        """Evaluate the graph on a batch, by its statistics."""
        values = [x, x.new_zeros(()), v0.view(1, -1, 1, 1), v1.view(1, -1, 1, 1)]
        for operation, *operands in self.nodes:
            arguments = [values[k] for k in operands]
            if operation in _MOMENTS:
                values.append(_moment(operation, arguments[0].expand_as(x), groups))
            else:
                values.append((_BINARY | _UNARY)[operation](*arguments))
        return values[-1].expand_as(x)

    @property
    def uses_batch(self) -> bool:
        """Whether the output depends on statistics of the batch (the B series) or of the single image only."""
        return "bwh" in str(self)

    def __str__(self) -> str:
        names = list(INPUTS)
        for operation, *operands in self.nodes:
            names.append(f"{operation}({', '.join(names[k] for k in operands)})")
        return names[-1]


class GraphLayer(nn.Module):
    """A graph as a layer, with its learned ``v0``, ``v1``, scale and shift.

    Parameters
    ----------
    graph
        The graph.
    num_features
        Number of channels.
    groups
        Groups of channels of the grouped moments; must divide ``num_features``.

    Examples
    --------
    >>> relu = LayerGraph((("max", 0, 1),))
    >>> GraphLayer(relu, 4)(-torch.ones(2, 4, 3, 3)).sum().item()
    0.0
    """

    def __init__(self, graph: LayerGraph, num_features: int, groups: int = 1) -> None:
        super().__init__()
        if num_features % groups:
            raise ValueError(f"groups must divide num_features, got {groups} and {num_features}")
        self.graph, self.groups = graph, groups
        self.v0, self.v1 = nn.Parameter(torch.zeros(num_features)), nn.Parameter(torch.ones(num_features))
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Evaluate the graph, then scale and shift."""
        y = self.graph(x, self.v0, self.v1, self.groups)
        return y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        """The graph as a formula."""
        return str(self.graph)


def quality(
    graph: LayerGraph,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    threshold: float = 0.2,
    steps: int = 100,
    generator: torch.Generator,
) -> Certificate:
    """Whether a small network with this layer learns anything in a hundred steps.

    Parameters
    ----------
    graph
        The candidate.
    images, labels
        Training data, also used to score.
    threshold
        Accuracy below which the candidate is rejected, in (0, 1).
    steps
        Steps of stochastic gradient descent, 64 images each.
    generator
        Draws the initial weights and the batches.

    Returns
    -------
    Certificate
        The accuracy, the threshold, and whether the candidate passed.
    """
    net = _network(graph, images, labels, threshold, generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        scores = net(images)
    accuracy = float((scores.argmax(1) == labels).float().mean()) if bool(scores.isfinite().all()) else 0.0
    good = accuracy >= threshold
    return Certificate(
        value=accuracy,
        bound=threshold,
        verified=good,
        reason="" if good else f"accuracy {accuracy:.3f} after {steps} steps",
    )


def stability(
    graph: LayerGraph,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    threshold: float = 1e8,
    steps: int = 100,
    generator: torch.Generator,
) -> Certificate:
    """Whether the gradient of a small network with this layer stays bounded when its weights are driven against it.

    The logarithm of the gradient's norm is maximised over all weights with Adam.

    Parameters
    ----------
    graph
        The candidate.
    images, labels
        One batch.
    threshold
        Norm of the gradient above which the candidate is rejected.
    steps
        Steps of ascent.
    generator
        Draws the initial weights.

    Returns
    -------
    Certificate
        The largest norm seen, the threshold, and whether the candidate passed.
    """
    net = _network(graph, images, labels, threshold, generator)
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=0.01, maximize=True)
    largest = 0.0
    for _ in range(steps):
        loss = F.cross_entropy(net(images), labels)
        grads = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        largest = max(largest, norm.item()) if bool(norm.isfinite()) else float("inf")
        if not largest <= threshold:
            break
        optimizer.zero_grad()
        (norm + 1e-30).log().backward()
        optimizer.step()
    good = largest <= threshold
    return Certificate(
        value=largest, bound=threshold, verified=good, reason="" if good else f"gradient of norm {largest:.3g}"
    )


def _network(
    graph: LayerGraph, images: Tensor, labels: Tensor, threshold: float, generator: torch.Generator
) -> nn.Module:
    """Three convolutions with the layer between them, then a linear classifier on the average."""
    check_tensor(images, "images", ndim=4, dtype="floating")
    check_tensor(labels, "labels", ndim=1, dtype="integer")
    check_range(threshold, "threshold", 0, None, closed="neither")
    layers: list[nn.Module] = []
    for inside, outside in ((images.shape[1], 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), GraphLayer(graph, outside, groups=4)]
    head = nn.Linear(16, int(labels.max()) + 1)
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.constant_(layer.get_parameter("bias"), 0)
    return net.to(images)


def _moment(operation: str, x: Tensor, groups: int) -> Tensor:
    kind, over = operation.split("_")
    dims = {"bwh": (0, 2, 3), "wh": (2, 3), "whc": (1, 2, 3), "whg": (2, 3, 4)}[over]
    grouped = x.unflatten(1, (groups, -1)) if over == "whg" else x
    if kind == "mean":
        m = grouped.mean(dims, keepdim=True)
    else:
        second = grouped.var(dims, correction=0, keepdim=True) if kind == "std" else grouped.square().mean(dims, True)
        m = (second + _EPS).sqrt()
    return m.expand_as(grouped).flatten(1, 2) if over == "whg" else m


def _draw(i: int, generator: torch.Generator) -> tuple:
    operation = OPERATIONS[_below(len(OPERATIONS), generator)]
    operands = [_below(i + len(INPUTS), generator) for _ in range(2 if operation in _BINARY else 1)]
    return (operation, *operands)


def _below(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))
