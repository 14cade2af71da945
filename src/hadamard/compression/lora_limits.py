"""When the gradients of LoRA can be had in time linear in the length: a report on a model, its adapter and its input.

The gradient of a low-rank adapter of an attention layer is a chain of products with the matrix of weights. While the
entries of queries and keys stay below sqrt(log n), that matrix is close to one of low rank, n^o(1), and so are all
products of the chain; above it no algorithm is much faster than the square of the length, unless the strong exponential
time hypothesis fails. :func:`norm_report` measures on which side each head lies, and
:func:`~hadamard.compression.poly_attention` computes what lies below.

References
----------
J. Y.-C. Hu, M. Su, E.-J. Kuo, Z. Song, H. Liu. Computational Limits of Low-Rank Adaptation (LoRA) Fine-Tuning for
Transformer Models. ICLR 2025, arXiv:2406.03136.
"""

import math
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.compression.watching import adapters, evaluating, recording
from hadamard.features import rank, taylor_degree, taylor_error
from hadamard.layers.kronecker_functional import operations, score_bound
from hadamard.validation import check_range, check_tensor

__all__ = ["HeadNorms", "NormReport", "head_norms", "norm_report"]


@dataclass(frozen=True, kw_only=True)
class HeadNorms:
    """One head of attention on one input.

    Attributes
    ----------
    layer, head
        Name of the attention's module, and the number of the head.
    length, channels
        Positions n, and channels of the head.
    entry
        Largest entry of its queries and centred keys, the scale of the scores divided equally between them: the norm of
        the theorem.
    threshold
        sqrt(log n), below which near-linear algorithms exist.
    score
        A bound on the size of its scores, from the largest entries or lengths of queries and keys.
    degree
        Even degree of the polynomial that meets ``eps`` for such scores; -1 where they are beyond 500.
    features
        Number of features at that degree; 0 where there is none.
    exact, polynomial
        Multiplications of exact attention and of the polynomial; the latter infinite where there is no degree.
    pays_from
        Length from which the polynomial is cheaper, for scores of this size.
    affordable
        Largest scores for which it is cheaper at this length.
    adapter
        Largest entry of what the adapter adds to queries, keys or values of the layer, before it is divided into heads;
        0 without an adapter.
    """

    layer: str
    head: int
    length: int
    channels: int
    entry: float
    threshold: float
    score: float
    degree: int
    features: int
    exact: float
    polynomial: float
    pays_from: float
    affordable: float
    adapter: float = 0.0

    @property
    def below(self) -> bool:
        """Whether the largest entry is below the threshold."""
        return self.entry < self.threshold

    @property
    def cheaper(self) -> bool:
        """Whether the polynomial takes fewer multiplications than exact attention."""
        return self.polynomial < self.exact


