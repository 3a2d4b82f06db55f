"""Llama 2 and 3, Mistral, Qwen 2, 2.5 and 3: one table with the few differences.

All are gated and rotary with RMS norms in front of every branch (Touvron et al. 2023). Mistral sees
a window (Jiang et al. 2023), Qwen 2 has biases on queries, keys and values, Qwen 3 norms every
head's queries and keys in their place.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from peft_jax.backbones import decoder_fields
from peft_jax.backbones.names import Rule
from peft_jax.backbones.options import Options, rate_beside, read_activation, write_activation
from peft_jax.errors import InputError
from peft_jax.rotary import Rope
from peft_jax.transformer import Config

ALIKE: dict[str, Any] = {
    "norm": "rms",
    "positions": "rotary",
    "dropout": 0.0,
    **decoder_fields.ALIKE,
}
"""Fields of :class:`Config` that are alike in all of them, and in Gemma."""

#                    vocab  d_model d_ff  layers heads kv
_LLAMA_2 = {
    "7b": (32000, 4096, 11008, 32, 32, 32),
    "13b": (32000, 5120, 13824, 40, 40, 40),
    "70b": (32000, 8192, 28672, 80, 64, 8),
}
_LLAMA_3 = {
    "8b": (128256, 4096, 14336, 32, 32, 8),
    "70b": (128256, 8192, 28672, 80, 64, 8),
}
_LLAMA_3_1 = _LLAMA_3 | {"405b": (128256, 16384, 53248, 126, 128, 8)}
_LLAMA_3_2 = {
    "1b": (128256, 2048, 8192, 16, 32, 8),
    "3b": (128256, 3072, 8192, 28, 24, 8),
}
_QWEN_2 = {
    "0_5b": (151936, 896, 4864, 24, 14, 2),
    "1_5b": (151936, 1536, 8960, 28, 12, 2),
    "7b": (152064, 3584, 18944, 28, 28, 4),
    "72b": (152064, 8192, 29568, 80, 64, 8),
}
_QWEN_2_5 = _QWEN_2 | {
    "3b": (151936, 2048, 11008, 36, 16, 2),
    "14b": (152064, 5120, 13824, 48, 40, 8),
    "32b": (152064, 5120, 27648, 64, 40, 8),
}
_QWEN_3 = {
    "0_6b": (151936, 1024, 3072, 28, 16, 8),
    "1_7b": (151936, 2048, 6144, 28, 16, 8),
    "4b": (151936, 2560, 9728, 36, 32, 8),
    "8b": (151936, 4096, 12288, 36, 32, 8),
    "14b": (151936, 5120, 17408, 40, 40, 8),
    "32b": (151936, 5120, 25600, 64, 64, 8),
}
_TIED = {"0_5b", "0_6b", "1_5b", "1_7b", "3b", "4b"}
"""Qwens without a head of their own."""


def _published(family: str, sizes: tuple[int, ...], rope: Rope, **fields: Any) -> Config:
    vocab_size, d_model, d_ff, depth, heads, kv_heads = sizes
    d_kv = 128 if family == "qwen3" else d_model // heads
    fields = {"norm_epsilon": 1e-5, "pad_id": decoder_fields.NO_TOKEN} | fields
    return Config(
        **ALIKE | fields,
        family=family,
        vocab_size=vocab_size,
        d_model=d_model,
        d_ff=d_ff,
        num_heads=heads,
        d_kv=d_kv,
        num_kv_heads=kv_heads if kv_heads != heads else None,
        decoder_layers=depth,
        activation="silu",
        attention_scale=d_kv**-0.5,
        rope=rope,
    )


def _llamas() -> dict[str, Config]:
    ends = {"eos_id": 2, "decoder_start_id": 1}
    configs = {
        f"llama_2_{size}": _published("llama", sizes, Rope(), max_positions=4096, **ends)
        for size, sizes in _LLAMA_2.items()
    }
    ends = {"eos_id": 128001, "decoder_start_id": 128000}
    rope = Rope(500000.0)
    for size, sizes in _LLAMA_3.items():
        configs[f"llama_3_{size}"] = _published("llama", sizes, rope, max_positions=8192, **ends)
    ends["max_positions"] = 131072
    rope = Rope(500000.0, "llama3", 8.0, original_positions=8192)
    for size, sizes in _LLAMA_3_1.items():
        configs[f"llama_3_1_{size}"] = _published("llama", sizes, rope, **ends)
    configs["llama_3_3_70b"] = configs["llama_3_1_70b"]
    rope = Rope(500000.0, "llama3", 32.0, original_positions=8192)
    for size, sizes in _LLAMA_3_2.items():
        configs[f"llama_3_2_{size}"] = _published("llama", sizes, rope, tied_head=True, **ends)
    return configs


def _mistrals() -> dict[str, Config]:
    sizes = (4096, 14336, 32, 32, 8)
    ends = {"eos_id": 2, "decoder_start_id": 1, "max_positions": 32768}
    window = {"window": 4096, "local_layers": tuple(range(32))}
    return {
        "mistral_7b_v0_1": _published("mistral", (32000, *sizes), Rope(), **ends, **window),
        "mistral_7b_v0_2": _published("mistral", (32000, *sizes), Rope(1e6), **ends),
        "mistral_7b_v0_3": _published("mistral", (32768, *sizes), Rope(1e6), **ends),
    }


def _qwens() -> dict[str, Config]:
    ends = {"eos_id": 151643, "decoder_start_id": 151643, "qkv_bias": True}
    configs = {}
    for generation, table in (("qwen2", _QWEN_2), ("qwen2_5", _QWEN_2_5)):
        for size, sizes in table.items():
            short = generation == "qwen2_5" and size in _TIED
            configs[f"{generation}_{size}"] = _published(
                "qwen2",
                sizes,
                Rope(1e6),
                tied_head=size in _TIED,
                norm_epsilon=1e-5 if size in ("14b", "32b", "72b") else 1e-6,
                max_positions=32768 if short else 131072,
                **ends,
            )
    for size, sizes in _QWEN_3.items():
        configs[f"qwen3_{size}"] = _published(
            "qwen3",
            sizes,
            Rope(1e6),
            tied_head=size in _TIED,
            norm_epsilon=1e-6,
            max_positions=40960,
            qk_norm=True,
            eos_id=151645,
            decoder_start_id=151643,
        )
    return configs


CONFIGS: dict[str, Config] = _llamas() | _mistrals() | _qwens()
"""llama_2_*, llama_3_*, llama_3_1_*, llama_3_2_*, llama_3_3_70b, mistral_7b_*, qwen2_*, qwen2_5_*
and qwen3_*."""


# --------------------------------------------------------------------------------------------
# How the model types differ in config.json
# --------------------------------------------------------------------------------------------
class _Kind(NamedTuple):
    """A model type.

    Attributes:
      classes: what transformers' classes of it begin with.
      defaults: what transformers takes for a field that config.json lacks.
      options: its fields.
    """

    classes: str
    defaults: dict[str, Any]
    options: Options


READ = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps"),
    *("max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"),
    *("attention_dropout", "id2label", "num_labels"),
)
"""Fields of config.json that all of them, and Gemma, read."""

REQUIRED = {
    "is_encoder_decoder": (None, False),
    "partial_rotary_factor": (None, 1),
    # Phi-3's place for a field of its rope_parameters.
    "original_max_position_embeddings": (None,),
}
"""Fields of config.json with the values that they may have; also in Gemma."""

_DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_dropout": 0.0,
}
_WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_QWEN = _DEFAULTS | {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

_KINDS = {
    "llama": _Kind(
        "Llama",
        _DEFAULTS
        | {
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        Options(
            (*READ, "attention_bias", "mlp_bias"),
            REQUIRED,
            # Into how many parts sums were split while it was pretrained: it moves their rounding.
            ("pretraining_tp",),
        ),
    ),
    "mistral": _Kind(
        "Mistral",
        _DEFAULTS
        | {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        Options((*READ, "sliding_window"), REQUIRED | {"layer_types": (None,)}),
    ),
    "qwen2": _Kind("Qwen2", _QWEN, Options((*READ, *_WINDOWS), REQUIRED)),
    "qwen3": _Kind(
        "Qwen3",
        _QWEN | {"head_dim": 128, "attention_bias": False},
        Options((*READ, *_WINDOWS, "attention_bias"), REQUIRED),
    ),
}

MODEL_TYPES = tuple(_KINDS)

OPTIONS = {model_type: kind.options for model_type, kind in _KINDS.items()}


# --------------------------------------------------------------------------------------------
# Names in a Hugging Face checkpoint
# --------------------------------------------------------------------------------------------
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

CLASSIFIERS = (decoder_fields.CLASSIFIER,)

ALIASES: dict[str, str] = {}

# The first Llama files hold the rotary frequencies of every layer.
UNUSED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def canonical_name(name: str) -> str:
    """With the prefix that a bare model's files lack."""
    return name if name.startswith(("model.", "lm_head.", "score.")) else f"model.{name}"


