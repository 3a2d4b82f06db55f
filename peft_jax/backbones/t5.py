"""T5 and its kin: v1.0, v1.1, LM-adapted, T0, Flan-T5, mT5 (Raffel et al. 2020; Xue et al. 2021).

v1.0 has a ReLU feed-forward and a tied, scaled head; all the others are v1.1: a gated GELU
feed-forward and a head of its own. LM-adapted (Lester et al. 2021), T0 (Sanh et al. 2022) and
Flan-T5 (Chung et al. 2022) are v1.1 with other weights.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from peft_jax.backbones.names import Rule
from peft_jax.backbones.options import Options, count_labels, rate_beside, read_activation
from peft_jax.errors import InputError
from peft_jax.transformer import Config

#                     d_model  d_ff  heads d_kv layers
_V1_0 = {
    "small": (512, 2048, 8, 64, 6),
    "base": (768, 3072, 12, 64, 12),
    "large": (1024, 4096, 16, 64, 24),
    "3b": (1024, 16384, 32, 128, 24),
    "11b": (1024, 65536, 128, 128, 24),
}
_V1_1 = {
    "small": (512, 1024, 6, 64, 8),
    "base": (768, 2048, 12, 64, 12),
    "large": (1024, 2816, 16, 64, 24),
    "xl": (2048, 5120, 32, 64, 24),
    "xxl": (4096, 10240, 64, 64, 24),
}


def _config(sizes: tuple[int, ...], **fields: Any) -> Config:
    d_model, d_ff, heads, d_kv, depth = sizes
    fields = {"family": "t5", "vocab_size": 32128, **fields}
    return Config(
        **fields,
        classifier_dense=True,
        classifier_dropout=0.0,
        d_model=d_model,
        d_ff=d_ff,
        num_heads=heads,
        d_kv=d_kv,
        encoder_layers=depth,
        decoder_layers=depth,
    )


def _named() -> dict[str, Config]:
    configs = {
        f"t5_{size}": _config(
            sizes, activation="relu", gated=False, tied_head=True, scale_head=True
        )
        for size, sizes in _V1_0.items()
    }
    for size, sizes in _V1_1.items():
        for name in (f"t5_v1_1_{size}", f"t5_lm_{size}", f"flan_t5_{size}"):
            configs[name] = _config(sizes)
        configs[f"mt5_{size}"] = _config(sizes, family="mt5", vocab_size=250112)
    configs["t0_3b"] = _config(_V1_1["xl"])
    configs["t0_11b"] = _config(_V1_1["xxl"])
    return configs


MODEL_TYPES = ("t5", "mt5")

CONFIGS: dict[str, Config] = _named()
"""t5_small ... t5_11b, t5_v1_1_*, t5_lm_*, flan_t5_*, mt5_*, t0_3b and t0_11b."""


# --------------------------------------------------------------------------------------------
# Names in a Hugging Face checkpoint
# --------------------------------------------------------------------------------------------
def _attention(ours: str, theirs: str) -> list[Rule]:
    names = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return [Rule(f"{ours}/{n}/kernel", f"{theirs}.{h}.weight", True) for n, h in names.items()]


def _stack(config: Config, stack: str, attentions: dict[str, str]) -> list[Rule]:
    layers, block = f"{stack}/layers", f"{stack}.block.{{layer}}.layer"
    first = "SelfAttention.relative_attention_bias.weight"
    rules = [
        Rule(f"{stack}/relative_bias/embedding", f"{stack}.block.0.layer.0.{first}"),
        Rule(f"{stack}/final_norm/scale", f"{stack}.final_layer_norm.weight"),
    ]
    for index, (ours, theirs) in enumerate(attentions.items()):
        rules.append(Rule(f"{layers}/{ours}_norm/scale", f"{block}.{index}.layer_norm.weight"))
        rules += _attention(f"{layers}/{ours}", f"{block}.{index}.{theirs}")
    last = f"{block}.{len(attentions)}"
    rules.append(Rule(f"{layers}/mlp_norm/scale", f"{last}.layer_norm.weight"))
    inputs = ("wi_0", "wi_1") if config.gated else ("wi",)
    for name in (*inputs, "wo"):
        rules.append(
            Rule(f"{layers}/mlp/{name}/kernel", f"{last}.DenseReluDense.{name}.weight", True)
        )
    return rules


def hugging_face_rules(config: Config) -> list[Rule]:
    """Our paths against transformers' names, for reading and for writing."""
    rules = [Rule("token_embedder/embedding", "shared.weight")]
    rules += _stack(config, "encoder", {"attention": "SelfAttention"})
    rules += _stack(
        config, "decoder", {"self_attention": "SelfAttention", "cross_attention": "EncDecAttention"}
    )
    if config.lm_head and not config.tied_head:
        rules.append(Rule("lm_head/kernel", HEAD, True))
    if config.num_labels:
        for ours, theirs in (("dense", "dense"), ("out", "out_proj")):
            path, name = f"classifier/{ours}", f"classification_head.{theirs}"
            rules.append(Rule(f"{path}/kernel", f"{name}.weight", True))
            rules.append(Rule(f"{path}/bias", f"{name}.bias"))
    return rules


EMBEDDING, HEAD = "shared.weight", "lm_head.weight"

CLASSIFIERS = ("classification_head.out_proj.weight",)

ALIASES = dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), EMBEDDING)

# The first published files have a table that no T5 ever read.
UNUSED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)


def canonical_name(name: str) -> str:
    """Without the prefix of a model with a classification head."""
    return name.removeprefix("transformer.")


