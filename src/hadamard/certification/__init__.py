"""Statements about trained networks that are proved."""

from hadamard.certification.group_sort import GroupSort, Householder, MaxMin
from hadamard.certification.lipsdp import LipschitzBound, lipschitz_bound
from hadamard.certification.networks import Residual
from hadamard.certification.onnx_files import read_onnx
from hadamard.certification.quadratic_constraints import QuadraticConstraint, slope_restricted, sorting
from hadamard.certification.sampled import sampled_lower_bound

__all__ = [
    "GroupSort", "Householder", "LipschitzBound", "MaxMin", "QuadraticConstraint", "Residual", "lipschitz_bound",
    "read_onnx",    "sampled_lower_bound", "slope_restricted", "sorting",
]  # fmt: skip
