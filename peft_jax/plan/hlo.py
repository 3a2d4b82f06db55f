"""Reading a compiled program: the text that XLA prints, as computations of instructions.

Only what the plan needs is understood: results with their sizes and where they lie, operands, the
computations that an instruction calls, and how often a loop runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import NamedTuple

_BYTES = {"pred": 1, "token": 0, "opaque": 0, "bf16": 2, "c64": 8, "c128": 16, "s4": 0.5, "u4": 0.5}


class Array(NamedTuple):
    """A result, or an element of one.

    Attributes:
      dtype: XLA's name, such as "bf16".
      shape: sizes.
      space: 0: the device's main memory; another number: memory beside it (1: VMEM of a TPU).
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        """Without the padding of tiles."""
        return self.size * _width(self.dtype)

    @property
    def main_bytes(self) -> float:
        """Those in the device's main memory."""
        return 0 if self.space else self.bytes


@functools.cache
def _width(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the sign in front.
      opcode: such as "fusion".
      results: one array, or the elements of a tuple, flattened.
      operands: names of instructions, or the number of a parameter, or a constant's text.
      attributes: what stands behind the operands.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, name: str) -> str | None:
        """The value of an attribute that is a name or a number."""
        found = re.search(rf"[,{{ ]{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def calls(self) -> str | None:
        """The computation that a fusion or an asynchronous operation runs."""
        return self.attribute("calls")

    @property
    def source(self) -> str:
        """The operation in the traced program that it came from; "" where it is not known."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int | None:
        """The compiler's own estimate, where it printed one."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they run."""

    name: str
    instructions: tuple[Instruction, ...]
    root: Instruction

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {each.name: each for each in self.instructions}

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """Name -> the instructions that read it, and as which operand."""
        found: dict[str, list[tuple[Instruction, int]]] = {}
        for each in self.instructions:
            for place, operand in enumerate(each.operands):
                found.setdefault(operand, []).append((each, place))
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        each = (one for one in self.instructions if one.opcode == "parameter")
        return {int(one.operands[0]): one for one in each}

    def operand(self, instruction: Instruction, place: int) -> Instruction | None:
        return self.by_name.get(instruction.operands[place])


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: str


# --------------------------------------------------------------------------------------------
# Parsing
# --------------------------------------------------------------------------------------------
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")


def parse(text: str) -> Module:
    """The program that ``compiled.as_text()`` prints."""
    computations: dict[str, Computation] = {}
    entry = name = ""
    lines: list[Instruction] = []
    root: Instruction | None = None
    for line in text.splitlines():
        if line and not line[0].isspace():
            head = _HEAD.match(line)
            if head:
                name, lines, root = head[2], [], None
                entry = name if head[1] else entry
            elif line.startswith("}") and name:
                if lines:
                    computations[name] = Computation(name, tuple(lines), root or lines[-1])
                name = ""
            continue
        found = _LINE.match(line) if name else None
        if found:
            lines.append(_instruction(found[2], line[found.end() :]))
            root = lines[-1] if found[1] else root
    return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    text = re.sub(r"/\*.*?\*/", "", text)
    end = _closing(text, 0) + 1 if text[0] == "(" else text.index(" ")
    results = tuple(_arrays(text[:end]))
    rest = text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inner = rest[opening + 1 : closing]
    operands = tuple(part.strip().split(" ")[-1].lstrip("%") for part in _split(inner))
    return Instruction(name, rest[:opening], results, operands, rest[closing + 1 :])


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at ``start``."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] in "([{":
            depth += 1
        elif text[index] in ")]}":
            depth -= 1
            if not depth:
                return index
    raise ValueError(f"a bracket is not closed: {text[start : start + 80]}")


def _split(text: str) -> list[str]:
    """The parts between commas that no bracket encloses."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[start:index])
            start = index + 1
    return [part for part in (*parts, text[start:]) if part.strip()]


def _arrays(text: str) -> list[Array]:
    found = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        shape = tuple(int(size) for size in sizes.split(",") if size)
        found.append(Array(dtype, shape, int(space[1]) if space else 0))
    return found


# --------------------------------------------------------------------------------------------
# Loops
# --------------------------------------------------------------------------------------------
def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop runs, or the most often where it may end before; None: it is not known.

    Known are loops that count up by one and stop at a constant, as those of ``lax.scan`` do.
    """
    stated = re.search(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)', loop.attributes)
    if stated:
        return int(stated[1])
    condition = module.computations.get(loop.attribute("condition") or "")
    if condition is None:
        return None
    found = [
        limit
        for within, bindings in _with_fused(module, condition)
        for each in within.instructions
        if each.opcode == "compare" and each.attribute("direction") in ("LT", "LE")
        for limit in [_limit(module, computation, loop, within, each, bindings)]
        if limit is not None
    ]
    return max(found) if found else None


_Bindings = dict[int, tuple[Computation, Instruction]]


def _with_fused(module: Module, condition: Computation):
    """A condition and the fusions in it, with what their parameters stand for."""
    yield condition, {}
    for each in condition.instructions:
        fused = module.computations.get(each.calls or "")
        if each.opcode == "fusion" and fused is not None:
            operands = (condition.operand(each, i) for i in range(len(each.operands)))
            yield fused, {i: (condition, one) for i, one in enumerate(operands) if one is not None}


def _limit(module, computation, loop, within, compare, bindings: _Bindings) -> int | None:
    """The constant that a comparison has on its right side, less where the counter starts."""
    sides = []
    for place in (0, 1):
        value = _scalar(computation, loop, within, within.operand(compare, place), bindings)
        sides.append(value)
    counter, limit = sides
    if limit is None:
        return None
    extra = compare.attribute("direction") == "LE"
    return int(limit) - int(counter or 0) + int(extra)


def _scalar(computation, loop, within, one, bindings: _Bindings, depth: int = 0) -> int | None:
    """A constant, or what an element of the loop's state is before the first round."""
    if one is None or depth > 12:
        return None
    if one.opcode == "constant":
        return int(one.operands[0]) if re.fullmatch(r"-?\d+", one.operands[0]) else None
    if one.opcode == "parameter" and bindings:
        outer, bound = bindings.get(int(one.operands[0]), (None, None))
        return _scalar(computation, loop, outer, bound, {}, depth + 1)
    if one.opcode == "get-tuple-element":
        start = computation.operand(loop, 0)
        index = int(one.attribute("index") or 0)
        if start is None or start.opcode != "tuple":
            return None
        return _scalar(computation, loop, computation, computation.operand(start, index), {}, 99)
    if one.opcode in ("copy", "bitcast", "convert", "reshape"):
        return _scalar(computation, loop, within, within.operand(one, 0), bindings, depth + 1)
    return None
