"""Iterative solvers that return a :class:`hadamard.results.Solution`, and the proof that a matrix is semidefinite."""

from hadamard.solvers.cg import cg
from hadamard.solvers.conic import solve, verify_psd
from hadamard.solvers.lbfgs import minimize

__all__ = ["cg", "minimize", "solve", "verify_psd"]
