"""Few-shot draws against T-Few's published files."""

import json

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.few_shot import draw_few_shot
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
        drawn = [rows[i] for i in draw_few_shot(labels, dataset.shots, seed, per_class=False)]
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
        drawn = np.array(draw_few_shot(labels.tolist(), 16, seed, per_class=True))
        share = np.where(labels[drawn] == 0, drawn / 29780, (drawn - 29780) / 37569)
        assert labels[drawn].tolist() == [row["label"] for row in expected]
        positions = np.array([row["idx"] for row in expected]) / 67349
        np.testing.assert_allclose(share, positions, atol=0.006)


def test_the_global_generator_is_left_alone():
    np.random.seed(5)  # noqa: NPY002  (the legacy generator is what T-Few's users seed)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draw_few_shot([0, 1] * 20, 8, seed=1, per_class=False)
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
        draw_few_shot([0] * 7 + [1] * 3, shots, seed, per_class=per_class)
