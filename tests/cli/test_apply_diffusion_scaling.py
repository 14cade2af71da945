"""``hadamard apply diffusion_scaling``: runs in; a law, forecasts and a picture out."""

import csv
import json

import numpy as np
import pytest

from hadamard.cli.files import read_image
from tests.cli.test_cli import command

SIZES = np.geomspace(1e6, 1e9, 8)


def table(path, losses, header="parameters,loss"):
    rows = "".join(f"{size:.12g},{loss:.12g}\n" for size, loss in zip(SIZES, losses))
    path.write_text(f"{header}\n{rows}1e10,\n")


def run(tmp_path, monkeypatch, capsys, *options):
    monkeypatch.chdir(tmp_path)
    return command(monkeypatch, capsys, "apply", "diffusion_scaling", "runs.csv", "-o", "law.csv", *options)


def test_a_law_and_a_forecast(tmp_path, monkeypatch, capsys):
    table(tmp_path / "runs.csv", 0.5 + 30 * SIZES**-0.3)
    code, said, error = run(tmp_path, monkeypatch, capsys, "--bootstrap", "20")
    assert code == 0, error
    assert "loss = 0.5 + 30 * parameters^-0.3" in said
    assert "8 runs, 1 forecasts" in said
    rows = list(csv.reader((tmp_path / "law.csv").open()))
    assert rows[0] == ["parameters", "loss", "forecast", "low", "high"]
    assert rows[-1][1] == ""
    assert abs(float(rows[-1][2]) / (0.5 + 30 * 1e10**-0.3) - 1) < 1e-4
    assert json.loads((tmp_path / "law.json").read_text())["a"] == pytest.approx([0.3], rel=1e-4)
    assert read_image(tmp_path / "law.png").std() > 0.05


def test_a_score_rises(tmp_path, monkeypatch, capsys):
    table(tmp_path / "runs.csv", 1 - 30 * SIZES**-0.3, "parameters,TIFA")
    code, said, error = run(tmp_path, monkeypatch, capsys, "--score", "--floor", "no", "--bootstrap", "20")
    assert code == 0, error
    assert "1 - score = 30 * parameters^-0.3" in said
    last = list(csv.reader((tmp_path / "law.csv").open()))[-1]
    assert float(last[3]) <= float(last[2]) + 1e-6
    assert float(last[2]) == pytest.approx(1 - 30 * 1e10**-0.3, abs=1e-4)


def test_of_several_columns_those_that_are_named(tmp_path, monkeypatch, capsys):
    rows = "".join(f"7,{size:.12g},{30 * size**-0.3:.12g}\n" for size in SIZES)
    (tmp_path / "runs.csv").write_text(f"note,data,loss\n{rows}")
    code, said, error = run(tmp_path, monkeypatch, capsys, "--by", "data", "--bootstrap", "5")
    assert code == 0, error
    assert "data^-0.3" in said


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        ("size,loss\n1,2\n2,-1\n", (), "line 3: a loss must be positive, got -1"),
        ("size,loss\n1,2\n0,1\n", (), "line 3: size must be positive, got 0"),
        ("size,loss\n1,2\n2,many\n", (), "line 3: loss must be a finite number, got 'many'"),
        ("size,loss\n1,2\n2\n", (), "line 3: expected 2 columns, got 1; is the file truncated?"),
        ("size,loss\n1,2\n2,1.5\n", ("--score",), "line 2: a score must be below 1, got 2"),
        ("size,loss\n1,2\n2,1.5\n", ("--by", "data"), "with data, got size,loss"),
        ("size,loss\n1,2\n2,1.5\n", ("--floor", "perhaps"), "--floor must be yes, no or auto"),
        ("size,loss\n1,2\n", (), "X must hold at least"),
        ("size,loss\n", (), "holds no runs"),
        ("", (), "the file is empty"),
    ],
)
def test_bad_tables(tmp_path, monkeypatch, capsys, text, options, error):
    (tmp_path / "runs.csv").write_text(text)
    code, _, said = run(tmp_path, monkeypatch, capsys, *options)
    assert code == 2
    assert error in " ".join(said.split())
    assert not (tmp_path / "law.csv").exists()
