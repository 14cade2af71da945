"""Checkpoints of a run: one folder each, written by all ranks through ``torch.distributed.checkpoint``.

The ``.metadata`` that it writes last, under another name first, is what makes a checkpoint valid; a folder without it
was left by a run that died while writing.
"""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

__all__ = ["clear_broken", "latest", "load_checkpoint", "save_checkpoint"]

_KEPT = 2


def save_checkpoint(path: Path, state: dict[str, bytes]) -> None:
    """Write a checkpoint with all ranks of the group, and remove those before the last one.

    What ranks hold under the same name is written once.
    """
    import torch.distributed.checkpoint as dcp

    if not _valid(path):
        dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(path, sync_files=True, single_file_per_rank=True))
    if dist.get_rank() == 0:
        for old in _checkpoints(path.parent)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Read parts of a checkpoint."""
    import torch.distributed.checkpoint as dcp

    state: dict[str, Any] = dict.fromkeys(names, b"")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        dcp.load(state, checkpoint_id=path)
    return state


def latest(folder: Path) -> Path | None:
    """The newest valid checkpoint of a run."""
    return next(iter(reversed(_checkpoints(folder / "checkpoints"))), None)


def clear_broken(folder: Path) -> None:
    """Remove what was left of checkpoints that nobody finished."""
    for path in (folder / "checkpoints").glob("[0-9]*"):
        if not _valid(path):
            shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if _valid(path))


def _valid(path: Path) -> bool:
    return (path / ".metadata").exists()
