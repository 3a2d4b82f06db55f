"""Generating equals full passes: every family, methods, banks, ways of running it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import sharding, transformer
from peft_jax.decoding import beam_search, generation, one_by_one, step
from tests.families import FAMILIES, quickly
from tests.random_adapters import METHODS, adapted, backbone_of

WRITERS = [name for name, config in FAMILIES.items() if config.kind != "encoder"]
ROWS, LENGTH, LONGEST = 3, 7, 6
SPAN = {"vocabulary_range": (3, 50)}
over_writers = pytest.mark.parametrize("family", quickly(WRITERS))


def inputs_of(family, rows=ROWS, seed=0):
    """Ragged tokens that are neither padding nor EOS, padded on the right."""
    config = FAMILIES[family]
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, config.vocab_size - 1, (rows, LENGTH))
    real = np.arange(LENGTH) < np.resize([LENGTH, 3, 1], rows)[:, None]
    return {"encoder_input_tokens": np.where(real, tokens, config.pad_id).astype(np.int32)}


def moved_left(batch, pad):
    """The same rows with their padding in front."""
    rows = [[*row[row == pad], *row[row != pad]] for row in batch["encoder_input_tokens"]]
    return batch | {"encoder_input_tokens": np.asarray(rows, np.int32)}


def with_eos(backbone, eos):
    return backbone.replace(eos_id=int(eos), extra_eos_ids=())


@functools.cache
def ending(family):
    """A backbone whose EOS is a token that one of its texts comes to, inside if any does."""
    backbone = backbone_of(family)
    free = pj.greedy(with_eos(backbone, -1), backbone.params, inputs_of(family), LONGEST)
    for row in np.asarray(free):
        for place in range(1, LONGEST - 1):
            if row[place] not in row[:place]:
                return with_eos(backbone, row[place])
    return with_eos(backbone, free[0, 0])


def by_full_passes(backbone, params, batch, length):
    """The definition: all of a text is read again for every token, each row by itself."""
    config, inputs = backbone.config, np.asarray(batch["encoder_input_tokens"])
    logits_of = jax.jit(backbone.logits)
    written = np.full((len(inputs), length), config.pad_id, np.int32)
    for row in range(len(inputs)):
        prompt = inputs[row][inputs[row] != config.pad_id]
        one = {"task_ids": batch["task_ids"][row : row + 1]} if "task_ids" in batch else {}
        if config.kind == "decoder":
            front = len(prompt) - 1
            text = np.full(LENGTH + length - 1, config.pad_id, np.int32)
            text[: len(prompt)] = prompt
        else:
            front, text = 0, np.full(length, config.pad_id, np.int32)
            text[0] = config.decoder_start_id
            one["encoder_input_tokens"] = inputs[row : row + 1]
        for place in range(length):
            logits = logits_of(params, one | {"decoder_input_tokens": text[None]})
            token = int(jnp.argmax(logits[0, front + place]))
            written[row, place] = token
            if token == config.eos_id or place == length - 1:
                break
            text[front + place + 1] = token
    return written


def assert_texts_equal(one, other):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.lengths, other.lengths)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


# ------------------------------------------------------------------------------ full passes


@over_writers
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loop_equals_full_passes(family, side):
    if side == "left" and family == "bart":
        pytest.skip("its positions are places in the row")
    backbone, batch = ending(family), inputs_of(family)
    wanted = by_full_passes(backbone, backbone.params, batch, LONGEST)
    if side == "left":
        batch = moved_left(batch, backbone.config.pad_id)
    written = np.asarray(pj.greedy(backbone, backbone.params, batch, LONGEST))
    np.testing.assert_array_equal(written, wanted)
    assert (written == backbone.config.eos_id).any(), "no text ends: the end is not tested"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everywhere", "bitfit", "prompt", "composed"])
def test_the_loop_equals_full_passes_with_every_method(name):
    backbone, batch = ending("t5_v1_1"), inputs_of("t5_v1_1")
    method, stored = adapted(backbone, METHODS[name], noise=0.5)
    params = pj.merge(backbone.params, method.bind(stored))
    written = np.asarray(pj.greedy(backbone, params, batch, LONGEST))
    np.testing.assert_array_equal(written, by_full_passes(backbone, params, batch, LONGEST))
    plain = np.asarray(pj.greedy(backbone, backbone.params, batch, LONGEST))
    assert not np.array_equal(written, plain), "the adapter changes nothing: it is not tested"


@pytest.mark.parametrize("family", ["bart", "gpt2", "gemma3"])
def test_the_loop_equals_full_passes_with_soft_prompts(family):
    backbone, batch = ending(family), inputs_of(family)
    where = "both" if backbone.config.encoder_layers else "input"
    method, stored = adapted(
        backbone, pj.prompt_tuning(3, where=where, **SPAN), pj.lora(2), noise=0.5
    )
    params = pj.merge(backbone.params, method.bind(stored))
    written = np.asarray(pj.greedy(backbone, params, batch, LONGEST))
    np.testing.assert_array_equal(written, by_full_passes(backbone, params, batch, LONGEST))


@pytest.mark.slow
@pytest.mark.parametrize("family", quickly(("t5_v1_1", "bart", "gpt2"), ("gpt2",)))
def test_a_bank_equals_the_loop_over_its_tasks(family):
    """Decoders' prompts of two lengths, the shorter and none in front of the longer too."""
    backbone, decoding = ending(family), pj.Decoding(max_length=LONGEST, beams=3)
    where = "decoder" if backbone.config.encoder_layers else "input"
    parts = [
        (pj.prompt_tuning(2, where=where, **SPAN), pj.ia3()),
        (pj.prompt_tuning(4, where=where, **SPAN),),
    ]
    entries = [adapted(backbone, *p, noise=0.5, seed=i) for i, p in enumerate(parts)]
    tasks = np.array([-1, 0, 1, 0], np.int32)
    batch = inputs_of(family, len(tasks))
    bank = pj.merge(backbone.params, pj.bank(entries))
    mixed = pj.generate(backbone, bank, batch | {"task_ids": tasks}, decoding)
    for row, task in enumerate(tasks):
        params = backbone.params
        if task >= 0:
            method, stored = entries[task]
            params = pj.merge(params, method.bind(stored))
        alone = pj.generate(backbone, params, batch, decoding)
        np.testing.assert_array_equal(mixed.tokens[row], alone.tokens[row], f"task {task}")


