"""Tokens kept in files: the offline cache of seqio, without Apache Beam.

``seqio_cache_tasks`` needs Beam; this writes the same files in one process, of any seqio task that
has a ``CacheDatasetPlaceholder``, whoever registered it::

    FOLDER/<task>/train.tfrecord-00000-of-00016 ...    rows, as seqio.dict_to_tfexample stores them
    FOLDER/<task>/info.train.json                      shards, shapes and dtypes
    FOLDER/<task>/stats.train.json                     rows, tokens, longest rows
    FOLDER/<task>/COMPLETED                            written last: what seqio looks for

After ``seqio.set_global_cache_dirs([FOLDER])``, ``seqio.get_dataset(..., use_cached=True)`` of a
task or a mixture reads them, in T5X too. A file is there whole or not at all, and a run that was
stopped goes on where it was.
"""

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peft_jax.errors import InputError
from peft_jax.files import replace_file
from peft_jax.tasks.draws import Draw
from peft_jax.tasks.registry import register
from peft_jax.tasks.tensorflow_data import seqio, tf
from peft_jax.tokenizer import Kind

COMPLETED = "COMPLETED"
_MADE_WITH = "peft_jax.json"
_OF_A_CACHE = re.compile(
    rf"{COMPLETED}|{re.escape(_MADE_WITH)}|(info|stats)\..+\.json|.+\.tfrecord-\d+-of-\d+|\..+\.json"
    r"|\..+\.partial"
)
_ROWS_A_SHARD = 2_000
_MOST_SHARDS = 64
_SHARDS = 16

Row = Mapping[str, Any]


