"""Prompt tuning: trained rows in front of the embedded tokens (Lester et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, make_method
from peft_jax.tree import Params

INITS = ("random", "vocabulary", "labels", "text", "file")
WHERE = ("input", "encoder", "decoder", "both")


def prompt_tuning(
    length: int = 20,
    init: str = "vocabulary",
    where: str = "input",
    *,
    labels: Sequence[str] = (),
    text: str = "",
    file: str | Path | None = None,
    vocabulary_range: tuple[int, int] = (0, 5000),
) -> Method:
    """A soft prompt P [length, d_model], read as if its rows were embedded tokens.

    An encoder prompt takes part in relative positions and cross-attention; a decoder prompt stands
    before the start token and its own outputs are dropped. T-Few's baseline has both.

    Args:
      length: number of rows.
      init: where the rows come from (Lester et al., section 3.2). "random": uniform in [-0.5, 0.5];
        "vocabulary": embeddings of tokens drawn without replacement from ``vocabulary_range``;
        "labels": the mean embedding of each class label's tokens (at most ``length`` labels), the
        remaining rows drawn from the vocabulary; "text": the embeddings of a text's tokens,
        repeated or cut to the length;
        "file": a ``.npy`` array [length, d_model].
      where: "input", the stack that reads the input; or by name "encoder", "decoder" or "both"
        (two independent prompts).
      labels, text, file: what the init of that name reads.
      vocabulary_range: first and one past the last token id to draw from. The published
        vocabularies are sorted by frequency; T-Few draws from (3, 5003).
    """
    if length < 1:
        raise InputError(f"length {length} must be at least 1")
    if init not in INITS:
        raise InputError(f"init {init!r} is unknown; one of {', '.join(INITS)}")
    if where not in WHERE:
        raise InputError(f"where {where!r} is unknown; one of {', '.join(WHERE)}")
    given = {"labels": tuple(labels), "text": text, "file": file}
    if init in given and not given[init]:
        raise InputError(f"init {init!r} needs the argument {init}=...")
    if init == "labels" and len(labels) > length:
        raise InputError(f"{len(labels)} labels do not fit a prompt of length {length}")

    def rows(key: jax.Array, backbone: Backbone) -> jax.Array:
        width = backbone.config.d_model
        if init == "random":
            return jax.random.uniform(key, (length, width), jnp.float32, -0.5, 0.5)
        if init == "file":
            return _from_file(Path(str(file)), (length, width))
        # As a layer reads it: Gemma scales what it looks up.
        embedding = backbone.params["token_embedder"]["embedding"]
        embedding = embedding * jnp.asarray(backbone.config.embedding_scale, embedding.dtype)
        drawn = _draw(key, embedding, length, vocabulary_range)
        if init == "vocabulary":
            return drawn
        if init == "labels":
            encoded = _encode(labels, backbone)
            means = [embedding[ids].astype(jnp.float32).mean(0) for ids in encoded]
            return jnp.concatenate([jnp.stack(means), drawn[len(means) :]])
        (ids,) = _encode([text], backbone)
        return embedding[np.resize(ids, length)].astype(jnp.float32)

    def init_tree(key: jax.Array, backbone: Backbone) -> Params:
        stacks = _stacks(where, backbone)
        keys = jax.random.split(key, len(stacks))
        return {s: {"prompt": rows(k, backbone)} for s, k in zip(stacks, keys, strict=True)}

    def bind(stored: Params) -> Params:
        return tree.map_with_path(lambda _, leaf: leaf, stored)

    spec = {
        "name": "prompt_tuning",
        "length": length,
        "init": init,
        "where": where,
        "labels": list(labels),
        "text": text,
        "file": None if file is None else str(file),
        "vocabulary_range": list(vocabulary_range),
    }
    return make_method(init_tree, bind, spec, foldable=False)


def _stacks(where: str, backbone: Backbone) -> tuple[str, ...]:
    if where == "both":
        return ("encoder", "decoder")
    return (backbone.config.input_stack if where == "input" else where,)


def _draw(key, embedding, length: int, vocabulary_range: Sequence[int]) -> jax.Array:
    low, high = vocabulary_range[0], min(vocabulary_range[1], embedding.shape[0])
    if not 0 <= low < high:
        raise InputError(
            f"vocabulary_range {tuple(vocabulary_range)} is empty in a vocabulary of "
            f"{embedding.shape[0]}"
        )
    # More rows than tokens: some must repeat, as in the public implementation.
    ids = jax.random.choice(key, high - low, (length,), replace=length > high - low) + low
    return embedding[ids].astype(jnp.float32)


def _from_file(path: Path, shape: tuple[int, int]) -> jax.Array:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"prompt file {path} cannot be read as .npy: {error}") from None
    if array.shape != shape:
        raise InputError(f"prompt file {path} has shape {array.shape}; wanted {shape}")
    return jnp.asarray(array, jnp.float32)


def _encode(texts: Sequence[str], backbone: Backbone) -> list[np.ndarray]:
    if backbone.vocabulary is None:
        raise InputError(
            f"backbone {backbone.name!r} has no vocabulary to initialise a prompt from text with"
        )
    from peft_jax.tokenizer import check_fits, load_tokenizer

    tokenizer = load_tokenizer(backbone.vocabulary)
    encoded = [tokenizer.encode(text) for text in texts]
    for given, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise InputError(f"text {given!r} has no tokens to start a prompt from")
        check_fits(ids, backbone.config.vocab_size, f"text {given!r}")
    return [np.asarray(ids, np.int32) for ids in encoded]
