"""A validation split for data that have none: which rows of train are held out.

The rule, for rows of all classes alike: rows of one class are put in the order of a digest of
``seed`` and of the row's fields (without its label), and the first ``share`` of them is held out,
at least one where there are two. Rows with the same fields are one row here and go together, so
that nothing that is trained on is found again in validation. The order of the file plays no part,
and rows that are added later move few others.
"""

import collections
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peft_jax.errors import InputError


@dataclass(frozen=True)
class HeldOut:
    """How much is held out.

    Attributes:
        share: of each class, between 0 and 1.
        seed: of the draw.
    """

    share: float = 0.1
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise InputError(f"held_out {self.share:g}: a share between 0 and 1 is needed")


def held_out_positions(rows: Sequence[Mapping], fields: Sequence[str], rule: HeldOut) -> set[int]:
    """Positions of the rows that stand for validation; see the head of this file.

    Args:
        rows: of the whole split, with ``label`` where they have one.
        fields: those that make two rows the same; empty: all but ``label`` and ``idx``.
        rule: the share and the seed.

    Raises InputError if there are not two different rows.
    """
    groups: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        groups.setdefault(_digest(row, fields, rule.seed), []).append(position)
    if len(groups) < 2:
        raise InputError(
            f"{len(rows)} rows of one content cannot be split into training and validation: give "
            "a file for validation"
        )
    classes: dict[object, list[str]] = collections.defaultdict(list)
    for digest in sorted(groups):
        classes[rows[groups[digest][0]].get("label")].append(digest)
    held = [digest for members in classes.values() for digest in members[: _part(members, rule)]]
    if not held:  # every class has one row only
        held = [min(groups)]
    return {position for digest in held for position in groups[digest]}


def _part(members: Sequence[str], rule: HeldOut) -> int:
    """How many of a class are held out: at least one stays."""
    if len(members) < 2:
        return 0
    return min(max(round(rule.share * len(members)), 1), len(members) - 1)


def _digest(row: Mapping, fields: Sequence[str], seed: int) -> str:
    names = fields or sorted(name for name in row if name not in ("label", "idx"))
    text = json.dumps([seed, [row.get(name) for name in names]], default=str)
    return hashlib.sha256(text.encode()).hexdigest()
