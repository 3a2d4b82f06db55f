"""Which rows of a split a task has."""

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.draws import Draw
from peft_jax.tasks.few_shot import draw

LABELS = [0] * 12 + [1] * 6


def test_nothing_asked_for_is_all_rows_in_order():
    assert list(Draw().positions(LABELS, per_class=False)) == list(range(18))
    assert not Draw().draws


@pytest.mark.parametrize("style", ["tfew", "per_class", "balanced"])
def test_a_draw_is_that_of_its_style(style):
    made = Draw(shots=4, seed=3, few_shot_style=style).positions(LABELS, per_class=False)
    assert list(made) == draw(LABELS, style, 4, 3)


def test_tfews_style_is_the_datasets_own():
    made = Draw(shots=2, seed=1).positions(LABELS, per_class=True)
    assert list(made) == draw(LABELS, "per_class", 2, 1)


def test_what_is_held_out_is_what_is_not_trained_on():
    parts = [
        (Draw(folds=3, fold=i, seed=5), Draw(folds=3, fold=i, seed=5, held_out=True))
        for i in range(3)
    ]
    held = [list(h.positions(LABELS, per_class=False)) for _, h in parts]
    assert sorted(i for part in held for i in part) == list(range(18))
    for (train, _), out in zip(parts, held, strict=True):
        rows = list(train.positions(LABELS, per_class=False))
        assert sorted(rows + out) == list(range(18))
    train = Draw(shots=6, seed=2).positions(LABELS, per_class=False)
    dev = Draw(shots=6, seed=2, dev_shots=5, held_out=True).positions(LABELS, per_class=False)
    assert len(dev) == 5
    assert not set(train) & set(dev)


def test_shots_are_drawn_from_the_folds_that_train():
    fold = Draw(folds=3, fold=0, seed=5, held_out=True).positions(LABELS, per_class=False)
    drawn = Draw(folds=3, fold=0, seed=5, shots=8).positions(LABELS, per_class=False)
    assert len(set(drawn)) == 8
    assert not set(drawn) & set(fold)


def test_some_rows_are_spread_over_the_split_and_groups_stay_whole():
    labels = [0] * 50 + [1] * 50
    some = Draw(limit=10).positions(labels, per_class=False)
    assert len(set(some)) == 10
    assert sum(labels[i] for i in some) == 5
    assert list(Draw(limit=10).positions(labels, per_class=False, grouped=True)) == list(range(10))
    assert len(Draw(limit=1000).positions(labels, per_class=False)) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 4}, "4 shots were asked for without a few-shot seed"),
        ({"folds": 4}, "4 folds were asked for without a few-shot seed"),
        ({"held_out": True}, "neither shots nor folds are drawn"),
        ({"shots": 4, "seed": 0, "few_shot_style": "fair"}, "few-shot style 'fair' is not known"),
        ({"shots": 40, "seed": 0}, "40 shots cannot be drawn"),
        ({"folds": 3, "fold": 3, "seed": 0}, "fold 3 of 3 is not there"),
    ],
)
def test_what_cannot_be_meant_is_told(options, message):
    with pytest.raises(InputError, match=message):
        Draw(**options).positions(LABELS, per_class=False)
