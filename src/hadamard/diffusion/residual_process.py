"""The process of residual denoising: sums of its schedules, and what follows from a predicted residual or noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.validation import check_option, check_range, check_tensor

try:
    from diffusers.utils import BaseOutput
except ImportError as error:
    raise ImportError("this needs diffusers: pip install 'hadamard[diffusion]'") from error

__all__ = [
    "RDDMSchedulerOutput", "clean_from_noise", "noise_from_residual", "read_prediction", "same_shape", "schedule_sums",
    "single", "sums_of_ddim",
]  # fmt: skip

_LEAST = 1e-6  # of the clean picture's share, where it divides


@dataclass
class RDDMSchedulerOutput(BaseOutput):
    """One step back, and what it was taken by.

    Attributes
    ----------
    prev_sample
        The sample at the next timestep of the schedule.
    pred_original_sample, pred_residual, pred_noise
        The clean picture, the residual and the noise that the network's output stands for.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None
    pred_residual: Tensor | None = None
    pred_noise: Tensor | None = None


def schedule_sums(T: int, schedule: str | Sequence[float], name: str) -> Float[Tensor, " T"]:
    """Sum the shares of a schedule's steps, which make 1 together, or check sums that are given.

    Parameters
    ----------
    T
        Number of steps.
    schedule
        ``"decreased"``, ``"increased"`` (linearly smaller or larger shares), ``"average"``, or the sums themselves.
    name
        Of the argument that it came by.

    Returns
    -------
    Tensor
        In double precision.

    Raises
    ------
    ValueError
        If there is no such schedule, or the sums fall, leave [0, 1] or are not T.

    Examples
    --------
    >>> schedule_sums(3, "decreased", "alpha_schedule").mul(6).tolist()
    [3.0, 5.0, 6.0]
    """
    if isinstance(schedule, str):
        weights = {"increased": range(1, T + 1), "decreased": range(T, 0, -1), "average": [1] * T}
        sums = list(accumulate(weights[check_option(schedule, name, list(weights))]))
        return torch.tensor([s / sums[-1] for s in sums], dtype=torch.float64)
    found = torch.tensor([float(v) for v in schedule], dtype=torch.float64)
    if len(found) != T or not bool((found.diff() >= 0).all()):
        raise ValueError(f"{name} must be {T} numbers that do not fall, got {len(found)}")
    return check_range(found, name, 0, 1, elementwise=True)


def sums_of_ddim(scheduler: Any) -> dict[str, Any]:
    """Find the sums by which the process is that of a DDIM or DDPM scheduler with 0 for the degraded picture.

    Raises
    ------
    ValueError
        If it is another scheduler, or its network predicts something else than the noise.
    """
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is None:
        raise ValueError(f"scheduler must have alphas_cumprod, as DDIMScheduler has, got {type(scheduler).__name__}")
    predicted = scheduler.config.get("prediction_type", "epsilon")
    if predicted != "epsilon":
        raise ValueError(f"scheduler must be one whose network predicts 'epsilon', got {predicted!r}")
    products = products.double()
    return {
        "num_train_timesteps": len(products),
        "residual_cumsum": (1 - products.sqrt()).tolist(),
        "noise_cumsum": (1 - products).sqrt().tolist(),
    }


def clean_from_noise(x: Tensor, degraded: Tensor, noise: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """Find the clean picture that noise leaves; where nothing of it is in the sample (``a`` = 1), a multiple of 1e6.

    Examples
    --------
    >>> round(float(clean_from_noise(*torch.tensor([3.4, 4.0, 2.0]), a=0.5, b=0.2)), 5)
    2.0
    """
    share = (1 - a).clamp(min=_LEAST) if isinstance(a, Tensor) else max(1 - a, _LEAST)
    return (x - a * degraded - b * noise) / share


def noise_from_residual(x: Tensor, degraded: Tensor, residual: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """Find the noise that a residual leaves.

    Examples
    --------
    >>> round(float(noise_from_residual(*torch.tensor([3.4, 4.0, 2.0]), a=0.5, b=0.2)), 5)
    2.0
    """
    return (x - degraded + (1 - a) * residual) / b


def read_prediction(
    kind: str, output: Tensor, x: Tensor, degraded: Tensor, a: float, b: float, most: tuple[float, float] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Read the clean picture, the residual and the noise off a network's output.

    Parameters
    ----------
    kind
        What it predicts, as :class:`~hadamard.diffusion.RDDMScheduler` names it.
    output
        Of the network.
    x, degraded
        The sample and the degraded picture.
    a, b
        The residual's share in the sample and the noise's standard deviation.
    most
        Largest values of the clean picture and the residual; ``None``: any.
    """
    bound, residual_bound = most if most is not None else (None, None)

    def within(y: Tensor, limit: float | None) -> Tensor:
        return y if limit is None else y.clamp(-limit, limit)

    first, last = output.chunk(2, 1) if "_" in kind else (output, output)
    if kind == "epsilon":
        clean = within(clean_from_noise(x, degraded, last, a, b), bound)
        return clean, within(degraded - clean, residual_bound), last
    residual = within(degraded - first if kind == "sample_epsilon" else first, residual_bound)
    if kind == "residual":
        noise = noise_from_residual(x, degraded, residual, a, b) if b > 0 else torch.zeros_like(x)
        return within(degraded - residual, bound), residual, noise
    return within(first if kind == "sample_epsilon" else x - a * residual - b * last, bound), residual, last


def same_shape(x: Tensor, name: str, input_image: Tensor | None, **others: Tensor) -> Tensor:
    """Check that tensors have one shape and type, and give the degraded picture, or 0, in at least single precision."""
    check_tensor(x, name, dtype="floating")
    given = {"input_image": input_image} if input_image is not None else {}
    for other, y in (others | given).items():
        check_tensor(y, other, dtype=x.dtype)
        if y.shape != x.shape:
            raise ValueError(f"{other} must have {name}'s shape {tuple(x.shape)}, got {tuple(y.shape)}")
    return single(x.new_zeros(()) if input_image is None else input_image)


def single(x: Tensor) -> Tensor:
    """Give a tensor of half precision in single precision, another one as it is.

    Examples
    --------
    >>> single(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
