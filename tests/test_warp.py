"""WARP: prompts and class vectors, what they start from, and how they answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import answers, experiment, inference, objectives, scoring, transformer
from peft_jax.backbones import abstract_backbone, backbone_config
from peft_jax.errors import InputError
from peft_jax.tokenizer import load_tokenizer
from tests import oracle
from tests.families import quickly
from tests.oracle import GOLDEN
from tests.random_adapters import abstract_init, adapted, backbone_of
from tests.test_answers import QUIET, config_of, folder  # noqa: F401

MASK = 50


def head_of(backbone, words):
    """The frozen head's own columns of some tokens."""
    params, config = backbone.params, backbone.config
    head = params.get("lm_head", {})
    table = params["token_embedder"]["embedding"].T if config.tied_head else head["kernel"]
    leaves = {"kernel": table[:, np.asarray(words)]}
    if "bias" in head:
        leaves["bias"] = head["bias"][np.asarray(words)]
    return leaves


# --------------------------------------------------------------------------------------------
# Scores
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("placement", quickly(["front", "after_first"], ("after_first",)))
@pytest.mark.parametrize("family", quickly(["bert", "roberta"]))
def test_with_the_heads_own_vectors_it_scores_words_at_the_mask(family, placement):
    backbone = backbone_of(family)
    method, stored = adapted(backbone, pj.warp(4, 3, placement))
    words = [7, 3, 9]
    stored["verbalizer"] = head_of(backbone, words)
    pad = backbone.config.pad_id
    tokens = np.asarray([[5, MASK, 8, 6], [4, 8, MASK, pad], [MASK, pad, pad, pad]], np.int32)
    batch = {
        "encoder_input_tokens": tokens,
        "choices": np.tile(np.asarray(words, np.int32)[None, :, None], (3, 1, 1)),
        "choice_mask": np.asarray([[1, 1, 1], [1, 1, 0], [1, 0, 1]], bool),
        "label": np.asarray([2, 1, 0], np.int32),
    }
    config, objective = backbone.config, objectives.trained_verbalizer_objective(MASK)

    @jax.jit
    def run(params):
        words_only = {name: leaf for name, leaf in params.items() if name != "verbalizer"}
        at_mask = scoring.verbalizer_log_probs(config, words_only, batch, MASK)
        wanted = jax.nn.log_softmax(jnp.where(batch["choice_mask"], at_mask, -jnp.inf), axis=-1)
        trained = objective.value(config, params, batch, None, objective.counts(config, batch))
        return wanted, scoring.score_classes(backbone, params, batch, MASK), trained

    wanted, scores, (loss, metrics) = run(pj.merge(backbone.params, method.bind(stored)))
    np.testing.assert_array_equal(np.isinf(scores), ~batch["choice_mask"])
    there = batch["choice_mask"]
    oracle.assert_close(np.asarray(scores)[there], np.asarray(wanted)[there], 1e-5)
    picked = np.asarray(scores)[np.arange(3), batch["label"]]
    assert float(loss) == pytest.approx(-picked.mean(), rel=1e-5)
    right = np.argmax(scores, axis=1) == batch["label"]
    assert float(metrics["accuracy"]) == pytest.approx(right.mean())


@pytest.mark.parametrize("family", quickly(["v1_0", "gpt2"], ("gpt2",)))
def test_elsewhere_the_state_that_predicts_the_answer_is_classified(family):
    """With the head's own vectors: the logits of the answer's first token."""
    backbone = backbone_of(family)
    config = backbone.config
    method, stored = adapted(backbone, pj.warp(4, 3, "suffix"))
    stored["verbalizer"] = head_of(backbone, [7, 3, 9])
    pad = config.pad_id
    tokens = np.asarray([[5, 8, 6, 2], [4, 8, pad, pad]], np.int32)
    choices = np.asarray([[[7], [3], [9]]] * 2, np.int32)
    read = {"encoder_input_tokens": tokens, "choices": choices}

    @jax.jit
    def run(params):
        logits = transformer.verbalize(config, params, {"encoder_input_tokens": tokens})
        return logits - scoring.choice_log_probs(config, params, read)[..., 0]

    difference = np.asarray(run(pj.merge(backbone.params, method.bind(stored))))
    oracle.assert_close(difference, np.repeat(difference[:, :1], 3, axis=1), 1e-5)


