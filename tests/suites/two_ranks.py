"""Two processes that torch.distributed joins over gloo, for tests of what runs on several ranks.

A family's ``conftest.py`` imports the fixture. The processes are started once and run one function after another on
both ranks at the same time::

    def share(rank, world_size, value):            # at the top of a module, so that the ranks can import it
        total = torch.tensor(value * (rank + 1))
        dist.all_reduce(total)
        return total

    def test_sum(two_ranks):
        assert [int(t) for t in two_ranks(share, 5)] == [15, 15]

What a function raises is raised here, and the next call starts two fresh processes.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from datetime import timedelta
from multiprocessing import get_context
from typing import Any

import pytest
import torch
import torch.distributed as dist


class Ranks:
    """Processes of one gloo group; a call runs a function on all of them and returns what they return, by rank."""

    def __init__(self, world_size: int = 2) -> None:
        self.world_size = world_size
        self._pools: list[ProcessPoolExecutor] = []
        self._folder = tempfile.TemporaryDirectory()

    def __call__(self, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
        """Run ``function(rank, world_size, *args)`` on every rank."""
        if not self._pools:
            store = f"{self._folder.name}/{time.monotonic_ns()}"
            self._pools = [
                ProcessPoolExecutor(1, get_context("spawn"), _join, (rank, self.world_size, store))
                for rank in range(self.world_size)
            ]
        calls = [pool.submit(function, rank, self.world_size, *args) for rank, pool in enumerate(self._pools)]
        done, waiting = wait(calls, timeout, FIRST_EXCEPTION)
        failed = next((call for call in calls if call in done and call.exception()), None)
        if failed or waiting:
            self.close(kill=True)
            raise failed.exception() if failed else TimeoutError(f"{len(waiting)} rank(s) still ran after {timeout} s")
        return [call.result() for call in calls]

    def close(self, kill: bool = False) -> None:
        """End the processes."""
        for pool in self._pools:
            if kill:
                for process in list(pool._processes.values()):
                    process.kill()
            pool.shutdown(wait=not kill, cancel_futures=True)
        self._pools = []


def _join(rank: int, world_size: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=30)
    )


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two ranks of a gloo group."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()
