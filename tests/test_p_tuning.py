"""P-tuning's prompt encoders: against Hugging Face PEFT and torch, in a template, and counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import experiment, inference, tree
from peft_jax.backbones import abstract_backbone, backbone_config
from peft_jax.errors import InputError
from peft_jax.methods import prompt_encoders
from tests import oracle
from tests.families import quickly
from tests.random_adapters import (
    abstract_init,
    adapted,
    assert_same_trees,
    backbone_of,
    compiled_logits,
)
from tests.small_task import TEMPLATES, write_task
from tests.test_answers import QUIET, config_of, folder  # noqa: F401
from tests.test_prefix_tuning import assert_as_peft

HEAD = "prompt_encoder.default."
CASES = {
    "p_tuning_mlp_gpt2": ("gpt2", {"encoder": "mlp"}),
    "p_tuning_lstm_v1_0": ("v1_0", {"encoder": "lstm"}),
    "p_tuning_lstm_llama": ("llama", {"encoder": "lstm", "lstm_layers": 1}),
    "p_tuning_mlp_v1_0": ("v1_0", {"encoder": "mlp"}),
}


# --------------------------------------------------------------------------------------------
# Hugging Face PEFT and torch
# --------------------------------------------------------------------------------------------
def lstm_from_torch(tensors, head=""):
    """torch.nn.LSTM's tensors by name as our tree."""
    layers = {}
    for i in range(sum(name.startswith(f"{head}weight_ih") for name in tensors) // 2):
        layers[f"layer_{i}"] = {
            direction: {
                "input_kernel": tensors[f"{head}weight_ih_l{i}{end}"].T,
                "hidden_kernel": tensors[f"{head}weight_hh_l{i}{end}"].T,
                "input_bias": tensors[f"{head}bias_ih_l{i}{end}"],
                "hidden_bias": tensors[f"{head}bias_hh_l{i}{end}"],
            }
            for direction, end in (("forward", ""), ("backward", "_reverse"))
        }
    return layers


def encoder_from_peft(arrays, kind, stack):
    """The stored tree that PEFT's tensors under ``kind`` are; every one of them has a place."""
    given = {n.removeprefix(kind + HEAD): x for n, x in arrays.items() if n.startswith(kind)}
    network = {"embedding": given["embedding.weight"], "mlp": {}}
    linears = sorted(name for name in given if name.startswith("mlp_head") and "weight" in name)
    for i, name in enumerate(linears):
        bias = given[name.replace("weight", "bias")]
        network["mlp"][f"linear_{i}"] = {"kernel": given[name].T, "bias": bias}
    if "lstm_head.weight_ih_l0" in given:
        network["lstm"] = lstm_from_torch(given, "lstm_head.")
    assert len(jax.tree.leaves(network)) == len(given)
    return {stack: {"prompt_encoder": network}}


@pytest.mark.parametrize(
    "case",
    [
        "p_tuning_mlp_gpt2",
        "p_tuning_lstm_v1_0",
        *(pytest.param(case, marks=pytest.mark.oracle) for case in list(CASES)[2:]),
    ],
)
def test_a_prompt_encoder_equals_peft(case):
    file = oracle.GOLDEN / f"peft_{case}.npz"
    script = None if file.exists() else oracle.live("make_peft_prompts")
    arrays = script.oracle(case) if script else dict(np.load(file))
    variant, arguments = CASES[case]
    backbone, batch = oracle.model("t5" if variant == "v1_0" else "decoders", variant)
    method = pj.p_tuning(4, hidden=7, **arguments)
    stack = backbone.config.input_stack
    stored, gradients = (encoder_from_peft(arrays, kind, stack) for kind in ("adapter/", "grad/"))
    assert_as_peft(method, backbone, batch, stored, arrays, gradients)
    # What PEFT saves is the prompt that the encoder made.
    direct, rows = pj.eject(method, stored)
    assert direct.spec["name"] == "prompt_tuning"
    oracle.assert_close(rows[stack]["prompt"], arrays["saved"], 1e-6)
    assert_same_trees(direct.bind(rows), method.bind(stored))


@pytest.mark.oracle
@pytest.mark.parametrize("num_layers", [1, 3])
def test_an_lstm_equals_torchs(num_layers):
    torch = pytest.importorskip("torch")
    torch.manual_seed(num_layers)
    theirs = torch.nn.LSTM(5, 4, num_layers, bidirectional=True).double()
    rows = torch.randn(7, 5).double()
    tensors = {name: x.detach().float().numpy() for name, x in theirs.named_parameters()}
    own = lstm_from_torch(tensors)
    shapes = jax.tree.map(jnp.shape, own)
    drawn = prompt_encoders.draw_lstm(jax.random.key(0), 5, 4, num_layers)
    assert jax.tree.map(jnp.shape, drawn) == shapes
    made = prompt_encoders.lstm(own, jnp.asarray(rows.numpy(), jnp.float32))
    oracle.assert_close(made, theirs(rows)[0].detach().numpy(), 1e-6)


def test_networks_are_drawn_as_torch_draws_them():
    lstm = prompt_encoders.draw_lstm(jax.random.key(0), 30, 64, 2)
    entries = np.concatenate([np.ravel(x) for x in jax.tree.leaves(lstm)])
    assert np.abs(entries).max() <= 1 / 8
    assert entries.var() == pytest.approx((1 / 8) ** 2 / 3, rel=0.02)
    linear = prompt_encoders.draw_linear(jax.random.key(0), 16, 300)
    for leaf in linear.values():
        assert np.abs(leaf).max() <= 1 / 4
        assert leaf.var() == pytest.approx((1 / 4) ** 2 / 3, rel=0.15)
    assert not np.array_equal(linear["kernel"][0], linear["bias"])


# --------------------------------------------------------------------------------------------
# In a template
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", quickly(["bert", "gpt2"], ("bert",)))
def test_rows_at_markers_are_those_that_the_encoder_makes(family):
    """Anchor words stay between the markers; each marker reads its own row."""
    backbone = backbone_of(family)
    stack = backbone.config.input_stack
    method, stored = adapted(backbone, pj.p_tuning(3, "mlp", "markers", hidden=5), noise=1.0)
    bound = method.bind(stored)[stack]
    assert set(bound) == {"soft_tokens"}
    # Where three words' embeddings are the rows, to read the markers is to read the words.
    words = [41, 43, 47]
    embedding = backbone.params["token_embedder"]["embedding"]
    embedding = embedding.at[jnp.asarray(words)].set(bound["soft_tokens"])
    params = backbone.params | {"token_embedder": {"embedding": embedding}}
    text = [[-2, 8, -3, 9, 10, -4], [5, 6, -4, -4, 7, -2]]
    named = {-2: words[0], -3: words[1], -4: words[2]}
    plain = [[named.get(id, id) for id in row] for row in text]
    reads = f"{stack}_input_tokens"
    run = compiled_logits(backbone.config)
    marked = run(pj.merge(params, method.bind(stored)), {reads: np.asarray(text)}, None)
    oracle.assert_close(marked, run(params, {reads: np.asarray(plain)}, None), 1e-6)


@pytest.mark.parametrize("placement", ["front", "after_first", "suffix", "markers"])
def test_ejecting_keeps_the_place(placement):
    backbone = backbone_of("bert")
    method, stored = adapted(backbone, pj.p_tuning(3, "lstm", placement, hidden=3))
    direct, rows = pj.eject(method, stored)
    assert direct.spec["placement"] == placement
    assert_same_trees(direct.bind(rows), method.bind(stored))
    assert pj.count(rows) == 3 * backbone.config.d_model
    shapes = jax.tree.map(jnp.shape, abstract_init(direct, backbone))
    assert jax.tree.map(jnp.shape, rows) == shapes


def test_rows_may_start_from_words():
    backbone = backbone_of("v1_1")
    method = pj.p_tuning(6, init="vocabulary", vocabulary_range=(3, 9))
    rows = method.init(jax.random.key(0), backbone)["encoder"]["prompt_encoder"]["embedding"]
    wanted = backbone.params["token_embedder"]["embedding"][3:9]
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(wanted, axis=0))
    normal = pj.p_tuning(300, std=0.1).init(jax.random.key(0), backbone)
    normal = normal["encoder"]["prompt_encoder"]["embedding"]
    assert normal.std() == pytest.approx(0.1, rel=0.03)


