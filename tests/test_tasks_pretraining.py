"""Span corruption and prefix LM: t5's own numbers, and laws that every example keeps."""

import collections
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.tasks import denoising
from peft_jax.tasks.documents import read_documents
from peft_jax.tokenizer import load_tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "denoising.json").read_text())
VOCAB_SIZE = GOLDEN["vocab_size"]
TINY = Path(__file__).parents[1] / "peft_jax" / "backbones" / "tiny"
SENTENCE = "The first document has some words of its own. "


def runs(mask):
    return int((mask & ~np.concatenate([[False], mask[:-1]])).sum())


def restored(inputs, targets, vocab_size=VOCAB_SIZE):
    """The text of a corrupted one: each sentinel's span is put where the sentinel stands."""
    is_sentinel = lambda token: vocab_size - 100 <= token < vocab_size  # noqa: E731
    spans = collections.defaultdict(list)
    current = None
    for token in targets:
        if is_sentinel(token):
            current = token
        else:
            spans[current].append(token)
    return [t for token in inputs for t in (spans[token] if is_sentinel(token) else [token])]


# --------------------------------------------------------------------------------------------
# Against t5 0.9.4
# --------------------------------------------------------------------------------------------
def test_lengths_are_those_of_t5():
    for case in GOLDEN["helper"]:
        found = denoising.random_spans_helper(case["inputs_length"], *case["spans"])
        assert list(found) == case["lengths"], case
    assert denoising.random_spans_helper(512) == (568, 114)


def test_masks_have_as_much_noise_as_those_of_t5():
    for case in GOLDEN["counts"]:
        for length, noise, spans in zip(range(1, 120), case["noise"], case["runs"], strict=True):
            mask = denoising.random_spans_noise_mask(
                length, denoising.example_rng(0, length), *case["spans"]
            )
            assert (len(mask), mask.sum(), runs(mask)) == (length, noise, spans)


def test_inputs_and_targets_under_a_mask_are_those_of_t5():
    for case in GOLDEN["corrupted"]:
        tokens, mask = np.array(case["tokens"]), np.array(case["mask"], bool)
        arguments = (tokens, mask, VOCAB_SIZE)
        inputs = denoising.noise_span_to_unique_sentinel(*arguments)
        targets = denoising.nonnoise_span_to_unique_sentinel(*arguments)
        assert inputs.tolist() == case["inputs"]
        assert targets.tolist() == case["targets"]


def test_chunks_are_those_of_t5():
    case = GOLDEN["chunks"]
    made = denoising.token_chunks(case["documents"], case["length"], case["together"])
    assert [chunk.tolist() for chunk in made] == case["chunks"]


# --------------------------------------------------------------------------------------------
# Laws
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("length", "density", "mean"), [(9, 0.4, 2.0), (8, 0.5, 2.0)])
def test_every_mask_is_as_likely_as_any_other(length, density, mean):
    one = denoising.random_spans_noise_mask(length, denoising.example_rng(0, 0), density, mean)
    possible = {
        mask
        for mask in itertools.product([False, True], repeat=length)
        if not mask[0] and mask[-1] and sum(mask) == one.sum() and runs(np.array(mask)) == runs(one)
    }
    draws = 150 * len(possible)
    found = collections.Counter(
        tuple(
            denoising.random_spans_noise_mask(
                length, denoising.example_rng(3, i), density, mean
            ).tolist()
        )
        for i in range(draws)
    )
    assert set(found) == possible
    squares = sum((count - 150) ** 2 / 150 for count in found.values())
    assert squares < len(possible) + 4 * (2 * len(possible)) ** 0.5


def test_every_prefix_is_as_likely_as_any_other():
    found = collections.Counter(
        int(denoising.random_prefix_noise_mask(6, denoising.example_rng(0, i)).sum())
        for i in range(2000)
    )
    assert set(found) == {1, 2, 3, 4, 5}
    assert all(abs(count - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5 for count in found.values())
    mask = denoising.random_prefix_noise_mask(6, denoising.example_rng(0, 0))
    assert np.all(np.diff(mask.astype(int)) <= 0)
    assert not denoising.random_prefix_noise_mask(1, denoising.example_rng(0, 0)).any()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 50, 568])
