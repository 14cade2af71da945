"""The cases of the claim on T1: trained networks, steps that are timed, variances at the start, chosen modes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hadamard.claims.pde.fno import FNO
from hadamard.claims.pde.transform_once_training import (
    FEW,
    MANY,
    NETWORKS,
    TASKS,
    build,
    data,
    relative_error,
    step_loss,
    train_one,
)
from hadamard.pde import T1, SpectralConv, T1Layer, suggest_modes, truncation_error, variance_preserving_
from hadamard.training import load_checkpoint

__all__ = [
    "BASE", "EPOCHS", "EQUAL", "FIXED", "KINDS", "LONGER", "OURS", "PAIR", "PAPER", "PLAIN", "RETRAINED", "SELECT",
    "START", "problem", "size_name", "task_name",
]  # fmt: skip

OURS, BASE, EQUAL, LONGER = "T1", "FNO", "FNO, half as long again", "FNO, three times as long"
RETRAINED, PAIR = "flow, trained again", "step of the networks above, batch of 20"
PAPER, PLAIN, FIXED = "T1, every layer compensated", "FNO layers, usual start", "FNO layers, variance kept"
START, SELECT, EPOCHS = "start: white noise, 8 layers", "modes for a tolerance", "first 20 epochs"
KINDS = {OURS: "t1", BASE: "fno", EQUAL: "fno_equal", LONGER: "fno_longer"}
TOLERANCE = 0.05


def task_name(task: str, samples: int) -> str:
    """How a case is called in tables."""
    return f"{'flow' if task == 'flow' else 'Darcy'}, {samples} samples"


def size_name(size: int) -> str:
    """How a case of steps is called in tables."""
    return f"step at {size} x {size}"


@dataclass
class Trained:
    """A task that networks have learned, with samples that they have not seen."""

    task: str
    samples: int
    x: Tensor
    y: Tensor
    share: int

    def __call__(self, kind: str) -> dict[str, float]:
        """Mean relative error of the network that ships, and its parameters."""
        name = f"transform_once_{self.task}_{self.samples}_{kind}"
        return self.result(load_checkpoint(name, build(NETWORKS[name].kind)))

    def again(self, kind: str) -> dict[str, float]:
        """The same after training anew for a share of the time."""
        network = NETWORKS[f"transform_once_{self.task}_{self.samples}_{kind}"]
        return self.result(train_one(network, network.steps // self.share, 0, 1e-2))

    def result(self, module: nn.Module) -> dict[str, Any]:
        """What is measured of a network."""
        errors = relative_error(module, self.x, self.y)
        count = sum(p.numel() for p in module.parameters())
        floor = truncation_error(self.y, module.n_modes) if isinstance(module, T1) else torch.zeros(())
        return {
            "error": float(errors.mean()), "parameters": float(count), "module": module,
            "over floor": float((errors - floor).min()), "floor": float(floor.mean()),
        }  # fmt: skip


@dataclass
class Steps:
    """A step of training, forward and backward, as it is timed: 4 layers, 16 cosines or 8 frequencies an axis."""

    x: Tensor
    y: Tensor
    networks: dict[str, nn.Module]

    def __call__(self, name: str) -> float:
        """One step."""
        module = self.networks[name]
        module.zero_grad(set_to_none=True)
        loss = step_loss(module, (self.x, self.y))
        loss.backward()
        return loss.item()


def _steps(size: int, width: int, batch: int, seed: int) -> Steps:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(batch, 1, size, size, generator=generator) for _ in range(2))
    networks = {OURS: build("t1", width), BASE: build("fno", width)}
    module = networks[OURS]
    assert isinstance(module, T1)
    module.output = "coefficients"
    return Steps(x, y, networks)


@dataclass
class Start:
    """Variance of the output over that of the input, white noise, through eight layers that have not been trained."""

    seed: int
    width: int = 32
    size: int = 32
    modes: int = 8

    def __call__(self, kind: str) -> dict[str, float]:
        """The ratio for one way to begin."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(4, self.width, self.size, self.size, generator=generator)
        grid = (self.size, self.size)
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            if kind in (OURS, PAPER):
                net = T1((self.modes,) * 2, self.width, 1, self.width, 8, positional_embedding=None, resolution=grid)
                if kind == PAPER:
                    net.lift.weight *= self.modes / self.size
                    for layer in net.layers:
                        cast(T1Layer, layer).channel_mixing.mul_(self.size / self.modes)
                        cast(T1Layer, layer).axis_mixing[0].mul_(8**0.5)
                scale = math.sqrt(net.basis.degrees(net.n_modes))
                z = net._lift(net.analyse(x)) * scale
                for layer in net.layers:
                    z = layer(z)
                out = net.synthesise(z / scale, grid)
            else:
                chain = nn.Sequential(*[SpectralConv(self.width, self.width, (self.modes // 2,) * 2) for _ in range(8)])
                if kind == FIXED:
                    variance_preserving_(chain, grid)
                    chain[1:].apply(_as_many_as_come)
                else:
                    for conv in chain:
                        nn.init.uniform_(cast(SpectralConv, conv).weight, 0, 1 / self.width**2)
                out = chain(x)
        return {"variance": float(out.var() / x.var())}


def _as_many_as_come(module: nn.Module) -> None:
    """Layers after the first lose nothing more: their input lies in the modes that are kept."""
    if isinstance(module, SpectralConv):
        nn.init.normal_(module.weight, std=math.sqrt(0.5 / module.in_channels))


@dataclass
class Select:
    """Modes chosen on some samples, and how others fare with them."""

    y: Tensor

    def __call__(self) -> dict[str, float]:
        """The error on the half that the choice has not seen, at the quantile that was asked for."""
        seen, unseen = self.y.chunk(2)
        modes = suggest_modes(seen, TOLERANCE)
        errors = truncation_error(unseen, modes)
        return {"error over tolerance": float(errors.quantile(0.95)) / TOLERANCE, "modes": float(math.prod(modes))}


@dataclass
class Epochs:
    """An FNO's first 20 epochs on 64 samples of flow at 32 x 32, from a given start."""

    x: Tensor
    y: Tensor
    width: int

    def __call__(self, kept: bool) -> dict[str, float]:
        """Mean loss over the last epoch."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = FNO((8, 8), self.width)
            if kept:
                variance_preserving_(net, self.x.shape[2:])
            else:
                for conv in net.spectral:
                    nn.init.uniform_(cast(SpectralConv, conv).weight, 0, 1 / self.width**2)
        optimizer, losses = torch.optim.AdamW(net.parameters(), lr=3e-3), []
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            for rows in torch.randperm(len(self.x), generator=generator).split(16):
                optimizer.zero_grad()
                loss = step_loss(net, (self.x[rows], self.y[rows]))
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        return {"loss": sum(losses[-4:]) / 4}


def problem(
    seed: int, tests: int, sizes: tuple[int, ...], width: int, share: int, start_width: int
) -> Mapping[str, Any]:
    """Cases by name."""
    cases: dict[str, Any] = {}
    fields = {task: data(task, tests, seed + 9) for task in TASKS}
    for task in TASKS:
        for samples in (FEW, MANY):
            cases[task_name(task, samples)] = Trained(task, samples, *fields[task], share)
    cases[PAIR] = _steps(64, 12, 20, seed)
    for size in sizes:
        cases[size_name(size)] = _steps(size, width, 2, seed)
    cases[START] = Start(seed)
    cases[SELECT] = Select(fields["flow"][1])
    cases[EPOCHS] = Epochs(*data("flow", 64, seed + 3, 32), width=start_width)
    if share:
        cases[RETRAINED] = Trained("flow", MANY, *fields["flow"], share)
    return cases
