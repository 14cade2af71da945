"""Online training of surrogates: solvers stream their time steps into data-parallel trainers, past the disk.

A training set of simulations is limited by what can be stored and read again. Here many solvers run at the same time
and send each time step, as soon as it is computed, into bounded memory buffers from which the trainers draw their
batches [1]_: the network sees far more simulations than would fit, each for a while only.

The parts, each a process of its own on Ray_: *clients* (one simulation each, a function or a program), on each rank a
*buffer* and a *trainer* (the ranks of a torch.distributed group), and the coordinator in the calling process.

Any of them may die. A client is started anew and sends again from its first step; steps that had arrived are dropped.
When a buffer or a trainer dies, all buffers and trainers go back to the last checkpoint, which holds weights,
optimizer, buffers and the ids that had arrived at one moment, and the simulations that it lacks are run again. So each
time step enters the history of the final weights once: with :class:`FIFO` and :class:`FIRO` each is trained on exactly
once, with :class:`Reservoir` at least once. The ledgers in the folder say which; work after the last checkpoint is done
twice, its effects are not kept.

It departs from the authors' Melissa in its engine (Ray for launcher, messages and retries, in place of a scheduler's
jobs and ZeroMQ), in its random steps of distribution (step s of client c goes to rank (c + s) modulo ranks), in that
uneven ranks weigh each sample alike, and in that it checkpoints at fixed numbers of updates.

.. _Ray: https://docs.ray.io

References
----------
.. [1] L. Meyer, M. Schouler, R. A. Caulk, A. Ribés, B. Raffin, "Training Deep Surrogate Models with Large Scale Online
   Learning", ICML 2023, arXiv:2306.16133.
"""

import copy
import hashlib
import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.distributed.buffers import Buffer, Reservoir
from hadamard.distributed.cluster import ray_session, require_ray
from hadamard.distributed.coordinator import Coordinator, Progress
from hadamard.distributed.trainer import Task
from hadamard.validation import check_option, check_range

__all__ = ["OnlineRun", "OnlineTrainer", "mean_squared_error"]


@dataclass(frozen=True, kw_only=True)
class OnlineRun:
    """What an online training gave.

    Attributes
    ----------
    model
        The trained network, on the CPU, in evaluation mode.
    losses
        Loss of each update, over the batches of all ranks; those before a resumption included.
    progress
        How the run stood at its end: counts of time steps, duplicates, restarts.
    failed
        Why simulations were given up, by number; empty unless ``on_failure="skip"``.
    folder
        Where ledgers (``accepted.RANK``, ``trained.RANK``; see :func:`read_ledger`), ``checkpoints`` and
        ``metrics.jsonl`` lie.
    """

    model: nn.Module
    losses: Float[Tensor, " updates"]
    progress: Progress
    failed: dict[int, str]
    folder: Path


