"""Several tasks as one: sampling, evaluation, and metrics beside their own."""

import json

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.evaluation import Evaluation, TextEvaluation
from peft_jax.examples import ChoiceExamples, FewShotSampler
from peft_jax.metrics.intervals import bootstrap
from peft_jax.mixed_examples import MixedEvaluation, are_written, make_sampler, mix, parts_of
from peft_jax.mixtures import MixtureSampler
from peft_jax.run_data import with_metrics
from peft_jax.text_examples import TextExamples, TextRow


def choices(task: str, count: int = 6, **details) -> ChoiceExamples:
    """Rows of two choices, under two templates."""
    rows = 2 * count
    answers = np.tile(np.array([[[3, 1], [4, 1]]], np.int32), (rows, 1, 1))
    return ChoiceExamples(
        task=task,
        split="validation",
        template_names=("a", "b"),
        encoder_input_tokens=np.arange(5, 5 + rows, dtype=np.int32)[:, None],
        choices=answers,
        choice_mask=np.ones((rows, 2), bool),
        label=np.arange(rows, dtype=np.int32) // 2 % 2,
        example=np.arange(rows, dtype=np.int32) // 2,
        template=np.arange(rows, dtype=np.int32) % 2,
        vocabulary="v",
        details=details,
    )


def texts(task: str, count: int = 6, **details) -> TextExamples:
    rows = [
        TextRow([5 + i, 1], [3, 1], example=i, references=("cold", "icy"), keep={"number": i})
        for i in range(count)
    ]
    return TextExamples.from_rows(
        rows,
        task=task,
        split="validation",
        template_names=("t",),
        vocabulary="v",
        details={"metrics": ["exact_match"]} | details,
    )


def scored(examples: ChoiceExamples, right: int) -> Evaluation:
    """Scores that are right in the first ``right`` rows."""
    scores = np.zeros(examples.choices.shape[:2], np.float32)
    place = np.where(np.arange(len(examples)) < right, examples.label, 1 - examples.label)
    scores[np.arange(len(examples)), place] = 1
    return Evaluation(examples, scores)


def test_the_mean_over_tasks_is_reported_and_each_is_kept(tmp_path):
    ranked = scored(choices("one"), 9)
    written = TextEvaluation(texts("two"), ["cold", "icy", "warm", "", "cold ", "cold"])
    both = MixedEvaluation("both", [ranked, written])
    ones, twos = ranked.reported[1].median, written.reported[1].median
    assert both.reported[0] == "average"
    assert both.reported[1].median == pytest.approx((ones + twos) / 2)
    summary = both.summary()
    assert summary["score_per_template"] == {"one": ones, "two": twos}
    assert [task["task"] for task in summary["tasks"]] == ["one", "two"]
    json.dumps(summary)
    both.write(tmp_path / "predictions.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert [line["task"] for line in lines] == ["one"] * 12 + ["two"] * 6
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_the_interval_is_of_the_median_that_is_reported():
    ranked = scored(choices("one", 40), 60)
    low, high = ranked.interval()
    assert low < ranked.reported[1].median < high
    # 30 of 40 examples are right under both templates, so that the two say what one says.
    deviation = 100 * np.sqrt(0.75 * 0.25 / 40)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert ranked.interval(0) is None
    assert ranked.summary()["interval_95"] == [low, high]
    one_template = ranked.examples.subset(templates=["a"])
    alone = Evaluation(one_template, ranked.scores[ranked.examples.template == 0])
    expected = bootstrap("accuracy", alone.answers)["accuracy"]
    assert alone.interval() == pytest.approx([expected.low, expected.high], abs=2.6)


def test_texts_of_classes_are_classes():
    keep = [{"choices": ["cold", "warm"], "label": i % 2} for i in range(6)]
    rows = [TextRow([5, 1], [3, 1], example=i, keep=kept) for i, kept in enumerate(keep)]
    made = TextExamples.from_rows(
        rows, task="t", split="s", template_names=("t",), vocabulary="v", details={}
    )
    answers = TextEvaluation(made, ["cold", "warm", "mild", "warm", "cold", "cold"]).answers
    assert answers.predicted.tolist() == [0, 1, -1, 1, 0, 0]
    metric, score = TextEvaluation(made, ["cold"] * 6).reported
    assert (metric, score.median) == ("accuracy", 50)


def test_one_task_is_drawn_as_tfew_did_and_several_by_their_rates():
    one, two = choices("one"), choices("two", 3)
    assert isinstance(make_sampler(one, 2, 0), FewShotSampler)
    mixed = make_sampler(mix("both", [one, two], rates="rows"), 4, 0)
    assert isinstance(mixed, MixtureSampler)
    np.testing.assert_allclose(mixed.rates, [2 / 3, 1 / 3])
    every = make_sampler(one, 4, 0, templates="all")
    drawn = np.concatenate([next(every)["row"] for _ in range(3)])
    assert sorted(drawn.tolist()) == list(range(12))


def test_written_answers_are_packed_and_choices_are_not():
    long = texts("two", max_input_length=8, max_target_length=8)
    packed = make_sampler(long, 1, 0, packed=True)
    batch = next(packed)
    assert batch["encoder_input_tokens"].shape == (1, 8)
    assert batch["encoder_segment_ids"].max() > 1
    with pytest.raises(InputError, match="packing is for texts"):
        make_sampler(choices("one"), 1, 0, packed=True)


def test_tasks_that_rank_and_tasks_that_write_do_not_mix():
    assert are_written(mix("m", [texts("a"), texts("b")]))
    assert len(parts_of(mix("m", [texts("a"), texts("b")]))) == 2
    with pytest.raises(InputError, match=r"one has choices and two has open answers.*answer text"):
        mix("m", [choices("one"), texts("two")])


@pytest.mark.parametrize(
    ("examples", "name", "message"),
    [
        (texts("two"), "ece", "ece reads scores, which two's rows lack"),
        (texts("two"), "f1", "f1 reads labels, which two's rows lack"),
        (choices("one"), "multirc", "multirc reads keep.group, which one's rows lack"),
        (choices("one"), "acuracy", "no metric is called 'acuracy'"),
    ],
)
def test_a_metric_that_cannot_be_had_is_refused(examples, name, message):
    with pytest.raises(InputError, match=message):
        with_metrics(examples, [name])


def test_metrics_stand_behind_the_tasks_own():
    made = with_metrics(choices("one", metrics=["accuracy"]), ["ece", "accuracy"])
    assert made.details["metrics"] == ["accuracy", "ece"]
    assert list(scored(made, 6).figures) == ["accuracy", "ece"]
    both = with_metrics(mix("m", [choices("one"), choices("two")]), ["f1"])
    assert all(part.details["metrics"] == ["accuracy", "f1"] for part in both.parts)


def test_a_metric_that_does_not_sum_has_an_interval_where_one_is_asked_for():
    ranked = scored(choices("one", 30, metrics=["macro_f1"]), 50)
    assert ranked.interval() is None
    low, high = ranked.interval(60)
    assert 0 <= low < ranked.reported[1].median < high <= 100
