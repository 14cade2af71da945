"""Partial differential equations: solvers that make data, and networks that learn from it."""

from hadamard.pde.gp_hm import GPSolution, gp_hm
from hadamard.pde.spectral_mixture import SpectralMixture

__all__ = [
    "GPSolution",
    "SpectralMixture",
    "gp_hm",
]
