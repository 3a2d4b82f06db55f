"""What holds in every family: padding, prompts, shared prompts of choices, heads, memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import losses, scoring, transformer
from peft_jax.errors import InputError
from tests import oracle
from tests.families import BERT, DECODERS, FAMILIES, over_decoders, over_families, quickly
from tests.random_adapters import adapted, backbone_of
from tests.test_scoring import choice_batch
from tests.test_transformer import frozen_kernels, scan_outputs, unrolled

LENGTH, VOCABULARY = 9, 57


def tokens_of(config, rows=3, length=LENGTH, seed=0):
    """Tokens that are neither padding nor EOS."""
    return np.random.default_rng(seed).integers(3, VOCABULARY - 1, (rows, length)).astype(np.int32)


def batch_of(config, tokens, targets=None):
    """A batch in which ``tokens`` are what the model reads first."""
    batch = {}
    if config.encoder_layers:
        batch["encoder_input_tokens"] = tokens
        tokens = tokens_of(config, len(tokens), 5, seed=1) if targets is None else targets
    if config.decoder_layers:
        batch["decoder_input_tokens"] = tokens
    return batch


def logits_of(family, batch, params=None, **changes):
    backbone = backbone_of(family).replace(**changes)
    params = backbone.params if params is None else params
    return np.asarray(jax.jit(backbone.logits)(params, batch))


# ------------------------------------------------------------------------------ padding


@over_families
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(family, side):
    config = FAMILIES[family]
    if side == "left" and config.positions == "learned" and not config.count_positions:
        pytest.skip("its positions are places in the row")
    tokens = tokens_of(config)
    width = ((0, 0), (3, 0) if side == "left" else (0, 3))
    padded = np.pad(tokens, width, constant_values=config.pad_id)
    alone = logits_of(family, batch_of(config, tokens))
    together = logits_of(family, batch_of(config, padded))
    if config.kind != "encoder_decoder":
        together = together[:, 3:] if side == "left" else together[:, :LENGTH]
    oracle.assert_close(together, alone, 3e-6)


@pytest.mark.parametrize("family", quickly(FAMILIES, ("bert", "gemma3")))
def test_a_row_of_padding_only_gives_finite_gradients(family):
    config, backbone = FAMILIES[family], backbone_of(family)
    tokens = tokens_of(config)
    tokens[1] = config.pad_id
    batch = batch_of(config, tokens)
    loss = lambda p: jnp.square(backbone.logits(p, batch)).mean()  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss))(backbone.params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


# ------------------------------------------------------------------------------ soft prompts


@over_families
def test_a_prompt_of_embedded_tokens_is_those_tokens(family):
    """Rows of a prompt are read as embedded tokens in front of the input, with their positions."""
    config, backbone = FAMILIES[family], backbone_of(family)
    front, tokens = tokens_of(config, 1, 4, seed=2), tokens_of(config)
    prompt = backbone.params["token_embedder"]["embedding"][front[0]] * config.embedding_scale
    params = pj.merge(backbone.params, {config.input_stack: {"prompt": prompt}})
    joined = np.concatenate([np.repeat(front, len(tokens), axis=0), tokens], axis=1)
    wanted = logits_of(family, batch_of(config, joined))
    if config.kind != "encoder_decoder":
        wanted = wanted[:, 4:]
    oracle.assert_close(logits_of(family, batch_of(config, tokens), params), wanted, 3e-6)


@over_families
def test_prompt_tuning_finds_the_stack_that_reads_the_input(family):
    backbone = backbone_of(family)
    stored = pj.prompt_tuning(4, vocabulary_range=(3, 50)).init(jax.random.key(0), backbone)
    assert list(stored) == [backbone.config.input_stack]
    rows = np.asarray(backbone.params["token_embedder"]["embedding"])[3:50]
    rows = rows * np.float32(backbone.config.embedding_scale)
    for row in np.asarray(stored[backbone.config.input_stack]["prompt"]):
        assert np.abs(rows - row).sum(1).min() < 1e-5


# ------------------------------------------------------------------------------ prompts of choices


def choices_of(family):
    config = FAMILIES[family]
    batch = choice_batch(config=dataclasses.replace(config, vocab_size=VOCABULARY - 1))
    for name in ("encoder_input_tokens", "choices"):
        batch[name] = np.where(batch[name] == 0, config.pad_id, batch[name])
    return batch


@over_decoders
@pytest.mark.parametrize("budget", [scoring.MEMORY_BUDGET, 1])
def test_choices_share_their_prompt(family, budget):
    """Scores are those of each prompt and choice as one text."""
    backbone, config, batch = backbone_of(family), DECODERS[family], choices_of(family)
    score = jax.jit(
        lambda p: pj.score_choices(
            backbone, p, batch, length_normalization=0.0, memory_budget=budget
        )
    )
    scores = np.asarray(score(backbone.params))
    texts, targets, weights = [], [], []
    for b, c in np.ndindex(*scores.shape):
        prompt = batch["encoder_input_tokens"][b]
        both = [row[row != config.pad_id] for row in (prompt, batch["choices"][b, c])]
        text = np.concatenate(both)
        room = 14 - len(text)
        texts.append(np.pad(text, (0, room), constant_values=config.pad_id))
        targets.append(np.pad(text[1:], (0, room + 1)))
        place = np.arange(14)
        weights.append((place >= len(both[0]) - 1) & (place < len(text) - 1))
    logits = logits_of(family, {"decoder_input_tokens": np.stack(texts)})
    log_probs = losses.token_log_probs(jnp.asarray(logits), jnp.asarray(np.stack(targets)))
    wanted = (np.asarray(log_probs) * np.stack(weights)).sum(1).reshape(scores.shape)
    exists = batch["choice_mask"]
    assert (scores[~exists] == -np.inf).all()
    np.testing.assert_allclose(scores[exists], wanted[exists], rtol=2e-5, atol=2e-5)


@over_decoders
@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_the_cache_equals_the_whole_text(family, side):
    backbone, config = backbone_of(family), DECODERS[family]
    tokens = tokens_of(config, 3, 12)
    prompts, after = tokens[:, :7].copy(), tokens[:, 7:]
    lengths = np.array([7, 4, 1])
    for row, length in enumerate(lengths):
        kept = prompts[row, :length].copy()
        prompts[row] = config.pad_id
        prompts[row, 7 - length :] = kept if side == "left" else prompts[row, 7 - length :]
        if side == "right":
            prompts[row, :length] = kept
    method, stored = adapted(backbone, pj.prompt_tuning(2, vocabulary_range=(3, 50)), pj.ia3())
    params = pj.merge(backbone.params, method.bind(stored))

    @jax.jit
    def by_steps(params):
        read = transformer.context(config, params, {"encoder_input_tokens": prompts})
        cache = transformer.init_cache(config, 3, transformer.cache_length(config, params, 6))
        inputs = jnp.concatenate([read.start[:, None], after], axis=1)
        whole = transformer.decode(config, params, read, inputs)
        first, cache = transformer.decode_step(config, params, read, inputs[:, :2], 0, cache)
        states = [first]
        for place in range(2, 6):
            token = inputs[:, place : place + 1]
            state, cache = transformer.decode_step(
                config, params, read, token, jnp.int32(place), cache
            )
            states.append(state)
        return whole, jnp.concatenate(states, axis=1)

    whole, stepped = by_steps(params)
    oracle.assert_close(stepped, whole, 3e-6)
    texts = np.full((3, 12), config.pad_id, np.int32)
    for row, length in enumerate(lengths):
        texts[row, : length + 5] = np.concatenate([tokens[row, :length], after[row]])
    read_text = jax.jit(
        lambda p, t: transformer.decode_text(config, p, {"decoder_input_tokens": t})
    )
    text = read_text(params, texts)
    for row, length in enumerate(lengths):
        oracle.assert_close(stepped[row], text[row, length - 1 : length + 5], 3e-6)


@over_decoders
def test_a_prefix_is_seen_both_ways(family):
    """seqio's prefix language model: tokens of the prefix see each other, the others their past."""
    config = DECODERS[family]
    tokens = tokens_of(config)
    prefix = (np.arange(LENGTH) < 4).astype(np.int32)[None].repeat(3, axis=0)
    batch = {"decoder_input_tokens": tokens, "decoder_causal_attention": prefix}
    other = tokens.copy()
    other[:, 3] = 3 + (other[:, 3] - 2) % 50
    one, two = logits_of(family, batch), logits_of(family, batch | {"decoder_input_tokens": other})
    causal = logits_of(family, {"decoder_input_tokens": tokens})
    assert (np.abs(one - two)[:, 0] > 1e-6).any(), "the first token does not see the fourth"
    assert (np.abs(one - causal)[:, 0] > 1e-6).any()
    later = tokens.copy()
    later[:, 7] = 3 + (later[:, 7] - 2) % 50
    same = logits_of(family, batch | {"decoder_input_tokens": later})
    np.testing.assert_array_equal(same[:, :7], one[:, :7])


