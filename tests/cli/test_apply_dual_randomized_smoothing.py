"""``hadamard apply dual_randomized_smoothing`` on good files and on bad ones, and the table as analyze.py reads it."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hadamard.certification import DualSmooth, RandomizedSmoothing
from hadamard.cli.files import write_array
from hadamard.cli.models import read_model
from tests.cli.test_cli import command

MODEL = """
import torch

def small():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))

def other():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))

def images():
    return torch.nn.Identity()

def broken():
    raise KeyError("weights")

def number():
    return 3
"""
IMAGES, LABELS = np.random.default_rng(0).random((4, 1, 4, 4), dtype=np.float32), np.array([0, 1, 2, 1])


def network(name):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    for w in net.parameters():
        w.data = len(name) * torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    return net


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(MODEL)
    for name in ("left", "right"):
        save_file(network(name).state_dict(), f"{name}.safetensors")
    write_array("photos.npz", {"images": IMAGES, "labels": LABELS})

    def go(*words, source="photos.npz", model="nets.py:small", weights="left.safetensors"):
        options = ["--out", "out.tsv", "--sigma", "0.1", "--n", "400", "--model", model, "--weights", weights]
        return command(monkeypatch, capsys, "apply", "dual_randomized_smoothing", source, *options, *words)

    return go


def table():
    return pd.read_csv("out.tsv", delimiter="\t")  # as locuslab's analyze.py does


def test_two_networks_give_the_certificates_of_the_library(run):
    code, said, error = run("--weights-right", "right.safetensors")
    assert code == 0, error
    rows = table()
    assert list(rows) == ["idx", "label", "predict", "radius", "correct", "time"]
    assert rows["idx"].tolist() == [0, 1, 2, 3]
    assert rows["label"].tolist() == LABELS.tolist()
    smooth = DualSmooth(network("left"), network("right"), 3, 0.1)
    generator = torch.Generator().manual_seed(0)
    expected = [smooth.certify(torch.from_numpy(x), n=400, generator=generator) for x in IMAGES]
    assert rows["predict"].tolist() == [label for label, _ in expected]
    assert rows["radius"].tolist() == pytest.approx([radius for _, radius in expected], rel=1e-5)
    assert rows["correct"].tolist() == [int(p == k) for p, k in zip(rows["predict"], LABELS)]
    assert (rows["predict"] >= 0).any()
    assert (pd.to_timedelta(rows["time"]).dt.total_seconds() > 0).all()
    # analyze.py: certified accuracy at a radius
    assert 0 <= (rows["correct"] & (rows["radius"] >= 0.05)).mean() <= 1
    assert said.startswith(f"wrote out.tsv: {(rows['predict'] >= 0).sum()} of 4 images have a certificate")


def test_plain_smoothing_and_one_network_for_both_halves(run):
    assert run("--plain")[0] == 0
    plain = table()
    smooth, generator = RandomizedSmoothing(network("left"), 3, 0.1), torch.Generator().manual_seed(0)
    assert plain["predict"][0] == smooth.certify(torch.from_numpy(IMAGES[0]), n=400, generator=generator)[0]
    assert run("--runner-up", "--fill", "mean")[0] == 0
    assert len(table()) == 4
    assert run(model="nets:small")[0] == 0  # as a module of this folder


def test_images_without_classes_and_bytes(run):
    np.save("photos.npy", (IMAGES[:, 0] * 255).astype(np.uint8))
    code, _, error = run(source="photos.npy")
    assert code == 0, error
    rows = table()
    assert rows["label"].isna().all()
    assert rows["correct"].isna().all()
    write_array("bare.npz", {"images": IMAGES})
    assert run(source="bare.npz")[0] == 0


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({"source": "none.npz"}, (), "none.npz: no such file"),
        ({"source": "cut.npz"}, (), "cut.npz: cannot be read, it may be damaged or truncated"),
        ({"source": "flat.npz"}, (), "flat.npz: images must be floats or bytes of shape"),
        ({"source": "nan.npz"}, (), "nan.npz: images hold NaN or infinite values"),
        ({"source": "odd.npz"}, (), "odd.npz: labels must be 4 integers, got float64 of shape (4,)"),
        ({"source": "unnamed.npz"}, (), "unnamed.npz: holds no array 'images'; it has pixels"),
        ({"weights": "none.safetensors"}, (), "none.safetensors: no such file"),
        ({"weights": "weights.pt"}, (), "weights.pt: weights must be a .safetensors file"),
        ({"weights": "cut.safetensors"}, (), "cut.safetensors: cannot be read, it may be damaged or truncated"),
        ({"model": "nets.py:other"}, (), "left.safetensors: does not fit the network of nets.py:other"),
        ({"model": "nets.py"}, (), "--model must be MODULE:FUNCTION or FILE.py:FUNCTION, got 'nets.py'"),
        ({"model": "nets.py:none"}, (), "--model nets.py:none: nets.py has no function none"),
        ({"model": "nothing:small"}, (), "--model nothing:small: cannot import nothing (No module named 'nothing')"),
        ({"model": "gone.py:small"}, (), "gone.py: no such file"),
        ({"model": "nets.py:broken"}, (), "--model nets.py:broken: the function failed ('weights')"),
        ({"model": "nets.py:number"}, (), "--model nets.py:number must return a torch.nn.Module, got int"),
        ({}, ("--sigma", "0"), "--sigma must be > 0, got 0.0"),
        ({}, ("--alpha", "1"), "--alpha must be > 0 and < 1, got 1.0"),
        ({}, ("--n", "1"), "--n must be >= 2, got 1"),
        ({}, ("--fill", "zero"), "--fill must be one of 'nearest', 'mean', 'maxpool', got 'zero'"),
        ({}, ("--plain", "--weights-right", "right.safetensors"), "--weights-right goes with two halves"),
        ({}, ("--out", "nowhere/out.tsv"), "nowhere/out.tsv: no folder nowhere"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(run, tmp_path, change, words, message):
    write_array("flat.npz", {"images": IMAGES[:, 0, 0]})
    write_array("nan.npz", {"images": np.full_like(IMAGES, np.nan)})
    write_array("odd.npz", {"images": IMAGES, "labels": LABELS + 0.5})
    write_array("unnamed.npz", {"pixels": IMAGES})
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({}))
    for name in ("photos.npz", "left.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut.{name.partition('.')[2]}").write_bytes(whole[: len(whole) // 2])
    code, _, error = run(*words, **change)
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert message in error
    assert not (tmp_path / "out.tsv").exists()


def test_a_network_of_another_kind_is_refused(run, tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="does not fit the network"):
        read_model("nets.py:images", "none.safetensors")
    np.save("photos.npy", IMAGES)
    save_file({}, tmp_path / "empty.safetensors")
    code, _, error = run(source="photos.npy", model="nets.py:images", weights="empty.safetensors")
    assert code == 2
    assert "must return scores of shape (N, classes), got (1, 1, 4, 4)" in error
    np.save("photos.npy", np.ones((2, 1, 5, 5)))
    code, _, error = run(source="photos.npy")
    assert code == 2
    assert "nets.py:small does not take images of shape (1, 5, 5)" in error
