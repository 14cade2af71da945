"""One training loop, and the form in which trained weights are kept.

The loop runs on pytorch-ignite (engine, progress bar, atomic files to resume from); weights are safetensors files whose
metadata say how they came about.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hadamard.validation import check_range

__all__ = ["fit", "load_checkpoint", "provenance", "save_checkpoint"]

Module = TypeVar("Module", bound=nn.Module)
logging.getLogger(__name__).addHandler(logging.NullHandler())  # the engine's messages, for whoever listens


def fit(
    module: nn.Module,
    loss: Callable[[nn.Module, Any, int], Tensor],
    draw: Callable[[torch.Generator], Any],
    *,
    steps: int,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    after_step: Callable[[], Any] | None = None,
    generator: torch.Generator | None = None,
    state: str | Path | None = None,
    save_every: int = 200,
    progress: str = "",
) -> Float[Tensor, " steps"]:
    """Train a module, from where an interrupted run left off if there is one.

    Parameters
    ----------
    module
        What is trained, in place; put into training mode meanwhile.
    loss
        ``loss(module, batch, step)`` gives the number to be lowered; steps count from 0.
    draw
        ``draw(generator)`` gives the next batch. All randomness comes from ``generator``, whose state is saved, so that
        an interrupted run ends with the same bits.
    steps
        Steps of the optimizer.
    optimizer, scheduler
        Of the module's parameters; the scheduler, if there is one, moves on after each step.
    after_step
        Called after each step: a projection, for example.
    generator
        ``None``: a fixed seed.
    state
        File to save to, and to resume from if it exists; ``None``: nothing is saved. It is written whole or not at all.
    save_every
        Steps between two saves; the end is always saved.
    progress
        Title of a progress bar; empty: none.

    Returns
    -------
    Tensor
        The loss at each step, those of the interrupted run included.

    Raises
    ------
    ImportError
        If pytorch-ignite is missing.
    FloatingPointError
        If a loss is not finite.
    ValueError
        If ``steps`` or ``save_every`` is not positive, or ``state`` cannot be read or is that of another training.

    Examples
    --------
    >>> module = nn.Linear(1, 1)
    >>> def draw(generator):
    ...     x = torch.rand(8, 1, generator=generator)
    ...     return x, 3 * x
    >>> losses = fit(
    ...     module,
    ...     lambda module, batch, step: (module(batch[0]) - batch[1]).square().mean(),
    ...     draw,
    ...     steps=200,
    ...     optimizer=torch.optim.Adam(module.parameters(), lr=0.1),
    ... )
    >>> bool(losses[-1] < 1e-2)
    True
    """
    try:
        from ignite.engine import Engine, Events
        from ignite.handlers import Checkpoint, DiskSaver
    except ImportError as error:
        raise ImportError("training needs pytorch-ignite: pip install 'hadamard[training]'") from error

    check_range(steps, "steps", 1, integer=True)
    check_range(save_every, "save_every", 1, integer=True)
    generator = generator or torch.Generator().manual_seed(0)
    log = _Log(steps, generator)

    def step(engine: Engine, _: Any) -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss(module, draw(generator), engine.state.iteration - 1)
        number = float(value.detach())
        if number != number or number in (float("inf"), float("-inf")):
            raise FloatingPointError(f"the loss is {number} at step {engine.state.iteration - 1}")
        value.backward()
        optimizer.step()
        if after_step is not None:
            after_step()
        if scheduler is not None:
            scheduler.step()
        log.losses[engine.state.iteration - 1] = number
        return number

    trainer = Engine(step)
    trainer.logger = logging.getLogger(__name__)
    if state is not None:
        state = Path(state)
        saved = {"trainer": trainer, "module": module, "optimizer": optimizer, "log": log}
        saved |= {"scheduler": scheduler} if scheduler is not None else {}
        if state.exists():
            _resume(state, saved, Checkpoint.load_objects)
            if trainer.state.iteration >= steps:
                return log.losses
        state.parent.mkdir(parents=True, exist_ok=True)
        saver = DiskSaver(str(state.parent), atomic=True, require_empty=False)
        keep = Checkpoint(saved, saver, filename_pattern=state.name, n_saved=1)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=save_every) | Events.COMPLETED, keep)
    if progress:
        _show(trainer, progress, Events.ITERATION_COMPLETED(every=max(1, steps // 100)))
    was = module.training
    module.train()
    try:
        trainer.run(max_epochs=1, epoch_length=steps)
    finally:
        module.train(was)
    return log.losses


def save_checkpoint(path: str | Path, module: nn.Module, provenance: Mapping[str, str]) -> Path:
    """Write a module's weights with the account of how they came about, whole or not at all.

    Parameters
    ----------
    path
        A ``.safetensors`` file; its folder is made.
    module
        Its ``state_dict`` is saved.
    provenance
        Text by name: at least ``command``, ``data`` and ``seed``. ``date`` (today), ``torch`` and ``sha256`` (of the
        weights) are added.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    ValueError
        If the ending is another one, or the account lacks something.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     account = {"command": "train", "data": "none", "seed": "0"}
    ...     path = save_checkpoint(f"{folder}/line.safetensors", nn.Linear(1, 1), account)
    ...     module = load_checkpoint(path, nn.Linear(1, 1))
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    lacking = [name for name in ("command", "data", "seed") if not provenance.get(name)]
    if lacking:
        raise ValueError(f"provenance must name {', '.join(lacking)}, got {', '.join(provenance) or 'nothing'}")
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    account = {"date": date.today().isoformat(), **{k: str(v) for k, v in provenance.items()}}
    account |= {"torch": torch.__version__, "sha256": _digest(weights)}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(save(weights, metadata=account))
    draft.replace(path)
    return path


