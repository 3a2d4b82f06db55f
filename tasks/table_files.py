"""The files in which E2E, WebNLG 2017 and DART are published, read as rows.

=========  =========================================================================================
`e2e`      trainset.csv, devset.csv, testset_w_refs.csv: one line for each (mr, ref)
`webnlg`   the challenge's folders of XML files, or one JSON file for each split, as in the
           repositories of prefix-tuning (Li and Liang 2021) and LoRA (Hu et al. 2022)
`dart`     dart-v1.1.1-full-{train,dev,test}.json
=========  =========================================================================================

Each of them is called with a folder and a split and gives that split's rows, or None where the
folder holds no such file (it may hold JSONL or parquet, which need no reader of their own). A train
split has one row for each (input, reference), any other one row for each input, with all of its
references, in the files' order.

The tasks of `peft_jax.tasks.table_to_text` read such folders themselves (`published`).
"""

import contextlib
import csv
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from peft_jax.errors import InputError
from peft_jax.tasks.datasets import Published

SEEN_CATEGORIES = (
    "Airport",
    "Astronaut",
    "Building",
    "City",
    "ComicsCharacter",
    "Food",
    "Monument",
    "SportsTeam",
    "University",
    "WrittenWork",
)
"""The categories of WebNLG 2017's training data (Gardent et al. 2017, section 3)."""

UNSEEN_CATEGORIES = ("Artist", "Athlete", "CelestialBody", "MeanOfTransportation", "Politician")
"""The categories that only its test data have."""

_TEST_PARTS: Mapping[str, tuple[str, ...]] = {
    "test_seen": SEEN_CATEGORIES,
    "test_unseen": UNSEEN_CATEGORIES,
}
_E2E_FILES = {
    "train": ("trainset.csv",),
    "validation": ("devset.csv",),
    "test": ("testset_w_refs.csv",),
}
_SHORT = {"train": "train", "validation": "dev", "test": "test"}


def e2e(folder: Path, split: str) -> list[dict] | None:
    """Rows of the E2E challenge's CSV files (Novikova et al. 2017).

    ``meaning_representation`` is the column mr, ``references`` the texts of the column ref.

    Raises InputError for a file without these columns, or without references.
    """
    file = _first_file(folder, _E2E_FILES.get(split, ()))
    if file is None:
        return None
    with open(file, encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines)
        if not {"mr", "ref"} <= set(table.fieldnames or ()):
            raise InputError(
                f"{file}: the columns mr and ref are needed, it has {table.fieldnames}"
            )
        pairs = [(row["mr"], row["ref"]) for row in table]
    return _rows(split, (({"meaning_representation": mr}, [ref]) for mr, ref in pairs))


def webnlg(folder: Path, split: str) -> list[dict] | None:
    """Rows of WebNLG 2017, from XML files or a JSON file.

    ``triples`` are the modified triples, ``category`` and ``eid`` the entry's own. Only texts that
    were judged good are trained on, and every text is a reference, as in the prefix-tuning
    repository. ``test_seen`` and ``test_unseen`` are the parts of ``test`` with the categories that
    training has and has not.

    Raises InputError, with the file and the entry, for what is not in the challenge's form.
    """
    whole = "test" if split in _TEST_PARTS else split
    if whole not in _SHORT:
        return None
    name = _SHORT[whole]
    json_file = _first_file(folder, (f"{name}.json",))
    xml_files = [] if json_file else _webnlg_xml_files(folder, name)
    if json_file is None and not xml_files:
        return None
    entries = (
        _webnlg_json(json_file)
        if json_file
        else (entry for file in xml_files for entry in _webnlg_xml(file))
    )
    kept = _TEST_PARTS.get(split)

    def examples() -> Iterator[tuple[dict, list[str]]]:
        for where, row, texts in entries:
            if kept is not None and row["category"] not in kept:
                continue
            good = [text for text, comment in texts if split != "train" or comment == "good"]
            if not texts:
                raise InputError(f"{where}: the entry has no text (lex)")
            yield row, good

    return _rows(split, examples(), key=lambda row: json.dumps(row["triples"]))


def dart(folder: Path, split: str) -> list[dict] | None:
    """Rows of DART's JSON files (Nan et al. 2021): ``triples``, ``references`` and ``sources``.

    Inputs with the same triples are one, as in the prefix-tuning repository.

    Raises InputError, with the file and the entry, for one without triples or texts.
    """
    if split not in _SHORT:
        return None
    name = _SHORT[split]
    file = _first_file(folder, (f"dart-v1.1.1-full-{name}.json", f"{name}.json"))
    if file is None:
        return None
    content = _json(file)
    if not isinstance(content, list):
        raise InputError(f"{file} is no list of entries with tripleset and annotations")

    def examples() -> Iterator[tuple[dict, list[str]]]:
        for number, entry in enumerate(content):
            where = f"{file}, entry {number}"
            try:
                texts = [annotation["text"] for annotation in entry["annotations"]]
                triples = [list(map(str, triple)) for triple in entry["tripleset"]]
            except (KeyError, TypeError) as error:
                raise InputError(f"{where}: tripleset or annotations are missing") from error
            if not texts or any(len(triple) != 3 for triple in triples):
                raise InputError(f"{where}: triples of three texts and a text are needed")
            yield {"triples": triples}, texts

    return _rows(split, examples(), key=lambda row: json.dumps(row["triples"]))


