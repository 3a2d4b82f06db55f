"""Metrics of classes, numbers and reading: t5's figures; the record they read; bad input."""

import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.metrics import METRICS, Answers, compute, describe, find
from peft_jax.metrics.numbers import final_number, to_float
from peft_jax.metrics.reading import names_referent

T5 = json.loads((Path(__file__).parent / "golden" / "metrics_t5.json").read_text("utf-8"))


def classes(predicted, labels, **fields):
    rows = len(labels)
    return Answers(
        [""] * rows,
        [[""]] * rows,
        predicted=np.array(predicted),
        labels=np.array(labels),
        **fields,
    )


def texts(predictions, references, **fields):
    return Answers(
        list(predictions), [[r] if isinstance(r, str) else r for r in references], **fields
    )


# --------------------------------------------------------------------------------------------
# What t5 computes
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", T5["binary"])
def test_two_classes_as_t5(case):
    keep = [{"group": group} for group in case["groups"]]
    answers = classes(case["predicted"], case["labels"], keep=keep)
    figures = compute(["accuracy", "f1", "matthews", "multirc"], answers)
    assert figures == pytest.approx({name: case[name] for name in figures})
    assert set(figures) == {"accuracy", "f1", "matthews", "f1a", "em"}


@pytest.mark.parametrize("case", T5["three_classes"])
def test_three_classes_as_t5(case):
    answers = classes(case["predicted"], case["labels"], num_classes=3)
    assert compute(["macro_f1"], answers) == pytest.approx({"macro_f1": case["macro_f1"]})


def test_numbers_as_t5():
    case = T5["numbers"]
    figures = compute(["pearson", "spearman"], texts(case["predictions"], case["references"]))
    assert figures == pytest.approx({name: case[name] for name in figures})


@pytest.mark.parametrize("name", ["squad", "trivia_qa", "record"])
def test_reading_as_t5(name):
    case = T5["reading"]
    keep = [{"group": group} for group in case["groups"]]
    answers = texts(case["predictions"], case["references"], keep=keep)
    assert METRICS[name](answers) == pytest.approx(case[name])
    assert 0 < case[name]["em"] < case[name]["f1"] < 100


@pytest.mark.parametrize(("text", "referent", "verdict"), T5["wsc"])
def test_wsc_as_t5(text, referent, verdict):
    assert names_referent(text, referent) == verdict


# --------------------------------------------------------------------------------------------
# What t5 does not have, or leaves open
# --------------------------------------------------------------------------------------------
def test_classes_come_from_scores_where_they_are_not_given():
    scores = np.array([[-1.0, -2.0, -np.inf], [-3.0, -1.0, -2.0]])
    answers = texts(["a", "b"], ["a", "c"], labels=np.array([0, 2]), scores=scores)
    assert answers.chosen().tolist() == [0, 1]
    assert answers.classes() == 3
    # Classes 1 (chosen once, never right) and 2 (the other way round) have F1 0.
    assert compute(["accuracy", "macro_f1"], answers) == pytest.approx(
        {"accuracy": 50.0, "macro_f1": 100 / 3}
    )


def test_macro_f1_of_the_classes_seen_is_scikit_learns():
    from sklearn.metrics import f1_score

    labels, predicted = [0, 0, 2, 2, 5], [0, 2, 2, 2, 0]
    answers = classes(predicted, labels, num_classes=77)
    want = 100 * f1_score(labels, predicted, average="macro")
    assert compute(["macro_f1_seen"], answers)["macro_f1_seen"] == pytest.approx(want)
    assert compute(["macro_f1"], answers)["macro_f1"] == pytest.approx(want * 3 / 77)


def test_record_scores_the_first_row_of_a_query_against_all_its_answers():
    keep = [{"group": ["p", "q"], "answers": ["Ann", "Bob"]}] * 2 + [{"group": ["p", "r"]}]
    answers = texts(["bob", "nobody", "no one else"], ["Ann", "Bob", "one"], keep=keep)
    assert METRICS["record"](answers) == pytest.approx({"f1": 100 * (1 + 0.5) / 2, "em": 50.0})


def test_wsc_is_right_where_the_referent_is_named_and_should_be():
    answers = texts(
        ["the cat", "a dog", "cat", ""],
        ["cat", "cat", "cat", "cat"],
        keep=[{"label": 1}, {"label": 0}, {"label": 0}, {"label": 1}],
    )
    assert METRICS["wsc"](answers) == {"accuracy": 50.0}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7.\n#### 7", 7),
        ("#### 1,234", 1234),
        ("#### $-5.", -5),
        ("first 3, then 4.50.", 4.5),
        ("The answer is 2,000!", 2000),
        ("#### 12 is it, not 13", 12),
        ("about .5", 0.5),
        ("none", None),
        ("#### .", None),
    ],
)
def test_final_number(text, number):
    found = final_number(text)
    assert found == number if number is None else float(found) == number


