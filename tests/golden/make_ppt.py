"""Makes ppt.json: the texts whose tokens PPT's published code puts together.

Run with the folder of a checkout of github.com/thu-coai/PPT at dad6f2d::

    python tests/golden/make_ppt.py PPT

It runs the repository's own functions that encode: of tools/preprocess_pretrain_data_{nsp,nss,
nss_uni,cls}.py on made-up documents, and of data_utils/downstream on made-up rows, with a tokenizer
that makes a piece of every word. The pieces that the code names by their ids are those of T5's
vocabulary. What comes out is joined to texts as SentencePiece joins pieces.
"""

import ast
import json
import os
import random
import sys
import tempfile
from pathlib import Path

PIECES = {
    0: "",
    5: ".",
    58: "?",
    117: ";",
    150: "▁no",
    207: "▁good",
    248: "▁great",
    1282: "▁bad",
    2087: "▁maybe",
    4273: "▁yes",
    9412: "▁terrible",
    32099: "▁<extra_id_0>",
    32098: "▁<extra_id_1>",
} | dict(
    zip(
        (188, 279, 254, 308, 427, 371, 517, 566, 196, 683, 439, 434, 329, 567, 667, 345, 2247),
        "ABCDEFGHIJKLMNOPQ",
        strict=True,
    )
)
ROWS = {
    "CB": [
        {"premise": "it is warm", "hypothesis": "it is hot", "label": label, "id": 0}
        for label in ("entailment", "contradiction", "neutral")
    ],
    "RTE": [
        {"premise": "it is warm", "hypothesis": "it is hot", "label": label, "id": 0}
        for label in ("entailment", "not_entailment")
    ],
    "BoolQ": [
        {"question": "is it so", "passage": "they say so", "label": label, "id": 0}
        for label in (False, True)
    ],
    "SST2": [{"sentence": "a fine film", "label": label, "id": 0} for label in ("0", "1")],
}


class Tokenizer:
    """A piece for every word, and the sentinels where T5 has them."""

    def __init__(self):
        self.pieces = dict(PIECES)

    def encode(self, text: str) -> list[int]:
        ids = []
        for word in text.split():
            found = [id for id, piece in self.pieces.items() if id >= 10**6 and piece == f"▁{word}"]
            ids.append(found[0] if found else 10**6 + len(self.pieces))
            self.pieces[ids[-1]] = f"▁{word}"
        return ids

    def get_sentinel_id(self, number: int) -> int:
        return 32099 - number

    def decode(self, ids) -> str:
        return "".join(self.pieces[id] for id in ids).replace("▁", " ").strip()


def classes_of(file: Path, **names) -> dict:
    """The classes that a file defines, run with some names and without its imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    module = ast.Module([n for n in tree.body if isinstance(n, ast.ClassDef)], type_ignores=[])
    found = {"json": json, "os": os, "random": random, "EncDecTokenizer": None, **names}
    exec(compile(module, str(file), "exec"), found)
    return found


def documents() -> list[str]:
    """Seven made-up documents of eight lines, in the form of the code's input files."""
    return [
        "<@x(x!>".join(
            " ".join(f"w{d}x{line}x{word}" for word in range(6 + line)) for line in range(8)
        )
        for d in range(7)
    ]


def pretext(checkout: Path, tool: str, *lines: str) -> list[dict]:
    """The texts and answers that a preprocessing tool makes of one group of lines."""
    encoder = classes_of(checkout / "tools" / f"preprocess_pretrain_data_{tool}.py")["Encoder"]
    encoder.tokenizer = tokenizer = Tokenizer()
    random.seed(0)
    texts, labels, _ = encoder(None).encode(lines if len(lines) > 1 else lines[0])
    if tool == "cls":
        texts, labels = [texts], [labels]
    return [
        {"text": tokenizer.decode(text), "target": tokenizer.decode(label)}
        for text, label in zip(texts, labels, strict=True)
    ]


def downstream(checkout: Path, name: str) -> dict[str, list[dict]]:
    """The texts and answers of a few-shot task in its three forms."""

    class Base:
        def __init__(self, args, tokenizer, path, split, *rest):
            self.tokenizer, self.path = tokenizer, path
            self.ratio, self.do_infer, self.idx, self.add_target_post = 1, False, 0, False
            self.prompt_config = rest[-1]

    found = classes_of(
        checkout / "data_utils" / "downstream" / f"{name}Datasets.py", EncDecDataset=Base
    )
    soft = {"enc": {"prompt_len": 0}}
    forms = {
        "soft": (found[f"{name}Dataset"], soft),
        "hybrid": (found[f"{name}Dataset"], None),
        "unified": (found[f"{name}DatasetUni"], soft),
    }
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
        for form, (kind, prompt) in forms.items():
            tokenizer = Tokenizer()
            data, _, _ = kind(None, tokenizer, file, "train", prompt_config=prompt).process_data()
            made[form] = [
                {
                    "text": tokenizer.decode(row["enc_input_ids"]),
                    "target": tokenizer.decode(row["label_ids"]),
                }
                for row in data
            ]
    return made


def main() -> None:
    checkout = Path(sys.argv[1])
    lines = documents()
    made = {
        "documents": [line.split("<@x(x!>") for line in lines],
        "next_sentence": pretext(checkout, "nsp", *lines[:2]),
        "multiple_choice": pretext(checkout, "nss", *lines[:5]),
        "unified": pretext(checkout, "nss_uni", *lines[:5]),
        "single_sentence": [
            row
            for label in range(5)
            for row in pretext(checkout, "cls", f"0\t\tsome words here\t\t{label}\t\t0.9")
        ],
        "rows": ROWS,
        "downstream": {name: downstream(checkout, name) for name in ROWS},
    }
    target = Path(__file__).with_name("ppt.json")
    target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