def _rows(
    split: str,
    examples: Iterable[tuple[dict, list[str]]],
    key: Callable[[dict], Any] = lambda row: tuple(row.values()),
) -> list[dict]:
    """A row for each reference to train on, one for each input to evaluate on."""
    if split == "train":
        return [row | {"references": [text]} for row, texts in examples for text in texts]
    gathered: dict[Any, dict] = {}
    for row, texts in examples:
        gathered.setdefault(key(row), row | {"references": []})["references"] += texts
    return list(gathered.values())


def _first_file(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _webnlg_xml_files(folder: Path, name: str) -> list[Path]:
    """The XML files of a split: of its folder and those below, or the test's one file."""
    files = sorted(path for path in (folder / name).rglob("*.xml"))
    if name == "test":
        whole = [file for file in files if file.name == "testdata_with_lex.xml"]
        return whole or _present(folder / "testdata_with_lex.xml") or files
    return files


def _present(file: Path) -> list[Path]:
    return [file] if file.is_file() else []


def _webnlg_xml(file: Path) -> Iterator[tuple[str, dict, list[tuple[str, str]]]]:
    """(where, row, [(text, comment)]) of a file's entries."""
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise InputError(f"{file} is no XML file: {error}") from error
    for number, entry in enumerate(root.iter("entry"), start=1):
        where = f"{file}, entry {entry.get('eid') or number}"
        triples = [(node.text or "").strip() for node in entry.iter("mtriple")]
        row = _webnlg_row(where, triples, entry.get("category"), entry.get("eid"))
        texts = [(_lex_text(lex), lex.get("comment", "")) for lex in entry.iter("lex")]
        yield where, row, [(text, comment) for text, comment in texts if text]


def _lex_text(lex: ElementTree.Element) -> str:
    """The text of a lex, which later releases put into an element of its own."""
    inner = lex.find("text")
    return ((lex.text if inner is None else inner.text) or "").strip()


def _webnlg_json(file: Path) -> Iterator[tuple[str, dict, list[tuple[str, str]]]]:
    content = _json(file)
    entries = content.get("entries") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{file} has no list `entries`")
    for number, numbered in enumerate(entries, start=1):
        where = f"{file}, entry {number}"
        try:
            (entry,) = numbered.values()
            triples = [
                " | ".join(triple[part] for part in ("subject", "property", "object"))
                for triple in entry["modifiedtripleset"]
            ]
            row = _webnlg_row(where, triples, entry["category"], f"Id{number}")
            texts = [(lex["lex"], lex["comment"]) for lex in entry["lexicalisations"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where} is not in the challenge's form: {error!r}") from error
        yield where, row, texts


def _webnlg_row(where: str, triples: list[str], category: str | None, eid: str | None) -> dict:
    if not triples or category is None:
        raise InputError(f"{where}: a category and modified triples are needed")
    return {"triples": [split_triple(t, where) for t in triples], "category": category, "eid": eid}


def split_triple(text: str, where: str = "") -> list[str]:
    """``subject | property | object`` -> its three parts.

    Raises InputError for other than three.
    """
    parts = [part.strip() for part in text.split(" | ")]
    if len(parts) != 3:
        place = f"{where}: " if where else ""
        raise InputError(f"{place}triple {text!r} is not `subject | property | object`")
    return parts


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no JSON file: {error}") from error


# --------------------------------------------------------------------------------------------
# As a dataset's files
# --------------------------------------------------------------------------------------------
READERS: Mapping[str, Callable[[Path, str], list[dict] | None]] = {
    "web_nlg": webnlg,
    "dart": dart,
    "e2e_nlg": e2e,
}
"""The reader of each task's published files."""


def published(task: str) -> Published:
    """The published files of "web_nlg", "dart" or "e2e_nlg", as a `Dataset` reads them."""

    @functools.lru_cache(maxsize=8)
    def read(folder: Path, split: str) -> list[dict] | None:
        return READERS[task](folder, split)

    def splits(folder: Path) -> tuple[str, ...]:
        found = []
        for split in ("train", "validation", "test", *_TEST_PARTS):
            with contextlib.suppress(InputError):  # rows in a file of the same name
                found += [split] if read(folder, split) else []
        return tuple(found)

    return Published(splits, lambda folder, split: read(folder, split) or [])
