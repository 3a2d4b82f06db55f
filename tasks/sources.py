"""Rows of a dataset: from a folder of JSONL files, or from TensorFlow Datasets.

Whatever the source, a row comes back with promptsource's field names, an int ``label`` and an int
``idx``, in the dataset's official order. Everything that can be wrong with a file is found here,
before anything is tokenised or trained, and is told with the file, the line and the field.
"""

import json
from pathlib import Path

from peft_jax.errors import InputError
from peft_jax.tasks.datasets import DATASETS, Dataset, find_dataset

_LABEL_FIELDS = ("label", "category", "Label")
_LABEL_FILES = ("labels.json", "categories.json")


def find_source(wanted: str | Dataset, directory: str | Path | None) -> tuple[Dataset, Path | None]:
    """The dataset that is wanted, and its folder of JSONL files (None: TFDS).

    Args:
        wanted: a dataset, or the name of one, or of a folder of the user's own.
        directory: the folder itself, or one that holds a folder called as the dataset (``rte`` or
            ``superglue_rte``); None to read a dataset of the table from TFDS.

    Raises InputError if there is no such dataset or folder.
    """
    dataset = wanted if isinstance(wanted, Dataset) else find_dataset(wanted)
    name = wanted.name if isinstance(wanted, Dataset) else wanted
    if directory is None:
        if dataset is None:
            raise InputError(
                f"task {name!r} is not known: give --data.directory with a folder that holds "
                f"train.jsonl, validation.jsonl and templates.yaml, or one of the known tasks "
                + ", ".join(DATASETS)
            )
        return dataset, None
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"--data.directory {directory} is not a folder")
    names = [name] if dataset is None else [dataset.folder, dataset.name, name]
    candidates = [directory / candidate for candidate in names] + [directory]
    for folder in candidates:
        if any(folder.glob("*.jsonl")):
            return dataset or _dataset_of_folder(name, folder), folder
    raise InputError(
        f"no JSONL files for task {name!r}: looked for train.jsonl in "
        + ", ".join(map(str, candidates))
    )


def read_rows(dataset: Dataset, split: str, folder: Path | None) -> list[dict]:
    """All rows of a split, normalised (see `Dataset.normalise`), in the dataset's order.

    Raises InputError for a split that is missing, empty, or has one label only, and for a row that
    is not valid.
    """
    if folder is not None:
        file = _split_file(folder, split)
        source = str(file)
        rows = [
            dataset.normalise(row, position, f"{file}:{line}")
            for position, (line, row) in enumerate(read_jsonl(file))
        ]
    else:
        source = f"TFDS {dataset.tfds} ({split})"
        rows = [
            dataset.normalise(row, position, f"{source}, row {position}")
            for position, row in enumerate(_tfds_rows(dataset, split))
        ]
        # TFDS stores its files shuffled; T-Few's draws are made on the official order.
        rows.sort(key=lambda row: row["idx"])
    if not rows:
        raise InputError(f"{source} is empty: {dataset.name} needs rows")
    labels = {row["label"] for row in rows} if dataset.label_field is not None else set()
    if len(labels) == 1:
        raise InputError(
            f"{source} has one label only ({labels.pop()} in all {len(rows)} rows): nothing can be "
            "learned or measured; give rows of at least two labels"
        )
    return rows


def read_jsonl(file: Path) -> list[tuple[int, dict]]:
    """The objects of a JSONL file, each with its line number; blank lines are passed over.

    Raises InputError for a file that cannot be read and for a line that is not a JSON object.
    """
    rows = []
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append((number, _json_object(line, f"{file}:{number}")))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error.reason}") from error
    return rows


def _json_object(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} (column {error.colno})") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: a JSON object is needed, not {type(row).__name__}")
    return row


def _split_file(folder: Path, split: str) -> Path:
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        present = ", ".join(sorted(path.name for path in folder.glob("*.jsonl"))) or "none"
        raise InputError(f"{file} does not exist; the JSONL files there: {present}")
    return file


def _dataset_of_folder(name: str, folder: Path) -> Dataset:
    """What a user's own folder says about itself.

    The label stands in the field ``label`` (or ``category``). Its names are those of labels.json
    (or categories.json), a list in order; without one, the strings found in the training file
    (validation.jsonl, if there is only that), sorted, or integers.
    """
    only_validation = not (folder / "train.jsonl").is_file()
    file = _split_file(folder, "validation" if only_validation else "train")
    rows = read_jsonl(file)
    if not rows:
        raise InputError(f"{file} is empty: {name} needs labelled rows")
    first = rows[0][1]
    field = next((field for field in _LABEL_FIELDS if field in first), None)
    if field is None:
        raise InputError(
            f"{file}:{rows[0][0]}: field 'label' is missing; the row has " + ", ".join(first)
        )
    names = _label_names(folder)
    if names is None and all(isinstance(row.get(field), str) for _, row in rows):
        names = tuple(sorted({row[field] for _, row in rows}))
    return Dataset(
        name=name,
        fields=tuple(key for key in first if key != field),
        labels=names or (),
        label_field=field,
        named_labels=names is not None,
    )


def _label_names(folder: Path) -> tuple[str, ...] | None:
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


def _tfds_rows(dataset: Dataset, split: str):
    """The rows of a TFDS split as dicts of bytes and numpy scalars."""
    advice = (
        f"{dataset.name} cannot be read from TFDS ({dataset.tfds}, {split}): {{}}. Give "
        "--data.directory with a folder of JSONL files instead, or make TFDS reachable "
        "(network, or TFDS_DATA_DIR with a prepared copy)"
    )
    try:
        import tensorflow_datasets as tfds

        loaded = tfds.load(dataset.tfds, split=split, shuffle_files=False, batch_size=None)
        return list(tfds.as_numpy(loaded))
    except Exception as error:  # TFDS fails in many ways, and all mean the same to the user
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(advice.format(first_line)) from error
