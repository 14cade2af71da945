"""Statements about trained networks that are proved."""

from hadamard.certification.dual_randomized_smoothing import DualSmooth, RandomizedSmoothing, dual_radius
from hadamard.certification.group_sort import GroupSort, Householder, MaxMin
from hadamard.certification.lipsdp import LipschitzBound, lipschitz_bound
from hadamard.certification.networks import Residual
from hadamard.certification.onnx_files import read_onnx
from hadamard.certification.quadratic_constraints import QuadraticConstraint, slope_restricted, sorting
from hadamard.certification.sampled import sampled_lower_bound
from hadamard.certification.smoothed_classifier import SmoothedClassifier, SmoothingCertificate, binomial_lower
from hadamard.certification.split_noise import SplitNoise

__all__ = [
    "DualSmooth", "GroupSort", "Householder", "LipschitzBound", "MaxMin", "QuadraticConstraint", "RandomizedSmoothing",
    "Residual", "SmoothedClassifier", "SmoothingCertificate", "SplitNoise", "binomial_lower", "dual_radius",
    "lipschitz_bound", "read_onnx", "sampled_lower_bound", "slope_restricted", "sorting",
]  # fmt: skip
