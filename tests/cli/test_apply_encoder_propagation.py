"""``hadamard apply encoder_propagation`` on folders that diffusers saved, and on folders that are not."""

import csv
import json
import shutil

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from hadamard.cli import pipelines
from hadamard.cli.files import read_image
from tests.cli.test_cli import command
from tests.diffusion.pipelines import text_pipeline

FILES = [f"{name}_{i}.png" for name in ("encoder_propagation", "fewer_steps", "plain") for i in (0, 1)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a pipeline in colours, of a grey one whose UNet takes a class, and of one that reads text."""
    folders = {}
    for name, options in {"plain": {}, "classes": {"num_class_embeds": 3, "in_channels": 1, "out_channels": 1}}.items():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **options,
        )  # fmt: skip
        folders[name] = tmp_path_factory.mktemp("pipelines") / name
        DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folders[name])
    folders["text"] = tmp_path_factory.mktemp("pipelines") / "text"
    text_pipeline(tmp_path_factory.mktemp("tokenizer")).save_pretrained(folders["text"])
    return folders


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, saved):
    for name, folder in saved.items():
        shutil.copytree(folder, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return lambda *words: command(monkeypatch, capsys, "apply", "encoder_propagation", *words)


def rows(folder):
    with (folder / "timing.csv").open() as file:
        return {row["sampler"]: row for row in csv.DictReader(file)}


def test_pictures_and_a_timing_table(run, tmp_path):
    code, said, shown = run("plain", "-o", "out", "--count", "2", "--steps", "10", "--key-steps", "5")
    assert code == 0, shown
    assert "wrote out: 6 pictures and timing.csv" in said
    assert "encoder propagation: 100%" in shown  # the bar of diffusers
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*FILES, "timing.csv"]
    table = rows(tmp_path / "out")
    assert [row["steps"] for row in table.values()][:2] == ["10", "10"]
    assert [row["encoder runs"] for row in table.values()][:2] == ["10", "2"]
    assert float(table["plain"]["rms difference"]) == 0 < float(table["encoder propagation"]["rms difference"])
    assert read_image("out/plain_0.png").shape == (8, 8, 3)


def test_every_step_a_key_step_gives_the_plain_pictures(run, tmp_path):
    assert run("plain", "-o", "out", "--steps", "4", "--key-steps", "1", "--no-progress")[0] == 0
    assert float(rows(tmp_path / "out")["encoder propagation"]["rms difference"]) == 0


def test_the_class_and_the_seed_decide(run):
    words = ("--steps", "4", "--key-steps", "0,1", "--parallel", "--no-progress")
    for name, more in {"a": ("0", "0"), "b": ("0", "0"), "c": ("1", "0"), "d": ("0", "1")}.items():
        code, _, said = run("classes", "-o", name, "--class", more[0], "--seed", more[1], *words)
        assert (code, said) == (0, "")
    one, same, other, noise = (read_image(f"{name}/plain_0.png") for name in "abcd")
    assert one.shape == (8, 8)
    assert (one == same).all()
    assert (one != other).any()
    assert (one != noise).any()


def test_a_text_and_its_guidance(run, tmp_path):
    for text in ("a cat", "a dog"):
        words = ("--prompt", text, "--steps", "4", "--key-steps", "2", "--no-progress")
        assert run("text", "-o", text[2:], *words)[0] == 0
    assert float(rows(tmp_path / "cat")["encoder propagation"]["rms difference"]) > 0
    assert (read_image("cat/plain_0.png") != read_image("dog/plain_0.png")).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such file"),
        (["plain/model_index.json"], "must be a folder that a pipeline's save_pretrained wrote"),
        (["plain/unet"], "model_index.json: no such file"),
        (["classes"], "classes: its UNet takes one, give --class"),
        (["classes", "--class", "3"], "--class must be >= 0 and <= 2, got 3"),
        (["plain", "--class", "1"], "plain: its UNet takes no class, got --class"),
        (["plain", "--prompt", "a cat"], "plain: its pipeline takes no text, got --prompt"),
        (["text"], "text: its pipeline takes a text, give --prompt"),
        (["plain", "--key-steps", "best"], "key_steps must be one of '50ls', '50if', got 'best'"),
        (["plain", "--key-steps", "1,2"], "key_steps must hold step 0, got [1, 2]"),
        (["plain", "--steps", "0"], "--steps must be >= 1, got 0"),
        (["plain", "--count", "0"], "--count must be >= 1, got 0"),
    ],
)
def test_bad_words(run, tmp_path, words, message):
    code, _, error = run(*words, "-o", "out", "--no-progress")
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_bad_folders(run, tmp_path, monkeypatch):
    index = tmp_path / "plain" / "model_index.json"
    whole = index.read_text()
    index.write_text(whole[:-20])
    assert "model_index.json: cannot be read" in run("plain", "-o", "out")[2]
    with monkeypatch.context() as without:
        without.setattr(pipelines, "find_spec", lambda name: None if name == "transformers" else True)
        needs = "text: its text_encoder, tokenizer need transformers: pip install 'hadamard[transformers]'"
        assert needs in run("text", "--prompt", "a cat", "-o", "out")[2]
    index.write_text(json.dumps({"_class_name": "DiTPipeline"}))
    assert "plain: must hold a pipeline with a unet, got DiTPipeline" in run("plain", "-o", "out")[2]
    index.write_text(whole)
    (tmp_path / "plain" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    code, _, error = run("plain", "-o", "out", "--no-progress")
    assert code == 2
    assert "plain: cannot be read, it may be damaged or truncated" in error
    assert "there is no folder" in run("classes", "--class", "0", "-o", "no/where")[2]
    assert not (tmp_path / "out").exists()
