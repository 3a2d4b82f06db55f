"""Prepared texts: the file, the batches, and that they are those of the seqio converters."""

import json
import os

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.examples import FewShotSampler
from peft_jax.ragged import Ragged, Records, Texts
from peft_jax.text_examples import TextExamples, TextRow, TextWriter, text_batches

FIELDS = {
    "task": "toy",
    "split": "train",
    "template_names": ("one", "two", "three"),
    "vocabulary": "a" * 64,
}


def make_rows(num_examples=10, num_templates=3, *, first_id=100, longest=13, empty=False):
    """Rows of random lengths, with none to two references."""
    random = np.random.default_rng(0)
    return [
        TextRow(
            random.integers(1, 50, random.integers(0 if empty else 1, longest)),
            random.integers(1, 50, random.integers(1, 6)),
            first_id + e,
            t,
            label=e % 2,
            references=tuple(f"väl {e} {i}" for i in range((e + t) % 3)),
            keep={"group": f"{e}-é"} if t else {},
        )
        for e in range(num_examples)
        for t in range(num_templates)
    ]


def make_examples(**options) -> TextExamples:
    return TextExamples.from_rows(make_rows(**options), **FIELDS)


def assert_same(one: TextExamples, other: TextExamples):
    for key in ("task", "split", "template_names", "vocabulary", "details", "kind", "pad_id"):
        assert getattr(one, key) == getattr(other, key)
    for key in ("example", "template", "label"):
        np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
    for key in ("inputs", "targets"):
        a, b = getattr(one, key), getattr(other, key)
        np.testing.assert_array_equal(a.values, b.values)
        np.testing.assert_array_equal(a.offsets, b.offsets)
    assert list(one.references) == list(other.references)
    assert list(one.keep) == list(other.keep)
    assert (one.token_range, one.lengths) == (other.token_range, other.lengths)


def test_rows_come_back_as_they_were():
    rows, examples = make_rows(), make_examples()
    assert len(examples) == len(rows) == 30
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(examples.inputs[i], row.inputs)
        np.testing.assert_array_equal(examples.targets[i], row.targets)
        assert examples.references[i] == row.references
        assert examples.keep[i] == row.keep
        numbers = (examples.example[i], examples.template[i], examples.label[i])
        assert numbers == (row.example, row.template, row.label)
    assert examples.num_examples == 10
    assert examples.example_ids.tolist() == list(range(100, 110))


def test_written_row_by_row_saved_whole_and_copied_are_one_file(tmp_path):
    examples = make_examples()
    examples.save(tmp_path / "whole")
    with TextWriter(tmp_path / "rows", **FIELDS) as writer:
        for row in make_rows():
            writer.add(row)
        assert len(writer) == 30
    loaded = TextExamples.load(tmp_path / "rows", "a" * 64)
    assert_same(examples, loaded)
    loaded.save(tmp_path / "copy")
    whole = (tmp_path / "whole").read_bytes()
    assert whole == (tmp_path / "rows").read_bytes() == (tmp_path / "copy").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "rows", "whole"]


def test_a_loaded_file_is_mapped_and_not_read(tmp_path):
    make_examples().save(tmp_path / "toy")
    loaded = TextExamples.load(tmp_path / "toy")
    for array in (loaded.inputs.values, loaded.targets.values, loaded.references.utf8.values):
        assert isinstance(array.base, np.memmap)
    batch = loaded.rows(np.arange(4))
    os.replace(_saved(tmp_path / "other", make_examples(num_examples=2)), tmp_path / "toy")
    np.testing.assert_array_equal(
        loaded.rows(np.arange(4))["encoder_input_tokens"], batch["encoder_input_tokens"]
    )


def _saved(path, examples):
    examples.save(path)
    return path


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "toy").write_text("before")
    with pytest.raises(InputError, match="row 1"), TextWriter(tmp_path / "toy", **FIELDS) as writer:
        list(map(writer.add, [make_rows()[0], make_rows()[1]._replace(targets=[])]))
    with pytest.raises(InputError, match="no rows"), TextWriter(tmp_path / "toy", **FIELDS):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]
    assert (tmp_path / "toy").read_text() == "before"


