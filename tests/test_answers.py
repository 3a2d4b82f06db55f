"""Every kind of model answers a task from the shell's own functions: choices, a head, a mask."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import answers, experiment, inference, report
from peft_jax.config import DataConfig, EvaluationConfig, Experiment, TrainingConfig
from peft_jax.errors import InputError
from tests.families import BERT, GPT2, LLAMA, ROBERTA
from tests.oracle import GOLDEN
from tests.random_adapters import backbone_of
from tests.small_run import small_experiment
from tests.small_task import TEMPLATES, write_task

QUIET = report.quiet_console()
WORDS = ("yes", "no", "maybe")


def write_backbone(folder, config, vocabulary):
    """A Hugging Face folder with random weights and a small real vocabulary."""
    files = GOLDEN / "tokenizers" / vocabulary
    shutil.copytree(files, folder, ignore=shutil.ignore_patterns("expected.json", "config.json"))
    if (folder / "vocab.txt").is_file():
        words = (folder / "vocab.txt").read_text().split("\n")
        added = [w for w in WORDS if w not in words]
        (folder / "vocab.txt").write_text("\n".join([*filter(None, words), *added]) + "\n")
    # What a config.json can say: heads * d_kv is d_model.
    shape = {"vocab_size": 1100, "num_heads": 4, "d_kv": 6}
    if config.positions == "learned":
        shape["max_positions"] = 128
    config = dataclasses.replace(config, **shape)
    backbone = pj.init_backbone(config, jax.random.key(0))
    return pj.save_backbone(folder, backbone)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("answers")
    write_task(made / "data" / "mine")
    words = write_task(made / "data" / "words")
    kept, _, _ = TEMPLATES.partition("  three:")
    (words / "templates.yaml").write_text(kept.replace("No ||| Yes", "no ||| yes"))
    write_backbone(made / "bert", BERT, "bert")
    write_backbone(made / "roberta", ROBERTA, "roberta")
    write_backbone(made / "gpt2", GPT2, "gpt2")
    write_backbone(made / "llama", LLAMA, "llama2")
    return made


def config_of(folder, backbone, task="mine", **fields):
    return Experiment(
        task=task,
        backbone=str(folder / backbone),
        data=DataConfig(directory=folder / "data", shots=8, max_input_length=96),
        training=TrainingConfig(steps=6, batch_size=4, log_every=2, checkpoint_every=3, devices=1),
        evaluation=EvaluationConfig(batch_size=8),
        **fields,
    )


def run(folder, backbone, tmp_path, **fields):
    config = config_of(folder, backbone, **fields)
    result = experiment.run(config, tmp_path / "out", console=QUIET)
    adapter = pj.load_adapter(tmp_path / "out", pj.load_backbone(folder / backbone))
    again = inference.evaluate_adapter(tmp_path / "out", config, None, QUIET)
    assert again["accuracy_per_template"] == result["evaluation"]["accuracy_per_template"]
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert np.isfinite([json.loads(line).get("loss", 0.0) for line in lines]).all()
    return result, adapter


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "backbone", ["bert", *(pytest.param(name, marks=SLOW) for name in ("roberta", "gpt2"))]
)
def test_a_head_is_trained_in_the_adapter(folder, backbone, tmp_path):
    answer = "auto" if backbone != "gpt2" else "head"
    result, (adapter, method) = run(folder, backbone, tmp_path, method=("lora",), answer=answer)
    assert result["answer"] == "head"
    assert result["zero_shot"] is None
    assert list(result["evaluation"]["accuracy_per_template"]) == ["fields"]
    head = adapter["classification_head"]["classifier"]
    assert head["out"]["kernel"].shape[-1] == 2
    assert ("dense" in head) == (backbone == "roberta")
    assert not np.allclose(head["out"]["kernel"], 0)
    assert method.spec["methods"][-1]["name"] == "classification_head"
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    said = inference.predict_text(tmp_path / "out", str(folder / backbone), "There is snow ")
    wanted = json.loads(lines[0])["scores"]
    np.testing.assert_allclose([dict(said)[c] for c in ("0", "1")], wanted, atol=1e-5)
    with pytest.raises(InputError, match="ranks its classes, no choices"):
        inference.predict_text(tmp_path / "out", str(folder / backbone), "x", ("a", "b"))


@pytest.mark.slow
def test_a_word_at_the_mask_needs_no_head(folder, tmp_path):
    result, (adapter, _) = run(
        folder, "bert", tmp_path, task="words", method=("ia3",), answer="verbalizer"
    )
    assert result["answer"] == "verbalizer"
    assert result["zero_shot"] is not None
    assert "classifier" not in adapter
    place = (tmp_path / "out", str(folder / "bert"))
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    said = inference.predict_text(*place, "There is snow  Is it warm?", ("no", "yes"))
    wanted = json.loads(lines[0])["scores"]
    np.testing.assert_allclose([dict(said)[c] for c in ("no", "yes")], wanted, atol=1e-5)
    with pytest.raises(InputError, match="give the words to rank"):
        inference.predict_text(*place, "There is snow")
    with pytest.raises(InputError, match="classification head alone"):
        inference.predict_text(*place, "There is snow", ("no", "yes"), pair="and ice")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["gpt2", pytest.param("llama", marks=SLOW)])
def test_a_decoder_ranks_the_choices_that_it_could_write(folder, backbone, tmp_path):
    result, (adapter, _) = run(folder, backbone, tmp_path, method=("ia3",))
    assert result["answer"] == "choices"
    assert set(adapter) == {"decoder"}
    assert result["zero_shot"] is not None
    spoken = inference.predict_text(
        tmp_path / "out", str(folder / backbone), "is it so?", ("yes", "no")
    )
    assert [text for text, _ in spoken] in (["yes", "no"], ["no", "yes"])


@SLOW
def test_a_head_is_resumed_to_the_same_result(folder, tmp_path, monkeypatch):
    config = config_of(folder, "bert", method=("lora",))
    whole = experiment.run(config, tmp_path / "whole", console=QUIET)

    def stopped(run, until, _steps=experiment.train_steps):
        for made, metrics in _steps(run, until):
            yield made, metrics
            if made == 4:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "train_steps", stopped)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, tmp_path / "cut", console=QUIET)
    resumed = experiment.run(config, tmp_path / "cut", resume=True, console=QUIET)
    assert resumed["evaluation"] == whole["evaluation"]
    for name in ("adapter.safetensors", "predictions.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("family", "wanted", "message"),
    [
        ("bert", "choices", "is an encoder and cannot write answers; take 'head' or 'verbalizer'"),
        ("llama", "verbalizer", "has no mask to fill"),
        ("t5_v1_1", "verbalizer", "has no mask to fill"),
    ],
)
def test_what_a_model_cannot_do_is_refused(family, wanted, message):
    with pytest.raises(InputError, match=message):
        answers.find_answer(wanted, backbone_of(family))


def test_a_bert_without_its_masked_head_fills_no_mask():
    bare = dataclasses.replace(BERT, lm_head=False, head_transform=False, head_bias=False)
    with pytest.raises(InputError, match="no masked-language-model head"):
        answers.find_answer("verbalizer", pj.Backbone({}, bare, "bare"))


@SLOW
def test_a_t5_answers_by_choices_unless_it_is_told_otherwise(tmp_path):
    config = small_experiment(tmp_path, steps=4)
    assert answers.find_answer("auto", pj.load_backbone(config.backbone)) == "choices"
    result = experiment.run(
        dataclasses.replace(config, answer="head"), tmp_path / "out", console=QUIET
    )
    assert result["answer"] == "head"
    adapter, _ = pj.load_adapter(tmp_path / "out", pj.load_backbone(config.backbone))
    assert set(adapter["classification_head"]["classifier"]) == {"dense", "out"}
