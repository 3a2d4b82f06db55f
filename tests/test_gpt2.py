"""GPT-2's sizes, the config.json of its published files, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax.backbones import abstract_backbone, gpt2, hugging_face
from peft_jax.errors import InputError
from tests import oracle

# As openai-community/gpt2 has it.
PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


def read(**changes):
    return gpt2.config_from_hugging_face(PUBLISHED | changes, {gpt2.EMBEDDING})


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
        ("distilgpt2", 81_912_576),
    ],
)
def test_published_sizes_have_the_published_counts(name, count):
    params = abstract_backbone(pj.backbone_config(name)).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_the_published_file_is_the_named_configuration():
    assert read() == pj.backbone_config("gpt2")


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"n_inner": 100}, {"d_ff": 100}),
        ({"n_inner": None}, {"d_ff": 3072}),
        ({"activation_function": "relu"}, {"activation": "relu"}),
        ({"scale_attn_weights": False}, {"attention_scale": 1.0}),
        ({"attn_pdrop": 0.2}, {"attention_dropout": 0.2}),
        ({"reorder_and_upcast_attn": True}, {}),
        (
            {"eos_token_id": [3, 4], "pad_token_id": 0},
            {"pad_id": 0, "eos_id": 3, "extra_eos_ids": (4,)},
        ),
        ({"pad_token_id": 50256}, {"pad_id": -1}),
        ({"bos_token_id": None}, {"decoder_start_id": 50256}),
    ],
)
def test_fields_that_are_read(changes, fields):
    assert read(**changes) == dataclasses.replace(read(), **fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"activation_function": "mish"}, "activation_function 'mish' is not supported"),
        ({"embd_pdrop": 0.0}, "embd_pdrop 0.0 and resid_pdrop 0.1 differ"),
        ({"n_head": 7}, "n_head 7 does not divide n_embd 768"),
    ],
)
def test_what_is_not_supported_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        read(**changes)


@pytest.mark.oracle
def test_every_field_of_transformers_is_known():
    transformers = oracle.live("make_decoders").transformers
    config = transformers.GPT2Config()
    assert gpt2.OPTIONS["gpt2"].unknown(config.to_dict()) == []
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in gpt2._DEFAULTS.items():
        assert defaults[name] == value, name


# ------------------------------------------------------------------------------ checkpoints


def test_fused_projections_are_query_key_and_value_in_this_order(tmp_path):
    from safetensors.numpy import load_file

    backbone = oracle.model("decoders", "gpt2")[0]
    folder = hugging_face.write_backbone(tmp_path, backbone)
    tensors = load_file(folder / "model.safetensors")
    attention = backbone.params["decoder"]["layers"]["self_attention"]
    for leaf, name in (("kernel", "weight"), ("bias", "bias")):
        parts = [attention[part][leaf][1] for part in ("query", "key", "value")]
        fused = tensors[f"transformer.h.1.attn.c_attn.{name}"]
        np.testing.assert_array_equal(np.concatenate(parts, axis=-1), fused)


def test_a_configuration_that_no_config_json_says_is_refused(tmp_path):
    backbone = oracle.model("decoders", "gpt2")[0]
    config = dataclasses.replace(backbone.config, attention_scale=0.3)
    with pytest.raises(InputError, match=r"config.json of a gpt2 cannot say attention_scale 0.3"):
        pj.save_backbone(tmp_path, dataclasses.replace(backbone, config=config))


# ------------------------------------------------------------------------------ learned positions


def test_texts_beyond_the_learned_positions_are_refused():
    backbone = oracle.model("decoders", "gpt2")[0]
    limit = backbone.config.max_positions
    tokens, longer = (np.ones((1, length), np.int32) for length in (limit, limit + 1))
    backbone.logits(backbone.params, {"decoder_input_tokens": tokens})
    with pytest.raises(InputError, match=f"{limit + 1} positions .*learned {limit}"):
        backbone.logits(backbone.params, {"decoder_input_tokens": longer})
    for prompt in (tokens, longer):  # the first token that is generated has no place behind them
        with pytest.raises(InputError, match=f"learned {limit}"):
            pj.greedy(backbone, backbone.params, {"encoder_input_tokens": prompt}, 2)


def test_a_soft_prompt_takes_positions_too():
    backbone = oracle.model("decoders", "gpt2")[0]
    limit = backbone.config.max_positions
    prompt = {"decoder": {"prompt": np.ones((3, backbone.config.d_model), np.float32)}}
    params = pj.merge(backbone.params, prompt)
    tokens = np.ones((1, limit - 2), np.int32)
    with pytest.raises(InputError, match=f"{limit + 1} positions"):
        backbone.logits(params, {"decoder_input_tokens": tokens})
