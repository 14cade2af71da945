"""Layers that take the place of those in ``torch.nn``."""

from hadamard.layers.bandlimited_bounds import bandwidth_lower_bound, out_of_band_energy, ridgelet_transform
from hadamard.layers.bandlimited_features import BandlimitedRandomFeatures, RandomFeatures
from hadamard.layers.bandlimited_net import BandlimitedRegressor
from hadamard.layers.evonorm import (
    EvoNorm2dB0,
    EvoNorm2dB1,
    EvoNorm2dB2,
    EvoNorm2dS0,
    EvoNorm2dS1,
    EvoNorm2dS2,
    evonorm,
)
from hadamard.layers.evonorm_convert import convert_norm_act
from hadamard.layers.evonorm_search import GraphLayer, LayerGraph, quality, stability
from hadamard.layers.kronecker_attention import KroneckerAttention
from hadamard.layers.kronecker_functional import kronecker_attention, polynomial_error
from hadamard.layers.locally_connected import LocallyConnected1d, LocallyConnected2d
from hadamard.layers.orthogonal_conv import conv_singular_values, isometry_bounds, lorth
from hadamard.layers.orthogonal_conv_exact import OrthogonalConv2d
from hadamard.layers.orthogonal_conv_existence import OrthogonalExistence, orthogonal_conv_exists
from hadamard.layers.orthogonal_conv_penalty import OrthogonalRegularizer
from hadamard.layers.ptd import PTD, conjugate_half, hippo, ptd, transfer
from hadamard.layers.ptd_ssm import DiagonalSSM
from hadamard.layers.toeplitz_attention import DecodingCache, ToeplitzAttention
from hadamard.layers.toeplitz_functional import toeplitz_attention
from hadamard.layers.toeplitz_matmul import toeplitz_matmul

__all__ = [
    "PTD",
    "BandlimitedRandomFeatures",
    "BandlimitedRegressor",
    "DecodingCache",
    "DiagonalSSM",
    "EvoNorm2dB0",
    "EvoNorm2dB1",
    "EvoNorm2dB2",
    "EvoNorm2dS0",
    "EvoNorm2dS1",
    "EvoNorm2dS2",
    "GraphLayer",
    "KroneckerAttention",
    "LayerGraph",
    "LocallyConnected1d",
    "LocallyConnected2d",
    "OrthogonalConv2d",
    "OrthogonalExistence",
    "OrthogonalRegularizer",
    "RandomFeatures",
    "ToeplitzAttention",
    "bandwidth_lower_bound",
    "conjugate_half",
    "conv_singular_values",
    "convert_norm_act",
    "evonorm",
    "hippo",
    "isometry_bounds",
    "kronecker_attention",
    "lorth",
    "orthogonal_conv_exists",
    "out_of_band_energy",
    "polynomial_error",
    "ptd",
    "quality",
    "ridgelet_transform",
    "stability",
    "toeplitz_attention",
    "toeplitz_matmul",
    "transfer",
]
