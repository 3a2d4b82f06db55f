"""Gemma, Gemma 2 and the text models of Gemma 3 (Gemma Team 2024a, 2024b, 2025).

Norms multiply by 1 + scale and embeddings are scaled by sqrt(d_model). Gemma 2 has norms behind the
branches too, alternates windowed with full layers, and caps logits; Gemma 3 norms every head's
queries and keys in place of the caps, and turns windowed layers by another base.

Of a Gemma 3 that reads images (4b and larger, model type "gemma3") the text model is read, and
written as a "gemma3_text".
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from peft_jax.backbones import decoder_fields, llama
from peft_jax.backbones.names import Rule
from peft_jax.backbones.options import Options, read_activation, write_activation
from peft_jax.errors import InputError
from peft_jax.rotary import Rope
from peft_jax.transformer import Config

_ALIKE: dict[str, Any] = llama.ALIKE | {"norm_unit_offset": True}

#          vocab  d_model  d_ff  layers heads kv d_kv
_GEMMA = {
    "2b": (256000, 2048, 16384, 18, 8, 1, 256),
    "7b": (256000, 3072, 24576, 28, 16, 16, 256),
}
_GEMMA_2 = {
    "2b": (256000, 2304, 9216, 26, 8, 4, 256),
    "9b": (256000, 3584, 14336, 42, 16, 8, 256),
    "27b": (256000, 4608, 36864, 46, 32, 16, 128),
}
_GEMMA_3 = {
    "270m": (262144, 640, 2048, 18, 4, 1, 256),
    "1b": (262144, 1152, 6912, 26, 4, 1, 256),
    "4b": (262208, 2560, 10240, 34, 8, 4, 256),
    "12b": (262208, 3840, 15360, 48, 16, 8, 256),
    "27b": (262208, 5376, 21504, 62, 32, 16, 128),
}
# Where attention logits are not scaled by d_kv ** -0.5.
_QUERY_SCALARS = {"gemma_2_27b": 144, "gemma_3_27b": 168}


def _published(name: str, sizes: tuple[int, ...], **fields: Any) -> Config:
    vocab_size, d_model, d_ff, depth, heads, kv_heads, d_kv = sizes
    return Config(
        **_ALIKE | fields,
        vocab_size=vocab_size,
        d_model=d_model,
        d_ff=d_ff,
        num_heads=heads,
        d_kv=d_kv,
        num_kv_heads=kv_heads if kv_heads != heads else None,
        decoder_layers=depth,
        activation="gelu_tanh",
        attention_scale=_QUERY_SCALARS.get(name, d_kv) ** -0.5,
        embedding_scale=d_model**0.5,
        tied_head=True,
        pad_id=0,
        eos_id=1,
        decoder_start_id=2,
    )


def _periodic(depth: int, period: int) -> tuple[int, ...]:
    """The local layers where every ``period``-th is global."""
    return tuple(layer for layer in range(depth) if (layer + 1) % period)


def _named() -> dict[str, Config]:
    configs = {}
    for size, sizes in _GEMMA.items():
        name = f"gemma_{size}"
        configs[name] = _published(name, sizes, family="gemma", rope=Rope(), max_positions=8192)
    for size, sizes in _GEMMA_2.items():
        name = f"gemma_2_{size}"
        configs[name] = _published(
            name,
            sizes,
            family="gemma2",
            norm_position="sandwich",
            attention_softcap=50.0,
            logit_softcap=30.0,
            rope=Rope(),
            window=4096,
            local_layers=_periodic(sizes[3], 2),
            max_positions=8192,
        )
    for size, sizes in _GEMMA_3.items():
        name, small = f"gemma_3_{size}", size in ("270m", "1b")
        configs[name] = _published(
            name,
            sizes,
            family="gemma3_text",
            norm_position="sandwich",
            qk_norm=True,
            rope=Rope(1e6) if small else Rope(1e6, "linear", 8.0),
            local_rope=Rope(1e4),
            window=512 if small else 1024,
            local_layers=_periodic(sizes[3], 6),
            max_positions=32768 if small else 131072,
        )
    return configs


CONFIGS: dict[str, Config] = _named()
"""gemma_2b, gemma_7b, gemma_2_* and the text models gemma_3_*."""


# --------------------------------------------------------------------------------------------
# Names in a Hugging Face checkpoint
# --------------------------------------------------------------------------------------------
EMBEDDING, HEAD, CLASSIFIERS = llama.EMBEDDING, llama.HEAD, llama.CLASSIFIERS

ALIASES: dict[str, str] = {}

_VISION = ("vision_tower.", "multi_modal_projector.")

# What a Gemma 3 reads images with.
UNUSED = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)


def canonical_name(name: str) -> str:
    """Without the prefix of a model that reads images, with the one that a bare model lacks."""
    name = name.removeprefix("language_model.")
    if name.startswith("model.language_model."):
        name = name.replace("language_model.", "", 1)
    return name if name.startswith(_VISION) else llama.canonical_name(name)


def tied_by_default(model_type: str) -> bool:
    return True


_NORMS = {
    "pre": {"self_attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "sandwich": {
        "self_attention_norm": "input_layernorm",
        "self_attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}


def hugging_face_rules(config: Config) -> list[Rule]:
    """Our paths against transformers' names, for reading and for writing."""
    return llama.block_rules(config, _NORMS[config.norm_position])


