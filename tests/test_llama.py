"""Sizes of Llama, Mistral and Qwen, the config.json of published files, and what is refused."""

import dataclasses

import jax
import pytest

import peft_jax as pj
from peft_jax.backbones import abstract_backbone, decoder_fields, llama
from peft_jax.errors import InputError
from peft_jax.rotary import Rope
from tests import oracle

# As the published files have them, written by transformers 4, less what no model reads.
_COMMON = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
LLAMA_2 = _COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
LLAMA_3_2 = _COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
MISTRAL = _COMMON | {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN_2_5 = _COMMON | {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN_3 = _COMMON | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def read(fields, **changes):
    fields = fields | changes
    tied = fields.get("tie_word_embeddings", False)
    return llama.config_from_hugging_face(
        fields, {llama.EMBEDDING, *([] if tied else [llama.HEAD])}
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama_2_7b", 6_738_415_616),
        ("llama_2_13b", 13_015_864_320),
        ("llama_2_70b", 68_976_648_192),
        ("llama_3_8b", 8_030_261_248),
        ("llama_3_1_70b", 70_553_706_496),
        ("llama_3_1_405b", 405_853_388_800),
        ("llama_3_2_1b", 1_235_814_400),
        ("llama_3_2_3b", 3_212_749_824),
        ("mistral_7b_v0_1", 7_241_732_096),
        ("mistral_7b_v0_3", 7_248_023_552),
        ("qwen2_72b", 72_706_203_648),
        ("qwen2_5_0_5b", 494_032_768),
        ("qwen2_5_1_5b", 1_543_714_304),
        ("qwen2_5_3b", 3_085_938_688),
        ("qwen2_5_7b", 7_615_616_512),
        ("qwen2_5_14b", 14_770_033_664),
        ("qwen2_5_32b", 32_763_876_352),
        ("qwen3_0_6b", 596_049_920),
        ("qwen3_1_7b", 1_720_574_976),
        ("qwen3_4b", 4_022_468_096),
        ("qwen3_8b", 8_190_735_360),
        ("qwen3_14b", 14_768_307_200),
        ("qwen3_32b", 32_762_123_264),
    ],
)
def test_published_sizes_have_the_published_counts(name, count):
    params = abstract_backbone(pj.backbone_config(name)).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama_2_7b", LLAMA_2),
        ("llama_3_2_1b", LLAMA_3_2),
        ("mistral_7b_v0_1", MISTRAL),
        ("qwen2_5_7b", QWEN_2_5),
        ("qwen3_0_6b", QWEN_3),
    ],
)
def test_published_files_are_the_named_configurations(name, fields):
    assert read(fields) == pj.backbone_config(name)


def test_mistral_without_a_window():
    changes = {"sliding_window": None, "rope_theta": 1e6, "vocab_size": 32768}
    assert read(MISTRAL, **changes) == pj.backbone_config("mistral_7b_v0_3")


@pytest.mark.parametrize("name", llama.CONFIGS)
def test_a_written_configuration_is_read_again(name):
    config = pj.backbone_config(name)
    assert read(llama.config_to_hugging_face(config)) == config


# ------------------------------------------------------------------------------ fields


@pytest.mark.parametrize(
    ("fields", "changes", "wanted"),
    [
        (LLAMA_2, {"pretraining_tp": 2}, {}),
        (LLAMA_2, {"num_key_value_heads": None}, {}),
        (LLAMA_2, {"num_key_value_heads": 4}, {"num_kv_heads": 4}),
        (LLAMA_2, {"head_dim": 64}, {"d_kv": 64, "attention_scale": 0.125}),
        (LLAMA_2, {"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
        (LLAMA_2, {"mlp_bias": True}, {"mlp_bias": True}),
        (LLAMA_2, {"hidden_act": "gelu"}, {"activation": "gelu"}),
        (LLAMA_2, {"attention_dropout": 0.1}, {"attention_dropout": 0.1}),
        (LLAMA_2, {"eos_token_id": [2, 5, 7]}, {"extra_eos_ids": (5, 7)}),
        (LLAMA_2, {"pad_token_id": 0}, {"pad_id": 0}),
        (LLAMA_2, {"pad_token_id": -1}, {}),
        (LLAMA_2, {"pad_token_id": 2}, {}),
        (LLAMA_2, {"eos_token_id": [2, 5], "pad_token_id": 5}, {"extra_eos_ids": (5,)}),
        (QWEN_3, {"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
        (QWEN_3, {"bos_token_id": None}, {"decoder_start_id": 151645}),
        (
            QWEN_3,
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 26},
            {"window": 9, "local_layers": (26, 27)},
        ),
        (
            QWEN_3,
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 28},
            {},
        ),
        (
            QWEN_3,
            {
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention"] + ["full_attention"] * 27,
            },
            {"window": 9, "local_layers": (0,)},
        ),
    ],
)
def test_fields_that_are_read(fields, changes, wanted):
    assert read(fields, **changes) == dataclasses.replace(read(fields), **wanted)


def test_a_qwen_without_tokens_has_none():
    fields = {n: v for n, v in QWEN_2_5.items() if "token" not in n}
    config = read(fields)
    assert (config.eos_id, config.pad_id, config.decoder_start_id) == (-1, -1, -1)
    written = llama.config_to_hugging_face(config)
    assert {written[n] for n in ("eos_token_id", "pad_token_id", "bos_token_id")} == {None}


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, Rope()),
        ({"rope_theta": 5e5}, Rope(5e5)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, Rope(1e4, "linear", 2.0)),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.0}},
            Rope(1e4, "linear", 2.0),
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 5e5},
            Rope(5e5, "dynamic", 2.0, original_positions=4096),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 16.0, "finetuned": True}},
            Rope(1e4, "yarn", 16.0, original_positions=4096),
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e6,
                    "factor": None,
                    "original_max_position_embeddings": 1024,
                    "beta_fast": 16,
                    "beta_slow": None,
                    "truncate": False,
                }
            },
            Rope(1e6, "yarn", 4.0, 1024, beta_fast=16, truncate=False),
        ),
        (
            {"rope_scaling": LLAMA_3_2["rope_scaling"], "rope_parameters": {"rope_theta": 7.0}},
            Rope(1e4, "llama3", 32.0, 8192),
        ),
    ],
)
def test_ropes_of_both_forms(changes, rope):
    assert read(LLAMA_2, **changes).rope == rope


