"""What a compiled program does on one chip: FLOPs, bytes of main memory, and collectives.

XLA's own analysis counts the body of a loop once; here every instruction counts as often as it
runs. FLOPs are those of matrix products and convolutions. Bytes are those that an instruction reads
from and writes to main memory: what the compiler keeps in the memory beside it (VMEM) is free, of
an array that is sliced only the slice counts, and what a fusion makes on the way is never stored.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from peft_jax.plan import hlo
from peft_jax.plan.hlo import Array, Computation, Instruction, Module

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# Names for parts of others, or for nothing at all.
_FREE = frozenset(
    (
        *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota"),
        *("partition-id", "replica-id", "while", "conditional", "call", "opt-barrier"),
    )
)


class Collective(NamedTuple):
    """A collective, each time that it runs.

    Attributes:
      kind: one of :data:`KINDS`.
      bytes: on each chip: of what is reduced, of the gathered whole, or of what is sent.
      groups: the partitions that exchange, the same number in each group.
      overlapped: whether other work is scheduled between its start and its end.
      source: the operation of the traced program.
    """

    kind: str
    bytes: float
    groups: tuple[tuple[int, ...], ...]
    overlapped: bool
    source: str


class Step(NamedTuple):
    """One instruction, and how often it runs.

    Attributes:
      times: None cannot be: a loop whose length is not known counts once.
      cycles: the compiler's estimate, if it gives one.
    """

    name: str
    times: int
    flops: float
    bytes: float
    cycles: int | None
    collective: Collective | None
    asynchronous: bool
    source: str


@dataclasses.dataclass(frozen=True)
class Work:
    """All that a program does on one chip."""

    steps: tuple[Step, ...]
    unknown_loops: int

    @property
    def flops(self) -> float:
        return sum(step.times * step.flops for step in self.steps)

    @property
    def bytes(self) -> float:
        return sum(step.times * step.bytes for step in self.steps)

    @property
    def collectives(self) -> list[tuple[int, Collective]]:
        """(how often, what)."""
        return [(step.times, step.collective) for step in self.steps if step.collective]


def work_of(module: Module) -> Work:
    """The work of a program that was parsed by ``hlo.parse``."""
    found = _Found([], set())
    _walk(module, module.computations[module.entry], 1, found)
    return Work(tuple(found.steps), found.unknown_loops)


@dataclasses.dataclass
class _Found:
    """What has been read so far; ``channels`` are those of collectives inside fusions."""

    steps: list[Step]
    channels: set[str]
    unknown_loops: int = 0


def _walk(module: Module, computation: Computation, times: int, found: _Found) -> None:
    for each in computation.instructions:
        if each.opcode == "while":
            rounds = hlo.trip_count(module, computation, each)
            found.unknown_loops += rounds is None
            body = module.computations[each.attribute("body") or ""]
            _walk(module, body, times * (1 if rounds is None else rounds), found)
        elif each.opcode in ("call", "conditional"):
            for name in _branches(each):
                _walk(module, module.computations[name], times, found)
        elif each.opcode not in _FREE:
            found.steps.append(_step(module, computation, each, times))
            found.steps.extend(_fused_collectives(module, each, times, found.channels))


def _branches(each: Instruction) -> list[str]:
    """What a call or a conditional runs: of several branches the first stands for all."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", each.attributes)
    if listed:
        return [listed[1].split(",")[0].strip().lstrip("%")]
    name = each.attribute("to_apply") or each.attribute("true_computation")
    return [name] if name else []


def _step(module: Module, computation: Computation, each: Instruction, times: int) -> Step:
    collective = _collective(module, computation, each)
    moved = (
        0.0 if collective or each.opcode.endswith("-done") else _bytes(module, computation, each)
    )
    return Step(
        each.name,
        times,
        flops_of(module, computation, each),
        moved,
        each.cycles,
        collective,
        each.opcode.endswith(("-start", "-done")),
        each.source,
    )


