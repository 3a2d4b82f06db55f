"""RAFT: eleven real-world classification tasks with 50 labelled examples each (Alex et al. 2021).

The test labels are not public. Models are compared on the labelled rows by folds (``folds`` of the
data options: 50 of them is leave-one-out, as the benchmark's own baselines are tuned; `blocks` are
T-Few's), and the answers for the test rows (`unlabelled`) are written to a file that the benchmark
scores (`submission`).

``raft_<task>`` is T-Few's prompt as its code makes it (``RaftTemplate`` in
``src/data/dataset_readers.py`` of github.com/r-three/t-few): the task's instruction with the
possible labels, then the fields in the order of the dataset's columns. Other forms have the form's
name behind it (`FORMS`): ``raft_<task>_paper``, ``raft_<task>_baselines`` ...

The instructions are not part of this package. They are read from the data's folder: from
``prompt_construction_settings.jsonl`` (github.com/oughtinc/raft-baselines, src/raft_baselines/data)
in ``raft/``, or from ``instruction`` in a task's ``task.json``.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.classification import INTENTS
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.prompts import Rendered, TextFormat
from peft_jax.tasks.sources import find_source, read_rows

PREFIX = "raft_"
SETTINGS = "prompt_construction_settings.jsonl"


@dataclass(frozen=True)
class RaftTask:
    """One of the eleven tasks.

    Attributes:
        name: the benchmark's.
        columns: the dataset's text columns, in its order; T-Few's code prints them in this order.
        fields: those of them that a prompt has, in the order of the benchmark's settings.
        labels: the classes, in the dataset's order (there, 0 is "Unlabeled").
        test: rows of the hidden test set.
        length: tokens of T5 that hold all inputs, or almost all.
    """

    name: str
    columns: tuple[str, ...]
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    test: int
    length: int = 512

    @property
    def answers(self) -> tuple[str, ...]:
        """The labels as T-Few writes them: banking_77's in words."""
        if self.name != "banking_77":
            return self.labels
        return tuple(label.replace("_", " ").replace(". ", " ") for label in self.labels)


_SENTENCE = ("Sentence",)
# fmt: off
TABLE: tuple[RaftTask, ...] = (
    RaftTask("ade_corpus_v2", _SENTENCE, _SENTENCE,
             ("ADE-related", "not ADE-related"), 5_000),
    RaftTask("banking_77", ("Query",), ("Query",),
             tuple(sorted(INTENTS)), 5_000, 1024),
    RaftTask("neurips_impact_statement_risks",
             ("Paper title", "Paper link", "Impact statement"),
             ("Impact statement", "Paper title"),
             ("doesn't mention a harmful application", "mentions a harmful application"),
             150, 1024),
    RaftTask("one_stop_english", ("Article",), ("Article",),
             ("advanced", "elementary", "intermediate"), 516, 2048),
    RaftTask("overruling", _SENTENCE, _SENTENCE,
             ("not overruling", "overruling"), 2_350),
    RaftTask("semiconductor_org_types",
             ("Paper title", "Organization name"),
             ("Organization name", "Paper title"),
             ("company", "research institute", "university"), 449),
    RaftTask("systematic_review_inclusion",
             ("Title", "Abstract", "Authors", "Journal"),
             ("Title", "Abstract", "Journal"),
             ("included", "not included"), 2_243, 1024),
    RaftTask("tai_safety_research",
             ("Title", "Abstract Note", "Url", "Publication Year", "Item Type", "Author",
              "Publication Title"),
             ("Title", "Abstract Note", "Publication Title", "Item Type", "Publication Year"),
             ("TAI safety research", "not TAI safety research"), 1_639, 1024),
    RaftTask("terms_of_service", _SENTENCE, _SENTENCE,
             ("not potentially unfair", "potentially unfair"), 5_000, 1024),
    RaftTask("tweet_eval_hate", ("Tweet",), ("Tweet",),
             ("hate speech", "not hate speech"), 2_966),
    RaftTask("twitter_complaints", ("Tweet text",), ("Tweet text",),
             ("complaint", "no complaint"), 3_399),
)
# fmt: on
_BY_NAME = {task.name: task for task in TABLE}


@dataclass(frozen=True)
class Form:
    """How a row becomes a prompt.

    Attributes:
        labels: where the input lists the possible labels: behind the instruction, separated by
            commas or numbered line by line, or nowhere; "banking_77": by commas in that task only.
        order: the fields in the order of the dataset's columns or of the benchmark's settings.
        lines: whether each field has a line of its own; else blanks separate them.
        about: one line.
    """

    labels: Literal["comma", "newline", "none", "banking_77"]
    order: Literal["columns", "settings"]
    lines: bool
    about: str


