"""Transforms: the same values from fewer samples or fewer passes over memory."""

from hadamard.transforms.gaunt_convolution import GauntConv
from hadamard.transforms.gaunt_tensor_product import GauntTensorProduct, gaunt_power
from hadamard.transforms.spright import SparseSpectrum, sparse_wht
from hadamard.transforms.spright_regressor import SparseWalshRegressor
from hadamard.transforms.two_pass_softmax import TwoPassSoftmax, log_softmax, logsumexp, softmax

__all__ = [
    "GauntConv",
    "GauntTensorProduct",
    "SparseSpectrum",
    "SparseWalshRegressor",
    "TwoPassSoftmax",
    "gaunt_power",
    "log_softmax",
    "logsumexp",
    "softmax",
    "sparse_wht",
]
