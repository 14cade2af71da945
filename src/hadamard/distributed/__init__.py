"""Training on many processes: torch.distributed for the trainers, Ray for what streams into them.

The names are imported when they are used: a process that only runs a solver or holds a buffer need not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hadamard.distributed.buffers import FIFO, FIRO, Buffer, Reservoir
    from hadamard.distributed.clients import Program, write_step
    from hadamard.distributed.coordinator import Progress
    from hadamard.distributed.ledger import Ledger, read_ledger
    from hadamard.distributed.online_training import OnlineRun, OnlineTrainer

__all__ = [
    "FIFO",
    "FIRO",
    "Buffer",
    "Ledger",
    "OnlineRun",
    "OnlineTrainer",
    "Program",
    "Progress",
    "Reservoir",
    "read_ledger",
    "write_step",
]

_MODULES = {
    "buffers": ("FIFO", "FIRO", "Buffer", "Reservoir"),
    "clients": ("Program", "write_step"),
    "coordinator": ("Progress",),
    "ledger": ("Ledger", "read_ledger"),
    "online_training": ("OnlineRun", "OnlineTrainer"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
