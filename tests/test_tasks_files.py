"""Rows of every kind of file, and every way in which a file or one of its rows can be damaged."""

import gzip
import json
from pathlib import Path

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.files import READERS, class_names, ending_of, read_file, stem_of
from peft_jax.tasks.row_report import BadRow

ROWS = [
    {"text": "a, b", "n": "1"},
    {"text": 'say "é"', "n": "2"},
    {"text": "two\u2028lines", "n": "3"},
]


def content(kind, rows, folder):
    """The bytes of a file that holds the rows."""
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\r\n\r\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows, indent=1).encode()
    if kind == "csv":
        quoted = ['"' + row["text"].replace('"', '""') + f'",{row["n"]}' for row in rows]
        return "\n".join(["text,n", *quoted, ""]).encode()
    if kind == "tsv":
        return "\n".join(["text\tn", *(f"{row['text']}\t{row['n']}" for row in rows)]).encode()
    if kind == "txt":
        return "\n\n".join(row["text"] for row in rows).encode()
    return parquet(rows, folder / "made")


def parquet(rows, file, metadata=None):
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    table = pa.Table.from_pylist(rows)
    write_table(table.replace_schema_metadata(metadata), file)
    return file.read_bytes()


def write(folder, name, data):
    file = folder / name
    data = data.encode() if isinstance(data, str) else data
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return file


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", READERS)
def test_each_kind_gives_the_same_rows(tmp_path, kind, gz):
    file = write(tmp_path, f"train.{kind}{gz}", content(kind, ROWS, tmp_path))
    rows = list(read_file(file))
    assert rows == ([{"text": row["text"]} for row in ROWS] if kind == "txt" else ROWS)
    mark = ", row " if kind in ("json", "parquet") else ":"
    first = {"csv": 2, "tsv": 2}.get(kind, 1)
    step = 2 if kind in ("jsonl", "txt") else 1  # blank lines between
    assert [row.where for row in rows] == [f"{file}{mark}{first + step * i}" for i in range(3)]
    assert ending_of(file) == kind
    assert stem_of(file) == "train"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", '{"data": [{"a": 1}, {"a": 2}], "version": "1"}'),
        ("json", '{"a": 1}\n{"a": 2}\n'),
        ("json", '\ufeff[{"a": 1},\n{"a": 2}]'),
        ("jsonl", '\ufeff{"a": 1}\n{"a": 2}'),
        ("parquet", None),
    ],
)
def test_other_layouts(tmp_path, kind, text):
    data = parquet([{"a": 1}, {"a": 2}], tmp_path / "made") if text is None else text
    assert list(read_file(write(tmp_path, f"x.{kind}", data))) == [{"a": 1}, {"a": 2}]


def test_csv_as_spreadsheets_write_it(tmp_path):
    """A byte order mark, line breaks inside a text, empty fields, a text beyond 131,072 letters."""
    long = "x" * 200_000
    file = write(tmp_path, "x.csv", f'\ufeffa,b\r\n"1\n2",\r\n\r\n{long},y\r\n')
    rows = list(read_file(file))
    assert rows == [{"a": "1\n2", "b": ""}, {"a": long, "b": "y"}]
    assert [row.where for row in rows] == [f"{file}:2", f"{file}:5"]


def test_tsv_has_no_quotes(tmp_path):
    """GLUE's files have single quotation marks in texts."""
    file = write(tmp_path, "x.tsv", 'a\tb\n"open\t1\nb"\t2\n')
    assert list(read_file(file)) == [{"a": '"open', "b": "1"}, {"a": 'b"', "b": "2"}]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a"\n{"a": 3}\n', r":2: not JSON: Expecting ':'.* \(column 5\)"),
        ("x.jsonl", b'{"a": 1}\n[2]\n{"a": 3}', r":2: a JSON object is needed, not list"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}', r":2: not UTF-8 text: byte 8 .*0xff"),
        ("x.jsonl", b'{"a": 1}\n' + b"[" * 100_000 + b'\n{"a": 3}', r":2: not JSON: "),
        ("x.json", b'[{"a": 1}, 2, {"a": 3}]', r", row 2: a JSON object is needed, not int"),
        ("x.json", b'{"a": 1}\n{"a": 2\n{"a": 3}', r":2: not JSON: "),
        ("x.csv", b"a\n1\n2,2\n3\n", r":3: 2 columns, but the header names 1: a"),
        ("x.csv", b"a\n1\n\xe9\n3\n", r":3: not UTF-8 text: byte 1"),
        ("x.csv", b'a\n1\n"2"2\n3\n', r":3: not a CSV record: ',' expected after '\"'"),
        ("x.tsv", b"a\tb\n1\t1\n2\n3\t3\n", r":3: 1 columns, but the header names 2: a, b"),
        ("x.txt", b"1\n\x80\n3\n", r":2: not UTF-8 text"),
    ],
)
def test_a_damaged_row_stands_among_the_others(tmp_path, name, data, words):
    file = write(tmp_path, name, data)
    rows = list(read_file(file))
    assert [isinstance(row, BadRow) for row in rows] == [False, True, False]
    with pytest.raises(BadRow, match=r"^" + str(file) + words):
        raise rows[1]


