"""How the networks of the claim on spectral refinement are trained: by one command, on the same flows."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.claims.pde.fno import FNO
from hadamard.claims.shipping import one_cycle, shipping
from hadamard.pde import STFNO, NavierStokes2D, diagonal_forcing, gaussian_field
from hadamard.spectral import resample

__all__ = ["DT", "FEW", "FLOW", "IN", "NETWORKS", "OUT", "TrajectoryFNO", "flows", "train", "train_one"]

SIZE, IN, OUT, DT = 32, 5, 10, 0.1
COUNT, BATCH, EPOCH = 200, 4, 50
FLOW = NavierStokes2D(1e-3, diagonal_forcing)


def flows(size: int, count: int, seed: int, *, finer: int = 1) -> tuple[Tensor, Tensor]:
    """Known slices and those that follow them, of flows that are one unit of time old; the start is drawn on 32 x 32.

    Parameters
    ----------
    size
        Points each way.
    count, seed
        Number of flows, and which.
    finer
        Slices per ``DT`` among those that follow.
    """
    w = gaussian_field((SIZE, SIZE), count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w = resample(w / w.square().mean((1, 2), keepdim=True).sqrt(), (size, size))
    w = FLOW.solve(w, DT / 8, 80, every=80)[:, -1]
    known = FLOW.solve(w, DT / 8, 8 * (IN - 1), every=8)
    return known, FLOW.solve(known[:, -1], DT / 8, 8 * OUT, every=8 // finer)[:, 1:]


class TrajectoryFNO(FNO):
    """A plain Fourier neural operator: the known slices are its input channels, the others' change its output."""

    def forward(self, w: Float[Tensor, "batch t_in nx ny"]) -> Float[Tensor, "batch t_out nx ny"]:
        """Predict the ten slices that follow."""
        return w[:, -1:] + super().forward(w)


@dataclass(frozen=True)
class Network:
    """How one network is built, for how many epochs it is trained, and at which learning rate."""

    build: Callable[[torch.Generator | None], nn.Module]
    epochs: dict[str, int]
    rate: float = 4e-3


def _stfno(generator: torch.Generator | None = None) -> nn.Module:
    return STFNO(6, 6, 3, 10, latent_steps=OUT, generator=generator)


def _fno(generator: torch.Generator | None = None) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0 if generator is None else generator.initial_seed())
        return TrajectoryFNO((8, 8), 16, inputs=IN, outputs=OUT, lift=32)


# Rates: the FNO's is the best of 2e-3, 4e-3 and 8e-3 after ten epochs, the ST-FNO's the better of 2e-3 and 4e-3.
FEW = "spectral_refiner_few"
NETWORKS = {
    FEW: Network(_stfno, {"quick": 2, "full": 10}),
    "spectral_refiner_many": Network(_stfno, {"quick": 10, "full": 50}),
    "spectral_refiner_fno": Network(_fno, {"quick": 10, "full": 50}, rate=8e-3),
}
_DATA = "200 flows of hadamard.pde.NavierStokes2D on 32 x 32, viscosity 1e-3, forced; five slices in, ten out"


def train(
    size: str = "full", out: str | Path | None = None, resume: bool = True, *, seed: int = 0, progress: bool = True
) -> list[Path]:
    """Train the networks of the claim and write each with its provenance, the seconds that it took included.

    Parameters
    ----------
    size
        ``"full"``: as shipped, about 8 minutes on one core; ``"quick"``: a fifth of it.
    out
        Folder; ``None``: where the shipped networks lie.
    resume
        Go on from what an interrupted training left in ``out``.
    seed
        Of the initial weights and the data.
    progress
        Show a progress bar for each network.

    Returns
    -------
    list of Path
        The files.
    """
    with shipping("spectral_refiner", size, out, resume, seed=seed) as shelf:
        for name, network in NETWORKS.items():
            if size not in network.epochs:
                raise ValueError(f"size must be one of {', '.join(map(repr, network.epochs))}, got {size!r}")
            epochs = network.epochs[size]
            module, seconds = train_one(network, epochs, seed, shelf.state(name), name if progress else "")
            shelf.write(name, module.half(), data=_DATA, epochs=str(epochs), seconds=f"{seconds:.1f}")
    return shelf.paths


def train_one(
    network: Network, epochs: int, seed: int, state: Path | None = None, progress: str = ""
) -> tuple[nn.Module, float]:
    """Train one network on the relative error in L2 over space and time, at a learning rate that rises and falls.

    Returns
    -------
    tuple
        The network, and the seconds that its steps take: their number times the median of the first dozen by processor
        time, which neither an interruption nor a busy machine changes much.
    """
    module, steps = network.build(torch.Generator().manual_seed(seed)), epochs * EPOCH
    known, later = (x.float() for x in _data(seed))

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(COUNT, (BATCH,), generator=generator)
        return known[chosen], later[chosen]

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        error = (module(batch[0]) - batch[1]).flatten(1).norm(dim=1)
        return (error / batch[1].flatten(1).norm(dim=1)).mean()

    one_cycle(
        module, loss, draw, steps=steps, rate=network.rate, seed=seed, rise=0.3, state=state, progress=progress
    )  # fmt: skip
    twin, times = network.build(None), []
    rival = torch.optim.Adam(twin.parameters(), lr=network.rate, fused=True)
    for step in range(12):
        began = time.process_time()
        loss(twin, draw(torch.Generator().manual_seed(step)), step).backward()
        rival.step()
        times.append(time.process_time() - began)
    return module.eval(), steps * median(times)


@cache
def _data(seed: int) -> tuple[Tensor, Tensor]:
    return flows(SIZE, COUNT, 10_000 + seed)
