"""RAFT: prompts as T-Few and the benchmark make them, rows of both copies, submissions."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.tasks import raft
from peft_jax.tasks.prompted import find_task
from tests.golden.make_raft_prompts import INSTRUCTION, made_up_rows

GOLDEN = json.loads((Path(__file__).parent / "golden" / "raft_prompts.json").read_text())
TASKS = {task.name: task for task in raft.TABLE}
ORG = "semiconductor_org_types"


@pytest.fixture
def data(tmp_path):
    """A data folder with the instruction, and rows of one task in the benchmark's own files."""
    folder = tmp_path / "raft" / ORG
    folder.mkdir(parents=True)
    orders = {task.name: list(task.fields) for task in raft.TABLE}
    settings = [orders, dict.fromkeys(orders, INSTRUCTION)]
    lines = "\n".join(map(json.dumps, settings))
    (tmp_path / "raft" / raft.SETTINGS).write_text(lines)
    with open(folder / "train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Paper title", "Organization name", "Label", "ID"])
        for number, label in enumerate(TASKS[ORG].labels * 2):
            writer.writerow([f"On {number}", f"Lab, {number}", label, number])
    with open(folder / "test_unlabeled.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Paper title", "Organization name", "ID"])
        writer.writerows([["Of x", "A", 51], ["Of y", "B", 50]])
    return tmp_path


@pytest.mark.parametrize("task", raft.TABLE, ids=lambda task: task.name)
@pytest.mark.parametrize("ending", ["", "newline", "no_labels", "baselines"])
def test_prompts_equal_the_public_code(task, ending):
    ask = raft.prompt(task, raft.FORMS[ending], INSTRUCTION)
    made = [ask(row) for row in made_up_rows(task)]
    golden = GOLDEN[task.name][ending]
    if ending == "baselines":
        assert [one.input for one in made] == golden
    else:
        assert [[one.input, one.target] for one in made] == golden
    assert all(len(one.choices) == len(task.labels) for one in made)
    assert [one.choices.index(one.target) for one in made] == [0, len(task.labels) - 1]


def test_the_papers_form_lists_the_labels_of_banking_77_only():
    for name, lists in (("banking_77", True), ("tai_safety_research", False)):
        ask = raft.prompt(TASKS[name], raft.FORMS["paper"], INSTRUCTION)
        made = ask(made_up_rows(TASKS[name])[0])
        assert ("Possible labels" in made.input) == lists
    order = [made.input.index(f"{field}:") for field in TASKS["tai_safety_research"].fields]
    assert order == sorted(order)


def test_fields_and_instructions_are_the_benchmarks(shared_data):
    orders = json.loads((shared_data / "raft" / raft.SETTINGS).read_text().splitlines()[0])
    assert {task.name: list(task.fields) for task in raft.TABLE} == orders
    for task in raft.TABLE:
        assert raft.instruction(task.name, shared_data).strip()
        file = shared_data / "raft" / task.name / "task.json"
        if file.is_file():
            described = json.loads(file.read_text())
            assert [*task.columns, "ID"] == described["data_columns"]
            assert list(task.labels) == described["label_columns"]["Label"]
            rows = find_task(f"raft_{task.name}", directory=shared_data).prompted("train")
            assert len(rows) == 50
            assert all(row.target == row.choices[row.label] for row in rows)


def test_banking_77_in_words():
    banking = TASKS["banking_77"]
    assert len(banking.labels) == len(set(banking.answers)) == 77
    assert banking.labels[0] == "Refund_not_showing_up"
    assert banking.answers[0] == "Refund not showing up"


def test_a_task_from_the_benchmarks_files(data):
    task = find_task(f"raft_{ORG}", directory=data)
    rows = task.prompted("train")
    assert len(rows) == 6
    assert rows[1].input == (
        "Say which it is.\nIt is one of them. Possible labels: company, research institute, "
        "university Paper title: On 1 Organization name: Lab, 1\nLabel:"
    )
    assert rows[1].target == "research institute"
    assert task.ranks
    assert task.definition.metrics[0] == "macro_f1_seen"
    assert find_task(f"raft_{ORG}_baselines", directory=data).templates[0].name == "baselines"


def test_rows_of_the_hubs_copy_count_labels_from_one():
    expand = raft.DATASETS["overruling"].expand
    (row,) = expand({"Sentence": "s", "ID": 7, "Label": 2})
    assert (row["Label"], row["idx"]) == ("overruling", 7)
    (hidden,) = expand({"Sentence": "s", "ID": 50, "Label": 0})
    assert "Label" not in hidden
    with pytest.raises(InputError, match="'Label' of raft_overruling is missing"):
        raft.DATASETS["overruling"].normalise(hidden, 0, "row 1")


def test_test_rows_are_asked_and_answered(data, tmp_path):
    rows = raft.unlabelled(f"raft_{ORG}", data)
    assert [row.id for row in rows] == [51, 50]
    assert rows[0].input.endswith("Paper title: Of x Organization name: A\nLabel:")
    assert rows[0].choices == TASKS[ORG].labels
    answers = {row.id: row.choices[2] for row in rows}
    file = raft.submission(ORG, answers, tmp_path / "predictions")
    assert file == tmp_path / "predictions" / ORG / "predictions.csv"
    wanted = io.StringIO(newline="")  # as raft_predict.py of raft-baselines writes
    csv.writer(wanted).writerows([("ID", "Label"), (50, "university"), (51, "university")])
    assert file.read_text() == wanted.getvalue().replace("\r\n", "\n")


def test_submissions_have_the_datasets_own_labels(tmp_path):
    answers = {52: "Refund not showing up", 50: "77. wrong_exchange_rate_for_cash_withdrawal"}
    file = raft.submission("banking_77", answers | {51: 53}, tmp_path / "p.csv")
    assert file.read_text().splitlines() == [
        "ID,Label",
        "50,wrong_exchange_rate_for_cash_withdrawal",
        "51,reverted_card_payment?",
        "52,Refund_not_showing_up",
    ]


def test_folds_of_t_few():
    parts = raft.blocks()
    assert [len(part) for part in parts] == [10] * 5
    assert np.array_equal(np.concatenate(parts), np.arange(50))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: raft.resolve("raft_overruling", None), "give --data.directory"),
        (lambda d: raft.instruction(ORG, d / "raft" / ORG / "deeper" / "down"), "wants the task's"),
        (lambda d: raft.unlabelled("raft_overrulin", d), "nearest: raft_overruling"),
        (lambda d: raft.submission("overrulin", {1: 0}, d), "nearest: overruling"),
        (lambda d: raft.submission("overruling", {}, d), "one for every test row"),
        (lambda d: raft.submission("overruling", {50: "overruled"}, d), "'overruled' is no label"),
        (lambda d: raft.submission("overruling", {50: 2}, d), "2 is no label"),
    ],
)
def test_what_is_wrong_is_told(call, words, data):
    with pytest.raises(InputError, match=words):
        call(data)


def test_instructions_of_a_tasks_own_file_come_first(data):
    file = data / "raft" / ORG / "task.json"
    file.write_text(json.dumps({"name": ORG, "instruction": "Sort them."}))
    assert raft.instruction(ORG, data) == "Sort them."
    (data / "raft" / raft.SETTINGS).write_text("{}\n{")
    with pytest.raises(InputError, match=":2: not JSON"):
        raft.instruction("overruling", data)


def test_other_names_are_left_to_others(data):
    assert raft.resolve("ade_corpus_v2", data) is None
    assert raft.resolve("raft_ade_corpus_v2_other", data) is None