def test_details_may_be_completed_while_writing(tmp_path):
    with TextWriter(tmp_path / "toy", **FIELDS) as writer:
        writer.add(make_rows()[0])
        writer.details["skipped"] = 3
    assert TextExamples.load(tmp_path / "toy").details == {"skipped": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": [3, 0, 4]}, "row 0: inputs have a token 0"),
        ({"targets": [3, -2]}, "targets have a token -2"),
        ({"inputs": [-1]}, "inputs have a token -1"),
        ({"inputs": []}, "no input token"),
        ({"targets": []}, "no target token"),
        ({"targets": [[1]]}, "not 1-D"),
        ({"references": ("\ud800",)}, "surrogates"),
        ({"keep": {"a": {1, 2}}}, "not JSON serializable"),
        ({"template": 3}, "template index outside 0 to 2"),
    ],
)
def test_rows_that_cannot_be_used(change, words):
    with pytest.raises(InputError, match=words):
        TextExamples.from_rows([make_rows()[0]._replace(**change)], **FIELDS)


def test_markers_may_stand_in_inputs():
    rows = [TextRow([-3, 5], [7, 1], 0)]
    examples = TextExamples.from_rows(rows, **FIELDS)
    assert examples.has_markers
    assert not make_examples().has_markers
    examples.check_fits(8, soft_rows=2)
    with pytest.raises(InputError, match="has 1 rows"):
        examples.check_fits(8, soft_rows=1)
    with pytest.raises(InputError, match="token 7 does not fit"):
        examples.check_fits(7)


@pytest.mark.parametrize(
    "damage", ["absent", "text", "cut", "format", "version", "header", "names", "array", "offsets"]
)
def test_a_damaged_file_says_so(tmp_path, damage):
    from safetensors import safe_open
    from safetensors.numpy import load, save_file

    path = _saved(tmp_path / "toy", make_examples())
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
        save_file(arrays, path, {key: header.replace(', "three"', "")})
    elif damage == "array":
        save_file({k: v for k, v in arrays.items() if k != "label"}, path, {key: header})
    else:
        save_file(arrays | {"inputs/offsets": arrays["inputs/offsets"][::-1]}, path, {key: header})
    words = {
        "absent": "no file of prepared examples",
        "format": "not a file of prepared texts",
        "version": "version 99",
        "names": "template index outside",
        "text": "not a readable safetensors file",
        "cut": "cut short",
        "offsets": "offsets that do not run",
    }.get(damage, "damaged")
    with pytest.raises(InputError, match=words):
        TextExamples.load(path)


def test_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match="another vocabulary"):
        TextExamples.load(_saved(tmp_path / "toy", make_examples()), vocabulary="b" * 64)


def test_a_subset_is_the_rows_that_it_names():
    examples = make_examples()
    part = examples.subset(examples=[1, 4], templates=["three", "one"])
    assert part.template_names == ("three", "one")
    kept = [i for i in range(30) if examples.example[i] in (101, 104) and examples.template[i] != 1]
    for new, old in enumerate(kept):
        np.testing.assert_array_equal(part.inputs[new], examples.inputs[old])
        np.testing.assert_array_equal(part.targets[new], examples.targets[old])
        assert part.references[new] == examples.references[old]
        assert part.keep[new] == examples.keep[old]
        names = (part.template_names[part.template[new]], examples.template_names)
        assert names[0] == names[1][examples.template[old]]
    with pytest.raises(InputError, match="example 10 was asked for"):
        examples.subset(examples=[10])
    with pytest.raises(InputError, match="no template 'four'"):
        examples.subset(templates=["four"])


# --------------------------------------------------------------------------------------------
# Batches
# --------------------------------------------------------------------------------------------
def converted(rows, converter, lengths):
    import tensorflow as tf

    def generate():
        for row in rows:
            yield {"inputs": np.int32(row.inputs), "targets": np.int32(row.targets)}

    spec = {key: tf.TensorSpec([None], tf.int32) for key in ("inputs", "targets")}
    dataset = tf.data.Dataset.from_generator(generate, output_signature=spec)
    made = list(converter(dataset, lengths).as_numpy_iterator())
    return {key: np.stack([row[key] for row in made]) for key in made[0]}


