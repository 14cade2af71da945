"""``hadamard apply online_training``: from a YAML file to weights."""

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from hadamard.cli import app
from hadamard.cli.apply.online_training import _draw
from hadamard.distributed import read_ledger

SOLVER = """
import numpy as np

def solve(parameters):
    for i in range(10):
        yield 0.1 * i, np.full(4, parameters[0] * 0.9**i)

def make_model():
    import torch
    return torch.nn.Linear(2, 4)
"""
CONFIG = """
solver: decay_solver.py:solve
model: decay_solver.py:make_model
parameters: {n: 12, low: [1.0], high: [2.0], sampler: latin_hypercube}
buffer: {kind: firo, capacity: 60, threshold: 10}
training: {batch_size: 8, n_clients: 2, learning_rate: 0.01}
"""


def test_from_a_file_to_weights(tmp_path):
    (tmp_path / "decay_solver.py").write_text(SOLVER)
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = ["apply", "online_training", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.exception
    assert "15 updates on 120 time steps of 12 simulations" in result.output
    assert load_file(tmp_path / "run" / "model.safetensors")["weight"].shape == (4, 2)
    assert len(read_ledger(tmp_path / "run" / "trained")) == 120


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model:", "net:", "lacks model and has unknown net"),
        ("solver.py:solve", "solver.py:solves", "solver: decay_solver.py has no function solves"),
        ("decay_solver.py:solve", "solve", "solver must be FILE.py:FUNCTION, got 'solve'"),
        ("kind: firo", "kind: fifo", "a fifo buffer has no threshold"),
        ("n_clients", "clients", "a name in training must be one of"),
        ("n: 12, ", "", "parameters lacks n"),
        ("low: [1.0]", "low: [1.0, 2.0]", "low and high must have the same length, got 2 and 1"),
        ("{n: 12", "{{n: 12", "is not a YAML file"),
    ],
)
def test_bad_configurations(tmp_path, old, new, message):
    (tmp_path / "decay_solver.py").write_text(SOLVER)
    (tmp_path / "config.yaml").write_text(CONFIG.replace(old, new))
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(
            app, ["apply", "online_training", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")],
            catch_exceptions=False,
        )  # fmt: skip


@pytest.mark.parametrize("sampler", ["halton", "sobol", "latin_hypercube", "uniform"])
def test_designs_lie_in_their_box(sampler):
    design = _draw({"n": 16, "low": [1, -2], "high": [2, 0], "sampler": sampler})
    assert design.shape == (16, 2)
    assert bool(((design >= [1, -2]) & (design <= [2, 0])).all())