def mean_squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of ``model(x)``: the default loss."""
    return nn.functional.mse_loss(model(x), y)


class OnlineTrainer:
    """Train a network while solvers stream into it.

    Parameters
    ----------
    model
        The network. A time step is ``x``, the simulation's parameters followed by the time, and ``y``, the field; by
        default ``model(x)`` of shape (batch, ...) is brought close to ``y`` of the same shape, both float32. It is
        left as it was; the trained one is in the result.
    solver
        ``solver(parameters)`` yields the fields of one simulation in order, or pairs ``(time, field)``; without a time
        it is the number of the step. The same parameters must give the same fields. A program of its own takes part
        as a :class:`hadamard.distributed.Program`.
    parameters
        One simulation a row, shape (n_simulations, p); draw them as you like, with ``scipy.stats.qmc`` for example.
    folder
        For checkpoints, ledgers and metrics, on a cluster one that every node sees. If a run of the same parameters
        was interrupted there, it goes on from its last checkpoint.
    optimizer
        ``optimizer(model.parameters())`` makes the optimizer: a class, or ``functools.partial(Adam, lr=1e-3)``.
    loss
        ``loss(model, x, y)``, a mean over the batch; ``None``: the mean squared error.
    scheduler
        ``scheduler(optimizer)`` makes a learning-rate schedule, moved on after each update; ``None``: none.
    buffer
        A :class:`FIFO`, :class:`FIRO` or :class:`Reservoir`, of which each rank gets one of its own; ``None``:
        ``Reservoir(capacity=6000, threshold=1000)``, the paper's sizes.
    batch_size
        Samples of an update on each rank.
    n_clients
        Simulations that run at the same time.
    world_size
        Ranks: pairs of a trainer and a buffer.
    checkpoint_every
        Updates between two checkpoints.
    retries
        How often a simulation is started anew after its process died, its solver raised or it fell silent.
    server_retries
        How often the server is started anew.
    timeout
        Seconds without a time step (other than for lack of room) after which a client counts as silent and is killed.
    on_failure
        When a simulation failed too often: ``"raise"`` its error, or ``"skip"`` it (what it had sent is kept).
    device
        ``"cpu"`` (gloo) or ``"cuda"`` (one GPU a rank, nccl).
    random_state
        Seed of the buffers' draws and of the trainers.
    address
        Of a Ray cluster; ``None``: the session that is running, or else one on this machine for as long as it takes.
    on_progress
        Called about ten times a second with a :class:`Progress`.

    Raises
    ------
    ImportError
        If Ray is missing.
    TypeError, ValueError
        If an argument is not as described, or the folder holds another training.
    RuntimeError
        If a simulation or the server failed too often.

    Notes
    -----
    When not to use it: where the data set fits on disk and is read many times, a ``DataLoader`` is simpler, and offline
    epochs make better use of costly simulations. How fast simulations and trainer are decides how often a
    :class:`Reservoir` repeats a sample, so that two runs differ in their number of updates.

    Solver, loss and model travel to other processes: define them in a module that can be imported there, or in the main
    program. A script calls :meth:`fit` under ``if __name__ == "__main__"``.

    Examples
    --------
    >>> import numpy as np
    >>> from hadamard.distributed import FIFO, OnlineTrainer
    >>> def decay(parameters):  # a solver: 20 time steps
    ...     u = np.full(8, parameters[0])
    ...     for i in range(20):
    ...         yield 0.1 * i, u
    ...         u = 0.9 * u
    >>> rates = np.random.default_rng(0).uniform(1, 2, (30, 1))
    >>> trainer = OnlineTrainer(nn.Linear(2, 8), decay, rates, folder="run", buffer=FIFO(200))
    >>> run = trainer.fit()  # doctest: +SKIP
    >>> run.progress.accepted  # doctest: +SKIP
    600
    """

    def __init__(
        self,
        model: nn.Module,
        solver: Callable[[np.ndarray], Iterable[Any]],
        parameters: Any,
        *,
        folder: str | Path,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
        scheduler: Callable[..., Any] | None = None,
        buffer: Buffer | None = None,
        batch_size: int = 32,
        n_clients: int = 2,
        world_size: int = 1,
        checkpoint_every: int = 100,
        retries: int = 3,
        server_retries: int = 10,
        timeout: float = 300.0,
        on_failure: str = "raise",
        device: str = "cpu",
        random_state: int = 0,
        address: str | None = None,
        on_progress: Callable[[Progress], Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        for name, part in {"solver": solver, "optimizer": optimizer}.items():
            if not callable(part):
                raise TypeError(f"{name} must be callable, got {type(part).__name__}")
        self.parameters = np.array(parameters, dtype=np.float64)
        if self.parameters.ndim != 2 or not self.parameters.size:
            raise ValueError(f"parameters must have shape (n_simulations, p), got {self.parameters.shape}")
        if not np.isfinite(self.parameters).all():
            raise ValueError("parameters must be finite, got NaN or infinity")
        self.buffer = Reservoir(6000, 1000, random_state=random_state) if buffer is None else buffer
        if not isinstance(self.buffer, Buffer):
            raise TypeError(f"buffer must be a FIFO, FIRO or Reservoir, got {type(buffer).__name__}")
        self.buffer.check_batch(batch_size)
        for name, value, low in (
            ("n_clients", n_clients, 1), ("world_size", world_size, 1), ("checkpoint_every", checkpoint_every, 1),
            ("retries", retries, 0), ("server_retries", server_retries, 0), ("random_state", random_state, 0),
        ):  # fmt: skip
            check_range(value, name, low, integer=True)
        check_range(timeout, "timeout", 0, closed="neither")
        check_option(on_failure, "on_failure", ("raise", "skip"))
        check_option(device, "device", ("cpu", "cuda"))
        self.model, self.solver, self.folder = model, solver, Path(folder)
        self.task = Task(
            model, optimizer, scheduler, loss or mean_squared_error, batch_size, checkpoint_every, device, random_state
        )
        self.n_clients, self.world_size, self.retries, self.server_retries = (
            n_clients, world_size, retries, server_retries
        )  # fmt: skip
        self.timeout, self.skip_failed, self.address, self.on_progress = (
            timeout, on_failure == "skip", address, on_progress
        )  # fmt: skip

    def fit(self) -> OnlineRun:
        """Run all simulations and train on them; go on where an interrupted run in the same folder left off."""
        ray = require_ray()
        self._claim_folder()
        with ray_session(self.n_clients + 2 * self.world_size, self.address):
            self._check_session(ray)
            coordinator = Coordinator(
                ray, self.task, self.solver, self.parameters, self.buffer, self.folder.resolve(), self.n_clients,
                self.world_size, self.retries, self.server_retries, self.timeout, self.skip_failed, self.on_progress,
            )  # fmt: skip
            ranks, progress = coordinator.run()
        model = copy.deepcopy(self.model).cpu()
        model.load_state_dict(torch.load(BytesIO(ranks[0]["weights"]), map_location="cpu", weights_only=False))
        losses = torch.tensor(ranks[0]["losses"])
        return OnlineRun(
            model=model.eval(), losses=losses, progress=progress, failed=coordinator.failed, folder=self.folder
        )

    def _claim_folder(self) -> None:
        """Say in the folder which training it belongs to, or refuse if that is another one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = {
            "parameters": hashlib.sha256(self.parameters.tobytes()).hexdigest(),
            "shape": list(self.parameters.shape),
            "world_size": self.world_size,
            "buffer": repr(self.buffer),
        }
        path = self.folder / "run.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name, value in mine.items() if found.get(name) != value]
            if other:
                raise ValueError(f"{self.folder} holds another training (its {' and '.join(other)} differ); remove it")
        else:
            path.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")

    def _check_session(self, ray: Any) -> None:
        for name, part in (("solver", self.solver), ("model, optimizer, scheduler and loss", self.task)):
            try:
                ray.cloudpickle.dumps(part)
            except (TypeError, AttributeError, pickle.PicklingError) as error:
                raise TypeError(f"{name} cannot be sent to another process: {error}") from error
        there = ray.cluster_resources()
        wanted = {"CPU": 2 * self.world_size + 1} | ({"GPU": self.world_size} if self.task.device == "cuda" else {})
        for name, number in wanted.items():
            if there.get(name, 0) < number:
                raise ValueError(
                    f"the Ray session has {there.get(name, 0):g} {name}(s), {self.world_size} rank(s) and a client "
                    f"need {number}"
                )
