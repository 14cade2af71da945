"""Estimators in scikit-learn's manner."""

from hadamard.learning.dynamic_signal import (
    DSDClassifier,
    DynamicSignal,
    bayes_error,
    make_dynamic_signal,
)
from hadamard.learning.dynamic_signal_complexity import SampleComplexity, sample_complexity, signal_errors
from hadamard.learning.dynamic_signal_nets import PatchThresholdNet, train_patches
from hadamard.learning.fairness_frontier import AGLFOP, FairOptimum, Frontier
from hadamard.learning.fairness_penalty import GlobalLocalPenalty
from hadamard.learning.fairness_pid import ClientDisparity, FairnessPID, fairness_pid
from hadamard.learning.matrix_completion import LowRank, RobustALS, complete
from hadamard.learning.partial_information import PID, pid

__all__ = [
    "AGLFOP",
    "PID",
    "ClientDisparity",
    "DSDClassifier",
    "DynamicSignal",
    "FairOptimum",
    "FairnessPID",
    "Frontier",
    "GlobalLocalPenalty",
    "LowRank",
    "PatchThresholdNet",
    "RobustALS",
    "SampleComplexity",
    "bayes_error",
    "complete",
    "fairness_pid",
    "make_dynamic_signal",
    "pid",
    "sample_complexity",
    "signal_errors",
    "train_patches",
]
