"""A bar that shows how far an iterative method has come, and silence about others' bars."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["progress_bar", "quiet"]


class progress_bar:
    """A bar that is advanced with (iteration, figure), or nothing at all; the figure is the objective or what it says.

    Examples
    --------
    >>> with progress_bar("a walk", total=3, show=False) as advance:
    ...     advance(1, 0.5)
    """

    def __init__(self, title: str, total: int, show: bool, figure: str = "objective") -> None:
        self.title, self.total, self.show, self.figure = title, total, show, figure

    def __enter__(self) -> Callable[[int, float], None]:
        if not self.show:
            return lambda iteration, value: None
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        self.bar = Progress(*columns, TimeElapsedColumn())
        self.bar.start()
        task = self.bar.add_task(self.title, total=self.total, note="")
        return lambda iteration, value: self.bar.update(
            task, completed=iteration, note=f"iteration {iteration}, {self.figure} {value:.5g}"
        )

    def __exit__(self, *_: Any) -> None:
        if self.show:
            self.bar.stop()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars that diffusers and transformers draw when they read files; afterwards as before.

    Examples
    --------
    >>> with quiet():
    ...     pass
    """
    with ExitStack() as afterwards:
        for name in ("diffusers", "transformers"):
            if find_spec(name) is not None:
                logging = import_module(f"{name}.utils.logging")
                if logging.is_progress_bar_enabled():
                    logging.disable_progress_bar()
                    afterwards.callback(logging.enable_progress_bar)
        yield