# --------------------------------------------------------------------------------------------
# FLOPs
# --------------------------------------------------------------------------------------------
def flops_of(module: Module, computation: Computation, each: Instruction) -> float:
    """FLOPs of the matrix products in an instruction, those of a fusion included."""
    if each.opcode == "dot":
        return _dot(computation, each)
    if each.opcode == "convolution":
        return _convolution(computation, each)
    inner = module.computations.get(each.calls or "")
    if each.opcode in ("fusion", "async-start") and inner is not None:
        return sum(flops_of(module, inner, one) for one in inner.instructions)
    return 0.0


def _dot(computation: Computation, each: Instruction) -> float:
    left = computation.operand(each, 0)
    named = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.attributes)
    if left is None or named is None:
        return 0.0
    contracted = math.prod(left.results[0].shape[int(i)] for i in named[1].split(",") if i)
    return 2.0 * each.results[0].size * contracted


def _convolution(computation: Computation, each: Instruction) -> float:
    """A TPU's matrix product is a convolution, whose batch dimensions are spatial ones with
    windows that touch one valid place: only these are counted, as XLA does."""
    named = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes)
    left, right = computation.operand(each, 0), computation.operand(each, 1)
    if named is None or left is None or right is None:
        return 0.0
    inputs, kernel, output = named.groups()
    sizes = {
        side: dict(zip(labels, one.shape, strict=True))
        for side, labels, one in (
            ("in", inputs, left.results[0]),
            ("kernel", kernel, right.results[0]),
            ("out", output, each.results[0]),
        )
    }
    spatial = sorted(label for label in inputs if label.isdigit())
    window = _window(each, len(spatial))
    pairs = 1
    for label, options in zip(spatial, window, strict=True):
        pairs *= _valid_pairs(sizes["in"][label], sizes["out"][label], options)
    out = sizes["out"]
    return 2.0 * out["b"] * out["f"] * sizes["kernel"]["i"] * pairs


class _Window(NamedTuple):
    size: int = 1
    stride: int = 1
    low: int = 0
    dilate: int = 1
    kernel_dilate: int = 1


def _window(each: Instruction, dimensions: int) -> list[_Window]:
    found = re.search(r"window=\{([^}]*)\}", each.attributes)
    options = dict(part.split("=") for part in found[1].split()) if found else {}

    def values(name: str, default: str) -> list[str]:
        given = options.get(name)
        return given.split("x") if given else [default] * dimensions

    columns = zip(
        values("size", "1"),
        values("stride", "1"),
        (pad.split("_")[0] for pad in values("pad", "0_0")),
        values("lhs_dilate", "1"),
        values("rhs_dilate", "1"),
        strict=False,
    )
    found_windows = [_Window(*map(int, column)) for column in columns]
    return found_windows if dimensions else []


def _valid_pairs(inputs: int, outputs: int, window: _Window) -> int:
    """Pairs (place of the output, place of the window) that read an input, no padding or gap."""
    count = 0
    for place in range(window.size):
        offset = place * window.kernel_dilate - window.low
        if window.size == outputs == 1:
            return int(0 <= offset <= (inputs - 1) * window.dilate)
        count += _valid_outputs(inputs, outputs, offset, window)
    return count


