"""SuperGLUE in T5's form: its texts to the character, its sources, its rules for WSC."""

import json

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.metrics import METRICS, Answers
from peft_jax.metrics.reading import names_referent
from peft_jax.tasks.catalogue import definitions, find_definition
from peft_jax.tasks.datasets import DATASETS as TABLE
from peft_jax.tasks.prompted import find_task
from peft_jax.tasks.superglue import (
    MIXTURES,
    MULTIRC,
    RECORD,
    TASKS,
    multirc_rows,
    record_rows,
    wsc_simple,
)
from tests.t5_formats import DEFINITIONS, cases, golden, made_by, render


@pytest.mark.parametrize(
    ("task", "row", "examples"), cases("super_glue", "dpr", "taskless_super_glue", "taskless_dpr")
)
def test_texts_are_t5s(task, row, examples):
    assert [[made.input, made.target] for made in render(task, row)] == examples


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_fixed_answers_are_t5s_label_words_in_their_order(task):
    words = golden()["label_words"].get(task.name.removeprefix("taskless_"))
    chosen = {made.choices for made in made_by(task.name)}
    if "multirc" in task.name:
        assert chosen == {("False", "True")}
    elif words is not None:
        assert chosen == {tuple(words)}
    elif "dpr" in task.name:
        assert ("Bob", "Tom") in chosen
    else:
        assert "record" in task.name or "wsc" in task.name
        assert chosen == {None}


def test_usual_names_find_the_tasks():
    for name in ("super_glue_boolq_v102", "taskless_super_glue_record_v102", "dpr_v001_simple"):
        assert find_definition(name).name == name.replace("_v102", "").replace("_v001", "")
    found = find_definition("taskless_super_glue_wsc_v102_simple_eval")
    assert found.name == "taskless_super_glue_wsc"


@pytest.mark.parametrize("name", ["boolq", "cb", "copa", "rte", "wic"])
def test_datasets_are_those_of_the_templates(name):
    assert DEFINITIONS[f"super_glue_{name}"].dataset is TABLE[name]


PASSAGE = {
    "idx": 5,
    "passage": {
        "text": "<b>Sent 1: </b>Ann ran.<br>",
        "questions": [
            {
                "idx": 8,
                "question": "Who ran?",
                "answers": [
                    {"text": "Ann", "idx": 20, "label": 1},
                    {"text": "Bob", "idx": 21, "label": 0},
                ],
            },
            {"idx": 9, "question": "Why?", "answers": [{"text": "For fun", "idx": 22}]},
        ],
    },
}


def test_a_passage_of_multirc_holds_a_row_per_answer():
    rows = multirc_rows(PASSAGE)
    assert [row["group"] for row in rows] == ["5-8", "5-8", "5-9"]
    assert [row["idx"] for row in rows] == [20, 21, 22]
    assert [row["label"] for row in rows] == [1, 0, -1]
    flat = {
        "paragraph": PASSAGE["passage"]["text"],
        "question": "Who ran?",
        "answer": "Ann",
        "label": 1,
        "idx": {"paragraph": np.int32(5), "question": np.int32(8), "answer": np.int32(20)},
    }
    assert multirc_rows(flat) == rows[:1]
    (made,) = render("super_glue_multirc", flat)
    assert made.keep == {"group": "5-8"}


def test_a_passage_of_record_holds_a_row_per_query():
    text = "Ann met Bob. Ann left."
    nested = {
        "idx": 3,
        "passage": {
            "text": text,
            "entities": [
                {"start": 8, "end": 10},
                {"start": 0, "end": 2},
                {"start": 13, "end": 15},
            ],
        },
        "qas": [
            {
                "idx": 6,
                "query": "@placeholder left",
                "answers": [
                    {"text": "Bob", "start": 8, "end": 10},
                    {"text": "Ann", "start": 0, "end": 2},
                    {"text": "Ann", "start": 13, "end": 15},
                ],
            },
            {"idx": 7, "query": "hidden @placeholder"},
        ],
    }
    rows = record_rows(nested)
    assert rows[0]["entities"] == ["Ann", "Bob"]
    assert [row["answers"] for row in rows] == [["Ann", "Bob"], []]
    flat = {
        "passage": text.encode(),
        "query": b"@placeholder left",
        "entities": np.array([b"Ann", b"Bob"], object),
        "answers": np.array([b"Ann", b"Bob"], object),
        "idx": {"passage": 3, "query": 6},
    }
    made = render("super_glue_record", nested)
    assert render("super_glue_record", flat) == made[:2]
    assert [one.target for one in made] == ["Ann", "Bob", "<unk>"]
    assert made[0].references == made[1].references == ("Ann", "Bob")
    assert [one.keep["group"] for one in made] == ["3-6", "3-6", "3-7"]