FORMS: Mapping[str, Form] = {
    "": Form("comma", "columns", False, "T-Few's prompt as its code makes it"),
    "newline": Form("newline", "columns", False, "T-Few's, the labels numbered line by line"),
    "no_labels": Form("none", "columns", False, "T-Few's without the labels"),
    "paper": Form("banking_77", "settings", False, "T-Few's paper's: labels for banking_77 only"),
    "baselines": Form("newline", "settings", True, "the benchmark's own prompt, without examples"),
}
"""By the ending of a task's name."""


# ---------------------------------------------------------------------------------- prompts


def prompt(task: RaftTask, form: Form, instruction: str) -> Callable[[Mapping], Rendered]:
    """The function that makes a row into a prompt.

    T-Few tokenises the instruction and every field by themselves and joins the tokens, which for
    T5's vocabulary is the same as joining the texts with blanks; it cuts each of them to 256
    tokens, where here the whole input is cut.

    Args:
        task: whose rows they are.
        form: one of `FORMS`.
        instruction: what the task asks for.
    """
    labels = form.labels
    if labels == "banking_77":
        labels = "comma" if task.name == "banking_77" else "none"
    answers = task.labels if form.lines else task.answers
    if form.lines and task.name == "banking_77":  # so that an answer begins with its number
        answers = tuple(f"{number}. {label}" for number, label in enumerate(task.labels, 1))
    head = instruction if form.lines else instruction.strip()
    head += _listed(task.labels if form.lines else answers, labels)
    names = task.fields
    if form.order == "columns":
        names = tuple(column for column in task.columns if column in task.fields)

    def render(row: Mapping) -> Rendered:
        fields = {name: row[name] if form.lines else row[name].strip() for name in names}
        parts = [f"{name}: {value}" for name, value in fields.items() if value.strip()]
        text = f"{head}\n\n" + "\n".join(parts) if form.lines else " ".join([head, *parts])
        return Rendered(f"{text}\nLabel:", answers[row["label"]] if "label" in row else "", answers)

    return render


def _listed(labels: Sequence[str], how: str) -> str:
    if how == "none":
        return ""
    if how == "comma":
        return " Possible labels: " + ", ".join(labels)
    lines = "\n".join(f"{number}. {label}" for number, label in enumerate(labels, 1))
    return f"\nPossible labels:\n{lines}"


def instruction(task: str, directory: str | Path) -> str:
    """What a task asks for, from the data's folder; see the head of this file.

    Args:
        task: the benchmark's name of it.
        directory: the folder that holds ``raft/``, that folder itself, or the task's in it.

    Raises InputError, with what is wanted, if it is not there.
    """
    directory = Path(directory)
    places = [directory / "raft" / task, directory / task]
    places += [directory / "raft", directory, directory.parent]
    for place in places:
        for file in (place / "task.json", *sorted(place.glob(f"*{SETTINGS}"))):
            for entry in _objects(file) if file.is_file() else ():
                found = entry.get(task)
                if file.name == "task.json" and place.name == task:
                    found = entry.get("instruction") or entry.get("description")
                if isinstance(found, str) and found.strip():
                    return found
    raise InputError(
        f"{PREFIX}{task} wants the task's instruction: put {SETTINGS} "
        "(github.com/oughtinc/raft-baselines, src/raft_baselines/data) into "
        f"{directory / 'raft'}, or a field `instruction` into {places[0] / 'task.json'}"
    )


def _objects(file: Path) -> list[dict]:
    """The JSON objects of a file: the whole, or one per line."""
    text = file.read_text(encoding="utf-8")
    try:
        found = [json.loads(text)]
    except json.JSONDecodeError:
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                found += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise InputError(f"{file}:{number}: not JSON: {error.msg}") from error
    return [entry for entry in found if isinstance(entry, dict)]


# ------------------------------------------------------------------------------------ tasks


def _rows(labels: Sequence[str]) -> Callable[[dict], list[dict]]:
    """Rows of the hub's copy, whose labels count from 1 (0: none), as those of its files."""

    def expand(row: dict) -> list[dict]:
        row = dict(row)
        label = row.get("Label")
        if label in (0, "Unlabeled", ""):
            del row["Label"]
        elif isinstance(label, int) and label <= len(labels):
            row["Label"] = labels[label - 1]
        if str(row.get("ID", "")).isdecimal():
            row["idx"] = int(row["ID"])
        return [row]

    return expand


def _dataset(task: RaftTask) -> Dataset:
    return Dataset(
        name=f"{PREFIX}{task.name}",
        fields=task.fields,
        labels=task.labels,
        label_field="Label",
        hub=f"ought/raft/{task.name}",
        folder=f"raft/{task.name}",
        shots=50,
        splits={"test": "test_unlabeled"},
        expand=_rows(task.labels),
        sizes={"train": 50, "test_unlabeled": task.test},
        download="https://huggingface.co/datasets/ought/raft",
    )


DATASETS: dict[str, Dataset] = {task.name: _dataset(task) for task in TABLE}


