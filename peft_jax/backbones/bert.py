"""BERT (Devlin et al. 2019), its small sizes (Turc et al. 2019), and MiniLM (Wang et al. 2020).

A file of BertForPreTraining has a pooler and a masked-LM head, one of BertModel the pooler alone,
one of BertForMaskedLM the head alone: the tensors decide which parts a backbone has. The head that
tells whether two sentences followed each other is not read.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from peft_jax.backbones import options
from peft_jax.backbones.names import Rule
from peft_jax.backbones.options import Options
from peft_jax.errors import InputError
from peft_jax.transformer import Config

#            d_model d_ff heads layers
_SIZES = {
    "tiny": (128, 512, 2, 2),
    "mini": (256, 1024, 4, 4),
    "small": (512, 2048, 8, 4),
    "medium": (512, 2048, 8, 8),
    "base": (768, 3072, 12, 12),
    "large": (1024, 4096, 16, 24),
}
_MINILM = {"l6": (384, 1536, 12, 6), "l12": (384, 1536, 12, 12)}
_VOCABULARIES = {
    **{f"bert_{size}": (size, 30522) for size in ("tiny", "mini", "small", "medium")},
    **{f"bert_{size}_uncased": (size, 30522) for size in ("base", "large")},
    **{f"bert_{size}_cased": (size, 28996) for size in ("base", "large")},
    "bert_base_multilingual_cased": ("base", 119547),
    "bert_base_multilingual_uncased": ("base", 105879),
    "bert_base_chinese": ("base", 21128),
}


def encoder_config(sizes: tuple[int, int, int, int], **fields: Any) -> Config:
    """What BERT and RoBERTa have in common.

    Args:
      sizes: d_model, d_ff, heads and layers.
    """
    d_model, d_ff, heads, depth = sizes
    return Config(
        **{
            "lm_head": False,
            "norm_epsilon": 1e-12,
            "token_types": 2,
            "activation": "gelu",
            "eos_id": -1,
            "max_positions": 512,
            **fields,
        },
        d_model=d_model,
        d_ff=d_ff,
        num_heads=heads,
        d_kv=d_model // heads,
        encoder_layers=depth,
        decoder_layers=0,
        gated=False,
        norm="layer",
        norm_position="post",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        attention_scale=(d_model // heads) ** -0.5,
        positions="learned",
        embedding_norm=True,
        activation_dropout=0.0,
        final_dropout=False,
    )


MASKED_LM = {"lm_head": True, "tied_head": True, "head_bias": True, "head_transform": True}
"""Fields of a model with a masked-LM head."""


def _named() -> dict[str, Config]:
    configs = {
        name: encoder_config(_SIZES[size], family="bert", vocab_size=v, pooler=True, **MASKED_LM)
        for name, (size, v) in _VOCABULARIES.items()
    }
    for name, sizes in _MINILM.items():
        configs[f"minilm_{name}"] = encoder_config(
            sizes, family="bert", vocab_size=30522, pooler=True
        )
    return configs


MODEL_TYPES = ("bert",)

CONFIGS: dict[str, Config] = _named()
"""bert_tiny ... bert_medium, bert_base_uncased, bert_large_cased and others, minilm_l6 and _l12."""


# --------------------------------------------------------------------------------------------
# Names in a Hugging Face checkpoint
# --------------------------------------------------------------------------------------------
def linear(ours: str, theirs: str) -> list[Rule]:
    """The rows of a projection with its bias."""
    return [
        Rule(f"{ours}/kernel", f"{theirs}.weight", transpose=True),
        Rule(f"{ours}/bias", f"{theirs}.bias"),
    ]


def norm(ours: str, theirs: str) -> list[Rule]:
    """The rows of a layer norm."""
    return [Rule(f"{ours}/scale", f"{theirs}.weight"), Rule(f"{ours}/bias", f"{theirs}.bias")]


def encoder_rules(config: Config, prefix: str) -> list[Rule]:
    """The rows of what BERT and RoBERTa have in common: embeddings, layers, pooler."""
    table, layer = f"{prefix}.embeddings", f"{prefix}.encoder.layer.{{layer}}"
    rules = [
        Rule("token_embedder/embedding", f"{table}.word_embeddings.weight"),
        Rule("encoder/position_embedder/embedding", f"{table}.position_embeddings.weight"),
        Rule("encoder/type_embedder/embedding", f"{table}.token_type_embeddings.weight"),
        *norm("encoder/embedding_norm", f"{table}.LayerNorm"),
    ]
    ours, theirs = "encoder/layers/attention", f"{layer}.attention"
    for name in ("query", "key", "value"):
        rules += linear(f"{ours}/{name}", f"{theirs}.self.{name}")
    rules += linear(f"{ours}/out", f"{theirs}.output.dense")
    rules += norm(f"{ours}_norm", f"{theirs}.output.LayerNorm")
    rules += linear("encoder/layers/mlp/wi", f"{layer}.intermediate.dense")
    rules += linear("encoder/layers/mlp/wo", f"{layer}.output.dense")
    rules += norm("encoder/layers/mlp_norm", f"{layer}.output.LayerNorm")
    if config.pooler:
        rules += linear("pooler", f"{prefix}.pooler.dense")
    return rules


def hugging_face_rules(config: Config) -> list[Rule]:
    """Our paths against transformers' names, for reading and for writing."""
    rules = encoder_rules(config, "bert")
    if config.lm_head:
        rules += linear("head_transform", "cls.predictions.transform.dense")
        rules += norm("head_norm", "cls.predictions.transform.LayerNorm")
        rules.append(Rule("lm_head/bias", "cls.predictions.bias"))
    if config.num_labels:
        rules += linear("classifier/out", "classifier")
    return rules


