"""What a user's own folder of files says about itself: fields, labels and their names.

For a folder with templates.yaml. A folder with task.yaml says more (`peft_jax.tasks.own_data`).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from peft_jax.errors import InputError
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.files import class_names, is_typed, read_file
from peft_jax.tasks.row_report import BadRow, Row
from peft_jax.tasks.sources import split_files, splits_of, typed_label

LABEL_FIELDS = ("label", "category", "Label")
"""Where the label stands if nobody says so, the first that a row has."""

_LABEL_FILES = ("labels.json", "categories.json")


def folder_dataset(name: str, folder: Path) -> Dataset:
    """The dataset of a folder of files without a word on what they are.

    The label stands in the field ``label`` (or ``category``). Its names are those of labels.json
    (or categories.json), a list in order; without one, those that a parquet file stores; without
    these, the strings found in the training file (that of validation, if there is only that),
    sorted; else the labels are integers.

    Raises InputError for files without rows or without label, and for a file of labels that is
    none.
    """
    outline = Dataset(name=name, fields=())
    file = first_file(outline, folder)
    rows = good_rows(file)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{file} is empty: {name} needs labelled rows")
    field = next((field for field in LABEL_FIELDS if field in first), None)
    if field is None:
        raise InputError(
            f"{first.where}: field 'label' is missing; the row has " + ", ".join(first)
        )
    names = label_names(folder) or class_names(file, field)
    if names is None:
        names = _found_names([first[field], *(row.get(field) for row in rows)], is_typed(file))
    return Dataset(
        name=name,
        fields=tuple(key for key in first if key != field),
        labels=names or (),
        label_field=field,
        named_labels=names is not None,
    )


def first_file(dataset: Dataset, folder: Path) -> Path:
    """The file that shows what a folder's rows look like: of train, or else another split.

    Raises InputError if there is none.
    """
    there = splits_of(dataset, folder)
    return split_files(dataset, folder, there[0] if there else "train")[0]


def good_rows(file: Path) -> Iterator[Row]:
    """The rows of a file that can be read; what is wrong with others is told when they are used.

    Raises the first row's BadRow where none can be read.
    """
    first_bad, any_good = None, False
    for row in read_file(file):
        if isinstance(row, BadRow):
            first_bad = first_bad or row
        else:
            any_good = True
            yield row
    if first_bad is not None and not any_good:
        raise first_bad


def label_names(folder: Path) -> tuple[str, ...] | None:
    """The names in labels.json or categories.json; None without such a file.

    Raises InputError for one that is no list of at least two different names.
    """
    for file in (folder / name for name in _LABEL_FILES):
        if file.is_file():
            try:
                names = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(f"{file} is not a JSON list of label names: {error}") from error
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise InputError(f"{file} is not a JSON list of label names")
            if len(set(names)) < max(2, len(names)):
                raise InputError(f"{file} must list at least two different label names, each once")
            return tuple(names)
    return None


def _found_names(labels: Sequence[object], typed: bool) -> tuple[str, ...] | None:
    if not all(isinstance(label, str) for label in labels):
        return None
    texts = [str(label) for label in labels]
    if not typed and not any(isinstance(typed_label(text, ()), str) for text in texts):
        return None  # integers, or truth values, that CSV wrote as texts
    return tuple(sorted(set(texts)))
