"""Rows of one file: JSONL, JSON, CSV, TSV, parquet or plain text, each also gzipped (.gz).

`read_file` gives the rows one after the other, so that a file may be larger than memory (JSON
excepted: it is one value). A row that is damaged comes as a `BadRow` in its place and the others
follow; a file that is damaged as a whole raises.

=========  =====================================================================================
ending     a row
=========  =====================================================================================
.jsonl     an object on a line; blank lines are passed over
.json      an object of a list, or of the list in {"data": [...]}; JSON lines are recognised too
.csv       a record under the header's names, in quotes where a text holds commas or line breaks
.tsv       a line under the header's names; quotation marks are plain text, as in GLUE's files
.parquet   a row; ``class_names`` finds the names that Hugging Face stores of its integer labels
.txt       a line, as the field "text"; blank lines are passed over
=========  =====================================================================================
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from peft_jax.errors import InputError
from peft_jax.tasks.row_report import BadRow, Row

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A text may be longer than the 131,072 characters that the csv module takes by default.
_LONGEST_FIELD = 2**31 - 1


def ending_of(file: Path) -> str | None:
    """The kind of a file, such as "jsonl" for x.jsonl and x.jsonl.gz; None for one not read."""
    name = file.name.removesuffix(".gz")
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    return ending if ending in READERS else None


def stem_of(file: Path) -> str:
    """The name of a file without its endings: "train" of train.jsonl.gz."""
    return file.name.removesuffix(".gz").rpartition(".")[0]


def read_file(file: Path) -> Iterator[Row | BadRow]:
    """The rows of a file in order, with places, and a BadRow for each that cannot be read.

    Raises InputError for a file that is of no known kind, is missing, truncated or damaged as a
    whole.
    """
    ending = ending_of(file)
    if ending is None:
        raise InputError(f"{file} is of no kind that is read: give one of " + ", ".join(ENDINGS))
    try:
        yield from READERS[ending](file)
    except OSError as error:  # gzip's own errors are some
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read: it is damaged or cut off ({error})") from error


def is_typed(file: Path) -> bool:
    """Whether the file tells numbers from texts: CSV and TSV do not."""
    return ending_of(file) not in ("csv", "tsv")


def class_names(file: Path, field: str) -> tuple[str, ...] | None:
    """The names of a parquet file's integer labels, as Hugging Face's datasets store them.

    None where the file has none, or is no parquet file.
    """
    if ending_of(file) != "parquet":
        return None
    metadata = _open_parquet(file).schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[field]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


# --------------------------------------------------------------------------------------------
# Lines
# --------------------------------------------------------------------------------------------
def _open(file: Path) -> io.BufferedIOBase:
    return gzip.open(file, "rb") if file.name.endswith(".gz") else open(file, "rb")


class _Lines:
    """The decoded lines of a file with their numbers.

    An iterator that can raise and go on, as a generator cannot: the csv module reads it.
    """

    def __init__(self, file: Path, stream: io.BufferedIOBase):
        self.file, self.number = file, 0
        self._stream = stream

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRow(
                f"{self.file}:{self.number}: not UTF-8 text: byte {error.start + 1} of the line "
                f"is 0x{line[error.start]:02x} ({error.reason})"
            ) from error


def _text_rows(file: Path, row_of: Callable[[str, str], Row]) -> Iterator[Row | BadRow]:
    """A row for each line that is not blank, as ``row_of`` (line, where) makes it."""
    with _open(file) as stream:
        lines = _Lines(file, stream)
        while True:
            try:
                line = next(lines)
                if line.strip():
                    yield row_of(line, f"{file}:{lines.number}")
            except StopIteration:
                return
            except BadRow as error:
                yield error


def _read_jsonl(file: Path) -> Iterator[Row | BadRow]:
    return _text_rows(file, _json_line)


def _read_txt(file: Path) -> Iterator[Row | BadRow]:
    return _text_rows(file, lambda line, where: Row({"text": line.rstrip("\r\n")}, where))


def _json_line(line: str, where: str) -> Row:
    try:
        value = json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise BadRow(f"{where}: not JSON: {error.msg} (column {error.colno})") from error
    except (RecursionError, ValueError) as error:  # nested without end; a number without end
        raise BadRow(f"{where}: not JSON: {error}") from error
    return _json_row(value, where)


def _json_row(value, where: str) -> Row:
    if not isinstance(value, dict):
        raise BadRow(f"{where}: a JSON object is needed, not {type(value).__name__}")
    return Row(value, where)


# --------------------------------------------------------------------------------------------
# Whole files
# --------------------------------------------------------------------------------------------
def _read_json(file: Path) -> Iterator[Row | BadRow]:
    if _holds_json_lines(file):
        yield from _read_jsonl(file)
        return
    with _open(file) as stream:
        content = stream.read().removeprefix(_BYTE_ORDER_MARK)
    try:
        value = json.loads(content)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}:{line}: not UTF-8 text: {error.reason}") from error
    except json.JSONDecodeError as error:
        place = f"{file}:{error.lineno}"
        raise InputError(f"{place}: not JSON: {error.msg} (column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise InputError(f'{file} holds neither a list of rows nor {{"data": [...]}} with one')
    for number, row in enumerate(rows, start=1):
        try:
            yield _json_row(row, f"{file}, row {number}")
        except BadRow as error:
            yield error


def _holds_json_lines(file: Path) -> bool:
    """Whether a .json file has an object on its first line and something behind it."""
    with _open(file) as stream:
        first = stream.readline().removeprefix(_BYTE_ORDER_MARK)
        try:
            is_object = isinstance(json.loads(first), dict)
        except (ValueError, RecursionError):
            return False
        return is_object and any(line.strip() for line in stream)


def _read_csv(file: Path) -> Iterator[Row | BadRow]:
    # strict: a quotation mark that is never closed must not swallow the rest of the file unnoticed.
    return _records(file, delimiter=",", strict=True)


def _read_tsv(file: Path) -> Iterator[Row | BadRow]:
    return _records(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _records(file: Path, **dialect) -> Iterator[Row | BadRow]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    with _open(file) as stream:
        lines = _Lines(file, stream)
        records = csv.reader(lines, **dialect)
        header: list[str] | None = None
        while True:
            where = f"{file}:{lines.number + 1}"
            try:
                record = next(records)
                if header is None:
                    header = _header(record, where)
                elif record:
                    yield _record_row(header, record, where)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(f"{where}: {_csv_problem(error, lines.number)}")
            except BadRow as error:
                if header is None:
                    raise
                yield error


def _header(names: list[str], where: str) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{where}: two columns are called {twice[0]!r}")
    if not any(names):
        raise InputError(f"{where}: the first line must name the columns; it is blank")
    return names


def _record_row(header: list[str], record: list[str], where: str) -> Row:
    if len(record) != len(header):
        raise BadRow(
            f"{where}: {len(record)} columns, but the header names {len(header)}: "
            + ", ".join(header)
        )
    return Row(zip(header, record, strict=True), where)


def _csv_problem(error: csv.Error, last_line: int) -> str:
    if "unexpected end of data" in str(error):
        return f"a quotation mark is opened and never closed (read to line {last_line})"
    return f"not a CSV record: {error}"


def _read_parquet(file: Path) -> Iterator[Row | BadRow]:
    import pyarrow

    number = 0
    try:
        for batch in _open_parquet(file).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Row(row, f"{file}, row {number}")
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} is damaged behind row {number}: {_first_line(error)}") from error


def _open_parquet(file: Path):
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f"{file} needs pyarrow to be read: pip install pyarrow") from error
    try:
        if not file.name.endswith(".gz"):
            return ParquetFile(file)
        with _open(file) as stream:
            return ParquetFile(io.BytesIO(stream.read()))
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} is no parquet file: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


READERS: dict[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "txt": _read_txt,
}

ENDINGS = tuple(f".{ending}" for ending in READERS)
