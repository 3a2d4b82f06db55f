"""Which tasks there are: where their rows come from, how many, and what is reported of them.

Everything is asked of the catalogue, and of a data directory if there is one. Neither seqio nor
TensorFlow is loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tasks import catalogue, embedded
from peft_jax.tasks.catalogue import MixtureDefinition, TaskDefinition
from peft_jax.tasks.prompted import EMBEDDED_PREFIX, find_task
from peft_jax.tasks.sources import SPLIT_NAMES, find_folder, splits_of, wanted_file

DESCRIBED = 12
"""So many tasks, asked for by name, are described in words beside their table."""

EMBEDDED_GROUP = "Embedded (generated, nothing is downloaded)"


class Row(NamedTuple):
    """A task in the table.

    Attributes:
      name: the task's name, as ``--task`` takes it.
      group: under which it is listed.
      source: folder of files, TFDS and hub names.
      splits: names, with numbers of rows where they are published.
      metrics: names; the first is the one that is reported.
      prompts: how many formats or templates each row has, or whose.
      about: one line.
      present: the splits whose files are there; None where nobody looked.
      wanted: what is to be got where they are not.
    """

    name: str
    group: str
    source: str
    splits: str
    metrics: str
    prompts: str
    about: str
    present: tuple[str, ...] | None = None
    wanted: str = ""


def rows(names: Sequence[str] = (), directory: str | Path | None = None) -> list[Row]:
    """The tasks of these names, or all.

    Args:
      names: of tasks, beginnings of names (``super_glue``), groups ("T-Few"), or names that are
        made on demand (``t0_ag_news_classify``).
      directory: data whose files are looked for.

    Raises:
      InputError: there is no task of a name, or no such directory.
    """
    if directory is not None and not Path(directory).is_dir():
        raise InputError(f"--directory {directory} is not a folder")
    known = [*_embedded(), *(_row(task) for task in catalogue.offered().values())]
    chosen = dict.fromkeys(row for name in names for row in _matching(name, known, directory))
    found = list(chosen) if names else known
    return found if directory is None else [_looked_for(row, Path(directory)) for row in found]


def mixtures(names: Sequence[str] = ()) -> list[MixtureDefinition]:
    """The mixtures whose names begin with one of these, or all."""
    every = catalogue.mixtures().values()
    return [m for m in every if not names or any(m.name.startswith(name) for name in names)]


def _matching(name: str, known: list[Row], directory: str | Path | None) -> list[Row]:
    folded = name.lower()
    exact = [row for row in known if row.name == name]
    several = [row for row in known if row.name.startswith(name) or row.group.lower() == folded]
    if exact or several:
        return exact or several
    made = catalogue.find_definition(name, directory)
    if made is not None:
        return [_row(made)]
    if mixtures([name]):
        return []
    every = [*(row.name for row in known), *catalogue.mixtures(), *(row.group for row in known)]
    raise InputError(f"no task is named {name!r}; {tree.nearest(name, every)}")


# --------------------------------------------------------------------------------------------
# One row
# --------------------------------------------------------------------------------------------
@functools.cache
def _embedded() -> list[Row]:
    counts = embedded.DEFAULT_COUNTS.items()
    splits = ", ".join(f"{split} {count:,}" for split, count in counts)
    return [
        Row(
            name=EMBEDDED_PREFIX + task.name,
            group=EMBEDDED_GROUP,
            source="generated",
            splits=splits,
            metrics="accuracy",
            prompts=str(len(find_task(EMBEDDED_PREFIX + task.name).templates)),
            about=task.description + (", held out from pretraining" if task.held_out else ""),
        )
        for task in embedded.TASKS.values()
    ]


def _row(task: TaskDefinition) -> Row:
    return Row(
        name=task.name,
        group=task.group,
        source=_source(task),
        splits=_splits(task),
        metrics=", ".join(task.metrics),
        prompts=_prompts(task),
        about=task.about,
    )


def _source(task: TaskDefinition) -> str:
    """TFDS, the hub, and the folder of files where it is not called as the task is."""
    dataset = task.dataset
    published = {"TFDS": dataset.tfds, "hub": dataset.hub}
    if dataset.tfds == dataset.hub:
        published = {"TFDS, hub": dataset.tfds}
    named = [f"{kind} {name}" for kind, name in published.items() if name]
    folder = dataset.folder or dataset.name
    if folder != task.name or not named:
        named.append(f"files {folder}/")
    return "; ".join(named)


def _splits(task: TaskDefinition) -> str:
    dataset = task.dataset
    if not dataset.sizes:
        used = dict.fromkeys((task.train_split, task.evaluation_split))
        return ", ".join(dict.fromkeys([*used, *dataset.splits]))
    ours = dict.fromkeys([*SPLIT_NAMES, *dataset.splits])
    named = {split: dataset.splits.get(split, split) for split in ours}
    sized = {split: dataset.sizes[name] for split, name in named.items() if name in dataset.sizes}
    rest = {name: n for name, n in dataset.sizes.items() if name not in named.values()}
    return ", ".join(f"{split} {count:,}" for split, count in (sized | rest).items())


def _prompts(task: TaskDefinition) -> str:
    if task.formats is not None:
        return str(len(task.formats) or "-")
    if task.templates is not None:
        return f"{len(task.templates)} of promptsource"
    return "promptsource"


def _looked_for(row: Row, directory: Path) -> Row:
    if row.group == EMBEDDED_GROUP:
        return row._replace(present=tuple(embedded.DEFAULT_COUNTS))
    task = catalogue.find_definition(row.name, directory)
    assert task is not None, row.name  # its row was made of it
    try:
        present = splits_of(task.dataset, find_folder(task.dataset, directory))
    except InputError:
        present = ()
    if not present:
        where = f" ({task.dataset.download})" if task.dataset.download else ""
        return row._replace(present=(), wanted=wanted_file(task.dataset) + where)
    return row._replace(present=present, prompts=_counted_prompts(row, directory))


def _counted_prompts(row: Row, directory: Path) -> str:
    """The number of promptsource's templates where there is a file of them."""
    if not row.prompts.endswith("promptsource"):
        return row.prompts
    try:
        return str(len(find_task(row.name, directory=directory).templates))
    except InputError:
        return row.prompts