def tied_by_default(model_type: str) -> bool:
    """mT5's head is its own."""
    return model_type != "mt5"


_OPTIONS = Options(
    read=(
        *("model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers"),
        *("num_decoder_layers", "feed_forward_proj", "relative_attention_num_buckets"),
        *("relative_attention_max_distance", "layer_norm_epsilon", "dropout_rate"),
        *("classifier_dropout", "tie_word_embeddings", "scale_decoder_outputs"),
        *("pad_token_id", "eos_token_id", "decoder_start_token_id", "id2label", "num_labels"),
        *("dense_act_fn", "is_gated_act"),
    ),
    required={"is_encoder_decoder": (True, None), "is_decoder": (False, None)},
    # A limit of the tokenizer that no T5 has.
    harmless=("n_positions",),
)

OPTIONS = dict.fromkeys(MODEL_TYPES, _OPTIONS)

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "silu": "silu"}


def config_from_hugging_face(fields: dict[str, Any], names: Collection[str]) -> Config:
    """The configuration that a ``config.json`` describes.

    Args:
      fields: the parsed file.
      names: of the checkpoint's tensors. They decide whether the head is tied, since transformers
        5 writes ``tie_word_embeddings: true`` for every T5 and keeps the fact that v1.1 does not
        scale in ``scale_decoder_outputs``.
    """
    classifies = CLASSIFIERS[0] in names
    family = fields["model_type"]
    OPTIONS[family].check(fields)
    activation, gated = _feed_forward(fields)
    dropout = fields.get("dropout_rate", 0.1)
    # mT5 never scales. T5 does where the head was tied when the model was made.
    was_tied = fields.get("tie_word_embeddings", True) is not False
    scale = fields.get("scale_decoder_outputs", was_tied) if family == "t5" else False
    depth = fields["num_layers"]
    return Config(
        family=family,
        vocab_size=fields["vocab_size"],
        d_model=fields["d_model"],
        d_ff=fields["d_ff"],
        num_heads=fields["num_heads"],
        d_kv=fields["d_kv"],
        encoder_layers=depth,
        decoder_layers=fields.get("num_decoder_layers") or depth,
        activation=activation,
        gated=gated,
        lm_head=not classifies,
        tied_head=not classifies and HEAD not in names,
        num_labels=count_labels(fields) if classifies else 0,
        classifier_dense=True,
        scale_head=bool(scale),
        relative_buckets=fields.get("relative_attention_num_buckets", 32),
        relative_max_distance=fields.get("relative_attention_max_distance", 128),
        norm_epsilon=fields.get("layer_norm_epsilon", 1e-6),
        pad_id=fields.get("pad_token_id") or 0,
        eos_id=fields.get("eos_token_id", 1),
        decoder_start_id=fields.get("decoder_start_token_id") or 0,
        dropout=dropout,
        classifier_dropout=rate_beside(fields.get("classifier_dropout", 0.0), dropout),
    )


def _feed_forward(fields: dict[str, Any]) -> tuple[str, bool]:
    """The activation, and whether it is a gate's."""
    # Where the field is absent, transformers has another default for each of the two.
    default = "gated-gelu" if fields["model_type"] == "mt5" else "relu"
    projection = fields.get("feed_forward_proj", default)
    gated = projection.startswith("gated-")
    name = projection.removeprefix("gated-")
    if name not in _ACTIVATIONS:
        raise InputError(
            f"feed_forward_proj {projection!r} is not supported; one of "
            + ", ".join(f"{a}, gated-{a}" for a in _ACTIVATIONS)
        )
    # transformers reads "gated-gelu" as the tanh form, and so were these models trained; a plain
    # "gelu" is the exact form.
    activation = "gelu" if projection == "gelu" else _ACTIVATIONS[name]
    # It writes the same beside it, taken apart, and believes that part where they differ.
    stated = fields.get("dense_act_fn")
    if stated is not None and read_activation("dense_act_fn", stated) != activation:
        raise InputError(f"dense_act_fn {stated!r} contradicts feed_forward_proj {projection!r}")
    if fields.get("is_gated_act", gated) != gated:
        raise InputError(f"is_gated_act {not gated} contradicts feed_forward_proj {projection!r}")
    return activation, gated


def config_to_hugging_face(config: Config) -> dict[str, Any]:
    """The ``config.json`` from which transformers, of version 4 or 5, rebuilds the same model."""
    if config.gated and config.activation == "gelu":
        raise InputError("config.json cannot say a gated feed-forward with the exact gelu")
    if config.relative_per_layer:
        raise InputError(f"a {config.family} of transformers has no relative bias for each layer")
    tanh = "gelu" if config.gated else "gelu_new"
    activation = tanh if config.activation == "gelu_tanh" else config.activation
    rate = config.classifier_dropout
    fields = {
        "model_type": config.family,
        "architectures": [_architecture(config)],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "num_heads": config.num_heads,
        "d_kv": config.d_kv,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.decoder_layers,
        "feed_forward_proj": ("gated-" if config.gated else "") + activation,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "layer_norm_epsilon": config.norm_epsilon,
        "dropout_rate": config.dropout,
        "classifier_dropout": config.dropout if rate is None else rate,
        "pad_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.decoder_start_id,
        "tie_word_embeddings": config.tied_head,
    }
    if config.family == "t5":
        fields["scale_decoder_outputs"] = config.scale_head
    if config.num_labels:
        fields |= {"num_labels": config.num_labels}
    return fields


def _architecture(config: Config) -> str:
    head = "SequenceClassification" if config.num_labels else "ConditionalGeneration"
    return f"{'MT5' if config.family == 'mt5' else 'T5'}For{head}"
