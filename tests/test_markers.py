"""Markers in texts: rows of a method in the places of words, for every kind of tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest

from peft_jax import markers
from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples
from peft_jax.tokenizer import check_fits, load_tokenizer, row_ids
from tests.small_task import write_vocabulary

FOLDERS = Path(__file__).parent / "golden" / "tokenizers"


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def test_a_text_is_split_at_its_markers():
    stretches, rows = markers.split("a <soft> b<soft 4> <soft>c <soft 0-2>")
    assert stretches == ["a", " b", "", "c", ""]
    assert rows == [[-2], [-6], [-7], [-2, -3, -4]]
    assert markers.split("no <softmax> <soft x> <soft-1> <soft 1.5>")[1] == []
    with pytest.raises(InputError, match="marker '<soft 3-1>' ends in front of where it starts"):
        markers.split("a <soft 3-1>")


@pytest.mark.parametrize("folder", ["gpt2", "bert", "llama2", "gemma"])
def test_words_beside_markers_keep_their_tokens(folder):
    tokenizer = load_tokenizer(FOLDERS / folder)
    words = tokenizer.encode("the lazy dog")
    ids = tokenizer.encode_marked("the <soft> lazy <soft 7> dog")
    assert [id for id in ids if id >= 0] == words
    assert [id for id in ids if id < 0] == [-2, -9]
    assert ids.index(-2) == 1
    assert tokenizer.decode(ids) == "the <soft 0> lazy <soft 7> dog"
    assert tokenizer.decode(ids, skip_special=True).split() == ["the", "lazy", "dog"]
    assert tokenizer.token(-9) == "<soft 7>"
    # Beside a text without markers nothing changes, and none is put in front of an answer.
    assert tokenizer.encode_marked("the lazy dog") == words
    assert all(id >= 0 for id in tokenizer.encode("the <soft> dog"))


def test_an_answer_follows_a_prompt_that_ends_in_a_marker():
    tokenizer = load_tokenizer(FOLDERS / "gpt2")
    ids, (answer,) = row_ids(tokenizer, "decoder", "the lazy <soft 0-1>", ["dog"])
    assert ids[-2:] == [-2, -3]
    assert answer == [*tokenizer.encode("a dog")[1:], tokenizer.eos_id]


def test_inputs_that_are_cut_keep_their_markers():
    tokenizer = load_tokenizer(FOLDERS / "bert")
    text = "<soft> the lazy dog <soft> the lazy dog <soft>"
    whole = tokenizer.input_ids(text).ids
    short = tokenizer.input_ids(text, max_length=7).ids
    assert short == [whole[0], -2, *whole[2:4], -3, -4, whole[-1]]
    with pytest.raises(InputError, match="2 places do not hold the 3 rows of a text's markers"):
        tokenizer.input_ids(text, max_length=4)
    prompt = tokenizer.prompt_ids("<soft> the lazy dog", max_length=3)
    assert prompt == [whole[0], -2, tokenizer.encode("dog")[0]]
    masked = tokenizer.masked_ids("<soft> the dog [MASK] dog <soft>", max_length=6).ids
    assert [id for id in masked if id < 0] == [-2, -3]
    assert tokenizer.mask_id in masked


def test_a_marker_without_a_row_is_refused():
    with pytest.raises(InputError, match=r"it: the marker <soft 4> finds no row, the method has 3"):
        check_fits([5, -6, -2], 10, "it", soft_rows=3)
    with pytest.raises(InputError, match=r"has no rows for markers; take p_tuning, .* length of 1"):
        check_fits([5, -2], 10, "it")
    check_fits([5, -6], 10, "it", soft_rows=5)
    check_fits([5, -1], 10, "padding")


def test_examples_with_markers_are_kept_in_files(tmp_path):
    rows = {
        "encoder_input_tokens": np.asarray([[-2, 5, -4, -1]], np.int32),
        "choices": np.asarray([[[3, 2]]], np.int32),
        "choice_mask": np.ones((1, 1), bool),
    }
    rows |= {name: np.zeros(1, np.int32) for name in ("label", "example", "template")}
    made = ChoiceExamples("t", "train", ("a",), vocabulary="v", pad_id=-1, **rows)
    made.save(tmp_path / "rows")
    read = ChoiceExamples.load(tmp_path / "rows")
    np.testing.assert_array_equal(read.encoder_input_tokens, rows["encoder_input_tokens"])
    read.check_fits(10)
    read.check_fits(10, soft_rows=3)
    with pytest.raises(InputError, match="t: the marker <soft 2> finds no row"):
        read.check_fits(10, soft_rows=2)
    rows["choices"] = -rows["choices"]
    with pytest.raises(InputError, match="choices has a negative token"):
        ChoiceExamples("t", "train", ("a",), vocabulary="v", pad_id=-1, **rows)


TEMPLATES = """
templates:
  marked: !Template
    name: marked
    jinja: '<soft> {{text}} <soft> It is <soft> ||| {{answer_choices[label]}}'
    answer_choices: warm ||| cold
    metadata: !TemplateMetadata {original_task: true}
"""


@pytest.mark.parametrize("kind", ["encoder_decoder", "decoder"])
def test_templates_with_markers_make_rows_with_ids(tmp_path, t5, kind):
    pytest.importorskip("seqio")
    from peft_jax.tasks.prepare import choice_examples

    folder = tmp_path / "weather"
    folder.mkdir()
    (folder / "templates.yaml").write_text(TEMPLATES)
    data = [{"text": "There is warm weather", "label": 0}, {"text": "cold", "label": 1}]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, data)))
    rows = choice_examples(
        "weather",
        "train",
        backbone_vocabulary_path=t5,
        directory=tmp_path,
        kind=kind,
    )
    tokenizer = load_tokenizer(t5)
    for row, given in zip(rows.encoder_input_tokens, data, strict=True):
        ids = [int(id) for id in row if id != 0]
        words = tokenizer.encode(given["text"])
        wanted = [-2, *words, -3, *tokenizer.encode("It is"), -4]
        assert ids == [*wanted, tokenizer.eos_id][: len(ids)]
        assert len(ids) >= len(wanted)
    rows.check_fits(tokenizer.vocab_size, soft_rows=3)