@over_decoders
def test_packed_texts_equal_the_separate_ones(family):
    config = DECODERS[family]
    texts = [tokens_of(config, 1, n, seed=n) for n in (4, 6, 3)]
    packed = {
        "decoder_input_tokens": np.concatenate(texts, axis=1),
        "decoder_segment_ids": np.repeat([1, 2, 3], [4, 6, 3])[None],
        "decoder_positions": np.concatenate([np.arange(n) for n in (4, 6, 3)])[None],
    }
    together, start = logits_of(family, packed), 0
    for text in texts:
        alone = logits_of(family, {"decoder_input_tokens": text})
        oracle.assert_close(together[:, start : start + text.shape[1]], alone, 3e-6)
        start += text.shape[1]
    with pytest.raises(InputError, match="decoder_positions"):
        logits_of(family, {k: v for k, v in packed.items() if k != "decoder_positions"})


# ------------------------------------------------------------------------------ heads


@pytest.mark.parametrize("family", quickly(FAMILIES, ("bert", "gpt2")))
def test_a_classification_head_reads_the_input_alone(family):
    """With and without a soft prompt; padding changes nothing; gradients reach every leaf."""
    config, backbone = FAMILIES[family], backbone_of(family)
    tokens = np.concatenate([tokens_of(config), np.full((3, 1), config.eos_id)], axis=1)
    padded = np.pad(tokens, ((0, 0), (0, 3)), constant_values=config.pad_id)
    method, stored = adapted(
        backbone, pj.prompt_tuning(2, vocabulary_range=(3, 50)), pj.classification_head(3)
    )
    names = {"dense", "out"} if config.classifier_dense else {"out"}
    assert set(stored["classification_head"]["classifier"]) == names
    assert ("bias" in stored["classification_head"]["classifier"]["out"]) == config.classifier_bias

    @jax.jit
    def classes(stored, tokens):
        params = pj.merge(backbone.params, method.bind(stored))
        return backbone.classify(params, {"encoder_input_tokens": tokens})

    logits = classes(stored, tokens)
    assert logits.shape == (3, 3)
    assert logits.dtype == jnp.float32
    oracle.assert_close(classes(stored, padded), logits, 3e-6)
    gradients = jax.grad(lambda s: jnp.square(classes(s, tokens)).sum())(stored)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_a_model_without_the_head_is_told_from_one_with_it():
    backbone = backbone_of("bert")
    with pytest.raises(InputError, match="classification_head"):
        backbone.classify(backbone.params, {"encoder_input_tokens": tokens_of(BERT)})
    bare = pj.init_backbone(
        dataclasses.replace(BERT, lm_head=False, head_transform=False, head_bias=False),
        jax.random.key(0),
    )
    with pytest.raises(InputError, match="no language-model head"):
        bare.logits(bare.params, {"encoder_input_tokens": tokens_of(BERT)})


