"""Clients: solvers that stream their time steps, as Python functions or as programs of their own.

A solver is a callable ``solver(parameters)`` that yields the time steps of one simulation in order: a field, or a pair
``(t, field)``; without a time it is the number of the step. It must give the same steps again when it is called again
with the same parameters, for a client that dies is started anew and what had arrived already is dropped.

A program takes part by writing to its standard output, and :class:`Program` makes a solver of it. The protocol:

1. The program is started once a simulation, with the parameters in its arguments.
2. It writes each time step as one array in NumPy's ``.npy`` format, one after another, and nothing else.
3. It ends with exit code 0 when the simulation is complete, with any other code when it has failed.

The pipe is the back-pressure: while the trainer is behind, the write blocks. A program in Python may use
:func:`write_step`.
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from hadamard.distributed.ledger import MAX_STEPS

__all__ = ["Client", "Program", "stream", "write_step"]

Solver = Callable[[np.ndarray], Iterable[Any]]

_MESSAGE = 32  # time steps in a message at most, so that solvers with small fields are not slowed down by the calls
_PAUSE = 0.02  # seconds after which a step is sent, however few wait with it
_IN_FLIGHT = 2  # messages to a rank that may wait for room in its buffer


class Program:
    """A solver that is a program: it writes its time steps to standard output as ``.npy`` arrays.

    Parameters
    ----------
    command
        The program and its arguments; ``{0}``, ``{1}``, ... stand for the parameters.
    dt, t0
        Time of step ``i`` is ``t0 + i * dt``.
    cwd
        Folder to run in.
    env
        Variables that are added to the environment.

    Examples
    --------
    >>> code = "from hadamard.distributed import write_step; [write_step([{0} * i]) for i in range(3)]"
    >>> solver = Program([sys.executable, "-c", code], dt=0.5)
    >>> [(t, field.tolist()) for t, field in solver(np.array([2.0]))]
    [(0.0, [0.0]), (0.5, [2.0]), (1.0, [4.0])]
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        dt: float = 1.0,
        t0: float = 0.0,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(command, str) or not command:
            raise TypeError(f"command must be a list of a program and its arguments, got {command!r}")
        self.command, self.dt, self.t0, self.cwd, self.env = list(command), dt, t0, cwd, dict(env or {})

    def __call__(self, parameters: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """Run the program and yield ``(t, field)`` as they come."""
        command = [_fill(part, parameters) for part in self.command]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=self.cwd,
                env={**os.environ, **self.env},
            )  # fmt: skip
            assert process.stdout is not None
            try:
                step = 0
                while (field := _read_array(process.stdout)) is not None:
                    yield self.t0 + step * self.dt, field
                    step += 1
                code = process.wait()
                if code:
                    errors.seek(0)
                    last = (errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                    raise RuntimeError(f"{command[0]} ended with exit code {code} after {step} steps: {last}")
            finally:
                process.kill()
                process.wait()
                process.stdout.close()


def write_step(field: Any) -> None:
    """Write one time step to standard output, as :class:`Program` reads it.

    Parameters
    ----------
    field
        An array of numbers.
    """
    record = io.BytesIO()
    np.lib.format.write_array(record, np.asarray(field), allow_pickle=False)
    sys.stdout.buffer.write(record.getvalue())
    sys.stdout.buffer.flush()


def _fill(part: str, parameters: np.ndarray) -> str:
    for i, value in enumerate(parameters.tolist()):
        part = part.replace(f"{{{i}}}", repr(value))
    return part


def _read_array(pipe: IO[bytes]) -> np.ndarray | None:
    """The next array from a pipe; None at its end."""
    magic = pipe.read(6)
    if not magic:
        return None
    if magic != b"\x93NUMPY":
        raise ValueError(f"the program must write arrays in the .npy format and nothing else, got {magic!r}")
    try:
        return np.lib.format.read_array(_Pipe(magic, pipe), allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"the program's output is cut short or no array of numbers: {error}") from error


class _Pipe:
    """The magic that was read already, and the rest of a pipe, which cannot seek."""

    def __init__(self, head: bytes, pipe: IO[bytes]) -> None:
        self._head, self._pipe = head, pipe

    def read(self, n: int = -1, /) -> bytes:
        head, self._head = self._head[:n], self._head[n:]
        return head + self._pipe.read(n - len(head))


class Client:
    """The side of one simulation: numbers its time steps, spreads them over the ranks and sends them.

    Parameters
    ----------
    client
        Number of the simulation.
    buffers
        Handles of the ranks' buffers, Ray actors of :class:`hadamard.distributed.buffer_server.BufferServer`.
    """

    def __init__(self, client: int, buffers: Sequence[Any]) -> None:
        import ray

        self._ray, self.client, self._buffers = ray, client, buffers
        self.step, self._sent = 0, time.monotonic()
        self._waiting: list[list[tuple[int, np.ndarray, np.ndarray]]] = [[] for _ in buffers]
        self._flying: list[list[Any]] = [[] for _ in buffers]
        self._there = ray.get([b.hello.remote(client, os.getpid()) for b in buffers])

    def send(self, x: np.ndarray, field: Any) -> None:
        """Send the next time step; waits while too much of what was sent has found no room yet.

        Raises
        ------
        ValueError
            If the field or its coordinates are not finite numbers.
        """
        step, self.step = self.step, self.step + 1
        if self.step > MAX_STEPS:
            raise ValueError(f"a simulation may have at most {MAX_STEPS} time steps")
        rank = (self.client + step) % len(self._buffers)
        bits = self._there[rank]
        if step >> 3 < len(bits) and bits[step >> 3] >> (step & 7) & 1:
            return  # it arrived before the client was started anew
        y = np.asarray(field)
        if y.dtype.kind not in "fiub" or not np.isfinite(y).all() or not np.isfinite(x).all():
            raise ValueError(
                f"simulation {self.client}, step {step}: expected an array of finite real numbers, got "
                f"{'NaN or infinity' if y.dtype.kind == 'f' else y.dtype}"
            )
        self._waiting[rank].append((step, x, y.astype(np.float32)))  # a copy: solvers reuse their arrays
        now = time.monotonic()
        if now - self._sent > _PAUSE or len(self._waiting[rank]) == _MESSAGE:
            self._sent = now
            for r, steps in enumerate(self._waiting):
                if steps:
                    self._post(r)

    def finish(self) -> int:
        """Wait until all that was sent has arrived, and return the number of time steps."""
        for r in range(len(self._buffers)):
            if self._waiting[r]:
                self._post(r)
        self._ray.get([ref for flying in self._flying for ref in flying])
        self._ray.get([b.finish.remote(self.client, self.step) for b in self._buffers])
        return self.step

    def _post(self, rank: int) -> None:
        flying = self._flying[rank]
        if len(flying) == _IN_FLIGHT:
            self._ray.get(flying.pop(0))
        flying.append(self._buffers[rank].put.remote(self.client, self._waiting[rank]))
        self._waiting[rank] = []


def stream(client: int, parameters: np.ndarray, solver: Solver, buffers: Sequence[Any]) -> int:
    """Run one simulation and send all of it: what the task of a client does.

    Returns
    -------
    int
        Its number of time steps; -1 if a buffer is gone, so that there is nobody to send to.
    """
    from ray.exceptions import RayActorError

    steps = None
    try:
        link = Client(client, buffers)
        steps = iter(solver(parameters))
        for item in steps:
            t, field = item if isinstance(item, tuple) else (link.step, item)
            link.send(np.append(parameters, t).astype(np.float32), field)
        return link.finish()
    except RayActorError:
        return -1
    finally:
        if steps is not None and hasattr(steps, "close"):
            steps.close()
