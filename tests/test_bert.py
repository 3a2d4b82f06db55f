"""BERT, RoBERTa, XLM-R and MiniLM against transformers, and the files that they are read from."""

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
from peft_jax.backbones import bert, hugging_face, roberta
from peft_jax.errors import InputError
from tests import oracle

FROZEN = ("bert", "bert_classifier", "roberta", "roberta_classifier")
LIVE = (
    *("bert_long", "bert_regression", "minilm", "roberta_long", "roberta_silu", "roberta_bare"),
    *("roberta_pad_3", "xlm_roberta"),
)
VARIANTS = (*FROZEN, *(pytest.param(name, marks=pytest.mark.oracle) for name in LIVE))


def outputs(backbone, params, arrays):
    """What make_bert's function of this name has, by the same names; the head's result last."""
    found = {"hidden": transformer.encode(backbone.config, params, arrays).hidden}
    if backbone.config.num_labels:
        found["classes"] = backbone.classify(params, arrays)
    elif backbone.config.lm_head:
        found["logits"] = backbone.logits(params, arrays)
    return found


@functools.cache
def computed(variant):
    """The backbone, its outputs and its gradients, and what transformers has in their place."""
    backbone, wanted = oracle.model("bert", variant)

    def loss(params):
        found = outputs(backbone, params, wanted)
        return oracle.inner_product(list(found.values())[-1], wanted), found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(backbone.params)
    return backbone, found, gradients, wanted


# ------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_equal_transformers(variant):
    _, found, _, wanted = computed(variant)
    assert found.keys() == wanted.keys() & {"hidden", "logits", "classes"}
    for name, array in found.items():
        assert array.dtype == jnp.float32
        oracle.assert_close(array, wanted[name], what=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_every_parameter_equal_transformers(variant):
    backbone, _, gradients, wanted = computed(variant)
    oracle.assert_gradients_close(backbone, gradients, wanted)


@pytest.mark.oracle
@pytest.mark.parametrize("variant", FROZEN)
def test_golden_files_are_what_the_installed_transformers_computes(variant):
    make = oracle.live("make_bert")
    golden = oracle.model("bert", variant)[1]
    for name, array in make.outputs_and_gradients(make.build(variant), golden).items():
        scale = 1.0 if name.endswith("key.bias") else 0.0
        oracle.assert_close(golden[name], array, 1e-6, name, at_least=scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "activations"),
    [
        ("bert", "bfloat16"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("bert", "float32"),
                ("roberta_classifier", "float32"),
                ("roberta_classifier", "bfloat16"),
            )
        ),
    ],
)
def test_bfloat16_stays_within_its_rounding(variant, activations):
    backbone, wanted = oracle.model("bert", variant)
    small = dataclasses.replace(backbone, params=tree.cast(backbone.params, jnp.bfloat16))
    exact = outputs(backbone, tree.cast(small.params, jnp.float32), wanted)
    rounded = outputs(small.replace(activation_dtype=activations), small.params, wanted)
    for name, array in rounded.items():
        error = jnp.linalg.norm(array.astype(jnp.float32) - exact[name])
        assert error < 3e-2 * jnp.linalg.norm(exact[name]), name


# ------------------------------------------------------------------------------ files


def golden(variant):
    """config.json and the tensors as transformers 5 wrote them."""
    folder = oracle.GOLDEN / "bert" / variant
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def load(folder, fields, tensors):
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return pj.load_backbone(folder, dropout=0.0)


def bare(fields, tensors):
    """BertModel's file: no prefix, and no head."""
    body = {k: v for k, v in tensors.items() if k.startswith(("bert.", "roberta."))}
    return fields, {name.partition(".")[2]: array for name, array in body.items()}


def old(fields, tensors):
    """The first files: gamma and beta, a buffer of positions, fields that came later missing."""
    named = {}
    for name, array in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        named[name.replace("LayerNorm.bias", "LayerNorm.beta")] = array
    positions = np.arange(fields["max_position_embeddings"])[None]
    named[f"{fields['model_type']}.embeddings.position_ids"] = positions
    later = ("tie_word_embeddings", "is_decoder", "add_cross_attention", "classifier_dropout")
    kept = {k: v for k, v in fields.items() if k not in later} | {"pooler_type": "first_token"}
    return kept | {"position_embedding_type": "absolute", "gradient_checkpointing": False}, named


def with_copies(fields, tensors):
    """torch's own files have tied tensors under each of their names."""
    embedding, bias = (
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias")
        if fields["model_type"] == "bert"
        else ("roberta.embeddings.word_embeddings.weight", "lm_head.bias")
    )
    copies = {bias.replace("bias", "decoder.bias"): tensors[bias].copy()}
    copies[bias.replace("bias", "decoder.weight")] = tensors[embedding].copy()
    return fields, tensors | copies


