"""Iterative solvers that return a :class:`hadamard.results.Solution`."""

from hadamard.solvers.cg import cg
from hadamard.solvers.lbfgs import minimize

__all__ = ["cg", "minimize"]