def test_scores_are_mean_log_probabilities_of_the_model():
    backbone, batch = ending("t5_v1_1"), inputs_of("t5_v1_1")
    # What is forbidden or forced does not touch the score that the model itself gives.
    decoding = pj.Decoding(max_length=LONGEST, no_repeat_ngram=1, first_token=9)
    written = pj.generate(backbone, backbone.params, batch, decoding)
    tokens = written.tokens[:, 0]
    inputs = transformer.shift_right(backbone.config, tokens)
    logits = backbone.logits(backbone.params, batch | {"decoder_input_tokens": inputs})
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
    real = jnp.arange(LONGEST) < written.lengths
    wanted = jnp.sum(log_probs * real, axis=1) / written.lengths[:, 0]
    np.testing.assert_allclose(written.scores[:, 0], wanted, rtol=1e-5)


# ------------------------------------------------------------------------------ the end


def test_nothing_stands_behind_the_end():
    backbone, batch = ending("llama"), inputs_of("llama")
    written = pj.generate(backbone, backbone.params, batch, pj.Decoding(max_length=LONGEST))
    tokens, lengths = np.asarray(written.tokens)[:, 0], np.asarray(written.lengths)[:, 0]
    for row, length in zip(tokens, lengths, strict=True):
        assert (row[length:] == backbone.config.pad_id).all()
        assert (row[: length - 1] != backbone.config.eos_id).all()
        assert length == LONGEST or row[length - 1] == backbone.config.eos_id
    assert lengths.min() < LONGEST


@pytest.mark.parametrize("decoding", [{}, {"beams": 2, "early_stopping": True}], ids=str)
def test_the_loop_ends_when_all_rows_are_done(monkeypatch, decoding):
    steps = []
    real = transformer.head

    def counting(*arguments):
        jax.debug.callback(lambda: steps.append(1))
        return real(*arguments)

    monkeypatch.setattr(transformer, "head", counting)
    backbone = backbone_of("t5_v1_1")
    # Nearly every token ends a text, but no text may end before its fourth.
    options = {"max_length": 40, "min_length": 3, "eos_ids": tuple(range(2, 57))}
    decoding = pj.Decoding(**options, **decoding)
    written = pj.generate(backbone, backbone.params, inputs_of("t5_v1_1"), decoding)
    jax.block_until_ready(written)
    jax.effects_barrier()
    assert int(written.lengths.max()) <= len(steps) < 12


