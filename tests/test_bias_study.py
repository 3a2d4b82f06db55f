"""The study of feature biases: what it asks, what it counts and what it leaves."""

import dataclasses
import json

import numpy as np
import pytest

from peft_jax import bias_study, report
from peft_jax.bias_study import BiasRun, draw_biases, underspecified_study
from peft_jax.errors import InputError
from peft_jax.evaluation import Evaluation
from peft_jax.icl import CONTENT_FREE
from tests.small_run import small_experiment

QUIET = report.quiet_console()
PAIR = "sa_sentiment_lexicon_nice"
TEXTS = {(1, 1): "sun nice", (0, 0): "snow ice", (1, 0): "sand", (0, 1): "frost nice"}


def write_papers_file(folder):
    """Twelve texts of each kind; words that the small vocabulary has."""

    def rows(h1, h2):
        texts = [f"There is {TEXTS[h1, h2]} {'and more of it ' * i}" for i in range(12)]
        return [{"question": t, "answer": str(h1), "split": f"{h1}_{h2}"} for t in texts]

    held = {f"demos_{both}_{both}": rows(both, both) for both in (0, 1)}
    held |= {f"testset_{h1}_{1 - h1}": rows(h1, 1 - h1) for h1 in (0, 1)}
    folder.mkdir()
    (folder / f"{PAIR}.json").write_text(json.dumps(held))
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("biases")
    made = small_experiment(folder)
    data = dataclasses.replace(
        made.data, directory=write_papers_file(folder / "papers"), evaluation_examples=10
    )
    return dataclasses.replace(made, data=data)


OPTIONS = {"seeds": (0, 10), "demonstrations": 4, "console": QUIET}
WANTED = ("none", "verbalizer_h1")


@pytest.fixture(scope="module")
def studied(config, tmp_path_factory):
    output = tmp_path_factory.mktemp("study") / "out"
    return output, underspecified_study(config, output, interventions=WANTED, **OPTIONS)


def test_every_intervention_runs_on_every_draw(studied):
    output, runs = studied
    assert [run[:3] for run in runs] == [(PAIR, i, seed) for i in WANTED for seed in (0, 10)]
    assert all((run.tests, run.demonstrations) == (10, 4) for run in runs)
    table = (output / "table.md").read_text().splitlines()
    row = next(line for line in table if "| verbalizer_h1 |" in line).strip("| ").split(" | ")
    h1, calibrated = (
        100 * np.mean([getattr(run, name) for run in runs if run.system == "verbalizer_h1"])
        for name in ("accuracy", "calibrated")
    )
    assert row[2].split()[0] == f"{h1:.1f}"
    assert row[3:4] + row[5:] == [f"{100 - h1:.1f}", f"{100 - calibrated:.1f}", "10"]
    assert row[4].split()[0] == f"{calibrated:.1f}"
    assert (output / "study.png").stat().st_size > 5_000


def test_finished_runs_are_not_run_again(studied, config, monkeypatch):
    output, runs = studied
    monkeypatch.setattr(bias_study, "_run_missing", None)
    assert underspecified_study(config, output, interventions=WANTED, **OPTIONS) == runs
    with pytest.raises(InputError, match="study with other fields"):
        underspecified_study(config, output, **OPTIONS | {"demonstrations": 2})


def fake_evaluate(answer, asked):
    """Stands for the model: ``answer`` of (prompt's last input) -> the scores of "0" and "1"."""

    def evaluate(scorer, adapter, frozen, examples, **_):
        asked.append(examples)
        return Evaluation(examples, np.array([answer(i) for i in range(len(examples))], np.float32))

    return evaluate


def test_what_is_counted_follows_h1_with_and_without_calibration(config, tmp_path, monkeypatch):
    """A model that says 1 to everything, but more so where h1 is: 5 tests with h1, 5 without."""
    asked = []
    scores = [(-3.0, -1.0)] * 5 + [(-2.0, -1.0)] * 5 + [(-2.5, -1.0)] * len(CONTENT_FREE)
    monkeypatch.setattr(bias_study, "evaluate", fake_evaluate(scores.__getitem__, asked))
    options = OPTIONS | {"seeds": (0,)}
    (run,) = underspecified_study(config, tmp_path / "out", **options)
    assert (run.accuracy, run.calibrated) == (0.5, 1.0)
    assert [len(examples) for examples in asked] == [13]


def test_demonstrations_make_room_for_the_input(config, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(bias_study, "evaluate", fake_evaluate(lambda _: (0.0, -1.0), asked))
    options = OPTIONS | {"seeds": (0,), "demonstrations": 16}
    (whole,) = underspecified_study(config, tmp_path / "whole", **options)
    (cut,) = underspecified_study(config, tmp_path / "cut", max_prompt_length=200, **options)
    assert whole.demonstrations == 16
    assert 0 < cut.demonstrations < 16
    full, short = (examples.encoder_input_tokens for examples in asked)
    assert ((short != 0).sum(axis=1) <= 200).all()
    for row in range(len(full)):
        one, other = (tokens[row][tokens[row] != 0].tolist() for tokens in (full, short))
        # The front is left out, and a joint between two texts may be cut otherwise.
        assert one[-len(other) + 3 :] == other[3:]
    with pytest.raises(InputError, match="does not fit a prompt of"):
        underspecified_study(config, tmp_path / "none", max_prompt_length=20, **options)


def test_two_features_of_a_datasets_rows(config, tmp_path, monkeypatch):
    """The small task: even rows are cold (0), and the later a row the longer its text."""
    asked = []
    monkeypatch.setattr(bias_study, "evaluate", fake_evaluate(lambda _: (0.0, -1.0), asked))
    data = dataclasses.replace(config.data, directory=config.data.directory.parent / "data")
    given = {"tasks": ["mine"], "features": ("equals(label, 1)", "longer(text, 12)")}
    options = OPTIONS | {"seeds": (0,)} | given
    mine = dataclasses.replace(config, data=data)
    (run,) = underspecified_study(mine, tmp_path / "out", **options)
    assert run[:2] == ("mine", "none")
    assert run.accuracy == (asked[0].label[: run.tests] == 0).mean()
    with pytest.raises(InputError, match="no words for it"):
        underspecified_study(mine, tmp_path / "x", interventions=["instruction_h1"], **options)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"directory": None}, {}, "this study reads files"),
        ({}, {"tasks": ["boolq_answer_lenght"]}, "no pair of features"),
        ({}, {"features": ("equals(label, 1)", "longer(t, 1)")}, "need the datasets"),
    ],
)
def test_what_cannot_be_studied(config, tmp_path, change, options, words):
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **change))
    with pytest.raises(InputError, match=words):
        underspecified_study(config, tmp_path / "out", **OPTIONS, **options)


def test_a_folder_without_files_says_what_is_wanted(config, tmp_path):
    data = dataclasses.replace(config.data, directory=tmp_path)
    with pytest.raises(InputError, match="sa_sentiment_domain"):
        underspecified_study(dataclasses.replace(config, data=data), tmp_path / "out", **OPTIONS)


def test_a_picture_of_many_interventions(tmp_path):
    systems = [f"intervention {i}" for i in range(6)]
    runs = [BiasRun(t, s, 0, 0.3, 0.6, 10, 16) for t in ("a", "b") for s in systems]
    draw_biases(tmp_path / "x.png", runs, ("a", "b"), systems)
    assert (tmp_path / "x.png").stat().st_size > 10_000
