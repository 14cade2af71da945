"""Optimizers and solvers."""
