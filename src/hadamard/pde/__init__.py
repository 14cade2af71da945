"""Partial differential equations: solvers that make data, and networks that learn from it."""

from hadamard.pde.burgers import burgers
from hadamard.pde.darcy import darcy, darcy_operator
from hadamard.pde.frequency_selection import coefficient_loss, suggest_modes, truncation_error
from hadamard.pde.gp_hm import GPSolution, gp_hm
from hadamard.pde.grids import diagonal_forcing, grid_points
from hadamard.pde.heat import heat
from hadamard.pde.navier_stokes import NavierStokes2D
from hadamard.pde.random_fields import gaussian_field
from hadamard.pde.residual_norm import SobolevLoss, residual_norm
from hadamard.pde.spatiotemporal_fno import STFNO
from hadamard.pde.spectral_conv import SpectralConv
from hadamard.pde.spectral_mixture import SpectralMixture
from hadamard.pde.spectral_refiner import Refinement, SpectralRefiner
from hadamard.pde.time_steps import time_stepper
from hadamard.pde.transform_once import T1, variance_preserving_
from hadamard.pde.transform_once_layer import T1Layer

__all__ = [
    "STFNO",
    "T1",
    "GPSolution",
    "NavierStokes2D",
    "Refinement",
    "SobolevLoss",
    "SpectralConv",
    "SpectralMixture",
    "SpectralRefiner",
    "T1Layer",
    "burgers",
    "coefficient_loss",
    "darcy",
    "darcy_operator",
    "diagonal_forcing",
    "gaussian_field",
    "gp_hm",
    "grid_points",
    "heat",
    "residual_norm",
    "suggest_modes",
    "time_stepper",
    "truncation_error",
    "variance_preserving_",
]
