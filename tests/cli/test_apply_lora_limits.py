"""``hadamard apply lora_limits`` on folders that transformers and PEFT saved, and on folders that are not."""

import csv
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.cli.test_cli import command

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ."


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of two layers that reads characters, and an adapter of it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {c: i for i, c in enumerate(CHARACTERS)} | {"?": len(CHARACTERS)}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(vocabulary), intermediate_size=16))
    model.save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=characters, unk_token="?").save_pretrained(folder / "model")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, saved):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 4)
    monkeypatch.chdir(tmp_path)
    return lambda *words: command(monkeypatch, capsys, "apply", "lora_limits", *words)


def heads(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_one_line_a_head_and_a_table(run):
    code, said, error = run("model", "--text", "text.txt", "-o", "heads.csv", "--length", "100")
    assert (code, error) == (0, "")
    assert "wrote heads.csv: 8 heads on 100 tokens" in said
    assert "heads are in the efficient regime" in said
    rows = heads("heads.csv")
    assert len(rows) == 8
    assert rows[0]["layer"] == "model.layers.0.self_attn"
    assert {row["length"] for row in rows} == {"100"}
    assert {float(row["adapter"]) for row in rows} == {0.0}


def test_an_adapter_is_seen(run):
    assert run("model", "--adapter", "adapter", "--text", "text.txt", "-o", "heads.csv")[0] == 0
    assert all(float(row["adapter"]) > 0 for row in heads("heads.csv"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--text", "text.txt"], "nowhere: no such folder"),
        (["adapter", "--text", "text.txt"], "config.json: no such file"),
        (["model", "--text", "none.txt"], "none.txt: no such file"),
        (["model", "--text", "text.txt", "--adapter", "model"], "adapter_config.json: no such file"),
        (["model", "--text", "text.txt", "--length", "1"], "--length must be >= 2, got 1"),
        (["model", "--text", "text.txt", "--eps", "0"], "--eps must be > 0, got 0"),
        (["model", "--text", "model/model.safetensors"], "is not a text file in UTF-8"),
    ],
)
def test_bad_words(run, tmp_path, words, message):
    code, _, error = run(*words, "-o", "heads.csv")
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "heads.csv").exists()


def test_damaged_and_pickled_files(run, tmp_path):
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert "model: cannot be read, it may be damaged" in run("model", "--text", "text.txt", "-o", "x.csv")[2]
    weights.rename(weights.with_name("pytorch_model.bin"))
    said = run("model", "--text", "text.txt", "-o", "x.csv")[2]
    assert "model: has no model.safetensors; pytorch_model.bin is pickled and not read" in said
    (tmp_path / "model" / "config.json").write_text("{")
    assert "config.json: cannot be read, it may be damaged" in run("model", "--text", "text.txt", "-o", "x.csv")[2]
    (tmp_path / "model" / "config.json").write_text("[]")
    assert "config.json: must hold an object, got list" in run("model", "--text", "text.txt", "-o", "x.csv")[2]
    (tmp_path / "empty.txt").write_text("")
