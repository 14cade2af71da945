"""Layers that take the place of those in ``torch.nn``."""

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
from hadamard.layers.toeplitz_attention import DecodingCache, ToeplitzAttention
from hadamard.layers.toeplitz_functional import toeplitz_attention
from hadamard.layers.toeplitz_matmul import toeplitz_matmul

__all__ = [
    "DecodingCache",
    "EvoNorm2dB0",
    "EvoNorm2dB1",
    "EvoNorm2dB2",
    "EvoNorm2dS0",
    "EvoNorm2dS1",
    "EvoNorm2dS2",
    "GraphLayer",
    "KroneckerAttention",
    "LayerGraph",
    "ToeplitzAttention",
    "convert_norm_act",
    "evonorm",
    "kronecker_attention",
    "polynomial_error",
    "quality",
    "stability",
    "toeplitz_attention",
    "toeplitz_matmul",
]
