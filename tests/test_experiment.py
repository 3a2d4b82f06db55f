"""A run: what it leaves, and that stopping it at any point changes nothing."""

import dataclasses
import json
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from peft_jax import experiment, report
from peft_jax.config import LossConfig, from_json, to_json
from peft_jax.errors import InputError
from tests.small_run import small_experiment
from tests.small_task import write_task

QUIET = report.quiet_console()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_experiment(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    experiment.run(config, folder, console=QUIET)
    return folder


def test_the_folder_holds_what_is_promised(whole, config):
    result = json.loads((whole / "result.json").read_text())
    assert result["trainable_parameters"] == 2 * (2 * 16 + 32) + 2 * (4 * 16 + 32)
    assert 0 <= result["evaluation"]["accuracy_median"] <= 1
    assert set(result["evaluation"]["accuracy_per_template"]) == {
        "plain question",
        "some rows only",
        "three answers",
    }
    assert from_json(whole / "config.json") == config
    lines = [json.loads(line) for line in (whole / "predictions.jsonl").open()]
    assert len(lines) == result["evaluation"]["rows"]
    right = np.mean([line["label"] == line["prediction"] for line in lines])
    assert right == pytest.approx(result["evaluation"]["accuracy_mean"])
    assert all(np.argmax(line["scores"]) == line["prediction"] for line in lines)
    steps = [m["step"] for m in report.read_metrics(whole / "metrics.jsonl") if "loss" in m]
    assert steps == sorted({2, 4, 5, 6, 8, 10, 12})
    assert (whole / "run.png").stat().st_size > 10_000
    assert list((whole / "tensorboard").iterdir())


class StopAfter:
    """Sends a signal to this process while the loop is at a step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def __call__(self, run, until, _steps=experiment.train_steps):
        for made, metrics in _steps(run, until):
            if made == self.step:
                signal.raise_signal(self.number)
            yield made, metrics


@pytest.mark.parametrize(
    ("stop", "number"),
    [
        (3, signal.SIGINT),
        pytest.param(7, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(11, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_resumes_to_the_same_result(
    config, whole, tmp_path, monkeypatch, stop, number
):
    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "train_steps", StopAfter(stop, number))
        with pytest.raises(experiment.Interrupted) as stopped:
            experiment.run(config, output, console=QUIET)
    assert stopped.value.exit_code == 128 + number
    experiment.run(config, output, resume=True, console=QUIET)
    ours, theirs = (load_file(f / "adapter.safetensors") for f in (output, whole))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    predictions = [(f / "predictions.jsonl").read_text() for f in (output, whole)]
    assert predictions[0] == predictions[1]


@pytest.mark.slow
@pytest.mark.parametrize("data", [{}, {"pack": True}, {"templates_drawn": "all"}])
def test_a_stopped_mixture_resumes_to_the_same_result(config, data, tmp_path, monkeypatch):
    """Two tasks whose answers are written: the data's position is that of a mixture."""
    folder = config.data.directory.parent
    write_task(folder / "other", train=9)
    mixed = dataclasses.replace(
        config,
        task="mine+other",
        answer="text",
        data=dataclasses.replace(
            config.data, directory=folder, shots=None, max_target_length=16, **data
        ),
    )
    experiment.run(mixed, tmp_path / "whole", console=QUIET)
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "train_steps", StopAfter(7, signal.SIGTERM))
        with pytest.raises(experiment.Interrupted):
            experiment.run(mixed, tmp_path / "out", console=QUIET)
    result = experiment.run(mixed, tmp_path / "out", resume=True, console=QUIET)
    ours, theirs = (load_file(tmp_path / f / "adapter.safetensors") for f in ("out", "whole"))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert set(result["evaluation"]["score_per_template"]) == {"mine", "other"}
    assert result["training_examples"] == 21