def test_nothing_is_lost(length):
    tokens = np.random.default_rng(length).integers(2, 800, length)
    for index in range(5):
        inputs, targets = denoising.span_corruption(
            tokens, denoising.example_rng(0, index), VOCAB_SIZE
        )
        assert restored(inputs.tolist(), targets.tolist()) == tokens.tolist()
        assert inputs.dtype == targets.dtype == np.int32
        prefix, rest = denoising.prefix_lm(tokens, denoising.example_rng(0, index))
        assert [*prefix, *rest] == tokens.tolist()
    if length == 568:
        assert (len(inputs) + 1, len(targets) + 1) == (512, 114)


def test_what_cannot_be_corrupted_is_refused():
    tokens = np.arange(2, 902)
    mask = np.tile([False, True], 450)
    with pytest.raises(InputError, match="450 spans in 900 tokens are more than the 100 sentinels"):
        denoising.noise_span_to_unique_sentinel(tokens, mask, VOCAB_SIZE)
    with pytest.raises(InputError, match=r"noise_density 0\.9 is too high"):
        denoising.random_spans_noise_mask(20, denoising.example_rng(0, 0), 0.9, 1.0)
    with pytest.raises(InputError, match="3 are needed"):
        denoising.random_spans_helper(2)
    assert not denoising.random_spans_noise_mask(5, denoising.example_rng(0, 0), 0.0).any()


# --------------------------------------------------------------------------------------------
# Examples in memory
# --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def texts():
    return [f"Text {i} begins here. " + SENTENCE * (1 + i % 5) for i in range(30)]


@pytest.mark.parametrize("objective", ["span_corruption", "prefix_lm"])
def test_examples_hold_the_texts(objective, tokenizer, texts):
    made = denoising.pretraining_examples(objective, texts, tokenizer, inputs_length=32)
    whole = [token for text in texts for token in tokenizer.encode(text)]
    found = []
    for inputs, targets in zip(made.inputs, made.targets, strict=True):
        assert inputs[-1] == targets[-1] == tokenizer.eos_id
        inputs, targets = inputs[:-1].tolist(), targets[:-1].tolist()
        if objective == "span_corruption":
            found += restored(inputs, targets, tokenizer.vocab_size)
        else:
            found += inputs + targets
    assert found == whole
    assert made.inputs.lengths.max() <= 32
    again = denoising.pretraining_examples(objective, texts, tokenizer, inputs_length=32)
    np.testing.assert_array_equal(made.inputs.values, again.inputs.values)
    other = denoising.pretraining_examples(objective, texts, tokenizer, inputs_length=32, epoch=1)
    assert len(other) == len(made)
    assert other.inputs.values.tolist() != made.inputs.values.tolist()
    batch = made.rows(np.arange(4))
    assert batch["encoder_input_tokens"].shape == (4, made.lengths[0])


def test_a_decoder_goes_on_from_its_prefix(tokenizer, texts):
    made = denoising.pretraining_examples(
        "prefix_lm", texts, tokenizer, inputs_length=32, kind="decoder"
    )
    assert tokenizer.eos_id not in made.inputs.values
    assert (made.inputs.lengths + made.targets.lengths).max() == 31
    with pytest.raises(InputError, match="take prefix_lm for other models"):
        denoising.pretraining_examples("span_corruption", texts, tokenizer, kind="decoder")
    with pytest.raises(InputError, match="objective 'mlm': one of span_corruption, prefix_lm"):
        denoising.pretraining_examples("mlm", texts, tokenizer)
    assert denoising.sentinel_count(tokenizer) == 100


def test_a_folder_of_text_is_prepared_and_evaluated(tmp_path, tokenizer, texts, capsys):
    from peft_jax.cli import main
    from peft_jax.text_examples import TextExamples

    for number, text in enumerate(texts):
        (tmp_path / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    file = tmp_path / "out.safetensors"
    command = ["prepare", "--task", "span_corruption", "--directory", str(tmp_path)]
    command += ["--max-input-length", "32", "--output", str(file)]
    assert main(command) == 0
    assert main(command) == 2
    read = TextExamples.load(file, tokenizer.identity)
    made = denoising.pretraining_examples(
        "span_corruption", read_documents(tmp_path, "train"), tokenizer, inputs_length=32
    )
    np.testing.assert_array_equal(read.targets.values, made.targets.values)
    assert read.references[0] == made.references[0]
    assert read.task == "span_corruption"
    with pytest.raises(InputError, match="is made of text: give"):
        denoising.folder_examples(
            "prefix_lm", "train", directory=None, backbone_vocabulary_path="unread"
        )


# --------------------------------------------------------------------------------------------
# seqio
# --------------------------------------------------------------------------------------------
@pytest.fixture
def registered(tmp_path, texts):
    from peft_jax.tasks.pretraining import register_pretraining

    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "train.jsonl").write_text("".join(lines[:-8]), encoding="utf-8")
    (tmp_path / "validation.jsonl").write_text("".join(lines[-8:]), encoding="utf-8")
    return register_pretraining(tmp_path, vocabulary=TINY / "spiece.model", prefix="test_")


