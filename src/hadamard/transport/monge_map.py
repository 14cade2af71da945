"""A map that transports one population onto another at the least cost, in scikit-learn's manner."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor, nn

from hadamard.estimators import TorchEstimator
from hadamard.training import fit
from hadamard.transport.costs import Cost
from hadamard.transport.monge_gap import monge_gap, sinkhorn_divergence
from hadamard.validation import check_range

__all__ = ["MongeMapEstimator"]


class MongeMapEstimator(OneToOneFeatureMixin, TransformerMixin, TorchEstimator):
    """Learn a map from one population to another that moves each point as little as possible.

    Trains a network on the Sinkhorn divergence between the images of ``X`` and ``Y``, plus ``weight`` times the Monge
    gap. Rows of ``X`` and ``Y`` need not be paired, nor be equally many; new points are mapped as well.

    Parameters
    ----------
    map : torch.nn.Module, default=None
        Takes points of shape (n, n_features) to their images, of the same shape; a copy is trained. ``None``: each
        point plus a network of two hidden layers of 64 units, on standardised inputs.
    cost : Cost, default=None
        What moving a point costs; ``None``: squared Euclidean.
    fit_cost : Cost, default=None
        The cost in the divergence; ``None``: squared Euclidean, whatever ``cost`` is.
    weight : float, default=1.0
        Weight of the gap against the divergence; 0: any map that fits.
    fit_reg, gap_reg : float, default=0.1 and 0.05
        Weights of the entropy in the divergence and in the gap, as shares of the mean cost.
    batch_size : int, default=256
        Points of each population in a step; all of them where they are fewer.
    steps : int, default=500
        Steps of Adam.
    learning_rate : float, default=0.01
        Of the first step; it falls to zero along a cosine.
    random_state : int, RandomState instance or None, default=None
        Of the network's first weights and of the batches.
    progress : bool, default=False
        Show a progress bar.
    state : str or Path, default=None
        File to save the training to now and then, and to resume from if it exists.

    Attributes
    ----------
    map_ : torch.nn.Module
        The trained map.
    loss_curve_ : ndarray of shape (steps,)
        The loss at each step.
    n_features_in_ : int
        Number of features.

    References
    ----------
    T. Uscidda, M. Cuturi. The Monge gap: a regularizer to learn all transport maps. ICML 2023. arXiv:2302.04953.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, Y = rng.normal(size=(200, 2)), rng.normal(size=(150, 2)) + [4, 0]
    >>> model = MongeMapEstimator(steps=100, random_state=0).fit(X, Y)
    >>> (model.transform(X) - X).mean(0).round(0) + 0.0
    array([4., 0.])
    """

    def __init__(
        self,
        map: nn.Module | None = None,
        *,
        cost: Cost | None = None,
        fit_cost: Cost | None = None,
        weight: float = 1.0,
        fit_reg: float = 0.1,
        gap_reg: float = 0.05,
        batch_size: int = 256,
        steps: int = 500,
        learning_rate: float = 0.01,
        random_state: Any = None,
        progress: bool = False,
        state: str | Path | None = None,
    ) -> None:
        self.map = map
        self.cost = cost
        self.fit_cost = fit_cost
        self.weight = weight
        self.fit_reg = fit_reg
        self.gap_reg = gap_reg
        self.batch_size = batch_size
        self.steps = steps
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.progress = progress
        self.state = state

    def fit(self, X: Any, Y: Any) -> "MongeMapEstimator":
        """Learn the map.

        Parameters
        ----------
        X : array-like of shape (n_source, n_features)
            The population to be moved.
        Y : array-like of shape (n_target, n_features)
            Where it is moved to.

        Raises
        ------
        ValueError
            If the two have different numbers of features, a value is missing or infinite, or a parameter is out of
            range.
        FloatingPointError
            If the map's values stop being finite; the message names the step.
        """
        check_range(self.weight, "weight", 0)
        check_range(self.batch_size, "batch_size", 2, integer=True)
        check_range(self.learning_rate, "learning_rate", 0, closed="neither")
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        Y = check_array(Y, dtype=X.dtype, ensure_min_samples=2, input_name="Y")
        if X.shape[1] != Y.shape[1]:
            raise ValueError(f"X and Y must have as many features, got {X.shape[1]} and {Y.shape[1]}")
        x, y = torch.from_numpy(X), torch.from_numpy(Y)
        generator = self._generator()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            network = _Residual(x, y) if self.map is None else copy.deepcopy(self.map)
        self.map_ = network.to(x.dtype)
        optimizer = torch.optim.Adam(self.map_.parameters(), lr=self.learning_rate)
        losses = fit(
            self.map_,
            self._loss,
            lambda generator: (_draw(x, self.batch_size, generator), _draw(y, self.batch_size, generator)),
            steps=self.steps,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps),
            generator=generator,
            state=self.state,
            progress="learning the map" if self.progress else "",
        )
        self.map_.eval()
        self.loss_curve_ = self._array(losses)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Move points.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Points, from the source's population or near it.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Their images.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        dtype = next((p.dtype for p in self.map_.parameters()), torch.float64)
        with torch.no_grad():
            return self._array(self.map_(torch.from_numpy(X).to(dtype))).astype(X.dtype, copy=False)

    def _loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        x, y = batch
        z = network(x)
        if z.shape != x.shape:
            raise ValueError(f"map must keep the shape {tuple(x.shape)}, got {tuple(z.shape)}")
        if not bool(torch.isfinite(z).all()):
            raise FloatingPointError(f"the map's values are not finite at step {step}")
        loss = sinkhorn_divergence(z, y, self.fit_cost, relative_reg=self.fit_reg, tol=1e-2)
        if self.weight:
            loss = loss + self.weight * monge_gap(x, z, self.cost, relative_reg=self.gap_reg, tol=1e-2)
        return loss


class _Residual(nn.Module):
    """Each point plus what a small network says of it, in the populations' own units; the identity at first."""

    centre: Tensor
    width: Tensor
    reach: Tensor

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        d = x.shape[1]
        last = nn.Linear(64, d)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(d, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), last)
        self.register_buffer("centre", x.mean(0))
        self.register_buffer("width", _width(x))
        self.register_buffer("reach", _width(torch.cat([x, y])))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return x + self.reach * self.network((x - self.centre) / self.width)


def _width(x: Tensor) -> Tensor:
    """Standard deviation over everything: one number, so that directions keep their weight."""
    width = x.std(0).square().mean().sqrt()
    return torch.where(width > 0, width, 1)


def _draw(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return x if len(x) <= size else x[torch.randperm(len(x), generator=generator)[:size]]
