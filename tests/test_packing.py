"""Packed rows: every text once and whole, and the model learns from each what it did alone."""

import itertools

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import objectives
from peft_jax.errors import InputError
from peft_jax.examples import FewShotSampler
from peft_jax.mixtures import MixtureSampler
from peft_jax.packing import pack
from peft_jax.text_examples import TextExamples, TextRow
from tests.families import GEMMA3, LLAMA, quickly
from tests.test_transformer import CONFIG as T5

KINDS = ("encoder_decoder", "decoder", "prefix_decoder")
ORDERS = ("in_order", "first_fit_decreasing")
S, T = 16, 8


def make_examples(kind, rows=40, seed=0, **options) -> TextExamples:
    random = np.random.default_rng(seed)
    least = 1 if kind == "encoder_decoder" else 0
    made = [
        TextRow(
            random.integers(3, 50, random.integers(least, 14)),
            random.integers(3, 50, random.integers(2, 7)),
            i,
        )
        for i in range(rows)
    ]
    stored = "encoder_decoder" if kind == "encoder_decoder" else "decoder"
    fields = {"task": "toy", "split": "train", "template_names": ("one",), "vocabulary": "a" * 64}
    return TextExamples.from_rows(made, **fields, kind=stored, **options)


def sequences(batch, side, pad_id):
    """The tokens of every segment, by (row, segment), and that its places count from 0."""
    found = {}
    name = "encoder_input_tokens" if side == "encoder" else "decoder_target_tokens"
    segments, positions = batch[f"{side}_segment_ids"], batch[f"{side}_positions"]
    np.testing.assert_array_equal(segments == 0, batch[name] == pad_id)
    for row in range(len(segments)):
        used = segments[row][segments[row] > 0]
        assert (np.diff(used) >= 0).all()
        for segment in np.unique(used):
            inside = segments[row] == segment
            np.testing.assert_array_equal(positions[row][inside], np.arange(inside.sum()))
            found[row, int(segment)] = batch[name][row][inside]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_text_is_in_one_row_whole(kind, order):
    examples = make_examples(kind)
    packed = pack(examples, S, T, kind=kind, order=order, window=16)
    members = [packed.members[i].tolist() for i in range(len(packed))]
    assert sorted(itertools.chain(*members)) == list(range(len(examples)))
    batch = packed.rows(np.arange(len(packed)))
    told = sequences(batch, "decoder", 0)
    assert len(told) == len(examples)
    given = sequences(batch, "encoder", 0) if kind == "encoder_decoder" else {}
    for row, texts in enumerate(members):
        for segment, text in enumerate(texts, start=1):
            inputs, targets = examples.inputs[text], examples.targets[text]
            if kind == "encoder_decoder":
                np.testing.assert_array_equal(given[row, segment], inputs)
                np.testing.assert_array_equal(told[row, segment], targets)
            else:
                whole = np.concatenate([inputs, targets])
                np.testing.assert_array_equal(told[row, segment], whole[1:])
    weights = sum(len(targets) for targets in examples.targets)
    if kind != "encoder_decoder":  # nothing predicts the first token of an empty prompt's answer
        weights -= sum(len(inputs) == 0 for inputs in examples.inputs)
    assert batch["decoder_loss_weights"].sum() == weights


@pytest.mark.parametrize("kind", KINDS)
def test_in_order_is_the_packing_of_seqio(kind):
    import tensorflow as tf

    from peft_jax.tasks import converters

    examples = make_examples(kind, pad_id=77, start_id=60)
    converter = {
        "encoder_decoder": lambda: converters.TextToTextFeatureConverter(77, 60),
        "decoder": lambda: converters.DecoderFeatureConverter(77, pack=True),
        "prefix_decoder": lambda: converters.PrefixDecoderFeatureConverter(77, pack=True),
    }[kind]()

    def rows():
        for inputs, targets in zip(examples.inputs, examples.targets, strict=True):
            yield {"inputs": inputs, "targets": targets}

    spec = {key: tf.TensorSpec([None], tf.int32) for key in ("inputs", "targets")}
    dataset = tf.data.Dataset.from_generator(rows, output_signature=spec)
    theirs = list(converter(dataset, {"inputs": S, "targets": T}).as_numpy_iterator())
    window = S if kind == "encoder_decoder" else S + T
    packed = pack(examples, S, T, kind=kind, order="in_order", window=window)
    ours = packed.rows(np.arange(len(packed)))
    assert ours.pop("row").tolist() == list(range(len(theirs)))
    assert ours.keys() == theirs[0].keys()
    for key, array in ours.items():
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, [row[key] for row in theirs], err_msg=key)


