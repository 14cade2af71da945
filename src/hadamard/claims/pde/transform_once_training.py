"""How the networks of the claim on T1 are trained: by one command, on the same data, in equal time."""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hadamard.claims.pde.fno import FNO
from hadamard.claims.shipping import one_cycle, shipping
from hadamard.pde import (
    T1,
    NavierStokes2D,
    coefficient_loss,
    darcy,
    diagonal_forcing,
    gaussian_field,
)

__all__ = ["NETWORKS", "TASKS", "build", "data", "relative_error", "step_loss", "train", "train_one"]

TASKS = ("flow", "darcy")
MANY, FEW, BATCH, SIZE = 4000, 400, 20, 64
RATES = (3e-3, 1e-2)


@dataclass(frozen=True)
class Network:
    """One network: its kind, what it learns from how many samples, and the steps that its share of time is."""

    kind: str
    task: str
    samples: int
    steps: int


# Steps: an FNO's in 25 s on one core, batches of 20 on 64 x 64, and T1's in no more than that. "equal": as long as the
# FNO takes to T1's error; "longer": three times as long.
_STEPS = {"t1": 1600, "fno": 170}
NETWORKS = {
    f"transform_once_{task}_{samples}_{kind}": Network(kind, task, samples, steps)
    for task in TASKS
    for samples in (FEW, MANY)
    for kind, steps in _STEPS.items()
} | {
    "transform_once_flow_4000_fno_equal": Network("fno", "flow", MANY, 3 * _STEPS["fno"] // 2),
    "transform_once_flow_4000_fno_longer": Network("fno", "flow", MANY, 3 * _STEPS["fno"]),
}


def build(kind: str, width: int = 12, layers: int = 4) -> nn.Module:
    """T1 with 16 cosines an axis, or an FNO with the 8 frequencies that they reach."""
    if kind == "t1":
        return T1((16, 16), 1, 1, width, layers, projection_channels=64)
    return FNO((8, 8), width, layers)


@cache
def data(task: str, count: int, seed: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Inputs and targets, scaled to the order of 1.

    ``"flow"``: vorticity on a torus at times 0 and 5, viscosity 1e-3; ``"darcy"``: permeability 3 or 12 and pressure.
    """
    generator, shape = torch.Generator().manual_seed(seed), (size, size)
    if task == "darcy":
        field = gaussian_field(shape, count, tau=3.0, alpha=2.0, boundary="neumann", generator=generator)
        a = torch.where(field > 0, 12.0, 3.0)
        u = torch.cat([darcy(some, tol=1e-5) for some in a.split(50)])
        return (a[:, None] - 7.5) / 4.5, 150 * u[:, None]
    w = gaussian_field(shape, count, generator=generator)
    solve = partial(NavierStokes2D(1e-3, diagonal_forcing).solve, dt=0.1, steps=50, every=50, scheme="imex_rk2")
    later = torch.cat([solve(some)[:, -1] for some in w.split(25)])
    return 5 * w[:, None], 2 * later[:, None]


def relative_error(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Relative L2 error of each sample."""
    with torch.no_grad():
        out = torch.cat([module(some) for some in x.split(BATCH)])
    return (out - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)


def step_loss(module: nn.Module, batch: tuple[Tensor, Tensor], step: int = 0) -> Tensor:
    """The mean relative L2 error: of T1 by its coefficients, of others on the grid."""
    x, y = batch
    if isinstance(module, T1):
        return coefficient_loss(module(x), y, module.transform)
    return ((module(x) - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)).mean()


def train_one(
    network: Network, steps: int, seed: int, rate: float, state: Path | None = None, progress: str = ""
) -> nn.Module:
    """Train one network at a learning rate that rises and falls."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = build(network.kind)
    x, y = data(network.task, network.samples, seed + 1)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        return x[rows], y[rows]

    if isinstance(module, T1):
        module.output = "coefficients"
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=1e-4)
    one_cycle(
        module, step_loss, draw, steps=steps, rate=rate, seed=seed, optimizer=optimizer, state=state, progress=progress
    )
    if isinstance(module, T1):
        module.output = "space"
    return module


def train(
    size: str = "full", out: str | Path | None = None, resume: bool = True, *, seed: int = 0, progress: bool = True
) -> list[Path]:
    """Train the networks of the claim and write each with its provenance.

    Each is trained at every learning rate; the one with less error on 100 further samples is kept.

    Parameters
    ----------
    size
        ``"full"``: as shipped, about ten minutes on one core; ``"quick"``: a tenth of the steps.
    out
        Folder; ``None``: where the shipped networks lie.
    resume
        Go on from what an interrupted training left in ``out``.
    seed
        Of the initial weights and the data.
    progress
        Show progress bars.

    Returns
    -------
    list of Path
        The files.
    """
    if size not in ("full", "quick"):
        raise ValueError(f"size must be one of 'quick', 'full', got {size!r}")
    with shipping("transform_once", size, out, resume, seed=seed) as shelf:
        for name, network in NETWORKS.items():
            steps = network.steps if size == "full" else network.steps // 10
            tried: list[tuple[float, float, nn.Module]] = []
            for rate in RATES:
                title = f"{name}, rate {rate}" if progress else ""
                module = train_one(network, steps, seed, rate, shelf.state(f"{name}-{rate}"), title)
                tried.append((float(relative_error(module, *data(network.task, 100, seed + 2)).mean()), rate, module))
            error, rate, module = min(tried, key=lambda one: one[0])
            account = {
                "data": f"{network.samples} samples of {network.task}, {SIZE} x {SIZE}, made by hadamard.pde",
                "steps": str(steps), "rate": str(rate), "validation error": f"{error:.4f}",
            }  # fmt: skip
            shelf.write(name, module, **account)
    return shelf.paths