def test_gsm8k_compares_numbers():
    answers = texts(["I get 18.0", "18 or 19", "eighteen"], ["9 + 9 = 18 #### 18"] * 3)
    assert compute(["gsm8k"], answers) == {"gsm8k": pytest.approx(100 / 3)}


def test_texts_that_are_no_numbers():
    assert [to_float(t) for t in ("3.8", " 2 ", "nan", "inf", "high", "")] == [
        3.8,
        2,
        -1,
        -1,
        -1,
        -1,
    ]


def test_correlation_that_is_not_defined_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = compute(["pearson", "spearman"], texts(["1", "1"], ["1", "2"]))
    assert all(math.isnan(figure) for figure in figures.values())
    assert math.isnan(compute(["pearson"], texts(["1"], ["1"]))["pearson"])


def test_h_accuracy_is_of_the_rows_where_the_features_disagree():
    keep = [{"h1": 1, "h2": 0}, {"h1": 0, "h2": 1}, {"h1": 1, "h2": 0}, {"h1": 1, "h2": 1}]
    answers = classes([1, 0, 0, 0], [0, 0, 0, 0], keep=keep)
    figures = compute(["h_accuracy"], answers)
    assert figures == pytest.approx({"h1_accuracy": 200 / 3, "h2_accuracy": 100 / 3})
    named = texts(["yes", "no"], ["", ""], keep=[{"h1": "yes", "h2": "no"}] * 2)
    assert compute(["h_accuracy"], named) == {"h1_accuracy": 50.0, "h2_accuracy": 50.0}
    with pytest.raises(InputError, match="agree on every row"):
        compute(["h_accuracy"], classes([1], [1], keep=[{"h1": 1, "h2": 1}]))


def test_a_text_that_is_no_choice_follows_neither_feature():
    answers = classes([-1, 1], [0, 0], keep=[{"h1": 1, "h2": 0}] * 2)
    assert compute(["h_accuracy"], answers) == {"h1_accuracy": 50.0, "h2_accuracy": 0.0}


# --------------------------------------------------------------------------------------------
# The record and the table
# --------------------------------------------------------------------------------------------
def test_select_repeats_rows_and_keeps_the_number_of_classes():
    answers = classes([0, 1, 2], [0, 1, 1], keep=[{"group": i} for i in range(3)])
    some = answers.select([1, 1, 0])
    assert some.chosen().tolist() == [1, 1, 0]
    assert some.kept("group") == [1, 1, 0]
    assert some.classes() == 3
    assert compute(["macro_f1"], some) == {"macro_f1": pytest.approx(200 / 3)}


def test_every_metric_is_described():
    rows = describe()
    assert [row["metric"] for row in rows] == list(METRICS)
    assert all(row["figures"] and row["reads"] and row["about"] for row in rows)
    assert find("accuracy") is METRICS["accuracy"]


@pytest.mark.parametrize("name", METRICS)
def test_what_a_metric_lacks_is_named(name):
    metric = METRICS[name]
    with pytest.raises(InputError, match="there are no rows"):
        metric(Answers([], []))
    bare = Answers(["x"], [[]])
    with pytest.raises(InputError, match=f"{name!r} cannot be had"):
        metric(bare)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: compute(["acuracy"], classes([0], [0])), "'acuracy'; is it one of accuracy"),
        (lambda: compute(["accuracy"], classes([0], [0]).select([])), "there are no rows"),
        (lambda: classes([0, 1], [0]), "1 predictions, but predicted has 2 rows"),
        (lambda: texts(["a"], ["a"], keep=[{}, {}]), "keep has 2 rows"),
        (lambda: compute(["accuracy"], texts(["a"], ["a"])), "neither predicted nor scores"),
        (lambda: compute(["ece"], classes([0], [0])), "the answers have no scores"),
        (lambda: compute(["multirc"], classes([0], [0])), 'keep no "group"'),
        (
            lambda: compute(["multirc"], classes([0, 0], [0, 0], keep=[{"group": 1}, {"idx": 2}])),
            r'row 1 keeps no "group" \(it keeps idx\)',
        ),
        (lambda: compute(["squad"], Answers(["a"], ["a"])), "row 0 are one text, not a list"),
        (lambda: compute(["f1", "squad"], classes([0], [0])), "both give 'f1'"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_importing_the_metrics_loads_no_heavy_library(tmp_path):
    import subprocess

    heavy = ["sklearn", "scipy", "sacrebleu", "rouge_score", "nltk", "seqio", "tensorflow"]
    code = f"import peft_jax.metrics, sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_page_on_metrics_names_every_metric_and_its_figures():
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text("utf-8")
    table = page.split("|---|---|---|---|\n")[1].split("\n\n")[0]
    for metric in METRICS.values():
        assert f"`{metric.name}`" in table
        assert all(figure in table for figure in metric.figures)
