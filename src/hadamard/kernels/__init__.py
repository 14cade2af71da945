"""Compiled kernels, each with a plain torch reference beside it."""

from hadamard.kernels.build import available, instruction_set, using

__all__ = ["available", "instruction_set", "using"]
