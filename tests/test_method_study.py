"""The study of methods: what it runs, resumes and leaves."""

import dataclasses
import json

import numpy as np
import pytest

from peft_jax import method_study, report
from peft_jax.config import load_preset
from peft_jax.errors import InputError
from peft_jax.method_study import BASELINES, MethodRun, compare_methods, with_preset
from tests.small_run import small_experiment

PRESETS = ("tfew_layer_norm",)
QUIET = report.quiet_console()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_experiment(tmp_path_factory.mktemp("methods"))


@pytest.fixture(scope="module")
def studied(config, tmp_path_factory):
    output = tmp_path_factory.mktemp("study") / "out"
    given = {"presets": PRESETS, "tasks": [config.task], "steps_share": 0.003}
    runs = compare_methods(config, output, seeds=(0, 1), console=QUIET, **given)
    return output, given, runs


@pytest.mark.slow
def test_every_preset_runs_on_every_seed_and_the_frozen_backbone_once(studied, config):
    _, _, runs = studied
    assert [run[1:3] for run in runs] == [
        ("zero-shot", 0),
        ("tfew_layer_norm", 0),
        ("tfew_layer_norm", 1),
    ]
    sizes = {run.system: (run.parameters, run.steps) for run in runs}
    # The small backbone has 2 + 2 layers and a d_model of 16; and 0.003 of a thousand steps.
    assert sizes == {"zero-shot": (0, 0), "tfew_layer_norm": ((5 * 2 + 2) * 16, 3)}
    assert all(0 <= run.accuracy <= 1 for run in runs)


def test_table_and_picture_are_of_the_runs(studied):
    output, _, runs = studied
    lines = (output / "table.md").read_text().splitlines()
    assert "0.003 of T-Few's steps" in lines[0]
    row = next(line for line in lines if line.startswith("| LayerNorm"))
    median = 100 * np.median([run.accuracy for run in runs if run.system in PRESETS])
    assert row.strip("| ").split(" | ")[1:4] == ["192", "3", f"{median:.1f}"]
    assert (output / "study.png").stat().st_size > 5_000


def test_finished_runs_are_not_run_again(studied, config):
    output, given, runs = studied
    before = (output / "results.jsonl").read_text()
    assert len(before.splitlines()) == 3
    assert compare_methods(config, output, seeds=(0, 1), console=QUIET, **given) == runs
    assert (output / "results.jsonl").read_text() == before
    with pytest.raises(InputError, match="study with other fields"):
        compare_methods(config, output, console=QUIET, **given | {"steps_share": 1.0})


def test_a_preset_brings_its_method_optimizer_and_steps(config):
    made = with_preset(config, load_preset("tfew_lora"), 0.5)
    assert made.method == ("lora", "norm_tuning")
    assert (made.lora.rank, made.training.steps) == (4, 500)
    assert made.data == config.data
    assert made.training.batch_size == config.training.batch_size
    assert with_preset(config, load_preset("tfew_prompt_10")).optimizer.learning_rate == 0.3


def test_every_baseline_has_a_preset_and_a_row():
    table = method_study.baselines_markdown()
    assert all(f"| `{name}`: " in table for name in BASELINES)
    assert "| `tfew_prefix`: Prefix tuning | `prefix_tuning` | 1,000 | 0.01 | 589,824 |" in table


def test_labels_of_the_picture_stay_apart(tmp_path):
    points = {name: (3 + 0.01 * i, 50.0) for i, name in enumerate(BASELINES)}
    placed = method_study._label_heights(points, (0, 100))
    heights = sorted(height for _, _, height in placed.values())
    assert np.diff(heights).min() > 3
    runs = [MethodRun("t", "zero-shot", 0, 0.5, {}, 0, 0)]
    runs += [MethodRun("t", n, 0, 0.6, {}, 10 + i, 1) for i, n in enumerate(BASELINES)]
    method_study.draw_methods(tmp_path / "a.png", runs, tuple(BASELINES), "title")
    assert (tmp_path / "a.png").stat().st_size > 20_000


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_of_steps_is_between_none_and_all(config, share, tmp_path):
    with pytest.raises(InputError, match="above 0 and at most 1"):
        compare_methods(config, tmp_path / "x", steps_share=share)


def test_an_encoder_cannot_be_compared_by_choices(config, tmp_path):
    headed = dataclasses.replace(config, answer="head")
    with pytest.raises(InputError, match="rank answer choices"):
        compare_methods(headed, tmp_path / "x", presets=PRESETS, tasks=[config.task], console=QUIET)
    assert json.loads((tmp_path / "x" / "config.json").read_text())["steps_share"] == 1.0
