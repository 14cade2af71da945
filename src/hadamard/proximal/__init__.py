"""Convex functions, thresholds, projections and spectral sets."""

from hadamard.proximal.base import L1, L2, ConvexFunction, L2Ball, LInfBall, SquaredL2, indicator
from hadamard.proximal.grid import round_ste, to_grid
from hadamard.proximal.projections import box, l1_ball, l2_ball, simplex
from hadamard.proximal.spectral import Nuclear, SpectralBall, lmo_spectral, polar, spectral_ball, svt
from hadamard.proximal.thresholds import keep_top_k, soft, soft_group, top_k

__all__ = [
    "L1",
    "L2",
    "ConvexFunction",
    "L2Ball",
    "LInfBall",
    "Nuclear",
    "SpectralBall",
    "SquaredL2",
    "box",
    "indicator",
    "keep_top_k",
    "l1_ball",
    "l2_ball",
    "lmo_spectral",
    "polar",
    "round_ste",
    "simplex",
    "soft",
    "soft_group",
    "spectral_ball",
    "svt",
    "to_grid",
    "top_k",
]
