"""All tasks and mixtures by name: one table, gathered from the modules that define them.

A module of `tasks/` that defines tasks exports ``TASKS`` (and ``MIXTURES``), and ``resolve(name,
directory)`` where names are made on demand, as those of promptsource's templates. Nothing here
reads data: `peft_jax.tasks.prompted.find_task` does, for one task.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tasks.datasets import ALIASES, DATASETS, Dataset
from peft_jax.tasks.prompts import Format

MODULES: tuple[str, ...] = (
    "superglue",
    "glue",
    "reading",
    "table_to_text",
    "summarization",
    "generation",
    "denoising",
    "ppt",
    "underspecified",
    "t0_table",
    "p3",
    "classification",
    "raft",
    "own_data",
)
"""Modules of this package that define tasks, in the order in which they are listed."""


@dataclass(frozen=True)
class TaskDefinition:
    """A dataset in a form that a model reads, with the metrics that papers report of it.

    Attributes:
        name: the task's usual name.
        dataset: what its rows are.
        group: under which it is listed.
        formats: what makes rows into texts; None: the dataset's promptsource templates.
        templates: which of those, by T-Few's number (in the order of names) or by name; None: all
            of the original task that have answer choices.
        metrics: names in `peft_jax.metrics.METRICS`; the first figure is the one that is reported.
        about: one line: what is asked, and where the form comes from.
        train_split, evaluation_split: which splits these are.
        learns_from: whether a row of ``train_split`` is one to learn from, where some can be asked
            but not taught (WSC's wrong referents); None: all are.
        max_input_length: in tokens, special ones included.
        max_target_length: the same of an answer, EOS included.
        decoding: fields of `peft_jax.Decoding` with which its paper generates.
        aliases: other names by which it is known.
        few_shot: whether so many rows are drawn to train on as its dataset has ``shots``; else all
            are.
    """

    name: str
    dataset: Dataset
    group: str
    formats: tuple[Format, ...] | None = None
    templates: tuple[int | str, ...] | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    about: str = ""
    train_split: str = "train"
    evaluation_split: str = "validation"
    learns_from: Callable[[Mapping], bool] | None = None
    max_input_length: int = 256
    max_target_length: int = 64
    decoding: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    few_shot: bool = False

    @property
    def shots(self) -> int:
        """Rows that are drawn to train on; 0: all."""
        return self.dataset.shots if self.few_shot else 0


@dataclass(frozen=True)
class MixtureDefinition:
    """Tasks that are trained together.

    Attributes:
        name: the mixture's usual name.
        tasks: names of its tasks.
        rate: "examples": in proportion to their numbers of training examples; "equal": alike.
        cap: a task counts as at most so many examples; None: as many as it has.
        caps: the same for single tasks, before ``cap``.
        about: one line.
    """

    name: str
    tasks: tuple[str, ...]
    rate: Literal["examples", "equal"] = "examples"
    cap: int | None = None
    caps: Mapping[str, int] = field(default_factory=dict)
    about: str = ""


@functools.cache
def definitions() -> dict[str, TaskDefinition]:
    """Every task that needs no data to be known, by name."""
    own = [
        TaskDefinition(
            name,
            dataset,
            group="T-Few",
            about="promptsource's templates of the original task (Liu et al. 2022, appendix G)",
            aliases=tuple(alias for alias, of in ALIASES.items() if of == name),
            few_shot=True,
        )
        for name, dataset in DATASETS.items()
    ]
    return _by_name([*own, *(task for module in _modules() for task in _of(module, "TASKS"))])


@functools.cache
def mixtures() -> dict[str, MixtureDefinition]:
    """Every mixture, by name."""
    from peft_jax.tasks.embedded import TASKS

    embedded = MixtureDefinition(
        "embedded_train",
        tuple(f"embedded_{key}" for key, task in TASKS.items() if not task.held_out),
        rate="equal",
        about="the embedded tasks that the embedded backbone was trained on",
    )
    others = (mixture for module in _modules() for mixture in _of(module, "MIXTURES"))
    return _by_name([embedded, *others])


def find_definition(name: str, directory: str | Path | None = None) -> TaskDefinition | None:
    """The task with a name or alias; None if there is none.

    Args:
        directory: the data's folder, where tasks are found whose names are made on demand.
    """
    known = definitions()
    if name in known:
        return known[name]
    found = _aliases().get(name)
    if found is not None:
        return known[found]
    for module in _modules():
        resolve = getattr(module, "resolve", None)
        made = None if resolve is None else resolve(name, directory)
        if made is not None:
            return made
    return None


@functools.cache
def offered() -> dict[str, TaskDefinition]:
    """Those, and the ones that a data folder's files make, as far as they are known without them.

    A module that makes tasks on demand may export what it can make as ``OFFERED``.
    """
    made = (task for module in _modules() for task in _of(module, "OFFERED"))
    return definitions() | _by_name(list(made))


def known_in(directory: str | Path) -> list[TaskDefinition]:
    """All that are `offered`, made of a data folder's files where these are there."""
    tasks = []
    for name, task in offered().items():
        try:
            made = task if name in definitions() else find_definition(name, directory)
        except InputError:  # says which files are wanted: so does the task's dataset
            made = None
        tasks.append(made or task)
    return tasks


def find_mixture(name: str) -> MixtureDefinition:
    """The mixture of a name; InputError, with the nearest name, if there is none."""
    known = mixtures()
    if name not in known:
        raise InputError(f"no mixture is named {name!r}; {tree.nearest(name, known)}")
    return known[name]


@functools.cache
def _aliases() -> dict[str, str]:
    return {alias: task.name for task in definitions().values() for alias in task.aliases}


def _modules() -> Iterator[ModuleType]:
    for module in MODULES:
        yield importlib.import_module(f"peft_jax.tasks.{module}")


def _of(module: ModuleType, name: str) -> tuple:
    return getattr(module, name, ())


def _by_name(entries: list) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        if entry.name in found:
            raise ValueError(f"{entry.name} is defined twice")
        found[entry.name] = entry
    return found
