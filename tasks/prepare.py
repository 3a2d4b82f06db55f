"""A task -> the plain arrays of `peft_jax.examples`, through seqio.

The job of `peft-jax prepare`.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Unpack

import numpy as np

from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples, vocabulary_identity
from peft_jax.markers import has_markers
from peft_jax.tasks.converters import (
    RankClassificationFeatureConverter,
    choice_lengths,
    input_errors,
)
from peft_jax.tasks.encoders import label_examples, verbalizer_examples
from peft_jax.tasks.options import TaskOptions, check_limits, describe, open_task, progress_bar
from peft_jax.tasks.registry import seqio_task, seqio_task_name
from peft_jax.tasks.tensorflow_data import seqio
from peft_jax.tasks.texts import text_examples
from peft_jax.tasks.vocabularies import load_vocabulary
from peft_jax.text_examples import TextExamples
from peft_jax.tokenizer import Kind

__all__ = [
    "choice_examples",
    "label_examples",
    "prepare",
    "text_examples",
    "verbalizer_examples",
]

_ROWS_AT_ONCE = 256


def choice_examples(
    task: str,
    split: str,
    *,
    backbone_vocabulary_path: str | os.PathLike,
    max_input_length: int = 256,
    max_choice_length: int = 64,
    multiple: int = 1,
    kind: Kind = "encoder_decoder",
    pad_id: int = 0,
    progress: bool = False,
    **options: Unpack[TaskOptions],
) -> ChoiceExamples:
    """Tokenises a split of a task under all of its templates.

    Args:
        task: see `peft_jax.tasks.prompted.find_task`.
        split: "train", "validation", or the stem of another JSONL file in the task's folder.
        backbone_vocabulary_path: the backbone's vocabulary, a Hugging Face folder or a file of it.
        max_input_length: S at most, special tokens included (T-Few: 256). Longer inputs are cut: at
            their end, with EOS kept behind it; a decoder's at their start, since the answer follows
            their end.
        max_choice_length: T at most, EOS included; a longer choice is an error, never cut.
        multiple: lengths are rounded up to a multiple of this.
        kind: of the model that will read the rows, "encoder_decoder" or "decoder": whether answers
            stand alone or follow the prompt (`peft_jax.tokenizer.row_ids`).
        pad_id: of the backbone (``config.pad_id``).
        progress: show a progress bar.
        options: where the rows lie, and which of them, see `peft_jax.tasks.options.TaskOptions`.

    Returns arrays with the fewest places that hold the data. Raises InputError for everything that
    is wrong with the task, its files, its templates, the vocabulary or the limits.
    """
    limits = {"max_input_length": max_input_length, "max_choice_length": max_choice_length}
    check_limits(**limits, multiple=multiple)
    found = open_task(task, split, **options)
    if not found.ranks:
        raise InputError(f"task {task} has no answer choices to rank: its answers are written")
    load_vocabulary(backbone_vocabulary_path, kind)  # says what is wrong before anything is read
    with progress_bar(progress) as track:
        rows = found.prompted(split, lambda examples: track(examples, f"{task}: prompts"))
        marked = any(has_markers(row.input) for row in rows)
        vocabulary = load_vocabulary(backbone_vocabulary_path, kind, marked=marked)
        lengths = choice_lengths(
            max_input_length, max(len(row.choices) for row in rows), max_choice_length
        )
        dataset = seqio.get_dataset(
            seqio_task(seqio_task_name(task), found, vocabulary, kind=kind),
            lengths,
            RankClassificationFeatureConverter(pad_id),
            dataset_split=split,
            verbose=False,
        ).batch(_ROWS_AT_ONCE)
        batches = track(
            dataset.as_numpy_iterator(), f"{task}: tokens", -(-len(rows) // _ROWS_AT_ONCE)
        )
        with input_errors(task):
            arrays = _concatenate(batches)
    details = limits | describe(found)
    if kind != "encoder_decoder":
        details["kind"] = kind
    return ChoiceExamples(
        task=task,
        split=split,
        template_names=tuple(template.name for template in found.templates),
        vocabulary=vocabulary_identity(backbone_vocabulary_path),
        details=details,
        pad_id=pad_id,
        keep=tuple(dict(row.keep) for row in rows) if any(row.keep for row in rows) else (),
        **arrays,
    ).trimmed(multiple)


def prepare(
    task: str,
    output: str | os.PathLike,
    *,
    split: str = "train",
    rows: Literal["choices", "labels", "verbalizers", "texts"] = "choices",
    overwrite: bool = False,
    **options,
) -> ChoiceExamples | TextExamples:
    """Writes a split, tokenised, to a file that trains without TensorFlow.

    Args:
        task, split, options: see `choice_examples`, `label_examples`, `verbalizer_examples`,
            `text_examples`.
        output: the file; one that exists is refused unless ``overwrite``.
        rows: which of the four makes them.

    Raises InputError as they do, and for an output that exists.
    """
    if Path(output).exists() and not overwrite:
        raise InputError(f"{output} exists: give another --output, or --overwrite to replace it")
    if rows == "texts":
        return text_examples(task, split, file=output, **options)
    make = {
        "choices": choice_examples,
        "labels": label_examples,
        "verbalizers": verbalizer_examples,
    }[rows]
    examples = make(task, split, **options)
    examples.save(output)
    return examples


def _concatenate(batches: Iterable[dict]) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
