"""Pipelines of diffusers that lie in folders."""

import json
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hadamard.cli.files import existing, guarded
from hadamard.progress import quiet

__all__ = ["load_pipeline"]


def load_pipeline(source: Path, progress: bool, **own: Any) -> Any:
    """Load the pipeline of a folder, and only of that folder.

    Parameters
    ----------
    source
        As ``save_pretrained`` wrote it; the pipeline has a UNet.
    progress
        Show diffusers' progress bars meanwhile.
    own
        Classes of pipelines that are not diffusers', by name.
    """
    if not source.is_dir():
        existing(source)
        raise ValueError(f"{source}: must be a folder that a pipeline's save_pretrained wrote")
    index = existing(source / "model_index.json")
    try:
        parts = json.loads(index.read_text())
    except ValueError as error:
        raise ValueError(f"{index}: cannot be read, it may be damaged or truncated ({error})") from error
    texts = [name for name, part in parts.items() if isinstance(part, list) and part[0] == "transformers"]
    if find_spec("diffusers") is None:
        raise ImportError("this needs diffusers: pip install 'hadamard[diffusion]'")
    if texts and find_spec("transformers") is None:
        raise ImportError(f"{source}: its {', '.join(texts)} need transformers: pip install 'hadamard[transformers]'")
    if "unet" not in parts:
        raise ValueError(f"{source}: must hold a pipeline with a unet, got {parts.get('_class_name', 'another one')}")
    from hadamard.claims import torchvision_shim

    torchvision_shim.install()
    from diffusers import DiffusionPipeline

    kind = own.get(parts.get("_class_name"), DiffusionPipeline)
    options = {"local_files_only": True, "low_cpu_mem_usage": find_spec("accelerate") is not None}
    with nullcontext() if progress else quiet():
        return guarded(source, lambda: kind.from_pretrained(source, **options))
