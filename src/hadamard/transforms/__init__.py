"""Transforms: the same values from fewer samples or fewer passes over memory."""

from hadamard.transforms.fft_conv_cost import cost_model
from hadamard.transforms.flash_fft_conv import FlashFFTConv, fft_conv
from hadamard.transforms.gaunt_convolution import GauntConv
from hadamard.transforms.gaunt_tensor_product import GauntTensorProduct, gaunt_power
from hadamard.transforms.long_conv import LongConvBlock, extend_length
from hadamard.transforms.monarch import FrequencySparse, monarch_fft, monarch_ifft, monarch_order
from hadamard.transforms.spright import SparseSpectrum, sparse_wht
from hadamard.transforms.spright_regressor import SparseWalshRegressor
from hadamard.transforms.two_pass_softmax import TwoPassSoftmax, log_softmax, logsumexp, softmax

__all__ = [
    "FlashFFTConv",
    "FrequencySparse",
    "GauntConv",
    "GauntTensorProduct",
    "LongConvBlock",
    "SparseSpectrum",
    "SparseWalshRegressor",
    "TwoPassSoftmax",
    "cost_model",
    "extend_length",
    "fft_conv",
    "gaunt_power",
    "log_softmax",
    "logsumexp",
    "monarch_fft",
    "monarch_ifft",
    "monarch_order",
    "softmax",
    "sparse_wht",
]
