"""Modules of a network that hand on, at some calls, what they computed at an earlier one."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["Inheritance", "Patches", "repeated"]


class Patches:
    """Methods that are exchanged, and put back as they were found."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def patch(self, owner: Any, forward: Callable[..., Any], name: str = "forward") -> None:
        """Exchange one method of an object, until :meth:`restore`."""
        self._before.append((owner, name, owner.__dict__.get(name)))
        setattr(owner, name, wraps(getattr(owner, name))(forward))

    @property
    def active(self) -> bool:
        """Whether anything is exchanged."""
        return bool(self._before)

    def restore(self) -> None:
        """Put every method back as it was found."""
        for owner, name, before in reversed(self._before):
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        self._before.clear()


class Inheritance:
    """Modules that give what they stored instead of running, unless ``fresh``.

    The network's own forward pass stays as it is and calls its modules as ever: what a newer version of it does is
    kept. While ``copies`` is above 1, a fresh run takes the first of every ``copies`` rows and repeats what comes out.

    Parameters
    ----------
    increments
        Store what a module adds to the path around it, and add it to what is there now; where there is no such path
        inside a module, that is its output.
    private
        Store copies and give copies, so that whoever changes a feature in place changes the one of this call only.
    """

    def __init__(self, *, increments: bool = False, private: bool = False) -> None:
        self.fresh, self.copies, self.rows = True, 1, 1
        self.increments, self.private = increments, private
        self._stored: dict[int, Any] = {}

    def inherit(self, modules: Sequence[nn.Module], patches: Patches) -> None:
        """Let these modules inherit until the patches are restored."""
        self.forget()
        for module in modules:
            patches.patch(module, self._inheriting(module, module.forward))

    def forget(self) -> None:
        """Drop what is stored."""
        self._stored.clear()

    def _inheriting(self, module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        key = id(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            around = _path_around(module) if self.increments else None
            if self.fresh:
                if self.copies > 1:
                    args, kwargs = tree_map(self._first_rows, (args, kwargs))
                if around is None:
                    out = kept = run(*args, **kwargs)
                else:
                    out, kept = around.run(run, args, kwargs)
                self._stored[key] = tree_map(self._own, kept)
                return repeated(out, self.copies, self.rows) if self.copies > 1 else out
            stored = self._stored[key]
            if around is not None:
                return around.renewed(stored, args, kwargs)
            if self.copies > 1:
                return repeated(stored, self.copies, self.rows)
            return tree_map(self._own, stored) if self.private else stored

        return forward

    def _own(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.detach().clone() if self.private else x.detach()

    def _first_rows(self, x: Any) -> Any:
        of_the_batch = isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == self.rows * self.copies
        return x[:: self.copies] if of_the_batch else x


class _Around:
    """A module whose output is its input plus an increment, over a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def run(self, run: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Run it; give its output, and that output with the increment in the place of its first tensor."""
        x, out = _input(args, kwargs), run(*args, **kwargs)
        return out, _exchanged(out, _tensor(out) - x / self.factor)

    def renewed(self, stored: Any, args: Any, kwargs: Any) -> Any:
        """The output with the stored increment and the present input."""
        return _exchanged(stored, _tensor(stored) + _input(args, kwargs) / self.factor)


class _AroundResnet(_Around):
    """A residual block: what its last convolution gives is added to its input, which a 1 x 1 convolution may change."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.output_scale_factor)
        self.module = module

    def run(self, run: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Run it, and take the increment where it is made."""
        seen: list[Tensor] = []
        hook = self.module.conv2.register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            out = run(*args, **kwargs)
        finally:
            hook.remove()
        return out, seen[0]

    def renewed(self, stored: Any, args: Any, kwargs: Any) -> Any:
        """The output with the stored increment and the present input."""
        x, module = _input(args, kwargs), self.module
        for change in (module.upsample, module.downsample, module.conv_shortcut):
            x = x if change is None else change(x)
        return (x + stored) / self.factor


def _path_around(module: Any) -> _Around | None:
    """How the input of a module of diffusers reaches its output; ``None`` where the sum is taken outside."""
    if hasattr(module, "conv_shortcut") and hasattr(module, "conv2"):
        return _AroundResnet(module)
    if getattr(module, "residual_connection", False):
        return _Around(module.rescale_output_factor)
    if hasattr(module, "transformer_blocks") or hasattr(module, "attn1"):
        return _Around()
    return None


def _input(args: Any, kwargs: Any) -> Tensor:
    return args[0] if args else kwargs.get("hidden_states", kwargs.get("input_tensor"))


def _tensor(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def _exchanged(out: Any, tensor: Tensor) -> Any:
    """An output with another first tensor."""
    if isinstance(out, Tensor):
        return tensor
    return (tensor, *out[1:]) if isinstance(out, tuple) else type(out)(sample=tensor)


def repeated(tree: Any, copies: int, rows: int) -> Any:
    """Repeat each row of every tensor that has so many rows: row b becomes rows b * copies to (b + 1) * copies - 1."""

    def repeat(x: Any) -> Any:
        return x.repeat_interleave(copies, 0) if isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == rows else x

    return tree_map(repeat, tree)
