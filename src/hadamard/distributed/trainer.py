"""The trainers: ranks of one torch.distributed group, each a Ray actor in a process of its own beside its buffer's.

They share the gradients by ``DistributedDataParallel`` and go in step: a checkpoint is taken between the same two
updates on all of them, while no batch is on its way, so that weights, optimizer, buffers, arrivals and ledgers of a
checkpoint belong together.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hadamard.distributed.buffer_server import Batch
from hadamard.distributed.checkpoints import load_checkpoint, save_checkpoint
from hadamard.distributed.ledger import Ledger

__all__ = ["Task", "Trainer"]

_PATIENCE = timedelta(days=30)  # a rank may wait for slow solvers; the death of one closes its connections


@dataclass(frozen=True)
class Task:
    """What the trainers train: parts that can be sent to another process."""

    model: nn.Module
    optimizer: Callable[..., torch.optim.Optimizer]
    scheduler: Callable[..., Any] | None
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    batch_size: int
    checkpoint_every: int
    device: str
    seed: int


class Trainer:
    """One rank of the training."""

    def __init__(self, rank: int, world_size: int, folder: Path, task: Task, buffer: Any) -> None:
        import ray

        self.ray, self.rank, self.world_size, self.folder = ray, rank, world_size, folder
        self.task, self.buffer = task, buffer
        self.steps = self.trained = 0
        self.losses: list[float] = []

    def ping(self) -> int:
        """Return the process id."""
        return os.getpid()

    def listen(self) -> tuple[str, int]:
        """Open the store at which the ranks meet (rank 0); returns its host and port."""
        host = self.ray.util.get_node_ip_address()
        self.store = dist.TCPStore(host, 0, self.world_size, is_master=True, wait_for_workers=False)
        return host, self.store.port

    def join(self, host: str, port: int, checkpoint: Path | None) -> None:
        """Meet the other ranks, and begin, from a checkpoint if there is one."""
        task = self.task
        torch.manual_seed(task.seed + self.rank)
        store = self.store if self.rank == 0 else dist.TCPStore(host, port, self.world_size, False)
        backend = "cpu:gloo,cuda:nccl" if task.device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size, timeout=_PATIENCE)
        self.model = task.model.to(task.device).train()
        self.parallel = nn.parallel.DistributedDataParallel(self.model)
        self.optimizer = task.optimizer(self.model.parameters())
        self.scheduler = task.scheduler(self.optimizer) if task.scheduler is not None else None
        written = 0
        if checkpoint is not None:
            written = self._load(checkpoint)
        self.ledger = Ledger(self.folder / f"trained.{self.rank}", written)

    def run(self) -> dict[str, Any]:
        """Train until the buffers have no more; returns the history, and on rank 0 the weights."""
        get, n = self.buffer.get.remote, self.task.batch_size
        begin, idle = time.perf_counter(), 0.0
        coming = get(n, {})
        while True:
            since = time.perf_counter()
            batch = self.ray.get(coming)
            idle += time.perf_counter() - since
            sizes = self._sizes(0 if batch is None else len(batch.ids))
            if not any(sizes):
                break
            due = (self.steps + 1) % self.task.checkpoint_every == 0
            share = idle / (time.perf_counter() - begin)
            report = {"step": self.steps, "loss": self.losses[-1] if self.losses else np.nan, "idle": share}
            coming = None if due else get(n, report)  # the next batch comes while this one is trained on
            self._update(batch, sizes)
            if due:
                self.save()
                coming = get(n, report)
        self.save()
        outcome: dict[str, Any] = {
            "steps": self.steps,
            "idle": idle / (time.perf_counter() - begin),
            "trained": self.ledger.length,
        }
        if self.rank == 0:
            outcome |= {"weights": _packed(self.model.state_dict()), "losses": np.array(self.losses, dtype=np.float32)}
        dist.barrier()
        return outcome

    def _sizes(self, mine: int) -> list[int]:
        """How many samples each rank has: all stop together, and each sample weighs the same."""
        sizes = torch.zeros(self.world_size, dtype=torch.int64)
        sizes[self.rank] = mine
        dist.all_reduce(sizes)
        return sizes.tolist()

    def _update(self, batch: Batch | None, sizes: list[int]) -> None:
        total = sum(sizes)
        if not all(sizes):  # a rank that ran dry at the end takes part with another's batch, at weight zero
            giver = next(r for r, size in enumerate(sizes) if size)
            shared = [batch]
            dist.broadcast_object_list(shared, src=giver)
            batch = batch if batch is not None else shared[0]
        assert batch is not None
        x, y = (torch.tensor(a, device=self.task.device) for a in (batch.x, batch.y))
        self.optimizer.zero_grad(set_to_none=True)
        weight = sizes[self.rank] * self.world_size / total  # DDP divides by the number of ranks
        loss = self.task.loss(self.parallel, x, y) * weight
        loss.backward()
        value = loss.detach().cpu().double() / self.world_size
        dist.all_reduce(value)
        if not torch.isfinite(value):
            raise FloatingPointError(f"the loss is {float(value)} at update {self.steps}")
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.steps += 1
        self.losses.append(float(value))
        if sizes[self.rank]:
            self.ledger.append(map(tuple, batch.ids.tolist()))

    def save(self) -> None:
        """Take a checkpoint: the buffers' parts first, then the trainers', whose last file makes it valid."""
        path = self.folder / "checkpoints" / f"{self.steps:010d}"
        path.mkdir(parents=True, exist_ok=True)
        self.ray.get(self.buffer.save.remote(path))
        parts: list[tuple[str, Any]] = [
            ("model", self.model),
            ("optimizer", self.optimizer),
            ("scheduler", self.scheduler),
        ]
        common = {name: part.state_dict() for name, part in parts if part is not None}
        common |= {"steps": self.steps, "losses": torch.tensor(self.losses), "world_size": self.world_size}
        own = {"ledger": self.ledger.sync(), "random": torch.get_rng_state()}
        save_checkpoint(path, {"common": _packed(common), f"rank{self.rank}": _packed(own)})

    def _load(self, path: Path) -> int:
        state = load_checkpoint(path, ["common", f"rank{self.rank}"])
        common = torch.load(BytesIO(state["common"]), weights_only=False)
        own = torch.load(BytesIO(state[f"rank{self.rank}"]), weights_only=True)
        self.model.load_state_dict(common["model"])
        self.optimizer.load_state_dict(common["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(common["scheduler"])
        self.steps, self.losses = common["steps"], common["losses"].tolist()
        torch.set_rng_state(own["random"])
        return own["ledger"]


def _packed(state: dict[str, Any]) -> bytes:
    file = BytesIO()
    torch.save(state, file)
    return file.getvalue()
