"""How a model answers a task, and what follows from it: its objective and its scores.

======================  ==============================  ==========================================
answer                  models                          a row's prediction
======================  ==============================  ==========================================
``choices``             encoder-decoder, decoder-only   the choice that it would most likely write
``head``                all                             the class of a head that the adapter brings
``verbalizer``          encoders with a masked-LM head  the answer whose one token fits best at
                                                        the mask
``trained_verbalizer``  all that score tokens           the class whose trained vector fits best
                                                        where the answer goes (``methods.warp``)
``text``                encoder-decoder, decoder-only   the text that it writes
======================  ==============================  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

from peft_jax import scoring
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.objectives import (
    Objective,
    head_objective,
    lm_objective,
    tfew_objective,
    trained_verbalizer_objective,
    verbalizer_objective,
)
from peft_jax.transformer import Batch
from peft_jax.tree import Params

Answer = Literal["choices", "head", "verbalizer", "trained_verbalizer", "text"]
Score = Callable[[Backbone, Params, Batch], jax.Array]


def find_answer(
    wanted: str, backbone: Backbone, methods: Sequence[str] = (), *, ranks: bool = True
) -> Answer:
    """The way in which a backbone answers; "auto" is choices, or a head where it cannot write.

    Args:
      methods: names of the methods that are trained: of ``warp``, "auto" is its own verbaliser.
      ranks: whether the task has answer choices; the answers of others are written.

    Raises:
      InputError: the backbone cannot answer so, or the methods do not.
    """
    config = backbone.config
    if wanted == "text" or not ranks:
        return _written(wanted, backbone, methods)
    if "warp" in methods and wanted not in ("auto", "trained_verbalizer"):
        raise InputError(f"answer {wanted!r}: warp answers with the verbaliser that it trains")
    if wanted == "trained_verbalizer" or (wanted == "auto" and "warp" in methods):
        if not config.lm_head:
            raise InputError(
                f"answer 'trained_verbalizer': {backbone.name!r} has no language-model head in its "
                "checkpoint, whose place the class vectors take; take 'head'"
            )
        return "trained_verbalizer"
    if wanted == "auto":
        return "head" if config.kind == "encoder" else "choices"
    if wanted == "choices" and config.kind == "encoder":
        raise InputError(
            f"answer 'choices': {backbone.name!r} is an encoder and cannot write answers; take "
            "'head' or 'verbalizer'"
        )
    if wanted == "verbalizer" and config.kind != "encoder":
        raise InputError(
            f"answer 'verbalizer': {backbone.name!r} has no mask to fill; take 'choices' or 'head'"
        )
    if wanted == "verbalizer" and not config.lm_head:
        raise InputError(
            f"answer 'verbalizer': {backbone.name!r} has no masked-language-model head in its "
            "checkpoint; take 'head'"
        )
    return wanted  # type: ignore[return-value]


def _written(wanted: str, backbone: Backbone, methods: Sequence[str]) -> Answer:
    if wanted not in ("auto", "text"):
        raise InputError(f"answer {wanted!r}: the task has no choices or classes; take 'text'")
    if backbone.config.kind == "encoder":
        raise InputError(f"answer 'text': {backbone.name!r} is an encoder and writes no text")
    if "warp" in methods:
        raise InputError("answer 'text': warp tells classes and writes no text")
    return "text"


def mask_token(backbone: Backbone) -> int:
    """The id of a backbone's mask token."""
    from peft_jax.tokenizer import load_tokenizer

    if backbone.vocabulary is None:
        raise InputError(f"backbone {backbone.name!r} has no vocabulary: its mask is not known")
    mask_id = load_tokenizer(backbone.vocabulary).mask_id
    if mask_id is None:
        raise InputError(f"the vocabulary of {backbone.name!r} has no mask token")
    return mask_id


def _mask_of_encoder(backbone: Backbone) -> int | None:
    return mask_token(backbone) if backbone.config.kind == "encoder" else None


def make_objective(
    answer: Answer,
    backbone: Backbone,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    memory_budget: int = scoring.MEMORY_BUDGET,
    **tfew: Any,
) -> Objective:
    """The objective of an answer.

    Args:
      label_smoothing, z_loss: of written texts, see ``lm_objective``.
      memory_budget: bytes, see ``lm_objective`` and ``scoring.choice_log_probs``.
      tfew: of ranked choices, the arguments of ``tfew_objective``.
    """
    if answer == "text":
        return lm_objective(z_loss, label_smoothing, memory_budget)
    if answer == "head":
        return head_objective()
    if answer == "verbalizer":
        return verbalizer_objective(mask_token(backbone))
    if answer == "trained_verbalizer":
        return trained_verbalizer_objective(_mask_of_encoder(backbone))
    return tfew_objective(memory_budget=memory_budget, **tfew)  # type: ignore[arg-type]


def make_score(
    answer: Answer,
    backbone: Backbone,
    *,
    length_normalization: float = 1.0,
    memory_budget: int = scoring.MEMORY_BUDGET,
) -> Score:
    """``score(backbone, params, batch) -> [B, C]`` log-probabilities, -inf where no choice is.

    Raises:
      InputError: the answers are texts, which are written and not scored.
    """
    if answer == "text":
        raise InputError("answer 'text': texts are written (evaluation.write_texts), not scored")
    if answer == "head":
        return scoring.score_labels
    if answer == "trained_verbalizer":
        place = _mask_of_encoder(backbone)
        return lambda b, params, batch: scoring.score_classes(b, params, batch, place)
    if answer == "verbalizer":
        mask_id = mask_token(backbone)
        return lambda b, params, batch: scoring.score_verbalizers(b, params, batch, mask_id)
    return lambda b, params, batch: scoring.score_choices(
        b,
        params,
        batch,
        length_normalization=length_normalization,
        memory_budget=memory_budget,
    )