def cache_task(
    task: str | seqio.Task | seqio.Mixture,
    directory: str | os.PathLike,
    splits: Sequence[str] | None = None,
    *,
    shards: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> list[Path]:
    """Writes the cache of a task, or of all tasks of a mixture.

    Args:
        task: registered with seqio, or the task itself.
        directory: where the tasks' folders are put.
        splits: None: all that the task has. Splits that are cached already are left as they are.
        shards: files of a split, at least; a source that comes in more files keeps their number.
            None: one for 2,000 rows, 1 to 64; 16 where seqio doesn't know the rows. For training on
            n hosts take n or more: each then reads its own files.
        overwrite: write again what is there.
        progress: show a progress bar.

    Returns the tasks' folders. Raises InputError for a task that does not exist, cannot be cached
    or has no such split, for a cache that was made with another vocabulary, and for a folder that
    holds anything but a cache.
    """
    if shards is not None and shards < 1:
        raise InputError(f"shards {shards}: at least 1 is needed")
    folders = []
    for one in _tasks_of(task):
        folder = Path(directory) / seqio.get_task_dir_from_name(one.name)
        _check_task(one, splits)
        _open_folder(folder, one, overwrite)
        for split in splits or one.splits:
            if not (folder / _info(split)).exists():
                _cache_split(one, split, folder, shards, progress)
        with replace_file(folder / COMPLETED) as new:
            new.write_text("")
        folders.append(folder)
    return folders


def prepare_seqio(
    task: str,
    output: str | os.PathLike,
    *,
    backbone_vocabulary_path: str | os.PathLike,
    splits: Sequence[str] | None = None,
    directory: str | Path | None = None,
    templates: str | Path | None = None,
    draw: Draw | None = None,
    kind: Kind = "encoder_decoder",
    ranks: bool | None = None,
    shards: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Registers a task of the catalogue with seqio and writes its cache: `peft-jax prepare`.

    Args:
        task, directory, templates, draw, kind, ranks: see `peft_jax.tasks.registry.register`.
        output, splits, shards, overwrite, progress: see `cache_task`.
        backbone_vocabulary_path: the backbone's vocabulary, a Hugging Face folder or a file of it.

    Returns the task's folder. Raises InputError as `register` and `cache_task` do.
    """
    name, *_ = register(
        task,
        vocabulary=backbone_vocabulary_path,
        directory=directory,
        templates=templates,
        draw=draw,
        kind=kind,
        ranks=ranks,
    )
    (folder,) = cache_task(
        name, output, splits, shards=shards, overwrite=overwrite, progress=progress
    )
    return folder


# --------------------------------------------------------------------------------------------
# Tasks and folders
# --------------------------------------------------------------------------------------------
def _tasks_of(task: str | seqio.Task | seqio.Mixture) -> list[seqio.Task]:
    if isinstance(task, str):
        known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
        if task not in known:
            raise InputError(f"no task or mixture {task!r} is registered with seqio")
        task = seqio.get_mixture_or_task(task)
    return list(task.tasks) if isinstance(task, seqio.Mixture) else [task]


def _check_task(task: seqio.Task, splits: Sequence[str] | None) -> None:
    if not task.supports_caching:
        raise InputError(
            f"task {task.name} cannot be cached: it has no CacheDatasetPlaceholder (one whose "
            "vocabulary is a Hugging Face tokenizer cuts texts while it reads them: prepare its "
            "rows with `peft-jax prepare` in place of a cache)"
        )
    unknown = [split for split in splits or () if split not in task.splits]
    if unknown:
        raise InputError(f"task {task.name} has no split {unknown[0]!r}: {sorted(task.splits)}")


def _open_folder(folder: Path, task: seqio.Task, overwrite: bool) -> None:
    """The folder, with only what was made as it would be made now."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(path.name for path in folder.iterdir())
    others = [name for name in found if not _OF_A_CACHE.fullmatch(name)]
    if others:
        raise InputError(
            f"{folder} holds {others[0]}, which is no part of a cache: give a folder of its own"
        )
    if overwrite:
        # COMPLETED first, which says that the rest can be read.
        for name in sorted(found, key=lambda name: name != COMPLETED):
            (folder / name).unlink()
    made_with = {
        "seqio": seqio.__version__,
        "features": {name: _describe(f) for name, f in task.output_features.items()},
    }
    note = folder / _MADE_WITH
    before = json.loads(note.read_text()) if note.exists() else None
    if before is None and (folder / COMPLETED).exists():
        raise InputError(f"{folder} has a cache that is not from here: overwrite it, or leave it")
    if before not in (None, made_with):
        raise InputError(
            f"{folder} was cached with other features or another vocabulary than task {task.name} "
            "has: overwrite it (--overwrite), or give another folder"
        )
    with replace_file(note) as new:
        new.write_text(json.dumps(made_with, indent=1, sort_keys=True) + "\n")


def _describe(feature: seqio.Feature) -> str:
    """A feature in words that do not depend on where its vocabulary lies."""
    vocabulary = re.sub(r"(file|path)=[^,)]*,? ?", "", str(feature.vocabulary))
    return f"{vocabulary} eos={feature.add_eos} rank={feature.rank} {feature.dtype}"


def _info(split: str) -> str:
    return f"info.{split}.json"


# --------------------------------------------------------------------------------------------
# One split
# --------------------------------------------------------------------------------------------
def _cache_split(
    task: seqio.Task, split: str, folder: Path, shards: int | None, progress: bool
) -> None:
    """Writes all files of a split; what says that it is there, info.json, last."""
    sources = len(task.source.list_shards(split))
    files = -(-_shard_count(task, split, shards) // sources)
    parts = []
    for source in range(sources):
        names = [
            f"{split}.tfrecord-{source * files + i:05d}-of-{sources * files:05d}"
            for i in range(files)
        ]
        label = f"{task.name} {split}" + (f" {source + 1}/{sources}" if sources > 1 else "")
        part = folder / f".{split}-{source:05d}-of-{sources:05d}.json"
        if not part.exists():
            ds = _source_rows(task, split, source, sources)
            total = task.num_input_examples(split) if sources == 1 else None
            with _bar(label, total, progress) as shown, replace_file(part) as new:
                new.write_text(json.dumps(_write_rows(task, ds, folder, names, shown)))
        parts.append(json.loads(part.read_text()))
    features = next((part["features"] for part in parts if part["features"]), None)
    if features is None:
        raise InputError(f"task {task.name} has no rows in its split {split}")
    info = {"num_shards": sources * files, "features": features, "seqio_version": seqio.__version__}
    for name, content in ((f"stats.{split}.json", _stats(parts)), (_info(split), info)):
        with replace_file(folder / name) as new:
            new.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    for part in folder.glob(f".{split}-*.json"):
        part.unlink()


def _shard_count(task: seqio.Task, split: str, shards: int | None) -> int:
    if shards is not None:
        return shards
    rows = task.num_input_examples(split)
    return _SHARDS if rows is None else min(_MOST_SHARDS, max(1, rows // _ROWS_A_SHARD))


def _source_rows(task: seqio.Task, split: str, source: int, sources: int) -> tf.data.Dataset:
    # A source that is one function may know nothing of shards.
    shard = seqio.ShardInfo(index=source, num_shards=sources) if sources > 1 else None
    ds = task.source.get_dataset(split=split, shuffle=False, seed=source, shard_info=shard)
    return task.preprocess_precache(ds, seed=source)


@contextlib.contextmanager
def _bar(label: str, total: int | None, shown: bool) -> Iterator[Callable[[Iterable], Iterable]]:
    from rich.progress import Progress

    with Progress(disable=not shown, transient=True) as bar:
        yield lambda rows: bar.track(rows, description=label, total=total)


def _write_rows(
    task: seqio.Task,
    ds: tf.data.Dataset,
    folder: Path,
    names: Sequence[str],
    shown: Callable[[Iterable], Iterable],
) -> dict[str, Any]:
    """Deals rows to files in turn; returns their features and what they add to the stats."""
    features: dict[str, dict] = {}
    sums: Counter[str] = Counter()
    most: Counter[str] = Counter()
    count = _token_counter(task)
    rows = stored_rows(ds).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    with contextlib.ExitStack() as stack:
        # Entered first, so that the files are closed before they are moved to their places.
        places = [stack.enter_context(replace_file(folder / name)) for name in names]
        files = [stack.enter_context(tf.io.TFRecordWriter(str(place))) for place in places]
        for number, row in enumerate(shown(rows)):
            if not features:
                features = {name: _info_of(s, row[name]) for name, s in ds.element_spec.items()}
            _check_row(task, ds.element_spec, features, row)
            files[number % len(files)].write(to_example(row).SerializeToString())
            sums["examples"] += 1
            for name, tokens in count(row):
                sums[f"{name}_tokens"] += tokens
                most[f"{name}_max_tokens"] = max(most[f"{name}_max_tokens"], tokens)
    return {"features": features, "sums": sums, "most": most}


def _info_of(spec: tf.TypeSpec, value: Any) -> dict[str, Any]:
    """What info.json says of a feature, as seqio's own caching says it of the first row."""
    shape = spec.shape.as_list() if _is_ragged(spec) else list(np.shape(value))
    return {"shape": [None, *shape[1:]] if shape else [], "dtype": spec.dtype.name}


def _check_row(
    task: seqio.Task, specs: Mapping[str, tf.TypeSpec], features: Mapping[str, dict], row: Row
) -> None:
    """Raises InputError for a row that could not be read back with what info.json says."""
    for name, info in features.items():
        shape = list(np.shape(row[name]))
        if shape[1:] != info["shape"][1:] and not _is_ragged(specs[name]):
            raise InputError(
                f"task {task.name}: {name} has the shape {shape} in one row and {info['shape']} in "
                "another; a dense array is cached with one length along all axes but the first: "
                "keep it ragged in front of the CacheDatasetPlaceholder"
            )


def _token_counter(task: seqio.Task) -> Callable[[Row], Iterator[tuple[str, int]]]:
    """Tokens of a row's features without EOS and padding, as seqio counts them."""
    special = {
        name: {i for i in (f.vocabulary.eos_id, f.vocabulary.pad_id) if i is not None}
        for name, f in task.output_features.items()
        if f.rank < 2
    }

    def count(row: Row) -> Iterator[tuple[str, int]]:
        for name, ids in special.items():
            value = row.get(name)
            if isinstance(value, np.ndarray | np.generic) and value.dtype in (np.int32, np.int64):
                yield name, value.size - sum(int(np.count_nonzero(value == i)) for i in ids)

    return count


def _stats(parts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for part in parts:
        sums.update(part["sums"])
        most |= Counter(part["most"])  # the larger of both
    return dict(sums | most)


# --------------------------------------------------------------------------------------------
# One row
# --------------------------------------------------------------------------------------------
def stored_rows(ds: tf.data.Dataset) -> tf.data.Dataset:
    """Rows as a ``tf.train.Example`` holds them: a ragged feature as its values and row lengths."""
    ragged = [name for name, spec in ds.element_spec.items() if _is_ragged(spec)]

    def flatten(row: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        flat = dict(row)
        for name in ragged:
            flat[name] = row[name].flat_values
            for dim, lengths in enumerate(row[name].nested_row_lengths()):
                flat[seqio.utils.tfexample_ragged_length_key(name, dim)] = lengths
        return flat

    return ds.map(flatten, num_parallel_calls=tf.data.AUTOTUNE) if ragged else ds


def to_example(row: Row) -> tf.train.Example:
    """A row of `stored_rows`, as numpy, as ``seqio.dict_to_tfexample`` makes it; but faster."""
    example = tf.train.Example()
    for name, value in row.items():
        feature, flat = example.features.feature[name], np.asarray(value).reshape(-1)
        if flat.dtype.kind in "biu":
            feature.int64_list.value.extend(flat.tolist())
        elif flat.dtype.kind == "f":
            feature.float_list.value.extend(flat.tolist())
        else:
            feature.bytes_list.value.extend(flat.tolist())
    return example


def _is_ragged(spec: tf.TypeSpec) -> bool:
    return isinstance(spec, tf.RaggedTensorSpec)
