"""BART against transformers, and the files that it is read from."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peft_jax as pj
from peft_jax import transformer, tree
from peft_jax.backbones import bart, hugging_face
from peft_jax.errors import InputError
from tests import oracle

FROZEN = ("bart", "bart_classifier")
LIVE = ("bart_long", "bart_bare", "bart_regression")
VARIANTS = (*FROZEN, *(pytest.param(name, marks=pytest.mark.oracle) for name in LIVE))
WITH_HEAD = ("bart", pytest.param("bart_long", marks=pytest.mark.oracle))


def outputs(backbone, params, arrays):
    """What make_bart's function of this name has, by the same names; the head's result last."""
    config = backbone.config
    context = transformer.context(config, params, arrays)
    found = {"encoded": context.encoded.hidden}
    if config.num_labels:
        return found | {"classes": backbone.classify(params, arrays)}
    found["hidden"] = transformer.decode(config, params, context, arrays["decoder_input_tokens"])
    return found | ({"logits": backbone.logits(params, arrays)} if "logits" in arrays else {})


@functools.cache
def computed(variant):
    """The backbone, its outputs and its gradients, and what transformers has in their place."""
    backbone, wanted = oracle.model("bart", variant)

    def loss(params):
        found = outputs(backbone, params, wanted)
        return oracle.inner_product(list(found.values())[-1], wanted), found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(backbone.params)
    return backbone, found, gradients, wanted


# ------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_equal_transformers(variant):
    _, found, _, wanted = computed(variant)
    assert found.keys() == wanted.keys() & {"encoded", "hidden", "logits", "classes"}
    for name, array in found.items():
        assert array.dtype == jnp.float32
        oracle.assert_close(array, wanted[name], what=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_every_parameter_equal_transformers(variant):
    backbone, _, gradients, wanted = computed(variant)
    oracle.assert_gradients_close(backbone, gradients, wanted)


@pytest.mark.parametrize("variant", WITH_HEAD)
def test_greedy_decoding_equals_generate(variant):
    backbone, arrays = oracle.model("bart", variant)
    config = dataclasses.replace(backbone.config, eos_id=int(arrays["eos_id"]))
    backbone = dataclasses.replace(backbone, config=config)
    batch = {k: arrays[k] for k in ("encoder_input_tokens", "encoder_mask")}
    wanted = arrays["generated"]
    tokens = np.asarray(pj.greedy(backbone, backbone.params, batch, wanted.shape[1]))
    np.testing.assert_array_equal(tokens, wanted)
    assert 0 < (wanted == config.eos_id).any(axis=1).sum() < len(wanted)


@pytest.mark.parametrize("variant", WITH_HEAD)
def test_scores_of_choices_equal_transformers(variant):
    backbone, arrays = oracle.model("bart", variant)
    batch = {k: arrays[k] for k in ("encoder_input_tokens", "encoder_mask", "choices")}
    batch["choice_mask"] = np.ones(arrays["choices"].shape[:2], bool)
    scores = pj.score_choices(backbone, backbone.params, batch)
    oracle.assert_close(scores, arrays["choice_scores"], 2e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("variant", FROZEN)
def test_golden_files_are_what_the_installed_transformers_computes(variant):
    make = oracle.live("make_bart")
    model, golden = make.build(variant), oracle.model("bart", variant)[1]
    fresh = make.outputs_and_gradients(model, golden)
    if "logits" in golden:
        fresh |= {"choice_scores": make.choice_scores(model, golden)}
        fresh |= make.generated(model, golden)
    for name, array in fresh.items():
        scale = 1.0 if name.endswith("k_proj.bias") else 0.0
        oracle.assert_close(golden[name], array, 1e-6, name, at_least=scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    "activations", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"]
)
def test_bfloat16_stays_within_its_rounding(activations):
    backbone, wanted = oracle.model("bart", "bart")
    small = dataclasses.replace(backbone, params=tree.cast(backbone.params, jnp.bfloat16))
    exact = outputs(backbone, tree.cast(small.params, jnp.float32), wanted)
    rounded = outputs(small.replace(activation_dtype=activations), small.params, wanted)
    for name, array in rounded.items():
        error = jnp.linalg.norm(array.astype(jnp.float32) - exact[name])
        assert error < 3e-2 * jnp.linalg.norm(exact[name]), name


# ------------------------------------------------------------------------------ files


def golden(variant):
    """config.json and the tensors as transformers 5 wrote them."""
    folder = oracle.GOLDEN / "bart" / variant
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def load(folder, fields, tensors):
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return pj.load_backbone(folder, dropout=0.0)


def bare(fields, tensors):
    """BartModel's file: no prefix, and no bias of the logits."""
    del tensors["final_logits_bias"]
    return fields, {name.removeprefix("model."): array for name, array in tensors.items()}


