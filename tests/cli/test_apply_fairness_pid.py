"""``hadamard apply fairness_pid`` beyond the defaults: columns by name, weights, a picture, the limit."""

import csv

import numpy as np
import pytest

from hadamard.learning import AGLFOP, fairness_pid
from tests.cli.test_cli import command

HEADER = ["sex", "age", "site", "granted", "repaid", "rows"]


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    kinds = ("f", "m"), ("old", "young"), ("north", "south"), "01", "01", "123"
    columns = [random.choice(list(each), 300) for each in kinds]
    with open("table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *zip(*columns, strict=True)])
    return dict(zip(HEADER, columns, strict=True))


def apply(monkeypatch, capsys, *options):
    names = ("--prediction", "granted", "--sensitive", "sex", "--client", "site")
    return command(monkeypatch, capsys, "apply", "fairness_pid", "table.csv", "--out", "out.csv", *names, *options)


def test_what_it_writes_is_what_python_finds(table, tmp_path, monkeypatch, capsys):
    options = ("--weight", "rows", "--label", "repaid", "--plot", "out.png", "--budgets", "3")
    code, _, error = apply(monkeypatch, capsys, *options)
    assert code == 0, error
    with open("out.csv", encoding="utf-8") as file:
        found = {(row["quantity"], row["client"]): row for row in csv.DictReader(file)}
    who = {"sensitive_features": table["sex"], "client": table["site"], "sample_weight": table["rows"].astype(float)}
    audit = fairness_pid(table["granted"], **who)
    assert float(found["masked", ""]["value"]) == pytest.approx(audit.masked, rel=1e-5)
    assert float(found["local", ""]["high"]) == pytest.approx(audit.intervals["local"][1], rel=1e-5)
    assert float(found["parity_gap", "south"]["value"]) == pytest.approx(audit.per_client["south"].parity_gap, rel=1e-5)
    best = AGLFOP(table["repaid"], **who).solve(audit.global_, audit.local)
    assert float(found["best_accuracy", ""]["value"]) == pytest.approx(best.bound, rel=1e-5)
    hits = np.average(table["granted"] == table["repaid"], weights=who["sample_weight"])
    assert float(found["accuracy", ""]["value"]) == pytest.approx(hits, rel=1e-5)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_groups_of_several_columns(table, monkeypatch, capsys):
    code, _, error = apply(monkeypatch, capsys, "--sensitive", "sex,age")
    assert code == 0, error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--client", "branch"), "no column 'branch'; it has sex, age, site, granted, repaid, rows"),
        (("--weight", "sex"), "sex must be a finite number, got 'f'"),
        (("--plot", "nowhere/out.png", "--label", "repaid"), "no folder nowhere"),
        (("--level", "1.5"), "level must be > 0 and < 1, got 1.5"),
    ],
)
@pytest.mark.bad_input
def test_faults_are_one_line(table, tmp_path, monkeypatch, capsys, options, message):
    if options[1] == "sex":
        (tmp_path / "table.csv").write_text("sex,site,granted\nf,north,1\n")
    code, _, error = apply(monkeypatch, capsys, *options)
    assert code == 2
    assert message in error
    assert not (tmp_path / "out.csv").exists()


def test_a_label_that_is_missing_is_named(table, tmp_path, monkeypatch, capsys):
    (tmp_path / "table.csv").write_text("sex,site,granted\nf,north,1\nm,,0\n")
    code, _, error = apply(monkeypatch, capsys)
    assert code == 2
    assert "table.csv, line 3: site must not be empty" in error