# --------------------------------------------------------------------------------------------
# Shown
# --------------------------------------------------------------------------------------------
def tables(
    found: Sequence[Row], combined: Sequence[MixtureDefinition] = ()
) -> list[RenderableType]:
    """A table for each group, with the files that it lacks, and one of the mixtures."""
    made: list[RenderableType] = []
    for group in dict.fromkeys(row.group for row in found):
        own = [row for row in found if row.group == group]
        made += [_group_table(group, own), *_lacking(own), ""]
    if combined:
        shown = _empty("Mixtures", ("mixture", "tasks", "rate", "about"))
        for mixture in combined:
            shown.add_row(mixture.name, f"{len(mixture.tasks):,}", _rate(mixture), mixture.about)
        made += [shown, ""]
    return made


def descriptions(found: Sequence[Row]) -> list[Text]:
    """What there is to say of single tasks, beside their row."""
    texts = []
    for row in found:
        texts.append(Text.assemble((row.name, "bold"), ": ", row.about or "-"))
    return texts


def _group_table(group: str, own: list[Row]) -> Table:
    looked = any(row.present is not None for row in own)
    columns = ("name", "source", "rows", "metrics", "prompts")
    shown = _empty(group, (*columns, "files") if looked else columns)
    for row in own:
        cells = (row.name, row.source, row.splits, row.metrics, row.prompts)
        shown.add_row(*cells, *((_files(row),) if looked else ()))
    return shown


def _files(row: Row) -> Text:
    return Text(", ".join(row.present), "green") if row.present else Text("absent", "yellow")


def _lacking(own: list[Row]) -> list[Text]:
    """A line for each file that is wanted, with the tasks that read it."""
    lines = []
    for wanted in dict.fromkeys(row.wanted for row in own if row.wanted):
        names = ", ".join(row.name for row in own if row.wanted == wanted)
        lines.append(Text.assemble(" ", (names, "yellow"), (f" wanted: {wanted}", "dim")))
    return lines


def _empty(title: str, columns: Sequence[str]) -> Table:
    shown = Table(
        title=f"[bold]{title}[/bold]",
        title_justify="left",
        title_style="",
        box=None,
        header_style="dim",
    )
    for number, name in enumerate(columns):
        shown.add_column(name, overflow="fold", no_wrap=number == 0)
    return shown


def _rate(mixture: MixtureDefinition) -> str:
    if mixture.rate == "equal":
        return "equal"
    if mixture.caps:
        return "by examples, capped task by task"
    return "by examples" + (f", {mixture.cap:,} at most" if mixture.cap else "")


def markdown() -> str:
    """The tables of docs/tasks.md: a section for each group, and one of the mixtures."""
    found = rows()
    lines: list[str] = []
    for group in dict.fromkeys(row.group for row in found):
        lines += [f"### {group}", ""]
        lines += ["| task | source | rows | metrics | prompts | |", "|---|---|---|---|---|---|"]
        for row in (row for row in found if row.group == group):
            cells = (f"`{row.name}`", row.source, row.splits, row.metrics, row.prompts, row.about)
            lines.append(_markdown_row(cells))
        lines.append("")
    lines += ["### Mixtures", "", "| mixture | tasks | rate | |", "|---|--:|---|---|"]
    for mixture in mixtures():
        size = f"{len(mixture.tasks):,}"
        lines.append(_markdown_row((f"`{mixture.name}`", size, _rate(mixture), mixture.about)))
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