def test_another_number_of_classes_is_refused():
    backbone = backbone_of("bert")
    method, stored = adapted(backbone, pj.warp(4, 3))
    params = pj.merge(backbone.params, method.bind(stored))
    batch = {
        "encoder_input_tokens": np.asarray([[5, MASK]], np.int32),
        "choice_mask": np.ones((1, 2), bool),
    }
    with pytest.raises(InputError, match=r"has 3 classes and the task 2 answers; .* labels=2"):
        jax.eval_shape(lambda p: scoring.score_classes(backbone, p, batch, MASK), params)
    with pytest.raises(InputError, match="there is no verbaliser"):
        scoring.score_classes(backbone, backbone.params, batch, MASK)


# --------------------------------------------------------------------------------------------
# What it starts from
# --------------------------------------------------------------------------------------------
def with_vocabulary(family, name):
    """A backbone of a family as large as a real small vocabulary."""
    tokenizer = load_tokenizer(GOLDEN / "tokenizers" / name)
    config = dataclasses.replace(backbone_of(family).config, vocab_size=tokenizer.vocab_size)
    made = pj.init_backbone(config, jax.random.key(0))
    backbone = pj.Backbone(made.params, config, name, GOLDEN / "tokenizers" / name)
    return backbone, tokenizer


def test_prompts_start_near_the_embeddings():
    backbone = backbone_of("bert")
    table = np.asarray(backbone.params["token_embedder"]["embedding"])
    rows = pj.warp(3000).init(jax.random.key(0), backbone)["encoder"]["prompt"]
    assert rows.std() == pytest.approx(table.std(), rel=0.02)
    assert rows.mean() == pytest.approx(table.mean(), abs=0.02 * float(table.std()))
    rows = pj.warp(3000, init="normal", std=0.5).init(jax.random.key(0), backbone)
    assert rows["encoder"]["prompt"].std() == pytest.approx(0.5, rel=0.02)
    backbone, tokenizer = with_vocabulary("bert", "bert")
    rows = pj.warp(3, init="mask").init(jax.random.key(0), backbone)["encoder"]["prompt"]
    mask = backbone.params["token_embedder"]["embedding"][tokenizer.mask_id]
    np.testing.assert_array_equal(rows, np.tile(mask, (3, 1)))


@pytest.mark.parametrize(("family", "name"), [("bert", "bert"), ("llama", "llama2")])
def test_class_vectors_start_from_words(family, name):
    backbone, tokenizer = with_vocabulary(family, name)
    bias = {"bias": jnp.arange(float(backbone.config.vocab_size))}
    if family == "bert":
        backbone.params["lm_head"] = bias
    stored = pj.warp(3, 2, words=("dog", "fox")).init(jax.random.key(0), backbone)
    ids = tokenizer.encode("a dog")[1], tokenizer.encode("a fox")[1]
    wanted = head_of(backbone, ids)
    np.testing.assert_array_equal(stored["verbalizer"]["kernel"], wanted["kernel"])
    wanted = wanted.get("bias", np.zeros(2))
    np.testing.assert_array_equal(stored["verbalizer"]["bias"], wanted)
    drawn = pj.warp(3, 2, bias=False).init(jax.random.key(0), backbone)["verbalizer"]
    assert set(drawn) == {"kernel"}
    assert np.abs(drawn["kernel"]).max() < 0.1


