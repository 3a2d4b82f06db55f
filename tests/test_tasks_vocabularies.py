"""Any folder's tokenizer as a seqio vocabulary, and in seqio's tasks."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.prompted import find_task
from peft_jax.tokenizer import load_tokenizer, row_ids
from tests.golden.make_tokenizers import SAMPLE
from tests.small_task import write_task, write_vocabulary

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
NAMES = ("gpt2", "llama2", "llama3", "bert", "roberta")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("data") / "mine")


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_tokenizers_in_python_and_in_tensorflow(name):
    import tensorflow as tf

    from peft_jax.tasks.vocabularies import load_vocabulary

    vocabulary, tokenizer = load_vocabulary(GOLDEN / name), load_tokenizer(GOLDEN / name)
    expected = [tokenizer.encode(text) for text in SAMPLE]
    assert [list(vocabulary.encode(text)) for text in SAMPLE] == expected
    assert vocabulary.encode_tf(tf.constant(SAMPLE)).to_list() == expected
    assert vocabulary.encode_tf(tf.constant(SAMPLE[:0])).to_list() == []
    # As seqio calls it: inside a graph, on one text.
    ds = tf.data.Dataset.from_tensor_slices(SAMPLE).map(vocabulary.encode_tf)
    assert ds.element_spec.shape.rank == 1
    assert [ids.tolist() for ids in ds.as_numpy_iterator()] == expected
    ids = tokenizer.encode("the lazy dog")
    assert vocabulary.decode(ids) == tokenizer.decode(ids)
    rows = tf.constant([[*ids, vocabulary.pad_id], [vocabulary.pad_id, *ids]])
    assert [text.decode() for text in vocabulary._decode_tf(rows).numpy()] == [
        tokenizer.decode(ids)
    ] * 2
    assert vocabulary._decode_tf(rows[0]).numpy().decode() == tokenizer.decode(ids)


def test_special_ids_and_sizes():
    from peft_jax.tasks.vocabularies import load_vocabulary

    gpt2, roberta = (load_vocabulary(GOLDEN / name) for name in ("gpt2", "roberta"))
    assert (gpt2.pad_id, gpt2.bos_id, gpt2.eos_id, gpt2.unk_id) == (-1, 0, 0, 0)
    assert (roberta.pad_id, roberta.bos_id, roberta.eos_id, roberta.unk_id) == (1, 0, 2, 3)
    assert gpt2.vocab_size == load_tokenizer(GOLDEN / "gpt2").vocab_size


def test_equality_is_that_of_the_tokens(tmp_path):
    from peft_jax.tasks.vocabularies import HuggingFaceVocabulary

    for file in (GOLDEN / "gpt2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    one, copy = HuggingFaceVocabulary(GOLDEN / "gpt2"), HuggingFaceVocabulary(tmp_path)
    assert one == copy == pickle.loads(pickle.dumps(one))
    assert len({one, copy, HuggingFaceVocabulary(GOLDEN / "bert")}) == 2
    assert one != "gpt2"
    assert one._identity in str(one)


def test_a_t5_keeps_seqios_own_vocabulary(spiece, tmp_path):
    import seqio

    from peft_jax.tasks.vocabularies import HuggingFaceVocabulary, load_vocabulary

    vocabulary = load_vocabulary(spiece)
    assert vocabulary == seqio.SentencePieceVocabulary(str(spiece), extra_ids=100)
    assert isinstance(load_vocabulary(spiece, "decoder"), HuggingFaceVocabulary)
    # One whose sentinels are pieces, as mT5's are, gets no others.
    import sentencepiece

    sentinels = [f"▁<extra_id_{i}>" for i in range(2)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAMPLE), model_prefix=str(tmp_path / "spiece"), vocab_size=300,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, user_defined_symbols=sentinels,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    assert load_vocabulary(tmp_path / "spiece.model").extra_ids == 0
    with pytest.raises(InputError, match="kind of model 'both'"):
        load_vocabulary(spiece, "both")


# --------------------------------------------------------------------------------------------
# Tasks
# --------------------------------------------------------------------------------------------
CASES = [
    ("gpt2", "decoder", -1),
    ("llama2", "decoder", -1),
    ("llama3", "decoder", -1),
    ("roberta", "encoder_decoder", 1),  # BART's tokenizer
    ("t5", "decoder", 0),
]


@pytest.mark.parametrize(("name", "kind", "pad_id"), CASES)
def test_prepared_rows_are_the_tokenizers(name, kind, pad_id, folder, spiece):
    from peft_jax.tasks.prepare import choice_examples

    path = spiece if name == "t5" else GOLDEN / name
    tokenizer = load_tokenizer(path)
    examples = choice_examples(
        "mine", "train", backbone_vocabulary_path=path, directory=folder, kind=kind, pad_id=pad_id,
        max_input_length=24, max_choice_length=128,
    )  # fmt: skip
    assert (examples.pad_id, examples.vocabulary) == (pad_id, tokenizer.identity)
    texts = find_task("mine", directory=folder).prompted("train")
    cut = zero = 0
    for row, text in enumerate(texts):
        ids, choices = row_ids(tokenizer, kind, text.input, text.choices, max_input_length=24)
        tokens = examples.encoder_input_tokens[row]
        assert tokens[: len(ids)].tolist() == ids
        assert (tokens[len(ids) :] == pad_id).all()
        cut += len(ids) == 24
        assert examples.choice_mask[row].sum() == len(choices)
        for got, expected in zip(examples.choices[row], choices, strict=False):
            assert got[: len(expected)].tolist() == expected
            assert (got[len(expected) :] == pad_id).all()
            zero += expected[-1] == 0
        assert (examples.choices[row, len(choices) :] == pad_id).all()
        assert examples.label[row] == text.label
    assert cut
    assert zero if name == "gpt2" else not zero, "GPT-2's EOS is 0 here, and no padding"
    assert examples.details.get("kind", "encoder_decoder") == kind


def test_a_task_without_an_eos_or_for_an_encoder_is_refused(folder):
    from peft_jax.tasks.prepare import choice_examples
    from peft_jax.tasks.registry import register

    options = {"directory": folder}
    with pytest.raises(InputError, match="no EOS"):
        register("mine", vocabulary=GOLDEN / "bert", kind="decoder", **options)
    with pytest.raises(InputError, match="label_examples"):
        register("mine", vocabulary=GOLDEN / "bert", kind="encoder", **options)
    with pytest.raises(InputError, match=r"the choice 'No' has \d+ tokens with EOS, the limit"):
        choice_examples(
            "mine", "train", backbone_vocabulary_path=GOLDEN / "gpt2", max_choice_length=2,
            kind="decoder", **options,
        )  # fmt: skip


def batches(name, converter, lengths, split="train"):
    import seqio

    ds = seqio.get_dataset(name, lengths, converter, split, verbose=False)
    return list(ds.as_numpy_iterator())


@pytest.fixture(scope="module")
def decoder_task(folder):
    from peft_jax.tasks.registry import register

    return register("mine", vocabulary=GOLDEN / "gpt2", directory=folder, kind="decoder")[0]


S, T = 40, 30


@pytest.mark.parametrize("prefix", [False, True])
def test_a_decoders_batches_predict_the_answer_alone(decoder_task, folder, prefix):
    from peft_jax.tasks import converters

    tokenizer = load_tokenizer(GOLDEN / "gpt2")
    which = "PrefixDecoderFeatureConverter" if prefix else "DecoderFeatureConverter"
    converter = getattr(converters, which)(pad_id=-1)
    made = batches(decoder_task, converter, converters.decoder_lengths(S, T))
    texts = find_task("mine", directory=folder).prompted("train")
    assert len(made) == len(texts)
    for row, text in zip(made, texts, strict=True):
        prompt, (answer,) = row_ids(
            tokenizer, "decoder", text.input, [text.target], max_input_length=S
        )
        answer = answer[:T]
        sequence, fill = prompt + answer, S + T + 1 - len(prompt + answer)
        assert set(row) == set(converter.MODEL_FEATURES)
        assert row["decoder_input_tokens"].tolist() == sequence[:-1] + [-1] * fill
        assert row["decoder_target_tokens"].tolist() == sequence[1:] + [-1] * fill
        weights = [0] * (len(prompt) - 1) + [1] * len(answer) + [0] * fill
        assert row["decoder_loss_weights"].tolist() == weights
        if prefix:
            places = np.arange(S + T)
            np.testing.assert_array_equal(row["decoder_causal_attention"], places < len(prompt))


def test_packed_decoder_batches_hold_the_same_sequences(decoder_task):
    from peft_jax.tasks import converters

    lengths = converters.decoder_lengths(S, 3 * S)
    keys = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
    keys += ("decoder_causal_attention",)
    alone = batches(decoder_task, converters.PrefixDecoderFeatureConverter(-1), lengths)
    packed = batches(decoder_task, converters.PrefixDecoderFeatureConverter(-1, pack=True), lengths)
    assert len(packed) < len(alone) / 2
    expected = {
        tuple(tuple(row[key][row["decoder_target_tokens"] >= 0].tolist()) for key in keys)
        for row in alone
    }
    found = set()
    for row in packed:
        segments = row["decoder_segment_ids"]
        assert ((segments == 0) == (row["decoder_target_tokens"] == -1)).all()
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            found.add(tuple(tuple(row[key][inside].tolist()) for key in keys))
            assert row["decoder_positions"][inside].tolist() == list(range(inside.sum()))
    assert found == expected


@pytest.mark.parametrize("pack", [False, True])
def test_t5_batches_equal_seqios_own(folder, spiece, pack):
    import seqio

    from peft_jax.tasks import converters
    from peft_jax.tasks.registry import register

    (name, *_) = register("mine_t5", vocabulary=spiece, directory=folder)
    lengths = converters.encdec_lengths(S, T)
    ours = batches(name, converters.TextToTextFeatureConverter(pack=pack), lengths)
    theirs = batches(name, seqio.EncDecFeatureConverter(pack=pack), lengths)
    assert_equal(ours, theirs)
    if pack:  # seqio's first BOS is one place more, in every packed example
        return
    ours = batches(name, converters.PrefixDecoderFeatureConverter(), lengths)
    theirs = batches(name, seqio.PrefixLMFeatureConverter(pack=False), lengths)
    for one, other in zip(ours, theirs, strict=True):
        for key in set(one) - {"decoder_input_tokens"}:
            np.testing.assert_array_equal(one[key][:-1], other[key][1:])
        real = other["decoder_target_tokens"][1:] != 0
        got = one["decoder_input_tokens"][:-1]
        np.testing.assert_array_equal(got, np.where(real, other["decoder_input_tokens"][1:], 0))


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert set(one) == set(other)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], key)


@pytest.mark.parametrize("pack", [False, True])
def test_a_barts_batches_have_its_own_padding_and_start(folder, pack):
    from peft_jax.tasks import converters
    from peft_jax.tasks.registry import register

    (name, *_) = register("mine_bart", vocabulary=GOLDEN / "roberta", directory=folder)
    converter = converters.TextToTextFeatureConverter(pad_id=1, start_id=2, pack=pack)
    made = batches(name, converter, converters.encdec_lengths(S, T))
    seen = 0
    for row in made:
        targets, inputs = row["decoder_target_tokens"], row["decoder_input_tokens"]
        real = targets != 1
        np.testing.assert_array_equal(row["decoder_loss_weights"], real)
        segments = row["decoder_segment_ids"] if pack else np.where(real, 1, 0)
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            seen += 1
            assert inputs[inside].tolist() == [2, *targets[inside][:-1]]
            assert targets[inside][-1] == 2
        if pack:
            assert (inputs[segments == 0] == 1).all()
        first = row["encoder_input_tokens"][0]
        assert first == 0, "BART's inputs start with <s>"
    assert seen == 30