@pytest.mark.parametrize(
    ("dataset", "row"),
    [
        (MULTIRC, {"paragraph": "p", "question": "q", "answer": "a", "label": 1, "idx": 4}),
        (RECORD, {"passage": "p", "query": "q", "entities": [], "answers": []}),
    ],
)
def test_rows_that_cannot_be_grouped_are_refused(dataset, row):
    with pytest.raises(InputError, match="the metric groups rows by it"):
        dataset.expand(row)


SENTENCE = {"text": "Ann sat.", "span1_text": "Ann", "span2_text": "it", "label": 1}


@pytest.mark.parametrize(
    ("text", "index", "pronoun", "marked"),
    [
        ("He saw Tom .", 0, "He", "*He* saw Tom ."),  # t5 stops at such a row
        ('I saw him say "Poor him," too. ', 5, "him", 'I saw him say "Poor *him* ," too.'),
        ("They use it now. ", 1, "it", "They use *it* now."),
    ],
)
def test_a_pronoun_is_found_where_its_index_is_not_quite_right(text, index, pronoun, marked):
    row = SENTENCE | {"text": text, "span2_index": index, "span2_text": pronoun}
    assert wsc_simple(row).input == marked


def test_a_pronoun_that_is_nowhere_is_an_error():
    with pytest.raises(InputError, match=r"'it' is not word 7 of the text.*'Ann sat\.'"):
        wsc_simple(SENTENCE | {"span2_index": 7})


@pytest.mark.parametrize(("said", "referent", "named"), golden()["referents"])
def test_referents_are_named_as_in_t5(said, referent, named):
    assert names_referent(said, referent) == named


def test_wsc_counts_a_referent_that_is_rightly_not_named():
    asked = {"text": "Ann told Bea that she won.", "span2_text": "she", "span2_index": 4}
    rows = [asked | {"span1_text": "Bea", "label": label} for label in (1, 1, 0, 0)]
    made = [render("super_glue_wsc", row | {"span1_index": 2})[0] for row in rows]
    answers = Answers(
        predictions=["the Bea", "Ann", "Ann", ""],
        references=[[one.target] for one in made],
        keep=[one.keep for one in made],
    )
    assert METRICS["wsc"](answers) == {"accuracy": 50.0}


@pytest.mark.parametrize("draw", [{}, {"shots": 2, "seed": 0}], ids=["all", "drawn"])
def test_wsc_is_learned_from_right_referents_and_asked_of_all(tmp_path, draw):
    row = {"text": "Ann told Bea that she won.", "span1_index": 2, "span1_text": "Bea"}
    row |= {"span2_index": 4, "span2_text": "she"}
    lines = [json.dumps(row | {"label": label}) for label in (False, True, False, True, True)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    task = find_task("super_glue_wsc", directory=tmp_path).drawn("train", **draw)
    learned = [made.example for made in task.prompted("train")]
    assert set(learned) <= {1, 3, 4}
    assert len(learned) == draw.get("shots", 3)
    assert [made.keep["label"] for made in task.prompted("validation")] == [0, 1, 0, 1, 1]


def test_mixtures_hold_what_t5_trains_on():
    weights = golden()["weights"]["super_glue"]
    (mixture,) = (one for one in MIXTURES if one.name == "super_glue_v102_proportional")
    trained = [find_definition(name).name for name, weight in weights.items() if weight]
    assert list(mixture.tasks) == trained
    assert max(weights.values()) < mixture.cap
    tasks = definitions()
    assert all(name in tasks for one in MIXTURES for name in one.tasks)
    # t5 counts examples; ReCoRD makes one of each answer and WSC keeps the right referents.
    for name, weight in weights.items():
        dataset = find_definition(name).dataset
        if weight and dataset.sizes and "record" not in name and "wsc" not in name:
            assert dataset.sizes["train"] == weight


@pytest.mark.parametrize("split", ["train", "validation"])
def test_real_rows_of_multirc(shared_data, split):
    from peft_jax.tasks.sources import find_source, read_rows

    dataset, folder = find_source(MULTIRC, shared_data)
    rows = read_rows(dataset, split, folder)
    passages = [row["group"].split("-")[0] for row in rows]
    assert len(set(passages)) == {"train": 32, "validation": 83}[split]
    assert len({row["idx"] for row in rows}) == len(rows)
    (form,) = DEFINITIONS["super_glue_multirc"].formats
    texts = [form.render_all(row)[0].input for row in rows]
    assert all(text.startswith("multirc question: ") for text in texts)
    assert not any("<br>" in text or "<b>" in text for text in texts)
