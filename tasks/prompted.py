"""Rows of a dataset under their templates: the texts that are tokenised.

`find_task` resolves a task's name to its dataset, its rows and its templates; `PromptedTask`
renders them. No seqio here: this is the part of a task that can be looked at and tested as text.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Unpack

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import TaskDefinition, find_definition, mixtures, offered
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.draws import Draw, DrawOptions
from peft_jax.tasks.own_data import own_task
from peft_jax.tasks.prompts import Format, Rendered, Template, load_templates
from peft_jax.tasks.row_report import BadRow, OnBadRow, RowReport
from peft_jax.tasks.sources import find_source, read_rows

EMBEDDED_PREFIX = "embedded_"
_OWN_TEMPLATES = Path(__file__).parent / "templates"
_COLLECTION = "promptsource_templates"


class PromptedRow(NamedTuple):
    """One example under one template, as text.

    Attributes:
        input, target: what the model reads, and what it should write.
        choices: the answers that are ranked; empty where the answer is open.
        label: the right choice; -1 where the answer is open.
        example: the example's position in its split.
        template: the template's index.
        references: all texts that are right.
        keep: what metrics need beside the texts, as JSON values.
    """

    input: str
    target: str
    choices: tuple[str, ...]
    label: int
    example: int
    template: int
    references: tuple[str, ...] = ()
    keep: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class PromptedTask:
    """A dataset with its templates.

    Attributes:
        name: the task's name.
        dataset: what its rows are.
        templates: the formats, promptsource's in the order of their names.
        read: split -> its rows.
        draw: what stands for one of the splits, or None for all of it.
        definition: the table's entry, with the metrics; for a user's folder one made of it.
        report: whether bad rows are errors or skipped, and what is to be told of the rows.
    """

    name: str
    dataset: Dataset
    templates: tuple[Format, ...]
    read: Callable[[str], list[dict]]
    draw: Draw | None = None
    definition: TaskDefinition | None = None
    report: RowReport = field(default_factory=RowReport, repr=False, compare=False)
    _rendered: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        kinds = {template.ranks: template.name for template in self.templates}
        if len(kinds) > 1:
            raise InputError(
                f"{self.name}: template {kinds[True]!r} has answer choices and {kinds[False]!r} "
                "has none: a task either ranks answers or writes them"
            )

    @property
    def ranks(self) -> bool:
        """Whether its rows have choices to rank; else their answers are open."""
        return all(template.ranks for template in self.templates)

    def rows(self, split: str) -> list[tuple[int, dict]]:
        """(position in the split, row) of every example, after the few-shot draw."""
        learns_from = None if self.definition is None else self.definition.learns_from
        numbered = [
            (position, row)
            for position, row in enumerate(self.read(split))
            if learns_from is None or split != self.definition.train_split or learns_from(row)
        ]
        if self.draw is None or self.draw.split != split:
            return numbered
        labels = [row.get("label", 0) for _, row in numbered]
        grouped = bool(numbered) and "group" in numbered[0][1]
        chosen = self.draw.positions(labels, per_class=self.dataset.per_class, grouped=grouped)
        return [numbered[place] for place in chosen]

    def drawn(self, split: str, **options: Unpack[DrawOptions]) -> "PromptedTask":
        """The same task with a draw for a split; as it is where nothing is drawn.

        Args:
            options: see `peft_jax.tasks.draws.Draw`.

        Raises InputError for options that cannot be meant together.
        """
        draw = Draw(split=split, **options)
        return replace(self, draw=draw) if draw.draws else self

    def prompted(self, split: str, track: Callable[[Iterable], Iterable] = iter) -> list:
        """Every example of a split under every template that applies to it: `PromptedRow`s.

        Args:
            split: "train", "validation" or another that the source has.
            track: wraps the examples as they are gone through, for a progress bar.

        Raises InputError for what is wrong with the files or with a template, and if no template
        applies to any row. A row that a template cannot render is skipped and counted where
        ``report`` says so.
        """
        if split not in self._rendered:
            counters = [
                self.report.source(f"{self.name} {split}", "prompts", f"under {template.name!r}")
                for template in self.templates
            ]
            rows: list[PromptedRow] = []
            for position, row in track(self.rows(split)):
                for index, counter in enumerate(counters):
                    counter.seen()
                    try:
                        rows += self.render(position, row, index)
                    except BadRow as error:
                        counter.bad(error)
            for counter in counters:
                counter.refuse_if_none_is_left()
            if not rows:
                raise InputError(f"no template of {self.name} applies to any row of its {split}")
            self._rendered[split] = rows
        return self._rendered[split]

    def render(self, position: int, row: dict, template: int) -> list[PromptedRow]:
        """One example under one template: no row where it does not apply, several where it says.

        Args:
            position, row: as `rows` has them.
            template: the template's index.

        Raises BadRow, with the row's file and line, for what the template cannot do with it.
        """
        try:
            return list(self._render(position, row, template, self.templates[template]))
        except InputError as error:
            where = getattr(row, "where", f"example {position}")
            raise BadRow(f"{where}: {error}") from error

    def _render(
        self, position: int, row: dict, index: int, template: Format
    ) -> Iterator[PromptedRow]:
        if self.dataset.named_labels:
            label = _choice_named(template, row, self.dataset.labels[row["label"]])
            row = row | {"label": label}
        for rendered in template.render_all(row):
            made = PromptedRow(
                input=rendered.input,
                target=rendered.target,
                choices=(),
                label=-1,
                example=position,
                template=index,
                references=rendered.references or (rendered.target,),
                keep=rendered.keep,
            )
            if rendered.choices is not None:
                made = self._ranked(made, rendered, rendered.keep.get("label", row.get("label")))
            yield made

    def _ranked(self, row: PromptedRow, rendered: Rendered, label: int | None) -> PromptedRow:
        """The row with its choices, each once, and the index of the right one."""
        template, choices = self.templates[row.template], rendered.choices or ()
        where = f"{template.file}: " if template.file else ""
        where += f"template {template.name!r} offers"
        if label is None or not 0 <= label < len(choices):
            raise InputError(
                f"{where} {len(choices)} answer choices,"
                f" but example {row.example} of {self.name} has label {label}"
            )
        # Two classes may share an answer under a template (cause and effect are both "no"): then
        # they are one choice, or the loss would push one answer up and down at once.
        distinct = tuple(dict.fromkeys(choices))
        if len(distinct) < 2:
            raise InputError(
                f"{where} one answer choice only "
                f"({distinct[0]!r}) for example {row.example} of {self.name}: two are needed to "
                "rank"
            )
        answer = choices[label]
        return row._replace(
            target=rendered.target or answer,
            choices=distinct,
            label=distinct.index(answer),
            references=rendered.references or (rendered.target or answer,),
        )


def find_task(
    name: str,
    *,
    directory: str | Path | None = None,
    templates: str | Path | None = None,
    draw: Draw | None = None,
    on_bad_row: OnBadRow = "error",
    own: Mapping[str, Any] | None = None,
) -> PromptedTask:
    """The task that a name means.

    Args:
        name: a task of the catalogue ("rte", "super_glue_rte", "e2e_nlg" ...), an embedded task
            ("embedded_entailment"), or the name of a user's own folder.
        directory: where its files lie (see `find_source`); None for TFDS.
        templates: a templates file, a folder with templates.yaml, or a promptsource collection, in
            place of the task's own form. None: that form, which for a task of promptsource's
            templates is templates.yaml in the data's folder, else the promptsource_templates folder
            beside it, else the templates that come with peft_jax.
        draw: what stands for one of the splits.
        own: lines of a task.yaml (`peft_jax.tasks.own_data`), which make a task of the files in
            ``directory`` and go before those of one that is there.
        on_bad_row: "skip" leaves out rows that cannot be read or rendered, and counts them:
            ``task.report.lines()`` tells. "error": the first of them raises.

    Raises InputError if there is no such task, or no template for rank classification.
    """
    if name.startswith(EMBEDDED_PREFIX) and directory is None:
        return _embedded_task(name, templates, draw)
    definition, folder = _find_definition(name, directory, own)
    dataset = definition.dataset
    formats: tuple[Format, ...] | None = definition.formats
    if formats is None or templates is not None:
        file = _templates_file(dataset, templates, folder, directory)
        formats = chosen_templates(ranking_templates(file, dataset), definition.templates, file)
    # The files are read once, however many splits and templates are asked for.
    report = RowReport(on_bad_row)
    read = functools.cache(lambda split: read_rows(dataset, split, folder, report))
    return PromptedTask(name, dataset, formats, read, draw, definition, report)


def find_rows(
    name: str,
    *,
    directory: str | Path | None = None,
    on_bad_row: OnBadRow = "error",
    own: Mapping[str, Any] | None = None,
) -> PromptedTask:
    """The task that a name means, without templates: only its rows are wanted.

    Args: as in `find_task`.

    Raises InputError if there is no such task.
    """
    if name.startswith(EMBEDDED_PREFIX) and directory is None:
        return replace(_embedded_task(name, None, None), templates=())
    definition, folder = _find_definition(name, directory, own)
    dataset = definition.dataset
    report = RowReport(on_bad_row)
    read = functools.cache(lambda split: read_rows(dataset, split, folder, report))
    return PromptedTask(name, dataset, (), read, definition=definition, report=report)


def _find_definition(
    name: str, directory: str | Path | None, own: Mapping[str, Any] | None
) -> tuple[TaskDefinition, Path | None]:
    """What a name means, and the folder of its files (None: TFDS)."""
    given = {key: value for key, value in (own or {}).items() if value not in (None, ())}
    if given and directory is None:
        key = next(iter(given)).replace("_", "-")
        raise InputError(f"--data.{key} describes somebody's own files: give --data.directory too")
    definition = own_task(directory, name, **given) if given else find_definition(name, directory)
    if definition is not None:
        return definition, find_source(definition.dataset, directory)[1]
    if name in offered():
        raise InputError(
            f"{name} is made of the tokens of a text and has no rows of its own to show or "
            "register: `peft-jax train`, `evaluate` and `prepare` take it, with a folder of text"
        )
    try:
        dataset, folder = find_source(name, directory)
    except InputError as error:
        known = tree.nearest(name, [*offered(), *mixtures()])
        raise InputError(
            f"no task is named {name!r}; {known}. As your own data: {error}"
        ) from error
    return TaskDefinition(name, dataset, group="own"), folder


def ranking_templates(file: str | Path, dataset: Dataset) -> tuple[Template, ...]:
    """T-Few's choice of templates: those of the original task, by name, with answer choices.

    Raises InputError if none is left.
    """
    templates = [template for template in load_templates(file).values() if template.original_task]
    templates = [t for t in templates if t.answer_choices is not None][: dataset.template_limit]
    if not templates:
        raise InputError(
            f"{file} has no template with answer_choices for {dataset.name}'s original task: rank "
            "classification needs at least one"
        )
    return tuple(templates)


def chosen_templates(
    templates: Sequence[Template], wanted: Sequence[int | str] | None, file: str | Path
) -> tuple[Template, ...]:
    """Those of some templates that are wanted, by position or name; all for None.

    Raises InputError for one that is not there.
    """
    if wanted is None:
        return tuple(templates)
    by_name = {template.name: template for template in templates}
    chosen = []
    for one in wanted:
        if isinstance(one, str) and one not in by_name:
            raise InputError(f"{file} has no template {one!r}; {tree.nearest(one, by_name)}")
        if isinstance(one, int) and one >= len(templates):
            raise InputError(
                f"{file} has {len(templates)} templates that can be ranked, and number {one} was "
                "asked for"
            )
        chosen.append(by_name[one] if isinstance(one, str) else templates[one])
    return tuple(chosen)


def _embedded_task(name: str, templates: str | Path | None, draw: Draw | None) -> PromptedTask:
    from peft_jax.tasks.embedded import TASKS, TEMPLATES, rows

    key = name.removeprefix(EMBEDDED_PREFIX)
    if key not in TASKS:
        names = ", ".join(EMBEDDED_PREFIX + task for task in TASKS)
        raise InputError(f"no embedded task {name!r}; there are {names}")
    dataset = Dataset(name=name, fields=(), labels=TASKS[key].labels or ())
    file = templates or TEMPLATES / f"{key}.yaml"
    read = functools.cache(lambda split: rows(key, split))
    definition = TaskDefinition(name, dataset, group="embedded", few_shot=True)
    formats = ranking_templates(file, dataset)
    return PromptedTask(name, dataset, formats, read, draw, definition)


def _templates_file(
    dataset: Dataset,
    templates: str | Path | None,
    folder: Path | None,
    directory: str | Path | None,
) -> Path:
    inside_collection = dataset.templates or dataset.name
    if templates is not None:
        nested = Path(templates) / inside_collection / "templates.yaml"
        return nested if nested.is_file() else Path(templates)
    candidates = [_OWN_TEMPLATES / f"{dataset.name}.yaml"]
    if folder is not None:
        collections = {Path(directory) / _COLLECTION: None, folder.parent / _COLLECTION: None}
        candidates = [
            folder / "templates.yaml",
            *(collection / inside_collection / "templates.yaml" for collection in collections),
            *candidates,
        ]
    for file in candidates:
        if file.is_file():
            return file
    raise InputError(
        f"no templates for task {dataset.name!r}: looked for "
        + ", ".join(map(str, candidates[:-1] or candidates))
        + "; for data of your own write task.yaml, two lines with `input:` and `choices:` (or give "
        "them as --data.input and --data.choices), or templates.yaml in promptsource's format"
    )


def _choice_named(template: Format, row: dict, label_name: str) -> int:
    """The choice that a label's name means where the template lists the labels in its own order.

    promptsource's banking77, say, lists the intents alphabetically and not as the data do. Where
    the choices are not the labels' names, their order must be the labels'.
    """
    names = [_plain(name) for name in row["label_names"]]
    choices = [_plain(c) for made in template.render_all(row) for c in made.choices or ()]
    if len(choices) == len(names) and set(choices) == set(names):
        return choices.index(_plain(label_name))
    return row["label"]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
