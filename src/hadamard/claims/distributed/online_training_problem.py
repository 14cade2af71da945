"""Heat on a rod as a stream: what is trained on, in which order it comes, and what each contender makes of it."""

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor, nn

from hadamard.distributed import FIFO, FIRO, OnlineTrainer, Reservoir
from hadamard.distributed.buffer_server import BufferServer
from hadamard.distributed.buffers import Buffer
from hadamard.distributed.cluster import ray_session

__all__ = ["FAST", "SLOW", "Fast", "Slow", "Stream", "offline", "online", "problem", "streamed"]

SLOW, FAST = "solvers that pause", "on Ray"
STEPS, POINTS, BATCH, LOW, HIGH = 50, 32, 32, [-1.0, -1.0, -1.0, -1.0, 0.005], [1.0, 1.0, 1.0, 1.0, 0.05]
_K = np.pi * np.arange(1, 5)
_MODES = np.sin(_K[:, None] * np.linspace(0, 1, POINTS + 2)[1:-1])


def heat(parameters: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Exact solution on [0, 1] with zero ends: four sines of given amplitudes, and the diffusivity."""
    amplitudes, diffusivity = parameters[:4], parameters[4]
    for i in range(STEPS):
        t = i / STEPS
        yield t, (amplitudes * np.exp(-diffusivity * _K**2 * t)) @ _MODES


def paused_heat(parameters: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """The same at 500 time steps a second."""
    for item in heat(parameters):
        time.sleep(0.002)
        yield item


def draw(n: int, seed: int) -> np.ndarray:
    """Parameters of n simulations, by a scrambled Halton sequence."""
    return qmc.scale(qmc.Halton(5, seed=seed).random(n), LOW, HIGH)


def samples(parameters: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """All time steps of one simulation as inputs and fields of the network."""
    return [(np.append(parameters, t).astype(np.float32), u.astype(np.float32)) for t, u in heat(parameters)]


class Net(nn.Module):
    """A fully connected network, on inputs scaled to about one."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, POINTS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Fields at the times and parameters in ``x``."""
        return self.layers(x * x.new_tensor([1, 1, 1, 1, 20, 1]))


@dataclass
class Stream:
    """One seed: simulations that come four at a time, and a test set of others."""

    seed: int
    updates: int
    capacity: int
    x_test: Tensor
    y_test: Tensor

    def arrivals(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Time steps in the order in which four solvers at a time send them."""
        rows = draw(self.updates * BATCH // STEPS + 8, 100 + self.seed)
        for first in range(0, len(rows), 4):
            for steps in zip(*(samples(p) for p in rows[first : first + 4])):
                yield from steps

    def train(self, batches: Iterator[list[Any]]) -> dict[str, Any]:
        """Train on the first batches; relative error on simulations that nobody trained on."""
        torch.manual_seed(self.seed)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=self.updates)
        curve = []
        for step in range(self.updates):
            x, y = (torch.from_numpy(np.stack(a)) for a in zip(*next(batches)))
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % max(1, self.updates // 20) == 0:
                with torch.no_grad():
                    curve.append(float((net(self.x_test) - self.y_test).norm() / self.y_test.norm()))
        return {"error": curve[-1], "curve": curve}


@dataclass
class Slow:
    """Two solvers of 100 time steps a second and a trainer that could do more; what it does in some seconds."""

    seconds: float


@dataclass
class Fast:
    """A whole run on Ray, with solvers that pause so that they leave the processor to the others."""

    n: int


def problem(seed: int, seeds: int, updates: int, sims: int, seconds: float, n: int) -> dict[str, Any]:
    """The cases: one stream a seed, the pace with slow solvers, and a run on Ray."""
    xs, ys = zip(*(pair for p in draw(100, 9000 + seed) for pair in samples(p)))
    x, y = torch.from_numpy(np.stack(xs)), torch.from_numpy(np.stack(ys))
    cases: dict[str, Any] = {
        f"seed {s}": Stream(seed + s, updates, sims * STEPS, x, y) for s in range(seeds)
    }  # fmt: skip
    return cases | {SLOW: Slow(seconds), FAST: Fast(n)}


def buffer(kind: str, capacity: int) -> Buffer:
    """One of the three; the threshold is a sixth of the capacity, as in the paper."""
    if kind == "FIFO":
        return FIFO(capacity)
    return (FIRO if kind == "FIRO" else Reservoir)(capacity, capacity // 6)


def online(kind: str, case: Any) -> dict[str, Any]:
    """The buffer between stream and training: 32 new time steps an update, where there is room."""
    if isinstance(case, Slow):
        return asyncio.run(_pace(kind, case))
    return case.train(_through(buffer(kind, case.capacity), case.arrivals()))


def _through(held: Buffer, arrivals: Iterator[Any]) -> Iterator[list[Any]]:
    coming = next(arrivals)
    while True:
        for _ in range(BATCH):
            if not held.put(coming):
                break
            coming = next(arrivals)
        batch = held.get(BATCH)
        if batch is not None:
            yield batch


def offline(case: Stream) -> dict[str, Any]:
    """Epochs over as many time steps as the buffer holds, shuffled by torch's DataLoader."""
    fixed = [pair for p in draw(case.capacity // STEPS, 100 + case.seed) for pair in samples(p)]
    generator = torch.Generator().manual_seed(case.seed)
    data: Any = fixed  # a list serves as a data set
    loader: Any = torch.utils.data.DataLoader(data, BATCH, shuffle=True, collate_fn=list, generator=generator)
    return case.train(batch for _ in cycle([0]) for batch in loader)


async def _pace(kind: str, case: Slow) -> dict[str, Any]:
    """The server's buffer with solvers and trainer in one process: how many updates the trainer gets to do."""
    with tempfile.TemporaryDirectory() as folder:
        server = BufferServer(buffer(kind, 120), 0, Path(folder))
        await server.restore(None)

        async def solve(client: int) -> None:
            x, y = samples(draw(1, client)[0])[0]
            for step in range(10**6):
                await asyncio.sleep(0.01)
                await server.put(client, [(step, x, y)])

        solvers = [asyncio.create_task(solve(c)) for c in range(2)]
        net = Net()
        optimizer = torch.optim.Adam(net.parameters())
        while len(server.buffer) < 60:
            await asyncio.sleep(0.01)
        begin, updates, idle = time.perf_counter(), 0, 0.0
        while (now := time.perf_counter()) < begin + case.seconds:
            batch = await server.get(BATCH, {})
            idle += time.perf_counter() - now
            assert batch is not None
            optimizer.zero_grad()
            nn.functional.mse_loss(net(torch.tensor(batch.x)), torch.tensor(batch.y)).backward()
            optimizer.step()
            updates += 1
            await asyncio.sleep(0)
        for task in solvers:
            task.cancel()
        total = time.perf_counter() - begin
        return {"updates a second": updates / total, "idle": 100 * idle / total, "most held": server.most / 120}


def streamed(case: Fast) -> dict[str, Any]:
    """A run on Ray: time steps a second, beside what solvers alone and trainer alone manage."""
    alone = time.perf_counter()
    for p in draw(2, 0):
        list(paused_heat(p))
    solvers = 2 * 2 * STEPS / (time.perf_counter() - alone)  # two at a time
    net, x, y = Net(), torch.zeros(BATCH, 6), torch.zeros(BATCH, POINTS)
    optimizer = torch.optim.Adam(net.parameters())
    for k in range(220):
        if k == 20:
            alone = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    trainer = 200 * BATCH / (time.perf_counter() - alone)
    with tempfile.TemporaryDirectory() as folder, ray_session(4):
        options: dict[str, Any] = {"buffer": FIFO(200), "batch_size": BATCH, "checkpoint_every": 1000}
        run = OnlineTrainer(Net(), paused_heat, draw(case.n, 0), folder=folder, **options).fit()
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    looks = [json.loads(line) for line in lines]
    begin = next(k for k, look in enumerate(looks) if look["accepted"])
    end = next(k for k, look in enumerate(looks) if look["accepted"] == looks[-1]["accepted"])
    rate = (looks[end]["accepted"] - looks[begin]["accepted"]) / (looks[end]["seconds"] - looks[begin]["seconds"])
    return {
        "share": 100 * rate / min(solvers, trainer), "most held": run.progress.most / 200,
        "missing": case.n * STEPS - run.progress.accepted,
    }  # fmt: skip
