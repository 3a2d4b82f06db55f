"""Bootstrap intervals: SciPy's on means, whole clusters at a time, any metric."""

import dataclasses

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.metrics import METRICS, Answers, Metric
from peft_jax.metrics.base import Sums
from peft_jax.metrics.intervals import bootstrap, paired_bootstrap


def classes(rows=200, right=0.8, seed=0, **fields):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, rows)
    predicted = np.where(draw.random(rows) < right, labels, 1 - labels)
    return Answers([""] * rows, [[""]] * rows, predicted=predicted, labels=labels, **fields)


def texts(rows=12, seed=0):
    draw = np.random.default_rng(seed)
    words = ["red", "blue", "green", "old", "new"]

    def text():
        return " ".join(draw.choice(words, 6))

    references = [[text(), text()] for _ in range(rows)]
    predictions = [row[0] if draw.random() < 0.4 else text() for row in references]
    return Answers(predictions, references)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_interval_of_a_mean_as_scipys(method):
    from scipy.stats import bootstrap as scipy_bootstrap

    answers = classes()
    right = (answers.chosen() == answers.labels).astype(float)
    want = scipy_bootstrap(
        (right,),
        np.mean,
        n_resamples=9999,
        method={"percentile": "percentile", "bca": "BCa"}[method],
        rng=0,
    )
    found = bootstrap("accuracy", answers, draws=9999, method=method)["accuracy"]
    assert found.value == pytest.approx(100 * right.mean())
    assert found.standard_error == pytest.approx(100 * want.standard_error, rel=0.03)
    assert (found.low, found.high) == pytest.approx(
        (100 * want.confidence_interval.low, 100 * want.confidence_interval.high), abs=0.6
    )


def test_bca_of_a_skewed_mean_leans_as_scipys():
    from scipy.stats import bootstrap as scipy_bootstrap

    values = np.random.default_rng(0).lognormal(sigma=1.5, size=60)

    def rows(answers):
        return np.column_stack([np.ones(len(answers)), [kept["x"] for kept in answers.keep]])

    metric = Metric(
        "mean", Sums(rows, lambda s: {"mean": s[..., 1] / s[..., 0]}), ("mean",), ("keep.x",), "-"
    )
    answers = Answers([""] * 60, [[""]] * 60, keep=[{"x": x} for x in values])
    found = bootstrap(metric, answers, draws=20_000, method="bca")["mean"]
    plain = bootstrap(metric, answers, draws=20_000)["mean"]
    want = scipy_bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1)
    limits = want.confidence_interval
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high), rel=0.03)
    assert found.high > 1.05 * plain.high


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
def test_summed_and_recomputed_draws_agree(name):
    """A metric that is a sum over rows gives what computing it of each draw gives."""
    answers = classes(rows=40)
    metric = METRICS[name]
    again = dataclasses.replace(metric, function=lambda answers: metric(answers))
    found = bootstrap(metric, answers, draws=20, seed=3)
    assert found == bootstrap(again, answers, draws=20, seed=3)


@pytest.mark.parametrize("name", ["bleu", "bleu_webnlg", "bleu_e2e", "rouge", "squad"])
def test_sums_of_rows_are_the_corpus(name):
    answers = texts()
    metric = METRICS[name]
    figure, *_ = metric.figures
    interval = bootstrap(metric, answers, draws=200)[figure]
    assert interval.value == metric(answers)[figure]
    assert interval.low < interval.value < interval.high
    some = [0, 0, 3, 7, 7, 7]
    sums = metric.function.rows(answers)[some].sum(axis=0)
    assert metric.function.figures(sums)[figure] == pytest.approx(
        metric(answers.select(some))[figure]
    )


def test_clusters_are_drawn_whole():
    """Ten templates of one example agree, so that there are 20 observations and not 200."""
    one = classes(rows=20, seed=1)
    many = one.select(np.repeat(np.arange(20), 10))
    clusters = np.repeat(np.arange(20), 10).tolist()
    alone = bootstrap("accuracy", one, draws=2000)["accuracy"]
    together = bootstrap("accuracy", many, draws=2000, clusters=clusters)["accuracy"]
    apart = bootstrap("accuracy", many, draws=2000)["accuracy"]
    assert together == alone
    assert apart.standard_error < 0.5 * together.standard_error


def test_a_question_that_is_drawn_twice_is_two_questions():
    keep = [{"group": "a"}, {"group": "a"}, {"group": "b"}]
    answers = Answers(
        [""] * 3, [[""]] * 3, predicted=np.array([1, 0, 1]), labels=np.array([1, 1, 1]), keep=keep
    )
    found = bootstrap("multirc", answers, draws=200)["em"]
    # Draws: a and a, a and b, b and b: 0, half and all of two questions; never thirds.
    assert (found.value, found.low, found.high) == (50.0, 0.0, 100.0)
    assert found.standard_error == pytest.approx(100 * np.sqrt(0.125), rel=0.1)


def test_paired_difference():
    better, worse = classes(right=0.9, seed=2), classes(right=0.7, seed=2)
    found = paired_bootstrap("accuracy", better, worse)["accuracy"]
    single = bootstrap("accuracy", better)["accuracy"].value
    assert found.value == pytest.approx(single - bootstrap("accuracy", worse)["accuracy"].value)
    assert found.low > 0
    assert found.p_value == pytest.approx(2 / 1001)
    back = paired_bootstrap("accuracy", worse, better)["accuracy"]
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    same = paired_bootstrap("accuracy", better, better)["accuracy"]
    assert (same.low, same.high, same.p_value) == (0, 0, 1)


def test_the_same_seed_gives_the_same_interval():
    answers = classes()
    first, again = (bootstrap("accuracy", answers, seed=5) for _ in range(2))
    assert first == again != bootstrap("accuracy", answers, seed=6)
    narrow = bootstrap("accuracy", answers, confidence=0.5)["accuracy"]
    wide = bootstrap("accuracy", answers, confidence=0.99)["accuracy"]
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"draws": 0}, "draws is 0"),
        ({"confidence": 95}, "confidence is 95"),
        ({"method": "normal"}, "neither 'percentile' nor 'bca'"),
        ({"clusters": [1]}, "1 clusters are given for 3 rows"),
    ],
)
def test_bad_input(options, says):
    with pytest.raises(InputError, match=says):
        bootstrap("accuracy", classes(rows=3), **options)


def test_systems_of_other_rows_are_refused():
    with pytest.raises(InputError, match="one system answers 3 rows, the other 4"):
        paired_bootstrap("accuracy", classes(rows=3), classes(rows=4))
