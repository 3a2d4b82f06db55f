"""Tasks whose answers are written, as token rows."""

import json

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.texts import text_examples
from peft_jax.tokenizer import load_tokenizer
from tests.small_task import write_rows, write_task, write_vocabulary


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task of two lines, with several right answers to each question."""
    folder = tmp_path_factory.mktemp("data") / "weather"
    rows = [
        {"text": f"snow and ice {i}", "answers": ["It is cold", "It is snow", "cold"][i % 2 :]}
        for i in range(9)
    ]
    write_rows(folder, "train", rows)
    write_rows(folder, "validation", rows[:4])
    lines = ['input: "{{text}} What is it?"', 'target: "{{answers[0]}}"', "references: answers"]
    (folder / "task.yaml").write_text("\n".join([*lines, "metrics: [exact_match]"]))
    return folder


def test_tokens_references_and_metrics(folder, vocabulary):
    made = text_examples("weather", "train", backbone_vocabulary_path=vocabulary, directory=folder)
    tokenizer = load_tokenizer(vocabulary)
    assert len(made) == made.num_examples == 9
    assert made.inputs[1].tolist() == tokenizer.input_ids("snow and ice 1 What is it?").ids
    assert made.targets[1].tolist() == tokenizer.target_ids("It is snow")
    assert made.references[0] == ("It is cold", "It is snow", "cold")
    assert made.details["metrics"] == ["exact_match"]
    assert made.details["cut_targets"] == 0
    assert (made.label == -1).all()


def test_a_mapped_file_holds_the_same(folder, vocabulary, tmp_path):
    options = {"backbone_vocabulary_path": vocabulary, "directory": folder}
    here = text_examples("weather", "train", **options)
    mapped = text_examples("weather", "train", file=tmp_path / "t.safetensors", **options)
    np.testing.assert_array_equal(here.inputs.values, mapped.inputs.values)
    assert list(here.references) == list(mapped.references)
    assert here.details == mapped.details


def test_long_targets_are_cut_before_their_end_and_counted(folder, vocabulary):
    made = text_examples(
        "weather",
        "train",
        backbone_vocabulary_path=vocabulary,
        directory=folder,
        max_target_length=3,
    )
    assert made.details["cut_targets"] == 9
    assert made.targets.lengths.max() == 3
    assert all(made.targets[i][-1] == 1 for i in range(9))


def test_a_decoder_reads_prompt_and_answer_as_one(folder, vocabulary):
    made = text_examples(
        "weather", "train", backbone_vocabulary_path=vocabulary, directory=folder, kind="decoder"
    )
    batch = made.rows(np.arange(2))
    whole = [*made.inputs[0], *made.targets[0]]
    assert batch["decoder_input_tokens"][0][: len(whole) - 1].tolist() == whole[:-1]
    assert batch["decoder_loss_weights"][0].sum() == len(made.targets[0])


def test_choices_are_kept_beside_the_text_of_the_right_one(tmp_path, vocabulary):
    folder = write_task(tmp_path / "mine")
    made = text_examples("mine", "train", backbone_vocabulary_path=vocabulary, directory=folder)
    for row in range(len(made)):
        keep = made.keep[row]
        assert made.references[row] == (keep["choices"][keep["label"]],)
    assert made.num_templates == 3


def test_choices_are_spelled_as_the_vocabulary_writes_them():
    """The embedded vocabulary is in lower case: "Yes" is never written."""
    from peft_jax.backbones import load_backbone

    vocabulary = load_backbone("tiny").vocabulary
    made = text_examples("embedded_complaint", "validation", backbone_vocabulary_path=vocabulary)
    tokenizer = load_tokenizer(vocabulary)
    assert ("Yes",) in list(made.references[:5])
    for row in range(10):
        keep = made.keep[row]
        text = tokenizer.decode(made.targets[row][:-1].tolist())
        assert keep["choices"][keep["label"]] == text == text.lower()


def test_folds_and_development_rows_are_disjoint(folder, vocabulary):
    def ids(**draw):
        made = text_examples(
            "weather",
            "train",
            backbone_vocabulary_path=vocabulary,
            directory=folder,
            seed=3,
            **draw,
        )
        return set(made.example_ids.tolist())

    held = [ids(folds=3, fold=i, held_out=True) for i in range(3)]
    assert sorted(n for part in held for n in part) == list(range(9))
    assert ids(folds=3, fold=1) == set(range(9)) - held[1]
    assert not ids(shots=4) & ids(shots=4, held_out=True, dev_shots=5)


def test_what_is_wrong_is_told(folder, vocabulary, tmp_path):
    options = {"backbone_vocabulary_path": vocabulary, "directory": folder}
    with pytest.raises(InputError, match="an encoder writes no answers"):
        text_examples("weather", "train", kind="encoder", **options)
    with pytest.raises(InputError, match="held-out rows were asked for"):
        text_examples("weather", "train", held_out=True, **options)
    with pytest.raises(InputError, match="without a few-shot seed"):
        text_examples("weather", "train", folds=3, **options)
    from peft_jax.tasks.prepare import choice_examples

    with pytest.raises(InputError, match="no answer choices to rank"):
        choice_examples("weather", "train", **options)


def test_bad_rows_are_skipped_with_a_count(tmp_path, vocabulary):
    folder = tmp_path / "bad"
    folder.mkdir()
    rows = [json.dumps({"text": f"snow {i}", "answer": "cold"}) for i in range(5)]
    (folder / "train.jsonl").write_text("\n".join([*rows, "{not json", '{"text": "no answer"}']))
    (folder / "task.yaml").write_text('input: "{{text}}"\ntarget: "{{answer}}"\n')
    options = {"backbone_vocabulary_path": vocabulary, "directory": folder}
    with pytest.raises(InputError, match=r"train.jsonl:6"):
        text_examples("bad", "train", **options)
    made = text_examples("bad", "train", on_bad_row="skip", **options)
    assert any("2 of 7" in note for note in made.details["notes"]), made.details["notes"]
