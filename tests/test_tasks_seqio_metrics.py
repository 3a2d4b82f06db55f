"""The metrics in seqio's Evaluator: equal to ``peft_jax.metrics.compute`` of the same answers."""

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.metrics import Answers, compute
from tests.small_task import write_task, write_vocabulary

NAME = "my_task_plain_question"
CHOICES = ("No", "Yes")
LENGTHS = {"inputs": 24, "targets": 8}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    import seqio

    from peft_jax.tasks.registry import register

    folder = tmp_path_factory.mktemp("data")
    write_task(folder / "my-task", validation=9)
    register("my-task", vocabulary=write_vocabulary(folder), directory=folder / "my-task")
    return seqio.TaskRegistry.get(NAME)


def evaluate(task, **functions):
    """The Evaluator's figures, of a task that is registered for as long as it takes."""
    import seqio

    seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
    evaluator = seqio.Evaluator(
        mixture_or_task_name=task.name,
        feature_converter=seqio.EncDecFeatureConverter(pack=False),
        eval_split="validation",
        sequence_length=LENGTHS,
    )
    metrics, _ = evaluator.evaluate(compute_metrics=True, step=0, **functions)
    return metrics.result()[task.name]


def filled(tokens, length=8):
    return tokens + [0] * (length - len(tokens))


def rows(number=9):
    labels = np.arange(number) % 2
    return labels, [[CHOICES[label]] for label in labels]


def test_predictions_in_the_evaluator(task):
    from peft_jax.tasks.seqio_metrics import evaluated

    written = ["No", "Yes", "Yes", "No", "warm", "Yes", "No", "Yes", ""]
    names = ["accuracy", "f1", "macro_f1", "matthews"]
    vocabulary = task.output_features["targets"].vocabulary

    def predict_fn(dataset):
        tokens = [filled(vocabulary.encode(text)) for text in written]
        return [(int(index), tokens[index]) for index, _ in dataset.as_numpy_iterator()][::-1]

    figures = evaluate(evaluated(task, names), predict_fn=predict_fn)
    labels, references = rows()
    # The vocabulary has no piece for every letter of "warm": the text is no choice all the same.
    classes = np.array([CHOICES.index(text) if text in CHOICES else -1 for text in written])
    want = compute(names, Answers(written, references, predicted=classes, labels=labels))
    assert figures == pytest.approx(want)
    assert 0 < figures["accuracy"] < 100


def test_scores_in_the_evaluator(task):
    from peft_jax.tasks.seqio_metrics import evaluated

    scores = np.random.default_rng(0).normal(size=(9, 2))

    def score_fn(dataset):
        # What stands behind a row's choices, as where batches are filled up, is not read.
        wider = np.pad(scores, ((0, 0), (0, 2)), constant_values=9.0)
        return [(int(index), wider[index]) for index, _ in dataset.as_numpy_iterator()]

    names = ["accuracy", "macro_f1", "ece"]
    figures = evaluate(evaluated(task, names, by="scores"), score_fn=score_fn)
    labels, references = rows()
    texts = [CHOICES[index] for index in scores.argmax(axis=1)]
    assert figures == pytest.approx(
        compute(names, Answers(texts, references, labels=labels, scores=scores))
    )


@pytest.mark.parametrize("length_normalization", [0.0, 1.0])
def test_choice_scores_in_the_evaluator(task, length_normalization):
    """As T5X scores: one log-probability of each row's target, each choice a row."""
    from peft_jax.tasks.seqio_metrics import evaluated

    vocabulary = task.output_features["targets"].vocabulary
    scores = -np.random.default_rng(0).uniform(1, 5, size=(9, 2))
    written = []

    def score_fn(dataset):
        found = []
        for index, row in dataset.as_numpy_iterator():
            tokens = row["decoder_target_tokens"]
            written.append(vocabulary.decode(tokens[tokens > 1].tolist()))
            found.append((int(index), float(scores.ravel()[index])))
        return found

    options = {"by": "choice scores", "length_normalization": length_normalization}
    figures = evaluate(evaluated(task, ["accuracy", "ece"], **options), score_fn=score_fn)
    assert written == list(CHOICES) * 9
    lengths = np.array([len(vocabulary.encode(text)) + 1 for text in CHOICES])
    ranked = scores / lengths**length_normalization
    labels, references = rows()
    want = compute(["accuracy", "ece"], Answers([""] * 9, references, labels=labels, scores=ranked))
    assert figures == pytest.approx(want)


