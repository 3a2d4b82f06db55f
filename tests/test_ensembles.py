"""An ensemble in one pass is its members' own runs, put together."""

import functools

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import ensembles, scoring
from peft_jax.errors import InputError
from tests import oracle
from tests.families import quickly
from tests.random_adapters import adapted, backbone_of
from tests.test_families import choices_of

MEMBERS = (
    (pj.prompt_tuning(3, "random"),),
    (pj.prompt_tuning(2, "random"),),
    (pj.lora(2),),
)


@functools.cache
def entries_of(family):
    return [
        adapted(backbone_of(family), *parts, noise=0.5, seed=i) for i, parts in enumerate(MEMBERS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", quickly(("t5_v1_1", "gpt2"), ("t5_v1_1",)))
def test_one_pass_is_the_separate_runs(family):
    backbone, entries, batch = backbone_of(family), entries_of(family), choices_of(family)
    score = jax.jit(functools.partial(scoring.score_choices, backbone))
    alone = np.stack(
        [np.asarray(score(pj.merge(backbone.params, m.bind(s)), batch)) for m, s in entries], 1
    )
    params = pj.merge(backbone.params, pj.bank(entries))
    scores = np.exp(alone.astype(np.float64))
    probability = scores / scores.sum(-1, keepdims=True)
    exists = batch["choice_mask"]

    run = jax.jit(functools.partial(ensembles.ensemble_scores, backbone), static_argnames="combine")
    together = np.asarray(run(params, batch, np.arange(3)))
    oracle.assert_close(np.exp(together)[exists], probability.mean(1)[exists], 1e-5)
    assert (together[~exists] == -np.inf).all()

    # Other members for each input: the same program.
    chosen = np.array([[2, 1, 1], [0, 0, 2], [1, 2, 0]])[: len(exists)]
    together = np.asarray(run(params, batch, chosen))
    wanted = np.take_along_axis(probability, chosen[..., None], axis=1).mean(1)
    oracle.assert_close(np.exp(together)[exists], wanted[exists], 1e-5)


def test_combined_scores_by_hand():
    p = np.array(
        [
            [[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.1, 0.9, 0.0]],  # two votes against the mean
            [[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]],  # one vote each: the mean decides
            [[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.8, 0.2, 0.0]],  # equal: the first
        ]
    )
    with np.errstate(divide="ignore"):
        scores = np.log(p)
    mean = np.asarray(ensembles.combine_scores(scores + 3.0))  # a softmax forgets the sum
    np.testing.assert_allclose(np.exp(mean), p.mean(1), atol=1e-6)
    votes = np.asarray(ensembles.combine_scores(scores, "majority"))
    np.testing.assert_allclose(votes[0, :2], [2 + 0.65 / 1.5 / 2, 1 + 0.85 / 1.5 / 2], atol=1e-6)
    assert votes.argmax(-1).tolist() == [0, 2, 0]
    assert mean.argmax(-1).tolist() == [1, 2, 0]
    assert votes[0, 2] == -np.inf
    nothing = np.full((1, 2, 3), -np.inf)
    for how in ("mean", "majority"):
        assert np.asarray(ensembles.combine_scores(nothing, how)).tolist() == [[-np.inf] * 3]


def test_texts_are_voted_on():
    members = [["a", "x", "p"], ["b", "y", "q"], ["b", "x", "r"]]
    assert ensembles.vote_texts(members) == ["b", "x", "p"]


def test_bad_input_is_named():
    backbone = backbone_of("t5_v1_1")
    params, batch = pj.merge(backbone.params, pj.bank(entries_of("t5_v1_1"))), choices_of("t5_v1_1")
    rows = len(batch["choices"])
    run = functools.partial(ensembles.ensemble_scores, backbone, params)
    cases = [
        (lambda: run(batch | {"task_ids": np.zeros(rows)}, [0]), "says its adapters as members"),
        (lambda: run(batch, []), r"members of shape \(0,\)"),
        (lambda: run(batch, np.zeros((rows + 1, 2))), rf"members of shape \({rows + 1}, 2\)"),
        (lambda: run(batch, [0, 3]), "task_ids: 3 is not in a bank of 3"),
        (lambda: run(batch, [0], combine="max"), "combine 'max' is unknown"),
        (lambda: ensembles.vote_texts([]), "0 members"),
        (lambda: ensembles.vote_texts([["a"], []]), r"\[1, 0\] texts"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
