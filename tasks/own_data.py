"""Somebody's own data as a task, without Python: a folder of files with a ``task.yaml``.

Two lines are enough::

    input: "{{text}} Is this a complaint?"
    choices: [no, yes]

The same can be given as flags, for a folder or a single file without a task.yaml. Every text is a
jinja2 template (`peft_jax.tasks.own_prompt`); `peft_jax.tasks.own_settings` has all lines that
there may be. Everything that is wrong with them is told before any row is used, with the file, the
key, the value and the nearest right one.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.files import ending_of, stem_of
from peft_jax.tasks.held_out import HeldOut
from peft_jax.tasks.own_folder import LABEL_FIELDS, first_file, good_rows, label_names
from peft_jax.tasks.own_prompt import OwnFormat, is_template, label_of, needed_fields
from peft_jax.tasks.own_settings import CONFIGURATION, PROMPT_KEYS, Settings, read_configuration
from peft_jax.tasks.row_report import Row
from peft_jax.tasks.sources import SPLIT_NAMES, splits_of, typed_label

GROUP = "Your own data"


def resolve(name: str, directory: str | Path | None) -> TaskDefinition | None:
    """The task of a folder with a task.yaml; None where there is none. See `own_task`."""
    if directory is None or find_configuration(name, directory) is None:
        return None
    return own_task(directory, name)


def find_configuration(name: str, directory: str | Path) -> Path | None:
    """The task.yaml of a task: in its folder, in the directory itself, or beside the one file."""
    directory = Path(directory)
    folders = [directory.parent] if directory.is_file() else [directory / name, directory]
    return next((f / CONFIGURATION for f in folders if (f / CONFIGURATION).is_file()), None)


def own_task(directory: str | Path, name: str, **given: Any) -> TaskDefinition:
    """The task that somebody's files, their task.yaml and flags describe.

    Args:
        directory: the data's folder, one that holds it under the task's name, or a single file.
        name: the task's name; that of the task.yaml must be the same, or be left out.
        given: flags, named like the lines of the task.yaml (`own_settings.KEYS`); None: not given.
            They go before the task.yaml's: an ``input`` before all of its prompts, a ``target``
            before its choices, and ``choices`` before its target.

    Returns the definition of a task whose `Dataset` `find_source` finds in the same directory.

    Raises InputError for a key or value that is wrong, a template that cannot be parsed or reads a
    field that the rows lack, and for a folder without data.
    """
    settings = Settings(name, Path(directory))
    file = find_configuration(name, directory)
    if file is not None:
        read_configuration(file, settings)
    settings.replace_by({key: value for key, value in given.items() if value not in (None, ())})
    return _definition(settings, _data_folder(settings))


# --------------------------------------------------------------------------------------------
# From lines to a definition
# --------------------------------------------------------------------------------------------
def _definition(settings: Settings, folder: Path) -> TaskDefinition:
    share = settings.get("held_out", HeldOut().share)
    outline = Dataset(
        name=settings.name,
        fields=(),
        shots=0,  # all, if nobody says otherwise
        splits=_splits(settings, folder),
        held_out=None if share is None else HeldOut(share, settings.get("seed", 0)),
    )
    file = first_file(outline, folder)
    first = next(good_rows(file), None)
    if first is None:
        raise InputError(f"{file} is empty: {settings.name} needs rows")
    formats = _formats(settings)
    _check_templates(settings, formats, first)
    ranked = formats[0].ranks
    if ranked:
        dataset, formats = _with_labels(settings, outline, formats, folder, first)
    else:
        dataset = replace(outline, label_field=None)
    limits = ("max_input_length", "max_target_length", "about")
    return TaskDefinition(
        settings.name,
        replace(dataset, fields=_fields(settings, dataset, formats)),
        group=GROUP,
        formats=formats,
        metrics=_metrics(settings, ranked),
        **{key: settings.get(key) for key in limits if settings.get(key) is not None},
    )


def _data_folder(settings: Settings) -> Path:
    directory = settings.directory
    inner = directory / settings.name
    if not directory.exists():
        raise InputError(f"--data.directory {directory} is neither a folder nor a file")
    if directory.is_file() and ending_of(directory) is None:
        raise InputError(f"--data.directory {directory} is of no kind that is read")
    return inner if inner.is_dir() and not directory.is_file() else directory


def _splits(settings: Settings, folder: Path) -> dict[str, str]:
    """Our splits -> stems of files; one data file of whatever name is all of train."""
    if folder.is_file():
        return {}
    written = settings.get("splits", {})
    for split, name in written.items():
        if split not in SPLIT_NAMES:
            raise settings.error(
                "splits", f"splits: {split!r} is no split; {tree.nearest(split, SPLIT_NAMES)}"
            )
        if ending_of(Path(name)) is not None and not (folder / name).is_file():
            raise settings.error("splits", f"splits: {split}: there is no file {folder / name}")
    if written:
        return {split: _without_ending(name) for split, name in written.items()}
    if splits_of(Dataset(name=settings.name, fields=()), folder):
        return {}
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and ending_of(f) is not None]
    if len(files) != 1:
        there = ", ".join(f.name for f in files) or "none"
        raise InputError(
            f"{folder} has no file train.jsonl (.csv, .parquet ...); the data files there: {there}"
            + ("; say which is which: `splits: {train: FILE}`" if files else "")
        )
    return {"train": stem_of(files[0])}


def _without_ending(name: str) -> str:
    return name if ending_of(Path(name)) is None else str(Path(name).parent / stem_of(Path(name)))


def _formats(settings: Settings) -> tuple[OwnFormat, ...]:
    shared = {key: settings.values[key] for key in PROMPT_KEYS if key in settings.values}
    prompts = settings.get("prompts")
    if prompts is None:
        return (_format(settings, "own", shared, settings.places.get("input")),)
    if "input" in shared:
        raise settings.error("prompts", "give either input or prompts, not both")
    made = []
    for name, entry in prompts.items():
        own = Settings(settings.name, settings.directory)
        for key, value in entry.items():
            if key not in PROMPT_KEYS:
                near = tree.nearest(key, PROMPT_KEYS)
                raise settings.error("prompts", f"prompt {name!r}: there is no key {key!r}; {near}")
            own.add(key, value, f"{settings.places['prompts']}: prompt {name!r}")
        made.append(_format(settings, name, shared | own.values, settings.places["prompts"]))
    if len({prompt.ranks for prompt in made}) > 1:
        raise settings.error("prompts", "all prompts must have choices, or none")
    return tuple(made)


def _format(
    settings: Settings, name: str, values: Mapping[str, Any], place: str | None
) -> OwnFormat:
    where = f"{place or settings.directory}: " + ("" if name == "own" else f"prompt {name!r}: ")
    if "input" not in values:
        raise InputError(
            f'{where}there is no input: give `input: "{{{{FIELD}}}} ..."` in {CONFIGURATION}, or '
            "--data.input"
        )
    if not {"choices", "target", "references"} & values.keys():
        raise InputError(
            f"{where}give choices (answers that are ranked) or target (a text that is written)"
        )
    for key in ("input", "target"):
        if (
            key in values
            and not is_template(values[key])
            and (key == "input" or "choices" not in values)
        ):
            raise InputError(
                f"{where}{key}: {values[key]!r} is the same for every row; a field is written "
                "{{FIELD}}"
            )
    if "choices" in values and "references" in values:
        raise InputError(f"{where}references are for open answers, and there are choices")
    return OwnFormat(name, file=place or "", **values)


def _check_templates(settings: Settings, formats: Sequence[OwnFormat], first: Row) -> None:
    """Every template can be parsed, and reads no field that the first row lacks."""
    texts = [(f, *pair) for f in formats for pair in f.templates()]
    label = settings.get("label")
    if label is not None:
        texts.append((formats[0], "label", label))
    for prompt, key, text in texts:
        place = settings.places.get(key) or prompt.file
        where = f"{place}: {key}" if prompt.name == "own" else f"{place}: {prompt.name}: {key}"
        try:
            names = _names_in(key, text, prompt)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"{where}: jinja2 cannot parse {text!r}: {error.message} (line {error.lineno})"
            ) from error
        for name in names:
            if name not in first:
                raise InputError(
                    f"{where}: the rows have no field {name!r}; {tree.nearest(name, first)} "
                    f"({first.where} has {', '.join(first)})"
                )


def _names_in(key: str, text: str, prompt: OwnFormat) -> list[str]:
    if is_template(text):
        return needed_fields(text)
    # Without braces, what stands alone for a list or a label is the name of a field.
    is_field = key == "label" or (
        key in ("choices", "references") and isinstance(getattr(prompt, key), str)
    )
    return [text] if is_field else []


def _with_labels(
    settings: Settings,
    outline: Dataset,
    formats: tuple[OwnFormat, ...],
    folder: Path,
    first: Row,
) -> tuple[Dataset, tuple[OwnFormat, ...]]:
    """The dataset with its labels, or formats that find each row's own among its choices."""
    label = settings.get("label") or formats[0].target
    if label is None:
        label = next((name for name in LABEL_FIELDS if name in first), None)
    if label is None:
        raise InputError(
            f"{first.where}: no field says which choice is right ({', '.join(LABEL_FIELDS)}): give "
            f"`label: FIELD`; the row has {', '.join(first)}"
        )
    written = [prompt.choices for prompt in formats]
    fixed = [c for c in written if isinstance(c, tuple) and not any(map(is_template, c))]
    if len(fixed) < len(written):
        if "labels" in settings.values:
            raise settings.error("labels", "labels are for choices that all rows share")
        formats = tuple(replace(prompt, target=None, label=label) for prompt in formats)
        return replace(outline, label_field=None), formats
    names = settings.get("labels") or (folder.is_dir() and label_names(folder)) or fixed[0]
    for prompt, choices in zip(formats, fixed, strict=True):
        if len(choices) != len(names):
            which = "" if prompt.name == "own" else f"prompt {prompt.name!r}: "
            raise settings.error(
                "choices",
                f"{which}{len(choices)} choices ({', '.join(choices)}), but {len(names)} labels "
                f"({', '.join(names)})",
            )
    expand = functools.partial(_labelled, label, names, formats[0]) if is_template(label) else None
    dataset = replace(
        outline, labels=names, label_field="label" if expand else label, expand=expand
    )
    _check_first_label(settings, dataset, first)
    return dataset, tuple(replace(prompt, target=None) for prompt in formats)


