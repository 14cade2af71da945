"""What the estimators of incomplete tables share."""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils import Tags
from sklearn.utils.validation import validate_data
from torch import Tensor

from hadamard.estimators import TorchEstimator
from hadamard.learning._regressions import check_unique

__all__ = ["IncompleteEstimator"]


class IncompleteEstimator(TorchEstimator):
    """An estimator whose ``X`` may have missing entries: NaN, or what a sparse matrix does not store."""

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

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags
