"""What is minimised: one objective for every way in which a model answers.

An objective's pieces add up: over microbatches, over devices under pmap, over a padded last batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from peft_jax import losses, scoring, transformer
from peft_jax.losses import Sums
from peft_jax.transformer import Batch, Config
from peft_jax.tree import Params

Counts = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Objective(NamedTuple):
    """A loss whose pieces add up.

    Attributes:
      counts: (config, batch) -> what each part of the loss is divided by, known before any forward
        pass.
      value: (config, params, batch, key, counts) -> (loss, metrics); with the counts of a larger
        batch, the losses, metrics and gradients of its pieces sum to those of the whole.
    """

    counts: Callable[[Config, Batch], Counts]
    value: Callable[[Config, Params, Batch, jax.Array | None, Counts], tuple[jax.Array, Metrics]]


def tfew_objective(
    unlikelihood: float = 1.0,
    length_normalized: float = 1.0,
    length_normalization: float = 1.0,
    variant: str = "paper",
    memory_budget: int = scoring.MEMORY_BUDGET,
) -> Objective:
    """L_LM + unlikelihood L_UL + length_normalized L_LN on ``choices`` (see ``losses.tfew_loss``).

    For models that generate: encoder-decoder, or decoder-only. Batches: ``encoder_input_tokens``
    [B, S], ``choices`` [B, C, T], ``choice_mask`` [B, C], ``label`` [B], and optionally ``weight``
    [B].
    """

    def counts(config: Config, batch: Batch) -> Counts:
        return losses.tfew_counts(
            batch["choices"],
            batch["choice_mask"],
            batch["label"],
            batch.get("weight"),
            pad_id=config.pad_id,
        )

    def value(config, params, batch, key, counts):
        log_probs = scoring.choice_log_probs(
            config, params, batch, key, memory_budget=memory_budget
        )
        return losses.tfew_loss(
            log_probs,
            batch["choices"],
            batch["choice_mask"],
            batch["label"],
            weight=batch.get("weight"),
            unlikelihood=unlikelihood,
            length_normalized=length_normalized,
            length_normalization=length_normalization,
            variant=variant,
            counts=counts,
            pad_id=config.pad_id,
        )

    return Objective(counts, value)


def lm_objective(
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    memory_budget: int = scoring.MEMORY_BUDGET,
) -> Objective:
    """Cross-entropy of text-to-text batches (see ``losses.sequence_loss``).

    Logits that take more than the budget, in bytes on one device, are made in parts.

    Batches: seqio's ``decoder_input_tokens``, ``decoder_target_tokens`` and, optionally,
    ``decoder_loss_weights`` [B, T], with ``encoder_input_tokens`` for a model that has an encoder.
    A decoder-only model is trained on its targets alone where the weights are 0 at the prompt.
    """

    def weights(config: Config, batch: Batch) -> jax.Array:
        given = batch.get("decoder_loss_weights")
        if given is None:
            return losses.token_weights(batch["decoder_target_tokens"], pad_id=config.pad_id)
        return given

    def counts(config: Config, batch: Batch) -> Counts:
        return {"tokens": jnp.sum(weights(config, batch).astype(jnp.float32))}

    def value(config, params, batch, key, counts):
        params = transformer.for_tasks(params, batch)
        hidden, head_key = transformer.hidden_states(config, params, batch, key)
        scores = scoring.score_tokens(
            config,
            params,
            hidden,
            batch["decoder_target_tokens"],
            head_key,
            mean=bool(label_smoothing),
            memory_budget=memory_budget,
        )
        sums = losses.scored_sums(
            scores,
            weights(config, batch),
            vocabulary=config.vocab_size,
            z_loss=z_loss,
            label_smoothing=label_smoothing,
        )
        metrics = {name: each.over(counts["tokens"]) for name, each in sums.items()}
        return metrics["loss"], metrics

    return Objective(counts, value)


def _examples(config: Config, batch: Batch) -> Counts:
    weight = batch.get("weight")
    rows = len(batch["encoder_input_tokens"])
    return {"examples": jnp.float32(rows) if weight is None else jnp.sum(weight, dtype=jnp.float32)}


def _weight(batch: Batch) -> jax.Array:
    given = batch.get("weight")
    rows = len(batch["encoder_input_tokens"])
    return jnp.ones(rows, jnp.float32) if given is None else given.astype(jnp.float32)


def _ranked(scores: jax.Array, batch: Batch, mask: jax.Array, count: jax.Array):
    """Cross-entropy of the softmax over scores [B, C], and the accuracy."""
    label = batch["label"]
    weight = _weight(batch)
    loss = losses.length_normalized_sums(scores, label, mask, weight).over(count)
    right = jnp.argmax(jnp.where(mask, scores, -jnp.inf), axis=1) == label
    accuracy = Sums(jnp.sum(right * weight), count).over(count)
    return loss, {"loss": loss, "accuracy": accuracy}


def head_objective() -> Objective:
    """Cross-entropy of a classification head (see ``transformer.classify``), mean over examples.

    Batches: ``encoder_input_tokens`` [B, S], ``label`` [B], and optionally ``encoder_mask``,
    ``encoder_token_types`` and ``weight`` [B].
    """

    def value(config, params, batch, key, counts):
        logits = transformer.classify(config, params, batch, key)
        return _ranked(logits, batch, jnp.ones(logits.shape, bool), counts["examples"])

    return Objective(_examples, value)


def regression_objective() -> Objective:
    """Mean squared error of a head with one output.

    Batches: as for :func:`head_objective`, with ``target`` [B] float32 in place of ``label``.
    """

    def value(config, params, batch, key, counts):
        outputs = transformer.classify(config, params, batch, key)[:, 0]
        error = jnp.square(outputs - batch["target"].astype(jnp.float32))
        loss = Sums(jnp.sum(error * _weight(batch)), counts["examples"]).over(counts["examples"])
        return loss, {"loss": loss}

    return Objective(_examples, value)


def verbalizer_objective(mask_id: int) -> Objective:
    """Cross-entropy over the answers' tokens at the mask of a masked-LM encoder.

    Schick & Schuetze 2021 (PET), section 3.1: the softmax runs over the answers alone.

    Batches: ``encoder_input_tokens`` [B, S] with one ``mask_id`` a row, ``choices`` [B, C, 1],
    ``choice_mask`` [B, C], ``label`` [B], and optionally ``weight`` [B].
    """

    def value(config, params, batch, key, counts):
        scores = scoring.verbalizer_log_probs(config, params, batch, mask_id, key)
        return _ranked(scores, batch, batch["choice_mask"], counts["examples"])

    return Objective(_examples, value)


def trained_verbalizer_objective(mask_id: int | None = None) -> Objective:
    """Cross-entropy over the classes of a verbaliser that a method trains.

    Hambardzumyan et al. 2021 (WARP), section 3.1.

    Batches: ``encoder_input_tokens`` [B, S], of an encoder with one ``mask_id`` a row, ``label``
    [B], ``choice_mask`` [B, C], which classes the row has, and optionally ``weight`` [B].
    """

    def value(config, params, batch, key, counts):
        scores = scoring.class_logits(config, params, batch, mask_id, key)
        return _ranked(scores, batch, batch["choice_mask"], counts["examples"])

    return Objective(_examples, value)
