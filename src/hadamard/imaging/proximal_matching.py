"""Proximal matching: the loss that turns a trained denoiser into the most probable clean signal."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.validation import check_range

__all__ = ["ProximalMatchingLoss", "ProximalMatchingSchedule"]


class ProximalMatchingLoss(nn.Module):
    """A loss whose minimiser tends to the most probable clean signal: the mean of ``1 - exp(-||e||^2 / gamma^2)``.

    The norm is over a whole element of the batch. As gamma falls, only errors near 0 count, so that the best prediction
    is the mode of what is possible, where the squared error gives the mean and the absolute error the median.

    Parameters
    ----------
    gamma
        Width, above 0, in units of ``||e||``.

    Warns
    -----
    UserWarning
        If the mean of ``exp(-||e||^2 / gamma^2)`` is below 1e-3: the gradient is all but 0, and training must begin
        with another loss or a larger gamma.

    Examples
    --------
    >>> loss = ProximalMatchingLoss(2.0)
    >>> loss(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    tensor(0.2212)
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = float(check_range(gamma, "gamma", 0, closed="neither"))

    def extra_repr(self) -> str:
        """Show gamma."""
        return f"gamma={self.gamma:g}"

    def forward(self, prediction: Float[Tensor, "batch ..."], target: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
        """Average over the batch."""
        if prediction.shape != target.shape:
            raise ValueError(
                f"target must have the shape of prediction, {tuple(prediction.shape)}, got {tuple(target.shape)}"
            )
        weight = torch.exp(-(prediction - target).flatten(1).square().sum(1) / self.gamma**2).mean()
        size = float(weight.detach())
        if size < 1e-3:
            warnings.warn(
                f"the proximal matching loss is saturated at gamma={self.gamma:g} (mean weight {size:.1e}): begin with "
                "another loss or a larger gamma",
                stacklevel=2,
            )
        return 1 - weight


class ProximalMatchingSchedule:
    """Which loss to train with at which step: absolute error first, then proximal matching with a falling gamma.

    Parameters
    ----------
    n
        Entries of one signal (height times width times channels).
    steps, pretrain
        Steps in all, and those of the absolute error.
    stages
        Number of gammas, each for an equal share of the rest: ``gamma_min * 2^(stages - 1), ..., gamma_min``.
    gamma_min
        The last gamma; ``None``: ``0.08 sqrt(n)``, for signals in [0, 1].

    Raises
    ------
    ValueError
        If a number is not in its range.

    Examples
    --------
    >>> schedule = ProximalMatchingSchedule(100, steps=10, pretrain=6, stages=2)
    >>> schedule.loss(0), schedule.loss(6), schedule.loss(9)
    (L1Loss(), ProximalMatchingLoss(gamma=1.6), ProximalMatchingLoss(gamma=0.8))
    """

    def __init__(
        self, n: int, steps: int = 40000, pretrain: int = 20000, stages: int = 4, gamma_min: float | None = None
    ) -> None:
        check_range(n, "n", 1, integer=True)
        self.steps = check_range(steps, "steps", 1, integer=True)
        self.pretrain = check_range(pretrain, "pretrain", 0, steps, integer=True)
        self.stages = check_range(stages, "stages", 1, integer=True)
        gamma_min = 0.08 * n**0.5 if gamma_min is None else gamma_min
        self.gamma_min = check_range(gamma_min, "gamma_min", 0, closed="neither")

    def loss(self, step: int) -> nn.Module:
        """Give the loss of one step, counted from 0."""
        if step < self.pretrain:
            return nn.L1Loss()
        stage = min(self.stages * (step - self.pretrain) // max(1, self.steps - self.pretrain), self.stages - 1)
        return ProximalMatchingLoss(self.gamma_min * 2 ** (self.stages - 1 - stage))
