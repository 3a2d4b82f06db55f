"""Progress on a terminal as a bar, elsewhere as a line now and then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from peft_jax import distributed

# Lines that a log file gets from a whole run.
LINES = 10


class TrainingProgress:
    """Step, loss, accuracy, examples/s and the time left."""

    def __init__(self, console: Console, steps: int, batch_size: int):
        self._console = console
        self._steps = steps
        self._next_line = 0
        self._bar = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, figures="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def start_at(self, step: int) -> None:
        """Where a resumed run begins; the time left is estimated from there."""
        self._bar.reset(self._task, total=self._steps, completed=step)

    def update(self, step: int, metrics: Mapping[str, float], examples_per_second: float) -> None:
        # A model that writes its answers has no accuracy while it is trained.
        accuracy = f"accuracy {metrics['accuracy']:.2f}  " if "accuracy" in metrics else ""
        figures = f"loss {metrics['loss']:.3f}  {accuracy}{examples_per_second:.0f} examples/s"
        self._bar.update(self._task, completed=step, figures=figures)
        if not self._console.is_terminal and step >= self._next_line:
            self._console.print(f"step {step}/{self._steps}  {figures}")
            self._next_line = step + max(1, self._steps // LINES)


@contextlib.contextmanager
def step_bar(
    console: Console, description: str, total: int | None, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` items (None: nobody knows); yields the function that advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = quiet or not console.is_terminal or not distributed.is_main()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden) as bar:
        task = bar.add_task(description, total=total)
        yield lambda number: bar.advance(task, number)
