"""Optimal transport with POT's argument order."""

from hadamard.transport.costs import Cost, Euclidean, Manhattan, Sphere, SquaredEuclidean
from hadamard.transport.monge_gap import MongeGapLoss, SinkhornDivergence, monge_gap, sinkhorn_divergence
from hadamard.transport.monge_map import MongeMapEstimator
from hadamard.transport.problem import TransportPlan
from hadamard.transport.semi_discrete import SemiDiscreteMap, semi_discrete_ot
from hadamard.transport.semi_discrete_estimator import SemiDiscreteOT
from hadamard.transport.sinkhorn import sinkhorn
from hadamard.transport.sinkhorn_newton_sparse import sinkhorn_newton_sparse
from hadamard.transport.sparse_ot import sparsity_constrained_ot
from hadamard.transport.sparse_router import Routing, SparseRouter

__all__ = [
    "Cost",
    "Euclidean",
    "Manhattan",
    "MongeGapLoss",
    "MongeMapEstimator",
    "Routing",
    "SemiDiscreteMap",
    "SemiDiscreteOT",
    "SinkhornDivergence",
    "SparseRouter",
    "Sphere",
    "SquaredEuclidean",
    "TransportPlan",
    "monge_gap",
    "semi_discrete_ot",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_newton_sparse",
    "sparsity_constrained_ot",
]
