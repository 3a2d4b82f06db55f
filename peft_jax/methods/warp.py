"""WARP: trained prompt embeddings and one trained vector per class (Hambardzumyan et al. 2021)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, make_method
from peft_jax.methods.prompt_places import Placement, check_placement, placed, row_name
from peft_jax.methods.texts import token_ids
from peft_jax.tree import Params


def warp(
    length: int = 20,
    labels: int = 2,
    placement: Placement = "front",
    *,
    words: tuple[str, ...] = (),
    init: Literal["table", "mask", "normal"] = "table",
    std: float = 1.0,
    bias: bool = True,
) -> Method:
    """p(class | x) = softmax_c(v_c . f(x) + b_c), with f(x) the state that predicts the answer.

    Hambardzumyan et al. 2021 (Word-level Adversarial ReProgramming), section 3.1: K prompt
    embeddings in the input and a verbaliser vector for each of C classes, (K + C) D parameters,
    with the biases of the public code C more. In a masked language model f(x) is the state at the
    mask, behind its head's own layer; elsewhere the one that predicts the answer's first token
    (``transformer.verbalize``). The frozen head is not read.

    Args:
      length: number of prompt rows, K.
      labels: classes, C.
      placement: "front" of the input; "after_first", behind its first token ([CLS]); "suffix",
        behind its last; or "markers", where a template says ``<soft>`` or ``<soft 3>``, such as
        around the mask and between the two sentences (the paper's figure 2).
      words: one for each class, whose output embedding (and bias) its vector starts from; of
        several tokens the first. Without them vectors are drawn from N(0, 0.02^2).
      init: of the prompt: "table", normal with the mean and the deviation of the embedding's
        entries (the public code's default); "mask", the mask token's embedding; "normal",
        N(0, std^2).
      std: of init "normal".
      bias: whether classes have biases.
    """
    for name, value in (("length", length), ("labels", labels)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} {value!r} must be a whole number of at least 1")
    check_placement(placement)
    if isinstance(words, str) or (words and len(words) != labels):
        raise InputError(f"words {words!r} must be a list of one for each of the {labels} labels")
    if init not in ("table", "mask", "normal"):
        raise InputError(f"init {init!r} is unknown; one of table, mask, normal")
    if not std >= 0:
        raise InputError(f"std {std!r} must be at least 0")
    words = tuple(words)

    def init_tree(key: jax.Array, backbone: Backbone) -> Params:
        rows_key, vectors_key = jax.random.split(key)
        rows = _rows(rows_key, backbone, length, init, std)
        if words:
            verbalizer = _of_words(words, backbone)
        else:
            shape = (backbone.config.d_model, labels)
            kernel = 0.02 * jax.random.normal(vectors_key, shape, jnp.float32)
            verbalizer = {"kernel": kernel, "bias": jnp.zeros(labels, jnp.float32)}
        if not bias:
            del verbalizer["bias"]
        return {
            backbone.config.input_stack: {row_name(placement): rows},
            "verbalizer": verbalizer,
        }

    def bind(stored: Params) -> Params:
        return {
            name: leaves if name == "verbalizer" else placed(leaves[row_name(placement)], placement)
            for name, leaves in stored.items()
        }

    spec = {
        "name": "warp",
        "length": length,
        "labels": labels,
        "placement": placement,
        "words": list(words),
        "init": init,
        "std": std,
        "bias": bias,
    }
    return make_method(init_tree, bind, spec, foldable=False)


def _rows(key: jax.Array, backbone: Backbone, length: int, init: str, std: float) -> jax.Array:
    embedding = backbone.params["token_embedder"]["embedding"]
    scale = backbone.config.embedding_scale
    shape = (length, backbone.config.d_model)
    if init == "mask":
        row = embedding[_mask_id(backbone)].astype(jnp.float32) * scale
        return jnp.broadcast_to(row, shape)
    drawn = jax.random.normal(key, shape, jnp.float32)
    if init == "normal":
        return std * drawn
    entries = embedding.astype(jnp.float32) * scale
    return jnp.mean(entries) + jnp.std(entries) * drawn


def _mask_id(backbone: Backbone) -> int:
    if backbone.vocabulary is None:
        raise InputError(f"backbone {backbone.name!r} has no vocabulary: its mask is not known")
    from peft_jax.tokenizer import load_tokenizer

    mask_id = load_tokenizer(backbone.vocabulary).mask_id
    if mask_id is None:
        raise InputError(
            f"init 'mask': the vocabulary of {backbone.name!r} has no mask token; take 'table'"
        )
    return mask_id


def _of_words(words: tuple[str, ...], backbone: Backbone) -> Params:
    """The head's own columns, as it would score the words: ``kernel`` [D, C] and ``bias`` [C]."""
    config, params = backbone.config, backbone.params
    if not config.lm_head:
        raise InputError(
            f"words: {backbone.name!r} has no language-model head to take their vectors from"
        )
    first = np.asarray([ids[0] for ids in token_ids(words, backbone, "word", within=True)])
    head = params.get("lm_head", {})
    if config.tied_head:
        kernel = params["token_embedder"]["embedding"][first].T
    else:
        kernel = head["kernel"][:, first]
    own = head["bias"][first].astype(jnp.float32) if "bias" in head else jnp.zeros(len(words))
    return {"kernel": kernel.astype(jnp.float32), "bias": own}
