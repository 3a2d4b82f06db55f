"""In-context learning: solved examples in front of the input, and nothing trained (the baseline).

Brown et al. 2020. `with_demonstrations` is the concatenation that Liu et al. 2022 compare T-Few
with, `one_demonstration_each` the ensemble of their code, and `content_free` with `calibrated`
contextual calibration (Zhao et al. 2021)::

    free, group = content_free(queries, [tokenizer.encode(text) for text in CONTENT_FREE])
    scores, biases = (score(with_demonstrations(q, shots, ...)) for q in (queries, free))
    scores = calibrated(scores, biases, group)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples
from peft_jax.metrics.calibration import contextual_calibration

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Inputs that say nothing, as Zhao et al. 2021 average over."""


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
    order = _order(shots, seed)
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


def one_demonstration_each(
    queries: ChoiceExamples, shots: ChoiceExamples, *, count: int, seed: int, **options
) -> list[ChoiceExamples]:
    """An ensemble: the queries ``count`` times, each time behind another single demonstration.

    T-Few's code votes over them (``icl_method`` "ensemble"): score each, and give the scores,
    stacked [R, count, C], to ``ensembles.combine_scores`` with "majority". For an ensemble of sets
    or orders, take `with_demonstrations` of several seeds.

    Args:
      queries, shots, seed, options: as for `with_demonstrations`, from whose draw these are the
        first ``count``. Under a template that skips an example its query stands alone.

    Raises:
      InputError: there are not so many examples; and as `with_demonstrations` does.
    """
    if not 1 <= count <= shots.num_examples:
        raise InputError(f"{count} demonstrations of {shots.num_examples} examples")
    places = {example: place for place, example in enumerate(shots.example_ids.tolist())}
    return [
        with_demonstrations(
            queries, shots.subset(examples=[places[example]]), count=1, seed=seed, **options
        )
        for example in _order(shots, seed)[:count].tolist()
    ]


def content_free(
    queries: ChoiceExamples,
    texts: Sequence[Sequence[int]] = ((),),
    *,
    eos_id: int = 1,
    bos_id: int | None = None,
) -> tuple[ChoiceExamples, np.ndarray]:
    """Queries that say nothing, to find what a model answers whatever it is asked.

    The whole query goes, the words of its template included, as in T-Few's code (``icl_modeling``
    "calibration", with nothing in its place); demonstrations are then put in front as usual.

    Args:
      queries: to be calibrated.
      texts: K texts without content, as tokens; by default the empty one.
      eos_id, bos_id: kept at the end and the start where a query has them.

    Returns:
      K * G rows, text by text: one for each text and each of the G groups of queries with the same
      template and the same choices; and [R] int, each query's group.
    """
    keys = np.concatenate(
        [queries.template[:, None], queries.choices.reshape(len(queries), -1)], axis=1
    )
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    rows = []
    for text in texts:
        for row in first:
            tokens = queries.encoder_input_tokens[row]
            tokens = tokens[tokens != queries.pad_id]
            start = tokens[:1] if bos_id is not None and tokens[0] == bos_id else tokens[:0]
            end = tokens[-1:] if tokens[-1] == eos_id else tokens[:0]
            rows.append(np.concatenate([start, np.asarray(text, np.int32), end]))
    inputs = np.full((len(rows), max(1, *map(len, rows))), queries.pad_id, np.int32)
    for row, tokens in enumerate(rows):
        inputs[row, : len(tokens)] = tokens
    chosen = np.tile(first, len(texts))
    made = dataclasses.replace(
        queries,
        encoder_input_tokens=inputs,
        encoder_token_types=None,
        choices=queries.choices[chosen],
        choice_mask=queries.choice_mask[chosen],
        label=queries.label[chosen],
        example=queries.example[chosen],
        template=queries.template[chosen],
        keep=(),
    )
    return made, group.reshape(-1)


def calibrated(scores: np.ndarray, biases: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Scores without what a model answers to inputs that say nothing.

    Args:
      scores: [R, C] log-probabilities of the queries' choices.
      biases: [K * G, C], those of `content_free`'s rows behind the same demonstrations.
      group: [R] int, from `content_free`.

    Returns:
      [R, C] float64 log-probabilities, see ``metrics.calibration.contextual_calibration``.
    """
    groups = int(group.max()) + 1
    by_text = np.asarray(biases).reshape(-1, groups, scores.shape[1])
    made = np.empty(scores.shape, np.float64)
    for index in range(groups):
        rows = group == index
        made[rows] = contextual_calibration(scores[rows], by_text[:, index])
    return made


def _order(shots: ChoiceExamples, seed: int) -> np.ndarray:
    """The examples' ids in the order in which a seed takes them."""
    return np.random.default_rng([seed, 0x1C1]).permutation(shots.example_ids)


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
