"""A task -> the plain arrays of `peft_jax.examples`, through seqio.

The job of `peft-jax prepare`.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples, vocabulary_identity
from peft_jax.tasks.converters import (
    RankClassificationFeatureConverter,
    choice_lengths,
    input_errors,
)
from peft_jax.tasks.prompted import FewShot, PromptedTask, find_task
from peft_jax.tasks.registry import load_vocabulary, seqio_task, seqio_task_name
from peft_jax.tasks.tensorflow_data import seqio

_ROWS_AT_ONCE = 256


def choice_examples(
    task: str,
    split: str,
    *,
    backbone_vocabulary_path: str | os.PathLike,
    directory: str | Path | None = None,
    templates: str | Path | None = None,
    max_input_length: int = 256,
    max_choice_length: int = 64,
    shots: int | None = None,
    seed: int | None = None,
    few_shot_style: str = "tfew",
    multiple: int = 1,
    progress: bool = False,
) -> ChoiceExamples:
    """Tokenises a split of a task under all of its templates.

    Args:
        task: see `peft_jax.tasks.prompted.find_task`, as for ``directory`` and ``templates``.
        split: "train", "validation", or the stem of another JSONL file in the task's folder.
        backbone_vocabulary_path: the backbone's spiece.model.
        max_input_length: S at most; longer inputs are cut and still end in EOS (T-Few: 256).
        max_choice_length: T at most, EOS included; a longer choice is an error, never cut.
        shots: a few-shot draw instead of the whole split; None: no draw.
        seed: the draw's seed, needed with ``shots``.
        few_shot_style: "tfew" as T-Few drew each dataset, or "per_class": ``shots`` of each class.
        multiple: lengths are rounded up to a multiple of this.
        progress: show a progress bar.

    Returns arrays with the fewest places that hold the data. Raises InputError for everything that
    is wrong with the task, its files, its templates, the vocabulary or the limits.
    """
    _check_limits(max_input_length, max_choice_length, multiple)
    found = find_task(task, directory=directory, templates=templates)
    if shots is not None:
        found = _with_draw(found, split, shots, seed, few_shot_style)
    vocabulary = load_vocabulary(backbone_vocabulary_path)
    with _progress(progress) as track:
        rows = found.prompted(split, lambda examples: track(examples, f"{task}: prompts"))
        lengths = choice_lengths(
            max_input_length, max(len(row.choices) for row in rows), max_choice_length
        )
        dataset = seqio.get_dataset(
            seqio_task(seqio_task_name(task), found, vocabulary),
            lengths,
            RankClassificationFeatureConverter(),
            dataset_split=split,
            verbose=False,
        ).batch(_ROWS_AT_ONCE)
        batches = track(
            dataset.as_numpy_iterator(), f"{task}: tokens", -(-len(rows) // _ROWS_AT_ONCE)
        )
        with input_errors(task):
            arrays = _concatenate(batches)
    details = {
        "max_input_length": max_input_length,
        "max_choice_length": max_choice_length,
        "shots": shots,
        "few_shot_seed": None if shots is None else seed,
        "few_shot_style": None if shots is None else few_shot_style,
        "metric": found.dataset.metric,
        "labels": list(found.dataset.labels),
    }
    return ChoiceExamples(
        task=task,
        split=split,
        template_names=tuple(template.name for template in found.templates),
        vocabulary=vocabulary_identity(backbone_vocabulary_path),
        details=details,
        **arrays,
    ).trimmed(multiple)


def prepare(
    task: str,
    output: str | os.PathLike,
    *,
    split: str = "train",
    overwrite: bool = False,
    **options,
) -> ChoiceExamples:
    """Writes `choice_examples` of a split to a file that trains without TensorFlow.

    Args:
        task, split, options: see `choice_examples`.
        output: the file; one that exists is refused unless ``overwrite``.

    Raises InputError as `choice_examples` does, and for an output that exists.
    """
    if Path(output).exists() and not overwrite:
        raise InputError(f"{output} exists: give another --output, or --overwrite to replace it")
    examples = choice_examples(task, split, **options)
    examples.save(output)
    return examples


def _with_draw(
    task: PromptedTask, split: str, shots: int, seed: int | None, style: str
) -> PromptedTask:
    if style not in ("tfew", "per_class"):
        raise InputError(f"few-shot style {style!r} is not known: give 'tfew' or 'per_class'")
    if seed is None:
        raise InputError(f"{shots} shots were asked for without a few-shot seed: give one")
    per_class = style == "per_class" or task.dataset.per_class
    draw = FewShot(shots, seed, per_class=per_class, split=split)
    return dataclasses.replace(task, few_shot=draw)


def _check_limits(max_input_length: int, max_choice_length: int, multiple: int) -> None:
    limits = {
        "max_input_length": max_input_length,
        "max_choice_length": max_choice_length,
        "multiple": multiple,
    }
    for name, value in limits.items():
        least = 1 if name == "multiple" else 2
        if value < least:
            raise InputError(f"{name} {value}: at least {least} is needed")


def _concatenate(batches: Iterable[dict]) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


@contextlib.contextmanager
def _progress(shown: bool) -> Iterator[Callable]:
    """A progress bar, or none: gives ``track(items, description, total)``."""
    from rich.progress import Progress

    with Progress(disable=not shown, transient=True) as bar:
        yield lambda items, description, total=None: bar.track(
            items, total=len(items) if total is None else total, description=description
        )
