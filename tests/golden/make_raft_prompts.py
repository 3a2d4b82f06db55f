"""Writes raft_prompts.json: what T-Few's and RAFT's own code ask about made-up rows.

    python -m tests.golden.make_raft_prompts T-FEW RAFT-BASELINES

Checkouts of github.com/r-three/t-few (run: commit 114dece) and github.com/oughtinc/raft-baselines
(commit cc04aee). Of each of the two modules the one class that makes prompts is run; the
instruction is made up. T-Few's pieces are joined with blanks (see peft_jax/tasks/raft.py).
"""

import ast
import json
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Optional
from unittest.mock import MagicMock

from peft_jax.tasks.raft import TABLE, RaftTask

OUTPUT = Path(__file__).with_name("raft_prompts.json")
INSTRUCTION = " Say which it is.\nIt is one of them. "


def made_up_rows(task: RaftTask) -> list[dict]:
    """Two labelled rows in the order of the dataset's columns; the second has an empty field."""
    full = {column: f" The {column.lower()}\nof it. " for column in task.columns}
    sparse = full | {task.fields[-1]: " "} if len(task.fields) > 1 else full
    return [full | {"ID": "0", "label": 0}, sparse | {"ID": "1", "label": len(task.labels) - 1}]


def loaded(file: Path, name: str, names: dict) -> type:
    """One class of a module, run in a namespace of its own, without the module's imports."""
    names["__file__"] = str(file)
    source = ast.parse(file.read_text()).body
    (found,) = (n for n in source if isinstance(n, ast.ClassDef) and n.name == name)
    exec(compile(ast.Module([found], []), str(file), "exec"), names)
    return names[name]


def t_few(template: type, task: RaftTask, labels: str) -> list[list[str]]:
    """[input, target] of the made-up rows."""
    config = types.SimpleNamespace(dataset=task.name, raft_labels_in_input_string=labels)
    made = template(config, list(task.answers))
    made.instruction = INSTRUCTION
    return [[" ".join(pieces), target] for pieces, target in map(made.apply, made_up_rows(task))]


def baselines(classifier: type, task: RaftTask) -> list[str]:
    """The inputs of the made-up rows, without examples."""
    made = classifier.__new__(classifier)
    made.tokenizer = MagicMock()
    made.tokenizer.num_tokens.return_value = 0
    made.tokenizer.truncate_by_tokens = lambda text, _: text
    made.classes, made.class_col = list(task.labels), "Label"
    made.instructions_start = f"{INSTRUCTION}\nPossible labels:"
    made.truncation_params = {"max_tokens": 10**9, "end_example_token_proportion": 0.25}
    rows = ({column: row[column] for column in task.fields} for row in made_up_rows(task))
    return [made.format_prompt(row) for row in rows]


def main(t_few_checkout: Path, raft_checkout: Path) -> None:
    template = loaded(
        t_few_checkout / "src" / "data" / "dataset_readers.py",
        "RaftTemplate",
        {"os": os, "json": json},
    )
    names = {"Classifier": object, "Mapping": Mapping, "abstractmethod": lambda f: f}
    names |= {"Tokenizer": object, "datasets": MagicMock(), "Any": object}
    names |= {"Dict": dict, "List": list, "Tuple": tuple}
    folder = raft_checkout / "src" / "raft_baselines"
    classifier = loaded(
        folder / "classifiers" / "in_context_classifier.py",
        "InContextClassifier",
        names | {"Optional": Optional},
    )
    made = {
        task.name: {
            "": t_few(template, task, "comma"),
            "newline": t_few(template, task, "newline"),
            "no_labels": t_few(template, task, "none"),
            "baselines": baselines(classifier, task),
        }
        for task in TABLE
    }
    OUTPUT.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
