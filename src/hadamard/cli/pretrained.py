"""Folders of models that transformers and PEFT saved: read from this disk only, and never from a pickle."""

import json
from pathlib import Path
from typing import Any

from hadamard.cli.files import existing, guarded
from hadamard.progress import quiet

__all__ = ["read_adapter", "read_model"]


def read_model(folder: Path) -> tuple[Any, Any]:
    """Read a model of transformers and its tokenizer, as ``save_pretrained`` wrote them.

    Parameters
    ----------
    folder
        With ``config.json``, safetensors and the tokenizer's files. What the configuration names is built: with a head
        for language, or the bare model.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or it lacks its configuration or its weights.
    ImportError
        If transformers is not installed.
    ValueError
        If a file is damaged, or the weights are pickled.
    """
    config = _json(folder, "config.json")
    _weights(folder, "model")
    transformers = _imported("transformers")
    names = config.get("architectures") or [""]
    kind = transformers.AutoModelForCausalLM if "CausalLM" in names[0] else transformers.AutoModel
    options = {"local_files_only": True, "trust_remote_code": False}
    with quiet():
        model = guarded(folder, lambda: kind.from_pretrained(folder, use_safetensors=True, **options))
        return model.eval(), guarded(folder, lambda: transformers.AutoTokenizer.from_pretrained(folder, **options))


def read_adapter(model: Any, folder: Path) -> Any:
    """Put an adapter that PEFT saved onto its model.

    Raises
    ------
    FileNotFoundError, ImportError, ValueError
        As :func:`read_model`; also if the adapter does not fit the model.
    """
    _json(folder, "adapter_config.json")
    _weights(folder, "adapter_model")
    peft = _imported("peft")
    with quiet():
        return guarded(folder, lambda: peft.PeftModel.from_pretrained(model, folder, local_files_only=True)).eval()


def _json(folder: Path, name: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    path = existing(folder / name)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read, it may be damaged or truncated ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold an object, got {type(found).__name__}")
    return found


def _weights(folder: Path, name: str) -> None:
    if not any(folder.glob(f"{name}*.safetensors")):
        pickled = [path.name for path in folder.glob("*.bin")]
        raise FileNotFoundError(
            f"{folder}: has no {name}.safetensors" + (f"; {pickled[0]} is pickled and not read" if pickled else "")
        )


def _imported(name: str) -> Any:
    from hadamard.claims import torchvision_shim

    torchvision_shim.install()
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"this needs {name}: pip install 'hadamard[transformers]'") from error
