"""Markers in texts: places where a token is a trained row and no word (hybrid prompts).

::

    <soft> {{premise}} <soft> {{hypothesis}} <soft>     rows 0, 1 and 2
    <soft 4>                                            row 4
    <soft 0-9>                                          rows 0 to 9, one behind the other

A marker without a number is the row behind that of the marker in front of it, and row 0 if it is
the first. Row k becomes the token id -2 - k, which the stack that reads the input looks up among a
method's ``soft_tokens`` (see ``transformer``): of ``p_tuning``, ``prompt_tuning`` or ``warp`` with
placement "markers". Words between markers are P-tuning's anchors (Liu et al. 2021, section 3.2);
PPT (Gu et al. 2022) calls prompts of both kinds hybrid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from peft_jax.errors import InputError

_MARKER = re.compile(r"<soft(?: (\d+)(?:-(\d+))?)?>")


def has_markers(text: str) -> bool:
    """Whether a text has a marker in it."""
    return _MARKER.search(text) is not None


def split(text: str) -> tuple[list[str], list[list[int]]]:
    """The stretches of a text around its n markers, n + 1 of them, and the ids of each marker.

    One space in front of a marker is the marker's own, so that no vocabulary makes a token of it.

    Raises:
      InputError: a marker's last row stands in front of its first.
    """
    stretches, markers = [], []
    start, row = 0, -1
    for found in _MARKER.finditer(text):
        first = row + 1 if found[1] is None else int(found[1])
        row = first if found[2] is None else int(found[2])
        if row < first:
            raise InputError(f"marker {found[0]!r} ends in front of where it starts")
        markers.append([soft_id(k) for k in range(first, row + 1)])
        stretches.append(text[start : found.start()].removesuffix(" "))
        start = found.end()
    return [*stretches, text[start:]], markers


def soft_id(row: int) -> int:
    """The token id of a row."""
    return -2 - row


def is_soft(id: int) -> bool:
    """Whether a token id is that of a row; -1 is padding where a family has no token for it."""
    return id <= -2


def rows_needed(ids: Iterable[int]) -> int:
    """How many rows there must be for all ids to have theirs."""
    return max(0, -1 - min(ids, default=0))


def marker(id: int) -> str:
    """How a text writes the row of an id."""
    return f"<soft {-2 - id}>"


def check_rows(ids: Sequence[int], rows: int, what: str) -> None:
    """Raises InputError for an id whose row a method does not have.

    Args:
      rows: that the method has for markers.
      what: whose tokens they are, for the message.
    """
    needed = rows_needed(ids)
    if needed <= rows:
        return
    have = f"has {rows} rows" if rows else "has no rows for markers"
    raise InputError(
        f"{what}: the marker {marker(soft_id(needed - 1))} finds no row, the method {have}; take "
        f"p_tuning, prompt_tuning or warp with placement 'markers' and a length of {needed}"
    )
