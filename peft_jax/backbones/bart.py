"""BART (Lewis et al. 2020): base, large, and what was made of the latter.

Its head is the embedding, with a bias that only some files hold and that is mostly zero.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from peft_jax.backbones import options
from peft_jax.backbones.bert import linear, norm
from peft_jax.backbones.names import Rule
from peft_jax.backbones.options import Options
from peft_jax.errors import InputError
from peft_jax.transformer import Config


def _config(sizes: tuple[int, ...], **fields: Any) -> Config:
    """Args: sizes: d_model, d_ff, heads, layers of the encoder and of the decoder."""
    d_model, d_ff, heads, encoder_layers, decoder_layers = sizes
    return Config(
        **{
            "tied_head": True,
            "activation": "gelu",
            "max_positions": 1024,
            "eos_id": 2,
            "pad_id": 1,
            "decoder_start_id": 2,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "classifier_dropout": 0.0,
            **fields,
        },
        family="bart",
        d_model=d_model,
        d_ff=d_ff,
        num_heads=heads,
        d_kv=d_model // heads,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        gated=False,
        norm="layer",
        norm_position="post",
        norm_epsilon=1e-5,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        attention_scale=(d_model // heads) ** -0.5,
        positions="learned",
        position_offset=2,
        embedding_norm=True,
        classifier_dense=True,
        final_dropout=False,
    )


MODEL_TYPES = ("bart",)

CONFIGS: dict[str, Config] = {
    "bart_base": _config((768, 3072, 12, 6, 6), vocab_size=50265),
    "bart_large": _config((1024, 4096, 16, 12, 12), vocab_size=50265),
}
"""bart_base and bart_large."""


# --------------------------------------------------------------------------------------------
# Names in a Hugging Face checkpoint
# --------------------------------------------------------------------------------------------
_ATTENTIONS = {
    "encoder": {"attention": "self_attn"},
    "decoder": {"self_attention": "self_attn", "cross_attention": "encoder_attn"},
}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def _stack(stack: str) -> list[Rule]:
    layers, layer = f"{stack}/layers", f"model.{stack}.layers.{{layer}}"
    rules = [
        Rule(f"{stack}/position_embedder/embedding", f"model.{stack}.embed_positions.weight"),
        *norm(f"{stack}/embedding_norm", f"model.{stack}.layernorm_embedding"),
    ]
    for ours, theirs in _ATTENTIONS[stack].items():
        for name, projection in _PROJECTIONS.items():
            rules += linear(f"{layers}/{ours}/{name}", f"{layer}.{theirs}.{projection}")
        rules += norm(f"{layers}/{ours}_norm", f"{layer}.{theirs}_layer_norm")
    rules += linear(f"{layers}/mlp/wi", f"{layer}.fc1")
    rules += linear(f"{layers}/mlp/wo", f"{layer}.fc2")
    return rules + norm(f"{layers}/mlp_norm", f"{layer}.final_layer_norm")


def hugging_face_rules(config: Config) -> list[Rule]:
    """Our paths against transformers' names, for reading and for writing."""
    rules = [Rule("token_embedder/embedding", EMBEDDING), *_stack("encoder"), *_stack("decoder")]
    if config.lm_head and not config.tied_head:
        rules.append(Rule("lm_head/kernel", HEAD, transpose=True))
    if config.head_bias:
        rules.append(Rule("lm_head/bias", _HEAD_BIAS, row=True))
    if config.num_labels:
        rules += linear("classifier/dense", "classification_head.dense")
        rules += linear("classifier/out", "classification_head.out_proj")
    return rules


EMBEDDING, HEAD, _HEAD_BIAS = "model.shared.weight", "lm_head.weight", "final_logits_bias"

CLASSIFIERS = ("classification_head.out_proj.weight",)

ALIASES = dict.fromkeys(
    ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"), EMBEDDING
)

# The first files were converted with fairseq's number of the format.
UNUSED = (r"model\.(encoder|decoder)\.version",)


def canonical_name(name: str) -> str:
    """With the prefix that a bare model's file lacks."""
    return f"model.{name}" if re.match(r"(shared|encoder|decoder)\.", name) else name


def tied_by_default(model_type: str) -> bool:
    """Always."""
    return True


