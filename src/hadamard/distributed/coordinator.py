"""The coordinator: starts server and clients, watches them, and starts again what has died.

Clients are Ray tasks, which Ray itself starts anew when their process dies or their solver raises. Buffers and trainers
hold state that belongs together; when one of them dies all are started anew from the last checkpoint, and the clients
whose time steps it does not hold are run again. (Ray Train restarts trainers alone, and would leave the buffers ahead
of the weights.)
"""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hadamard.distributed.buffer_server import BufferServer
from hadamard.distributed.buffers import Buffer
from hadamard.distributed.checkpoints import clear_broken, latest
from hadamard.distributed.clients import stream
from hadamard.distributed.trainer import Task, Trainer

__all__ = ["Coordinator", "Progress"]

_INTERVAL = 0.1  # seconds between two looks
_FAREWELL = 1.0  # seconds in which clients may notice that the server is gone; their processes are used again


@dataclass(frozen=True)
class Progress:
    """How a run stands; what the progress view shows and ``metrics.jsonl`` records.

    Attributes
    ----------
    seconds
        Since the run began.
    simulations, finished, running
        Simulations in all, done, and running now.
    failed
        Simulations that were given up.
    accepted, duplicates
        Time steps that entered the buffers, and that came again and were dropped.
    held, unseen, most
        Samples in the buffers now, those that were not trained on yet, and the most that one buffer ever held.
    updates, loss
        Updates of the weights so far, and the loss of the last one.
    idle
        Share of the time in which the trainers waited for batches.
    client_restarts, server_restarts
        How often a client, and the server, was started again.
    pids
        Process ids of ``"buffer"`` and ``"trainer"`` (by rank) and ``"client"`` (by simulation).
    """

    seconds: float
    simulations: int
    finished: int
    running: int
    failed: int
    accepted: int
    duplicates: int
    held: int
    unseen: int
    most: int
    updates: int
    loss: float
    idle: float
    client_restarts: int
    server_restarts: int
    pids: Mapping[str, Mapping[int, int]] = field(repr=False)


class ServerLost(Exception):
    """A buffer or a trainer has died."""


@dataclass
class Server:
    """The actors of one life of the server."""

    buffers: list[Any]
    trainers: list[Any]
    pids: dict[str, dict[int, int]]


