"""Losses over float32 log-probabilities: language modelling and the three parts of T-Few.

Every loss is a quotient of a total and a count, because batches are cut up: by gradient
accumulation, by devices, by padding of the last batch. The functions that end in ``_sums`` return
both as a `Sums`; the others divide. A total may also be divided by a count that was taken over a
larger batch (`Sums.over`): then the losses, the metrics and the gradients of the pieces *add up* to
those of the whole, exactly, which a mean of means does not.

The end-of-sequence token counts as a token. ``pad_id`` is what fills a batch: T5's 0 where nothing
else is said, or the backbone's own (``config.pad_id``, -1 for a family without a pad token).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.errors import InputError

PAD = 0

# The smallest 1 - p that a log-probability near zero can still carry in float32.
_SMALLEST_COMPLEMENT = float(np.finfo(np.float32).eps)

# T-Few's code adds this inside the logarithm of the unlikelihood loss, and overwrites the
# log-probability of every cell that is not to count with the second figure.
_TFEW_FLOOR = 1e-2
_TFEW_MASKED = -100.0

# Finite, so that an example without any valid choice gives log C and not inf - inf.
_MASKED_SCORE = -1e30


class Sums(NamedTuple):
    """A total and the count it is to be divided by, both float32 scalars.

    Example:
        >>> float(Sums(jnp.float32(6.0), jnp.float32(4.0)).mean())
        1.5
        >>> float(Sums(jnp.float32(0.0), jnp.float32(0.0)).mean())
        0.0
    """

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # not tuple.count

    def mean(self) -> jax.Array:
        """total / count, and zero where nothing was counted."""
        return self.over(self.count)

    def over(self, count: jax.Array) -> jax.Array:
        """This total as its share of a mean over `count`, the count of a larger batch."""
        counted = count > 0
        return jnp.where(counted, self.total / jnp.where(counted, count, 1.0), 0.0)


# ------------------------------------------------------------------------------ log-probabilities


def token_log_probs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The log-probability of each target token.

    Keeps its relative precision as the probability goes to one, where the difference of a logit
    and a log-sum-exp has none left: the unlikelihood loss needs 1 - p of tokens such as the end of
    a sequence. The backward pass keeps the logits, in their own dtype, and two numbers per token;
    no second array of the vocabulary's size is stored.

    Args:
        logits: [..., V], any float dtype; computed on in float32.
        targets: [...] integers in [0, V).

    Returns:
        [...] float32, at most zero.

    Example:
        >>> token_log_probs(jnp.array([[0.0, 0.0], [9.0, 9.0]]), jnp.array([0, 1])).round(4)
        Array([-0.6931, -0.6931], dtype=float32)
    """
    return _log_prob_and_normalizer(logits, targets)[0]


class TokenScores(NamedTuple):
    """What a loss needs of the logits of each token, all [...] float32.

    Attributes:
        log_probs: of the target.
        log_z: the log of the softmax's normaliser.
        mean_logit: over the vocabulary; None where no label smoothing asks for it.
    """

    log_probs: jax.Array
    log_z: jax.Array
    mean_logit: jax.Array | None = None


def token_scores(logits: jax.Array, targets: jax.Array, *, mean: bool = False) -> TokenScores:
    """:class:`TokenScores` of logits [..., V] and targets [...].

    Args:
        mean: whether the mean logit is needed too.
    """
    log_probs, log_z = _log_prob_and_normalizer(logits, targets)
    mean_logit = jnp.mean(logits.astype(jnp.float32), axis=-1) if mean else None
    return TokenScores(log_probs, log_z, mean_logit)