def _definition(task: RaftTask, ending: str, formats: tuple[TextFormat, ...]) -> TaskDefinition:
    form = FORMS[ending]
    return TaskDefinition(
        "_".join(filter(None, (f"{PREFIX}{task.name}", ending))),
        DATASETS[task.name],
        group="RAFT",
        formats=formats,
        metrics=("macro_f1_seen", "accuracy"),
        about=f"RAFT (Alex et al. 2021), {form.about}; score by folds of train",
        evaluation_split="train",
        max_input_length=task.length,
    )


OFFERED: tuple[TaskDefinition, ...] = tuple(
    _definition(task, "", (TextFormat("tfew", prompt(task, FORMS[""], ""), ranks=True),))
    for task in TABLE
)
"""What `resolve` makes, for lists of tasks: without the instructions, which the data has."""


def resolve(name: str, directory: str | Path | None) -> TaskDefinition | None:
    """The task ``raft_<task>`` or ``raft_<task>_<form>``; see the head of this file.

    Returns None for another name. Raises InputError if the instruction is not in the data's folder.
    """
    found = _named(name)
    if found is None:
        return None
    task, ending = found
    if directory is None:
        raise InputError(
            f"task {name!r} is read from files: give --data.directory with raft/{task.name}/"
            f"train.jsonl (or .csv) and raft/{SETTINGS}"
        )
    function = prompt(task, FORMS[ending], instruction(task.name, directory))
    return _definition(task, ending, (TextFormat(ending or "tfew", function, ranks=True),))


def task_of(name: str) -> RaftTask:
    """The task that ``raft_<task>`` or ``raft_<task>_<form>`` means.

    Raises InputError, with the nearest names, for another.
    """
    found = _named(name)
    if found is None:
        names = [f"{PREFIX}{task.name}" for task in TABLE]
        raise InputError(f"{name!r} is no task of RAFT; {tree.nearest(name, names)}")
    return found[0]


def _named(name: str) -> tuple[RaftTask, str] | None:
    for task in TABLE:
        for ending in FORMS:
            if name == "_".join(filter(None, (f"{PREFIX}{task.name}", ending))):
                return task, ending
    return None


# ------------------------------------------------------------------------------- evaluation


def blocks(count: int = 50, size: int = 10) -> list[np.ndarray]:
    """T-Few's development rows: blocks of ten in the order of the file, each held out once.

    (``raft_validation_start`` 0, 10 ... of its configuration.) Returns int arrays of positions.
    """
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


class Unlabelled(NamedTuple):
    """A row of the hidden test set: its ID, and what a model is asked."""

    id: int
    input: str
    choices: tuple[str, ...]


def unlabelled(name: str, directory: str | Path) -> list[Unlabelled]:
    """The test rows of a task, as prompts.

    Args:
        name: ``raft_<task>`` or ``raft_<task>_<form>``.
        directory: the data's folder; the rows are test_unlabeled.csv or .jsonl (or test).

    Raises InputError for a name or files that are not there.
    """
    dataset = replace(DATASETS[task_of(name).name], labels=(), label_field=None)
    dataset, folder = find_source(dataset, directory)
    definition = resolve(name, directory)
    assert definition is not None
    (form,) = definition.formats or ()
    made = [
        (row["idx"], rendered)
        for row in read_rows(dataset, "test", folder)
        for rendered in form.render_all(row)
    ]
    return [Unlabelled(idx, one.input, one.choices or ()) for idx, one in made]


def submission(task: str, answers: Mapping[int, str | int], path: str | Path) -> Path:
    """Writes ``predictions.csv`` as the benchmark wants it: ID and the label's name, by ID.

    Args:
        task: the benchmark's name of it.
        answers: a test row's ID -> its label, by number (from 0) or as any form writes it.
        path: the file, or the folder to write ``<task>/predictions.csv`` in.

    Returns the file. Raises InputError for a task or a label that is not there, and for no answers.
    """
    if task not in _BY_NAME:
        raise InputError(f"{task!r} is no task of RAFT; {tree.nearest(task, _BY_NAME)}")
    if not answers:
        raise InputError(f"no answers for {task}: a submission has one for every test row")
    entry = _BY_NAME[task]
    rows = [(number, _label_name(entry, number, answers[number])) for number in sorted(answers)]
    path = Path(path)
    file = path if path.suffix == ".csv" else path / task / "predictions.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["ID", "Label"])
        writer.writerows(rows)
    return file


def _label_name(task: RaftTask, number: int, answer: str | int) -> str:
    if isinstance(answer, (int, np.integer)) and 0 <= answer < len(task.labels):
        return task.labels[answer]
    written = {label: label for label in task.labels}
    written |= dict(zip(task.answers, task.labels, strict=True))
    written |= {f"{place}. {label}": label for place, label in enumerate(task.labels, 1)}
    if answer not in written:
        raise InputError(
            f"test row {number} of {task.name}: {answer!r} is no label; "
            f"{tree.nearest(str(answer), task.labels)}"
        )
    return written[str(answer)]
