"""Registered seqio tasks and their feature converters."""

import numpy as np
import pytest

from peft_jax.errors import InputError
from tests.small_task import write_task, write_vocabulary

S, C, T = 16, 4, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("data") / "my-task")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def names(folder, vocabulary):
    from peft_jax.tasks.registry import register

    return register("my-task", vocabulary=vocabulary, directory=folder)


def choice_rows(name, split="train", lengths=(S, C, T), **kwargs):
    import seqio

    from peft_jax.tasks.converters import RankClassificationFeatureConverter, choice_lengths

    return seqio.get_dataset(
        name,
        choice_lengths(*lengths),
        RankClassificationFeatureConverter(),
        dataset_split=split,
        verbose=False,
        **kwargs,
    )


def test_names(names):
    import seqio

    assert names == [
        "my_task", "my_task_plain_question", "my_task_some_rows_only", "my_task_three_answers",
    ]  # fmt: skip
    assert set(names) <= set(seqio.TaskRegistry.names())


def test_registering_again_replaces(names, folder, vocabulary):
    from peft_jax.tasks.registry import register

    assert register("my-task", vocabulary=vocabulary, directory=folder) == names


def test_static_shapes_and_dtypes(names):
    spec = choice_rows(names[0]).element_spec
    assert {key: (tuple(v.shape), v.dtype.name) for key, v in spec.items()} == {
        "encoder_input_tokens": ((S,), "int32"),
        "choices": ((C, T), "int32"),
        "choice_mask": ((C,), "bool"),
        "label": ((), "int32"),
        "example": ((), "int32"),
        "template": ((), "int32"),
    }


def test_tokens_are_sentencepieces_with_eos(names, folder, vocabulary):
    import sentencepiece

    from peft_jax.tasks.prompted import find_task

    encode = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary)).encode
    texts = find_task("my-task", directory=folder).prompted("train")
    rows = list(choice_rows(names[0]).as_numpy_iterator())
    assert len(rows) == len(texts) == 30
    cut = 0
    for row, text in zip(rows, texts, strict=True):
        tokens = [*encode(text.input)[: S - 1], 1]  # cut first, then EOS: HF's T5 tokenizer
        cut += len(tokens) == S
        np.testing.assert_array_equal(row["encoder_input_tokens"], pad(tokens, S))
        for choice, expected in zip(row["choices"], text.choices, strict=False):
            np.testing.assert_array_equal(choice, pad([*encode(expected), 1], T))
        assert row["choice_mask"].tolist() == [i < len(text.choices) for i in range(C)]
        assert not row["choices"][len(text.choices) :].any()
        numbers = (row["label"], row["example"], row["template"])
        assert numbers == (text.label, text.example, text.template)
    assert 0 < cut < 30


def pad(tokens, length):
    return np.pad(tokens, (0, length - len(tokens)))


def test_one_task_per_template(names):
    whole = list(choice_rows(names[0]).as_numpy_iterator())
    for index, name in enumerate(names[1:]):
        part = list(choice_rows(name).as_numpy_iterator())
        expected = [row for row in whole if row["template"] == index]
        assert len(part) == len(expected) > 0
        for one, other in zip(part, expected, strict=True):
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])


def test_plain_encoder_decoder_batches(names):
    import seqio

    from peft_jax.tasks.converters import EncDecFeatureConverter, encdec_lengths

    batches = seqio.get_dataset(
        names[0], encdec_lengths(S, T), EncDecFeatureConverter(pack=False), "train", verbose=False
    ).as_numpy_iterator()
    for plain, row in zip(batches, choice_rows(names[0]).as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(plain["encoder_input_tokens"], row["encoder_input_tokens"])
        answer = row["choices"][row["label"]]
        np.testing.assert_array_equal(plain["decoder_target_tokens"], answer)
        np.testing.assert_array_equal(plain["decoder_input_tokens"], np.r_[0, answer[:-1]])
        np.testing.assert_array_equal(plain["decoder_loss_weights"], answer != 0)


def test_shards_are_disjoint_and_complete(names):
    import seqio

    pairs = [
        (int(row["example"]), int(row["template"]))
        for shard in range(4)
        for row in choice_rows(
            names[0], shard_info=seqio.ShardInfo(index=shard, num_shards=4)
        ).as_numpy_iterator()
    ]
    assert len(pairs) == len(set(pairs)) == 30


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (
            (S, C, 4),
            r"task my-task: the choice 'cold' has \d+ tokens with EOS, the limit is 4",
        ),
        ((S, 2, T), "task my-task: an example has 3 choices, the limit is 2"),
    ],
)
def test_a_choice_over_the_limit_is_refused_by_name(names, lengths, words):
    from peft_jax.tasks.converters import input_errors

    with pytest.raises(InputError, match=words), input_errors("my-task"):
        list(choice_rows(names[0], lengths=lengths).as_numpy_iterator())


def test_other_tensorflow_errors_are_not_swallowed():
    import tensorflow as tf

    from peft_jax.tasks.converters import input_errors

    with pytest.raises(tf.errors.InvalidArgumentError), input_errors("my-task"):
        tf.debugging.assert_equal(1, 2)


@pytest.mark.parametrize("content", [None, b"not a model"])
def test_a_vocabulary_that_cannot_be_used(tmp_path, folder, content):
    from peft_jax.tasks.registry import register

    path = tmp_path / "spiece.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"vocabulary|SentencePiece"):
        register("my-task", vocabulary=path, directory=folder)


def test_the_embedded_mixture_keeps_choices_and_labels(vocabulary, monkeypatch):
    import seqio

    from peft_jax.tasks import embedded, registry
    from peft_jax.tasks.registry import EMBEDDED_MIXTURE, register_embedded

    held_out = [task for task in embedded.TASKS.values() if task.held_out]
    trained = [task for task in embedded.TASKS.values() if not task.held_out]
    few = {task.name: task for task in [*held_out[:1], *trained[:3]]}  # all would take long
    monkeypatch.setattr(registry, "EMBEDDED_TASKS", few)
    monkeypatch.setattr(embedded, "DEFAULT_COUNTS", {"train": 6, "validation": 4})
    names = register_embedded(vocabulary)
    training = {f"embedded_{task.name}" for task in trained[:3]}
    mixture = seqio.get_mixture_or_task(EMBEDDED_MIXTURE)
    assert {task.name for task in mixture.tasks} == training
    assert training < set(names)
    rows = list(choice_rows(EMBEDDED_MIXTURE, lengths=(64, 16, 64)).take(50).as_numpy_iterator())
    assert len(rows) == 50
    assert all(row["choice_mask"][row["label"]] for row in rows)