def load_checkpoint(name_or_path: str | Path, module: Module) -> Module:
    """Load weights into a module, in place, and return it.

    Parameters
    ----------
    name_or_path
        The name of weights that come with hadamard, or a ``.safetensors`` file.
    module
        Of the architecture that was saved; its dtype and device stay.

    Raises
    ------
    FileNotFoundError
        If there is no such file or name.
    ValueError
        If the file is damaged, its hash is another one, or the module has other weights.
    """
    path = _path(name_or_path)
    weights, account = _read(path)
    if account.get("sha256", _digest(weights)) != _digest(weights):
        raise ValueError(f"{path}: the weights are not those that were saved (their sha256 differs)")
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if own != found:
        names = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
        first = names[0]
        raise ValueError(
            f"{path}: weights of another network than {type(module).__name__}: {first} has shape "
            f"{found.get(first, 'none')} in the file and {own.get(first, 'none')} in the module"
        )
    module.load_state_dict(weights)
    return module


def provenance(name_or_path: str | Path) -> dict[str, str]:
    """Say how weights came about: command, data, seed, date, torch version and hash.

    Parameters
    ----------
    name_or_path
        The name of weights that come with hadamard, or a ``.safetensors`` file.

    Raises
    ------
    FileNotFoundError
        If there is no such file or name.
    ValueError
        If the file is damaged.

    Examples
    --------
    >>> provenance("learned_proximal_photographs")["command"]
    'hadamard train learned_proximal --size full'
    """
    return _read(_path(name_or_path))[1]


class _Log:
    """The losses so far and the state of the generator, as ignite saves them."""

    def __init__(self, steps: int, generator: torch.Generator) -> None:
        self.losses, self.generator = torch.full((steps,), torch.nan), generator

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self.losses, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state["losses"].shape != self.losses.shape:
            raise ValueError(f"it has {len(state['losses'])} steps, not {len(self.losses)}")
        self.losses.copy_(state["losses"])
        self.generator.set_state(state["generator"])


def _resume(path: Path, saved: dict[str, Any], load: Callable[..., None]) -> None:
    try:
        load(to_load=saved, checkpoint=torch.load(path, weights_only=True))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged or belongs to another training ({reason}); remove it to begin") from error


def _show(trainer: Any, title: str, event: Any) -> None:
    from ignite.handlers import ProgressBar

    bar = ProgressBar(desc=title, persist=True)
    bar.attach(trainer, event_name=event, output_transform=lambda loss: {"loss": loss})


def _path(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        return path
    home = Path(str(files("hadamard.checkpoints")))
    shipped = home / f"{name_or_path}.safetensors"
    if not shipped.is_file():
        names = ", ".join(sorted(p.stem for p in home.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"no weights named {name_or_path}; there are: {names}")
    return shipped


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and bytes of the weights."""
    total = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
