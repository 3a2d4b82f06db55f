"""Somebody's own data as a task, without Python: a folder of files with a ``task.yaml``.

Two lines are enough::

    input: "{{text}} Is this a complaint?"
    choices: [no, yes]

The same can be given as flags, for a folder or a single file without a task.yaml. Every text is a
jinja2 template (`peft_jax.tasks.own_prompt`); `KEYS` lists all lines that there may be. Everything
that is wrong with them is told before any row is used, with the file, the key, the value and the
nearest right one.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import yaml

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.files import ending_of, stem_of
from peft_jax.tasks.held_out import HeldOut
from peft_jax.tasks.own_folder import LABEL_FIELDS, first_file, good_rows, label_names
from peft_jax.tasks.own_prompt import OwnFormat, is_template, label_of, needed_fields
from peft_jax.tasks.row_report import Row
from peft_jax.tasks.sources import SPLIT_NAMES, splits_of, typed_label

CONFIGURATION = "task.yaml"
GROUP = "Your own data"

KEYS = {
    "input": "template of what the model reads",
    "choices": "answers that are ranked: a list of texts, or a field or expression that is one",
    "target": "template of the text that it should write, where there are no choices",
    "label": "field (or template) that says which choice is right, by number from 0 or by text",
    "labels": "the names that the label field has, in the order of the choices",
    "references": "field, expression or list of templates: all right texts of an open answer",
    "prompts": "several prompts: name -> input, choices, target, references",
    "metrics": "names of metrics; the first is reported",
    "fields": "fields that every row must have; by default those that the templates read",
    "splits": "train, validation, test -> the file's name",
    "held_out": "part of train that is held out where validation has no file (0.1), or none",
    "seed": "of that draw (0)",
    "name": "the task's name, by default the folder's",
    "about": "one line for tables",
    "max_input_length": "in tokens",
    "max_target_length": "in tokens, of an answer",
}
"""The lines of a task.yaml."""

_PROMPT_KEYS = ("input", "choices", "target", "references")
# What a flag makes void in the file: a text to write has no choices, and the other way round.
_REPLACED = {"input": ("prompts",), "choices": ("target", "references"), "target": ("choices",)}
_LISTS = ("labels", "metrics", "fields")
_NUMBERS = ("seed", "max_input_length", "max_target_length")


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
        given: flags, named like the lines of the task.yaml (see `KEYS`); None: not given. They go
            before the task.yaml's: an ``input`` before all of its prompts, a ``target`` before its
            choices, and ``choices`` before its target.

    Returns the definition of a task whose `Dataset` `find_source` finds in the same directory.

    Raises InputError for a key or value that is wrong, a template that cannot be parsed or reads a
    field that the rows lack, and for a folder without data.
    """
    settings = _Settings(name, Path(directory))
    file = find_configuration(name, directory)
    if file is not None:
        settings = _read(file, settings)
    flags = {key: value for key, value in given.items() if value not in (None, ())}
    for key in (key for flag, keys in _REPLACED.items() if flag in flags for key in keys):
        settings.values.pop(key, None)
    for key, value in flags.items():
        settings.add(key, value, f"--data.{key.replace('_', '-')}")
    return _definition(settings, _data_folder(settings))


# --------------------------------------------------------------------------------------------
# Reading the lines
# --------------------------------------------------------------------------------------------
@dataclass
class _Settings:
    """Checked values by key, and where each was written."""

    name: str
    directory: Path
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, value: Any, place: str) -> None:
        if key not in KEYS:
            raise InputError(f"{place}: there is no key {key!r}; {tree.nearest(key, KEYS)}")
        self.places[key] = place
        self.values[key] = self._checked(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def error(self, key: str, problem: str) -> InputError:
        return InputError(f"{self.places.get(key, self.directory)}: {problem}")

    def _checked(self, key: str, value: Any) -> Any:
        if key in _NUMBERS:
            return self._number(key, value)
        if key == "held_out":
            return self._share(value)
        if key in ("splits", "prompts"):
            return self._mapping(key, value)
        if key in _LISTS or (key in ("choices", "references") and not isinstance(value, str)):
            return self._texts(key, value)
        if not isinstance(value, str) or not value.strip():
            hint = ' (a text with {{ must stand in "quotes")' if isinstance(value, dict) else ""
            raise self.error(key, f"{key} must be a text, not {value!r}{hint}")
        return value

    def _texts(self, key: str, value: Any) -> tuple[str, ...]:
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, Sequence) or not all(isinstance(v, str) and v for v in value):
            raise self.error(key, f"{key} must be a list of texts, not {value!r}")
        if len(set(value)) < len(value):
            twice = next(v for v in value if list(value).count(v) > 1)
            raise self.error(key, f"{key} has {twice!r} twice")
        if len(value) < 2 and key in ("choices", "labels"):
            if key == "choices" and value:  # one flag: --data.choices options
                return value[0]
            raise self.error(key, f"{key} must be two at least, not {list(value)}")
        return tuple(value)

    def _number(self, key: str, value: Any) -> int:
        if not re.fullmatch(r"\d+", str(value)):
            raise self.error(key, f"{key} must be a whole number, not {value!r}")
        return int(value)

    def _share(self, value: Any) -> float | None:
        if str(value).lower() == "none":
            return None
        try:
            return HeldOut(float(value)).share
        except ValueError:
            raise self.error(
                "held_out", f"held_out must be between 0 and 1, or none, not {value!r}"
            ) from None

    def _mapping(self, key: str, value: Any) -> dict:
        if not isinstance(value, Mapping) or not value:
            what = "splits to file names" if key == "splits" else "names to prompts"
            raise self.error(key, f"{key} must be a mapping of {what}, not {value!r}")
        for name, entry in value.items():
            if key == "prompts" and not isinstance(entry, Mapping):
                raise self.error(
                    key, f"prompt {name!r} must be a mapping with input, not {entry!r}"
                )
            if key == "splits" and (not isinstance(entry, str) or not entry):
                raise self.error(key, f"split {name!r} must be a file's name, not {entry!r}")
        return dict(value)


