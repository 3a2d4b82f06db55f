"""Rank classification: the log-probability of every answer choice, each input encoded once.

A choice's score is its log-probability given the input, divided by its length as T-Few does
(Brown et al. 2020, section 2.4; Liu et al. 2022, section 3.2) or summed as T0 does. The choices of
an example share its encoder states and cross-attention keys and values, and where all of them
together would not fit into a memory budget they are run in equal parts. Models that do not generate
answer through a classification head, or with one token in the place of a mask.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from peft_jax import layers, losses, transformer
from peft_jax.backbones.base import Backbone
from peft_jax.constraints import BATCH, share
from peft_jax.errors import InputError
from peft_jax.transformer import Batch, Config
from peft_jax.tree import Params

MEMORY_BUDGET = 1 << 30
"""Bytes that a decoder layer, and that the logits may take on one device while answers are scored,
where a caller names no other budget."""


def choice_log_probs(
    config: Config,
    params: Params,
    batch: Batch,
    key: jax.Array | None = None,
    *,
    memory_budget: int = MEMORY_BUDGET,
) -> jax.Array:
    """Log-probability of every token of every choice.

    Args:
      batch: ``encoder_input_tokens`` [B, S] (of a decoder-only model the prompt, which its decoder
        reads once for all choices); ``choices`` [B, C, T] int32, each ending in EOS and padded with
        the pad id; ``choice_mask`` [B, C] is not read here.
      key: for dropout; None means evaluation.
      memory_budget: bytes for the decoder's work at one time on one device, and as many for its
        logits; the choices are run in as few equal parts as keep within it.
    Returns:
      [B, C, T] float32; what stands at padding has no meaning (mask with ``choices != pad``).
    """
    params = transformer.for_tasks(params, batch)
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    choices = batch["choices"]
    b, c, t = choices.shape
    parts = choice_parts(config, b, c, t, memory_budget)
    # Several parts share cross-attention keys, which the layers would compute in each of them.
    context = transformer.context(config, params, batch, encoder_key, stack_cross=parts > 1)
    if parts == 1:
        return _score_part(config, params, context, choices, decoder_key, memory_budget)
    size = -(-c // parts)
    padded = jnp.pad(
        choices, ((0, 0), (0, parts * size - c), (0, 0)), constant_values=config.pad_id
    )
    padded = jnp.moveaxis(padded.reshape(b, parts, size, t), 1, 0)
    keys = None if decoder_key is None else jax.random.split(decoder_key, parts)

    # A gradient through the parts keeps their inputs only and runs each part again.
    @jax.checkpoint
    def part(arguments):
        piece, piece_key = arguments
        return _score_part(config, params, context, piece, piece_key, memory_budget)

    scored = jnp.moveaxis(jax.lax.map(part, (padded, keys)), 0, 1)
    return scored.reshape(b, parts * size, t)[:, :c]


def _score_part(config, params, context, choices, key, memory_budget) -> jax.Array:
    b, c, t = choices.shape
    targets = choices.reshape(b * c, t)
    inputs = transformer.shift_right(config, targets, context.start)
    hidden = transformer.decode(config, params, context, inputs, key)
    scores = score_tokens(
        config, params, hidden, targets, layers.site_key(key, 3), memory_budget=memory_budget
    )
    return scores.log_probs.reshape(b, c, t)


def choice_parts(config: Config, b: int, c: int, t: int, memory_budget: int) -> int:
    """Into how many parts C choices of T tokens are split, for B inputs and a budget in bytes.

    A token costs the widest activations of one decoder layer. What a device holds counts: its rows
    of the batch, and its heads and hidden units. Logits have a budget of their own, as large
    (:func:`token_parts`).
    """
    inner, hidden = share(config.inner, "model"), share(config.d_ff, "model")
    width = 4 * (2 * hidden + 4 * inner + 4 * config.d_model)
    per_choice = share(b, *BATCH) * t * width
    together = max(1, int(memory_budget // per_choice))
    parts = math.ceil(c / min(together, c))
    return parts


# --------------------------------------------------------------------------------------------
# Tokens
# --------------------------------------------------------------------------------------------
def score_tokens(
    config: Config,
    params: Params,
    hidden: jax.Array,
    targets: jax.Array,
    key: jax.Array | None = None,
    *,
    mean: bool = False,
    memory_budget: int = MEMORY_BUDGET,
) -> losses.TokenScores:
    """What a loss needs of the logits of hidden states, a part of the logits at a time.

    The vocabulary is wide: [N, T, V] in float32 may be larger than all else that a step holds.
    Where it is more than the budget, T is cut into equal parts, of which one has its logits at a
    time, and again in the backward pass; values and gradients are those of the whole.

    Args:
      params: the backbone's tree, merged with a method's leaves, of one task (``for_tasks``).
      hidden: [N, T, D], what ``transformer.head`` reads.
      targets: [N, T] token ids.
      key: for LoRA's dropout on the head.
      mean: whether the mean logit is needed, as label smoothing does.
      memory_budget: bytes for the logits, in all their forms, on one device.
    Returns:
      Arrays [N, T] float32.
    """
    n, t, _ = hidden.shape
    parts = token_parts(config, n, t, memory_budget)

    def score(hidden, targets, key):
        logits = transformer.head(config, params, hidden, key)
        return losses.token_scores(logits, targets, mean=mean)

    if parts == 1:
        return score(hidden, targets, key)
    size = -(-t // parts)

    def cut(x):
        padded = jnp.pad(x, ((0, 0), (0, parts * size - t), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(n, parts, size, *x.shape[2:]), 1, 0)

    keys = None if key is None else jax.random.split(key, parts)
    # A gradient through the parts keeps their hidden states only and makes the logits again.
    part = jax.checkpoint(lambda xs: score(*xs), prevent_cse=False)
    scored = jax.lax.map(part, (cut(hidden), cut(targets), keys))
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(n, parts * size)[:, :t],
        scored,
    )


def token_parts(config: Config, n: int, t: int, memory_budget: int) -> int:
    """Into how many parts T tokens of N sequences are cut for their logits: at most T.

    A token costs its logits in float32 three times: themselves, their exponentials on the way to
    the normaliser, and their gradients.
    """
    per_place = share(n, *BATCH) * 12 * share(config.vocab_size, "model")
    together = min(t, max(1, int(memory_budget // per_place)))
    return math.ceil(t / together)


def score_choices(
    backbone: Backbone,
    params: Params,
    batch: Batch,
    *,
    length_normalization: float = 1.0,
    memory_budget: int = MEMORY_BUDGET,
) -> jax.Array:
    """Scores of all choices of every example; the highest is the prediction.

    Args:
      backbone: whose ``params``, alone or merged with a method's leaves, do the scoring.
      batch: ``encoder_input_tokens`` [B, S], ``choices`` [B, C, T] and ``choice_mask`` [B, C],
        true where a choice exists (examples may have different numbers of them).
      length_normalization: the summed log-probability is divided by length ** this; 1 is the mean
        over tokens (T-Few), 0 the sum (T0). EOS counts as a token.
    Returns:
      [B, C] float32 log-probabilities; -inf where no choice is.
    """
    log_probs = choice_log_probs(backbone.config, params, batch, memory_budget=memory_budget)
    scores = losses.choice_scores(
        log_probs,
        batch["choices"],
        length_normalization=length_normalization,
        pad_id=backbone.config.pad_id,
    )
    return jnp.where(batch["choice_mask"], scores, -jnp.inf)


def score_labels(backbone: Backbone, params: Params, batch: Batch) -> jax.Array:
    """Log-probabilities [B, C] float32 of the classes of a classification head.

    Args:
      params: with the leaves of a head, see ``transformer.classify``.
      batch: ``encoder_input_tokens`` [B, S].
    """
    return jax.nn.log_softmax(transformer.classify(backbone.config, params, batch), axis=-1)


def verbalizer_log_probs(
    config: Config, params: Params, batch: Batch, mask_id: int, key: jax.Array | None = None
) -> jax.Array:
    """Log-probability of every answer's one token in the place of the mask: [B, C] float32.

    Args:
      batch: ``encoder_input_tokens`` [B, S], with ``mask_id`` once in each row; ``choices``
        [B, C, 1].
      mask_id: the mask token of a masked-LM encoder.
      key: for dropout; None means evaluation.
    """
    choices = batch["choices"]
    if choices.shape[-1] != 1:
        raise InputError(
            f"choices have {choices.shape[-1]} token places; a verbaliser is one token, as the mask"
        )
    params = transformer.for_tasks(params, batch)
    encoder_key, head_key = (None, None) if key is None else jax.random.split(key)
    at_mask = transformer.state_at_mask(config, params, batch, mask_id, encoder_key)
    log_probs = jax.nn.log_softmax(transformer.head(config, params, at_mask, head_key), axis=-1)
    return jnp.take_along_axis(log_probs, choices[..., 0], axis=-1)


def score_verbalizers(backbone: Backbone, params: Params, batch: Batch, mask_id: int) -> jax.Array:
    """:func:`verbalizer_log_probs` with -inf where no choice is: [B, C]."""
    scores = verbalizer_log_probs(backbone.config, params, batch, mask_id)
    return jnp.where(batch["choice_mask"], scores, -jnp.inf)


def class_logits(
    config: Config,
    params: Params,
    batch: Batch,
    mask_id: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """``transformer.verbalize``, [B, C] float32, for batches whose rows have C choices.

    Raises:
      InputError: the verbaliser has another number of classes.
    """
    logits = transformer.verbalize(config, params, batch, mask_id, key)
    classes, choices = logits.shape[1], batch["choice_mask"].shape[1]
    if classes != choices:
        raise InputError(
            f"the verbaliser has {classes} classes and the task {choices} answers; train it with "
            f"labels={choices}"
        )
    return logits


def score_classes(
    backbone: Backbone, params: Params, batch: Batch, mask_id: int | None = None
) -> jax.Array:
    """Log-probabilities [B, C] float32 of a trained verbaliser's classes; -inf where no choice is.

    Args:
      params: with the leaves of ``methods.warp``.
      batch: ``encoder_input_tokens`` [B, S] and ``choice_mask`` [B, C].
      mask_id: the mask token of a masked-LM encoder.
    """
    logits = class_logits(backbone.config, params, batch, mask_id)
    return jax.nn.log_softmax(jnp.where(batch["choice_mask"], logits, -jnp.inf), axis=-1)


def predictions(scores: Any) -> jax.Array:
    """Index [B] of the best choice."""
    return jnp.argmax(scores, axis=-1)