def test_verbalizers_are_scored_at_the_mask():
    backbone, config, mask_id = backbone_of("bert"), BERT, 7
    tokens = np.where(tokens_of(config) == mask_id, 8, tokens_of(config))
    places = [2, 8, 5]
    tokens[np.arange(3), places] = mask_id
    choices = np.array([[[9], [11], [0]], [[12], [13], [14]], [[3], [4], [5]]], np.int32)
    exists = choices[..., 0] != 0
    batch = {"encoder_input_tokens": tokens, "choices": choices, "choice_mask": exists}
    scores = np.asarray(scoring.score_verbalizers(backbone, backbone.params, batch, mask_id))
    logits = logits_of("bert", {"encoder_input_tokens": tokens})
    wanted = np.asarray(jax.nn.log_softmax(logits, axis=-1))[np.arange(3), places]
    wanted = np.take_along_axis(wanted, choices[..., 0], axis=1)
    np.testing.assert_allclose(scores[exists], wanted[exists], rtol=1e-5)
    assert (scores[~exists] == -np.inf).all()
    params = pj.merge(backbone.params, {"encoder": {"prompt": jnp.ones((2, config.d_model))}})
    prompted = np.asarray(scoring.score_verbalizers(backbone, params, batch, mask_id))
    logits = logits_of("bert", {"encoder_input_tokens": tokens}, params)
    wanted = np.asarray(jax.nn.log_softmax(logits, axis=-1))[np.arange(3), places]
    np.testing.assert_allclose(prompted[1], wanted[1, choices[1, :, 0]], rtol=1e-5)
    two = batch | {"choices": np.repeat(choices, 2, axis=2)}
    with pytest.raises(InputError, match="2 token places"):
        scoring.score_verbalizers(backbone, backbone.params, two, mask_id)