@pytest.mark.slow
def test_folds_train_on_what_they_do_not_evaluate(config, tmp_path):
    folds = dataclasses.replace(config.data, shots=None, folds=3, fold=1)
    result = experiment.run(
        dataclasses.replace(config, data=folds), tmp_path / "out", console=QUIET
    )
    assert result["training_examples"] == 8
    assert result["evaluation"]["examples"] == 4
    assert result["evaluation"]["split"] == "train"


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(config, whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(run, until, _steps=experiment.train_steps):
        for made, metrics in _steps(run, until):
            if made == 9:
                raise Killed
            yield made, metrics

    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "train_steps", die)
        with pytest.raises(Killed):
            experiment.run(config, output, console=QUIET)
    experiment.run(config, output, resume=True, console=QUIET)
    ours, theirs = (load_file(f / "adapter.safetensors") for f in (output, whole))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    keep = ("step", "loss", "accuracy", "evaluation_score")
    logs = [
        [{k: m[k] for k in keep if k in m} for m in report.read_metrics(f / "metrics.jsonl")]
        for f in (output, whole)
    ]
    # The log is that of one run: no step twice, none missing.
    assert [m["step"] for m in logs[0]] == [m["step"] for m in logs[1]]


def test_resume_refuses_other_fields(config, whole):
    other = dataclasses.replace(config, loss=LossConfig(unlikelihood=0.5))
    with pytest.raises(InputError, match=r"loss\.unlikelihood is 0\.5.*1\.0"):
        experiment.run(other, whole, resume=True, console=QUIET)


def test_an_existing_folder_is_refused_and_kept(config, whole):
    before = (whole / "result.json").read_text()
    with pytest.raises(InputError, match="not empty"):
        experiment.run(config, whole, console=QUIET)
    assert (whole / "result.json").read_text() == before


def test_overwrite_never_deletes_what_is_no_run(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds no run"):
        experiment.run(config, tmp_path, overwrite=True, console=QUIET)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_overwrite_keeps_the_old_run_when_the_new_one_is_bad(config, whole):
    bad = dataclasses.replace(config, method=("lora",))
    bad = dataclasses.replace(bad, lora=dataclasses.replace(bad.lora, targets=("attn/q",)))
    with pytest.raises(InputError, match="matches nothing"):
        experiment.run(bad, whole, overwrite=True, console=QUIET)
    assert (whole / "result.json").is_file()


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_the_run(config, tmp_path, monkeypatch):
    def spoil(run, until, _steps=experiment.train_steps):
        for made, metrics in _steps(run, until):
            yield made, metrics | ({"loss": metrics["loss"] * np.nan} if made == 7 else {})

    monkeypatch.setattr(experiment, "train_steps", spoil)
    with pytest.raises(InputError, match=r"loss is not a number by step 8; .*step 5 is kept"):
        experiment.run(config, tmp_path / "out", console=QUIET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ()}, "method is empty"),
        ({"backbone": "nowhere"}, "no checkpoint folder at nowhere"),
        ({"backbone": "t0_3b"}, "names a configuration"),
        ({"task": "embedded_entailmnt"}, "embedded_entailment"),
        ({"training": {"batch_size": 9}}, "batch size 9 is larger than the data"),
        ({"training": {"steps": 0}}, "training.steps is 0"),
        ({"training": {"accumulate": 3}}, "not divisible"),
        ({"training": {"devices": 3}}, "does not divide over 3 devices"),
        ({"data": {"max_choice_length": 2}}, "the limit is 2; choices are never cut"),
    ],
)
def test_bad_input_stops_before_anything_is_written(config, tmp_path, changes, message):
    for name, value in changes.items():
        if isinstance(value, dict):
            value = dataclasses.replace(getattr(config, name), **value)
        config = dataclasses.replace(config, **{name: value})
    with pytest.raises(InputError, match=message):
        experiment.run(config, tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out").exists()


def test_a_draw_of_one_label_is_refused(config, tmp_path):
    backbone = experiment.open_backbone(config)

    def labels(seed):
        data = dataclasses.replace(config.data, shots=2, few_shot_seed=seed)
        found = experiment.open_examples(config.task, data, backbone, 0, training=True).label
        return set(found.tolist())

    lonely = next(seed for seed in range(40) if len(labels(seed)) == 1)
    data = dataclasses.replace(config.data, shots=2, few_shot_seed=lonely)
    with pytest.raises(InputError, match="all have the label"):
        experiment.run(dataclasses.replace(config, data=data), tmp_path / "out", console=QUIET)


def test_configuration_round_trip(tmp_path, config):
    (tmp_path / "config.json").write_text(to_json(config))
    assert from_json(tmp_path / "config.json") == config