def test_seqio_tasks_hold_the_texts(registered, tokenizer, texts):
    import seqio

    assert registered == ["test_span_corruption", "test_prefix_lm"]
    for name in registered:
        task = seqio.get_mixture_or_task(name)
        lengths = {"inputs": 32, "targets": 32}
        rows = [
            list(
                task.get_dataset(
                    lengths, "validation", shuffle=False, seed=seed
                ).as_numpy_iterator()
            )
            for seed in ((1, 1, 2) if name == "test_span_corruption" else (1,))
        ]
        found = []
        for row in rows[0]:
            inputs, targets = row["inputs"].tolist(), row["targets"].tolist()
            assert inputs.pop() == targets.pop() == tokenizer.eos_id
            if name == "test_span_corruption":
                found += restored(inputs, targets, tokenizer.vocab_size)
            else:
                found += inputs + targets
        assert found == [token for text in texts[-8:] for token in tokenizer.encode(text)]
        alike = [
            [all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(rows[0], r, strict=True)]
            for r in rows[1:]
        ]
        assert [all(one) for one in alike] == [True, False][: len(alike)]


def test_seqio_tasks_refuse_lengths_that_do_not_fit(registered):
    import seqio

    task = seqio.get_mixture_or_task(registered[0])
    with pytest.raises(InputError, match="has targets of 114, the length of targets is 100"):
        task.get_dataset({"inputs": 512, "targets": 100}, "train")
    with pytest.raises(InputError, match="need the length of inputs"):
        task.get_dataset(None, "train")


def test_a_long_text_gives_one_of_its_chunks():
    import tensorflow as tf

    from peft_jax.tasks.pretraining import select_random_chunk, split_tokens

    dataset = tf.data.Dataset.from_tensors({"targets": tf.range(25)}).repeat(60)
    found = {
        tuple(row["targets"].tolist())
        for row in select_random_chunk(dataset, {}, max_length=10).as_numpy_iterator()
    }
    expected = {tuple(range(s, min(s + 10, 25))) for s in (0, 10, 20)}
    assert found == expected
    parts = split_tokens(dataset.take(1), 10).as_numpy_iterator()
    assert {tuple(row["targets"].tolist()) for row in parts} == expected


@pytest.mark.slow
def test_seqio_and_memory_make_the_same_chunks_of_real_text(shared_data, tmp_path):
    import seqio

    from peft_jax.tasks.pretraining import register_pretraining

    folder, file = shared_data / "pretrain_text", shared_data / "oracles/t5_vocab/spiece.model"
    tokenizer = load_tokenizer(file)
    # seqio takes "<unk>" in a text for five pieces, a Hugging Face tokenizer for one.
    documents = [d for d in read_documents(folder, "validation") if "<unk>" not in d]
    lines = "".join(json.dumps({"text": d}) + "\n" for d in documents)
    (tmp_path / "validation.jsonl").write_text(lines, encoding="utf-8")
    made = denoising.pretraining_examples("span_corruption", documents, tokenizer)
    (name, _) = register_pretraining(tmp_path, vocabulary=file, prefix="real_")
    rows = seqio.get_mixture_or_task(name).get_dataset(
        {"inputs": 512, "targets": 114}, "validation", shuffle=False, seed=0
    )
    for row, inputs, targets in zip(
        rows.as_numpy_iterator(), made.inputs, made.targets, strict=True
    ):
        texts = [
            restored(a[:-1].tolist(), b[:-1].tolist(), tokenizer.vocab_size)
            for a, b in ((row["inputs"], row["targets"]), (inputs, targets))
        ]
        assert texts[0] == texts[1]
