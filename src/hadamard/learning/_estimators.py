"""What the estimators share with scikit-learn."""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import validate_data
from torch import Tensor

from hadamard.learning._regressions import check_unique

__all__ = ["TorchEstimator"]


class TorchEstimator(BaseEstimator):
    """Arrays in, tensors inside, arrays out: what the estimators share."""

    def _tensors(self, X: Any, *, reset: bool) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Indices, values and shape of what is observed: not NaN, and stored where ``X`` is sparse."""
        if scipy.sparse.issparse(X) and X.format == "coo":
            check_unique(torch.from_numpy(np.sort(X.row.astype(np.int64) * X.shape[1] + X.col)), X.shape[1])
        X = validate_data(
            self, X, reset=reset, accept_sparse="csr", dtype=[np.float64, np.float32], ensure_all_finite="allow-nan"
        )
        seen = ~np.isnan(X.data if scipy.sparse.issparse(X) else X)
        if not seen.any():
            raise ValueError(f"X must have at least one observed entry, got {seen.size} missing ones")
        if scipy.sparse.issparse(X):
            rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
            indices, values = np.stack([rows[seen], X.indices[seen]]), X.data[seen]
        else:
            indices, values = np.stack(np.nonzero(seen)), X[seen]
        return torch.from_numpy(indices.astype(np.int64)), torch.from_numpy(values), X.shape

    def _array(self, tensor: Tensor) -> np.ndarray:
        return tensor.numpy(force=True)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31)))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags
