"""What every way of preparing a task can be asked for: a draw, limits, a progress bar."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

from peft_jax.errors import InputError
from peft_jax.tasks.draws import Draw, DrawOptions
from peft_jax.tasks.prompted import PromptedTask, find_rows, find_task
from peft_jax.tasks.row_report import OnBadRow


class TaskOptions(DrawOptions, total=False):
    """Where a task's rows and templates lie, and which of the rows are wanted.

    directory, templates, on_bad_row, own: as for `peft_jax.tasks.prompted.find_task`. The rest:
    as for `peft_jax.tasks.draws.Draw`.
    """

    directory: str | Path | None
    templates: str | Path | None
    on_bad_row: OnBadRow
    own: Mapping[str, Any] | None


def open_task(
    task: str, split: str, *, prompts: bool = True, **options: Unpack[TaskOptions]
) -> PromptedTask:
    """The task of a name, with what is drawn of a split.

    Args:
        prompts: whether its templates are wanted; else only its rows.

    Raises InputError for everything that is wrong with the task, its templates or the draw.
    """
    names = ("directory", "templates", "on_bad_row", "own")
    source: Any = {name: options[name] for name in names if name in options}
    draw: Any = {name: value for name, value in options.items() if name not in names}
    if not prompts:
        source.pop("templates", None)
    found = find_task(task, **source) if prompts else find_rows(task, **source)
    return found.drawn(split, **draw)


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