@pytest.mark.parametrize(("pad_id", "start_id"), [(0, 0), (77, 60)])
@pytest.mark.parametrize("kind", ["encoder_decoder", "decoder", "prefix_decoder"])
def test_batches_are_those_of_the_seqio_converters(kind, pad_id, start_id):
    from peft_jax.tasks import converters

    rows = make_rows(num_examples=4, empty=kind != "encoder_decoder")
    stored = "encoder_decoder" if kind == "encoder_decoder" else "decoder"
    examples = TextExamples.from_rows(
        rows, **FIELDS, kind=stored, pad_id=pad_id, start_id=start_id, multiple=8
    )
    converter = {
        "encoder_decoder": lambda: converters.TextToTextFeatureConverter(
            pad_id, start_id, pack=False
        ),
        "decoder": lambda: converters.DecoderFeatureConverter(pad_id),
        "prefix_decoder": lambda: converters.PrefixDecoderFeatureConverter(pad_id),
    }[kind]()
    batch = examples.rows(np.arange(len(rows)), kind=kind)
    assert batch.pop("row").tolist() == list(range(len(rows)))
    # An empty prompt with one token behind it predicts nothing: seqio's side leaves it out.
    told = np.array([len(row.inputs) + len(row.targets) > 1 for row in rows])
    expected = converted(rows, converter, {"inputs": 16, "targets": 8})
    assert batch.keys() == expected.keys()
    for key, array in batch.items():
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array[told], expected[key], err_msg=key)


def test_shapes_are_the_same_for_all_rows_unless_asked():
    examples = make_examples().trimmed(8)
    assert examples.lengths == (16, 8)
    assert examples.rows(np.array([0]))["encoder_input_tokens"].shape == (1, 16)
    longest = int(examples.inputs.lengths.max())
    assert examples.rows(np.array([0, 1]), lengths=(longest, 6))["decoder_loss_weights"].shape == (
        2, 6,
    )  # fmt: skip
    row = int(np.argmax(examples.inputs.lengths))
    with pytest.raises(InputError, match=rf"an input of {longest} tokens \(row {row}\)"):
        examples.rows(np.arange(30), lengths=(longest - 1, 8))


def test_another_kind_is_refused():
    with pytest.raises(InputError, match="tokenised for a model of kind 'encoder_decoder'"):
        make_examples().rows(np.arange(2), kind="decoder")


@pytest.mark.parametrize("targets", [False, True])
def test_text_batches_hold_every_row_once(targets):
    examples = make_examples(num_examples=40)
    seen, shapes = [], set()
    for batch in text_batches(examples, 7, targets=targets):
        shapes.add(batch["encoder_input_tokens"].shape)
        assert (batch["weight"] == (batch["row"] >= 0)).all()
        for place, row in enumerate(batch["row"]):
            if row >= 0:
                ids = batch["encoder_input_tokens"][place]
                np.testing.assert_array_equal(ids[ids != 0], examples.inputs[row])
                seen.append(row)
            elif targets:
                assert not batch["decoder_loss_weights"][place].any()
        assert ("decoder_target_tokens" in batch) == targets
    assert sorted(seen) == list(range(120))
    assert len(shapes) == 2  # a quarter of the inputs' length is not worth a shape of its own
    with pytest.raises(InputError, match="batch size 0"):
        next(text_batches(examples, 0))


def test_the_few_shot_sampler_draws_texts_too():
    examples = make_examples()
    sampler = FewShotSampler(examples, 5, seed=1)
    epoch = [sampler.batch(k) for k in range(2)]
    drawn = np.concatenate([batch["row"] for batch in epoch])
    assert sorted(examples.example[drawn]) == list(range(100, 110))
    assert set(epoch[0]) == set(examples.rows(np.arange(1)))


# --------------------------------------------------------------------------------------------
# Ragged arrays
# --------------------------------------------------------------------------------------------
def test_ragged_rows():
    rows = [[1, 2, 3], [], [4]]
    ragged = Ragged.of(rows, np.int32)
    assert [row.tolist() for row in ragged] == rows
    assert ragged[-1].tolist() == [4]
    taken = ragged.take(np.array([2, 0, 1, 0]))
    assert [row.tolist() for row in taken] == [[4], [1, 2, 3], [], [1, 2, 3]]
    assert taken.problem() is None
    np.testing.assert_array_equal(ragged.padded(np.array([1, 0]), 4, 9), [[9] * 4, [1, 2, 3, 9]])
    assert "offsets" in Ragged(ragged.values, ragged.offsets[:-1]).problem()


def test_texts_and_records():
    texts = Texts.of([("é", ""), (), ("b",)])
    assert list(texts) == [("é", ""), (), ("b",)]
    assert list(texts.take(np.array([2, 0]))) == [("b",), ("é", "")]
    records = Records.of([{"a": [1, None]}, {}])
    assert list(records.take(np.array([1, 0]))) == [{}, {"a": [1, None]}]
    assert records.utf8.lengths.tolist() == [len(json.dumps({"a": [1, None]}).replace(" ", "")), 0]
