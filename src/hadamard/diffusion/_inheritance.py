"""Modules of a network that hand on, at some calls, what they computed at an earlier one."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["Clock", "Inheritance", "repeated", "timestep_of"]


class Clock:
    """Counts the calls of a network within one generation; a timestep that does not fall begins the next one."""

    def __init__(self) -> None:
        self.call, self.timestep = -1, float("-inf")

    def peek(self, timestep: Tensor | float) -> int:
        """Say which number the call at this timestep will have."""
        return 0 if self.call < 0 or timestep_of(timestep) >= self.timestep else self.call + 1

    def tick(self, timestep: Tensor | float) -> int:
        """Count a call and return its number."""
        self.call, self.timestep = self.peek(timestep), timestep_of(timestep)
        return self.call


class Inheritance:
    """Exchanges the ``forward`` of modules, so that they give what they stored instead of running.

    The network's own forward pass stays as it is and calls its modules as ever: what a newer version of it does is
    kept. While ``copies`` is above 1, a fresh run takes the first of every ``copies`` rows and repeats what comes out.
    """

    def __init__(self) -> None:
        self.fresh, self.copies, self.rows = True, 1, 1
        self._stored: dict[int, Any] = {}
        self._patches: list[tuple[Any, str, Any]] = []

    def inherit(self, modules: Sequence[nn.Module]) -> None:
        """Let these modules inherit."""
        for module in modules:
            self.patch(module, self._inheriting(module.forward))

    def patch(self, owner: Any, forward: Callable[..., Any], name: str = "forward") -> None:
        """Exchange one method of an object, until :meth:`restore`."""
        self._patches.append((owner, name, owner.__dict__.get(name)))
        setattr(owner, name, wraps(getattr(owner, name))(forward))

    @property
    def active(self) -> bool:
        """Whether anything is exchanged."""
        return bool(self._patches)

    def restore(self) -> None:
        """Put every method back as it was found, and forget what is stored."""
        for owner, name, before in reversed(self._patches):
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        self._patches.clear()
        self._stored.clear()

    def _inheriting(self, run: Callable[..., Any]) -> Callable[..., Any]:
        key = len(self._patches)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.fresh:
                if self.copies > 1:
                    args, kwargs = tree_map(self._first_rows, (args, kwargs))
                self._stored[key] = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, run(*args, **kwargs))
            stored = self._stored[key]
            return repeated(stored, self.copies, self.rows) if self.copies > 1 else stored

        return forward

    def _first_rows(self, x: Any) -> Any:
        of_the_batch = isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == self.rows * self.copies
        return x[:: self.copies] if of_the_batch else x


def repeated(tree: Any, copies: int, rows: int) -> Any:
    """Repeat each row of every tensor that has so many rows: row b becomes rows b * copies to (b + 1) * copies - 1."""

    def repeat(x: Any) -> Any:
        return x.repeat_interleave(copies, 0) if isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == rows else x

    return tree_map(repeat, tree)


def timestep_of(timestep: Tensor | float) -> float:
    """Read the timestep, the first one where each row has its own."""
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