def _read(file: Path, settings: _Settings) -> _Settings:
    try:
        # All scalars as texts: `choices: [no, yes]` are words here, not truth values.
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        hint = ' (a text with {{ must stand in "quotes")' if "{{" in _text_of(file) else ""
        raise InputError(f"{file} is not YAML: {problem}{hint}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{file} must hold lines as `input: ...`, `choices: ...`; see {list(KEYS)}"
        )
    for key, value in content.items():
        settings.add(key, value, str(file))
    named = settings.get("name", settings.name)
    if named != settings.name:
        raise InputError(f"{file} is task {named!r}, and {settings.name!r} was asked for")
    return settings


def _text_of(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "replace")


# --------------------------------------------------------------------------------------------
# From lines to a definition
# --------------------------------------------------------------------------------------------
def _definition(settings: _Settings, folder: Path) -> TaskDefinition:
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


def _data_folder(settings: _Settings) -> Path:
    directory = settings.directory
    inner = directory / settings.name
    if not directory.exists():
        raise InputError(f"--data.directory {directory} is neither a folder nor a file")
    if directory.is_file() and ending_of(directory) is None:
        raise InputError(f"--data.directory {directory} is of no kind that is read")
    return inner if inner.is_dir() and not directory.is_file() else directory


def _splits(settings: _Settings, folder: Path) -> dict[str, str]:
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


def _formats(settings: _Settings) -> tuple[OwnFormat, ...]:
    shared = {key: settings.values[key] for key in _PROMPT_KEYS if key in settings.values}
    prompts = settings.get("prompts")
    if prompts is None:
        return (_format(settings, "own", shared, settings.places.get("input")),)
    if "input" in shared:
        raise settings.error("prompts", "give either input or prompts, not both")
    made = []
    for name, entry in prompts.items():
        own = _Settings(settings.name, settings.directory)
        for key, value in entry.items():
            if key not in _PROMPT_KEYS:
                near = tree.nearest(key, _PROMPT_KEYS)
                raise settings.error("prompts", f"prompt {name!r}: there is no key {key!r}; {near}")
            own.add(key, value, f"{settings.places['prompts']}: prompt {name!r}")
        made.append(_format(settings, name, shared | own.values, settings.places["prompts"]))
    if len({prompt.ranks for prompt in made}) > 1:
        raise settings.error("prompts", "all prompts must have choices, or none")
    return tuple(made)


def _format(
    settings: _Settings, name: str, values: Mapping[str, Any], place: str | None
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


def _check_templates(settings: _Settings, formats: Sequence[OwnFormat], first: Row) -> None:
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
    settings: _Settings,
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


def _check_first_label(settings: _Settings, dataset: Dataset, first: Row) -> None:
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


def _fields(settings: _Settings, dataset: Dataset, formats: Sequence[OwnFormat]) -> tuple[str, ...]:
    if "fields" in settings.values:
        return settings.values["fields"]
    found = [
        name for f in formats for key, text in f.templates() for name in _names_in(key, text, f)
    ]
    label = settings.get("label")
    found += needed_fields(label) if label is not None and is_template(label) else []
    return tuple(name for name in dict.fromkeys(found) if name != dataset.label_field)


def _metrics(settings: _Settings, ranked: bool) -> tuple[str, ...]:
    if "metrics" not in settings.values:
        return ("accuracy",) if ranked else ("rouge", "exact_match")
    from peft_jax.metrics import METRICS

    for name in settings.values["metrics"]:
        if name not in METRICS:
            raise settings.error(
                "metrics", f"no metric is named {name!r}; {tree.nearest(name, METRICS)}"
            )
    return settings.values["metrics"]
