"""The process of one rank's buffer: what waits for room and for batches, what has arrived, and its ledger.

It needs no torch, so that it and the clients start quickly.
"""

import asyncio
import os
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hadamard.distributed.buffers import Buffer
from hadamard.distributed.ledger import Arrivals, Ledger

__all__ = ["Batch", "BufferServer", "Sample"]


class Sample(NamedTuple):
    """One time step of one simulation."""

    client: int
    step: int
    x: np.ndarray
    y: np.ndarray


class Batch(NamedTuple):
    """Samples as arrays: ids (n, 2), coordinates (n, p + 1), fields (n, ...)."""

    ids: np.ndarray
    x: np.ndarray
    y: np.ndarray


@dataclass
class BufferServer:
    """One rank's buffer, the arrivals and their ledger; an asyncio actor, in which ``put`` and ``get`` can wait."""

    buffer: Buffer
    rank: int
    folder: Path

    arrivals: Arrivals = field(default_factory=Arrivals)
    duplicates: int = 0
    """Time steps that came again."""
    most: int = 0
    """The most samples that the buffer ever held."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        self.changed: asyncio.Condition | None = None
        self.attempts: dict[int, int] = {}
        self.pids: dict[int, int] = {}
        self.heard: dict[int, float] = {}
        self.waiting: dict[int, int] = {}
        self.report: dict[str, float] = {}

    async def restore(self, checkpoint: Path | None) -> int:
        """Begin, from a checkpoint if there is one; returns the process id."""
        self.changed = asyncio.Condition()
        length = 0
        if checkpoint is not None:
            state = pickle.loads((checkpoint / f"buffer.{self.rank}").read_bytes())
            length = state.pop("ledger")
            vars(self).update(state)
        self.ledger = Ledger(self.folder / f"accepted.{self.rank}", length)
        return os.getpid()

    async def save(self, checkpoint: Path) -> None:
        """Write the rank's part of a checkpoint."""
        kept = ("buffer", "arrivals", "duplicates", "most", "shapes")
        state = {name: getattr(self, name) for name in kept} | {"ledger": self.ledger.sync()}
        with (checkpoint / f"buffer.{self.rank}").open("wb") as file:
            pickle.dump(state, file, protocol=pickle.HIGHEST_PROTOCOL)
            file.flush()
            os.fsync(file.fileno())

    async def hello(self, client: int, pid: int) -> bytes:
        """A client begins; returns the steps of it that are here."""
        self.attempts[client] = self.attempts.get(client, 0) + 1
        self.pids[client], self.heard[client] = pid, time.monotonic()
        return self.arrivals.steps(client)

    async def put(self, client: int, steps: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> None:
        """Accept time steps, each once; returns when the buffer had room for all of them."""
        assert self.changed is not None
        self.heard[client] = time.monotonic()
        self.waiting[client] = self.waiting.get(client, 0) + 1
        try:
            for step, x, y in steps:
                self._check(client, step, x, y)
                sample = Sample(client, step, np.array(x), np.array(y))  # copies: the originals pin shared memory
                async with self.changed:
                    # between the look at the arrivals and the note in them nothing else runs: no second copy slips in
                    while (client, step) not in self.arrivals and not self.buffer.put(sample):
                        await self.changed.wait()
                    if self.arrivals.add(client, step):
                        self.ledger.append([(client, step)])
                        self.most = max(self.most, len(self.buffer))
                    else:
                        self.duplicates += 1
                    self.changed.notify_all()
        finally:
            self.waiting[client] -= 1
            self.heard[client] = time.monotonic()

    def _check(self, client: int, step: int, x: np.ndarray, y: np.ndarray) -> None:
        shapes = (x.shape, y.shape)
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            raise ValueError(
                f"simulation {client}, step {step}: expected {self.shapes[0][0]} coordinates and a field of shape "
                f"{self.shapes[1]} as the first step had, got {x.shape[0]} and {y.shape}"
            )

    async def finish(self, client: int, n_steps: int) -> None:
        """A client has sent all that it had."""
        self.arrivals.finish(client, n_steps)
        self.pids.pop(client, None)
        self.heard.pop(client, None)

    async def close(self) -> None:
        """No more clients come."""
        assert self.changed is not None
        async with self.changed:
            self.buffer.close()
            self.changed.notify_all()

    async def get(self, n: int, report: dict[str, float]) -> Batch | None:
        """Give a batch as soon as there is one; None when there will be none any more."""
        assert self.changed is not None
        self.report = report
        async with self.changed:
            while (samples := self.buffer.get(n)) is None and not self.buffer.exhausted:
                await self.changed.wait()
            self.changed.notify_all()
        if samples is None:
            return None
        clients, steps, xs, ys = zip(*samples)
        return Batch(np.array([clients, steps]).T, np.stack(xs), np.stack(ys))

    async def complete(self) -> tuple[dict[int, int], dict[int, int]]:
        """Steps that arrived here and steps that there were in all, by client (those that have finished)."""
        return {c: self.arrivals.count(c) for c in self.arrivals.n_steps}, dict(self.arrivals.n_steps)

    async def status(self) -> dict[str, Any]:
        """What the progress view shows."""
        now = time.monotonic()
        return {
            "accepted": len(self.arrivals), "duplicates": self.duplicates, "most": self.most,
            "held": len(self.buffer), "unseen": self.buffer.unseen,
            "restarts": sum(self.attempts.values()) - len(self.attempts), "pids": dict(self.pids),
            "report": self.report,
            "silent": {c: 0.0 if self.waiting.get(c) else now - heard for c, heard in self.heard.items()},
        }  # fmt: skip