@pytest.mark.parametrize("variant", ["bert", "roberta"])
@pytest.mark.parametrize("change", [bare, old, with_copies])
def test_every_kind_of_file_gives_the_same_model(tmp_path, variant, change):
    backbone, _ = oracle.model("bert", variant)
    again = load(tmp_path, *change(*golden(variant)))
    found = tree.flatten(again.params)
    heads = ("head_transform", "head_norm", "lm_head") if change is bare else ()
    wanted = {p: x for p, x in tree.flatten(backbone.params).items() if not p.startswith(heads)}
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert again.config == dataclasses.replace(
        backbone.config,
        **(dict.fromkeys(bert.MASKED_LM, False) if change is bare else {}),
    )


@pytest.mark.parametrize(
    ("variant", "dropped", "parts"),
    [
        ("bert", (), {"lm_head", "pooler"}),
        ("bert", ("cls.predictions",), {"pooler"}),
        ("bert", ("bert.pooler",), {"lm_head"}),
        ("bert", ("bert.pooler", "cls"), set()),
        ("bert_classifier", (), {"pooler", "classifier"}),
        ("roberta", (), {"lm_head"}),
        ("roberta", ("lm_head",), set()),
        ("roberta_classifier", (), {"classifier"}),
        ("roberta_classifier", ("classifier",), set()),
    ],
)
def test_the_tensors_decide_which_parts_there_are(tmp_path, variant, dropped, parts):
    fields, tensors = golden(variant)
    kept = {k: v for k, v in tensors.items() if not dropped or not k.startswith(dropped)}
    backbone = load(tmp_path, fields | {"tie_word_embeddings": "lm_head" in parts}, kept)
    assert {"lm_head", "pooler", "classifier"} & set(backbone.params) == parts
    config = backbone.config
    assert (config.lm_head, config.pooler, bool(config.num_labels)) == tuple(
        part in parts for part in ("lm_head", "pooler", "classifier")
    )
    if "lm_head" not in parts:
        with pytest.raises(InputError, match="no language-model head"):
            backbone.logits(backbone.params, oracle.model("bert", variant)[1])


ARCHITECTURES = {
    "bert": "BertForMaskedLM",
    "bert_classifier": "BertForSequenceClassification",
    "roberta": "RobertaForMaskedLM",
    "roberta_classifier": "RobertaForSequenceClassification",
    "minilm": "BertModel",
    "roberta_bare": "RobertaModel",
    "roberta_pad_3": "RobertaForMaskedLM",
    "xlm_roberta": "XLMRobertaForMaskedLM",
}


@pytest.mark.oracle
@pytest.mark.parametrize("variant", ARCHITECTURES)
def test_transformers_loads_what_is_written(tmp_path, variant):
    make = oracle.live("make_bert")
    backbone, wanted = oracle.model("bert", variant)
    folder = hugging_face.write_backbone(tmp_path, backbone)
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    assert name == ARCHITECTURES[variant]
    architecture = getattr(make.transformers, name)
    model, report = architecture.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    # A head and a pooler have no class of their own together, but that with a head for sentences.
    assert {"pooler" in name for name in report["unexpected_keys"]} <= {True}
    for name, array in make.outputs(model.eval(), wanted).items():
        oracle.assert_close(array.detach().numpy(), wanted[name], what=name)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("variant", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("position_embedding_type", "relative_key_query", "position_embedding_type 'relative_key_"),
        ("is_decoder", True, "is_decoder True is not supported; it must be False"),
        ("is_encoder_decoder", True, "is_encoder_decoder True"),
        ("add_cross_attention", True, "add_cross_attention True"),
        ("quantization_config", {"bits": 8}, "quantization_config"),
        ("pruned_heads", {"1": [0]}, "pruned_heads"),
        ("hidden_act", "quick_gelu", "hidden_act 'quick_gelu' is not supported; one of relu, gelu"),
        ("tie_word_embeddings", False, "tie_word_embeddings False"),
        ("num_attention_heads", 3, "num_attention_heads 3 does not divide hidden_size 8"),
        ("num_attention_heads", 0, "num_attention_heads 0"),
        ("vocab_size", 23, r"word_embeddings.weight has shape \(24, 8\); .* \(23, 8\)"),
        ("type_vocab_size", 5, "token_type_embeddings.weight has shape"),
        ("max_position_embeddings", 99, "position_embeddings.weight has shape"),
        ("num_hidden_layers", 3, "encoder.layer.2.* is missing"),
        ("hidden_dropout_prob", 1.0, "dropout 1.0"),
    ],
)
def test_an_option_that_is_not_supported_is_named(tmp_path, variant, field, value, message):
    fields, tensors = golden(variant)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, fields | {field: value}, tensors)
    assert str(tmp_path) in str(caught.value)