def tied_by_default(model_type: str) -> bool:
    return False


def block_rules(config: Config, norms: dict[str, str]) -> list[Rule]:
    """The rows that Gemma shares; ``norms`` names those of a layer."""
    layers, block = "decoder/layers", "model.layers.{layer}"
    rules = [
        Rule("token_embedder/embedding", EMBEDDING),
        Rule("decoder/final_norm/scale", "model.norm.weight"),
    ]
    rules += [Rule(f"{layers}/{o}/scale", f"{block}.{t}.weight") for o, t in norms.items()]

    def linear(ours: str, theirs: str, bias: bool) -> None:
        rules.append(Rule(f"{layers}/{ours}/kernel", f"{block}.{theirs}.weight", True))
        if bias:
            rules.append(Rule(f"{layers}/{ours}/bias", f"{block}.{theirs}.bias"))

    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
        bias = config.out_bias if ours == "out" else config.qkv_bias
        linear(f"self_attention/{ours}", f"self_attn.{theirs}_proj", bias)
    for ours, theirs in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")):
        linear(f"mlp/{ours}", f"mlp.{theirs}_proj", config.mlp_bias)
    if config.qk_norm:
        for ours, theirs in (("query", "q"), ("key", "k")):
            path = f"{layers}/self_attention/{ours}_norm/scale"
            rules.append(Rule(path, f"{block}.self_attn.{theirs}_norm.weight"))
    if config.lm_head and not config.tied_head:
        rules.append(Rule("lm_head/kernel", HEAD, True))
    if config.num_labels:
        rules.append(Rule("classifier/out/kernel", decoder_fields.CLASSIFIER, True))
    return rules


