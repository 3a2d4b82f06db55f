"""RAFT's test rows, whose labels are hidden, answered by a saved adapter: the file to hand in.

::

    write_submission("runs/complaints", "tiny", "raft_twitter_complaints", "data", "predictions")

writes ``predictions/twitter_complaints/predictions.csv``, as the benchmark's submissions hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from peft_jax.adapter import load_adapter
from peft_jax.backbones import load_backbone
from peft_jax.errors import InputError
from peft_jax.methods import merge
from peft_jax.methods.prompt_places import marker_rows
from peft_jax.scoring import score_choices
from peft_jax.tasks import raft
from peft_jax.tokenizer import Kind, Tokenizer, check_fits, kind_of, load_tokenizer, row_ids


def write_submission(
    adapter_folder: str | Path,
    source: str,
    name: str,
    directory: str | Path,
    output: str | Path,
    **options,
) -> Path:
    """Answers a task's test rows and writes the benchmark's file.

    Args:
      adapter_folder, source, name, directory, options: as for `answer_test_rows`.
      output: see `peft_jax.tasks.raft.submission`.

    Returns the file. Raises InputError as both do.
    """
    answers = answer_test_rows(adapter_folder, source, name, directory, **options)
    return raft.submission(raft.task_of(name).name, answers, output)


def answer_test_rows(
    adapter_folder: str | Path,
    source: str,
    name: str,
    directory: str | Path,
    *,
    batch_size: int = 16,
    max_input_length: int | None = None,
    length_normalization: float = 1.0,
) -> dict[int, str]:
    """The best choice for every test row: ID -> label as the prompt's form writes it.

    Args:
      adapter_folder: a run's folder or an adapter file.
      source: the backbone, as for ``load_backbone``.
      name: ``raft_<task>`` or ``raft_<task>_<form>``, as it was trained.
      directory: the data's folder.
      batch_size: rows at once.
      max_input_length: in tokens; None: the task's own.
      length_normalization: as in ``score_choices``.

    Raises:
      InputError: a name, files or an adapter that are not there or do not fit, or a backbone that
        ranks no answers by writing them.
    """
    rows = raft.unlabelled(name, directory)
    backbone = load_backbone(source)
    adapter, method = load_adapter(adapter_folder, backbone)
    kind = kind_of(backbone.config)
    if kind == "encoder" or backbone.vocabulary is None:
        raise InputError(f"backbone {backbone.name!r} writes no answers that could be ranked")
    bound = method.bind(adapter)
    tokenizer = load_tokenizer(backbone.vocabulary)
    length = max_input_length or raft.task_of(name).length
    encoded = _encoded(rows, tokenizer, kind, length)
    for input_ids, choices in encoded:
        every = [id for ids in (input_ids, *choices) for id in ids]
        check_fits(every, backbone.config.vocab_size, "the texts", marker_rows(bound))

    @jax.jit
    def best(params, batch):
        scores = score_choices(backbone, params, batch, length_normalization=length_normalization)
        return scores.argmax(-1)

    params = merge(backbone.params, bound)
    chosen = [
        int(index)
        for batch in _batches(encoded, batch_size, backbone.config.pad_id)
        for index in np.asarray(best(params, batch))
    ]
    answered = zip(rows, chosen[: len(rows)], strict=True)
    return {row.id: row.choices[index] for row, index in answered}


def _encoded(
    rows: Sequence[raft.Unlabelled], tokenizer: Tokenizer, kind: Kind, length: int
) -> list[tuple[list[int], list[list[int]]]]:
    return [
        row_ids(tokenizer, kind, row.input, row.choices, max_input_length=length) for row in rows
    ]


def _batches(
    encoded: list[tuple[list[int], list[list[int]]]], size: int, pad_id: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one shape; the last row fills up the last of them."""
    widest = max(len(input_ids) for input_ids, _ in encoded)
    count = max(len(choices) for _, choices in encoded)
    longest = max(len(ids) for _, choices in encoded for ids in choices)
    for start in range(0, len(encoded), size):
        part = encoded[start : start + size]
        part += [part[-1]] * (size - len(part))
        inputs = np.full((size, widest), pad_id, np.int32)
        choices = np.full((size, count, longest), pad_id, np.int32)
        for row, (input_ids, answers) in enumerate(part):
            inputs[row, : len(input_ids)] = input_ids
            for place, ids in enumerate(answers):
                choices[row, place, : len(ids)] = ids
        mask = np.ones((size, count), bool)
        yield {"encoder_input_tokens": inputs, "choices": choices, "choice_mask": mask}
