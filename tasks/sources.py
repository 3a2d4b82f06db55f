"""Rows of a dataset: from a folder of files, or from TensorFlow Datasets.

Whatever the source, a row comes back with promptsource's field names and an ``idx``, and with an
int ``label`` where the dataset has labels, in the dataset's official order. Everything that can be
wrong with a file is found here, before anything is tokenised or trained, and is told with the file,
the line and the field.

A dataset's folder stands below the data directory under any of its names (see `places`), or is that
directory itself. Its splits are files of the kinds of `peft_jax.tasks.files`, in the folder itself,
in ``data/``, or in a folder named like the dataset's configuration::

    train.jsonl                            one file
    data/train-00000-of-00003.parquet      shards, as on the Hugging Face hub
    rte/train/0000.parquet                 a folder of shards, as the hub converts them

Validation may be called validation, dev, valid, val or development.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from peft_jax.errors import InputError
from peft_jax.tasks.datasets import Dataset, find_dataset
from peft_jax.tasks.files import ENDINGS, class_names, ending_of, is_typed, read_file, stem_of
from peft_jax.tasks.held_out import held_out_positions
from peft_jax.tasks.row_report import BadRow, Row, RowReport, Source

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "dev", "valid", "val", "development"),
    "test": ("test", "testing"),
}
"""Our splits, and how their files may be called."""

# Folders inside a dataset's own where the hub keeps files of the only configuration.
_USUAL_FOLDERS = ("data", "default", "plain_text")
# Kinds of files that hold data under whatever name; texts and JSON hold other things too.
_DATA_ONLY = ("jsonl", "csv", "tsv", "parquet")
_SHARD = re.compile(r"[-.](?P<number>\d+)(?:-of-(?P<count>\d+))?(?:-[0-9a-f]{8,})?")
# What code that unpacks a row raises where the row is of another shape.
_UNEXPECTED = (AttributeError, IndexError, KeyError, TypeError, ValueError)
# How TFDS nests the place of a row, from the outer part to the inner.
_NESTED_INDEX = ("paragraph", "passage", "question", "query", "answer")


# --------------------------------------------------------------------------------------------
# Folders
# --------------------------------------------------------------------------------------------
def find_source(wanted: str | Dataset, directory: str | Path | None) -> tuple[Dataset, Path | None]:
    """The dataset that is wanted, and its folder of files (None: TFDS).

    Args:
        wanted: a dataset, or the name of one, or of a folder of the user's own.
        directory: the folder itself, or one that holds a folder called as the dataset (``rte``,
            ``superglue_rte``, ``super_glue/rte``); for somebody's own data also one file. None to
            read a dataset from TFDS.

    Raises InputError if there is no such dataset or folder.
    """
    dataset = wanted if isinstance(wanted, Dataset) else find_dataset(wanted)
    if directory is None:
        if dataset is None:
            raise InputError(
                "give --data.directory with a folder that holds train.jsonl and templates.yaml or "
                "task.yaml"
            )
        if dataset.tfds is None:
            raise InputError(
                f"{dataset.name} is not in TFDS: give --data.directory with "
                + wanted_files(dataset)
            )
        return dataset, None
    if dataset is not None:
        return dataset, find_folder(dataset, directory)
    from peft_jax.tasks.own_folder import folder_dataset

    folder = find_folder(Dataset(name=str(wanted), fields=()), directory)
    return folder_dataset(str(wanted), folder), folder


def find_folder(dataset: Dataset, directory: str | Path) -> Path:
    """The folder of a dataset's files at or below a directory, or the file that is given itself.

    Raises InputError, with what was looked for and where it is had, if there is none.
    """
    directory = Path(directory)
    if directory.is_file() and ending_of(directory) is not None:
        return directory
    if not directory.is_dir():
        raise InputError(f"--data.directory {directory} is not a folder")
    candidates = places(dataset, directory)
    for folder in candidates:
        if _holds_data(dataset, folder):
            return folder
    raise InputError(
        f"no data files for task {dataset.name!r}: wanted is {wanted_files(dataset)}; looked in "
        + ", ".join(map(str, candidates))
    )


def places(dataset: Dataset, directory: Path) -> list[Path]:
    """Where a dataset's folder may be, the likeliest first, the directory itself last.

    The names are `Dataset.folder`, `Dataset.name`, and those of the hub and of TFDS, whose slash
    may be a folder, two or three underscores (as the hub's own tools write it), or one.
    """
    names = [dataset.folder, dataset.name]
    for published in (dataset.hub, dataset.tfds):
        names += [(published or "").replace("/", mark) for mark in ("/", "__", "___", "_")]
    return [directory / name for name in dict.fromkeys(names) if name] + [directory]


def wanted_files(dataset: Dataset) -> str:
    """Which files a dataset is read from, of which kinds, and where they are had, in one line."""
    line = f"{wanted_file(dataset)} (or {', '.join(ENDINGS[1:])}, each also .gz)"
    return f"{line}; {dataset.download}" if dataset.download else line


def wanted_file(dataset: Dataset) -> str:
    """The file of training rows that a dataset is read from, below the data directory."""
    return f"{dataset.folder or dataset.name}/{dataset.splits.get('train', 'train')}.jsonl"


def splits_of(dataset: Dataset, folder: Path) -> tuple[str, ...]:
    """Those of train, validation, test and the dataset's own splits whose files are there."""
    ours = dict.fromkeys([*SPLIT_NAMES, *dataset.splits])
    return tuple(
        split
        for split in ours
        if _is_published(dataset, folder, split) or _find_files(dataset, folder, split)
    )


def _is_published(dataset: Dataset, folder: Path, split: str) -> bool:
    return (
        dataset.published is not None
        and folder.is_dir()
        and split in dataset.published.splits(folder)
    )


def _holds_data(dataset: Dataset, folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if splits_of(dataset, folder):
        return True
    return any(ending_of(file) in _DATA_ONLY for file in _data_files(folder))


# --------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------
def split_files(dataset: Dataset, folder: Path, split: str) -> list[Path]:
    """The files of a split, shards in order.

    Args:
        folder: of the dataset, or the one file that it is, which then is its "train".

    Raises InputError, with what is there, if there is none; for a shard that is missing; and if the
    split is there twice, as train.csv and as train.jsonl.
    """
    found = _find_files(dataset, folder, split)
    if not found and folder.is_file():
        raise InputError(
            f"{folder} is one file, all of it train: there is none for {split} (give a folder)"
        )
    if not found:
        stems = _stems(dataset, split)
        others = f" nor is it called {', '.join(stems[1:])}," if stems[1:] else ""
        there = sorted(_data_files(folder))
        raise InputError(
            f"{folder / stems[0]}.jsonl does not exist,{others} nor is there one of "
            f"{', '.join(ENDINGS[1:])}; the files there: "
            + (", ".join(file.name for file in there) or "none")
            + (f"; {dataset.download}" if dataset.download else "")
        )
    return found


def _find_files(dataset: Dataset, folder: Path, split: str) -> list[Path]:
    if folder.is_file():
        return [folder] if split == "train" else []
    published = [name for name in (dataset.hub, dataset.tfds) if name]
    configurations = [name.rpartition("/")[2] for name in published if "/" in name]
    inner = dict.fromkeys(["", *configurations, *_USUAL_FOLDERS])
    listed = {folder / name: _data_files(folder / name) for name in inner}
    for stem in _stems(dataset, split):
        for place, files in listed.items():
            found = _files_of(place, stem, files)
            if found:
                return found
    return []


def _stems(dataset: Dataset, split: str) -> list[str]:
    """How the files of a split may be called: as in the source, as we call it, and its aliases."""
    stems = []
    for name in (dataset.splits.get(split), split):
        if name is None:
            continue
        first, rest = re.fullmatch(r"([a-z]*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
        known = first in SPLIT_NAMES and (not rest or rest[0] in "_-.")
        stems += [name, *(other + rest for other in SPLIT_NAMES[first])] if known else [name]
    return list(dict.fromkeys(stems))


def _files_of(place: Path, stem: str, files: list[Path]) -> list[Path]:
    """The files of one stem among those of one folder: a file, its shards, or a folder of files."""
    if "/" in stem:
        place, stem = (place / stem).parent, Path(stem).name
        files = _data_files(place)
    inside = sorted(_data_files(place / stem))
    if inside:
        kinds = sorted({str(ending_of(file)) for file in inside})
        if len(kinds) > 1:
            raise InputError(f"{place / stem} holds files of several kinds: {', '.join(kinds)}")
        return inside
    whole, shards = [], []
    for file in files:
        name = stem_of(file)
        if name.lower() == stem.lower():
            whole.append(file)
        elif name.startswith(stem) and (match := _SHARD.fullmatch(name[len(stem) :])):
            shards.append((int(match["number"]), match["count"], file))
    shards.sort(key=lambda shard: (shard[0], shard[2].name))
    if len(whole) > 1 or (whole and shards) or len({ending_of(shard[2]) for shard in shards}) > 1:
        names = sorted(file.name for file in (*whole, *(shard[2] for shard in shards)))
        raise InputError(
            f"{place} holds {stem} more than once ({', '.join(names[:4])}): leave one there"
        )
    _refuse_missing_shards(shards)
    return whole or [file for _, _, file in shards]


def _refuse_missing_shards(shards: list[tuple[int, str | None, Path]]) -> None:
    counts = {int(count) for _, count, _ in shards if count is not None}
    if len(counts) > 1:
        raise InputError(
            f"{shards[0][2].parent} holds shards of several copies: "
            + ", ".join(file.name for _, _, file in shards)
        )
    if counts:
        missing = sorted(set(range(counts.pop())) - {number for number, _, _ in shards})
        if missing:
            raise InputError(f"shard {missing[0]} is missing beside {shards[0][2]}")


def _data_files(folder: Path) -> list[Path]:
    """Files of the kinds that are read, without hidden ones."""
    try:
        inside = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    return [
        file
        for file in inside
        if not file.name.startswith(".") and ending_of(file) is not None and file.is_file()
    ]


# --------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------
def read_rows(
    dataset: Dataset, split: str, folder: Path | None, report: RowReport | None = None
) -> list[dict]:
    """All rows of a split, normalised (see `Dataset.normalise`), in the dataset's order.

    Args:
        split: "train", "validation", "test", or the stem of another file there. Where there is no
            file for validation and the dataset says so (`Dataset.held_out`), a part of train is
            held out for it.
        folder: as `find_source` gives it.
        report: whether bad rows are skipped, and what is told of them; None: they are errors.

    Raises InputError for a split that is missing, empty, or has one label only, and for a row that
    is not valid.
    """
    report = report or RowReport()
    if folder is not None and _is_held_out(dataset, split, folder):
        source, rows = f"{folder} ({split})", _part_of_train(dataset, split, folder, report)
    else:
        source = _source(dataset, split, folder)
        rows = list(stream_rows(dataset, split, folder, report))
    if folder is None:
        # TFDS stores its files shuffled; T-Few's draws are made on the official order.
        rows.sort(key=lambda row: _place_in_order(row["idx"]))
    skipped = "".join(f"; {line}" for line in report.lines()) if report.skipped else ""
    if not rows:
        raise InputError(f"{source} is empty: {dataset.name} needs rows{skipped}")
    labels = {row["label"] for row in rows} if dataset.label_field is not None else set()
    if len(labels) == 1:
        raise InputError(
            f"{source} has one label only ({labels.pop()} in all {len(rows)} rows): nothing can be "
            f"learned or measured; give rows of at least two labels{skipped}"
        )
    return rows


def stream_rows(
    dataset: Dataset, split: str, folder: Path | None, report: RowReport | None = None
) -> Iterator[Row]:
    """The rows of a split's files one after the other, for files that are larger than memory.

    As `read_rows`, but in the order in which the source stores them, with nothing held out and
    nothing said of the split as a whole.
    """
    report = report or RowReport()
    positions = itertools.count()
    if folder is None:
        sources = {_source(dataset, split, None): _tfds_rows(dataset, split)}
    elif dataset.published is not None and _is_published(dataset, folder, split):
        name = _source(dataset, split, folder)
        rows = enumerate(dataset.published.read(folder, split))
        sources = {name: (Row(row, f"{name}, row {number}") for number, row in rows)}
    else:
        files = split_files(dataset, folder, split)
        sources = {str(file): _file_rows(dataset, file) for file in files}
    for name, rows in sources.items():
        yield from _normalised(dataset, rows, report.source(name), positions)


def _source(dataset: Dataset, split: str, folder: Path | None) -> str:
    if folder is None:
        return f"TFDS {dataset.tfds} ({dataset.splits.get(split, split)})"
    if _is_published(dataset, folder, split):
        return f"{folder} ({split})"
    files = split_files(dataset, folder, split)
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _normalised(
    dataset: Dataset, rows: Iterator[Row | BadRow], counted: Source, positions: Iterator[int]
) -> Iterator[Row]:
    """Rows as a source has them -> as the task reads them; bad ones are counted, or raised."""
    for row in rows:
        counted.seen()
        try:
            if isinstance(row, BadRow):
                next(positions)
                raise row
            made = [
                Row(dataset.normalise(part, position, row.where), row.where)
                for part, position in zip(_expanded(dataset, row), positions, strict=False)
            ]
        except InputError as error:
            counted.bad(error if isinstance(error, BadRow) else BadRow(str(error)))
            made = []
        except _UNEXPECTED as error:
            counted.bad(_not_laid_out(dataset, row, error))
            made = []
        yield from made
    counted.refuse_if_none_is_left()


def _expanded(dataset: Dataset, row: Row) -> list[dict]:
    if dataset.expand is None:
        return [row]
    try:
        return dataset.expand(row)
    except InputError as error:
        raise BadRow(f"{row.where}: {error}") from error


def _not_laid_out(dataset: Dataset, row: Row, error: Exception) -> BadRow:
    return BadRow(
        f"{row.where}: the row is not laid out as {dataset.name}'s are ({type(error).__name__}: "
        f"{error}); it has " + ", ".join(row)
    )


def _is_held_out(dataset: Dataset, split: str, folder: Path) -> bool:
    return (
        dataset.held_out is not None
        and split in ("train", "validation")
        and "validation" not in splits_of(dataset, folder)
    )


def _part_of_train(dataset: Dataset, split: str, folder: Path, report: RowReport) -> list[dict]:
    rows = list(stream_rows(dataset, "train", folder, report))
    rule = dataset.held_out
    if not rows or rule is None:
        return rows
    held = held_out_positions(rows, dataset.fields, rule)
    report.note(
        f"{dataset.name} has no file for validation: {len(held):,} of {len(rows):,} rows of train "
        f"are held out for it, and not trained on (held_out {rule.share:g} of each class, seed "
        f"{rule.seed})"
    )
    return [row for i, row in enumerate(rows) if (i in held) == (split == "validation")]


def _file_rows(dataset: Dataset, file: Path) -> Iterator[Row | BadRow]:
    """A file's rows with labels of the type and in the order that the dataset means."""
    field = dataset.label_field
    names = None if field is None else class_names(file, field)
    renumbered = names is not None and names != dataset.labels and set(names) == set(dataset.labels)
    for row in read_file(file):
        if not isinstance(row, BadRow) and field in row:
            if not is_typed(file):
                row[field] = typed_label(row[field], dataset.labels)
            elif renumbered and isinstance(row[field], int) and 0 <= row[field] < len(names or ()):
                row[field] = (names or ())[row[field]]
        yield row


def typed_label(text: str, labels: tuple[str, ...]) -> str | int | bool:
    """What a label means that CSV wrote as text: a name, else a number or a truth value."""
    if text in labels:
        return text
    if re.fullmatch(r"\s*-?\d+\s*", text):
        return int(text)
    truth = {"true": True, "false": False}
    return truth.get(text.strip().lower(), text)


# --------------------------------------------------------------------------------------------
# TensorFlow Datasets
# --------------------------------------------------------------------------------------------
def _tfds_rows(dataset: Dataset, split: str) -> Iterator[Row]:
    """The rows of a TFDS split as plain Python values."""
    split = dataset.splits.get(split, split)
    try:
        import tensorflow_datasets as tfds

        loaded = tfds.load(dataset.tfds, split=split, shuffle_files=False, batch_size=None)
        rows = iter(tfds.as_numpy(loaded))
        first = next(rows, None)
    except Exception as error:  # TFDS fails in many ways, and all mean the same to the user
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{dataset.name} cannot be read from TFDS ({dataset.tfds}, {split}): {first_line}. "
            f"Give --data.directory with {wanted_files(dataset)} instead, or make TFDS reachable "
            "(network, or TFDS_DATA_DIR with a prepared copy)"
        ) from error
    number = 0
    while first is not None:
        number += 1
        yield Row(_plain(first), f"TFDS {dataset.tfds} ({split}), row {number}")
        first = next(rows, None)


def _plain(value):
    """TFDS's bytes as text, numpy's numbers and arrays as Python's, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _place_in_order(index):
    """What a row's ``idx`` is sorted by; SuperGLUE nests those of MultiRC and ReCoRD."""
    if not isinstance(index, Mapping):
        return index
    known = [index[name] for name in _NESTED_INDEX if name in index]
    return known or list(index.values())