def hugging_face_rules(config: Config) -> list[Rule]:
    """Our paths against transformers' names, for reading and for writing."""
    return block_rules(
        config,
        {"self_attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    )


# --------------------------------------------------------------------------------------------
# config.json
# --------------------------------------------------------------------------------------------
def read_sizes(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of :class:`Config` that Gemma names alike."""
    heads, kv_heads = fields["num_attention_heads"], fields["num_key_value_heads"]
    return {
        "vocab_size": fields["vocab_size"],
        "d_model": fields["hidden_size"],
        "d_ff": fields["intermediate_size"],
        "num_heads": heads,
        "num_kv_heads": kv_heads if kv_heads != heads else None,
        "d_kv": fields["head_dim"] or fields["hidden_size"] // heads,
        "decoder_layers": fields["num_hidden_layers"],
        "norm_epsilon": fields["rms_norm_eps"],
        "max_positions": fields["max_position_embeddings"],
        "attention_dropout": rate_beside(fields["attention_dropout"] or 0.0, 0.0),
    }


def write_sizes(config: Config) -> dict[str, Any]:
    """The other way round."""
    dropout = config.attention_dropout
    return {
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.decoder_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.d_kv,
        "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": decoder_fields.write_max_positions(config),
        "attention_dropout": config.dropout if dropout is None else dropout,
        **decoder_fields.write_tokens(config),
    }


def config_from_hugging_face(fields: dict[str, Any], names: Collection[str]) -> Config:
    """The configuration that a ``config.json`` describes, for a file with tensors of these names.

    Raises:
      InputError: an option that is not supported.
      KeyError: a field is missing.
    """
    family = fields["model_type"]
    kind = _KINDS[family]
    kind.options.check(fields)
    fields = kind.defaults | fields
    sizes = read_sizes(fields)
    window, local = _read_window(fields)
    bias = bool(fields.get("attention_bias", False)) if family != "qwen2" else False
    rope = decoder_fields.read_rope(
        decoder_fields.flat_rope(fields), fields["rope_theta"], sizes["max_positions"]
    )
    return Config(
        **ALIKE
        | sizes
        | decoder_fields.read_tokens(fields)
        | decoder_fields.read_head(fields, names, HEAD),
        family=family,
        activation=read_activation("hidden_act", fields["hidden_act"]),
        qkv_bias=bias or family == "qwen2",
        out_bias=bias,
        mlp_bias=bool(fields.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        attention_scale=sizes["d_kv"] ** -0.5,
        window=window,
        local_layers=local,
        rope=rope,
    )


def _read_window(fields: dict[str, Any]) -> tuple[int | None, tuple[int, ...]]:
    family, depth = fields["model_type"], fields["num_hidden_layers"]
    if family == "llama":
        return None, ()
    window = fields["sliding_window"]
    if family == "mistral":
        return window, () if window is None else tuple(range(depth))
    if not fields["use_sliding_window"]:
        window = None
    local = decoder_fields.read_layer_types(fields)
    if local is None:
        local = () if window is None else tuple(range(fields["max_window_layers"], depth))
    if local and window is None:
        raise InputError(
            "layer_types names sliding_attention, but use_sliding_window and sliding_window "
            "give no window"
        )
    return window if local else None, local


def config_to_hugging_face(config: Config) -> dict[str, Any]:
    """The ``config.json`` from which transformers, of version 4 or 5, rebuilds the same model."""
    assert config.rope is not None
    kind = _KINDS[config.family]
    fields = {
        **write_sizes(config),
        "hidden_act": write_activation(config.activation),
        "rope_parameters": decoder_fields.write_rope(config.rope),
        **decoder_fields.write_rope_4(config.rope),
        **decoder_fields.write_head(
            config, f"{kind.classes}ForCausalLM", f"{kind.classes}ForSequenceClassification"
        ),
    }
    if "attention_bias" in kind.defaults:
        fields["attention_bias"] = config.qkv_bias
    if "mlp_bias" in kind.defaults:
        fields["mlp_bias"] = config.mlp_bias
    if config.family == "mistral":
        fields["sliding_window"] = config.window
    if "use_sliding_window" in kind.defaults:
        fields |= _write_window(config)
    return fields


def _write_window(config: Config) -> dict[str, Any]:
    return {
        "use_sliding_window": bool(config.local_layers),
        "sliding_window": config.window,
        "layer_types": decoder_fields.write_layer_types(config),
        # What transformers 4 first had in place of layer_types.
        "max_window_layers": min(config.local_layers, default=config.decoder_layers),
    }