def _labelled(template: str, names: tuple[str, ...], prompt: OwnFormat, row: dict) -> list[dict]:
    text = label_of(template, row, prompt.error)
    return [dict(row) | {"label": typed_label(text, names)}]


def _check_first_label(settings: Settings, dataset: Dataset, first: Row) -> None:
    """A label that is no choice is most often one of other names: say how they are given."""
    if dataset.expand is not None:
        return
    label = first[dataset.label_field]
    known = typed_label(label, dataset.labels) if isinstance(label, str) else label
    if isinstance(known, str) and known not in dataset.labels:
        place = settings.places.get("choices") or settings.places.get("prompts")
        raise InputError(
            f"{first.where}: field {dataset.label_field!r} is {label!r}, which is none of the "
            f"choices {', '.join(map(repr, dataset.labels))} of {place}: give `labels: [...]`, the "
            "names in the data in the order of the choices"
        )


def _fields(settings: Settings, dataset: Dataset, formats: Sequence[OwnFormat]) -> tuple[str, ...]:
    if "fields" in settings.values:
        return settings.values["fields"]
    found = [
        name for f in formats for key, text in f.templates() for name in _names_in(key, text, f)
    ]
    label = settings.get("label")
    found += needed_fields(label) if label is not None and is_template(label) else []
    return tuple(name for name in dict.fromkeys(found) if name != dataset.label_field)


def _metrics(settings: Settings, ranked: bool) -> tuple[str, ...]:
    if "metrics" not in settings.values:
        return ("accuracy",) if ranked else ("rouge", "exact_match")
    from peft_jax.metrics import METRICS

    for name in settings.values["metrics"]:
        if name not in METRICS:
            raise settings.error(
                "metrics", f"no metric is named {name!r}; {tree.nearest(name, METRICS)}"
            )
    return settings.values["metrics"]