def test_a_robertas_masked_lm_head_has_its_own_activation(tmp_path):
    """transformers' has gelu there, whatever the layers have."""
    fields, tensors = golden("roberta")
    with pytest.raises(InputError, match="hidden_act 'relu' is not supported with a masked-LM"):
        load(tmp_path, fields | {"hidden_act": "relu"}, tensors)
    assert load(tmp_path, fields | {"hidden_act": "gelu_python"}, tensors)
    fields, tensors = golden("roberta_classifier")
    assert load(tmp_path, fields | {"hidden_act": "relu"}, tensors).config.activation == "relu"


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("bert", {"qa_outputs.weight": (2, 8)}, "qa_outputs.weight is not part of a bert"),
        ("bert_classifier", {"bert.pooler.dense.weight": None}, "BertForTokenClassification"),
        ("bert_classifier", {"classifier.weight": (4, 8)}, r"classifier.weight has shape \(4, 8\)"),
        ("roberta", {"classifier.weight": (2, 8)}, "classifier.weight is not part of a roberta"),
        (
            "bert",
            {"cls.predictions.decoder.weight": (24, 8)},
            "decoder.weight differs from the emb",
        ),
        ("roberta", {"lm_head.decoder.weight": (24, 8)}, "decoder.weight differs from the embedd"),
        ("bert", {"cls.predictions.decoder.bias": (24,)}, "decoder.bias differs from cls.pred"),
        ("bert", {"cls.predictions.bias": None}, "cls.predictions.bias is missing"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path, variant, change, message):
    fields, tensors = golden(variant)
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = np.ones(shape, np.float32)
    with pytest.raises(InputError, match=message):
        load(tmp_path, fields, tensors)


@pytest.mark.parametrize("variant", ["bert", "roberta"])
def test_too_long_a_sequence_is_refused(variant):
    backbone, _ = oracle.model("bert", variant)
    tokens = np.full((2, 13), 5)
    with pytest.raises(InputError, match=r"13 positions in the encoder .* has learned 12"):
        backbone.logits(backbone.params, {"encoder_input_tokens": tokens})


def test_a_head_of_its_own_cannot_be_written(tmp_path):
    config = dataclasses.replace(oracle.model("bert", "bert")[0].config, tied_head=False)
    backbone = pj.init_backbone(config, jax.random.key(0))
    with pytest.raises(InputError, match=r"config.json of a bert cannot say tied_head False"):
        hugging_face.write_backbone(tmp_path, backbone)


# ------------------------------------------------------------------------------ dropout


def test_rates_of_dropout_are_read_each_by_its_name(tmp_path):
    fields, tensors = golden("bert_classifier")
    fields |= {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"classifier_dropout": 0.4}))
    save_file(tensors, tmp_path / "model.safetensors")
    backbone = pj.load_backbone(tmp_path)
    rates = ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout")
    assert [getattr(backbone.config, rate) for rate in rates] == [0.3, 0.2, 0.0, 0.4]
    again = pj.load_backbone(pj.save_backbone(tmp_path / "again", backbone))
    assert again.config == backbone.config
    off = backbone.replace(dropout=0.0)
    batch = {"encoder_input_tokens": np.full((2, 5), 7)}
    np.testing.assert_array_equal(
        off.classify(off.params, batch, jax.random.key(0)), off.classify(off.params, batch)
    )


def test_only_the_classifiers_dropout_acts_if_the_others_are_off():
    backbone, _ = oracle.model("bert", "roberta_classifier")
    batch = {"encoder_input_tokens": np.full((2, 5), 7)}
    one = backbone.replace(classifier_dropout=0.5)
    plain = backbone.classify(backbone.params, batch)
    dropped = one.classify(one.params, batch, jax.random.key(0))
    assert not np.allclose(dropped, plain)
    np.testing.assert_array_equal(
        transformer.encode(one.config, one.params, batch, jax.random.key(0)).hidden,
        transformer.encode(one.config, one.params, batch).hidden,
    )


def test_named_configurations_are_those_of_the_published_models():
    def count(name):
        shapes = pj.abstract_backbone(pj.backbone_config(name)).params
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    # Of BertForPreTraining, without the head for sentences; of BertModel; of RobertaForMaskedLM.
    assert count("bert_base_uncased") == 110_106_428 - (768 * 2 + 2)
    assert count("bert_large_uncased") == 336_226_108 - (1024 * 2 + 2)
    assert count("minilm_l6") == 22_713_216
    assert count("roberta_base") == 124_697_433
    assert {*bert.CONFIGS, *roberta.CONFIGS} <= set(pj.backbones.CONFIGS)
