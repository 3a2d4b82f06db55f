"""What t5 makes of made-up rows (golden/make_t5_formats.py), and what our tasks make of them."""

import functools
import json
from pathlib import Path

from peft_jax.tasks import glue, reading, superglue
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.prompts import Rendered

DEFINITIONS = {task.name: task for module in (superglue, glue, reading) for task in module.TASKS}


@functools.cache
def golden() -> dict:
    file = Path(__file__).parent / "golden" / "t5_formats.json"
    return json.loads(file.read_text(encoding="utf-8"))


def cases(*prefixes: str) -> list[tuple[str, dict, list]]:
    """(task, row, [input, target] of each example) of the tasks whose names begin so.

    The same rows without the task's name are those of ``taskless_<task>``.
    """
    named = [(case["task"], case["row"], case["examples"]) for case in golden()["cases"]]
    bare = [
        (f"taskless_{case['task']}", case["row"], case["taskless"])
        for case in golden()["cases"]
        if "taskless" in case
    ]
    return [case for case in named + bare if case[0].startswith(prefixes)]


def made_by(task: str) -> list[Rendered]:
    """All examples that a task makes of t5's rows."""
    named = [(name, row) for name, row, _ in cases(task) if _our_name(name) == task]
    return [made for name, row in named for made in render(name, row)]


def rows_of(task: TaskDefinition, row: dict) -> list[dict]:
    """The rows that a source's row holds, checked as far as its label allows."""
    rows = [row] if task.dataset.expand is None else task.dataset.expand(row)
    hidden = row.get("label") == -1 and task.dataset.label_field is not None
    return rows if hidden else [task.dataset.normalise(one, 0, "here") for one in rows]


def render(name: str, row: dict) -> list[Rendered]:
    """The examples that a task makes of a source's row.

    t5 has a task of WSC for training and one for evaluation, ours are the splits of one.
    """
    task = DEFINITIONS[_our_name(name)]
    if name.endswith("_simple_train") and not task.learns_from(row):
        return []
    (form,) = task.formats
    return [made for one in rows_of(task, row) for made in form.render_all(one)]


def _our_name(task: str) -> str:
    return task.partition("_simple_")[0]
