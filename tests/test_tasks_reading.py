"""SQuAD and MRQA in T5's form: texts to the character, and every source's rows."""

import gzip
import json

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import find_definition
from peft_jax.tasks.reading import SQUAD, TASKS, reading_rows
from tests.t5_formats import DEFINITIONS, cases, render

FLAT = {
    "id": "q1",
    "question": " Who won? ",
    "context": "Ann won. \n",
    "answers": ["Ann", "Ann won"],
}
ASKED = {
    "id": "q1",
    "question": FLAT["question"],
    "answers": [{"text": text, "answer_start": 0} for text in FLAT["answers"]],
}


@pytest.mark.parametrize(("task", "row", "examples"), cases("squad", "mrqa"))
def test_texts_are_t5s(task, row, examples):
    (made,) = render(task, row)
    assert [[made.input, made.target]] == examples
    assert made.references[0] == made.target
    assert made.choices is None


@pytest.mark.parametrize(
    "row",
    [
        FLAT,
        FLAT | {"answers": {"text": FLAT["answers"], "answer_start": [0, 0]}},
        {
            "id": b"q1",
            "question": FLAT["question"].encode(),
            "context": FLAT["context"].encode(),
            "answers": {"text": [b"Ann", b"Ann won"]},
        },
        {"title": "t", "paragraphs": [{"context": FLAT["context"], "qas": [ASKED]}]},
    ],
    ids=["texts", "hugging_face", "tfds", "squads_own"],
)
def test_rows_of_all_sources_are_one(row):
    assert reading_rows(row) == [FLAT]


def test_mrqas_lines_are_stripped_and_its_header_is_no_row():
    asked = {
        "qid": "q1",
        "question": FLAT["question"],
        "answers": FLAT["answers"],
        "detected_answers": [{"text": "Ann", "char_spans": [[0, 2]]}],
    }
    paragraph = {"id": "p", "context": FLAT["context"], "qas": [asked, asked | {"qid": "q2"}]}
    assert reading_rows({"header": {"dataset": "DROP", "split": "dev"}}) == []
    first, second = reading_rows(paragraph)
    assert first == FLAT | {"question": "Who won?", "context": "Ann won."}
    assert second["id"] == "q2"
    only_detected = {key: value for key, value in asked.items() if key != "answers"}
    (detected,) = reading_rows(paragraph | {"qas": [only_detected]})
    assert detected["answers"] == ["Ann"]


def test_a_question_without_answers_is_refused():
    with pytest.raises(InputError, match=r"question 'q1' has no answer.*SQuAD 2\.0"):
        reading_rows(FLAT | {"answers": {"text": [], "answer_start": []}})


def test_files_are_read_as_they_are_published(tmp_path):
    from peft_jax.tasks.sources import read_rows

    article = {"paragraphs": [{"context": "Ann won.", "qas": [ASKED] * 2}]}
    (tmp_path / "train.json").write_text(json.dumps({"version": "1.1", "data": [article] * 2}))
    assert len(read_rows(SQUAD, "train", tmp_path)) == 4
    task = find_definition("mrqa_textbook_qa_v100")
    asked = {"qid": "q", "question": "Who?", "answers": ["Ann"], "detected_answers": []}
    lines = [{"header": {"dataset": "TextbookQA"}}, {"context": "Ann won.", "qas": [asked]}]
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, lines)))
    (row,) = read_rows(task.dataset, task.evaluation_split, tmp_path)
    assert (row["idx"], row["answers"]) == (0, ["Ann"])


def test_every_set_of_mrqa_is_there_by_tfdss_name():
    out = ("bio_asq", "drop", "duo_rc", "race", "relation_extraction", "textbook_qa")
    inside = ("news_qa", "trivia_qa", "search_qa", "hotpot_qa", "natural_questions")
    for name in (*out, *inside):
        dataset = find_definition(f"mrqa_{name}").dataset
        assert dataset.tfds == f"mrqa/{name}"
        assert (dataset.splits == {"validation": "test"}) == (name in out)
    # The published totals of MRQA 2019: 9,633 held out; 516,819 to train on with SQuAD's 86,588.
    sizes = [task.dataset.sizes for task in TASKS if task.name.startswith("mrqa")]
    assert sum(one.get("test", 0) for one in sizes) == 9633
    assert sum(one.get("train", 0) for one in sizes) == 516819 - 86588


def test_a_question_may_be_asked_without_its_context():
    (made,) = render("squad_context_free", FLAT)
    assert made.input == "squad trivia question: Who won ? "
    assert DEFINITIONS["squad"].metrics == ("squad",)
