"""Few rows, many columns: what can be done in the space of the rows."""

from hadamard.lowrank.gram import combine, gram, gram_cholesky, gram_coordinates

__all__ = ["combine", "gram", "gram_cholesky", "gram_coordinates"]