# --------------------------------------------------------------------------------------------
# config.json
# --------------------------------------------------------------------------------------------
_READ = (*llama.READ, "attention_bias")
_REQUIRED = llama.REQUIRED | {"use_bidirectional_attention": (None, False)}
_WINDOWED = ("hidden_activation", "query_pre_attn_scalar", "sliding_window", "layer_types")
_CACHE = "cache_implementation"
# What a Gemma 3 that reads images says beside its text_config.
_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id")
_OF_THE_WHOLE = (*_TOKENS, "tie_word_embeddings", "id2label", "num_labels")

OPTIONS = {
    "gemma": Options((*_READ, "hidden_activation"), _REQUIRED, (_CACHE,)),
    "gemma2": Options(
        (*_READ, *_WINDOWED, "attn_logit_softcapping", "final_logit_softcapping"),
        _REQUIRED,
        (_CACHE,),
    ),
    "gemma3_text": Options(
        (
            *(*_READ, *_WINDOWED, "final_logit_softcapping"),
            *("rope_local_base_freq", "sliding_window_pattern"),
        ),
        # transformers keeps the field and does not apply it.
        _REQUIRED | {"attn_logit_softcapping": (None,)},
        (_CACHE,),
    ),
    "gemma3": Options(
        (*("model_type", "text_config"), *_OF_THE_WHOLE),
        {"is_encoder_decoder": (None, False)},
        (
            *("vision_config", "mm_tokens_per_image"),
            *("boi_token_index", "eoi_token_index", "image_token_index"),
        ),
    ),
}
"""By model type; hidden_act is read in a gemma alone, which the others have under another name."""