def test_metric_objects_give_the_same(task):
    from peft_jax.tasks.seqio_metrics import metric_fns, metric_objs, postprocess

    features = task.output_features
    dataset = task.get_dataset(LENGTHS, split="validation", shuffle=False)
    examples = list(dataset.as_numpy_iterator())
    written = ["Yes"] * 9
    output = np.array([filled(features["targets"].vocabulary.encode(text)) for text in written])
    (made,) = metric_objs(["accuracy"])
    figures, _ = made.from_model_output(examples, output, features).actual_compute(
        examples, features
    )
    targets = [postprocess("", example=row, is_target=True) for row in examples]
    (function,) = metric_fns(["accuracy"])
    assert figures == function(targets, written) == {"accuracy": pytest.approx(100 * 4 / 9)}


def test_references_and_keep_reach_the_metric():
    from peft_jax.tasks.seqio_metrics import metric_fns, postprocess

    examples = [
        {"references": np.array([b"a cat", b"the dog"]), "keep": b'{"group": [1, 2]}'},
        {"references": np.array([b"a cat", b"the dog"]), "keep": b'{"group": [1, 2]}'},
        {"references": np.array([], dtype=object), "keep": b'{"group": [1, 3]}'},
    ]
    targets = [postprocess(b"two words", example=row, is_target=True) for row in examples]
    predictions = [postprocess(text) for text in (" dog ", "wrong", "words")]
    (record,) = metric_fns(["record"])
    assert record(targets, predictions) == pytest.approx({"f1": 100 * (1 + 2 / 3) / 2, "em": 50.0})


def test_functions_have_the_arguments_that_seqio_goes_by():
    import inspect

    from peft_jax.tasks.seqio_metrics import metric_fns

    (function,) = metric_fns(["accuracy"])
    assert list(inspect.signature(function).parameters) == ["targets", "predictions"]
    (function,) = metric_fns(["accuracy"], by="scores")
    assert list(inspect.signature(function).parameters) == ["targets", "scores"]
    assert function.__name__ == "accuracy"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, _: m.metric_fns(["acuracy"]), "is it one of accuracy"),
        (lambda m, _: m.metric_fns(["ece"]), "'ece' reads scores"),
        (lambda m, _: m.metric_fns(["ece"], by="logits"), "'scores' or 'choice scores'"),
        (lambda m, t: m.evaluated(t, ["f1"], features=("inputs", "words")), "no feature 'words'"),
        (
            lambda m, _: m.postprocess("", {"choices": np.zeros((2, 3), np.int32)}, True),
            "no texts",
        ),
        (
            lambda m, _: m.answers_of_scores([m.Target(("a",), ("a", "b"), 0)], [[0.5]]),
            "row 0 has 2 choices and 1 scores",
        ),
        (
            lambda m, _: m.answers_of_choice_scores(
                [m.Target(("a",), ("a", "b"), 0, choice=i) for i in (0, 0, 1)], [0.0] * 3
            ),
            "row 0 has 2 choices and 1 scores",
        ),
        (
            lambda m, _: m.answers_of_choice_scores(
                [m.Target(("a",), ("a", "b"), 0, choice=i) for i in (1, 0)], [0.0] * 2
            ),
            "row 0 is choice 1 of its row",
        ),
    ],
)
def test_what_cannot_be_is_said(task, call, says):
    from peft_jax.tasks import seqio_metrics

    with pytest.raises(InputError, match=says):
        call(seqio_metrics, task)