def test_longest_first_leaves_less_room_empty():
    examples = make_examples("decoder", rows=400)
    in_order, best = (pack(examples, S, T, order=order) for order in ORDERS)
    tokens = sum(
        len(i) + len(t) - 1 for i, t in zip(examples.inputs, examples.targets, strict=True)
    )
    assert -(-tokens // (S + T)) <= len(best) < len(in_order) < len(examples)
    assert best.fill == tokens / (len(best) * (S + T)) > 0.95


def test_packing_is_the_same_again_and_shuffled_by_a_seed():
    examples = make_examples("decoder")
    packs = [pack(examples, S, T, order="in_order", seed=seed) for seed in (None, 1, 1, 2)]
    members = [packed.members.values.tolist() for packed in packs]
    assert members[0] == sorted(members[0])
    assert members[1] == members[2] != members[3]


def test_a_text_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"row \d+ takes \[1\d, \d\] places .* have \[9, 8\]"):
        pack(make_examples("encoder_decoder"), 9, T)
    with pytest.raises(InputError, match="order 'best'"):
        pack(make_examples("decoder"), S, T, order="best")
    with pytest.raises(InputError, match="tokenised for a model of kind 'encoder_decoder'"):
        pack(make_examples("encoder_decoder"), S, T, kind="decoder")


@pytest.mark.parametrize("kind", KINDS)
def test_samplers_draw_packed_rows(kind):
    packed = pack(make_examples(kind), S, T, kind=kind)
    few = FewShotSampler(packed, 2, seed=0)
    epoch = np.concatenate([few.batch(k)["row"] for k in range(few.batches_per_epoch)])
    assert len(set(epoch.tolist())) == len(epoch) >= len(packed) - 1
    other = pack(make_examples(kind, rows=10, seed=1), S, T, kind=kind)
    batch = MixtureSampler([packed, other], 4, seed=0, buckets=2).batch(3)
    for place, (task, row) in enumerate(zip(batch["task_ids"], batch["row"], strict=True)):
        own = (packed, other)[task].rows([row])
        for key in set(own) - {"row"}:
            np.testing.assert_array_equal(batch[key][place], own[key][0], err_msg=key)
    with pytest.raises(InputError, match="lengths"):
        MixtureSampler([packed, pack(make_examples(kind), S, T + 1, kind=kind)], 4, seed=0)


# Relative positions, rotary ones with a window of local attention, and prompts seen both ways.
MODELS = {
    "t5": (T5, "encoder_decoder"),
    "gemma3": (GEMMA3, "decoder"),
    "llama": (LLAMA, "prefix_decoder"),
}


@pytest.mark.parametrize("model", quickly(MODELS, ("t5",)))
def test_losses_and_gradients_are_those_of_the_texts_alone(model):
    config, kind = MODELS[model]
    backbone = pj.init_backbone(config, jax.random.key(0))
    examples = make_examples(kind, rows=7, pad_id=config.pad_id, start_id=config.decoder_start_id)
    packed = pack(examples, 20, 10, kind=kind)
    assert len(packed) < len(examples) - 2
    objective = objectives.lm_objective()

    @jax.jit
    @jax.value_and_grad
    def loss(params, batch):
        counts = objective.counts(config, batch)
        return objective.value(config, params, batch, None, counts)[0]

    batches = [examples.rows(np.arange(7), kind=kind), packed.rows(np.arange(len(packed)))]
    for batch in batches:
        batch.pop("row")
    (alone, alone_grads), (together, grads) = (loss(backbone.params, b) for b in batches)
    np.testing.assert_allclose(together, alone, rtol=2e-6)

    def close(one, other):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * max(abs(other).max(), 1e-3))

    jax.tree.map(close, grads, alone_grads)
