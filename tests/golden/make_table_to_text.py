"""Makes table_to_text.json: what two public repositories make of made-up WebNLG and DART entries.

Run with folders of the checkouts::

    python tests/golden/make_table_to_text.py PrefixTuning LoRA

PrefixTuning is github.com/XiangLi1999/PrefixTuning at 6519d30: the loaders
LineByLineWebNLGTextDataset and LineByLineTriplesTextDataset of its transformers, run with a
tokenizer that splits at spaces; kept is the text of a training example. LoRA is
github.com/microsoft/LoRA at c4593f0: examples/NLG/src/format_converting_{webnlg,dart}.py.
"""

import ast
import copy
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LOADERS = "transformers/src/transformers/data/datasets/language_modeling.py"

WEBNLG = {
    "entries": [
        {
            "1": {
                "category": "Airport",
                "lexicalisations": [
                    {"comment": "good", "lex": "Nowhere Field lies in Nowhere, Utopia."},
                    {"comment": "toFix", "lex": "Nowhere Field in Nowhere are."},
                ],
                "modifiedtripleset": [
                    {
                        "subject": "Nowhere_Field",
                        "property": "cityServed",
                        "object": '"Nowhere, Utopia"',
                    },
                    {
                        "subject": "Nowhere_Field",
                        "property": "runwayLength_(in_metres)",
                        "object": "12.5",
                    },
                ],
            }
        },
        {
            "2": {
                "category": "Politician",
                "lexicalisations": [
                    {"comment": "good", "lex": "Ann Example was born in 1900."},
                    {"comment": "good", "lex": "The birth year of Ann Example is 1900."},
                ],
                "modifiedtripleset": [
                    {"subject": "Ann_Example", "property": "birthYear", "object": "1900"}
                ],
            }
        },
    ]
}
DART = [
    {
        "tripleset": [["Team A", "GAMES PLAYED", "12"], ["[TABLECONTEXT]", "[TITLE]", "League: 9"]],
        "subtree_was_extended": False,
        "annotations": [{"source": "made_up", "text": "Team A played 12 games."}],
    },
    {
        "tripleset": [["Éclair", "Kind_Of", "Cake | sweet"]],
        "subtree_was_extended": True,
        "annotations": [
            {"source": "made_up", "text": "An éclair is a cake."},
            {"source": "made_up", "text": "Éclairs are sweet cakes."},
        ],
    },
]
BEGIN, END = "<begin>", "<end>"


def prefix_tuning(checkout: Path, loader: str, file: Path) -> list[str]:
    """The texts that a loader of the checkout gives to its tokenizer."""
    tree = ast.parse((checkout / LOADERS).read_text(encoding="utf-8"))
    (found,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == loader]
    seen: list[list[str]] = []

    def tokenizer(texts, **options):
        del options
        if isinstance(texts, str):
            return {"input_ids": [texts]}
        seen.append(texts)
        return {"input_ids": [str(text).split(" ") for text in texts]}

    names = {
        "Dataset": object,
        "PreTrainedTokenizer": object,
        "torch": None,
        "copy": copy,
        "json": json,
        "logger": logging.getLogger(loader),
        "os": os,
        "print": lambda *_: None,
    }
    _strip_annotations(found)
    module = ast.Module([found], type_ignores=[])
    exec(compile(module, LOADERS, "exec"), names)
    names[loader](tokenizer, str(file), 1024, BEGIN, END)
    return seen[0]


def _strip_annotations(node: ast.ClassDef) -> None:
    for function in ast.walk(node):
        if isinstance(function, ast.FunctionDef):
            function.returns = None


def lora(checkout: Path, script: str, file: Path) -> list[dict]:
    """The lines that a script of the checkout writes."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "out.jsonl"
        path = checkout / "examples/NLG/src" / f"{script}.py"
        subprocess.run([sys.executable, path, file, written], check=True, capture_output=True)
        return [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    prefix_checkout, lora_checkout = map(Path, sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:
        files = {"webnlg": Path(folder) / "webnlg.json", "dart": Path(folder) / "dart.json"}
        for name, content in (("webnlg", WEBNLG), ("dart", DART)):
            files[name].write_text(json.dumps(content), encoding="utf-8")
        made = {
            "begin": BEGIN,
            "end": END,
            "webnlg": WEBNLG,
            "dart": DART,
            "prefix_tuning": {
                "webnlg": prefix_tuning(
                    prefix_checkout, "LineByLineWebNLGTextDataset", files["webnlg"]
                ),
                "dart": prefix_tuning(
                    prefix_checkout, "LineByLineTriplesTextDataset", files["dart"]
                ),
            },
            "lora": {
                name: lora(lora_checkout, f"format_converting_{name}", file)
                for name, file in files.items()
            },
        }
    target = Path(__file__).with_name("table_to_text.json")
    target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
