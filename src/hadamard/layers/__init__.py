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

__all__ = [
    "EvoNorm2dB0",
    "EvoNorm2dB1",
    "EvoNorm2dB2",
    "EvoNorm2dS0",
    "EvoNorm2dS1",
    "EvoNorm2dS2",
    "GraphLayer",
    "LayerGraph",
    "convert_norm_act",
    "evonorm",
    "quality",
    "stability",
]
