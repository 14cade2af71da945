"""Optimisation: steps with guarantees, fixed points, and convex training."""

from hadamard.optim.gradients import loss_gradients
from hadamard.optim.inverse_fisher import InverseFisher
from hadamard.optim.lion_diagnostics import OdeParams, constraint_distance, fw_gap, lyapunov, ode_params
from hadamard.optim.lion_k import LionK
from hadamard.optim.lion_kernels import EntropyBox, LassoBox, LqBall, NewtonSchulzBall, RidgeBox, SparseBox
from hadamard.optim.m_fac import MFAC
from hadamard.optim.obs_pruning import cubic_amounts, obs_correction, prune_obs

__all__ = [
    "MFAC",
    "EntropyBox",
    "InverseFisher",
    "LassoBox",
    "LionK",
    "LqBall",
    "NewtonSchulzBall",
    "OdeParams",
    "RidgeBox",
    "SparseBox",
    "constraint_distance",
    "cubic_amounts",
    "fw_gap",
    "loss_gradients",
    "lyapunov",
    "obs_correction",
    "ode_params",
    "prune_obs",
]
