"""Lets torchvision be imported beside a build of torch that its compiled operators do not fit.

Importing torchvision registers shape functions for two of its operators and fails where its binary did not load.
Peers that only import torchvision (timm, deepinv) need the two names, not what stands behind them.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

__all__ = ["install"]

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []


def install() -> None:
    """Define the operators that are missing; call it before the first import of torchvision.

    It belongs into a process of its own: the names stay defined until the process ends, and calling one of them fails.
    Where torchvision's own operators are there, nothing is done.

    Examples
    --------
    >>> install()
    >>> install()
    """
    if _libraries or _loads():
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _SIGNATURE)
    _libraries.append(library)


def _loads() -> bool:
    """Whether torchvision is there with operators that fit this torch."""
    spec = find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(folder).glob("_C*"):
            try:
                torch.ops.load_library(binary)
            except OSError:
                return False
            return True
    return False
