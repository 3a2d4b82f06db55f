"""What every way of preparing a task can be asked for: a draw, limits, a progress bar."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from peft_jax.errors import InputError
from peft_jax.tasks.draws import Draw
from peft_jax.tasks.prompted import PromptedTask


def check_limits(**limits: int) -> None:
    """Raises InputError for a length below 2 tokens, or ``multiple`` below 1."""
    for name, value in limits.items():
        least = 1 if name == "multiple" else 2
        if value < least:
            raise InputError(f"{name} {value}: at least {least} is needed")


def describe(task: PromptedTask, **more) -> dict[str, Any]:
    """The details that prepared examples keep of a draw and of the task."""
    draw, definition = dataclasses.asdict(task.draw or Draw()), task.definition
    style = draw.pop("few_shot_style") if draw["shots"] is not None else None
    return {
        "shots": draw["shots"],
        "few_shot_seed": draw["seed"],
        "few_shot_style": style,
        "metrics": list(definition.metrics if definition else ("accuracy",)),
        "labels": list(task.dataset.labels),
        "decoding": dict(definition.decoding if definition else {}),
        "notes": task.report.lines(),
        **{key: draw[key] for key in ("folds", "fold", "held_out") if draw["folds"] is not None},
    } | more


@contextlib.contextmanager
def progress_bar(shown: bool) -> Iterator[Callable]:
    """A progress bar, or none: gives ``track(items, description, total)``."""
    from rich.progress import Progress

    with Progress(disable=not shown, transient=True) as bar:
        yield lambda items, description, total=None: bar.track(
            items, total=len(items) if total is None else total, description=description
        )
