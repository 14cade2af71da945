"""Iterative solvers that return a :class:`hadamard.results.Solution`."""
