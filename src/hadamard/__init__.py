"""hadamard: the same answer from less.

Published methods that replace an expensive computation by one in a better basis, a sparser plan, a lower rank,
a cheaper step or fewer bits. The families (``hadamard.transport``, ``hadamard.imaging``, ...) are imported when
they are first used; ``hadamard.catalog`` lists every method.
"""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

__version__ = version("hadamard")

_SUBMODULES = [
    "catalog", "certification", "claims", "compression", "data", "distributed", "imaging", "kernels", "layers",
    "learning", "operators", "optim", "proximal", "rates", "results", "solvers", "spectral", "training",
    "transforms", "transport", "validation",
]  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return import_module(f"hadamard.{name}")
    raise AttributeError(f"module 'hadamard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
