"""Scores of choices: transformers' own loss, choice by choice, however the choices are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import constraints, losses, scoring, sharding
from tests import oracle
from tests.test_transformer import CONFIG, adapted, random_backbone


def choice_batch(examples=3, count=5, length=4, source=9, seed=0, config=CONFIG):
    """Choices of different lengths that end in EOS; example 1 has two choices only."""
    rng = np.random.default_rng(seed)
    choices = rng.integers(2, config.vocab_size, (examples, count, length))
    lengths = rng.integers(1, length + 1, (examples, count, 1))
    position = np.arange(length)
    choices = np.where(position < lengths, choices, 0)
    choices = np.where(position == lengths - 1, config.eos_id, choices)
    mask = np.ones((examples, count), bool)
    mask[1, 2:] = False
    choices[1, 2:] = 0
    tokens = rng.integers(2, config.vocab_size, (examples, source))
    tokens[2, 5:] = 0
    return {
        "encoder_input_tokens": tokens.astype(np.int32),
        "choices": choices.astype(np.int32),
        "choice_mask": mask,
    }


@pytest.mark.parametrize("variant", oracle.T5)
def test_agrees_with_transformers(variant):
    backbone, arrays = oracle.t5(variant)
    batch = {k: arrays[k] for k in ("encoder_input_tokens", "encoder_mask", "choices")}
    batch["choice_mask"] = np.ones(arrays["choices"].shape[:2], bool)
    scores = pj.score_choices(backbone, backbone.params, batch)
    oracle.assert_close(scores, arrays["choice_scores"], 2e-5)


@pytest.mark.slow
def test_equals_one_input_and_one_choice_at_a_time():
    backbone, batch = random_backbone(), choice_batch()
    scores = np.asarray(pj.score_choices(backbone, backbone.params, batch))
    sums = np.asarray(pj.score_choices(backbone, backbone.params, batch, length_normalization=0.0))
    for b, c in np.ndindex(*scores.shape):
        if not batch["choice_mask"][b, c]:
            assert scores[b, c] == -np.inf
            continue
        choice = batch["choices"][b, c]
        choice = choice[choice > 0][None]
        inputs = np.pad(choice[:, :-1], ((0, 0), (1, 0)))
        one = {
            "encoder_input_tokens": batch["encoder_input_tokens"][b : b + 1],
            "decoder_input_tokens": inputs,
        }
        logits = backbone.logits(backbone.params, one)
        log_probs = losses.token_log_probs(logits, jnp.asarray(choice))
        np.testing.assert_allclose(sums[b, c], log_probs.sum(), rtol=1e-5)
        np.testing.assert_allclose(scores[b, c], log_probs.mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5))])
def test_parts_change_neither_scores_nor_gradients(parts):
    backbone, batch = random_backbone(), choice_batch()
    method, stored = adapted(backbone, pj.ia3(), pj.lora(2), pj.prompt_tuning(2, where="both"))
    config = backbone.config
    whole = scoring.choice_parts(config, 3, 5, 4, 1 << 40)
    assert whole == 1
    # The largest budget that asks for at least so many parts.
    per_part = -(-5 // parts)
    budget = next(
        b
        for b in range(10_000, 10_000_000, 1_000)
        if scoring.choice_parts(config, 3, 5, 4, b) == -(-5 // per_part)
    )

    def loss(stored, memory_budget):
        params = pj.merge(backbone.params, method.bind(stored))
        log_probs = scoring.choice_log_probs(config, params, batch, memory_budget=memory_budget)
        label = jnp.zeros(3, jnp.int32)
        return losses.tfew_loss(log_probs, batch["choices"], batch["choice_mask"], label)[
            0
        ], log_probs

    both = jax.value_and_grad(loss, has_aux=True)
    (one, log_probs), gradient = both(stored, 1 << 40)
    (other, split), split_gradient = both(stored, budget)
    np.testing.assert_allclose(one, other, rtol=1e-6)
    real = batch["choices"] > 0
    np.testing.assert_allclose(log_probs[real], split[real], rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient,
        split_gradient,
    )


@pytest.mark.slow
def test_a_hundred_choices_within_a_budget():
    backbone = random_backbone()
    batch = choice_batch(count=100)
    budget = 200_000
    parts = scoring.choice_parts(CONFIG, 3, 100, 4, budget)
    assert 1 < parts < 100
    whole = pj.score_choices(backbone, backbone.params, batch)
    split = pj.score_choices(backbone, backbone.params, batch, memory_budget=budget)
    np.testing.assert_allclose(whole, split, rtol=1e-5)

    def temporary(memory_budget):
        score = jax.jit(lambda p: pj.score_choices(backbone, p, batch, memory_budget=memory_budget))
        return score.lower(backbone.params).compile().memory_analysis().temp_size_in_bytes

    assert temporary(budget) < 0.5 * temporary(1 << 40)


def test_the_input_is_encoded_once():
    """Ten choices must not cost ten encoder passes: FLOPs of one layer, counted by XLA."""
    config = pj.Config("t5", 32, 64, 128, 2, 32, 1, 1)
    backbone = pj.init_backbone(config, jax.random.key(0))
    flops = []
    for count in (1, 10):
        batch = choice_batch(examples=3, count=count, length=2, source=64, config=config)
        batch["choice_mask"] = np.ones((3, count), bool)
        score = jax.jit(lambda p, b: pj.score_choices(backbone, p, b))
        compiled = score.lower(backbone.params, batch).compile()
        flops.append(compiled.cost_analysis()["flops"])
    assert flops[1] < 1.6 * flops[0]


def test_a_choice_that_does_not_exist_is_never_predicted():
    backbone, batch = random_backbone(), choice_batch()
    scores = pj.score_choices(backbone, backbone.params, batch)
    best = np.asarray(scoring.predictions(scores))
    assert batch["choice_mask"][np.arange(3), best].all()
    assert np.isneginf(np.asarray(scores)[~batch["choice_mask"]]).all()


# ------------------------------------------------------------------------- logits in parts


def arrays_of(jaxpr):
    """Shapes of all that a jaxpr computes, however deep."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {v.aval.shape for v in equation.outvars}
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= arrays_of(inner)
    return found