def test_several_tokens_may_end_a_text():
    backbone, batch = backbone_of("llama"), inputs_of("llama")
    free = np.asarray(pj.greedy(with_eos(backbone, -1), backbone.params, batch, LONGEST))
    ends = (int(free[0, 3]), int(free[1, 1]))
    several = backbone.replace(eos_id=ends[0], extra_eos_ids=ends[1:])
    written = np.asarray(pj.greedy(several, backbone.params, batch, LONGEST))
    for row, whole in zip(written, free, strict=True):
        found = np.isin(whole, ends)
        length = int(found.argmax()) + 1 if found.any() else LONGEST
        np.testing.assert_array_equal(row[:length], whole[:length])
        assert (row[length:] == backbone.config.pad_id).all()


# ------------------------------------------------------------------------------ how it runs


@pytest.mark.slow
@pytest.mark.parametrize("family", quickly(("t5_v1_1", "bart", "gemma2", "gemma3"), ("gemma3",)))
@pytest.mark.parametrize("beams", [1, 3])
def test_a_stack_of_layers_equals_a_list(monkeypatch, family, beams):
    backbone, batch = ending(family), inputs_of(family)
    where = "both" if backbone.config.encoder_layers else "input"
    method, stored = adapted(backbone, pj.prompt_tuning(2, where=where, **SPAN), pj.ia3())
    params = pj.merge(backbone.params, method.bind(stored))
    decoding = pj.Decoding(max_length=LONGEST, beams=beams, sequences=beams)
    listed = pj.generate(backbone, params, batch, decoding)
    monkeypatch.setattr(generation, "separate_layers", lambda params: None)
    assert_texts_equal(pj.generate(backbone, params, batch, decoding), listed)


def test_layers_are_taken_apart_without_a_copy():
    params = pj.init_backbone(FAMILIES["llama"], jax.random.key(0)).params
    layers = step.separate_layers(params)
    stacked = params["decoder"]["layers"]["mlp"]["wo"]["kernel"]
    size = stacked[0].nbytes
    for i, layer in enumerate(layers):
        kernel = layer["mlp"]["wo"]["kernel"]
        np.testing.assert_array_equal(kernel, stacked[i])
        # A copy is made only where a layer's memory does not start at a multiple of 64 bytes.
        place = stacked.unsafe_buffer_pointer() + i * size
        assert place % 64 or kernel.unsafe_buffer_pointer() == place


@pytest.mark.parametrize("decoding", [{}, {"beams": 2}], ids=str)
def test_it_runs_inside_jit(decoding):
    backbone, batch = ending("gpt2"), inputs_of("gpt2")
    decoding = pj.Decoding(max_length=LONGEST, **decoding)
    inside = jax.jit(lambda params, batch: pj.generate(backbone, params, batch, decoding))
    assert_texts_equal(
        inside(backbone.params, batch), pj.generate(backbone, backbone.params, batch, decoding)
    )


def test_rows_on_several_devices():
    backbone, batch = ending("t5_v1_1"), inputs_of("t5_v1_1", rows=8)
    mesh = sharding.make_mesh(8)
    params, rows = sharding.replicate(mesh, backbone.params), sharding.put_batch(mesh, batch)
    decoding = pj.Decoding(max_length=LONGEST, beams=2)
    spread = pj.generate(backbone, params, rows, decoding)
    assert len(spread.tokens.sharding.device_set) == 8
    assert_texts_equal(spread, pj.generate(backbone, backbone.params, batch, decoding))


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [{}, {"beams": 2}, {"temperature": 0.7}], ids=str)
def test_low_precision_decodes(decoding):
    backbone = backbone_of("t5_v1_1", jnp.bfloat16).replace(activation_dtype="bfloat16")
    decoding = pj.Decoding(max_length=4, **decoding)
    written = pj.generate(
        backbone, backbone.params, inputs_of("t5_v1_1"), decoding, jax.random.key(0)
    )
    assert written.scores.dtype == jnp.float32
    tokens = np.asarray(written.tokens)
    assert ((tokens >= 0) & (tokens < backbone.config.vocab_size)).all()


# ------------------------------------------------------------------------------ what compiles


def compiled():
    return [
        program._cache_size()
        for program in (step.read, one_by_one.decode_one_by_one, beam_search.search_beams)
    ]


