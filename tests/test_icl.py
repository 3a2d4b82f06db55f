"""In-context learning: which tokens stand in front of an input."""

import dataclasses

import numpy as np
import pytest

from peft_jax import icl
from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples


def table(inputs, labels, templates=("a", "b")):
    """Two templates per example; template t adds 100 t to every token but EOS (1)."""
    rows = [(e, t) for e in range(len(inputs)) for t in range(len(templates))]
    width = max(map(len, inputs)) + 1
    tokens = np.zeros((len(rows), width), np.int32)
    choices = np.zeros((len(rows), 2, 2), np.int32)
    for row, (e, t) in enumerate(rows):
        tokens[row, : len(inputs[e]) + 1] = [*(np.array(inputs[e]) + 100 * t), 1]
        choices[row] = [[50 + 100 * t, 1], [60 + 100 * t, 1]]
    return ChoiceExamples(
        task="t",
        split="train",
        template_names=templates,
        encoder_input_tokens=tokens,
        choices=choices,
        choice_mask=np.ones((len(rows), 2), bool),
        label=np.array([labels[e] for e, _ in rows], np.int32),
        example=np.array([e for e, _ in rows], np.int32),
        template=np.array([t for _, t in rows], np.int32),
        vocabulary="v",
    )


def text(tokens):
    return [int(t) for t in tokens if t]


SHOTS = table([[10], [11, 12], [13]], [0, 1, 0])
QUERIES = table([[20, 21], [22]], [1, 0])


def test_demonstrations_are_inputs_with_their_right_answers_under_the_querys_template():
    made = icl.with_demonstrations(QUERIES, SHOTS, count=3, seed=0)
    parts = {(10, 50), (11, 12, 60), (13, 50)}
    for row in range(len(made)):
        shift = 100 * int(made.template[row])
        *front, end = [t - shift if t != 1 else t for t in text(made.encoder_input_tokens[row])]
        query = [t - shift for t in text(QUERIES.encoder_input_tokens[row]) if t != 1]
        assert end == 1
        assert front[-len(query) :] == query
        front = front[: -len(query)]
        seen = set()
        while front:
            part = next(p for p in parts if tuple(front[: len(p)]) == p)
            seen.add(part)
            front = front[len(part) :]
        assert seen == parts
    np.testing.assert_array_equal(made.choices, QUERIES.choices)
    np.testing.assert_array_equal(made.label, QUERIES.label)


def test_the_seed_decides_the_order_and_no_demonstration_is_the_query_itself():
    texts = {
        tuple(
            text(icl.with_demonstrations(QUERIES, SHOTS, count=2, seed=s).encoder_input_tokens[0])
        )
        for s in range(20)
    }
    assert len(texts) > 2
    none = icl.with_demonstrations(QUERIES, SHOTS, count=0, seed=0)
    assert text(none.encoder_input_tokens[0]) == text(QUERIES.encoder_input_tokens[0])


def test_what_does_not_fit_is_left_out_from_the_front():
    whole = icl.with_demonstrations(QUERIES, SHOTS, count=3, seed=0)
    cut = icl.with_demonstrations(QUERIES, SHOTS, count=3, seed=0, max_input_length=7)
    for row in range(len(cut)):
        kept, full = text(cut.encoder_input_tokens[row]), text(whole.encoder_input_tokens[row])
        assert len(kept) <= 7
        assert full[-len(kept) :] == kept


def test_other_templates_are_refused():
    with pytest.raises(InputError, match="same templates"):
        icl.with_demonstrations(QUERIES, table([[1]], [0], ("c", "d")), count=1, seed=0)


def for_decoders(examples, bos=0, pad=-1):
    """The table as a decoder's: padded with -1, BOS 0 in front of the prompt, no EOS behind it."""
    tokens = np.where(examples.encoder_input_tokens <= 1, pad, examples.encoder_input_tokens)
    tokens = np.pad(tokens, [(0, 0), (1, 0)], constant_values=bos)
    return dataclasses.replace(examples, encoder_input_tokens=tokens.astype(np.int32), pad_id=pad)