MODEL_TYPES = tuple(OPTIONS)

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "attention_bias": False,
    "attention_dropout": 0.0,
}
_DEFAULTS_2 = _DEFAULTS | {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
DEFAULTS = {
    "gemma": _DEFAULTS
    | {
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "gemma2": _DEFAULTS_2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": _DEFAULTS_2
    | {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "final_logit_softcapping": None,
    },
}
"""What transformers takes for a field that config.json lacks."""

_THETA, _LOCAL_THETA = 1e6, 1e4
_PERIODS = {"gemma2": 2, "gemma3_text": 6}


def config_from_hugging_face(fields: dict[str, Any], names: Collection[str]) -> Config:
    """The configuration that a ``config.json`` describes, for a file with tensors of these names.

    Raises:
      InputError: an option that is not supported.
      KeyError: a field is missing.
    """
    OPTIONS[fields["model_type"]].check(fields)
    if fields["model_type"] == "gemma3":
        return config_from_hugging_face(_text_fields(fields), names)
    family = fields["model_type"]
    fields = DEFAULTS[family] | fields
    sizes = llama.read_sizes(fields)
    scalar = sizes["d_kv"] if family == "gemma" else fields["query_pre_attn_scalar"]
    bias = bool(fields["attention_bias"])
    return Config(
        **_ALIKE
        | sizes
        | decoder_fields.read_tokens(fields)
        | decoder_fields.read_head(fields, names, HEAD)
        | _read_ropes(fields)
        | _read_window(fields),
        family=family,
        activation=_read_activation(fields),
        norm_position="pre" if family == "gemma" else "sandwich",
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=family == "gemma3_text",
        attention_scale=scalar**-0.5,
        attention_softcap=fields["attn_logit_softcapping"] if family == "gemma2" else None,
        logit_softcap=None if family == "gemma" else fields["final_logit_softcapping"],
        embedding_scale=sizes["d_model"] ** 0.5,
    )


def _text_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Those of the text model in a Gemma 3 that reads images; tokens and head are the whole's."""
    text = fields["text_config"]
    if text.get("model_type", "gemma3_text") != "gemma3_text":
        raise InputError(f"text_config: model_type {text['model_type']!r}, wanted 'gemma3_text'")
    whole = {name: fields[name] for name in _OF_THE_WHOLE if fields.get(name) is not None}
    return {**text, **whole, "model_type": "gemma3_text"}


def _read_activation(fields: dict[str, Any]) -> str:
    if fields["model_type"] != "gemma":
        return read_activation("hidden_activation", fields["hidden_activation"])
    # The first files say "gelu" where they mean its tanh form.
    named = {n: fields.get(n) for n in ("hidden_act", "hidden_activation")}
    read = {
        read_activation(n, "gelu_pytorch_tanh" if value == "gelu" else value)
        for n, value in named.items()
        if value is not None
    }
    if len(read) > 1:
        raise InputError(f"hidden_act and hidden_activation differ: {named}")
    return read.pop()


def _read_window(fields: dict[str, Any]) -> dict[str, Any]:
    family = fields["model_type"]
    if family == "gemma":
        return {}
    local = decoder_fields.read_layer_types(fields)
    if local is None:
        period = fields.get("sliding_window_pattern", _PERIODS[family])
        period = period if family == "gemma3_text" else _PERIODS[family]
        local = _periodic(fields["num_hidden_layers"], period)
    if local and fields["sliding_window"] is None:
        raise InputError("layers of sliding_attention need a sliding_window; it is None")
    return {"local_layers": local, "window": fields["sliding_window"] if local else None}


def _read_ropes(fields: dict[str, Any]) -> dict[str, Any]:
    length = fields["max_position_embeddings"]
    if fields["model_type"] != "gemma3_text":
        theta = fields.get("rope_theta", _LOCAL_THETA)
        scaling = decoder_fields.flat_rope(fields)
        return {"rope": decoder_fields.read_rope(scaling, theta, length)}
    kinds = fields.get("rope_parameters") or {}
    for name in kinds:
        if name not in decoder_fields.LAYER_TYPES:
            raise InputError(f"rope_parameters must be by kind of layer; it has {name}")
    full, local = (dict(kinds.get(name) or {}) for name in decoder_fields.LAYER_TYPES)
    # In transformers, too, the older field wins, and is of the full layers alone.
    full |= fields.get("rope_scaling") or {}
    theta, base = fields.get("rope_theta", _THETA), fields.get("rope_local_base_freq", _LOCAL_THETA)
    return {
        "rope": decoder_fields.read_rope(full, theta, length),
        "local_rope": decoder_fields.read_rope(local, base, length),
    }


_CLASSES = {
    "gemma": ("GemmaForCausalLM", "GemmaForSequenceClassification"),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2ForSequenceClassification"),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"),
}


def config_to_hugging_face(config: Config) -> dict[str, Any]:
    """The ``config.json`` from which transformers, of version 4 or 5, rebuilds the same model."""
    assert config.rope is not None
    activation = write_activation(config.activation, "gelu_pytorch_tanh")
    fields = {
        **llama.write_sizes(config),
        "hidden_activation": activation,
        "attention_bias": config.qkv_bias,
        **decoder_fields.write_rope_4(config.rope),
        **decoder_fields.write_head(config, *_CLASSES[config.family]),
    }
    if config.family == "gemma":
        fields["hidden_act"] = activation
    else:
        fields |= _write_layers(config)
    if config.family == "gemma2":
        fields["attn_logit_softcapping"] = config.attention_softcap
    if config.family != "gemma3_text":
        fields["rope_parameters"] = decoder_fields.write_rope(config.rope)
        return fields
    local = config.local_rope or config.rope
    ropes = [decoder_fields.write_rope(rope) for rope in (config.rope, local)]
    fields["rope_parameters"] = dict(zip(decoder_fields.LAYER_TYPES, ropes, strict=True))
    fields["rope_local_base_freq"] = local.theta
    return fields


def _write_layers(config: Config) -> dict[str, Any]:
    """What a gemma lacks."""
    scalar = config.attention_scale**-2
    fields = {
        # transformers wants a whole number, which the scale's rounding has moved.
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": config.window,
        "layer_types": decoder_fields.write_layer_types(config),
    }
    depth = config.decoder_layers
    if config.family == "gemma3_text":
        # What transformers 4 first had in place of layer_types.
        for period in range(1, depth + 2):
            if _periodic(depth, period) == config.local_layers:
                fields["sliding_window_pattern"] = period
    return fields