EMBEDDING, HEAD = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"

CLASSIFIERS = ("classifier.weight",)

ALIASES = {"cls.predictions.decoder.bias": "cls.predictions.bias"}

# Buffers that count up, and the head that tells whether sentences followed each other.
UNUSED = (r"bert\.embeddings\.(position|token_type)_ids", r"cls\.seq_relationship\..*")


def canonical_name(name: str) -> str:
    """With the prefix, and with the names that norms have had since 2019."""
    return complete_name(name, "bert")


def complete_name(name: str, prefix: str) -> str:
    """The name in a model with a head, for one in a bare model or in a file of 2018."""
    if re.match(r"(embeddings|encoder|pooler)\.", name):
        name = f"{prefix}.{name}"
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def tied_by_default(model_type: str) -> bool:
    """Always."""
    return True


# --------------------------------------------------------------------------------------------
# config.json
# --------------------------------------------------------------------------------------------
OPTIONS = {
    "bert": Options(
        read=(
            *("model_type", "vocab_size", "hidden_size", "intermediate_size", "hidden_act"),
            *("num_attention_heads", "num_hidden_layers", "max_position_embeddings"),
            *("type_vocab_size", "layer_norm_eps", "hidden_dropout_prob", "classifier_dropout"),
            *(
                "attention_probs_dropout_prob",
                "pad_token_id",
                "eos_token_id",
                "tie_word_embeddings",
            ),
            *("id2label", "num_labels"),
        ),
        required={
            "position_embedding_type": ("absolute", None),
            "is_decoder": (False, None),
            "is_encoder_decoder": (False, None),
        },
        # Notes that the first multilingual files have of their pooler; it is the usual one.
        harmless=(
            *("directionality", "pooler_fc_size", "pooler_num_attention_heads"),
            *("pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
        ),
    )
}


def read_encoder_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of ``Config`` that BERT and RoBERTa read alike, for :func:`encoder_config`."""
    dropout = fields.get("hidden_dropout_prob", 0.1)
    attention = fields.get("attention_probs_dropout_prob", 0.1)
    eos_id, extra = options.eos_ids(fields.get("eos_token_id"))
    options.head_width(fields, "hidden_size", "num_attention_heads")
    return {
        "family": fields["model_type"],
        "sizes": tuple(
            fields[name]
            for name in (
                *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"),
            )
        ),
        "vocab_size": fields["vocab_size"],
        "token_types": fields.get("type_vocab_size", 2),
        "activation": options.read_activation("hidden_act", fields.get("hidden_act", "gelu")),
        "norm_epsilon": fields.get("layer_norm_eps", 1e-12),
        "eos_id": eos_id,
        "extra_eos_ids": extra,
        "dropout": dropout,
        "attention_dropout": options.rate_beside(attention, dropout),
        "classifier_dropout": fields.get("classifier_dropout"),
    }


def read_head(
    fields: dict[str, Any], names: Collection[str], has_head: bool, matrix: str
) -> dict[str, Any]:
    """Fields of ``Config`` for a file with or without a masked-LM head; it must be tied.

    Args:
      matrix: name of the tensor that only an untied head has. (Which of an untied head's two
        biases counts has changed with transformers 5.)
    """
    if not has_head:
        return {}
    if matrix in names:
        raise InputError(f"tensor {matrix} differs from the embedding, which is not supported")
    if fields.get("tie_word_embeddings") is False:
        raise InputError("tie_word_embeddings False is not supported with a masked-LM head")
    return MASKED_LM


def config_from_hugging_face(fields: dict[str, Any], names: Collection[str]) -> Config:
    """The configuration that a ``config.json`` describes, with the parts that the file has."""
    OPTIONS["bert"].check(fields)
    pooler, classifies = "bert.pooler.dense.weight" in names, CLASSIFIERS[0] in names
    if classifies and not pooler:
        raise InputError(
            "a classifier without a pooler labels every token (BertForTokenClassification), which "
            "is not supported; a BertForSequenceClassification has both"
        )
    has_head = any(name.startswith("cls.predictions.") for name in names)
    return encoder_config(
        **read_encoder_fields(fields),
        **read_head(fields, names, has_head, HEAD),
        max_positions=fields.get("max_position_embeddings", 512),
        pad_id=fields.get("pad_token_id") or 0,
        pooler=pooler,
        num_labels=options.count_labels(fields) if classifies else 0,
    )


def write_encoder_fields(config: Config) -> dict[str, Any]:
    """The fields of a config.json that BERT and RoBERTa have alike."""
    attention = config.attention_dropout
    fields = {
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.encoder_layers,
        "hidden_act": options.write_activation(config.activation),
        "max_position_embeddings": config.max_positions + config.position_offset,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout if attention is None else attention,
        "classifier_dropout": config.classifier_dropout,
        "pad_token_id": config.pad_id,
        "eos_token_id": options.write_eos_ids(config.eos_id, config.extra_eos_ids),
        "tie_word_embeddings": True,
    }
    return fields | ({"num_labels": config.num_labels} if config.num_labels else {})


def architecture(config: Config, name: str) -> str:
    """transformers' class for a model that has these parts: of several it names the head."""
    if config.num_labels:
        return f"{name}ForSequenceClassification"
    return f"{name}ForMaskedLM" if config.lm_head else f"{name}Model"


def config_to_hugging_face(config: Config) -> dict[str, Any]:
    """The ``config.json`` from which transformers, of version 4 or 5, rebuilds the same model."""
    return {"architectures": [architecture(config, "Bert")]} | write_encoder_fields(config)