def _valid_outputs(inputs: int, outputs: int, offset: int, window: _Window) -> int:
    last = (inputs - 1) * window.dilate
    if window.dilate == 1:
        # offset <= 0 .. : a range of outputs, no need to look at each.
        first = max(0, -(offset // window.stride))
        final = min(outputs - 1, (last - offset) // window.stride)
        return max(0, final - first + 1)
    places = (out * window.stride + offset for out in range(outputs))
    return sum(0 <= place <= last and place % window.dilate == 0 for place in places)


# --------------------------------------------------------------------------------------------
# Bytes
# --------------------------------------------------------------------------------------------
def _bytes(module: Module, computation: Computation, each: Instruction) -> float:
    if each.opcode in ("copy-start", "slice-start", "dynamic-slice-start"):
        # (where to, where from, ...), of a slice the other way round: the smaller is what moves.
        sides = [one for one in each.results if one.size > 1 or one.shape] or list(each.results)
        moved = min(one.bytes for one in sides[:2])
        return moved * sum(one.space == 0 for one in sides[:2])
    inner = module.computations.get(each.calls or "")
    if each.opcode in ("fusion", "async-start") and inner is not None:
        read = sum(
            _read(module, inner, i, _array(computation, operand))
            for i, operand in enumerate(each.operands)
        )
        return read + _written(inner, inner.root, each.results)
    if each.opcode in ("slice", "dynamic-slice", "gather"):
        of = _array(computation, each.operands[0])
        source = 0 if of is None or of.space else each.results[0].bytes
        return source + each.results[0].main_bytes
    if each.opcode == "dynamic-update-slice":
        update = _array(computation, each.operands[1])
        moved = 0 if update is None else update.bytes
        read = 0 if update is None else update.main_bytes
        return read + (0 if each.results[0].space else moved)
    arrays = (_array(computation, operand) for operand in each.operands)
    read = sum(one.main_bytes for one in arrays if one is not None)
    return read + sum(one.main_bytes for one in each.results)


def _array(computation: Computation, name: str) -> Array | None:
    found = computation.by_name.get(name)
    return found.results[0] if found is not None and len(found.results) == 1 else None


def _read(module: Module, inner: Computation, index: int, outside: Array | None) -> float:
    """Bytes of main memory that a fusion reads of its operand."""
    parameter = inner.parameters.get(index)
    if outside is None or outside.space or parameter is None:
        return 0.0
    read = sum(_used(module, inner, user, place) for user, place in _uses(inner, parameter))
    return min(outside.bytes, read)


def _uses(inner: Computation, one: Instruction) -> Iterator[tuple[Instruction, int]]:
    """Who reads an array, other names of it looked through."""
    for user, place in inner.users.get(one.name, ()):
        if user.opcode == "bitcast":
            yield from _uses(inner, user)
        else:
            yield user, place


def _used(module: Module, inner: Computation, user: Instruction, place: int) -> float:
    if user.opcode in ("dynamic-slice", "slice", "gather"):
        return user.results[0].bytes if place == 0 else 0.0
    if user.opcode == "dynamic-update-slice" and place == 0:
        return 0.0  # written in place
    if user.opcode in ("tuple", "custom-call", *KINDS):
        return 0.0  # handed on, or a collective's own
    nested = module.computations.get(user.calls or "")
    if user.opcode == "fusion" and nested is not None:
        return _read(module, nested, place, _plain(inner.by_name[user.operands[place]]))
    return inner.by_name[user.operands[place]].results[0].bytes


def _plain(one: Instruction) -> Array:
    return one.results[0]._replace(space=0)


def _written(inner: Computation, root: Instruction, results: tuple[Array, ...]) -> float:
    """Bytes of main memory that a fusion writes."""
    if root.opcode == "tuple":
        each = [inner.by_name[name] for name in root.operands]
        if len(each) == len(results):
            return sum(
                _written(inner, one, (result,)) for one, result in zip(each, results, strict=True)
            )
    if root.opcode == "parameter":
        return 0.0  # handed on
    if root.opcode == "bitcast":
        return _written(inner, inner.by_name[root.operands[0]], results)
    if root.opcode == "dynamic-update-slice":
        update = _array(inner, root.operands[1])
        return 0.0 if results[0].space or update is None else update.bytes
    return sum(one.main_bytes for one in results)


# --------------------------------------------------------------------------------------------
# Collectives
# --------------------------------------------------------------------------------------------
def _collective(module: Module, computation: Computation, each: Instruction) -> Collective | None:
    inner, within = each, computation
    if each.opcode == "async-start":
        called = module.computations.get(each.calls or "")
        if called is None:
            return None
        inner, within = called.root, called
    kind = inner.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    return _exchange(within, inner, kind, _overlaps(computation, each))


def _exchange(within: Computation, each: Instruction, kind: str, overlapped: bool) -> Collective:
    operands = [_array(within, name) for name in each.operands]
    sent = sum(one.bytes for one in operands if one is not None)
    groups = replica_groups(each.attributes)
    if kind == "all-gather":
        sent *= len(groups[0]) if groups else 1
    return Collective(kind, sent, groups, overlapped, each.source)


def _fused_collectives(
    module: Module, each: Instruction, times: int, channels: set[str]
) -> Iterator[Step]:
    """Collectives inside a fusion, which the compiler runs beside the fusion's own work.

    One that runs beside several fusions stands in each of them under the same channel. A fusion of
    an all-reduce with the slice that is kept of it is a reduce-scatter.
    """
    inner = module.computations.get(each.calls or "")
    if each.opcode != "fusion" or inner is None:
        return
    for one in inner.instructions:
        channel = one.attribute("channel_id") or one.name
        if one.opcode not in KINDS or channel in channels:
            continue
        channels.add(channel)
        scatters = inner.name.startswith("all-reduce-scatter")
        kind = "reduce-scatter" if scatters else one.opcode
        made = _exchange(inner, one, kind, overlapped=not scatters)
        yield Step(f"{each.name}/{one.name}", times, 0.0, 0.0, None, made, True, one.source)


def _overlaps(computation: Computation, start: Instruction) -> bool:
    """Whether something that takes time is scheduled while a collective is under way."""
    if not start.opcode.endswith("-start"):
        return False
    names = [one.name for one in computation.instructions]
    first = names.index(start.name)
    ends = [names.index(user.name) for user, _ in computation.users.get(start.name, ())]
    between = computation.instructions[first + 1 : min(ends, default=first + 1)]
    return any(one.opcode in ("fusion", "convolution", "dot") for one in between)


def replica_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """The groups of partitions, in any of the three ways in which XLA writes them."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if pairs:
        found = re.findall(r"\{(\d+),(\d+)", pairs[1] + "}")
        return tuple((int(a), int(b)) for a, b in found)
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
    if listed:
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return tuple(tuple(map(int, group.split(","))) for group in groups)
    return _iota_groups(attributes) or _mesh_groups(attributes)


def _iota_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    found = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if not found:
        return ()
    shape, _, rest = found[1].partition("<=")
    ids = _iota(rest)
    rows, width = (int(n) for n in shape.strip("[]").split(","))
    return tuple(tuple(ids[i * width : (i + 1) * width]) for i in range(rows))


def _iota(text: str) -> list[int]:
    """[4,4]T(1,0): the numbers from 0 in this shape, transposed and flattened."""
    import numpy as np

    shape, _, order = text.partition("T")
    sizes = [int(n) for n in shape.strip("[]").split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    if order:
        numbers = numbers.transpose([int(n) for n in order.strip("()").split(",")])
    return numbers.ravel().tolist()


def _mesh_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """mesh['x'=4,'y'=2], device_ids=(..) {'y'}: a mesh, and the axes along which they exchange."""
    import numpy as np

    found = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, ?device_ids=\(([^{]*)\))? ?\{(.*?)\}", attributes
    )
    if not found:
        return ()
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
    total = math.prod(axes.values())
    ids = np.asarray(_iota(found[2]) if found[2] else range(total)).reshape(list(axes.values()))
    along = re.findall(r"'([^']+)'", found[3])
    names = list(axes)
    order = [names.index(n) for n in names if n not in along] + [names.index(n) for n in along]
    width = math.prod(axes[name] for name in along)
    return tuple(map(tuple, ids.transpose(order).reshape(-1, width).tolist()))