def test_a_yarn_with_two_scales_of_its_temperature():
    scaling = {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.5}
    rope = read(LLAMA_2, rope_scaling=scaling).rope
    assert rope.attention_factor == pytest.approx(1.3688879 / 1.1844440, rel=1e-6)
    assert decoder_fields.read_rope(decoder_fields.write_rope(rope), 1.0, 4096) == rope


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        (LLAMA_2, {"hidden_act": "mish"}, "hidden_act 'mish' is not supported"),
        (LLAMA_2, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA_2, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        (LLAMA_2, {"original_max_position_embeddings": 64}, "original_max_position_embeddings"),
        (LLAMA_2, {"is_encoder_decoder": True}, "is_encoder_decoder"),
        (LLAMA_2, {"num_key_value_heads": 5}, "num_kv_heads 5 must divide"),
        (MISTRAL, {"layer_types": ["full_attention"] * 32}, "layer_types"),
        (
            QWEN_3,
            {"layer_types": ["sliding_attention"] * 28},
            "layer_types names sliding_attention, but use_sliding_window",
        ),
        (QWEN_3, {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        (
            QWEN_3,
            {"layer_types": ["chunked_attention"] * 28},
            "layer_types: 'chunked_attention' is not supported",
        ),
    ],
)
def test_what_is_not_supported_is_named(fields, changes, message):
    with pytest.raises(InputError, match=message):
        read(fields, **changes)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "su"}, "rope scaling 'su' is not supported; one of default, linear"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "'longrope' is not supported"),
        ({"type": "default", "mrope_section": [1, 2]}, "'default' does not read mrope_section"),
        ({"type": "linear", "factor": 2.0, "low_freq_factor": 1.0}, "does not read low_freq"),
        ({"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"full_attention": {"rope_type": "default"}}, "by kind of layer .*in a llama"),
    ],
)
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_what_is_not_supported_in_a_rope_is_named(field, scaling, message):
    with pytest.raises(InputError, match=message):
        read(LLAMA_2, **{field: scaling})


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_size_that_is_missing_is_named(field):
    with pytest.raises(KeyError, match=field):
        read({name: value for name, value in LLAMA_2.items() if name != field})
    with pytest.raises(KeyError, match="factor"):
        read(LLAMA_2, rope_scaling={"type": "linear"})


@pytest.mark.parametrize(
    ("variant", "changes", "lost"),
    [
        ("llama", {"window": 4, "local_layers": (0,)}, "window 4, local_layers"),
        ("llama", {"norm_unit_offset": True}, "norm_unit_offset True"),
        ("mistral", {"local_layers": (1,)}, r"local_layers \(1,\)"),
        ("qwen2", {"attention_softcap": 5.0}, "attention_softcap 5.0"),
    ],
)
def test_a_configuration_that_no_config_json_says_is_refused(tmp_path, variant, changes, lost):
    backbone = oracle.model("decoders", variant)[0]
    config = dataclasses.replace(backbone.config, **changes)
    with pytest.raises(InputError, match=f"config.json of a {variant} cannot say .*{lost}"):
        pj.save_backbone(tmp_path, dataclasses.replace(backbone, config=config))


# ------------------------------------------------------------------------------ completeness


@pytest.mark.oracle
@pytest.mark.parametrize("model_type", llama.MODEL_TYPES)
def test_every_field_of_transformers_is_known(model_type):
    transformers = oracle.live("make_decoders").transformers
    config = transformers.AutoConfig.for_model(model_type)
    assert llama.OPTIONS[model_type].unknown(config.to_dict()) == []
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    defaults["rope_theta"] = config.rope_parameters["rope_theta"]
    for name, value in llama._KINDS[model_type].defaults.items():
        # A Qwen2 may have a head_dim, though its class does not name it.
        assert defaults.get(name) == value, name