def old(fields, tensors):
    """The first files: tied tensors under all their names, fields that came later missing."""
    embedding = tensors["model.shared.weight"]
    copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    tensors |= {name: embedding.copy() for name in (*copies, "lm_head.weight")}
    tensors["model.encoder.version"] = np.asarray([3.0], np.float32)
    later = ("tie_word_embeddings", "forced_eos_token_id", "decoder_start_token_id")
    fields = {k: v for k, v in fields.items() if k not in later}
    return fields | {
        "num_hidden_layers": 2,
        "classif_dropout": 0.1,
        "normalize_before": False,
        "normalize_embedding": True,
        "add_final_layer_norm": False,
        "add_bias_logits": False,
        "static_position_embeddings": False,
        "output_past": False,
        "task_specific_params": {"summarization": {"num_beams": 4}},
    }, tensors


def under_second_name(fields, tensors):
    tensors["model.decoder.embed_tokens.weight"] = tensors.pop("model.shared.weight")
    return fields, tensors


@pytest.mark.parametrize("change", [bare, old, under_second_name])
def test_every_kind_of_file_gives_the_same_model(tmp_path, change):
    backbone, _ = oracle.model("bart", "bart")
    again = load(tmp_path, *change(*golden("bart")))
    found, wanted = (tree.flatten(each.params) for each in (again, backbone))
    if change is bare:
        del wanted["lm_head/bias"]
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert again.config == dataclasses.replace(backbone.config, head_bias=change is not bare)


def test_a_head_of_its_own_is_read(tmp_path):
    fields, tensors = golden("bart")
    tensors["lm_head.weight"] = tensors["model.shared.weight"][::-1].copy()
    again = load(tmp_path, fields | {"tie_word_embeddings": False}, tensors)
    assert not again.config.tied_head
    arrays = oracle.model("bart", "bart")[1]
    bias = tensors["final_logits_bias"]
    turned = again.logits(again.params, arrays) - bias
    np.testing.assert_allclose(turned[..., ::-1], arrays["logits"] - bias, rtol=1e-4, atol=1e-4)


ARCHITECTURES = {
    "bart": "BartForConditionalGeneration",
    "bart_classifier": "BartForSequenceClassification",
    "bart_regression": "BartForSequenceClassification",
    "bart_bare": "BartForConditionalGeneration",
}


@pytest.mark.oracle
@pytest.mark.parametrize("variant", ARCHITECTURES)
def test_transformers_loads_what_is_written(tmp_path, variant):
    make = oracle.live("make_bart")
    backbone, wanted = oracle.model("bart", variant)
    folder = hugging_face.write_backbone(tmp_path, backbone)
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    assert name == ARCHITECTURES[variant]
    architecture = getattr(make.transformers, name)
    model, report = architecture.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert set(report["missing_keys"]) <= {"final_logits_bias"}
    found = make.outputs(model.eval(), wanted)
    for name in ("encoded", "hidden", "logits", "classes"):
        if name in wanted:
            oracle.assert_close(found[name].detach().numpy(), wanted[name], what=name)


