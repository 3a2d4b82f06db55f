"""Few-shot draws against T-Few's published files."""

import json

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.few_shot import (
    STYLES,
    draw,
    fold_positions,
    folds,
    train_and_dev,
)
from peft_jax.tasks.sources import find_source, read_rows


def published(shared_data, task):
    """(seed, rows) of every published draw."""
    files = sorted((shared_data / "tfew_few_shot" / task).glob("*/*_seed.jsonl"))
    assert len(files) >= 5
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        yield int(file.name.split("_")[0]), [json.loads(line) for line in lines]


@pytest.mark.parametrize("task", ["rte", "cb", "copa", "wsc"])
def test_draws_are_the_published_ones(task, shared_data):
    dataset, folder = find_source(task, shared_data)
    rows = read_rows(dataset, "train", folder)
    labels = [row["label"] for row in rows]
    for seed, expected in published(shared_data, task):
        drawn = [rows[i] for i in draw(labels, "tfew", dataset.shots, seed)]
        assert [row["idx"] for row in drawn] == [row["idx"] for row in expected]
        assert [row["label"] for row in drawn] == [row["label"] for row in expected]
        if task == "wsc":  # the spans as wsc.fixed repairs them
            for span in ("text", "span1_text", "span2_text", "span1_index", "span2_index"):
                assert [row[span] for row in drawn] == [row[span] for row in expected]


def test_per_class_draws_follow_the_published_ones(shared_data):
    """GLUE's SST-2 is not at hand, but the place of a drawn row within its class almost is.

    The train split has 67,349 rows, 29,780 negative and 37,569 positive in random order, so that a
    row at share p of its class stands at share p of the split, give or take half a percent.
    """
    labels = np.repeat([0, 1], [29780, 37569])
    for seed, expected in published(shared_data, "sst2"):
        drawn = np.array(draw(labels.tolist(), "per_class", 16, seed))
        share = np.where(labels[drawn] == 0, drawn / 29780, (drawn - 29780) / 37569)
        assert labels[drawn].tolist() == [row["label"] for row in expected]
        positions = np.array([row["idx"] for row in expected]) / 67349
        np.testing.assert_allclose(share, positions, atol=0.006)


def test_the_global_generator_is_left_alone():
    np.random.seed(5)  # noqa: NPY002  (the legacy generator is what T-Few's users seed)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draw([0, 1] * 20, "tfew", 8, seed=1)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("shots", "seed", "per_class", "words"),
    [
        (11, 0, False, "10 examples"),
        (0, 0, False, "0 shots"),
        (4, 0, True, "label 1 has 3 examples"),
        (2, -1, False, "seed -1"),
        (2, 2**32, False, "seed"),
    ],
)
def test_draws_that_cannot_be_made(shots, seed, per_class, words):
    with pytest.raises(InputError, match=words):
        draw([0] * 7 + [1] * 3, "per_class" if per_class else "tfew", shots, seed)


LABELS = [0] * 40 + [1] * 13 + [2] * 7


@pytest.mark.parametrize("shots", [3, 8, 12, 21])
def test_balanced_draws_have_as_many_of_each_class(shots):
    drawn = draw(LABELS, "balanced", shots, seed=3)
    counts = np.bincount([LABELS[i] for i in drawn], minlength=3)
    assert len(set(drawn)) == len(drawn) == shots
    assert counts.tolist() == [shots // 3 + (c < shots % 3) for c in range(3)]
    labels = [LABELS[i] for i in draw(LABELS, "balanced", 21, seed=3)]
    assert labels != sorted(labels)  # not one class after the other


@pytest.mark.parametrize("style", STYLES)
def test_of_one_seed_the_smaller_draw_is_part_of_the_larger(style):
    small, large = (set(draw(LABELS, style, shots, seed=9)) for shots in (4, 7))
    assert small < large
    assert small != set(draw(LABELS, style, 4, seed=10))


@pytest.mark.parametrize("style", STYLES)
def test_development_rows_come_from_what_does_not_train(style):
    shots, dev_shots = {"per_class": (3, 2)}.get(style, (10, 6))
    train, dev = train_and_dev(LABELS, style, shots, seed=1, dev_shots=dev_shots)
    each = 3 if style == "per_class" else 1
    assert train == draw(LABELS, style, shots, seed=1)
    assert (len(set(train)), len(set(dev))) == (shots * each, dev_shots * each)
    assert not set(train) & set(dev)
    if style == "balanced":
        assert np.bincount([LABELS[i] for i in dev]).tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="shots cannot be drawn"):
        train_and_dev(LABELS, "tfew", 31, seed=1)


@pytest.mark.parametrize("k", [2, 5, len(LABELS)])
def test_folds_hold_every_row_out_once(k):
    parts = folds(LABELS, k, seed=4)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(LABELS)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    per_class = np.array([np.bincount(np.array(LABELS)[p], minlength=3) for p in parts])
    assert (per_class.max(axis=0) - per_class.min(axis=0) <= 1).all()
    for fold, part in enumerate(parts):
        train, held_out = fold_positions(LABELS, k, fold, seed=4)
        np.testing.assert_array_equal(held_out, part)
        assert sorted([*train, *held_out]) == list(range(len(LABELS)))
    if k < len(LABELS):
        assert any((a != b).any() for a, b in zip(parts, folds(LABELS, k, seed=5), strict=True))


def test_folds_without_strata_are_a_shuffle():
    counts = [np.bincount(np.array(LABELS)[p], minlength=3)[0] for p in folds(LABELS, 5, 0)]
    assert counts == [8] * 5
    shuffled = folds(LABELS, 5, 0, stratified=False)
    assert [len(p) for p in shuffled] == [12] * 5
    assert [np.bincount(np.array(LABELS)[p], minlength=3)[0] for p in shuffled] != counts


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: draw(LABELS, "ballanced", 4, 0), "'ballanced' is not known.*balanced"),
        (lambda: draw(LABELS, "balanced", 2, 0), "2 balanced shots cannot be drawn of 3 classes"),
        (lambda: draw(LABELS, "balanced", 30, 0), "label 2 has 7 examples"),
        (lambda: folds(LABELS, 1, 0), "1 folds of 60"),
        (lambda: folds(LABELS, 61, 0), "give 2 to 60"),
        (lambda: folds(LABELS, 5, -1), "seed -1"),
        (lambda: fold_positions(LABELS, 5, 5, 0), "fold 5 of 5 is not there: give 0 to 4"),
    ],
)
def test_what_cannot_be_drawn_or_dealt(call, words):
    with pytest.raises(InputError, match=words):
        call()