@dataclass(frozen=True)
class NormReport:
    """All heads of a model on one input.

    Attributes
    ----------
    heads
        In the order in which they ran.
    """

    heads: tuple[HeadNorms, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a head, as ``pandas.DataFrame`` takes them."""
        return [{**asdict(h), "below": h.below, "cheaper": h.cheaper} for h in self.heads]

    def layers(self) -> list[dict[str, Any]]:
        """One dictionary a layer: its largest entry, the heads below the threshold, those where the polynomial pays."""
        found = []
        for name, group in groupby(self.heads, key=lambda h: h.layer):
            members = list(group)
            found.append({
                "layer": name, "heads": len(members), "length": members[0].length, "channels": members[0].channels,
                "entry": max(h.entry for h in members), "threshold": members[0].threshold,
                "adapter": members[0].adapter, "below": sum(h.below for h in members),
                "score": max(h.score for h in members), "affordable": members[0].affordable,
                "cheaper": sum(h.cheaper for h in members),
            })  # fmt: skip
        return found

    def advice(self) -> str:
        """One sentence on what would have to change for the gradients to become near-linear."""
        some, worst = sum(h.cheaper for h in self.heads), max(self.heads, key=lambda h: h.score / h.affordable)
        if some == len(self.heads):
            return f"All {some} heads are in the efficient regime: attend by the polynomial."
        return (
            f"{some} of {len(self.heads)} heads are in the efficient regime; head {worst.head} of {worst.layer} has "
            f"scores up to {worst.score:.3g}, where {worst.affordable:.3g} would do at length {worst.length}: keep "
            "exact attention there, or lower them (a smaller alpha over rank, fewer outliers, fewer channels a head)."
        )


def head_norms(
    query: Float[Tensor, "h n d"],
    key: Float[Tensor, "h m d"],
    *,
    eps: float = 1e-3,
    scale: float | None = None,
    layer: str = "",
    value_channels: int | None = None,
) -> list[HeadNorms]:
    """Measure the heads of one attention.

    Parameters
    ----------
    query, key
        Of all heads, shapes (h, n, d) and (h, m, d).
    eps
        Relative error of a weight that the polynomial is to meet.
    scale
        Of the scores; ``1 / sqrt(d)`` by default.
    layer
        The name to go into the report.
    value_channels
        Channels of the values; as many as the keys' by default.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, or ``eps`` or ``scale`` is not positive.

    Examples
    --------
    >>> q, k = 0.3 * torch.randn(2, 2, 4096, 4)
    >>> norms = head_norms(q, k)
    >>> len(norms), norms[0].cheaper
    (2, True)
    """
    check_tensor(query, "query", ndim=3, dtype="floating")
    check_tensor(key, "key", dtype="floating", shape=(len(query), None, query.shape[-1]))
    check_range(eps, "eps", 0, closed="neither")
    d = query.shape[-1]
    scale = d**-0.5 if scale is None else check_range(scale, "scale", 0, closed="neither")
    width, lengths = value_channels or d, (query.shape[-2], key.shape[-2])
    query, key = query.detach(), key.detach()
    centred = key - key.mean(-2, keepdim=True)
    affordable = _affordable(lengths, d, width, eps)
    found = []
    for head, (q, k) in enumerate(zip(query, centred)):
        score = score_bound(q[None], [k[None]], scale)
        degree = taylor_degree(score, eps) if score <= 500 else -1
        features = rank(d, degree) if degree >= 0 else 0
        exact, polynomial = operations(lengths, d, width, max(degree, 0))
        one, both = operations((1, 1), d, width, max(degree, 0))  # their growth: n^2 and n
        found.append(
            HeadNorms(
                layer=layer, head=head, length=lengths[1], channels=d,
                entry=math.sqrt(scale) * float(max(q.abs().max(), k.abs().max())),
                threshold=math.sqrt(math.log(max(lengths[1], 2))), score=score, degree=degree, features=features,
                exact=exact, polynomial=polynomial if degree >= 0 else math.inf,
                pays_from=both / one if degree >= 0 else math.inf, affordable=affordable,
            )
        )  # fmt: skip
    return found


@torch.no_grad()
def norm_report(model: nn.Module, *inputs: Any, eps: float = 1e-3, **more: Any) -> NormReport:
    """Run a model on an input, and measure every head of its attention.

    Parameters
    ----------
    model
        A model of transformers, with an adapter of PEFT or without, or any module with ``nn.MultiheadAttention``.
    inputs, more
        What the model is called with. The report is about this input: take one of the length and kind that you train
        on, without padding.
    eps
        Relative error of a weight that the polynomial is to meet.

    Returns
    -------
    NormReport
        Queries and keys are measured as the scores see them: after rotary embeddings, the keys centred. Of a batch, the
        sequence with the largest scores, for each head.

    Raises
    ------
    ValueError
        If no attention ran that could be measured, or ``eps`` is not positive.

    Examples
    --------
    >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
    >>> x = torch.randn(1, 50, 8)
    >>> report = norm_report(attention, x, x, x)
    >>> len(report.heads), report.layers()[0]["channels"]
    (2, 4)
    """
    check_range(eps, "eps", 0, closed="neither")
    names = {module: name or type(model).__name__ for name, module in model.named_modules()}
    found: list[HeadNorms] = []

    def record(module: nn.Module, query: Tensor, key: Tensor, scale: float | None, width: int) -> None:
        options: dict[str, Any] = {"eps": eps, "scale": scale, "layer": names[module], "value_channels": width}
        sequences = [head_norms(q, k, **options) for q, k in zip(query.float(), key.float())]
        found.extend(max(same, key=lambda h: h.score) for same in zip(*sequences))

    with recording(model, record), adapters(model, names) as added, evaluating(model):
        model(*inputs, **more)
    if not found:
        raise ValueError("model must have attention of transformers or nn.MultiheadAttention that runs, found none")
    largest = {h.layer: max((v for name, v in added.items() if name.startswith(h.layer)), default=0.0) for h in found}
    return NormReport(tuple(HeadNorms(**{**asdict(h), "adapter": largest[h.layer]}) for h in found))


def _affordable(lengths: tuple[int, int], d: int, width: int, eps: float) -> float:
    """The largest scores for which a polynomial meets ``eps`` and is cheaper than exact attention."""
    degree = -2
    while (lambda ops: ops[1] < ops[0])(operations(lengths, d, width, degree + 2)):
        degree += 2
    if degree < 0:
        return 0.0
    low, high = 0.0, 500.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if taylor_error(middle, degree) <= eps else (low, middle)
    return low
