"""Training on many processes: torch.distributed for the trainers, Ray for what streams into them.

The names are imported when they are used: a process that only runs a solver or holds a buffer need not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hadamard.distributed.buffers import FIFO, FIRO, Buffer, Reservoir
    from hadamard.distributed.clients import Program, write_step
    from hadamard.distributed.coordinator import Progress
    from hadamard.distributed.flag_aggregator import FlagAggregate, flag_aggregate, flag_coefficients
    from hadamard.distributed.flag_ddp import FlagState, flag_hook
    from hadamard.distributed.ledger import Ledger, read_ledger
    from hadamard.distributed.online_training import OnlineRun, OnlineTrainer

__all__ = [
    "FIFO",
    "FIRO",
    "Buffer",
    "FlagAggregate",
    "FlagState",
    "Ledger",
    "OnlineRun",
    "OnlineTrainer",
    "Program",
    "Progress",
    "Reservoir",
    "flag_aggregate",
    "flag_coefficients",
    "flag_hook",
    "read_ledger",
    "write_step",
]

_MODULES = {
    "buffers": ("FIFO", "FIRO", "Buffer", "Reservoir"),
    "clients": ("Program", "write_step"),
    "coordinator": ("Progress",),
    "flag_aggregator": ("FlagAggregate", "flag_aggregate", "flag_coefficients"),
    "flag_ddp": ("FlagState", "flag_hook"),
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
