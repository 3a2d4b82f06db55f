"""Text as documents: files of every kind, splits without overlap, sentences without loss."""

import gzip
import json

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.documents import held_out, read_documents, split_lines, split_sentences

DOCUMENTS = [f"Document {i} is here. It has two sentences." for i in range(40)]


def write_rows(file, documents):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents), encoding="utf-8")


def as_rows(folder):
    write_rows(folder / "all.jsonl", [*DOCUMENTS, DOCUMENTS[0], "  "])


def as_texts(folder):
    for i, document in enumerate(DOCUMENTS):
        file = folder / "books" / f"{i:02}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(document, encoding="utf-8")


def as_gzipped(folder):
    with gzip.open(folder / "a.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": d}) + "\n" for d in DOCUMENTS[:20])
    for i, document in enumerate(DOCUMENTS[20:]):
        with gzip.open(folder / f"b{i:02}.txt.gz", "wt", encoding="utf-8") as text:
            text.write(document)


@pytest.mark.parametrize("write", [as_rows, as_texts, as_gzipped])
def test_splits_hold_every_document_once(write, tmp_path):
    write(tmp_path)
    splits = {split: read_documents(tmp_path, split) for split in ("train", "validation")}
    assert {split: len(texts) for split, texts in splits.items()} == {"train": 38, "validation": 2}
    assert sorted(splits["train"] + splits["validation"]) == sorted(DOCUMENTS)
    assert splits == {split: read_documents(tmp_path, split) for split in splits}
    other = read_documents(tmp_path, "validation", seed=1)
    assert other != splits["validation"]
    # Where a document lies makes no difference to where it goes.
    assert set(splits["validation"]) == held_out(DOCUMENTS[::-1])


@pytest.mark.parametrize("file", ["validation.jsonl", "dev/part-1.jsonl"])
def test_files_of_validation_are_kept_apart(file, tmp_path):
    write_rows(tmp_path / "train.jsonl", DOCUMENTS[:30])
    write_rows(tmp_path / file, DOCUMENTS[28:35])
    assert read_documents(tmp_path, "validation") == DOCUMENTS[28:35]
    assert read_documents(tmp_path, "train") == DOCUMENTS[:28]
    with pytest.raises(InputError, match="no files of text for test"):
        read_documents(tmp_path, "test")
    write_rows(tmp_path / "test.jsonl", DOCUMENTS[:1])
    assert read_documents(tmp_path, "test") == DOCUMENTS[:1]
    assert read_documents(tmp_path, "train") == DOCUMENTS[1:28]


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_documents(tmp_path / "none", "train")
    with pytest.raises(InputError, match="holds no text"):
        read_documents(tmp_path, "train")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"body": "x"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"a.jsonl:2: field 'text' is missing .* has body"):
        read_documents(tmp_path, "train")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="1 document cannot be split"):
        read_documents(tmp_path, "train")


def test_sentences():
    text = (
        'Mr. Smith met J. R. Jones at 5 p.m. that day. "Is it you, old friend?" He said so twice!\n'
        "Yes. It has 3.5 parts and more… But what of the rest?\nSo be it."
    )
    assert split_sentences(text) == (
        "Mr. Smith met J. R. Jones at 5 p.m. that day.",
        '"Is it you, old friend?"',
        "He said so twice! Yes.",
        "It has 3.5 parts and more…",
        "But what of the rest? So be it.",
    )
    assert split_lines("One line of five words.\nTwo.\n\nThe third line is long.") == (
        "One line of five words.",
        "Two. The third line is long.",
    )
    assert split_sentences("Short.") == ("Short.",)
    assert split_sentences(" \n ") == ()


def test_nothing_of_real_text_is_lost(shared_data):
    texts = read_documents(shared_data / "pretrain_text", "validation")
    assert len(texts) == 482
    for text in texts:
        for split in (split_sentences, split_lines):
            units = split(text)
            assert " ".join(units) == " ".join(text.split())
            assert all(len(unit.split()) >= 5 for unit in units) or len(units) == 1
