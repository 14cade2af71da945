"""Online training: exactly the time steps that there are, whatever dies; on one Ray session."""

import asyncio
import json
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from hadamard.distributed import FIFO, FIRO, OnlineTrainer, Program, Reservoir, read_ledger
from hadamard.distributed.buffer_server import BufferServer
from tests.distributed import solvers, streams
from tests.distributed.solvers import STEPS, simulations
from tests.distributed.streams import Counting, Faults, counting

N = 40


def _train(folder, n=N, pause=0.0, **options):
    defaults = {"buffer": FIFO(100), "batch_size": 16, "n_clients": 3, "checkpoint_every": 5, "solver": solvers.heat}
    torch.manual_seed(5)
    return OnlineTrainer(
        Counting(n, pause), parameters=simulations(n), folder=folder, **counting(n), **defaults | options
    ).fit()


def _ids(folder, kind):
    return sorted(map(tuple, read_ledger(folder / kind).tolist()))


def _all(n=N):
    return [(client, step) for client in range(n) for step in range(STEPS)]


# ---- without faults ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(ray, tmp_path_factory):
    """Validation error of runs that nothing happened to, by number of ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {ranks: streams.validation_error(_train(folder / str(ranks), world_size=ranks)) for ranks in (1, 2)}


def test_ranks_share_the_stream_and_each_step_is_trained_on_once(ray, tmp_path):
    """37 simulations: the ranks end unevenly."""
    run = _train(tmp_path, n=37, world_size=2, batch_size=7)
    assert _ids(tmp_path, "accepted") == _ids(tmp_path, "trained") == _all(37)
    assert [len(read_ledger(tmp_path / f"trained.{r}")) for r in (0, 1)] == [370, 370]
    assert run.model.counts.unique().tolist() == [1]
    assert run.progress.finished == 37
    assert run.progress.accepted == 37 * STEPS
    assert run.losses[-5:].mean() < run.losses[:5].mean()


def test_one_client_is_deterministic_and_equals_plain_training(ray, tmp_path):
    """FIFO, one client, one rank: the updates are those of a loop over the time steps in order."""
    run = _train(tmp_path, n=8, n_clients=1, batch_size=10)
    torch.manual_seed(5)
    model = Counting(8)
    optimizer = counting(8)["optimizer"](model.parameters())
    rows = [(np.append(p, t), y) for p in simulations(8) for t, y in solvers.heat(p)]
    x, y = (torch.tensor(np.array(a), dtype=torch.float32) for a in zip(*rows))
    for i in range(0, len(x), 10):
        optimizer.zero_grad()
        streams.counting_loss(model, x[i : i + 10], y[i : i + 10]).backward()
        optimizer.step()
    for ours, plain in zip(run.model.parameters(), model.parameters()):
        torch.testing.assert_close(ours, plain)


def test_full_buffers_hold_the_solvers_back(ray, tmp_path):
    run = _train(tmp_path, buffer=FIRO(32, 8), pause=0.1)
    assert run.progress.most <= 32
    assert run.model.counts.unique().tolist() == [1]


def test_a_program_streams(ray, tmp_path):
    code = "from tests.distributed.solvers import heat; from hadamard.distributed import write_step\n"
    code += "for _, u in heat([{0}, {1}, {2}]): write_step(u)"
    run = _train(tmp_path, n=3, solver=Program([sys.executable, "-c", code]), buffer=Reservoir(50, 10))
    assert _ids(tmp_path, "accepted") == _all(3)
    assert set(_ids(tmp_path, "trained")) == set(_all(3))
    assert bool((run.model.counts >= 1).all())


# ---- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "ranks", "buffer"), [(0, 1, FIFO(100)), (1, 2, FIFO(60)), (2, 1, FIRO(100, 30)), (3, 2, Reservoir(80, 20))]
)
def test_five_kills_lose_nothing_and_count_nothing_twice(ray, tmp_path, undisturbed, seed, ranks, buffer):
    """SIGKILL at five random points of each of four runs: two clients, a buffer, a trainer, half a checkpoint."""
    random = np.random.default_rng(seed)
    roles = random.permutation(["client", "client", "buffer", "trainer", "checkpoint"]).tolist()
    faults = Faults(list(zip(roles, random.uniform(0.05, 0.9, 5))), N * STEPS, tmp_path, seed)
    run = _train(
        tmp_path, pause=0.05, solver=solvers.slow_heat, world_size=ranks, buffer=buffer, on_progress=faults
    )  # fmt: skip
    assert sorted(faults.done) == ["buffer", "checkpoint", "client", "client", "trainer"]
    assert run.progress.server_restarts == 3
    assert _ids(tmp_path, "accepted") == _all()
    if isinstance(buffer, Reservoir):
        assert set(_ids(tmp_path, "trained")) == set(_all())
        assert bool((run.model.counts >= 1).all())
        assert streams.validation_error(run) < 1.5 * undisturbed[ranks]  # it makes more updates
    else:
        assert _ids(tmp_path, "trained") == _all()
        assert run.model.counts.unique().tolist() == [1]  # the weights themselves know
        assert streams.validation_error(run) == pytest.approx(undisturbed[ranks], rel=0.5)


def test_an_interrupted_run_goes_on(ray, tmp_path):
    """The calling process gives up in the middle; another one takes over from the last checkpoint."""

    def stop(progress):
        if progress.accepted > 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, solver=solvers.slow_heat, on_progress=stop)
    run = _train(tmp_path, n_clients=2)
    assert _ids(tmp_path, "accepted") == _ids(tmp_path, "trained") == _all()
    assert run.model.counts.unique().tolist() == [1]
    assert len(run.losses) == N * STEPS // 16
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["finished"] == N


def _moody(parameters):
    if parameters[0] == 2:
        yield from list(solvers.heat(parameters))[:5]
        raise ArithmeticError("the solver blew up")
    yield from solvers.heat(parameters)


def _not_finite(parameters):
    yield np.full(8, np.inf)


def _uneven(parameters):
    yield np.zeros(8)
    yield np.zeros(9)


def _sleepy(parameters):
    import time

    yield np.zeros(8)
    time.sleep(60)


def test_a_simulation_that_always_fails(ray, tmp_path):
    run = _train(tmp_path, n=6, solver=_moody, retries=1, on_failure="skip")
    assert run.failed == {2: "ArithmeticError: the solver blew up"}
    assert set(_ids(tmp_path, "accepted")) >= {id for id in _all(6) if id[0] != 2}
    assert len(set(_ids(tmp_path, "accepted"))) == run.progress.accepted


@pytest.mark.parametrize(
    ("solver", "message", "options"),
    [
        (_not_finite, "simulation 0, step 0: expected an array of finite real numbers, got NaN or infinity", {}),
        (_uneven, r"expected 4 coordinates and a field of shape \(8,\) as the first step had, got 4 and \(9,\)", {}),
        (_sleepy, "failed 1 times, the last time: TimeoutError: it sent nothing for 1.0 s", {"timeout": 1.0}),
    ],
)
def test_solvers_that_misbehave(ray, tmp_path, solver, message, options):
    with pytest.raises(RuntimeError, match=message):
        _train(tmp_path, n=1, solver=solver, retries=0, **options)


def test_an_error_of_the_loss_is_the_users(ray, tmp_path):
    with pytest.raises(ValueError, match="the loss does not like it"):
        OnlineTrainer(
            nn.Linear(4, 8), solvers.heat, simulations(3), folder=tmp_path, loss=_bad_loss, buffer=FIFO(50)
        ).fit()  # fmt: skip


def _bad_loss(model, x, y):
    raise ValueError("the loss does not like it")


def _with_lock(lock, parameters):
    yield from solvers.heat(parameters)


# ---- the buffer's process, without Ray -----------------------------------------------------------------------------


def _steps(*numbers):
    return [(i, np.array([i], np.float32), np.full(2, i, np.float32)) for i in numbers]


def test_what_comes_again_is_dropped_even_while_both_wait_for_room(tmp_path):
    async def scenario():
        server = BufferServer(FIFO(2), 0, tmp_path)
        await server.restore(None)
        await server.put(7, _steps(1, 0))
        both = [asyncio.create_task(server.put(7, _steps(0, 2, 3))) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in both)
        batches = [await server.get(2, {}), await server.get(2, {})]
        await asyncio.gather(*both)
        await server.close()
        return server, batches + [await server.get(2, {})]

    server, batches = asyncio.run(asyncio.wait_for(scenario(), 10))
    assert [batch.ids[:, 1].tolist() for batch in batches[:2]] == [[1, 0], [2, 3]]
    assert batches[2] is None
    assert server.duplicates == 4
    assert read_ledger(tmp_path / "accepted").tolist() == [[7, 1], [7, 0], [7, 2], [7, 3]]


def test_a_reservoir_full_of_new_samples_and_a_waiting_trainer_do_not_block_each_other(tmp_path):
    async def scenario():
        server = BufferServer(Reservoir(4, 4), 0, tmp_path)
        await server.restore(None)
        get = asyncio.create_task(server.get(4, {}))
        put = asyncio.create_task(server.put(0, _steps(*range(20))))
        await get
        while not put.done():
            await server.get(4, {})
            await asyncio.sleep(0)
        return len(server.arrivals)

    assert asyncio.run(asyncio.wait_for(scenario(), 10)) == 20


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"solver": 3}, TypeError, "solver must be callable, got int"),
        ({"parameters": []}, ValueError, r"parameters must have shape \(n_simulations, p\), got \(0,\)"),
        ({"parameters": [[np.nan]]}, ValueError, "parameters must be finite"),
        ({"buffer": []}, TypeError, "buffer must be a FIFO, FIRO or Reservoir, got list"),
        ({"buffer": FIFO(8)}, ValueError, "batch_size must be at most the buffer's capacity of 8, got 32"),
        ({"n_clients": 0}, ValueError, "n_clients must be >= 1, got 0"),
        ({"timeout": 0}, ValueError, "timeout must be > 0, got 0"),
        ({"on_failure": "hope"}, ValueError, "on_failure must be one of 'raise', 'skip', got 'hope'"),
        ({"device": "tpu"}, ValueError, "device must be one of 'cpu', 'cuda', got 'tpu'"),
    ],
)
def test_bad_input(change, error, message, tmp_path):
    arguments = {"model": nn.Linear(1, 1), "solver": solvers.heat, "parameters": [[1.0]], "folder": tmp_path}
    with pytest.raises(error, match=message):
        OnlineTrainer(**arguments | change)


def test_a_folder_of_another_training_and_a_solver_that_cannot_travel(ray, tmp_path):
    _train(tmp_path / "a", n=2)
    with pytest.raises(ValueError, match="holds another training"):
        _train(tmp_path / "a", n=3)
    with pytest.raises(TypeError, match="solver cannot be sent to another process"):
        _train(tmp_path / "b", n=2, solver=partial(_with_lock, threading.Lock()))
    with pytest.raises(ValueError, match="the Ray session has .* 9 rank"):
        _train(tmp_path / "c", n=2, world_size=9)
