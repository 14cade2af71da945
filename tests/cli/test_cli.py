"""The command line: output, exit codes, and one line for wrong input."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hadamard import catalog
from hadamard.claims import engine
from hadamard.cli import app, main
from tests.claims.test_engine import KEY, bar, claim

runner = CliRunner()


@pytest.fixture
def fake(monkeypatch):
    """Every claim is the small one."""

    def go(**kwargs):
        monkeypatch.setattr(engine, "load", lambda key: claim(**kwargs))

    go()
    return go


def command(monkeypatch, capsys, *arguments):
    """Run ``hadamard ARGUMENTS`` as the entry point does: exit code, output, error."""
    monkeypatch.setattr(sys, "argv", ["hadamard", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_list_as_json():
    rows = json.loads(runner.invoke(app, ["list", "--json"]).output)
    assert [row["key"] for row in rows] == list(catalog.methods())
    assert set(rows[0]) == {"key", "family", "title", "arxiv", "api", "drops_into", "saves"}


def test_list_of_one_family():
    rows = json.loads(runner.invoke(app, ["list", "--family", "transport", "--json"]).output)
    assert {row["family"] for row in rows} == {"transport"}
    assert KEY.split("_")[0] in runner.invoke(app, ["list"]).output


def test_show_names_paper_usage_and_verdict(tmp_path, fake):
    engine.run(KEY, "quick", tmp_path)
    shown = runner.invoke(app, ["show", KEY, "--out", str(tmp_path)]).output
    assert catalog.method(KEY).arxiv in shown
    assert "holds at size quick" in shown
    assert "none yet" in runner.invoke(app, ["show", KEY, "--out", str(tmp_path / "none")]).output
    assert runner.invoke(app, ["show", KEY, "--bibtex"]).output.startswith("@inproceedings{")


def test_claims_write_records_page_and_table(tmp_path, fake):
    done = runner.invoke(app, ["claims", KEY, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert {p.name for p in tmp_path.iterdir()} == {f"{KEY}.json", "index.html"}
    assert "holds" in done.output


def test_claims_as_json(tmp_path, fake):
    done = runner.invoke(app, ["claims", KEY, "--out", str(tmp_path), "--json"])
    assert json.loads(done.stdout)[0]["key"] == KEY


@pytest.mark.parametrize(
    ("change", "flags", "code"),
    [
        ({"bars": [bar(0.5)]}, [], 0),
        ({"bars": [bar(0.5)]}, ["--strict"], 1),
        ({"bars": [bar(0.5, seconds=True)]}, ["--strict"], 0),
        ({}, ["--strict"], 0),
        ({"plot": lambda r: 1 / 0}, [], 3),
        ({"plot": lambda r: 1 / 0}, ["--strict"], 3),
    ],
)
def test_exit_codes(tmp_path, fake, change, flags, code):
    fake(**change)
    assert runner.invoke(app, ["claims", KEY, "--out", str(tmp_path), *flags]).exit_code == code


def test_a_changed_bar_exits_with_1(tmp_path, fake):
    expected = tmp_path / "expected.json"
    run = ["claims", KEY, "--out", str(tmp_path), "--expected", str(expected)]
    runner.invoke(app, run[:-2])
    assert runner.invoke(app, ["report", str(tmp_path), "--write-expected", str(expected)]).exit_code == 0
    assert runner.invoke(app, run).exit_code == 0
    fake(bars=[bar(0.5)])
    changed = runner.invoke(app, run)
    assert changed.exit_code == 1
    assert "was yes, is no" in changed.output


def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run", interrupt)
    done = runner.invoke(app, ["claims", KEY, "--out", str(tmp_path)])
    assert done.exit_code == 130
    assert "--resume" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nothing"], "unknown method 'nothing'"),
        (["claims", "nothing"], "unknown method or family 'nothing'"),
        (["apply", "nothing"], "unknown method 'nothing'"),
        (["apply", KEY], f"{KEY} has no file form"),
        (["train", "nothing"], "unknown method 'nothing'"),
        (["train", KEY], f"{KEY} has nothing to train"),
        (["train", "learned_proximal", "--device", "cuda"], "learned_proximal trains on the CPU only"),
        (["list", "--family", "nothing"], "unknown method or family 'nothing'"),
        (["data", "fetch", "nothing"], "nothing"),
        (["report", "no-such-folder"], "directory 'no-such-folder' does not exist"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(monkeypatch, capsys, arguments, message):
    code, _, error = command(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [["claims", "--size", "huge"], ["claims", "--jobs", "0"], ["nothing"]])
def test_wrong_options_exit_with_2(monkeypatch, capsys, arguments):
    assert command(monkeypatch, capsys, *arguments)[0] == 2


def test_import_is_quick_and_light():
    """``import hadamard`` takes under half a second beyond torch, and does not even import torch."""
    code = (
        "import time, sys; t = time.perf_counter(); import hadamard; d = time.perf_counter() - t;"
        "print(d, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    seconds, torch_there = out.stdout.split()
    assert float(seconds) < 0.5
    assert torch_there == "False"
