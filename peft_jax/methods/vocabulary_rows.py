"""Trainable rows of the token embedding: new or rare words learnt beside a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, make_method
from peft_jax.methods.lazy import Rows
from peft_jax.tree import Params

_MODULE = "token_embedder"


def vocabulary_rows(tokens: str | Sequence[str] = (), ids: Sequence[int] = ()) -> Method:
    """Float32 copies of some tokens' embeddings, which take the backbone's own places.

    The function is unchanged at the start; the count is (number of tokens) x d_model. Where the
    head is tied to the embedding, a trained row is also what predicts its token. The embedding is
    never resized: the rows that a checkpoint keeps in reserve (T5's ``<extra_id_0>``, and its ids
    from 32100 to 32127) can serve new words, and an id beyond them is refused.

    Args:
      tokens: as the vocabulary writes them (``▁yes``), or texts that are a single token.
      ids: rows by number; at least one token or id in all.

    Raises:
      InputError: nothing or something twice is given; by ``init``, a text that is not one token, or
        an id that the embedding has no row for.
    """
    tokens = (tokens,) if isinstance(tokens, str) else tuple(tokens)
    if isinstance(ids, int | str) or not all(_is_id(i) for i in ids):
        raise InputError(f"ids {ids!r} must be a list of token numbers, such as [32000, 32001]")
    ids = tuple(int(i) for i in ids)
    if not tokens and not ids:
        raise InputError("vocabulary_rows needs tokens or ids: nothing would be trained")

    def init(key: jax.Array, backbone: Backbone) -> Params:
        del key  # starts at the backbone
        embedding = backbone.params[_MODULE]["embedding"]
        chosen = _rows(tokens, ids, backbone, len(embedding))
        rows = jnp.asarray(chosen, jnp.int32)
        return {_MODULE: {"rows": embedding[rows].astype(jnp.float32), "fixed": {"ids": rows}}}

    def bind(stored: Params) -> Params:
        held = stored[_MODULE]
        return {_MODULE: {"embedding": Rows(held["fixed"]["ids"], held["rows"])}}

    spec = {"name": "vocabulary_rows", "tokens": list(tokens), "ids": list(ids)}
    return make_method(init, bind, spec, foldable=True)


def _is_id(given: object) -> bool:
    return hasattr(given, "__index__") and not isinstance(given, bool) and int(given) >= 0


def _rows(
    tokens: Sequence[str], ids: Sequence[int], backbone: Backbone, vocabulary: int
) -> list[int]:
    """The ids of all that is named, checked."""
    named = dict(zip(tokens, _ids_of(tokens, backbone), strict=True))
    chosen = [*named.values(), *ids]
    for what, row in [*named.items(), *((f"id {i}", i) for i in ids)]:
        if row >= vocabulary:
            raise InputError(
                f"{what!r}: the embedding has the rows 0 to {vocabulary - 1} and is never "
                f"resized; row {row} is not among them. Give a token that it holds in reserve"
            )
        if chosen.count(row) > 1:
            raise InputError(f"{what!r}: the row {row} is given twice")
    return chosen


def _ids_of(tokens: Sequence[str], backbone: Backbone) -> list[int]:
    if not tokens:
        return []
    if backbone.vocabulary is None:
        raise InputError(
            f"backbone {backbone.name!r} has no vocabulary to look tokens up in; give their ids"
        )
    from peft_jax.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(backbone.vocabulary)
    found = []
    for token in tokens:
        known = tokenizer.token_id(token)
        encoded = tokenizer.encode(token) if known is None else [known]
        if len(encoded) != 1 or (known is None and encoded[0] == tokenizer.unk_id):
            raise InputError(
                f"{token!r} is not a token of this vocabulary: as a text it is {len(encoded)} "
                f"token(s), {', '.join(str(tokenizer.token(i)) for i in encoded)}. A new word "
                "needs a row that the embedding holds in reserve: give its id"
            )
        found += encoded
    return found
