"""Linear maps with ``A``, ``A_adjoint`` and ``A_dagger``: composition, batching, autograd."""

from hadamard.operators.base import LinearOperator, operator_norm, stack
from hadamard.operators.deepinv import from_deepinv, to_deepinv
from hadamard.operators.difference import Difference
from hadamard.operators.fourier import Coils, Fourier, Masked, NonUniformFourier
from hadamard.operators.gradient import with_adjoint
from hadamard.operators.matrix import Matrix
from hadamard.operators.radon import Radon
from hadamard.operators.separable import Separable, bicubic
from hadamard.operators.sparse import SparseMatrix, sampled_product

__all__ = [
    "Coils",
    "Difference",
    "Fourier",
    "LinearOperator",
    "Masked",
    "Matrix",
    "NonUniformFourier",
    "Radon",
    "Separable",
    "SparseMatrix",
    "bicubic",
    "from_deepinv",
    "operator_norm",
    "sampled_product",
    "stack",
    "to_deepinv",
    "with_adjoint",
]
