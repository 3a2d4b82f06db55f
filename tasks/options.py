"""What every way of preparing a task can be asked for: a draw, limits, a progress bar."""

import contextlib
from collections.abc import Callable, Iterator

from peft_jax.errors import InputError
from peft_jax.tasks.prompted import PromptedTask


def check_limits(**limits: int) -> None:
    """Raises InputError for a length below 2 tokens, or ``multiple`` below 1."""
    for name, value in limits.items():
        least = 1 if name == "multiple" else 2
        if value < least:
            raise InputError(f"{name} {value}: at least {least} is needed")


def describe(
    task: PromptedTask, shots: int | None, seed: int | None, style: str, **more
) -> dict[str, object]:
    """The details that prepared examples keep of a draw and of the dataset."""
    return {
        "shots": shots,
        "few_shot_seed": None if shots is None else seed,
        "few_shot_style": None if shots is None else style,
        "metrics": list(task.definition.metrics if task.definition else ("accuracy",)),
        "labels": list(task.dataset.labels),
        "decoding": dict(task.definition.decoding) if task.definition else {},
    } | more


@contextlib.contextmanager
def progress_bar(shown: bool) -> Iterator[Callable]:
    """A progress bar, or none: gives ``track(items, description, total)``."""
    from rich.progress import Progress

    with Progress(disable=not shown, transient=True) as bar:
        yield lambda items, description, total=None: bar.track(
            items, total=len(items) if total is None else total, description=description
        )
