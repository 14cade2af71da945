"""Estimators in scikit-learn's manner."""

from hadamard.learning.dynamic_signal import (
    DSDClassifier,
    DynamicSignal,
    bayes_error,
    make_dynamic_signal,
)
from hadamard.learning.dynamic_signal_complexity import SampleComplexity, sample_complexity, signal_errors
from hadamard.learning.dynamic_signal_nets import PatchThresholdNet, train_patches
from hadamard.learning.matrix_completion import LowRank, RobustALS, complete

__all__ = [
    "DSDClassifier",
    "DynamicSignal",
    "LowRank",
    "PatchThresholdNet",
    "RobustALS",
    "SampleComplexity",
    "bayes_error",
    "complete",
    "make_dynamic_signal",
    "sample_complexity",
    "signal_errors",
    "train_patches",
]
