"""Calibration: expected calibration error, reliability tables, contextual calibration."""

import itertools

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.metrics import Answers, compute
from peft_jax.metrics.calibration import (
    calibration_error,
    contextual_calibration,
    normalize,
    reliability,
)


def scores_of(confidences):
    """[R, 2] log-probabilities whose first class has the given probability."""
    first = np.asarray(confidences, np.float64)
    return np.log(np.column_stack([first, 1 - first]))


def drawn(rows=400, choices=3, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rows, choices)), draw.integers(0, choices, rows)


def test_error_by_hand():
    # Two rows of confidence 0.9 in one bin, one of them right; one of 0.6, right.
    scores, labels = scores_of([0.9, 0.9, 0.6]), np.array([0, 1, 0])
    table = reliability(scores, labels, bins=10)
    assert [(row.low, row.count) for row in table if row.count] == [
        (pytest.approx(0.5), 1),
        (pytest.approx(0.8), 2),
    ]
    assert calibration_error(table) == pytest.approx((2 * 0.4 + 1 * 0.4) / 3)


def test_error_by_masks():
    """Guo et al.'s definition, bin by bin: B_m holds the confidences in ((m-1)/M, m/M]."""
    scores, labels = drawn()
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    error = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    answers = Answers([""] * 400, [[""]] * 400, labels=labels, scores=scores)
    assert compute(["ece"], answers)["ece"] == pytest.approx(100 * error)


def test_adaptive_bins_have_equally_many_rows():
    scores, labels = drawn(rows=100)
    table = reliability(scores, labels, bins=15, adaptive=True)
    assert {row.count for row in table} == {6, 7}
    assert all(a.high <= b.low for a, b in itertools.pairwise(table))
    answers = Answers([""] * 100, [[""]] * 100, labels=labels, scores=scores)
    assert compute(["ece_adaptive"], answers)["ece_adaptive"] == pytest.approx(
        100 * calibration_error(table)
    )
    assert len(reliability(scores[:4], labels[:4], bins=15, adaptive=True)) == 4


def test_what_is_calibrated_has_a_small_error():
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.5, 1, 40_000)
    labels = (draw.random(40_000) > confidence).astype(int)
    assert calibration_error(reliability(scores_of(confidence), labels)) < 0.01
    assert calibration_error(reliability(scores_of(confidence), 1 - labels)) > 0.4


def test_a_choice_that_is_not_there_has_no_probability():
    scores = np.array([[0.0, 0.0, -np.inf]])
    np.testing.assert_allclose(np.exp(normalize(scores)), [[0.5, 0.5, 0.0]])
    assert calibration_error(reliability(scores, np.array([0]))) == pytest.approx(0.5)


def test_contextual_calibration_chooses_as_the_published_code():
    """Zhao et al.'s eval_accuracy: argmax of inv(diag(p_cf)) p, p_cf the mean over the inputs."""
    scores, _ = drawn(rows=200, choices=4)
    free = np.random.default_rng(1).normal(size=(3, 4)) * 2
    p_cf = np.exp(free).mean(axis=0)
    p_cf = p_cf / p_cf.sum()
    weights = np.linalg.inv(np.identity(4) * p_cf)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    want = np.array([np.matmul(weights, row[:, None])[:, 0] for row in p])
    calibrated = np.exp(contextual_calibration(scores, free))
    np.testing.assert_allclose(calibrated, want / want.sum(axis=1, keepdims=True), rtol=1e-12)
    assert (calibrated.argmax(axis=1) != scores.argmax(axis=1)).any()


def test_content_free_inputs_become_uniform():
    free = np.log([[0.7, 0.2, 0.1]])
    np.testing.assert_allclose(np.exp(contextual_calibration(free, free)), [[1 / 3] * 3])


def test_contextual_calibration_of_rows_with_fewer_choices():
    scores = np.array([[np.log(0.5), np.log(0.5), -np.inf], np.log([0.2, 0.3, 0.5])])
    calibrated = np.exp(contextual_calibration(scores, np.log([[0.5, 0.25, 0.25]])))
    np.testing.assert_allclose(calibrated[0], [1 / 3, 2 / 3, 0.0])
    np.testing.assert_allclose(calibrated.sum(axis=1), 1.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: normalize(np.zeros(3)), r"not of shape \(3,\)"),
        (lambda: normalize(np.array([[0.0], [-np.inf]])), "row 1 has no finite score"),
        (lambda: normalize(np.array([[0.0, np.nan]])), "row 0 has no finite score"),
        (
            lambda: contextual_calibration(np.zeros((2, 3)), np.zeros((1, 2))),
            r"\(1, 2\) do not fit choices of shape \(2, 3\)",
        ),
        (
            lambda: contextual_calibration(np.zeros((1, 2)), np.array([[0.0, -np.inf]])),
            "choice 1 has no content-free probability",
        ),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(InputError, match=says):
        call()
