"""Ensembles of adapters of one task, run in one pass.

Lester et al. 2021, section 6: several prompts trained for one task share the frozen model, so that
an ensemble is the batch with every input repeated once for each prompt, not several models. Here
the members are a bank's adapters, of any method::

    params = merge(backbone.params, bank(five_prompts))
    scores = ensemble_scores(backbone, params, batch, range(5), combine="majority")
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import scoring
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.transformer import Batch
from peft_jax.tree import Params

Combine = Literal["mean", "majority"]
Score = Callable[[Backbone, Params, Batch], jax.Array]


def ensemble_scores(
    backbone: Backbone,
    params: Params,
    batch: Batch,
    members: Any,
    *,
    combine: Combine = "mean",
    score: Score = scoring.score_choices,
) -> jax.Array:
    """Scores of all choices of every example by several adapters together, in one forward pass.

    Args:
      backbone: whose ``params``, merged with a bank, do the scoring.
      params: merged with ``bank(...)``; an argument, never a constant, where this is compiled.
      batch: what ``score`` reads, without ``task_ids``.
      members: the adapters' indices in the bank: [M] for every input, or [B, M] int32, an ensemble
        of its own for each input (such as five prompts for each of several tasks); -1 is the
        backbone without an adapter.
      combine: how members agree, see :func:`combine_scores`.
      score: (backbone, params, batch) -> [B, C] log-probabilities, -inf where no choice is:
        ``score_choices``, ``score_labels``, or either with options through ``functools.partial``.

    Returns:
      [B, C] float32, -inf where no choice is; the highest is the prediction.

    Raises:
      InputError: no member, another number of rows than the batch, ``task_ids`` in the batch.
    """
    if "task_ids" in batch:
        raise InputError("task_ids: an ensemble's batch says its adapters as members")
    _check_combine(combine)
    rows = len(next(iter(batch.values())))
    ids = jnp.asarray(np.asarray(members) if isinstance(members, Sequence | range) else members)
    if ids.ndim not in (1, 2) or not ids.shape[-1] or (ids.ndim == 2 and len(ids) != rows):
        raise InputError(
            f"members of shape {ids.shape} must be [M] or, for {rows} inputs, [{rows}, M], with at "
            "least one adapter"
        )
    count = ids.shape[-1]
    ids = jnp.broadcast_to(ids, (rows, count)).astype(jnp.int32)
    # The copies of an input stand together, as the sequences of an input do everywhere.
    repeated = {name: jnp.repeat(jnp.asarray(x), count, axis=0) for name, x in batch.items()}
    scores = score(backbone, params, repeated | {"task_ids": ids.reshape(-1)})
    return combine_scores(scores.reshape(rows, count, -1), combine)


def combine_scores(scores: jax.Array, combine: Combine = "mean") -> jax.Array:
    """The scores of M members as one.

    Args:
      scores: [B, M, C] log-probabilities, -inf where no choice is.
      combine: "mean": the log of the mean over members of each one's probability among the choices
        (the softmax of its scores). "majority": the number of members whose best choice it is
        (Lester et al. 2021); a tie goes to the choice of higher mean probability, which is added
        to the votes after halving, and an equal one to the first.

    Returns:
      [B, C] float32, -inf where no choice is.
    """
    _check_combine(combine)
    exists = jnp.isfinite(scores[:, 0])
    # A row without choices, which fills up a last batch, keeps numbers that can be computed with.
    safe = jnp.where(exists.any(-1)[:, None, None], scores.astype(jnp.float32), 0.0)
    probability = jax.nn.softmax(safe, axis=-1).mean(axis=1)
    if combine == "mean":
        return jnp.where(exists, jnp.log(probability), -jnp.inf)
    votes = jax.nn.one_hot(jnp.argmax(safe, axis=-1), scores.shape[-1]).sum(axis=1)
    return jnp.where(exists, votes + probability / 2, -jnp.inf)


def vote_texts(texts: Sequence[Sequence[str]]) -> list[str]:
    """The text that most members wrote for each input.

    Args:
      texts: one list of B texts for each member.

    Returns:
      [B] texts; of a tie the one that stands first among the members.

    Raises:
      InputError: no member, or members with different numbers of texts.
    """
    if not texts or len({len(member) for member in texts}) > 1:
        raise InputError(
            f"an ensemble of {len(texts)} members with {[len(member) for member in texts]} texts: "
            "give as many texts of each of them"
        )
    # Counter keeps the order in which texts first came, and max the first of the highest.
    return [
        max(collections.Counter(answers).items(), key=lambda item: item[1])[0]
        for answers in zip(*texts, strict=True)
    ]


def _check_combine(combine: str) -> None:
    if combine not in get_args(Combine):
        raise InputError(f"combine {combine!r} is unknown; one of {', '.join(get_args(Combine))}")
