"""In-context learning: solved examples in front of the input, and nothing trained (the baseline).

Brown et al. 2020; the concatenation form that Liu et al. 2022 compare T-Few with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples


def with_demonstrations(
    queries: ChoiceExamples,
    shots: ChoiceExamples,
    *,
    count: int,
    seed: int,
    max_input_length: int = 1024,
    eos_id: int = 1,
    bos_id: int | None = None,
    separator: Sequence[int] = (),
) -> ChoiceExamples:
    """The queries with solved examples, under the query's own template, in front of each input.

    A demonstration is an input followed by its right answer, both without EOS; they are joined as
    token sequences, as T-Few's baseline is. A decoder's prompt has BOS once, in front of all, and
    needs something between the demonstrations: give it both. The examples and their order are
    drawn once for a seed, so every query sees the same ones, as in the public implementations.

    Args:
      queries: to be answered.
      shots: labelled examples, tokenised with the same templates.
      count: demonstrations per query; fewer where the length runs out (from the front).
      seed: of the draw.
      max_input_length: tokens of the longest input, EOS and BOS included.
      eos_id: taken out of the demonstrations.
      bos_id: taken out of demonstrations and queries and put in front, where queries start with it.
      separator: tokens behind every demonstration, such as those of two line breaks.

    Raises:
      InputError: templates or padding differ between queries and demonstrations.
    """
    if queries.template_names != shots.template_names:
        raise InputError("demonstrations and queries must have the same templates")
    if queries.pad_id != shots.pad_id:
        raise InputError(
            f"demonstrations are padded with {shots.pad_id}, queries with {queries.pad_id}"
        )
    dropped = [shots.pad_id, eos_id, *([] if bos_id is None else [bos_id])]
    order = np.random.default_rng([seed, 0x1C1]).permutation(shots.example_ids)
    demonstrations = [
        _demonstrations(shots, template, order, count, dropped, separator)
        for template in range(shots.num_templates)
    ]
    inputs = []
    for row in range(len(queries)):
        tokens = queries.encoder_input_tokens[row]
        tokens = tokens[tokens != queries.pad_id]
        start = tokens[:1] if bos_id is not None and tokens[0] == bos_id else tokens[:0]
        chosen = list(demonstrations[queries.template[row]])
        while chosen and sum(map(len, chosen)) + len(tokens) > max_input_length:
            chosen.pop(0)
        inputs.append(np.concatenate([start, *chosen, tokens[len(start) :]]))
    width = max(map(len, inputs))
    padded = np.full((len(inputs), width), queries.pad_id, np.int32)
    for row, tokens in enumerate(inputs):
        padded[row, : len(tokens)] = tokens
    details = {**queries.details, "demonstrations": count, "demonstration_seed": seed}
    return dataclasses.replace(queries, encoder_input_tokens=padded, details=details)


def _demonstrations(shots, template, order, count, dropped, separator) -> list[np.ndarray]:
    """Token sequences of the first ``count`` examples in the order that have this template."""
    found: list[np.ndarray] = []
    for example in order:
        rows = np.flatnonzero((shots.example == example) & (shots.template == template))
        if len(rows) and len(found) < count:
            row = rows[0]
            answer = shots.choices[row, shots.label[row]]
            tokens = np.concatenate([shots.encoder_input_tokens[row], answer])
            kept = tokens[~np.isin(tokens, dropped)]
            found.append(np.concatenate([kept, np.asarray(separator, np.int32)]))
    return found
