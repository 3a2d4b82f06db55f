"""What devices exchange in a compiled program, read from the text that XLA prints."""

import collections
import re
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")


class Collective(NamedTuple):
    """One exchange: its kind, the shapes of its results, and how many loops it stands in."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    depth: int

    @property
    def squeezed(self) -> tuple[tuple[int, ...], ...]:
        """The shapes without axes of size 1."""
        return tuple(tuple(n for n in shape if n > 1) for shape in self.shapes)


def exchanged(compiled) -> list[Collective]:
    """The collectives of a compiled program; one that runs asynchronously is counted once."""
    bodies, called = collections.defaultdict(list), collections.defaultdict(set)
    name = ""
    for line in compiled.as_text().splitlines():
        if head := _HEAD.match(line):
            name = head[2]
        bodies[name].append(line)
        inner = " while(" in line
        for callee in _CALLED.findall(line):
            called[callee].add((name, int(inner and f"body=%{callee}" in line)))

    def depth(name):
        return max((depth(caller) + loop for caller, loop in called[name]), default=0)

    found, seen = [], set()
    for name, lines in bodies.items():
        for line in lines:
            at = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
            channel = re.search(r"channel_id=(\d+)", line)
            if at is None or (channel and channel[1] in seen):
                continue
            seen.add(channel and channel[1])
            shapes = re.findall(r"\w+\[([\d,]*)\]", at[1])
            sizes = (tuple(int(n) for n in shape.split(",") if n) for shape in shapes)
            found.append(Collective(at[2], tuple(sizes), depth(name)))
    return found
