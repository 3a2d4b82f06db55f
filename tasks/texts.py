"""Tasks whose answers are written: a task -> `peft_jax.text_examples`.

Texts are read with `peft_jax.tokenizer`, whose tokens are those of seqio's vocabularies, and no
seqio is needed.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Unpack

from peft_jax.errors import InputError
from peft_jax.tasks.options import TaskOptions, check_limits, describe, open_task, progress_bar
from peft_jax.tasks.prompted import PromptedRow, PromptedTask
from peft_jax.text_examples import TextExamples, TextRow, TextWriter
from peft_jax.tokenizer import Kind, Tokenizer, load_tokenizer, row_ids


def text_examples(
    task: str,
    split: str,
    *,
    backbone_vocabulary_path: str | os.PathLike,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
    multiple: int = 1,
    kind: Kind = "encoder_decoder",
    pad_id: int = 0,
    start_id: int = 0,
    progress: bool = False,
    file: str | os.PathLike | None = None,
    **options: Unpack[TaskOptions],
) -> TextExamples:
    """Tokenises a split of a task for a model that writes the answers.

    A task with answer choices is one too: the right choice is the target, and all choices are kept
    as the vocabulary spells them (one in lower case has no "Yes"), so that what is written can be
    told to be one of them.

    Args:
        task, split, multiple, kind, pad_id, progress, options: see
            `peft_jax.tasks.prepare.choice_examples`.
        backbone_vocabulary_path: the backbone's vocabulary, a Hugging Face folder or a file of it.
        max_input_length: in tokens, special ones included; longer inputs are cut: at their end, a
            decoder's at their start. None: the task's own.
        max_target_length: the same, EOS included; longer targets are cut in front of it, and
            ``details["cut_targets"]`` counts them. None: the task's own.
        start_id: what the decoder of an encoder-decoder starts with (``config.decoder_start_id``).
        file: written row by row and mapped, for data that memory does not hold; None: in memory.

    Raises InputError for everything that is wrong with the task, its files, its templates, the
    vocabulary or the limits.
    """
    tokenizer = load_tokenizer(backbone_vocabulary_path)
    if kind == "encoder":
        raise InputError(f"task {task}: an encoder writes no answers")
    found = open_task(task, split, **options)
    definition = found.definition
    limits = {
        "max_input_length": max_input_length or (definition.max_input_length if definition else 0),
        "max_target_length": max_target_length
        or (definition.max_target_length if definition else 0),
    }
    check_limits(**limits, multiple=multiple)
    with progress_bar(progress) as track:
        rows = found.prompted(split, lambda examples: track(examples, f"{task}: prompts"))
        fields = {
            "task": task,
            "split": split,
            "template_names": tuple(format.name for format in found.templates),
            "vocabulary": tokenizer.identity,
            "details": limits | describe(found) | {"rows": len(rows), "cut_targets": 0},
            "kind": kind,
            "pad_id": pad_id,
            "start_id": start_id,
            "multiple": multiple,
        }
        tokens = _tokens(found, track(rows, f"{task}: tokens"), tokenizer, kind, fields["details"])
        if file is None:
            return TextExamples.from_rows(tokens, **fields)
        with TextWriter(file, **fields) as writer:
            for row in tokens:
                writer.add(row)
    return TextExamples.load(file)


def _tokens(
    task: PromptedTask, rows: Iterator[PromptedRow], tokenizer: Tokenizer, kind: Kind, details: dict
) -> Iterator[TextRow]:
    limits = details["max_input_length"], details["max_target_length"]
    encode = _encoder(tokenizer, kind, *limits)
    spelled = functools.cache(lambda text: tokenizer.decode(tokenizer.encode(text)).strip())
    for row in rows:
        inputs, targets, cut = encode(row.input, row.target)
        details["cut_targets"] += cut
        if not inputs:
            name = task.templates[row.template].name
            raise InputError(
                f"example {row.example} of {task.name} has no token under template {name!r}"
            )
        keep = dict(row.keep)
        if row.choices:
            written = [spelled(choice) for choice in row.choices]
            distinct = len(set(written)) == len(written)
            keep |= {"choices": written if distinct else list(row.choices), "label": row.label}
        yield TextRow(inputs, targets, row.example, row.template, row.label, row.references, keep)


def _encoder(
    tokenizer: Tokenizer, kind: Kind, max_input: int, max_target: int
) -> Callable[[str, str], tuple[list[int], list[int], bool]]:
    """(input, target) -> their ids, and whether the target was cut."""

    def encode(text: str, target: str) -> tuple[list[int], list[int], bool]:
        inputs, (targets,) = row_ids(tokenizer, kind, text, [target], max_input_length=max_input)
        cut = len(targets) > max_target
        if cut:
            targets = [*targets[: max_target - 1], targets[-1]]
        return inputs, targets, cut

    return encode
