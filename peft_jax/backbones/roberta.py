"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020): a BERT that counts its tokens.

Its positions are numbers of tokens that are no padding, behind as many rows as the padding's own
number says; its classifier has a layer of its own in the pooler's place.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from peft_jax.backbones import bert, options
from peft_jax.backbones.names import Rule
from peft_jax.errors import InputError
from peft_jax.transformer import Config

_SIZES = {
    "roberta_base": ("roberta", 50265, (768, 3072, 12, 12)),
    "roberta_large": ("roberta", 50265, (1024, 4096, 16, 24)),
    "distilroberta_base": ("roberta", 50265, (768, 3072, 12, 6)),
    "xlm_roberta_base": ("xlm-roberta", 250002, (768, 3072, 12, 12)),
    "xlm_roberta_large": ("xlm-roberta", 250002, (1024, 4096, 16, 24)),
}


def _config(pad_id: int = 1, **fields: Any) -> Config:
    return bert.encoder_config(
        pad_id=pad_id,
        position_offset=pad_id + 1,
        count_positions=True,
        classifier_dense=True,
        **fields,
    )


MODEL_TYPES = ("roberta", "xlm-roberta")

CONFIGS: dict[str, Config] = {
    name: _config(
        family=family,
        vocab_size=vocabulary,
        sizes=sizes,
        token_types=1,
        norm_epsilon=1e-5,
        eos_id=2,
        **bert.MASKED_LM,
    )
    for name, (family, vocabulary, sizes) in _SIZES.items()
}
"""roberta_base, roberta_large, distilroberta_base, xlm_roberta_base and xlm_roberta_large."""


# --------------------------------------------------------------------------------------------
# Names in a Hugging Face checkpoint
# --------------------------------------------------------------------------------------------
def hugging_face_rules(config: Config) -> list[Rule]:
    """Our paths against transformers' names, for reading and for writing."""
    rules = bert.encoder_rules(config, "roberta")
    if config.lm_head:
        rules += bert.linear("head_transform", "lm_head.dense")
        rules += bert.norm("head_norm", "lm_head.layer_norm")
        rules.append(Rule("lm_head/bias", "lm_head.bias"))
    if config.num_labels:
        rules += bert.linear("classifier/dense", "classifier.dense")
        rules += bert.linear("classifier/out", "classifier.out_proj")
    return rules


EMBEDDING, HEAD = "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"

CLASSIFIERS = ("classifier.out_proj.weight",)

ALIASES = {"lm_head.decoder.bias": "lm_head.bias"}

UNUSED = (r"roberta\.embeddings\.(position|token_type)_ids",)


def canonical_name(name: str) -> str:
    """With the prefix that a bare model's file lacks."""
    return bert.complete_name(name, "roberta")


def tied_by_default(model_type: str) -> bool:
    """Always."""
    return True


# --------------------------------------------------------------------------------------------
# config.json
# --------------------------------------------------------------------------------------------
OPTIONS = dict.fromkeys(MODEL_TYPES, bert.OPTIONS["bert"])


def config_from_hugging_face(fields: dict[str, Any], names: Collection[str]) -> Config:
    """The configuration that a ``config.json`` describes, with the parts that the file has."""
    OPTIONS[fields["model_type"]].check(fields)
    read = bert.read_encoder_fields({"eos_token_id": 2} | fields)
    masked_lm = any(name.startswith("lm_head.") for name in names)
    if masked_lm and read["activation"] != "gelu":
        raise InputError(
            f"hidden_act {fields['hidden_act']!r} is not supported with a masked-LM head, whose "
            "own activation is always 'gelu'"
        )
    pad_id = fields.get("pad_token_id", 1)
    return _config(
        pad_id,
        **read,
        **bert.read_head(fields, names, masked_lm, HEAD),
        max_positions=fields.get("max_position_embeddings", 512) - pad_id - 1,
        pooler="roberta.pooler.dense.weight" in names,
        num_labels=options.count_labels(fields) if CLASSIFIERS[0] in names else 0,
    )


def config_to_hugging_face(config: Config) -> dict[str, Any]:
    """The ``config.json`` from which transformers, of version 4 or 5, rebuilds the same model."""
    name = "XLMRoberta" if config.family == "xlm-roberta" else "Roberta"
    return {"architectures": [bert.architecture(config, name)]} | bert.write_encoder_fields(config)
