"""What the estimators share: arrays in, tensors inside, arrays out."""

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor

__all__ = ["TorchEstimator"]


class TorchEstimator(BaseEstimator):
    """An estimator in scikit-learn's manner that computes with torch; it has a parameter ``random_state``."""

    def _array(self, tensor: Tensor) -> np.ndarray:
        """The tensor's values, wherever they lie."""
        return tensor.numpy(force=True)

    def _generator(self) -> torch.Generator:
        """A generator that is seeded by ``random_state``."""
        return torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31)))
