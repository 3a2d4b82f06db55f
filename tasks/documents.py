"""A folder of text as documents, for tasks that are made from plain text.

A folder holds ``.txt`` files, each a document, or files of rows with a field ``text`` (JSONL, JSON,
CSV, TSV, parquet), each row a document; all also gzipped, and in folders below. Files called
train... and validation... (or dev..., as in `peft_jax.tasks.sources`) are those splits. Where there
is none for validation, a part of the documents is held out: which, is a function of their texts and
the seed alone, so that no document is in both splits wherever it stands and however often.
"""

import gzip
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from peft_jax.errors import InputError
from peft_jax.tasks.files import ending_of, read_file, stem_of
from peft_jax.tasks.row_report import BadRow
from peft_jax.tasks.sources import SPLIT_NAMES

HELD_OUT = 0.05
"""The share of the documents that is held out for validation, as in PPT's split 949,50,1."""

_END = re.compile(r"""[.!?…]+['"”’)\]]*\s+(?=['"“‘(\[]*[A-Z0-9])""")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Gen|Col|Capt|Lt|Sgt|Rev|Hon|vs|etc|No|Vol|Fig|e\.g|i\.e)"
    r"|\b[A-Z])\.\s+$"
)


def read_documents(folder: str | Path, split: str, *, seed: int = 0) -> list[str]:
    """The texts of a split, in the order of the files' names, each once, without empty ones.

    Args:
        split: "train", "validation", or "test" where there are such files.
        seed: of the draw of the documents that are held out.

    Raises InputError if there are no files of text, for a row without the field text, and for a
    split that is not there.
    """
    files = _text_files(Path(folder))
    if not files:
        raise InputError(f"{folder} holds no text: give .txt files, or rows with a field text")
    by_split: dict[str | None, list[Path]] = {name: [] for name in (None, *SPLIT_NAMES)}
    for file in files:
        by_split[split_of(file.relative_to(folder))].append(file)
    if split not in ("train", "validation") and not by_split.get(split):
        raise InputError(f"{folder} has no files of text for {split}")
    if split != "train" and by_split[split]:
        return documents_of(by_split[split])
    documents = documents_of(by_split["train"] or by_split[None])
    apart = set(documents_of([*by_split["validation"], *by_split["test"]]))
    documents = [text for text in documents if text not in apart]
    if split == "train" and by_split["validation"]:
        return documents
    held = held_out(documents, seed)
    return [text for text in documents if (text in held) == (split == "validation")]


def held_out(documents: Sequence[str], seed: int = 0) -> set[str]:
    """The documents of validation: those of the smallest digests, a twentieth, at least one.

    Raises InputError for fewer than two documents.
    """
    distinct = sorted(set(documents), key=lambda text: _digest(text, seed))
    if len(distinct) < 2:
        raise InputError(
            f"{len(distinct)} document cannot be split into training and validation: give files "
            "named train and validation, or several documents"
        )
    return set(distinct[: max(1, round(HELD_OUT * len(distinct)))])


def documents_of(files: Sequence[Path]) -> list[str]:
    """The texts of some files in order, each once, without empty ones.

    Raises InputError for a file that cannot be read, and for a row without the field text.
    """
    texts = [text for file in files for text in _texts(file)]
    return list(dict.fromkeys(text for text in texts if text.strip()))


def split_of(file: Path) -> str | None:
    """The split that a file's name says, or that of a folder around it; None where none does."""
    for name in (stem_of(file), *reversed(file.parts[:-1])):
        first = re.match(r"[a-z]*", name.lower())
        for split, names in SPLIT_NAMES.items():
            if first is not None and first[0] in names:
                return split
    return None


def split_sentences(text: str, shortest: int = 5) -> tuple[str, ...]:
    """A document's sentences in order; joined with spaces they are the text, spaces made single.

    A sentence ends at a line's end, and at . ! ? or … before a capital or a digit, but not behind
    an initial or a usual abbreviation.

    Args:
        shortest: a sentence of fewer words is one with the next (the last one with that before).
    """
    sentences: list[str] = []
    for line in text.splitlines():
        start = 0
        for end in _END.finditer(line):
            if not _ABBREVIATION.search(line[start : end.end()]):
                sentences.append(line[start : end.end()])
                start = end.end()
        sentences.append(line[start:])
    return _joined([" ".join(s.split()) for s in sentences if s.strip()], shortest)


def split_lines(text: str, shortest: int = 5) -> tuple[str, ...]:
    """A document's lines, as PPT's own code has them; for ``shortest`` see `split_sentences`."""
    return _joined([" ".join(line.split()) for line in text.splitlines() if line.strip()], shortest)


def _joined(parts: list[str], shortest: int) -> tuple[str, ...]:
    """The parts with each short one before the next, so that nothing is lost between neighbours."""
    made: list[str] = []
    waiting = ""
    for part in parts:
        waiting = f"{waiting} {part}" if waiting else part
        if len(waiting.split()) >= shortest:
            made.append(waiting)
            waiting = ""
    if waiting:
        made[-1:] = [f"{made[-1]} {waiting}"] if made else [waiting]
    return tuple(made)


def _text_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and ending_of(file) is not None and not file.name.startswith(".")
    )


def _texts(file: Path) -> list[str]:
    if ending_of(file) == "txt":
        opened = gzip.open if file.name.endswith(".gz") else open
        try:
            with opened(file, "rt", encoding="utf-8") as text:
                return [text.read()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read as UTF-8 text: {error}") from error
    texts = []
    for row in read_file(file):
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row.get("text"), str):
            raise InputError(
                f"{row.where}: field 'text' is missing or no text; the row has " + ", ".join(row)
            )
        texts.append(row["text"])
    return texts


def _digest(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()
