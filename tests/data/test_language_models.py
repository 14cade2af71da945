"""The trained transformers that the claims run on."""

import sys

import pytest
import torch

from hadamard import data
from hadamard.data import minilm, smollm2


@pytest.mark.skipif(not data.available("minilm"), reason="MiniLM is not in the cache")
def test_the_encoder_puts_sentences_of_one_meaning_close():
    model, tokenizer = minilm()
    assert not model.training
    sentences = ["A man plays the guitar.", "Someone is playing an instrument.", "The stock market fell today."]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    weights = batch["attention_mask"][..., None]
    embedded = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
    near, far = embedded[0] @ embedded[1], embedded[0] @ embedded[2]
    assert near > 0.5
    assert far < 0.2


@pytest.mark.skipif(not data.available("smollm2"), reason="SmolLM2 is not in the cache")
def test_the_language_model_speaks_english():
    model, tokenizer = smollm2()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(134.5e6, rel=0.01)
    text = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**text).logits[0, -1].argmax()).strip() == "Paris"


def test_without_transformers_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'hadamard\[transformers\]'"):
        minilm()
