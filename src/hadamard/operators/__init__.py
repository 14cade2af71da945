"""Linear maps with ``A``, ``A_adjoint`` and ``A_dagger``: composition, batching, autograd."""

from hadamard.operators.base import LinearOperator, Matrix, operator_norm, stack, with_adjoint
from hadamard.operators.deepinv import from_deepinv, to_deepinv
from hadamard.operators.sparse import SparseMatrix, sampled_product

__all__ = [
    "LinearOperator",
    "Matrix",
    "SparseMatrix",
    "from_deepinv",
    "operator_norm",
    "sampled_product",
    "stack",
    "to_deepinv",
    "with_adjoint",
]
