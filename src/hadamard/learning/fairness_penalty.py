"""Global and local disparity as a penalty in training."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hadamard.validation import check_range, check_tensor

__all__ = ["GlobalLocalPenalty"]


class GlobalLocalPenalty(nn.Module):
    """Disparities of a batch's predictions, in bits and differentiable: add it to the loss of a classifier.

    The joint distribution of group, decision and client is that of decisions drawn from the predicted probabilities;
    the penalty is ``weight_global * I(Z; Y) + weight_local * I(Z; Y | S)`` of it.

    In federated training a client sees its own rows only. It then gives as ``rest`` the sum of the other clients'
    :meth:`table`, which the server hands on: counts, no rows. Gradients go through its own rows.

    Parameters
    ----------
    n_groups, n_clients
        Number of groups of the sensitive attribute, and of clients.
    weight_global, weight_local
        Weights of the two disparities.

    Notes
    -----
    A batch of n rows has a disparity of about ``(groups - 1) (decisions - 1) / (2 n ln 2)`` bits by chance, a client's
    part of it more: use batches of some hundred rows.

    References
    ----------
    F. Hamman and S. Dutta, ICLR 2024, arXiv:2307.11333, define the disparities; the penalty is ours.

    Examples
    --------
    >>> penalty = GlobalLocalPenalty(n_groups=2, n_clients=1)
    >>> sex, site = torch.tensor([0, 1, 0, 1]), torch.zeros(4, dtype=torch.int64)
    >>> unfair, fair = torch.tensor([[0.9, 0.1], [0.1, 0.9]] * 2), torch.tensor([[0.8, 0.2]] * 4)
    >>> print(f"{penalty(unfair, sex, site):.3f} {penalty(fair, sex, site):.3f}")
    1.062 0.000
    """

    def __init__(
        self, n_groups: int, n_clients: int = 1, weight_global: float = 1.0, weight_local: float = 1.0
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_groups = check_range(n_groups, "n_groups", 1, integer=True)
        self.n_clients = check_range(n_clients, "n_clients", 1, integer=True)
        self.weight_global = check_range(weight_global, "weight_global", 0)
        self.weight_local = check_range(weight_local, "weight_local", 0)

    def extra_repr(self) -> str:
        """Arguments in ``print``."""
        return (
            f"n_groups={self.n_groups}, n_clients={self.n_clients}, weight_global={self.weight_global}, "
            f"weight_local={self.weight_local}"
        )

    def table(
        self, probabilities: Float[Tensor, "n y"], sensitive: Int[Tensor, " n"], client: Int[Tensor, " n"]
    ) -> Float[Tensor, "z s y"]:
        """Expected counts of decisions by group and client, in single precision at least."""
        check_tensor(probabilities, "probabilities", ndim=2, dtype="floating")
        for labels, name, count in (
            (sensitive, "sensitive", self.n_groups), (client, "client", self.n_clients),
        ):  # fmt: skip
            check_tensor(labels, name, ndim=1, dtype="integer")
            if len(labels) != len(probabilities):
                raise ValueError(f"{name} must have as many rows as probabilities, got {len(labels)}")
            if not torch.compiler.is_compiling():
                check_range(labels, name, 0, count - 1, elementwise=True)
        dtype = torch.promote_types(probabilities.dtype, torch.float32)
        cells = probabilities.new_zeros(self.n_groups * self.n_clients, probabilities.shape[1], dtype=dtype)
        cells = cells.index_add(0, sensitive * self.n_clients + client, probabilities.to(dtype))
        return cells.reshape(self.n_groups, self.n_clients, -1)

    def forward(
        self,
        probabilities: Float[Tensor, "n y"],
        sensitive: Int[Tensor, " n"],
        client: Int[Tensor, " n"],
        rest: Float[Tensor, "z s y"] | None = None,
    ) -> Float[Tensor, ""]:
        """The penalty.

        Parameters
        ----------
        probabilities
            Predicted, of shape (n, decisions); rows sum to 1 (a softmax, or ``stack([1 - p, p], -1)``).
        sensitive, client
            Group and client of each row, counted from 0.
        rest
            What the other clients' :meth:`table` sum to.
        """
        counts = self.table(probabilities, sensitive, client)
        if rest is not None:
            counts = counts + check_tensor(rest, "rest", shape=counts.shape, dtype="floating").detach().to(counts)
        joint = counts / counts.sum()
        of_all = _information(joint.sum(1))
        by_client = _information(joint.transpose(0, 1)).sum()
        return (self.weight_global * of_all + self.weight_local * by_client) / math.log(2)


def _information(table: Float[Tensor, "*batch a b"]) -> Float[Tensor, "*batch"]:
    """Mutual information times mass in nats; empty cells have a gradient, which goes nowhere."""
    both, mass = _entropy(table).sum((-2, -1)), _entropy(table.sum((-2, -1)))
    value = _entropy(table.sum(-1)).sum(-1) + _entropy(table.sum(-2)).sum(-1) - both - mass
    return value.clamp_min(0)


def _entropy(p: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log())
