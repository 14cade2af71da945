"""A bar that shows how far an iterative method has come."""

from collections.abc import Callable
from typing import Any

__all__ = ["progress_bar"]


class progress_bar:
    """A bar that is advanced with (iteration, objective), or nothing at all."""

    def __init__(self, title: str, total: int, show: bool) -> None:
        self.title, self.total, self.show = title, total, show

    def __enter__(self) -> Callable[[int, float], None]:
        if not self.show:
            return lambda iteration, objective: None
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[objective]}"))
        self.bar = Progress(*columns, TimeElapsedColumn())
        self.bar.start()
        task = self.bar.add_task(self.title, total=self.total, objective="")
        return lambda iteration, objective: self.bar.update(
            task, completed=iteration, objective=f"iteration {iteration}, objective {objective:.5g}"
        )

    def __exit__(self, *_: Any) -> None:
        if self.show:
            self.bar.stop()