def test_a_quotation_mark_that_is_never_closed_is_told(tmp_path):
    file = write(tmp_path, "x.csv", 'a\n1\n"2\n3\n4\n')
    good, bad = read_file(file)
    assert good == {"a": "1"}
    assert str(bad) == f"{file}:3: a quotation mark is opened and never closed (read to line 5)"


LONG = "".join(json.dumps({"a": i}) + "\n" for i in range(5000)).encode()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.json", b'[{"a": 1},', r":1: not JSON: "),
        ("x.json", b'["\xff"]', r":1: not UTF-8 text"),
        ("x.json", b"[" * 100_000, r": not JSON: "),
        ("x.json", b'{"rows": []}', r" holds neither a list of rows nor "),
        ("x.csv", b"a,b,a\n", r":1: two columns are called 'a'"),
        ("x.csv", b"\n1\n", r":1: the first line must name the columns"),
        ("x.csv", b"\xff\n1\n", r":1: not UTF-8 text"),
        ("x.parquet", b"PAR1 no", r" is no parquet file: "),
        ("x.parquet", b"", r" is no parquet file: "),
        ("x.doc", b"", r" is of no kind that is read: give one of .jsonl, .json"),
    ],
)
def test_a_damaged_file(tmp_path, name, data, words):
    file = write(tmp_path, name, data)
    with pytest.raises(InputError, match=r"^" + str(file) + words) as caught:
        list(read_file(file))
    assert not isinstance(caught.value, BadRow) or ":1: not UTF-8" in words


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv.gz", "x.txt.gz", "x.json.gz"])
@pytest.mark.parametrize("how", ["cut", "plain", "scrambled"])
def test_a_damaged_gz(tmp_path, name, how):
    packed = gzip.compress(LONG, mtime=0)
    data = {
        "cut": packed[: len(packed) // 2],
        "plain": LONG,
        "scrambled": packed[:400] + bytes(400) + packed[800:],
    }
    file = tmp_path / name
    file.write_bytes(data[how])
    with pytest.raises(InputError, match=str(file) + " cannot be read: "):
        list(read_file(file))


def test_a_parquet_file_that_is_cut_or_scrambled(tmp_path):
    data = parquet([{"text": f"text {i} {i * i}"} for i in range(5000)], tmp_path / "made")
    for damaged in (data[: len(data) // 2], data[:100] + b"\xff" * 5000 + data[5100:]):
        file = write(tmp_path, "x.parquet", damaged)
        with pytest.raises(InputError, match=str(file)):
            list(read_file(file))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        list(read_file(tmp_path / "x.jsonl"))


def test_rows_come_one_after_the_other(tmp_path):
    """A file need not fit into memory: the first rows are there before the file is read."""
    file = write(tmp_path, "x.jsonl", LONG + b"\xff" * 10)
    rows = read_file(file)
    assert [next(rows)["a"] for _ in range(3)] == [0, 1, 2]


def test_names_of_integer_labels(tmp_path):
    features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}, "text": {}}
    stored = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet([{"label": 0, "text": "x"}], tmp_path / "x.parquet", stored)
    assert class_names(tmp_path / "x.parquet", "label") == ("no", "yes")
    assert class_names(tmp_path / "x.parquet", "text") is None
    parquet([{"label": 0}], tmp_path / "y.parquet")
    assert class_names(tmp_path / "y.parquet", "label") is None
    assert class_names(Path("x.csv"), "label") is None