# --------------------------------------------------------------------------------------------
# config.json
# --------------------------------------------------------------------------------------------
OPTIONS = {
    "bart": Options(
        read=(
            *("model_type", "vocab_size", "d_model", "encoder_layers", "decoder_layers"),
            *("encoder_ffn_dim", "decoder_ffn_dim"),
            *("encoder_attention_heads", "decoder_attention_heads"),
            *("max_position_embeddings", "activation_function", "scale_embedding"),
            *("dropout", "attention_dropout", "activation_dropout", "classifier_dropout"),
            *("pad_token_id", "eos_token_id", "decoder_start_token_id", "tie_word_embeddings"),
            *("id2label", "num_labels"),
        ),
        required={
            "is_encoder_decoder": (True, None),
            "is_decoder": (False, None),
            "encoder_layerdrop": (0, None),
            "decoder_layerdrop": (0, None),
            # Of the first files, which described BART's relatives too.
            "normalize_before": (False,),
            "normalize_embedding": (True,),
            "add_final_layer_norm": (False,),
            "add_bias_logits": (False,),
            "static_position_embeddings": (False,),
            "extra_pos_embeddings": (2,),
        },
        # transformers reads encoder_layers under this name too, and another rate than this one.
        harmless=("num_hidden_layers", "classif_dropout"),
    )
}


def _of_both_stacks(fields: dict[str, Any], name: str) -> int:
    encoder, decoder = fields[f"encoder_{name}"], fields[f"decoder_{name}"]
    if encoder != decoder:
        raise InputError(
            f"encoder_{name} {encoder} and decoder_{name} {decoder} are not supported; they must "
            "be equal"
        )
    return encoder


def config_from_hugging_face(fields: dict[str, Any], names: Collection[str]) -> Config:
    """The configuration that a ``config.json`` describes.

    Args:
      names: of the checkpoint's tensors. A file of the bare BartModel gives a model with its head,
        as in transformers: it is the embedding.
    """
    OPTIONS["bart"].check(fields)
    classifies = CLASSIFIERS[0] in names
    heads, d_ff = (_of_both_stacks(fields, name) for name in ("attention_heads", "ffn_dim"))
    sizes = (fields["d_model"], d_ff, heads, fields["encoder_layers"], fields["decoder_layers"])
    options.head_width(fields, "d_model", "encoder_attention_heads")
    dropout = fields.get("dropout", 0.1)
    rates = ("attention_dropout", "activation_dropout", "classifier_dropout")
    eos_id, extra = options.eos_ids(fields.get("eos_token_id", 2))
    return _config(
        sizes,
        vocab_size=fields["vocab_size"],
        max_positions=fields.get("max_position_embeddings", 1024),
        activation=options.read_activation(
            "activation_function", fields.get("activation_function", "gelu")
        ),
        embedding_scale=fields["d_model"] ** 0.5 if fields.get("scale_embedding") else 1.0,
        lm_head=not classifies,
        tied_head=not classifies and HEAD not in names,
        head_bias=not classifies and _HEAD_BIAS in names,
        num_labels=options.count_labels(fields, default=3) if classifies else 0,
        pad_id=fields.get("pad_token_id", 1),
        eos_id=eos_id,
        extra_eos_ids=extra,
        decoder_start_id=fields.get("decoder_start_token_id", 2),
        dropout=dropout,
        **{rate: options.rate_beside(fields.get(rate, 0.0), dropout) for rate in rates},
    )


def config_to_hugging_face(config: Config) -> dict[str, Any]:
    """The ``config.json`` from which transformers, of version 4 or 5, rebuilds the same model."""
    head = "SequenceClassification" if config.num_labels else "ConditionalGeneration"
    rates = ("attention_dropout", "activation_dropout", "classifier_dropout")
    fields = {
        "model_type": config.family,
        "architectures": [f"BartFor{head}"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "max_position_embeddings": config.max_positions,
        "activation_function": options.write_activation(config.activation),
        "scale_embedding": config.embedding_scale != 1,
        "dropout": config.dropout,
        "pad_token_id": config.pad_id,
        "eos_token_id": options.write_eos_ids(config.eos_id, config.extra_eos_ids),
        "decoder_start_token_id": config.decoder_start_id,
        "tie_word_embeddings": config.tied_head or not config.lm_head,
    }
    for stack in ("encoder", "decoder"):
        fields[f"{stack}_ffn_dim"] = config.d_ff
        fields[f"{stack}_attention_heads"] = config.num_heads
    for rate in rates:
        own = getattr(config, rate)
        fields[rate] = config.dropout if own is None else own
    return fields | ({"num_labels": config.num_labels} if config.num_labels else {})
