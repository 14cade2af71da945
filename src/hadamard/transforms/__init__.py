"""Transforms: the same values from fewer samples or fewer passes over memory."""

from hadamard.transforms.spright import SparseSpectrum, sparse_wht
from hadamard.transforms.spright_regressor import SparseWalshRegressor
from hadamard.transforms.two_pass_softmax import TwoPassSoftmax, log_softmax, logsumexp, softmax

__all__ = [
    "SparseSpectrum",
    "SparseWalshRegressor",
    "TwoPassSoftmax",
    "log_softmax",
    "logsumexp",
    "softmax",
    "sparse_wht",
]