def test_a_decoders_prompt_has_bos_once_and_separators_between():
    queries, shots = for_decoders(QUERIES), for_decoders(SHOTS)
    options = {"count": 2, "seed": 0, "bos_id": 0, "separator": [7, 8]}
    made = icl.with_demonstrations(queries, shots, **options)
    plain = icl.with_demonstrations(QUERIES, SHOTS, count=2, seed=0)
    assert made.pad_id == -1
    for row in range(len(made)):
        tokens = made.encoder_input_tokens[row]
        tokens = tokens[tokens != -1].tolist()
        assert tokens[0] == 0
        assert tokens.count(0) == 1
        assert [tokens[i + 1] for i, t in enumerate(tokens) if t == 7] == [8, 8]
        expected = [t for t in text(plain.encoder_input_tokens[row]) if t != 1]
        assert [t for t in tokens if t not in (0, 7, 8)] == expected
    with pytest.raises(InputError, match="padded with 0, queries with -1"):
        icl.with_demonstrations(queries, SHOTS, count=1, seed=0)


def test_an_ensemble_shows_the_draws_demonstrations_one_by_one():
    members = icl.one_demonstration_each(QUERIES, SHOTS, count=2, seed=3)
    together = icl.with_demonstrations(QUERIES, SHOTS, count=2, seed=3)
    for row in range(len(QUERIES)):
        query = text(QUERIES.encoder_input_tokens[row])
        fronts = [text(m.encoder_input_tokens[row])[: -len(query)] for m in members]
        assert all(fronts)
        assert fronts[0] + fronts[1] == text(together.encoder_input_tokens[row])[: -len(query)]
    with pytest.raises(InputError, match="4 demonstrations of 3 examples"):
        icl.one_demonstration_each(QUERIES, SHOTS, count=4, seed=0)


def test_content_free_queries_are_one_for_each_text_and_kind_of_choices():
    free, group = icl.content_free(QUERIES, [[30, 31], []])
    assert group.tolist() == [0, 1, 0, 1]  # two templates, whose choices differ
    assert [text(t) for t in free.encoder_input_tokens] == [[30, 31, 1]] * 2 + [[1]] * 2
    assert free.template.tolist() == [0, 1, 0, 1]
    shown = icl.with_demonstrations(free, SHOTS, count=3, seed=0)
    with_query = icl.with_demonstrations(QUERIES, SHOTS, count=3, seed=0)
    for row in range(len(QUERIES)):
        query = text(QUERIES.encoder_input_tokens[row])
        front = text(with_query.encoder_input_tokens[row])[: -len(query)]
        assert text(shown.encoder_input_tokens[group[row]]) == [*front, 30, 31, 1]
    decoders, _ = icl.content_free(for_decoders(QUERIES), [[30]], bos_id=0)
    assert decoders.encoder_input_tokens.tolist() == [[0, 30]] * 2


def test_calibration_takes_away_what_is_answered_to_nothing():
    rng = np.random.default_rng(0)
    evidence, group = rng.normal(size=(6, 2)), np.array([0, 1, 0, 1, 0, 0])
    bias = np.array([[3.0, 0.0], [0.0, 2.0]])  # of each template
    scores = np.log(np.exp(evidence) / np.exp(evidence).sum(1, keepdims=True)) + bias[group]
    made = icl.calibrated(scores, np.concatenate([bias, bias]), group)
    np.testing.assert_allclose(np.exp(made).sum(1), 1)
    np.testing.assert_allclose(made[:, 0] - made[:, 1], evidence[:, 0] - evidence[:, 1])
    assert (scores.argmax(1) != evidence.argmax(1)).any()  # there was something to take away
    # Texts are averaged as probabilities, not as logarithms (Zhao et al. 2021, section 5).
    two = np.log([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.4, 0.6]])
    prior = np.log((np.exp(two[:2]) + np.exp(two[2:])) / 2)
    expected = (scores - prior[group]).argmax(1)
    np.testing.assert_array_equal(icl.calibrated(scores, two, group).argmax(1), expected)
