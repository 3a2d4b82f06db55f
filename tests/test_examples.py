"""Prepared examples: the file, the sampler, the evaluation batches."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.examples import (
    ChoiceExamples,
    FewShotSampler,
    evaluation_batches,
    vocabulary_identity,
)


def make_examples(num_examples=10, num_templates=3, *, skip=(), first_id=100) -> ChoiceExamples:
    """Rows of random lengths; template 1 offers three choices, the others two."""
    random = np.random.default_rng(0)
    pairs = [
        (e, t) for e in range(num_examples) for t in range(num_templates) if (e, t) not in skip
    ]
    rows = len(pairs)
    inputs = np.zeros((rows, 24), np.int32)
    choices = np.zeros((rows, 4, 6), np.int32)
    for row, (_, template) in enumerate(pairs):
        length = random.integers(3, 13)
        inputs[row, :length] = random.integers(1, 50, length)
        for choice in range(3 if template == 1 else 2):
            length = random.integers(1, 4)
            choices[row, choice, :length] = random.integers(1, 50, length)
    return ChoiceExamples(
        task="toy",
        split="train",
        template_names=tuple(f"template {t}" for t in range(num_templates)),
        encoder_input_tokens=inputs,
        choices=choices,
        choice_mask=choices.any(axis=2),
        label=random.integers(0, 2, rows).astype(np.int32),
        example=np.array([first_id + e for e, _ in pairs], np.int32),
        template=np.array([t for _, t in pairs], np.int32),
        vocabulary="a" * 64,
        details={"max_input_length": 24},
    )


def repadded(examples: ChoiceExamples, pad_id: int) -> ChoiceExamples:
    """The same rows filled with another pad id, and every token 1 renamed to 0."""
    changed = {
        key: np.where(array == 0, pad_id, np.where(array == 1, 0, array)).astype(np.int32)
        for key in ("encoder_input_tokens", "choices")
        for array in [getattr(examples, key)]
    }
    return dataclasses.replace(examples, pad_id=pad_id, **changed)


def with_types(examples: ChoiceExamples) -> ChoiceExamples:
    """Token types that tell the second half of each input."""
    tokens = examples.encoder_input_tokens
    places = np.arange(tokens.shape[1]) >= (tokens != 0).sum(axis=1, keepdims=True) // 2
    types = (places & (tokens != 0)).astype(np.int32)
    return dataclasses.replace(examples, encoder_token_types=types)


ARRAYS = ("encoder_input_tokens", "choices", "choice_mask", "label", "example", "template")


def assert_same(one: ChoiceExamples, other: ChoiceExamples):
    for key in ("task", "split", "template_names", "vocabulary", "details"):
        assert getattr(one, key) == getattr(other, key)
    for key in ARRAYS:
        np.testing.assert_array_equal(getattr(one, key), getattr(other, key))


def test_a_saved_file_loads_equal_and_is_deterministic(tmp_path):
    examples = make_examples()
    examples.save(tmp_path / "deep" / "toy.safetensors")
    examples.save(tmp_path / "again.safetensors")
    assert_same(examples, ChoiceExamples.load(tmp_path / "again.safetensors", "a" * 64))
    first = (tmp_path / "deep" / "toy.safetensors").read_bytes()
    assert first == (tmp_path / "again.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "deep"]


def test_pad_id_and_token_types_are_kept(tmp_path):
    examples = with_types(repadded(make_examples(), -1))
    examples.save(tmp_path / "toy")
    read = ChoiceExamples.load(tmp_path / "toy")
    assert_same(examples, read)
    assert read.pad_id == -1
    np.testing.assert_array_equal(read.encoder_token_types, examples.encoder_token_types)


def test_a_file_without_a_pad_id_is_padded_with_zero(tmp_path):
    from safetensors import safe_open

    make_examples().save(tmp_path / "toy")
    with safe_open(tmp_path / "toy", framework="numpy") as file:
        (header,) = file.metadata().values()
        assert "encoder_token_types" not in list(file.keys())
    assert "pad_id" not in json.loads(header)
    assert ChoiceExamples.load(tmp_path / "toy").pad_id == 0


@pytest.mark.parametrize("pad_id", [-1, 77])
def test_another_pad_id_changes_nothing_else(pad_id):
    plain, other = make_examples(), repadded(make_examples(), pad_id)
    for one, two in (
        (plain.trimmed(8), other.trimmed(8)),
        (plain.subset([1, 4], [2]).trimmed(), other.subset([1, 4], [2]).trimmed()),
    ):
        assert_same(repadded(one, pad_id), two)
    pairs = zip(evaluation_batches(plain, 2), evaluation_batches(other, 2), strict=True)
    for one, two in pairs:
        for key in ("row", "weight", "choice_mask", "label"):
            np.testing.assert_array_equal(one[key], two[key])
        tokens = one["encoder_input_tokens"]
        assert two["encoder_input_tokens"].shape == tokens.shape
        np.testing.assert_array_equal(two["encoder_input_tokens"] == pad_id, tokens == 0)


def test_token_types_go_where_their_tokens_go():
    examples = with_types(make_examples(num_examples=40))
    pairs = [(batch["encoder_input_tokens"], batch) for batch in evaluation_batches(examples, 2)]
    sampled = FewShotSampler(examples.trimmed(8), 4, seed=0).batch(1)
    assert {tokens.shape[1] for tokens, _ in pairs} == {6, 12}
    for tokens, batch in [*pairs, (sampled["encoder_input_tokens"], sampled)]:
        lengths = (tokens != 0).sum(axis=1, keepdims=True)
        places = np.arange(tokens.shape[1])
        expected = (places >= lengths // 2) & (places < lengths)
        np.testing.assert_array_equal(batch["encoder_token_types"], expected)
    assert "encoder_token_types" not in make_examples().rows(np.arange(2))


def test_tokens_beyond_the_embedding():
    examples = make_examples()
    largest = int(max(examples.encoder_input_tokens.max(), examples.choices.max()))
    examples.check_fits(largest + 1)
    with pytest.raises(InputError, match=f"token {largest} does not fit .* {largest} rows"):
        examples.check_fits(largest)


def test_another_vocabulary_is_refused(tmp_path):
    make_examples().save(tmp_path / "toy")
    with pytest.raises(InputError, match="another vocabulary"):
        ChoiceExamples.load(tmp_path / "toy", vocabulary="b" * 64)


@pytest.mark.parametrize(
    "damage", ["absent", "text", "cut", "format", "version", "header", "names", "array"]
)
def test_a_damaged_file_says_so(tmp_path, damage):
    from safetensors import safe_open
    from safetensors.numpy import load, save_file

    path = tmp_path / "toy.safetensors"
    examples = make_examples()
    examples.save(path)
    arrays = load(path.read_bytes())
    with safe_open(path, framework="numpy") as file:
        ((key, header),) = file.metadata().items()
    if damage == "absent":
        path.unlink()
    elif damage == "text":
        path.write_text("premise,hypothesis\n")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "format":
        save_file(arrays, path, {})
    elif damage == "version":
        save_file(arrays, path, {key: header.replace('"version": 1', '"version": 99')})
    elif damage == "header":
        save_file(arrays, path, {key: "{"})
    elif damage == "names":
        save_file(arrays, path, {key: header.replace(', "template 2"', "")})
    else:
        save_file({k: v for k, v in arrays.items() if k != "label"}, path, {key: header})
    words = {
        "absent": "no file of prepared examples",
        "format": "not a file of prepared examples",
        "version": "version 99",
        "names": "template index outside",
    }.get(damage, "damaged")
    with pytest.raises(InputError, match=words):
        ChoiceExamples.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": np.full(30, 3, np.int32)}, "not there"),
        ({"label": np.full(30, 9, np.int32)}, "label outside"),
        ({"template": np.full(30, 3, np.int32)}, "template index"),
        ({"choice_mask": np.ones((30, 4), bool)}, "choice_mask"),
        ({"example": np.zeros(29, np.int32)}, "fit together"),
        ({"label": np.zeros(30, np.int64)}, "dtype int64"),
        ({"encoder_input_tokens": np.zeros((30, 24), np.int32)}, "no token"),
        ({"encoder_token_types": np.zeros((30, 23), np.int32)}, "fit together"),
        ({"encoder_token_types": np.zeros((30, 24), np.int8)}, "dtype int8"),
        (
            {
                "pad_id": -1,
                "choice_mask": np.ones((30, 4), bool),
                "choices": np.full((30, 4, 6), -2, np.int32),
            },
            "negative token",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(make_examples(), **change)


def test_subset_keeps_the_rows_of_its_examples_and_templates():
    examples = make_examples(skip={(2, 0)})
    part = examples.subset(examples=[2, 5], templates=["template 2", 0])
    assert part.template_names == ("template 2", "template 0")
    assert list(zip(part.example.tolist(), part.template.tolist(), strict=True)) == [
        (102, 0),
        (105, 1),
        (105, 0),
    ]
    row = np.flatnonzero((examples.example == 105) & (examples.template == 0))[0]
    np.testing.assert_array_equal(part.encoder_input_tokens[1], examples.encoder_input_tokens[row])
    assert (part.num_examples, part.num_templates) == (2, 2)
    assert examples.subset(slice(3)).example_ids.tolist() == [100, 101, 102]


@pytest.mark.parametrize(
    "arguments",
    [{"examples": [10]}, {"examples": [-1]}, {"templates": [3]}, {"templates": ["x"]},
     {"templates": [0, 0]}, {"examples": []}],
)  # fmt: skip
def test_subset_of_what_is_not_there(arguments):
    with pytest.raises(InputError):
        make_examples().subset(**arguments)


@pytest.mark.parametrize("multiple", [1, 8])
def test_trimmed_drops_only_padding(multiple):
    examples = make_examples()
    trimmed = examples.trimmed(multiple)
    lengths = (examples.encoder_input_tokens != 0).sum(axis=1)
    assert trimmed.encoder_input_tokens.shape[1] == -(-lengths.max() // multiple) * multiple
    assert trimmed.choices.shape[1:] == (3, 3 if multiple == 1 else 8)
    assert trimmed.encoder_input_tokens.sum() == examples.encoder_input_tokens.sum()
    assert trimmed.choices.sum() == examples.choices.sum()


def test_an_epoch_draws_every_example_once_and_drops_the_rest():
    examples = make_examples(10)
    sampler = FewShotSampler(examples, batch_size=4, seed=3)
    assert sampler.batches_per_epoch == 2
    for epoch in range(3):
        drawn = np.concatenate(
            [examples.example[sampler.batch(2 * epoch + i)["row"]] for i in (0, 1)]
        )
        assert len(set(drawn.tolist())) == 8
    orders = [[sampler.batch(2 * e + i)["row"].tolist() for i in (0, 1)] for e in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_templates_are_drawn_uniformly_among_those_that_apply():
    examples = make_examples(4, skip={(0, 1)})
    sampler = FewShotSampler(examples, batch_size=4, seed=0)
    rows = np.concatenate([sampler.batch(k)["row"] for k in range(3000)])
    counts = np.zeros((4, 3))
    np.add.at(counts, (examples.example[rows] - 100, examples.template[rows]), 1)
    assert counts[0, 1] == 0
    np.testing.assert_allclose(counts[0, [0, 2]], 1500, rtol=0.1)
    np.testing.assert_allclose(counts[1:], 1000, rtol=0.1)


def test_a_restored_sampler_goes_on_exactly():
    examples = make_examples()
    whole = FewShotSampler(examples, 3, seed=7)
    batches = [next(whole) for _ in range(10)]
    stopped = FewShotSampler(examples, 3, seed=7)
    for _ in range(4):
        next(stopped)
    state = json.loads(json.dumps(stopped.state))
    assert state == {"epoch": 1, "position": 1}
    resumed = FewShotSampler(examples, 3, seed=7)
    resumed.restore(state)
    for expected in batches[4:]:
        got = next(resumed)
        for key in expected:
            np.testing.assert_array_equal(got[key], expected[key])
    other_seed = FewShotSampler(examples, 3, seed=8)
    assert any((other_seed.batch(k)["row"] != batches[k]["row"]).any() for k in range(10))


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_the_data_cannot_fill(batch_size):
    with pytest.raises(InputError, match="batch size"):
        FewShotSampler(make_examples(10), batch_size, seed=0)


@pytest.mark.parametrize("state", [{}, {"epoch": 0, "position": 5}, {"epoch": -1, "position": 0}])
def test_a_position_that_does_not_fit(state):
    with pytest.raises(InputError, match="data position"):
        FewShotSampler(make_examples(10), 4, seed=0).restore(state)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 64])
def test_evaluation_covers_each_row_once(batch_size):
    examples = make_examples()
    batches = list(evaluation_batches(examples, batch_size))
    row = np.concatenate([b["row"] for b in batches])
    weight = np.concatenate([b["weight"] for b in batches])
    assert sorted(row[weight == 1].tolist()) == list(range(30))
    assert (row[weight == 0] == -1).all()
    assert all(b["choice_mask"].any(axis=1).all() for b in batches)
    assert {len(b["row"]) for b in batches} == {batch_size}
    for batch in batches:
        tokens, real = batch["encoder_input_tokens"], batch["weight"] == 1
        width = tokens.shape[1]
        whole = examples.encoder_input_tokens[batch["row"][real]]
        np.testing.assert_array_equal(tokens[real], whole[:, :width])
        assert not whole[:, width:].any()


def test_short_inputs_do_not_pay_for_the_longest():
    examples = make_examples(num_examples=40)  # inputs of 3 to 12 tokens in 24 places
    widths = [b["encoder_input_tokens"].shape[1] for b in evaluation_batches(examples, 2)]
    assert set(widths) == {6, 12}
    assert widths == sorted(widths)
    few = [b["encoder_input_tokens"].shape[1] for b in evaluation_batches(examples, 64)]
    assert set(few) == {24}, "a shape of its own is not worth compiling for two batches"


def test_vocabulary_identity(tmp_path):
    (tmp_path / "a.model").write_bytes(b"abc")
    assert vocabulary_identity(tmp_path / "a.model").startswith("ba7816bf8f01cfea")
    with pytest.raises(InputError, match="no vocabulary at"):
        vocabulary_identity(tmp_path / "b.model")


def test_nothing_heavy_is_imported():
    code = (
        "import sys, peft_jax.examples; print({'tensorflow', 'seqio', 'torch'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