@dataclass
class Coordinator:
    """One run; see :class:`hadamard.distributed.OnlineTrainer` for what the settings mean."""

    ray: Any
    task: Task
    solver: Callable[..., Any]
    parameters: np.ndarray
    buffer: Buffer
    folder: Path
    n_clients: int
    world_size: int
    retries: int
    server_retries: int
    timeout: float
    skip_failed: bool
    on_progress: Callable[[Progress], Any] | None

    def __post_init__(self) -> None:
        self.begin = time.monotonic()
        self.server_restarts = 0
        self.client_restarts = 0
        self.failed: dict[int, str] = {}
        self.silent: dict[int, int] = {}
        self.cancelled: set[int] = set()

    def run(self) -> tuple[list[dict[str, Any]], Progress]:
        """Run to the end; returns what the trainers return, by rank, and the last look."""
        while True:
            server = None
            clients: dict[Any, int] = {}
            try:
                server = self._start()
                return self._drive(server, clients)
            except (ServerLost, self.ray.exceptions.RayActorError) as lost:
                self.server_restarts += 1
                if self.server_restarts > self.server_retries:
                    raise RuntimeError(f"the server died {self.server_restarts} times, the last time: {lost}") from lost
            finally:
                self._stop(server, clients)

    def _start(self) -> Server:
        """Start buffers and trainers, from the newest checkpoint if there is one."""
        clear_broken(self.folder)
        checkpoint = latest(self.folder)
        gpus = 1 if self.task.device == "cuda" else 0
        make = self.ray.remote(BufferServer).options(num_cpus=1, max_restarts=0, max_concurrency=1000)
        buffers = [make.remote(self.buffer.fresh(r), r, self.folder) for r in range(self.world_size)]
        make = self.ray.remote(Trainer).options(num_cpus=1, num_gpus=gpus, max_restarts=0, max_concurrency=2)
        trainers = [make.remote(r, self.world_size, self.folder, self.task, b) for r, b in enumerate(buffers)]
        server = Server(buffers, trainers, {})
        try:
            pids = self.ray.get([b.restore.remote(checkpoint) for b in buffers])
            server.pids["buffer"] = dict(enumerate(pids))
            server.pids["trainer"] = dict(enumerate(self.ray.get([t.ping.remote() for t in trainers])))
            host, port = self.ray.get(trainers[0].listen.remote())
            self.ray.get([t.join.remote(host, port, checkpoint) for t in trainers])
        except BaseException as error:
            if isinstance(error, self.ray.exceptions.RayTaskError):
                error = self._judge(error, server)
            self._stop(server, {})
            raise error from None
        return server

    def _stop(self, server: Server | None, clients: Mapping[Any, int]) -> None:
        """End the server's processes, and the clients', most of which find that out by themselves."""
        if server is not None:
            for actor in (*server.trainers, *server.buffers):
                self.ray.kill(actor)
        if clients:
            _, waiting = self.ray.wait(list(clients), num_returns=len(clients), timeout=_FAREWELL)
            for ref in waiting:
                self.ray.cancel(ref, force=True)

    def _drive(self, server: Server, clients: dict[Any, int]) -> tuple[list[dict[str, Any]], Progress]:
        ray = self.ray
        todo = deque(self._unfinished(server))
        solver = ray.put(self.solver)
        task = ray.remote(stream).options(max_retries=self.retries, retry_exceptions=True, num_cpus=1)
        trainers = {t.run.remote(): rank for rank, t in enumerate(server.trainers)}
        outcomes: dict[int, dict[str, Any]] = {}
        closed, looked, before = False, 0.0, self.client_restarts
        progress = None
        while len(outcomes) < self.world_size:
            while todo and len(clients) < self.n_clients:
                client = todo.popleft()
                clients[task.remote(client, self.parameters[client], solver, server.buffers)] = client
            if not todo and not clients and not closed:
                ray.get([b.close.remote() for b in server.buffers])
                closed = True
            waiting = [*clients, *(ref for ref, rank in trainers.items() if rank not in outcomes)]
            ready, _ = ray.wait(waiting, timeout=max(0.0, looked + _INTERVAL - time.monotonic()))
            for ref in ready:
                if ref in clients:
                    self._ended(ref, clients, todo)
                else:
                    outcomes[trainers[ref]] = self._outcome(ref, server)
            if time.monotonic() >= looked + _INTERVAL or len(outcomes) == self.world_size:
                looked = time.monotonic()
                progress = self._look(server, clients, len(todo), before)
        assert progress is not None
        ranks = [outcomes[rank] for rank in range(self.world_size)]
        last = float(ranks[0]["losses"][-1]) if len(ranks[0]["losses"]) else np.nan
        return ranks, replace(progress, updates=ranks[0]["steps"], loss=last, idle=ranks[0]["idle"])

    def _unfinished(self, server: Server) -> list[int]:
        """Simulations of which not all time steps are in the buffers or were."""
        arrived: dict[int, int] = {}
        n_steps: dict[int, int] = {}
        for here, in_all in self.ray.get([b.complete.remote() for b in server.buffers]):
            n_steps |= in_all
            for client, count in here.items():
                arrived[client] = arrived.get(client, 0) + count
        done = {client for client, n in n_steps.items() if arrived[client] == n}
        return [c for c in range(len(self.parameters)) if c not in done and c not in self.failed]

    def _ended(self, ref: Any, clients: dict[Any, int], todo: deque[int]) -> None:
        errors = self.ray.exceptions
        client = clients.pop(ref)
        try:
            if self.ray.get(ref) < 0:
                raise ServerLost("a client found its buffer gone")
            return
        except (errors.TaskCancelledError, errors.WorkerCrashedError) as error:
            reason: Exception = (
                RuntimeError("its process died") if isinstance(error, errors.WorkerCrashedError) else error
            )
            if client in self.cancelled:
                self.cancelled.discard(client)
                self.silent[client] = self.silent.get(client, 0) + 1
                if self.silent[client] <= self.retries:
                    todo.appendleft(client)
                    return
                reason = TimeoutError(f"it sent nothing for {self.timeout} s")
        except errors.RayTaskError as error:
            reason = _cause(error)
        tries = f"simulation {client} failed {self.retries + 1} times"
        if not self.skip_failed:
            raise RuntimeError(f"{tries}, the last time: {type(reason).__name__}: {reason}") from reason
        self.failed[client] = f"{type(reason).__name__}: {reason}"

    def _outcome(self, ref: Any, server: Server) -> dict[str, Any]:
        """What a trainer returned. Its error is the user's to see, unless one of the server's processes has died."""
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            raise self._judge(error, server) from None

    def _judge(self, error: Any, server: Server) -> Exception:
        cause = _cause(error)
        if isinstance(cause, self.ray.exceptions.RayActorError) or self._dead(server):
            return ServerLost(str(cause).strip().splitlines()[-1])
        return cause

    def _dead(self, server: Server) -> bool:
        for call in [t.ping.remote() for t in server.trainers] + [b.status.remote() for b in server.buffers]:
            try:
                self.ray.get(call, timeout=30)
            except (self.ray.exceptions.RayActorError, self.ray.exceptions.GetTimeoutError):
                return True
        return False

    def _look(self, server: Server, clients: Mapping[Any, int], waiting: int, restarts_before: int) -> Progress:
        ranks: Sequence[dict[str, Any]] = self.ray.get([b.status.remote() for b in server.buffers])
        running = {client: ref for ref, client in clients.items()}
        for client, ref in running.items():
            silent = [rank["silent"][client] for rank in ranks if client in rank["silent"]]
            if silent and min(silent) > self.timeout and client not in self.cancelled:
                self.cancelled.add(client)
                self.ray.cancel(ref, force=True)
        self.client_restarts = restarts_before + ranks[0]["restarts"]
        report = ranks[0]["report"]
        progress = Progress(
            seconds=time.monotonic() - self.begin,
            simulations=len(self.parameters), running=len(running), failed=len(self.failed),
            finished=len(self.parameters) - len(running) - waiting - len(self.failed),
            **{name: sum(rank[name] for rank in ranks) for name in ("accepted", "duplicates", "held", "unseen")},
            most=max(rank["most"] for rank in ranks), updates=int(report.get("step", 0)),
            loss=float(report.get("loss", np.nan)), idle=float(report.get("idle", 0.0)),
            client_restarts=self.client_restarts, server_restarts=self.server_restarts,
            pids=server.pids | {"client": {c: p for c, p in ranks[0]["pids"].items() if c in running}},
        )  # fmt: skip
        record = {name: value for name, value in asdict(progress).items() if name != "pids"}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.on_progress is not None:
            self.on_progress(progress)
        return progress


def _cause(error: Any) -> Exception:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
