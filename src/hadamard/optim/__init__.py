"""Optimisation: steps with guarantees, fixed points, and convex training."""

from hadamard.optim.lion_diagnostics import OdeParams, constraint_distance, fw_gap, lyapunov, ode_params
from hadamard.optim.lion_k import LionK
from hadamard.optim.lion_kernels import EntropyBox, LassoBox, LqBall, NewtonSchulzBall, RidgeBox, SparseBox

__all__ = [
    "EntropyBox",
    "LassoBox",
    "LionK",
    "LqBall",
    "NewtonSchulzBall",
    "OdeParams",
    "RidgeBox",
    "SparseBox",
    "constraint_distance",
    "fw_gap",
    "lyapunov",
    "ode_params",
]
