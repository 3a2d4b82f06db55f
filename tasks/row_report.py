"""What happens to rows on their way from a file to a task, and what did.

One damaged row in a million should stop nobody who has said so beforehand, and must never be left
out unnoticed. What reads or renders rows hands each `BadRow` to a `RowReport`, which raises it, or
keeps count and says so in one line for every source.
"""

from typing import Literal, get_args

from peft_jax.errors import InputError

OnBadRow = Literal["error", "skip"]


class BadRow(InputError):
    """One row of a source cannot be used; those behind it can.

    The message names the file, the line (the row of a file without lines) and the field.
    """


class Row(dict):
    """A row that knows where it was read: ``where`` is "x.jsonl:7", or "x.parquet, row 7"."""

    def __init__(self, fields, where: str):
        super().__init__(fields)
        self.where = where

    def __or__(self, more) -> "Row":
        """A row with more fields is still of that place."""
        return Row(dict(self) | dict(more), self.where)


class RowReport:
    """Rows that were left out, and other things that somebody who trains should know of the rows.

    >>> report = RowReport("skip")
    >>> file = report.source("train.csv")
    >>> for row in ("a", "b", "c"):
    ...     file.seen()
    ...     if row == "b":
    ...         file.bad(BadRow("train.csv:3: 2 columns, not 3"))
    >>> report.lines()
    ['skipped 1 of 3 rows of train.csv: train.csv:3: 2 columns, not 3']
    """

    def __init__(self, on_bad_row: OnBadRow = "error"):
        """Raises InputError for another word than "error" and "skip"."""
        if on_bad_row not in get_args(OnBadRow):
            raise InputError(f"on_bad_row {on_bad_row!r} is not known: give 'error' or 'skip'")
        self._skip = on_bad_row == "skip"
        self._sources: dict[tuple[str, str], Source] = {}
        self._notes: dict[str, None] = {}

    def source(self, name: str, rows: str = "rows", part: str = "") -> "Source":
        """A counter that starts at nothing: a source that is read again counts once.

        Args:
            name: the file, or the task and split, as the line shall name it.
            rows: what is counted there.
            part: one of several that have a line together but must each have rows left, such as a
                template.
        """
        self._sources[name, part] = Source(f"{name} {part}".strip(), rows, self._skip)
        return self._sources[name, part]

    def note(self, line: str) -> None:
        """Something to be told, once."""
        self._notes[line] = None

    @property
    def skipped(self) -> int:
        """How many rows were left out."""
        return sum(source.skipped for source in self._sources.values())

    def lines(self) -> list[str]:
        """The notes, and a line for each source that lost rows, with the first reason."""
        lines = list(self._notes)
        for name in dict.fromkeys(name for name, _ in self._sources):
            parts = [source for (of, _), source in self._sources.items() if of == name]
            bad = [source for source in parts if source.skipped]
            if bad:
                counts = f"{sum(s.skipped for s in bad):,} of {sum(s.rows for s in parts):,}"
                lines.append(f"skipped {counts} {bad[0].what} of {name}: {bad[0].first}")
        return lines


class Source:
    """The counter of one source; `RowReport.source` makes it.

    Attributes:
        what: what is counted.
        rows: how many there were.
        skipped: how many of them were left out.
        first: why the first of them was.
    """

    def __init__(self, name: str, rows: str, skip: bool):
        self._name, self._skip, self.what = name, skip, rows
        self.rows, self.skipped, self.first = 0, 0, ""

    def seen(self) -> None:
        """One more row, good or bad."""
        self.rows += 1

    def bad(self, error: InputError) -> None:
        """Raises the error, or counts it where bad rows are skipped."""
        if not self._skip:
            raise error
        self.skipped += 1
        self.first = self.first or str(error)

    def refuse_if_none_is_left(self) -> None:
        """Raises InputError where every single row was bad: then it is not the rows."""
        if self.skipped and self.skipped == self.rows:
            raise InputError(
                f"none of the {self.rows:,} {self.what} of {self._name} can be used: {self.first}"
            )