@pytest.mark.parametrize("smoothed", [False, True])
def test_logits_in_parts_change_neither_values_nor_gradients(smoothed):
    """Of the hidden states and of a trained head, where the parts do not divide the length."""
    config = pj.Config("t5", 61, 8, 16, 2, 4, 1, 1)
    keys = jax.random.split(jax.random.key(0), 3)
    head = {"kernel": jax.random.normal(keys[0], (8, 61)), "bias": jnp.arange(61.0) / 61}
    hidden = jax.random.normal(keys[1], (3, 7, 8))
    targets = jax.random.randint(keys[2], (3, 7), 0, 61)
    weights = jnp.asarray(np.arange(21).reshape(3, 7) % 3 / 2, jnp.float32)
    budget = 3 * 12 * 61 * 3  # three places of three sequences

    def loss(hidden, head, budget):
        scores = scoring.score_tokens(
            config, {"lm_head": head}, hidden, targets, mean=smoothed, memory_budget=budget
        )
        sums = losses.scored_sums(
            scores, weights, vocabulary=61, z_loss=1e-2, label_smoothing=0.1 * smoothed
        )
        return sums["loss"].mean()

    def both(budget):
        return jax.value_and_grad(lambda h, p: loss(h, p, budget), argnums=(0, 1))

    assert scoring.token_parts(config, 3, 7, budget) == 3
    (whole, gradients), (split, split_gradients) = (
        jax.jit(both(b))(hidden, head) for b in (1 << 40, budget)
    )
    np.testing.assert_allclose(whole, split, rtol=1e-6)
    for one, other in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(split_gradients), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    made = [arrays_of(jax.make_jaxpr(both(b))(hidden, head).jaxpr) for b in (1 << 40, budget)]
    assert (3, 7, 61) in made[0]
    assert (3, 3, 61) in made[1]
    assert not {(3, 7, 61), (3, 3, 3, 61), (21, 61)} & made[1]


def test_parts_count_what_a_device_holds():
    """On a mesh of 4 x 2 a device has a fourth of the rows and half of the vocabulary."""
    config = pj.Config("t5", 64, 8, 16, 2, 4, 1, 1)
    alone = scoring.token_parts(config, 8, 32, 12 * 64 * 8)
    with constraints.on_mesh(sharding.make_mesh(data=4, model=2)):
        assert scoring.token_parts(config, 8, 32, 12 * 64 * 8) == alone // 8 == 4
        assert scoring.choice_parts(config, 8, 32, 4, 8192) == 8
    assert scoring.choice_parts(config, 8, 32, 4, 8192) == 32
