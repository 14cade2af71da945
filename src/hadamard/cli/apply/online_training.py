"""``hadamard apply online_training``: a YAML file that names solver, network and sizes in, a trained network out."""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from hadamard.distributed import FIFO, FIRO, OnlineTrainer, Program, Progress, Reservoir
from hadamard.distributed.cluster import require_ray
from hadamard.validation import check_option

__all__ = ["apply"]

_BUFFERS = {"fifo": FIFO, "firo": FIRO, "reservoir": Reservoir}
_SAMPLERS = ("halton", "sobol", "latin_hypercube", "uniform")
_SECTIONS = {"solver", "model", "loss", "parameters", "buffer", "training"}
_PARAMETERS = {"n", "low", "high", "sampler", "seed"}
_TRAINING = {
    "batch_size", "n_clients", "world_size", "checkpoint_every", "retries", "server_retries", "timeout", "on_failure",
    "device", "random_state", "address",
}  # fmt: skip


def apply(
    config: Annotated[
        Path,
        typer.Argument(
            help="YAML: solver (FILE.py:FUNCTION or a list: program and arguments, {0} is the first parameter), model "
            "(FILE.py:FUNCTION that makes it), parameters (n, low, high, sampler), buffer (kind, capacity, threshold), "
            "training (batch_size, n_clients, world_size, learning_rate, ...), loss (FILE.py:FUNCTION)."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for weights, ledgers, metrics, checkpoints; goes on in it.")
    ] = Path("online_training"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Train a network while solvers stream into it; run it again after an interruption and it goes on."""
    settings, here = _read(config), config.resolve().parent
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"{out}: no folder {out.parent}")
    training = _section(settings, "training", _TRAINING | {"learning_rate"})
    rate = float(training.pop("learning_rate", 1e-3))
    modules = [str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(modules)  # what the files import is found in other processes too
    solver = settings["solver"]
    trainer = OnlineTrainer(
        _function(settings["model"], "model", here)(),
        Program(solver, cwd=str(here)) if isinstance(solver, list) else _function(solver, "solver", here),
        _draw(_section(settings, "parameters", _PARAMETERS)),
        folder=out,
        optimizer=partial(torch.optim.Adam, lr=rate),
        loss=_function(settings["loss"], "loss", here) if "loss" in settings else None,
        buffer=_buffer(_section(settings, "buffer", {"kind", "capacity", "threshold", "random_state"})),
        on_progress=None,
        **training,
    )
    if quiet:
        run = trainer.fit()
    else:
        from rich.live import Live

        with Live(refresh_per_second=4) as view:
            trainer.on_progress = lambda progress: view.update(_view(progress))
            run = trainer.fit()
    from safetensors.torch import save_file

    weights = out / "model.safetensors"
    save_file({name: value.contiguous() for name, value in run.model.state_dict().items()}, weights)
    p = run.progress
    typer.echo(
        f"wrote {weights}: {p.updates} updates on {p.accepted} time steps of {p.finished} simulations, "
        f"loss {p.loss:.3g}"
    )
    for simulation, reason in run.failed.items():
        typer.echo(f"simulation {simulation} was given up: {reason}", err=True)


def _view(p: Progress) -> Any:
    """The live view."""
    from rich.table import Table

    table = Table(title=f"online training, {p.seconds:.0f} s", show_header=False)
    rows = {
        "simulations": f"{p.finished} of {p.simulations} done, {p.running} running, {p.failed} given up",
        "time steps": f"{p.accepted} accepted, {p.duplicates} came again",
        "buffers": f"{p.held} held, {p.unseen} of them new",
        "training": f"{p.updates} updates, loss {p.loss:.4g}, waiting {100 * p.idle:.0f} % of the time",
        "restarts": f"{p.client_restarts} of clients, {p.server_restarts} of the server",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        import yaml
    except ImportError as error:
        raise ImportError("YAML files need PyYAML: pip install 'hadamard[distributed]'") from error
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not a YAML file ({str(error).splitlines()[0]})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected sections {', '.join(sorted(_SECTIONS))}, got {type(settings).__name__}")
    lacking, unknown = {"solver", "model", "parameters"} - set(settings), set(settings) - _SECTIONS
    if lacking or unknown:
        words = [f"lacks {', '.join(sorted(lacking))}"] if lacking else []
        words += [f"has unknown {', '.join(sorted(map(str, unknown)))}"] if unknown else []
        raise ValueError(f"{path}: {' and '.join(words)}")
    return settings


def _section(settings: Mapping[str, Any], name: str, known: set[str]) -> dict[str, Any]:
    section = settings.get(name) or {}
    if not isinstance(section, dict):
        raise ValueError(f"{name} must be a mapping, got {section!r}")
    for key in section:
        check_option(key, f"a name in {name}", sorted(known))
    return dict(section)


def _function(where: Any, name: str, folder: Path) -> Callable[..., Any]:
    """A function by FILE.py:NAME."""
    file, _, function = str(where).partition(":")
    path = folder / file
    if not function or path.suffix != ".py":
        raise ValueError(f"{name} must be FILE.py:FUNCTION, got {where!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no file {path}")
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        require_ray().cloudpickle.register_pickle_by_value(module)  # other processes may not find the file
    if not callable(getattr(sys.modules[path.stem], function, None)):
        raise ValueError(f"{name}: {path.name} has no function {function}")
    return getattr(sys.modules[path.stem], function)


def _draw(section: dict[str, Any]) -> np.ndarray:
    from scipy.stats import qmc

    lacking = {"n", "low", "high"} - set(section)
    if lacking:
        raise ValueError(f"parameters lacks {', '.join(sorted(lacking))}")
    low, high = (np.atleast_1d(np.asarray(section[name], dtype=float)) for name in ("low", "high"))
    if low.shape != high.shape or low.ndim != 1:
        raise ValueError(f"parameters: low and high must have the same length, got {low.size} and {high.size}")
    sampler, n = check_option(section.get("sampler", "halton"), "sampler", _SAMPLERS), int(section["n"])
    random = np.random.default_rng(section.get("seed", 0))
    if sampler == "uniform":
        return random.uniform(low, high, (n, low.size))
    make = {"halton": qmc.Halton, "sobol": qmc.Sobol, "latin_hypercube": qmc.LatinHypercube}[sampler]
    return qmc.scale(make(low.size, rng=random).random(n), low, high)


def _buffer(section: dict[str, Any]) -> Any:
    kind = check_option(section.pop("kind", "reservoir"), "buffer.kind", sorted(_BUFFERS))
    capacity = section.pop("capacity", 6000)
    if kind != "fifo":
        section.setdefault("threshold", max(1, capacity // 6))
    elif "threshold" in section:
        raise ValueError("a fifo buffer has no threshold")
    return _BUFFERS[kind](capacity, **section)