# --------------------------------------------------------------------------------------------
# Counts and errors
# --------------------------------------------------------------------------------------------
def lstm_count(d, h, layers):
    return sum(8 * ((d if i == 0 else 2 * h) * h + h * h + 2 * h) for i in range(layers))


@pytest.mark.parametrize(
    ("arguments", "d", "count"),
    [
        # The paper's LAMA setting: 2 layers of D / 2, then D -> D -> D.
        ({}, 768, 20 * 768 + lstm_count(768, 384, 2) + 2 * (768 * 768 + 768)),
        # Its few-shot settings.
        (
            {"hidden": 768, "mlp_hidden": 768},
            768,
            20 * 768 + lstm_count(768, 768, 2) + 2 * 768 * 768 + 768 + 768 * 768 + 768,
        ),
        (
            {"encoder": "mlp", "mlp_layers": 2},
            768,
            20 * 768 + 2 * (768 * 768 + 768),
        ),
        # Hugging Face PEFT's MLP and LSTM.
        (
            {"encoder": "mlp", "hidden": 128},
            768,
            20 * 768 + 768 * 128 + 128 + 128 * 128 + 128 + 128 * 768 + 768,
        ),
        (
            {"hidden": 128},
            768,
            20 * 768 + lstm_count(768, 128, 2) + 256 * 256 + 256 + 256 * 768 + 768,
        ),
    ],
)
def test_counts(arguments, d, count):
    backbone = abstract_backbone(backbone_config("bert_base_uncased"))
    assert backbone.config.d_model == d
    assert pj.count(abstract_init(pj.p_tuning(20, **arguments), backbone)) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length 0 must be a whole number of at least 1"),
        ({"encoder": "gru"}, "encoder 'gru' is unknown; one of lstm, mlp"),
        ({"placement": "back"}, "placement 'back' is unknown; one of front, after_first, suffix"),
        ({"hidden": 0}, "hidden 0 must be"),
        ({"lstm_layers": 1.5}, "lstm_layers 1.5 must be"),
        ({"encoder": "mlp", "mlp_hidden": 3}, "mlp_hidden is of the MLP behind an LSTM"),
        ({"where": "both"}, "where 'both' is unknown"),
        ({"init": "text"}, "init 'text' is unknown; one of normal, vocabulary"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        pj.p_tuning(**{"length": 3, **arguments})


def test_rows_among_a_decoders_answer_are_refused():
    method = pj.p_tuning(3, placement="suffix", where="decoder")
    with pytest.raises(InputError, match="'suffix' is for the stack that reads the input, the enc"):
        method.init(jax.random.key(0), backbone_of("v1_1"))


def test_spec_gives_the_method_again():
    method = pj.p_tuning(3, "mlp", "suffix", hidden=5, vocabulary_range=(3, 9))
    again = pj.methods.from_spec(method.spec)
    assert again.spec == method.spec
    backbone = backbone_of("bert")
    assert tree.flatten(jax.tree.map(jnp.shape, abstract_init(again, backbone))) == tree.flatten(
        jax.tree.map(jnp.shape, abstract_init(method, backbone))
    )


# --------------------------------------------------------------------------------------------
# A run
# --------------------------------------------------------------------------------------------
def marked_task(folder):  # noqa: F811
    """The small task again, with markers around its words."""
    data = folder / "data" / "marked"
    if not data.exists():
        write_task(data)
        plain, _, _ = TEMPLATES.partition("  three:")
        text = plain.replace("{{text}} Is it warm?", "<soft> {{text}} <soft 2-3> Is it warm?")
        (data / "templates.yaml").write_text(text)
    return "marked"


@pytest.mark.slow
def test_templates_with_markers_need_a_method_with_rows(folder, tmp_path):  # noqa: F811
    config = config_of(folder, "gpt2", task=marked_task(folder), method=("ia3",))
    with pytest.raises(InputError, match="marked: the marker <soft 3> finds no row, the method ha"):
        experiment.run(config, tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rows_at_markers_are_trained_kept_and_read(folder, tmp_path):  # noqa: F811
    config = config_of(folder, "gpt2", task=marked_task(folder), method=("p_tuning",))
    rows = dataclasses.replace(config.p_tuning, length=4, placement="markers", encoder="mlp")
    config = dataclasses.replace(config, p_tuning=rows)
    result = experiment.run(config, tmp_path / "out", console=QUIET)
    # The backbone alone reads no markers.
    assert result.get("zero_shot") is None
    again = inference.evaluate_adapter(tmp_path / "out", config, None, QUIET)
    assert again["accuracy_per_template"] == result["evaluation"]["accuracy_per_template"]
    asked = [
        inference.predict_text(tmp_path / "out", folder / "gpt2", text, ["No", "Yes"])
        for text in ("There is sun <soft 3>", "There is sun <soft 0>")
    ]
    assert asked[0] != asked[1]
    with pytest.raises(InputError, match="the texts: the marker <soft 4> finds no row"):
        inference.predict_text(tmp_path / "out", folder / "gpt2", "a <soft 4>", ["No", "Yes"])
