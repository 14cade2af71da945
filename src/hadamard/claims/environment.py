"""What a claim ran on: hardware and versions, as they stand in its record."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, distributions, packages_distributions, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment"]


def environment(requires: Sequence[str] = ()) -> dict[str, Any]:
    """Describe processor, memory, GPU and the versions of what was compared.

    Parameters
    ----------
    requires
        Import names of further packages whose versions matter.
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    names = ["hadamard", "torch", "numpy", "scipy", "scikit-learn"]
    names += [_distribution(name) for name in requires]
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(pages / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: found for name in dict.fromkeys(names) if (found := _version(name))},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _distribution(module: str) -> str:
    """The package that an import name comes from; all files are looked through only where no package names it."""
    try:
        return distribution(module).metadata["Name"]
    except PackageNotFoundError:
        pass
    for found in distributions():
        if module in (found.read_text("top_level.txt") or "").split():
            return found.metadata["Name"]
    return packages_distributions().get(module, [module])[0]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
