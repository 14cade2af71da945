"""A trained network named on the command line: a function that builds it, and its weights in safetensors."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from hadamard.cli.files import existing, guarded

__all__ = ["build_model", "fit_weights", "read_model", "read_weights"]


def read_model(where: str, weights: str | Path | None = None) -> nn.Module:
    """Build a network and load its weights: :func:`build_model`, :func:`read_weights`, :func:`fit_weights`.

    Parameters
    ----------
    where
        ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``.
    weights
        A ``.safetensors`` file; ``None``: as the function makes them.

    Returns
    -------
    torch.nn.Module
        In evaluation mode.

    Examples
    --------
    >>> read_model("torch.nn:Identity")
    Identity()
    """
    network = build_model(where)
    if weights is not None:
        fit_weights(network, read_weights(weights), weights, where)
    return network.eval()


def build_model(where: str) -> nn.Module:
    """Call the function that ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION`` names; both run the program in that file.

    A module is looked for in the current folder, too, as ``python -m`` does.

    Raises
    ------
    ValueError
        If there is no such module or function, it fails, or it returns no module.
    FileNotFoundError
        If there is no such file.
    """
    build = _function(where)
    try:
        network = build()
    except Exception as error:
        raise ValueError(f"--model {where}: the function failed ({_line(error)})") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"--model {where} must return a torch.nn.Module, got {type(network).__name__}")
    return network


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a ``state_dict`` from a ``.safetensors`` file; nothing else is read, as a pickle can run any program."""
    from safetensors.torch import load_file

    path = existing(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path}: weights must be a .safetensors file (safetensors.torch.save_file)")
    return guarded(path, lambda: load_file(path))


def fit_weights(network: nn.Module, weights: Mapping[str, Any], source: str | Path, where: str) -> None:
    """Give a network these weights, or say in one line that they are not its own."""
    try:
        network.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{source}: does not fit the network of {where} ({_line(error)})") from error


def _function(where: str) -> Callable[[], Any]:
    name, _, function = where.rpartition(":")
    if not name or not function:
        raise ValueError(f"--model must be MODULE:FUNCTION or FILE.py:FUNCTION, got {where!r}")
    if name.endswith(".py"):
        existing(name)
    try:
        module = _from_file(name) if name.endswith(".py") else _from_path(name)
    except Exception as error:
        raise ValueError(f"--model {where}: cannot import {name} ({_line(error)})") from error
    if not callable(getattr(module, function, None)):
        raise ValueError(f"--model {where}: {name} has no function {function}")
    return getattr(module, function)


def _from_file(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_path(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove("")


def _line(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())[:200]
