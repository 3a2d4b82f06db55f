"""Sizes of Gemma, the config.json of published files, models that read images, what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax.backbones import abstract_backbone, gemma
from peft_jax.errors import InputError
from peft_jax.rotary import Rope
from tests import oracle

# As the published files have them, written by transformers 4.
GEMMA = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA_2 = GEMMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "model_type": "gemma2",
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA_3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 262144,
}
WITH_IMAGES = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


def read(fields, **changes):
    return gemma.config_from_hugging_face(fields | changes, {gemma.EMBEDDING})


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gemma_2b", 2_506_172_416),
        ("gemma_7b", 8_537_680_896),
        ("gemma_2_2b", 2_614_341_888),
        ("gemma_2_9b", 9_241_705_984),
        ("gemma_2_27b", 27_227_128_320),
        ("gemma_3_270m", 268_098_176),
        ("gemma_3_1b", 999_885_952),
        ("gemma_3_4b", 3_880_263_168),
        ("gemma_3_12b", 11_766_034_176),
        ("gemma_3_27b", 27_009_346_304),
    ],
)
def test_published_sizes_have_the_published_counts(name, count):
    params = abstract_backbone(pj.backbone_config(name)).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("name", "fields"),
    [("gemma_2b", GEMMA), ("gemma_2_2b", GEMMA_2), ("gemma_3_1b", GEMMA_3)],
)
def test_published_files_are_the_named_configurations(name, fields):
    assert read(fields) == pj.backbone_config(name)


def test_the_text_model_of_one_that_reads_images_is_read():
    named = pj.backbone_config("gemma_3_4b")
    assert read(WITH_IMAGES) == dataclasses.replace(named, extra_eos_ids=(106,))


@pytest.mark.parametrize("name", gemma.CONFIGS)
def test_a_written_configuration_is_read_again(name):
    config = pj.backbone_config(name)
    assert read(gemma.config_to_hugging_face(config)) == config


TYPES = ["full_attention"] * 25 + ["sliding_attention"]


@pytest.mark.parametrize(
    ("fields", "changes", "wanted"),
    [
        (GEMMA, {"hidden_act": "gelu_pytorch_tanh"}, {}),
        (GEMMA, {"hidden_activation": "gelu_pytorch_tanh"}, {}),
        (GEMMA, {"hidden_act": "relu"}, {"activation": "relu"}),
        (GEMMA, {"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
        (GEMMA_2, {"hidden_activation": "gelu"}, {"activation": "gelu"}),
        (GEMMA_2, {"query_pre_attn_scalar": 144}, {"attention_scale": 1 / 12}),
        (GEMMA_2, {"attn_logit_softcapping": None}, {"attention_softcap": None}),
        (GEMMA_2, {"final_logit_softcapping": None}, {"logit_softcap": None}),
        (GEMMA_2, {"layer_types": TYPES}, {"local_layers": (25,)}),
        (GEMMA_3, {"final_logit_softcapping": 30.0}, {"logit_softcap": 30.0}),
        (GEMMA_3, {"sliding_window_pattern": 26}, {"local_layers": tuple(range(25))}),
        (GEMMA_3, {"layer_types": TYPES}, {"local_layers": (25,)}),
        (
            GEMMA_3,
            {"layer_types": ["full_attention"] * 26},
            {"local_layers": (), "window": None},
        ),
        (GEMMA_3, {"rope_local_base_freq": 5e3}, {"local_rope": Rope(5e3)}),
        (
            GEMMA_3,
            {"rope_scaling": {"type": "linear", "factor": 8.0}},
            {"rope": Rope(1e6, "linear", 8.0)},
        ),
        (
            GEMMA_3,
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 7e5},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
                }
            },
            {"rope": Rope(7e5, "linear", 4.0), "local_rope": Rope(3e4)},
        ),
        (GEMMA_3, {"eos_token_id": [1, 106]}, {"extra_eos_ids": (106,)}),
    ],
)
def test_fields_that_are_read(fields, changes, wanted):
    assert read(fields, **changes) == dataclasses.replace(read(fields), **wanted)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        (GEMMA, {"hidden_act": "silu", "hidden_activation": "relu"}, "hidden_activation differ"),
        (GEMMA, {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        (GEMMA_2, {"sliding_window": None}, "need a sliding_window"),
        (
            GEMMA_2,
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "by kind of layer",
        ),
        (GEMMA_3, {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        (GEMMA_3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        (GEMMA_3, {"rope_parameters": {"rope_theta": 1e6}}, "by kind of layer; it has rope_theta"),
        (GEMMA_3, {"rope_scaling": {"type": "longrope"}}, "'longrope' is not supported"),
        (WITH_IMAGES, {"text_config": {"model_type": "gemma3n_text"}}, "wanted 'gemma3_text'"),
        (WITH_IMAGES, {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_is_not_supported_is_named(fields, changes, message):
    with pytest.raises(InputError, match=message):
        read(fields, **changes)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"attention_softcap": 5.0}, "attention_softcap 5.0"),
        ({"embedding_scale": 1.0}, "embedding_scale 1.0"),
        ({"out_bias": True}, "out_bias True"),
    ],
)
def test_a_configuration_that_no_config_json_says_is_refused(tmp_path, changes, lost):
    backbone = oracle.model("decoders", "gemma3")[0]
    config = dataclasses.replace(backbone.config, **changes)
    # The leaf of a bias is not there, but config.json is written first.
    with pytest.raises(InputError, match=f"config.json of a gemma3_text cannot say .*{lost}"):
        pj.save_backbone(tmp_path, dataclasses.replace(backbone, config=config))


# ------------------------------------------------------------------------------ transformers


@pytest.mark.oracle
@pytest.mark.parametrize("model_type", gemma.MODEL_TYPES)
def test_every_field_of_transformers_is_known(model_type):
    transformers = oracle.live("make_decoders").transformers
    config = transformers.AutoConfig.for_model(model_type)
    assert gemma.OPTIONS[model_type].unknown(config.to_dict()) == []
    for name, value in gemma.DEFAULTS.get(model_type, {}).items():
        assert config.to_dict()[name] == value, name


@pytest.mark.oracle
@pytest.mark.parametrize("layout", ["as saved", "of the first files"])
def test_a_model_that_reads_images_gives_its_text_model(tmp_path, layout):
    make = oracle.live("make_decoders")
    transformers = make.transformers
    text = make.fields_of("gemma3")[0]
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=25,
    )
    model = transformers.Gemma3ForConditionalGeneration._from_config(
        config, attn_implementation="eager"
    )
    make.randomise(model, 0)
    model.save_pretrained(tmp_path / "theirs")
    if layout == "of the first files":
        rename(tmp_path / "theirs")
    backbone = pj.load_backbone(tmp_path / "theirs")
    tokens = np.random.default_rng(0).integers(3, 25, (2, 12))
    with make.torch.no_grad():
        wanted = model(make.torch.as_tensor(tokens)).logits.numpy()
    batch = {"decoder_input_tokens": tokens}
    oracle.assert_close(backbone.logits(backbone.params, batch), wanted)
    folder = pj.save_backbone(tmp_path / "ours", backbone)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert type(again).__name__ == "Gemma3ForCausalLM"
    with make.torch.no_grad():
        np.testing.assert_array_equal(again(make.torch.as_tensor(tokens)).logits.numpy(), wanted)


def rename(folder):
    """The names of transformers 4.50, and those of 5, are each other's."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    assert any("language_model" in name for name in tensors)
    old, new = "model.language_model.", "language_model.model."
    if not any(name.startswith(old) for name in tensors):
        old, new = new, old
    renamed = {
        name.replace(old, new).replace("model.vision", "vision"): t for name, t in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors")