@jax.custom_vjp
def _log_prob_and_normalizer(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p(target) and the log of the softmax's normaliser, both [...] float32."""
    log_prob, maximum, log_sum = _softmax_parts(logits, targets)
    return log_prob, maximum + log_sum


def _softmax_parts(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
    x = logits.astype(jnp.float32)
    maximum = jnp.max(x, axis=-1)
    # A sum with one term: looked up, the logits of devices that share a vocabulary were gathered.
    is_target = _is_target(logits, targets)
    at_target = jnp.sum(jnp.where(is_target, x, 0.0), axis=-1) - maximum
    # The sum over all tokens but the target: where the target is the maximum, log1p of this keeps
    # what adding it to one would round away.
    others = jnp.sum(jnp.where(is_target, 0.0, jnp.exp(x - maximum[..., None])), axis=-1)
    log_sum = jnp.where(at_target == 0, jnp.log1p(others), jnp.log(others + jnp.exp(at_target)))
    return at_target - log_sum, maximum, log_sum


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    return vocabulary == targets[..., None]


def _log_prob_forward(logits, targets):
    log_prob, maximum, log_sum = _softmax_parts(logits, targets)
    return (log_prob, maximum + log_sum), (logits, targets, log_prob, maximum, log_sum)


def _log_prob_backward(residuals, cotangents):
    logits, targets, log_prob, maximum, log_sum = residuals
    to_log_prob, to_normalizer = (c[..., None] for c in cotangents)
    # x - maximum first: subtracting their sum would round at the logits' magnitude.
    p = jnp.exp((logits.astype(jnp.float32) - maximum[..., None]) - log_sum[..., None])
    of_target = jnp.where(_is_target(logits, targets), -jnp.expm1(log_prob)[..., None], -p)
    return (to_log_prob * of_target + to_normalizer * p).astype(logits.dtype), None


_log_prob_and_normalizer.defvjp(_log_prob_forward, _log_prob_backward)


@jax.custom_jvp
def log1mexp(log_p: jax.Array) -> jax.Array:
    """log(1 - exp(log_p)), finite with a finite gradient for every log_p in [-inf, 0].

    1 - p is held at float32's epsilon at least, in the value and in the gradient, so a token of
    probability one costs 15.9 nats in the unlikelihood loss and still has a gradient.

    Source of the two branches: M. Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.

    Example:
        >>> round(float(log1mexp(jnp.log(0.25))), 4)
        -0.2877
        >>> round(float(log1mexp(jnp.float32(0.0))), 2)
        -15.94
    """
    log_p = jnp.minimum(log_p, -_SMALLEST_COMPLEMENT)
    near_one = log_p > -np.log(2.0)
    # Each branch is given an argument that it can digest, or its value would reach the other one
    # through 0 * inf under forward-over-reverse differentiation.
    small = jnp.log(-jnp.expm1(jnp.where(near_one, log_p, -1.0)))
    large = jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, log_p)))
    return jnp.where(near_one, small, large)


@log1mexp.defjvp
def _log1mexp_jvp(primals, tangents):
    (log_p,), (tangent,) = primals, tangents
    held = jnp.clip(log_p, -80.0, -_SMALLEST_COMPLEMENT)  # exp(80) still fits float32
    return log1mexp(log_p), -tangent / jnp.expm1(-held)


# ------------------------------------------------------------------------------ language modelling


def token_weights(tokens: jax.Array, *, pad_id: int = PAD) -> jax.Array:
    """1.0 at every token that is not padding, float32, in the shape of `tokens`."""
    return (tokens != pad_id).astype(jnp.float32)


def lm_sums(log_probs: jax.Array, weights: jax.Array) -> Sums:
    """`lm_loss` before its division: the weighted negative log-likelihood and the weights' sum."""
    _same_shape("weights", weights, "log_probs", log_probs)
    kept = jnp.where(weights != 0, log_probs, 0.0)  # -inf * 0 would be nan
    return Sums(-jnp.sum(kept * weights), jnp.sum(weights))


def lm_loss(log_probs: jax.Array, weights: jax.Array) -> jax.Array:
    """The mean negative log-likelihood per token, over all tokens of the batch (L_LM).

    A mean over the batch's tokens, not a mean of each example's mean, as in T-Few's code and T5X.

    Args:
        log_probs: [...] float32.
        weights: [...] float32, zero at padding.

    Returns:
        A float32 scalar, in nats per token.

    Example:
        >>> float(lm_loss(jnp.array([-1.0, -2.0, -9.0]), jnp.array([1.0, 1.0, 0.0])))
        1.5
    """
    return lm_sums(log_probs, weights).mean()


