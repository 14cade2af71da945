"""Optimal transport with POT's argument order."""

from hadamard.transport.problem import Euclidean, Manhattan, SquaredEuclidean, TransportPlan
from hadamard.transport.sinkhorn import sinkhorn
from hadamard.transport.sinkhorn_newton_sparse import sinkhorn_newton_sparse

__all__ = ["Euclidean", "Manhattan", "SquaredEuclidean", "TransportPlan", "sinkhorn", "sinkhorn_newton_sparse"]
