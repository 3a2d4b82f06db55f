"""Tokens of the texts and words that a method starts from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError

if TYPE_CHECKING:
    from peft_jax.tokenizer import Tokenizer


def token_ids(
    texts: Sequence[str], backbone: Backbone, what: str = "text", *, within: bool = False
) -> list[np.ndarray]:
    """Each text's tokens [t] int32, without special ones, by the backbone's own vocabulary.

    Args:
      what: the word that an error uses for one of them.
      within: as they are within a text, where byte-level vocabularies join a space to a word.

    Raises:
      InputError: the backbone has no vocabulary, or a text has no tokens or markers in it.
    """
    if backbone.vocabulary is None:
        raise InputError(
            f"backbone {backbone.name!r} has no vocabulary: no tokens of the {what} {texts[0]!r}"
        )
    from peft_jax.tokenizer import check_fits, load_tokenizer

    tokenizer = load_tokenizer(backbone.vocabulary)
    encode = functools.partial(_within_text, tokenizer) if within else tokenizer.encode
    encoded = [encode(text) for text in texts]
    for given, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise InputError(f"{what} {given!r} has no tokens to start from")
        check_fits(ids, backbone.config.vocab_size, f"{what} {given!r}")
    return [np.asarray(ids, np.int32) for ids in encoded]


def _within_text(tokenizer: Tokenizer, text: str) -> list[int]:
    front = tokenizer.encode("a")
    joined = tokenizer.encode(f"a {text}")
    return joined[len(front) :] if joined[: len(front)] == front else tokenizer.encode(text)


def read_embedding(backbone: Backbone) -> jax.Array:
    """The embedding [V, D] as a layer reads it: Gemma and BART scale what they look up."""
    embedding = backbone.params["token_embedder"]["embedding"]
    return embedding * jnp.asarray(backbone.config.embedding_scale, embedding.dtype)


def drawn_rows(
    key: jax.Array, backbone: Backbone, length: int, vocabulary_range: Sequence[int]
) -> jax.Array:
    """Embeddings [length, D] float32 of tokens drawn from a range of ids, first and one past last.

    Without replacement, unless there are more rows than tokens.

    Raises:
      InputError: no token of the vocabulary is in the range.
    """
    embedding = read_embedding(backbone)
    low, high = vocabulary_range[0], min(vocabulary_range[1], embedding.shape[0])
    if not 0 <= low < high:
        raise InputError(
            f"vocabulary_range {tuple(vocabulary_range)} is empty in a vocabulary of "
            f"{embedding.shape[0]}"
        )
    ids = jax.random.choice(key, high - low, (length,), replace=length > high - low) + low
    return embedding[ids].astype(jnp.float32)
