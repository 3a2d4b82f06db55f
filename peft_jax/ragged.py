"""Rows of different lengths in one array, and texts and JSON values as such rows of bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """R rows, one behind the other.

    Attributes:
      values: [N], of any dtype; may be mapped from a file.
      offsets: [R + 1] int64: row r is ``values[offsets[r] : offsets[r + 1]]``.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Any], dtype: Any) -> Ragged:
        """Rows that are sequences of numbers, or bytes for uint8."""
        if np.dtype(dtype) == np.uint8:
            arrays = [np.frombuffer(row, np.uint8) for row in rows]
        else:
            arrays = [np.asarray(row, dtype) for row in rows]
        offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int64)
        return cls(np.concatenate([np.empty(0, dtype), *arrays]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """[R] int64."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> Ragged:
        """The rows at some indices [r], copied."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Ragged(np.asarray(self.values[places_of(self.offsets[rows], lengths)]), offsets)

    def padded(self, rows: np.ndarray, length: int, fill: int) -> np.ndarray:
        """[r, length]: the rows at some indices, filled up at their ends.

        Rows are read up to ``length``: whoever asks knows that they are no longer.
        """
        made = np.full((len(rows), length), fill, self.values.dtype)
        self.write_into(made, rows)
        return made

    def write_into(self, made: np.ndarray, rows: np.ndarray, at: Any = 0) -> None:
        """Writes row ``rows[i]`` into ``made[i]`` from place ``at`` (or ``at[i]``) on.

        What goes beyond the end of ``made[i]`` is left out.
        """
        width = made.shape[1]
        starts = np.arange(len(rows)) * width + at
        lengths = np.minimum(self.offsets[rows + 1] - self.offsets[rows], width - at)
        places = places_of(starts, lengths)
        made.reshape(-1)[places] = self.values[places_of(self.offsets[rows], lengths)]

    def problem(self) -> str | None:
        """What is wrong with the offsets, in words; None if nothing is."""
        if self.values.ndim != 1:
            return f"values of shape {self.values.shape}"
        return _problem(self.offsets, len(self.values))


@dataclasses.dataclass(frozen=True, eq=False)
class Texts(Sequence):
    """R rows of any number of texts each, as UTF-8; ``texts[row]`` is a tuple of str.

    Attributes:
      utf8: the K texts, [M] uint8.
      offsets: [R + 1] int64: the texts of row r are those from offsets[r] to offsets[r + 1].
    """

    utf8: Ragged
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence[str]]) -> Texts:
        """Raises UnicodeEncodeError for half of a surrogate pair."""
        rows = [tuple(row) for row in rows]
        utf8 = Ragged.of((text.encode() for row in rows for text in row), np.uint8)
        return cls(utf8, np.cumsum([0, *map(len, rows)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        places = range(self.offsets[row], self.offsets[row + 1])
        return tuple(self.utf8[i].tobytes().decode() for i in places)

    def take(self, rows: np.ndarray) -> Texts:
        """The rows at some indices, copied."""
        of_rows = Ragged(np.arange(len(self.utf8)), self.offsets).take(rows)
        return Texts(self.utf8.take(of_rows.values), of_rows.offsets)

    def problem(self) -> str | None:
        """What is wrong with the offsets, in words; None if nothing is."""
        return self.utf8.problem() or _problem(self.offsets, len(self.utf8))


@dataclasses.dataclass(frozen=True, eq=False)
class Records(Sequence):
    """R mappings of JSON values, as UTF-8; an empty one takes no bytes.

    Attributes:
      utf8: the JSON of every row, [M] uint8.
    """

    utf8: Ragged

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Records:
        """Raises TypeError or ValueError for what JSON cannot hold."""
        return cls(Ragged.of((encode_record(row) for row in rows), np.uint8))

    def __len__(self) -> int:
        return len(self.utf8)

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        return json.loads(self.utf8[row].tobytes() or b"{}")

    def take(self, rows: np.ndarray) -> Records:
        """The rows at some indices, copied."""
        return Records(self.utf8.take(rows))

    def problem(self) -> str | None:
        """What is wrong with the offsets, in words; None if nothing is."""
        return self.utf8.problem()


def encode_record(record: Mapping[str, Any]) -> bytes:
    """A row of `Records`; raises TypeError or ValueError for what JSON cannot hold."""
    if not record:
        return b""
    return json.dumps(dict(record), ensure_ascii=False, separators=(",", ":")).encode()


def places_of(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers from each start on, as many as each length says, one behind the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def _problem(offsets: np.ndarray, end: int) -> str | None:
    if offsets.dtype != np.int64 or offsets.ndim != 1 or not len(offsets):
        return f"offsets of dtype {offsets.dtype} and shape {offsets.shape}"
    if offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) < 0).any():
        return "offsets that do not run from 0 to the end of the values"
    return None
