"""Iterative solvers that return a :class:`hadamard.results.Solution`, and the proof that a matrix is semidefinite."""

from hadamard.solvers.cg import cg
from hadamard.solvers.conic import solve, verify_psd
from hadamard.solvers.lbfgs import minimize
from hadamard.solvers.trace import hutchinson, hvp

__all__ = ["cg", "hutchinson", "hvp", "minimize", "solve", "verify_psd"]
