"""A router for mixtures of experts on transport plans with a bounded number of entries."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from hadamard.proximal.thresholds import top_k
from hadamard.transport.sparse_ot import sparsity_constrained_ot
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["Routing", "SparseRouter"]


@dataclass(frozen=True)
class Routing:
    """Which tokens each expert receives, and with which weights its results are summed.

    Attributes
    ----------
    indices
        A token for every place of every expert, shape (..., experts, places).
    weights
        The results' weights, of the same shape; 0 where a place is empty.
    dropped
        Which tokens no expert receives, shape (..., tokens).
    """

    indices: Int64[Tensor, "*batch experts places"]
    weights: Float[Tensor, "*batch experts places"]
    dropped: Bool[Tensor, "*batch tokens"]


class SparseRouter(nn.Module):
    """Send tokens to experts so that all are served and no expert receives more than it has places for.

    Takes the place of the top-k routing of a mixture of experts, which drops the tokens that find their expert full.

    Parameters
    ----------
    capacity_factor
        Places of an expert, as a multiple of its even share of the tokens, at least 1; rounded up.
    reg
        Weight of the squares in the transport problem, above 0, for masses of 1 a token and costs in [-1, 0]. The
        smaller, the fewer tokens are sent to more than one expert.
    combine
        Weights of the results: ``"softmax"``, the probabilities of the scores, as in the paper's experiments; or
        ``"plan"``, the shares of the transport plan, which sum to about 1 for every token.
    tol, max_iter
        As in :func:`sparsity_constrained_ot`; stopping short is no reason for a warning here.

    Notes
    -----
    The cost of a pair is minus the softmax of its score. Gradients pass to the scores through the weights. Where this
    departs from the paper's experiments: those run 20 steps of Adam at ``reg = 1``.

    References
    ----------
    T. Liu, J. Puigcerver, M. Blondel. Sparsity-constrained optimal transport. ICLR 2023. arXiv:2209.15466.

    Examples
    --------
    >>> tokens, experts = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), [nn.Identity()] * 4
    >>> routing = SparseRouter(combine="plan")(tokens[:, :4])
    >>> results = torch.stack([expert(tokens[i]) for expert, i in zip(experts, routing.indices)])
    >>> weighted = (routing.weights[..., None] * results).flatten(0, 1)
    >>> output = torch.zeros_like(tokens).index_add(0, routing.indices.flatten(), weighted)
    >>> output.shape, int(routing.dropped.sum())
    (torch.Size([32, 8]), 0)
    """

    def __init__(
        self,
        capacity_factor: float = 1.25,
        *,
        reg: float = 0.02,
        combine: str = "softmax",
        tol: float = 1e-2,
        max_iter: int = 200,
    ) -> None:
        super().__init__()
        self.capacity_factor = check_range(capacity_factor, "capacity_factor", 1)
        self.reg = check_range(reg, "reg", 0, closed="neither")
        self.combine = check_option(combine, "combine", ("softmax", "plan"))
        self.tol = check_range(tol, "tol", 0)
        self.max_iter = check_range(max_iter, "max_iter", 1, integer=True)

    def forward(self, scores: Float[Tensor, "*batch tokens experts"]) -> Routing:
        """Route the tokens by their scores (logits) for every expert, each group of the leading dimensions by itself.

        Parameters
        ----------
        scores
            Shape (..., tokens, experts).

        Raises
        ------
        TypeError
            If ``scores`` is not a floating tensor.
        ValueError
            If it is not finite or has fewer than two dimensions.
        """
        check_tensor(scores, "scores", dtype="floating", shape=(None, None))
        tokens, experts = scores.shape[-2:]
        places = min(math.ceil(self.capacity_factor * tokens / experts), tokens)
        gates = scores.softmax(-1)
        cost = -gates if self.combine == "plan" else -gates.detach()
        ones, share = cost.new_ones(tokens), cost.new_full((experts,), tokens / experts)
        plan = sparsity_constrained_ot(
            ones, share, cost, self.reg, places, tol=self.tol, max_iter=self.max_iter, warn=False
        ).plan
        _, indices = top_k(plan.detach(), places, dim=-2)
        sent = plan.gather(-2, indices)
        weights = sent if self.combine == "plan" else torch.where(sent > 0, gates.gather(-2, indices), 0)
        return Routing(indices.mT, weights.mT, ~(plan > 0).any(-1))

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"capacity_factor={self.capacity_factor}, reg={self.reg}, combine={self.combine!r}"
