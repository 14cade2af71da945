"""Estimators in scikit-learn's manner."""

from hadamard.learning.matrix_completion import LowRank, RobustALS, complete

__all__ = ["LowRank", "RobustALS", "complete"]
