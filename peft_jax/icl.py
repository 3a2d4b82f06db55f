"""In-context learning: solved examples in front of the input, and nothing trained (the baseline).

Brown et al. 2020; the concatenation form that Liu et al. 2022 compare T-Few with.
"""

from __future__ import annotations

import dataclasses

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
) -> ChoiceExamples:
    """The queries with solved examples, under the query's own template, in front of each input.

    A demonstration is an input followed by its right answer, both without EOS; they are joined as
    token sequences. The examples and their order are drawn once for a seed, so every query sees
    the same ones, as in the public implementations.

    Args:
      queries: to be answered.
      shots: labelled examples, tokenised with the same templates.
      count: demonstrations per query; fewer where the length runs out (from the front).
      seed: of the draw.
      max_input_length: tokens of the longest input, EOS included.
    """
    if queries.template_names != shots.template_names:
        raise InputError("demonstrations and queries must have the same templates")
    order = np.random.default_rng([seed, 0x1C1]).permutation(shots.example_ids)
    demonstrations = [
        _demonstrations(shots, template, order, count, eos_id)
        for template in range(shots.num_templates)
    ]
    inputs = []
    for row in range(len(queries)):
        tokens = queries.encoder_input_tokens[row]
        tokens = tokens[tokens != 0]
        chosen = list(demonstrations[queries.template[row]])
        while chosen and sum(map(len, chosen)) + len(tokens) > max_input_length:
            chosen.pop(0)
        inputs.append(np.concatenate([*chosen, tokens]))
    width = max(map(len, inputs))
    padded = np.zeros((len(inputs), width), np.int32)
    for row, tokens in enumerate(inputs):
        padded[row, : len(tokens)] = tokens
    details = {**queries.details, "demonstrations": count, "demonstration_seed": seed}
    return dataclasses.replace(queries, encoder_input_tokens=padded, details=details)


def _demonstrations(shots, template, order, count, eos_id) -> list[np.ndarray]:
    """Token sequences of the first ``count`` examples in the order that have this template."""
    found: list[np.ndarray] = []
    for example in order:
        rows = np.flatnonzero((shots.example == example) & (shots.template == template))
        if len(rows) and len(found) < count:
            row = rows[0]
            answer = shots.choices[row, shots.label[row]]
            both = (shots.encoder_input_tokens[row], answer)
            found.append(np.concatenate([t[(t != 0) & (t != eos_id)] for t in both]))
    return found
