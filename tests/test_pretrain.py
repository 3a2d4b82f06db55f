"""The pretraining job: it learns, it goes on after an interruption, it refuses a used folder."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from peft_jax import pretrain
from peft_jax.backbones import backbone_outline, load_backbone
from peft_jax.errors import InputError
from peft_jax.pretrain import PretrainConfig, run
from peft_jax.tasks.embedded import vocabulary

SMALL = PretrainConfig(
    tasks=("kind_check",),
    rows_per_task=64,
    pieces=1_400,
    few_shot_share=0.0,
    d_model=16,
    d_kv=8,
    d_ff=16,
    num_heads=2,
    num_layers=1,
    num_decoder_layers=1,
    steps=8,
    warmup_steps=2,
    batch_tokens=512,
    log_interval=4,
    eval_interval=8,
    eval_rows=4,
    checkpoint_interval=4,
)


@pytest.fixture(autouse=True)
def _few_rows_for_the_vocabulary(monkeypatch):
    monkeypatch.setattr(vocabulary, "ROWS_PER_TASK", 8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "ROWS_PER_TASK", 8)
        return run(dataclasses.replace(SMALL, output=tmp_path_factory.mktemp("run") / "whole"))


def test_a_run_leaves_a_folder_that_loads(finished):
    backbone = load_backbone(finished)
    assert backbone.config.d_model == 16
    assert backbone.config.dropout == 0.1
    assert backbone.vocabulary == finished / "spiece.model"
    lines = [json.loads(line) for line in (finished / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 8]
    assert lines[1]["loss"] < lines[0]["loss"]
    assert 0 <= lines[2]["kind_check"] <= 1


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(finished, tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, output=tmp_path / "interrupted")
    save = pretrain._save

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "_save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(pretrain, "_save", save)
    assert not (tmp_path / "interrupted/model.safetensors").exists()
    resumed = load_backbone(run(dataclasses.replace(config, resume=True)))
    whole = load_backbone(finished)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_a_given_vocabulary_is_taken_over(tmp_path):
    config = dataclasses.replace(SMALL, output=tmp_path / "run", vocabulary="tiny", steps=0)
    with pytest.raises(InputError, match="has 1442 pieces; pieces is 1400"):
        run(config)
    folder = run(dataclasses.replace(config, output=tmp_path / "other", pieces=1_800))
    shipped = backbone_outline("tiny").vocabulary
    assert (folder / "spiece.model").read_bytes() == shipped.read_bytes()


def test_what_would_lose_or_mix_runs_is_refused(finished):
    with pytest.raises(InputError, match="no output folder"):
        run(SMALL)
    with pytest.raises(InputError, match="is not empty"):
        run(dataclasses.replace(SMALL, output=finished))
    with pytest.raises(InputError, match="other fields"):
        run(dataclasses.replace(SMALL, output=finished, resume=True, seed=1))
    with pytest.raises(InputError, match="no checkpoint"):
        run(dataclasses.replace(SMALL, output=finished / "none", resume=True))


def test_the_preset_is_a_pretraining_run():
    from peft_jax.config import load_preset

    assert load_preset("pretrain_tiny", PretrainConfig).seed == 0