# ------------------------------------------------------------------------------ scan and memory


@over_families
def test_scan_equals_a_loop_over_layers(monkeypatch, family):
    config, backbone = FAMILIES[family], backbone_of(family)
    method, stored = adapted(backbone, pj.ia3(), pj.lora(2, layers=(1,)))
    params = pj.merge(backbone.params, method.bind(stored))
    batch = batch_of(config, tokens_of(config))
    scanned = jax.jit(backbone.logits)(params, batch)
    monkeypatch.setattr(transformer, "_scan", unrolled)
    looped = jax.jit(lambda p, b: backbone.logits(p, b))(params, batch)
    oracle.assert_close(looped, scanned, 3e-6)


@over_families
def test_no_copy_of_a_frozen_weight_is_saved_for_the_backward_pass(family):
    config, backbone = FAMILIES[family], backbone_of(family, jnp.bfloat16)
    method, stored = adapted(backbone, pj.ia3(), pj.lora(2))
    batch = batch_of(config, tokens_of(config))

    def residuals(stored, frozen):
        loss = lambda s: backbone.logits(pj.merge(frozen, method.bind(s)), batch).mean()  # noqa: E731
        return jax.vjp(loss, stored)

    outputs = scan_outputs(jax.make_jaxpr(residuals)(stored, backbone.params).jaxpr)
    assert outputs
    kernels = frozen_kernels(config)
    assert not [shape for shape, _ in outputs if shape in kernels or shape[1:] in kernels]


# ------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("bert", {"norm": "batch"}, "norm 'batch' is unknown; one of rms, layer"),
        ("bert", {"norm_position": "middle"}, "norm_position 'middle'"),
        ("bert", {"positions": "sinusoid"}, "positions 'sinusoid'"),
        ("bert", {"max_positions": 0}, "learned positions need max_positions"),
        ("bert", {"encoder_layers": 0}, "one must be at least 1"),
        ("llama", {"rope": None}, "rotary positions need rope"),
        ("llama", {"num_kv_heads": 3}, "num_kv_heads 3 must divide num_heads 4"),
        ("gemma2", {"window": None}, "local_layers need a window"),
        ("gemma2", {"local_layers": (3,)}, r"local_layers \(3,\) do not fit 3 decoder layers"),
        ("gpt2", {"attention_dropout": 1.0}, "attention_dropout 1.0"),
    ],
)
def test_fields_that_contradict_each_other_are_named(family, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(FAMILIES[family], **changes)


@pytest.mark.parametrize("family", ["bert", "bart", "gpt2"])
def test_more_tokens_than_learned_positions_are_refused(family):
    config = FAMILIES[family]
    long = tokens_of(config, length=config.max_positions + 1)
    with pytest.raises(InputError, match=r"21 positions in the .*has learned 20"):
        logits_of(family, batch_of(config, long))
    backbone = backbone_of(family)
    stack = config.input_stack
    params = pj.merge(backbone.params, {stack: {"prompt": jnp.ones((2, config.d_model))}})
    with pytest.raises(InputError, match="22 positions"):
        logits_of(family, batch_of(config, long[:, :20]), params)


def test_turning_dropout_off_turns_all_of_it_off():
    backbone = backbone_of("bert").replace(dropout=0.1, attention_dropout=0.2)
    assert backbone.config.attention_dropout == 0.2
    off = backbone.replace(dropout=0.0)
    batch = batch_of(BERT, tokens_of(BERT))
    key = jax.random.key(0)
    assert not np.allclose(
        backbone.logits(backbone.params, batch, key), off.logits(off.params, batch)
    )
    np.testing.assert_array_equal(off.logits(off.params, batch, key), off.logits(off.params, batch))