@pytest.mark.oracle
@pytest.mark.parametrize("labels", [1, 2, 3, 4])
def test_transformers_counts_the_labels_that_are_written(tmp_path, labels):
    make = oracle.live("make_bart")
    config = oracle.model("bart", "bart_classifier")[0].config
    config = dataclasses.replace(config, num_labels=labels)
    folder = pj.save_backbone(tmp_path, pj.init_backbone(config, jax.random.key(0)))
    model = make.transformers.BartForSequenceClassification.from_pretrained(folder)
    assert model.classification_head.out_proj.out_features == labels
    assert pj.load_backbone(folder, dropout=0.0).config == config


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("is_decoder", True, "is_decoder True is not supported; it must be False"),
        ("is_encoder_decoder", False, "is_encoder_decoder False"),
        ("encoder_layerdrop", 0.1, "encoder_layerdrop 0.1 is not supported; it must be 0"),
        ("normalize_before", True, "normalize_before True"),
        ("normalize_embedding", False, "normalize_embedding False"),
        ("add_final_layer_norm", True, "add_final_layer_norm True"),
        ("static_position_embeddings", True, "static_position_embeddings True"),
        ("extra_pos_embeddings", 0, "extra_pos_embeddings 0"),
        ("quantization_config", {"bits": 8}, "quantization_config"),
        ("activation_function", "mish", "activation_function 'mish' is not supported; one of relu"),
        ("decoder_attention_heads", 4, "encoder_attention_heads 2 and decoder_attention_heads 4"),
        ("decoder_ffn_dim", 20, "encoder_ffn_dim 10 and decoder_ffn_dim 20 are not supported"),
        ("tie_word_embeddings", False, "tensor lm_head.weight is missing"),
        ("vocab_size", 23, r"model.shared.weight has shape \(24, 8\); .* \(23, 8\)"),
        ("max_position_embeddings", 99, r"embed_positions.weight has shape \(18, 8\)"),
        ("decoder_layers", 2, "model.decoder.layers.1.* is missing"),
    ],
)
def test_an_option_that_is_not_supported_is_named(tmp_path, field, value, message):
    fields, tensors = golden("bart")
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, fields | {field: value}, tensors)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("bart", {"qa_outputs.weight": (2, 8)}, "qa_outputs.weight is not part of a bart"),
        (
            "bart",
            {"model.encoder.embed_tokens.weight": (24, 8)},
            "embed_tokens.weight differs from",
        ),
        ("bart", {"final_logits_bias": (1, 23)}, r"final_logits_bias has shape \(1, 23\)"),
        ("bart_classifier", {"classification_head.out_proj.weight": (2, 8)}, r"has shape \(2, 8\)"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path, variant, change, message):
    fields, tensors = golden(variant)
    tensors |= {name: np.ones(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(InputError, match=message):
        load(tmp_path, fields, tensors)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_too_long_a_sequence_is_refused(stack):
    backbone, _ = oracle.model("bart", "bart")
    batch = {f"{each}_input_tokens": np.full((2, 5), 7) for each in ("encoder", "decoder")}
    batch[f"{stack}_input_tokens"] = np.full((2, 17), 7)
    with pytest.raises(InputError, match=f"17 positions in the {stack} .* has learned 16"):
        backbone.logits(backbone.params, batch)


def test_no_text_is_generated_beyond_the_learned_positions():
    backbone, _ = oracle.model("bart", "bart")
    batch = {"encoder_input_tokens": np.full((1, 5), 7)}
    assert pj.greedy(backbone, backbone.params, batch, 16).shape == (1, 16)
    with pytest.raises(InputError, match=r"17 positions.* has learned 16"):
        pj.greedy(backbone, backbone.params, batch, 17)


# ------------------------------------------------------------------------------ configuration


def test_rates_of_dropout_are_read_each_by_its_name(tmp_path):
    fields, tensors = golden("bart_classifier")
    rates = {
        "dropout": 0.3,
        "attention_dropout": 0.2,
        "activation_dropout": 0.15,
        "classifier_dropout": 0.4,
    }
    (tmp_path / "config.json").write_text(json.dumps(fields | rates))
    save_file(tensors, tmp_path / "model.safetensors")
    backbone = pj.load_backbone(tmp_path)
    assert {name: getattr(backbone.config, name) for name in rates} == rates
    again = pj.load_backbone(pj.save_backbone(tmp_path / "again", backbone))
    assert again.config == backbone.config


def test_named_configurations_are_those_of_the_published_models():
    def count(name):
        shapes = pj.abstract_backbone(pj.backbone_config(name)).params
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count("bart_base") == 139_420_416
    assert count("bart_large") == 406_291_456
    assert set(bart.CONFIGS) <= set(pj.backbones.CONFIGS)