def sequence_sums(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    pad_id: int = PAD,
) -> dict[str, Sums]:
    """`sequence_loss` before its divisions: "loss", "lm_loss" and "z_loss" (all with one count)."""
    if weights is None:
        weights = token_weights(targets, pad_id=pad_id)
    return scored_sums(
        token_scores(logits, targets, mean=bool(label_smoothing)),
        weights,
        vocabulary=logits.shape[-1],
        z_loss=z_loss,
        label_smoothing=label_smoothing,
    )


def scored_sums(
    scores: TokenScores,
    weights: jax.Array,
    *,
    vocabulary: int,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> dict[str, Sums]:
    """`sequence_sums` of what was taken of the logits, which are gone by then.

    Args:
        scores: [B, T] each, with the mean logit where labels are smoothed.
        weights: [B, T].
        vocabulary: V.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise InputError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")
    weights = weights.astype(jnp.float32)
    lm = lm_sums(scores.log_probs, weights)
    smoothed = scores.log_probs
    if label_smoothing:
        smoothed = _smoothed_log_probs(scores, vocabulary, label_smoothing)
    z = Sums(z_loss * jnp.sum(jnp.square(scores.log_z) * weights), lm.count)
    total = lm_sums(smoothed, weights).total + z.total
    return {"loss": Sums(total, lm.count), "lm_loss": lm, "z_loss": z}


def _smoothed_log_probs(scores: TokenScores, vocabulary: int, label_smoothing: float) -> jax.Array:
    assert scores.mean_logit is not None
    kept, spread = 1.0 - label_smoothing, label_smoothing / (vocabulary - 1)
    others = vocabulary * (scores.mean_logit - scores.log_z) - scores.log_probs
    entropy = -(kept * np.log(kept) + (vocabulary - 1) * spread * np.log(spread))
    return kept * scores.log_probs + spread * others + entropy


def sequence_loss(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    count: jax.Array | None = None,
    pad_id: int = PAD,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of plain encoder-decoder and decoder-only batches.

    Agrees with T5X's `compute_weighted_cross_entropy` divided by the sum of the weights: the
    smoothed target gives 1 - label_smoothing to the right token and spreads the rest over the
    others, its entropy is subtracted (so that the optimum is zero), and z_loss * log(Z)**2 pulls
    the softmax's normaliser to one.

    Args:
        logits: [B, T, V].
        targets: [B, T] token ids.
        weights: [B, T], `decoder_loss_weights` of seqio's feature converters; by default one at
            every target that is not padding.
        z_loss: coefficient of log(Z)**2; T5X pre-trains with 1e-4.
        label_smoothing: the probability taken from the right token, in [0, 1).
        count: the sum of the weights of a larger batch, of which this one is a piece.
        pad_id: the token that fills the targets; read where `weights` is not given.

    Returns:
        The loss and {"loss", "lm_loss", "z_loss"}, float32 scalars; "lm_loss" is without smoothing.

    Raises:
        InputError: label_smoothing outside [0, 1).

    Example:
        >>> loss, metrics = sequence_loss(jnp.zeros((1, 2, 4)), jnp.array([[3, 0]]))
        >>> round(float(loss), 4)
        1.3863
    """
    sums = sequence_sums(
        logits,
        targets,
        weights,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        pad_id=pad_id,
    )
    metrics = {name: s.mean() if count is None else s.over(count) for name, s in sums.items()}
    return metrics["loss"], metrics


# --------------------------------------------------------------------------------- the T-Few losses


def choice_scores(
    log_probs: jax.Array,
    choices: jax.Array,
    length_normalization: float = 1.0,
    *,
    pad_id: int = PAD,
) -> jax.Array:
    """The score that ranks answer choices: log-likelihood over length ** length_normalization.

    Args:
        log_probs: [B, C, T] float32, of the tokens of `choices`.
        choices: [B, C, T] token ids; the end-of-sequence token counts.
        length_normalization: 1.0, the mean over tokens (T-Few); 0.0, their sum (T0).
        pad_id: the token that fills `choices`.

    Returns:
        [B, C] float32, larger is better. A choice of padding only scores 0: mask before ranking.

    Example:
        >>> choice_scores(jnp.array([[[-1.0, -3.0, -9.0]]]), jnp.array([[[7, 1, 0]]])).tolist()
        [[-2.0]]
    """
    _same_shape("choices", choices, "log_probs", log_probs)
    weights = token_weights(choices, pad_id=pad_id)
    total = jnp.sum(jnp.where(weights > 0, log_probs, 0.0), axis=-1)
    length = jnp.maximum(jnp.sum(weights, axis=-1), 1.0)
    return total / length**length_normalization


def length_normalized_sums(
    scores: jax.Array, label: jax.Array, choice_mask: jax.Array, weight: jax.Array | None = None
) -> Sums:
    """`length_normalized_loss` before its division: summed over examples, and their weight."""
    masked = jnp.where(choice_mask, scores, _MASKED_SCORE)
    at_label = jnp.take_along_axis(masked, label[:, None], axis=1)[:, 0]
    weight = _example_weight(weight, label)
    losses = jax.nn.logsumexp(masked, axis=1) - at_label
    return Sums(jnp.sum(jnp.where(weight != 0, losses, 0.0) * weight), jnp.sum(weight))


def length_normalized_loss(
    scores: jax.Array, label: jax.Array, choice_mask: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy of the softmax over an example's choice scores (L_LN).

    Source: Liu et al. 2022 (T-Few), section 3.2, equation 2; "mc_loss" in the released code.

    Args:
        scores: [B, C] float32, from `choice_scores` with length_normalization=1.
        label: [B] int32, the right choice.
        choice_mask: [B, C] bool, False at choices that only fill the batch.
        weight: [B], zero at examples that only fill the batch; by default one.

    Returns:
        A float32 scalar: the mean over examples.

    Example:
        >>> mask = jnp.array([[True, True, False]])
        >>> loss = length_normalized_loss(jnp.zeros((1, 3)), jnp.array([1]), mask)
        >>> round(float(loss), 4)
        0.6931
    """
    return length_normalized_sums(scores, label, choice_mask, weight).mean()


def unlikelihood_sums(
    log_probs: jax.Array,
    choices: jax.Array,
    label: jax.Array,
    choice_mask: jax.Array,
    *,
    variant: str = "paper",
    weight: jax.Array | None = None,
    pad_id: int = PAD,
) -> Sums:
    """`unlikelihood_loss` before its division: summed over wrong tokens, and their weight."""
    _check_variant(variant)
    weights = _wrong_token_weights(choices, label, choice_mask, weight, pad_id)
    wrong = weights != 0
    # The inner where keeps cells that do not count (padding, the right choice, -inf) out of the
    # gradient: a zero times their infinite slope would be nan.
    log_p = jnp.where(wrong, log_probs, -1.0)
    if variant == "paper":
        return Sums(-jnp.sum(jnp.where(wrong, log1mexp(log_p), 0.0) * weights), jnp.sum(weights))
    cost = -jnp.log(1.0 - jnp.exp(jnp.where(wrong, log_p, _TFEW_MASKED)) + _TFEW_FLOOR)
    cells = jnp.where(wrong, weights, _idle_cell_weights(choices, choice_mask, weight, pad_id))
    return Sums(jnp.sum(cost * cells), jnp.sum(weights))


def unlikelihood_loss(
    log_probs: jax.Array,
    choices: jax.Array,
    label: jax.Array,
    choice_mask: jax.Array,
    *,
    variant: str = "paper",
    weight: jax.Array | None = None,
    pad_id: int = PAD,
) -> jax.Array:
    """Mean of -log(1 - p) over the tokens of the wrong choices (L_UL).

    Source: Liu et al. 2022 (T-Few), section 3.2, equation 1. variant="tfew" is the released code
    (r-three/t-few, src/models/EncoderDecoder.py): 0.01 is added inside the logarithm, which caps
    the cost of a token at 4.6 nats, and every cell of the padded batch that is not a wrong token
    adds -log(1.01) to the total, though not to the count. That shifts the reported value and
    leaves the gradient alone. Padding counts up to the longest valid choice of the batch, as
    T-Few pads; choices and examples that only fill the batch add nothing.

    Both divide by the number of wrong tokens in the whole batch.

    Args:
        log_probs: [B, C, T] float32, of the tokens of `choices`.
        choices: [B, C, T] token ids.
        label: [B] int32, the right choice.
        choice_mask: [B, C] bool, False at choices that only fill the batch.
        variant: "paper" or "tfew".
        weight: [B], zero at examples that only fill the batch; by default one.
        pad_id: the token that fills `choices`.

    Returns:
        A float32 scalar, in nats per token; zero where no example has a wrong choice.

    Raises:
        InputError: an unknown variant.

    Example:
        >>> log_probs, choices = jnp.log(jnp.full((1, 2, 1), 0.5)), jnp.array([[[8], [9]]])
        >>> mask = jnp.array([[True, True]])
        >>> round(float(unlikelihood_loss(log_probs, choices, jnp.array([0]), mask)), 4)
        0.6931
    """
    sums = unlikelihood_sums(
        log_probs, choices, label, choice_mask, variant=variant, weight=weight, pad_id=pad_id
    )
    return sums.mean()


def tfew_counts(
    choices: jax.Array,
    choice_mask: jax.Array,
    label: jax.Array,
    weight: jax.Array | None = None,
    *,
    pad_id: int = PAD,
) -> dict[str, jax.Array]:
    """The counts that the parts of `tfew_loss` are divided by, known before any forward pass.

    Take them over the whole batch and pass them to `tfew_loss` on each piece of it (gradient
    accumulation, devices under pmap after a psum): the pieces then add up to the whole.

    Args: as in `tfew_loss`.

    Returns:
        {"lm_loss": tokens of the right choices, "unlikelihood_loss": tokens of the wrong ones,
        "length_normalized_loss": examples, "accuracy": examples}, float32 scalars.
    """
    examples = jnp.sum(_example_weight(weight, label))
    return {
        "lm_loss": jnp.sum(_right_token_weights(choices, label, weight, pad_id)),
        "unlikelihood_loss": jnp.sum(
            _wrong_token_weights(choices, label, choice_mask, weight, pad_id)
        ),
        "length_normalized_loss": examples,
        "accuracy": examples,
    }


def tfew_sums(
    log_probs: jax.Array,
    choices: jax.Array,
    choice_mask: jax.Array,
    label: jax.Array,
    *,
    weight: jax.Array | None = None,
    length_normalization: float = 1.0,
    variant: str = "paper",
    pad_id: int = PAD,
) -> dict[str, Sums]:
    """The parts of `tfew_loss` and the accuracy before their divisions, by the metrics' names."""
    _same_shape("choices", choices, "log_probs", log_probs)
    _has_shape("choice_mask", choice_mask, choices.shape[:2])
    _has_shape("label", label, choices.shape[:1])
    scores = choice_scores(log_probs, choices, length_normalization, pad_id=pad_id)
    right = jnp.argmax(jnp.where(choice_mask, scores, -jnp.inf), axis=1) == label
    examples = _example_weight(weight, label)
    return {
        "lm_loss": lm_sums(log_probs, _right_token_weights(choices, label, weight, pad_id)),
        "unlikelihood_loss": unlikelihood_sums(
            log_probs, choices, label, choice_mask, variant=variant, weight=weight, pad_id=pad_id
        ),
        "length_normalized_loss": length_normalized_sums(scores, label, choice_mask, weight),
        "accuracy": Sums(jnp.sum(right * examples), jnp.sum(examples)),
    }


def tfew_loss(
    log_probs: jax.Array,
    choices: jax.Array,
    choice_mask: jax.Array,
    label: jax.Array,
    *,
    weight: jax.Array | None = None,
    unlikelihood: float = 1.0,
    length_normalized: float = 1.0,
    length_normalization: float = 1.0,
    variant: str = "paper",
    counts: dict[str, jax.Array] | None = None,
    pad_id: int = PAD,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_LM + unlikelihood * L_UL + length_normalized * L_LN, with its parts and the accuracy.

    Source: Liu et al. 2022 (T-Few), section 3.2; with variant="tfew" the loss of the released code
    (r-three/t-few, src/models/EncoderDecoder.py). Unlike there, examples may have different
    numbers of choices.

    Args:
        log_probs: [B, C, T] float32, `token_log_probs` of all choices.
        choices: [B, C, T] token ids; the end-of-sequence token counts.
        choice_mask: [B, C] bool, False at choices that only fill the batch.
        label: [B] int32, the right choice.
        weight: [B], zero at examples that only fill the batch; by default one.
        unlikelihood: weight of L_UL.
        length_normalized: weight of L_LN.
        length_normalization: exponent of the length in the scores of L_LN and of the accuracy.
        variant: "paper" or "tfew", see `unlikelihood_loss`.
        counts: `tfew_counts` of a larger batch, of which this one is a piece; by default of this.
        pad_id: the token that fills `choices`.

    Returns:
        The loss and {"loss", "lm_loss", "unlikelihood_loss", "length_normalized_loss",
        "accuracy"}, float32 scalars; the parts before their weights.

    Raises:
        InputError: an unknown variant, or shapes that do not belong together.

    Example:
        >>> choices, mask = jnp.array([[[8, 1], [9, 0]]]), jnp.array([[True, True]])
        >>> log_probs = jnp.log(jnp.full((1, 2, 2), 0.5))
        >>> loss, metrics = tfew_loss(log_probs, choices, mask, jnp.array([0]))
        >>> round(float(loss), 4), sorted(metrics)[:2]
        (2.0794, ['accuracy', 'length_normalized_loss'])
    """
    sums = tfew_sums(
        log_probs,
        choices,
        choice_mask,
        label,
        weight=weight,
        length_normalization=length_normalization,
        variant=variant,
        pad_id=pad_id,
    )
    metrics = {k: s.mean() if counts is None else s.over(counts[k]) for k, s in sums.items()}
    loss = (
        metrics["lm_loss"]
        + unlikelihood * metrics["unlikelihood_loss"]
        + length_normalized * metrics["length_normalized_loss"]
    )
    return loss, {"loss": loss, **metrics}


def _example_weight(weight: jax.Array | None, label: jax.Array) -> jax.Array:
    if weight is None:
        return jnp.ones(label.shape, jnp.float32)
    _has_shape("weight", weight, label.shape)
    return weight.astype(jnp.float32)


def _is_label(choices: jax.Array, label: jax.Array) -> jax.Array:
    return jnp.arange(choices.shape[1]) == label[:, None]  # [B, C]


def _right_token_weights(choices, label, weight, pad_id) -> jax.Array:
    per_choice = _is_label(choices, label) * _example_weight(weight, label)[:, None]
    return token_weights(choices, pad_id=pad_id) * per_choice[..., None]


def _wrong_token_weights(choices, label, choice_mask, weight, pad_id) -> jax.Array:
    wrong = ~_is_label(choices, label) & (choice_mask != 0)
    per_choice = wrong * _example_weight(weight, label)[:, None]
    return token_weights(choices, pad_id=pad_id) * per_choice[..., None]


def _idle_cell_weights(choices, choice_mask, weight, pad_id) -> jax.Array:
    """The weight of every cell that T-Few's batch would have had, [B, C, T]."""
    examples = _example_weight(weight, choices[:, 0, 0])
    valid = (choice_mask != 0) & (examples != 0)[:, None]
    lengths = jnp.where(valid, jnp.sum(choices != pad_id, axis=-1), 0)
    in_batch = jnp.arange(choices.shape[-1]) < jnp.max(lengths)
    return valid[..., None] * in_batch * examples[:, None, None]


def _check_variant(variant: str) -> None:
    if variant not in ("paper", "tfew"):
        raise InputError(f'variant is {variant!r}; it must be "paper" or "tfew"')


def _same_shape(name: str, array: jax.Array, other_name: str, other: jax.Array) -> None:
    if array.shape != other.shape:
        raise InputError(
            f"{name} has shape {list(array.shape)}; "
            f"it must have the shape of {other_name}, {list(other.shape)}"
        )


def _has_shape(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    if array.shape != tuple(shape):
        raise InputError(f"{name} has shape {list(array.shape)}; it must be {list(shape)}")