@pytest.mark.parametrize("beams", [1, 2])
def test_another_adapter_compiles_nothing(beams):
    backbone, batch = backbone_of("t5_v1_1"), inputs_of("t5_v1_1")
    decoding, results, counts = pj.Decoding(max_length=5, beams=beams), [], []
    for seed in range(3):
        method, stored = adapted(backbone, pj.ia3(), noise=0.5, seed=seed)
        params = pj.merge(backbone.params, method.bind(stored))
        results.append(np.asarray(pj.generate(backbone, params, batch, decoding).tokens))
        counts.append(compiled())
    assert counts[0] == counts[1] == counts[2]
    assert any(not np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("family", ["t5_v1_1", "gpt2"])
def test_another_length_of_input_compiles_no_loop(family):
    backbone, counts = backbone_of(family), []
    for length in (4, 7, 5):
        batch = {"encoder_input_tokens": inputs_of(family)["encoder_input_tokens"][:, :length]}
        pj.generate(backbone, backbone.params, batch, pj.Decoding(max_length=3))
        counts.append(compiled()[1])
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize(
    "changes",
    [
        [{"temperature": 0.5, "top_p": 0.9}, {"temperature": 2.0, "top_p": 0.3}],
        [{"repetition_penalty": 1.2}, {"repetition_penalty": 3.0}],
        [
            {"beams": 2, "length_penalty": 2.0, "early_stopping": "never"},
            {"beams": 2, "length_penalty": -1.0, "early_stopping": False},
        ],
        [{"stop_tokens": ((5, 6),)}, {"stop_tokens": ((7, 8),)}],
    ],
    ids=str,
)
def test_another_number_compiles_nothing(changes):
    backbone, batch, counts = backbone_of("t5_v1_1"), inputs_of("t5_v1_1"), []
    for change in changes:
        decoding = pj.Decoding(max_length=3, **change)
        pj.generate(backbone, backbone.params, batch, decoding, jax.random.key(0))
        counts.append(compiled())
    assert counts[0] == counts[1]


# ------------------------------------------------------------------------------ bad input


def test_what_cannot_be_done_is_said():
    t5, gpt2, bert = (backbone_of(name) for name in ("t5_v1_1", "gpt2", "bert"))
    batch = inputs_of("t5_v1_1")
    with pytest.raises(pj.InputError, match="needs a key"):
        pj.generate(t5, t5.params, batch, pj.Decoding(top_k=3))
    with pytest.raises(pj.InputError, match="writes no text"):
        pj.generate(bert, bert.params, batch)
    packed = batch | {"encoder_segment_ids": batch["encoder_input_tokens"]}
    with pytest.raises(pj.InputError, match="packed"):
        pj.generate(t5, t5.params, packed)
    with pytest.raises(pj.InputError, match=r"max_length 15 behind 7 tokens .* 21 positions"):
        pj.generate(gpt2, gpt2.params, inputs_of("gpt2"), pj.Decoding(max_length=15))
    with pytest.raises(pj.InputError, match="token 57 is not in a vocabulary of 57"):
        pj.generate(t5, t5.params, batch, pj.Decoding(eos_ids=(57,)))
    with pytest.raises(pj.InputError, match="max_length 0"):
        pj.greedy(t5, t5.params, batch, 0)


def test_learned_positions_reach_as_far_as_they_do():
    gpt2, batch = backbone_of("gpt2"), inputs_of("gpt2")
    assert gpt2.config.max_positions == 20
    written = pj.greedy(gpt2, gpt2.params, batch, 14)
    np.testing.assert_array_equal(written, by_full_passes(gpt2, gpt2.params, batch, 14)[:, :14])


def in_the_loop(text):
    """The lines of a compiled program that its entry does not run by itself."""
    return text[: text.index("\nENTRY ")].splitlines()


@pytest.mark.parametrize("family", ["t5_v1_1", "gemma3"])
@pytest.mark.parametrize("beams", [1, 3])
def test_the_loop_copies_neither_cache_nor_weights(family, beams):
    config, length = FAMILIES[family], 40
    backbone = pj.init_backbone(config, jax.random.key(0))
    decoding = pj.Decoding(max_length=length, beams=beams).for_backbone(config)
    inputs = generation._prepare(config, backbone.params, inputs_of(family, 4), decoding)
    options = (generation._structure(decoding), generation._strengths(decoding))
    if beams == 1:
        lowered = one_by_one.decode_one_by_one.lower(
            config, options[0], True, *inputs, options[1], None, None
        )
    else:
        factors = beam_search.length_factors(decoding)
        lowered = beam_search.search_beams.lower(
            config, options[0], *inputs, options[1], factors, None
        )
    text = lowered.compile().as_text()
    cache = f"f32[4,{config.kv_heads},{length * beams},{config.d_kv}]"
    kernels = {f"f32[{a},{b}]" for a, b in [(24, config.d_ff), (config.d_ff, 24)]}
    lines = in_the_loop(text)
    assert any(cache in line and "dynamic-update-slice" in line for line in lines)
    moved = [
        line
        for line in lines
        if any(f"{shape}{{" in line.split("(")[0] for shape in {cache, *kernels})
        and any(f" {kind}(" in line for kind in ("copy", "gather", "transpose", "concatenate"))
    ]
    assert not moved
