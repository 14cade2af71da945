"""The loss by which a lighter denoiser learns from a larger one."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.validation import check_range

__all__ = ["Distillation", "Distilled", "matching", "sample_of", "watched"]


@dataclass(frozen=True)
class Distilled:
    """The loss of a batch and its three parts, before their weights.

    Attributes
    ----------
    loss
        What is to be lowered.
    task
        Mean squared error to the target.
    output
        Mean squared error to the teacher's output.
    features
        Sum over the blocks of the mean squared error to the teacher's features, relative to their mean square.
    """

    loss: Tensor
    task: Tensor
    output: Tensor
    features: Tensor


class Distillation:
    """Compare a student with its target, with its teacher's output and with its teacher's features, block by block.

    Parameters
    ----------
    teacher
        A trained network; it runs without gradients, and stays in whatever mode it is.
    student
        A network that is called like it and has modules of the same names, as :func:`assemble` makes it.
    taps
        Patterns of module names whose outputs are compared; the first entry where a module gives several.
    output_weight, features_weight
        Weights of the two parts that come from the teacher; that of the task is 1.

    Raises
    ------
    ValueError
        If no module of both has such a name, or a weight is negative; at a call, if features have different shapes.

    References
    ----------
    B.-K. Kim, H.-K. Song, T. Castells, S. Choi. BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion.
    ECCV 2024, arXiv:2305.15798. Here each feature's error is divided by the mean square of the teacher's, so that
    no block outweighs the others.

    Examples
    --------
    >>> teacher, student = (torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)) for _ in range(2))
    >>> found = Distillation(teacher, student, taps=["0"])(torch.randn(5, 2), target=torch.randn(5, 2))
    >>> bool(found.loss == found.task + found.output + found.features)
    True
    """

    def __init__(
        self,
        teacher: Any,
        student: Any,
        taps: Sequence[str] = ("down_blocks.?", "mid_block", "up_blocks.?"),
        *,
        output_weight: float = 1.0,
        features_weight: float = 1.0,
    ) -> None:
        self.teacher, self.student = teacher, student
        self.output_weight = check_range(output_weight, "output_weight", 0)
        self.features_weight = check_range(features_weight, "features_weight", 0)
        self.taps = matching(teacher, student, taps)

    def __call__(self, *inputs: Any, target: Tensor, **more: Any) -> Distilled:
        """Run both networks on a batch and compare."""
        with torch.no_grad(), watched(self.teacher, self.taps) as wanted:
            taught = sample_of(self.teacher(*inputs, **more))
        with watched(self.student, self.taps) as features:
            made = sample_of(self.student(*inputs, **more))
        task, output = F.mse_loss(made, target), F.mse_loss(made, taught)
        errors = [_relative(features[name], wanted[name], name) for name in self.taps]
        total = torch.stack(errors).sum()
        return Distilled(task + self.output_weight * output + self.features_weight * total, task, output, total)


def matching(teacher: nn.Module, student: nn.Module, taps: Sequence[str]) -> list[str]:
    """The modules of both networks whose names fit one of the patterns; a ValueError if there is none."""
    names = {name for name, _ in teacher.named_modules()} & {name for name, _ in student.named_modules()}
    found = sorted(name for name in names if any(fnmatchcase(name, tap) for tap in taps))
    if not found:
        raise ValueError(f"taps must name modules of both networks, got {list(taps)}")
    return found


@contextmanager
def watched(network: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what modules give while the network runs, the first tensor of each."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, __, out: seen.__setitem__(name, sample_of(out))

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _relative(made: Tensor, wanted: Tensor, name: str) -> Tensor:
    if made.shape != wanted.shape:
        raise ValueError(
            f"the features at {name} must have the same shape, got {tuple(made.shape)} of the student and "
            f"{tuple(wanted.shape)} of the teacher"
        )
    return F.mse_loss(made, wanted) / wanted.square().mean()


def sample_of(out: Any) -> Tensor:
    """A tensor, the first of several, or the ``sample`` of an output."""
    return out if isinstance(out, Tensor) else out[0]
