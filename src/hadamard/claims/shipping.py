"""How the weights that claims ship are trained and kept: one recipe, one folder, one account of each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hadamard.training import fit, save_checkpoint

__all__ = ["Averaged", "Shelf", "one_cycle", "shipping"]


class Averaged(nn.Module):
    """A network and the running average of its weights, which are saved together.

    Parameters
    ----------
    net
        What is trained.
    decay
        Weight of the old average in the new one.

    Attributes
    ----------
    average
        Updated by ``average.update_parameters(net)``; its ``module`` is the averaged network.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.net = net
        self.average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay))


class Shelf:
    """Where a method's weights go, and where their training leaves off when it is interrupted.

    Attributes
    ----------
    paths
        The files that were written, in their order.
    """

    def __init__(self, key: str, size: str, folder: Path, seed: int, device: str) -> None:
        self.folder, self.states, self.seed = folder, folder / f".{key}-{size}-{seed}", seed
        self.command = f"hadamard train {key} --size {size}" + (f" --device {device}" if device != "cpu" else "")
        self.paths: list[Path] = []

    def state(self, name: str) -> Path:
        """The file from which the training of one network goes on."""
        return self.states / f"{name}.state"

    def write(self, name: str, module: nn.Module, **account: str) -> None:
        """Write a network's weights with their provenance; ``seed`` is the training's unless it is given."""
        account = {"command": self.command, "seed": str(self.seed), **account}
        self.paths.append(save_checkpoint(self.folder / f"{name}.safetensors", module, account))


@contextmanager
def shipping(
    key: str, size: str, out: str | Path | None, resume: bool, *, seed: int = 0, device: str = "cpu"
) -> Iterator[Shelf]:
    """Open the shelf of a method; what interrupted trainings left is removed at the end, or first if not to resume.

    Parameters
    ----------
    key
        The method's key.
    size
        Of the training.
    out
        Folder of the weights; ``None``: where the shipped ones lie.
    resume
        Go on from what an interrupted training left.
    seed
        Of the training.
    device
        Where it takes place.
    """
    folder = Path(out) if out is not None else Path(str(files("hadamard.checkpoints")))
    shelf = Shelf(key, size, folder, seed, device)
    if not resume:
        rmtree(shelf.states, ignore_errors=True)
    yield shelf
    rmtree(shelf.states, ignore_errors=True)


def one_cycle(
    module: nn.Module,
    loss: Callable[[nn.Module, Any, int], Tensor],
    draw: Callable[[torch.Generator], Any],
    *,
    steps: int,
    rate: float,
    seed: int,
    optimizer: Optimizer | None = None,
    rise: float = 0.1,
    state: Path | None = None,
    progress: str = "",
    **options: Any,
) -> Tensor:
    """Train by Adam at a learning rate that rises and falls once, on batches that depend on the seed alone.

    Parameters
    ----------
    module, loss, draw, steps, state, progress
        As for :func:`hadamard.training.fit`.
    rate
        The greatest learning rate.
    seed
        Of the batches.
    optimizer
        Another one than Adam.
    rise
        Share of the steps in which the rate rises.
    options
        More of :func:`hadamard.training.fit`.

    Returns
    -------
    Tensor
        The loss at each step.
    """
    if optimizer is None:
        optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate, fused=True)
    return fit(
        module,
        loss,
        draw,
        steps=steps,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=rise),
        generator=torch.Generator().manual_seed(seed),
        state=state,
        progress=progress,
        **options,
    )
