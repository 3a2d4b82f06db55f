"""Generating texts: the input is read once, then one compiled loop writes until every text ends."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import constraints, transformer
from peft_jax.backbones.base import Backbone
from peft_jax.decoding.beam_search import length_factors, search_beams
from peft_jax.decoding.one_by_one import decode_one_by_one
from peft_jax.decoding.options import Decoding
from peft_jax.decoding.processing import Strengths
from peft_jax.decoding.step import Layers, Read, read, separate_layers, without_layers
from peft_jax.decoding.stopping import Stops, cut_text, find_stops
from peft_jax.errors import InputError
from peft_jax.tokenizer import Tokenizer, load_tokenizer
from peft_jax.transformer import Batch, Config
from peft_jax.tree import Params


class Generated(NamedTuple):
    """Texts of B inputs, n = ``Decoding.sequences`` of each.

    Attributes:
      tokens: [B, n, max_length] int32; behind the end stands the backbone's pad_id.
      lengths: [B, n] int32, tokens of each, EOS or what else ended it included.
      scores: [B, n] float32, the mean log-probability of the tokens. Of a beam search: their sum
        by length ** length_penalty, as processed (transformers' sequences_scores), best first; else
        by the model alone, without temperature, penalties or what was forced.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array


def generate(
    backbone: Backbone,
    params: Params,
    batch: Batch,
    decoding: Decoding | None = None,
    key: jax.Array | None = None,
    *,
    tokenizer: Tokenizer | None = None,
) -> Generated:
    """Writes texts: greedily, by sampling, or by beam search.

    Greedy decoding and beam search give the tokens of transformers' generate.

    Args:
      params: the backbone's tree, alone or merged with a method's leaves or a bank. They are
        arguments of the compiled functions: other weights of the same shapes compile nothing. On a
        mesh (``sharding.place``) the texts are written there, and every device has the result.
      batch: ``encoder_input_tokens`` [B, S] and optionally ``encoder_mask`` [B, S]; a decoder-only
        model goes on from them, wherever a row's padding stands. ``task_ids`` [B] with a bank.
      decoding: how; by default greedily, up to 64 tokens.
      key: of the draws, for sampling. The draws of a row depend on the key and its place in the
        batch, not on the other rows.
      tokenizer: for ``Decoding.stop``; by default the backbone's own.

    Raises:
      InputError: the options do not fit the backbone, sampling has no key, or learned positions do
        not reach so far.
    """
    decoding = (Decoding() if decoding is None else decoding).for_backbone(backbone.config)
    if decoding.samples and key is None:
        raise InputError("sampling needs a key of its draws, such as key=jax.random.key(0)")
    stops = _find_stops(backbone, decoding, tokenizer)
    with constraints.on_mesh(constraints.mesh_of(params)):
        return _write(backbone.config, params, batch, decoding, key, stops)


def _write(config: Config, params, batch, decoding: Decoding, key, stops) -> Generated:
    inputs = _prepare(config, params, batch, decoding)
    if decoding.beams > 1:
        return _by_beams(config, decoding, stops, *inputs)
    tokens, lengths, log_probs = decode_one_by_one(
        config,
        _structure(decoding),
        True,
        *inputs,
        _strengths(decoding),
        key if decoding.samples else None,
        stops,
    )
    shape = (-1, decoding.sequences)
    lengths = lengths.reshape(shape)
    return Generated(
        tokens.reshape(*shape, decoding.max_length), lengths, log_probs.reshape(shape) / lengths
    )


def decode_texts(
    written: Generated, config: Config, decoding: Decoding, tokenizer: Tokenizer
) -> list[list[str]]:
    """The texts of B inputs, ``Decoding.sequences`` of each, without what ended them."""
    ends = decoding.for_backbone(config).eos_ids or ()
    lengths = np.asarray(written.lengths).tolist()
    texts = []
    for rows, row_lengths in zip(np.asarray(written.tokens).tolist(), lengths, strict=True):
        kept = [
            [id for id in tokens[:length] if id not in ends]
            for tokens, length in zip(rows, row_lengths, strict=True)
        ]
        decoded = (tokenizer.decode(ids, skip_special=True) for ids in kept)
        texts.append([cut_text(text, decoding.stop).strip() for text in decoded])
    return texts


def greedy(backbone: Backbone, params: Params, batch: Batch, max_length: int = 64) -> jax.Array:
    """The most probable token at every step, up to EOS: [B, max_length] int32, padded behind it.

    ``generate`` says what the arguments are.
    """
    config = backbone.config
    decoding = Decoding(max_length=max_length).for_backbone(config)
    with constraints.on_mesh(constraints.mesh_of(params)):
        inputs = _prepare(config, params, batch, decoding)
        structure, strengths = _structure(decoding), _strengths(decoding)
        return decode_one_by_one(config, structure, False, *inputs, strengths, None, None)[0]


def _by_beams(config, decoding, stops, rest, stack, context) -> Generated:
    found = search_beams(
        config,
        _structure(decoding),
        rest,
        stack,
        context,
        _strengths(decoding),
        length_factors(decoding),
        stops,
    )
    return Generated(*(x[:, : decoding.sequences] for x in found[:3]))


def _prepare(
    config: Config, params: Params, batch: Batch, decoding: Decoding
) -> tuple[Params, Layers, Read]:
    """What the loop reads: parameters beside the layers, the layers, and the input, read."""
    for name in ("encoder_segment_ids", "decoder_segment_ids"):
        if name in batch:
            raise InputError(f"{name}: packed examples cannot be gone on from; give a row to each")
    kept = ("encoder_input_tokens", "encoder_mask", "encoder_token_types")
    inputs = {name: batch[name] for name in kept if name in batch}
    params = transformer.for_tasks(transformer.without_tails(params), batch)
    _check_positions(config, params, inputs, decoding.max_length)
    stack = separate_layers(params)
    context = read(config, params, inputs, stack is not None)
    whole = transformer._promptless(params["decoder"]["layers"]) if stack is None else stack
    return without_layers(params), whole, context


def _check_positions(config: Config, params: Params, batch: Batch, length: int) -> None:
    """Raises InputError where learned positions end before the longest text might."""
    if config.positions != "learned":
        return
    soft = transformer.places_beside_tokens(params, "decoder")
    read = 0
    if config.kind == "decoder":
        tokens, mask = batch["encoder_input_tokens"], batch.get("encoder_mask")
        read = tokens.shape[1]
        given = tokens if mask is None else mask
        if not isinstance(given, jax.core.Tracer) and _is_here(given):
            # On the devices: of several processes none has all rows.
            known = jnp.asarray(tokens != config.pad_id if mask is None else mask)
            read = int(jnp.max(jnp.sum(known, axis=1), initial=0))
    # The last token generated is not read any more; the first that is stands for the start token.
    needed = soft + max(read, 1) + length - 1
    if needed > config.max_positions:
        raise InputError(
            f"max_length {length} behind {read + soft} tokens of input needs {needed} positions, "
            f"but this {config.family} has learned {config.max_positions}; shorten one of them"
        )


def _is_here(x: Any) -> bool:
    """Whether this process can read all of an array."""
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def _structure(decoding: Decoding) -> Decoding:
    """What the compiled program depends on: the numbers of ``_strengths`` made alike."""
    return dataclasses.replace(
        decoding,
        temperature=None if not decoding.samples else 1.0,
        top_p=None,
        length_penalty=1.0,
        early_stopping=decoding.early_stopping is True,
        repetition_penalty=1.0 if decoding.repetition_penalty == 1 else 2.0,
        stop=(),
        stop_tokens=(),
    )


def _strengths(decoding: Decoding) -> Strengths:
    def number(x: float | None, off: float) -> jax.Array | None:
        return None if x is None or x == off else jnp.float32(x)

    return Strengths(
        number(decoding.temperature, 1.0),
        number(decoding.top_p, 1.0),
        number(decoding.repetition_penalty, 1.0),
    )


def _find_stops(
    backbone: Backbone, decoding: Decoding, tokenizer: Tokenizer | None
) -> Stops | None:
    if decoding.stop and tokenizer is None and backbone.vocabulary is not None:
        tokenizer = _tokenizer(backbone.vocabulary)
    used = tokenizer if decoding.stop else None
    vocabulary = backbone.config.vocab_size
    return find_stops(decoding.stop, decoding.stop_tokens, vocabulary, used)


@functools.lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)