@pytest.mark.parametrize(
    ("method", "name", "count"),
    [
        # (K + C) D, below the paper's 11K and 25K, and C biases of the public code.
        (pj.warp(8, 2, bias=False), "roberta_large", 10 * 1024),
        (pj.warp(20, 3, bias=False), "roberta_large", 23 * 1024),
        (pj.warp(20, 3, "markers"), "roberta_large", 23 * 1024 + 3),
    ],
)
def test_counts(method, name, count):
    backbone = abstract_backbone(backbone_config(name))
    assert pj.count(abstract_init(method, backbone)) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length 0 must be a whole number"),
        ({"labels": 0}, "labels 0 must be a whole number"),
        ({"placement": "mask"}, "placement 'mask' is unknown"),
        ({"words": ("a", "b", "c")}, "must be a list of one for each of the 2 labels"),
        ({"words": "yes"}, "must be a list of one"),
        ({"init": "better"}, "init 'better' is unknown; one of table, mask, normal"),
        ({"std": -0.1}, "std -0.1 must be at least 0"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        pj.warp(**arguments)


def test_starts_that_a_backbone_does_not_have_are_refused():
    key = jax.random.key(0)
    with pytest.raises(InputError, match="'random' has no vocabulary: its mask is not known"):
        pj.warp(init="mask").init(key, backbone_of("bert"))
    with pytest.raises(InputError, match=r"'gpt2' has no mask token; take 'table'"):
        pj.warp(init="mask").init(key, with_vocabulary("gpt2", "gpt2")[0])
    with pytest.raises(InputError, match="has no vocabulary: no tokens of the word 'a'"):
        pj.warp(words=("a", "b")).init(key, backbone_of("bert"))


# --------------------------------------------------------------------------------------------
# From the shell's functions
# --------------------------------------------------------------------------------------------
def test_how_warp_answers():
    bert = backbone_of("bert")
    assert answers.find_answer("auto", bert, ("warp",)) == "trained_verbalizer"
    assert answers.find_answer("auto", backbone_of("gpt2"), ("warp",)) == "trained_verbalizer"
    assert answers.find_answer("auto", bert, ("ia3",)) == "head"
    with pytest.raises(InputError, match="answer 'head': warp answers with the verbaliser"):
        answers.find_answer("head", bert, ("lora", "warp"))
    headless = dataclasses.replace(bert, config=dataclasses.replace(bert.config, lm_head=False))
    with pytest.raises(InputError, match="has no language-model head"):
        answers.find_answer("auto", headless, ("warp",))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["bert", "gpt2"])
def test_warp_is_trained_kept_and_asked(folder, tmp_path, backbone):  # noqa: F811
    config = config_of(folder, backbone, task="words", method=("warp",))
    result = experiment.run(config, tmp_path / "out", console=QUIET)
    assert result["answer"] == "trained_verbalizer"
    loaded = pj.load_backbone(folder / backbone)
    adapter, method = pj.load_adapter(tmp_path / "out", loaded)
    assert method.spec["name"] == "warp"
    assert adapter["verbalizer"]["kernel"].shape == (loaded.config.d_model, 2)
    # Evaluation knows from the file how the adapter answers.
    plain = dataclasses.replace(config, method=("ia3",))
    again = inference.evaluate_adapter(tmp_path / "out", plain, None, QUIET)
    assert again["accuracy_per_template"] == result["evaluation"]["accuracy_per_template"]
    ranked = inference.predict_text(tmp_path / "out", folder / backbone, "There is sun")
    assert sorted(name for name, _ in ranked) == ["0", "1"]
    assert np.exp([score for _, score in ranked]).sum() == pytest.approx(1, rel=1e-5)
    named = inference.predict_text(
        tmp_path / "out", folder / backbone, "There is sun", ["cold", "warm"]
    )
    assert [score for _, score in named] == [score for _, score in ranked]
    with pytest.raises(InputError, match="3 choices; the adapter has 2 classes"):
        inference.predict_text(tmp_path / "out", folder / backbone, "sun", ["a", "b", "c"])


def test_examples_that_a_method_has_no_rows_or_classes_for_are_refused():
    backbone = backbone_of("bert")
    rows = {
        "encoder_input_tokens": np.asarray([[5, -3]], np.int32),
        "choices": np.ones((1, 3, 1), np.int32),
        "choice_mask": np.ones((1, 3), bool),
    }
    rows |= {name: np.zeros(1, np.int32) for name in ("label", "example", "template")}
    examples = experiment.ChoiceExamples("t", "train", ("a",), vocabulary="v", **rows)
    with pytest.raises(InputError, match="the marker <soft 1> finds no row, the method has no"):
        experiment.check_method(pj.ia3(), backbone, examples)
    with pytest.raises(InputError, match="the marker <soft 1> finds no row, the method has 1 rows"):
        experiment.check_method(pj.p_tuning(1, placement="markers"), backbone, examples)
    experiment.check_method(pj.warp(2, 3, "markers"), backbone, examples)
    with pytest.raises(InputError, match=r"trains 2 class vectors and t has 3 .* --warp.labels 3"):
        experiment.check_method(pj.warp(2, 2, "markers"), backbone, examples)
