"""How long a compiled program takes on a slice: an estimate from FLOPs, bytes and collectives.

What it is: every instruction takes as long as its matrix products at the chip's peak, or its bytes
at the memory's bandwidth, whichever is longer; together they take no less than all bytes do, copies
that run beside the products included. Collectives are added, as rings along the dimensions of the
torus that their groups span; one that other work was scheduled beside counts by what it exceeds
that work. Every time counts as often as the instruction runs.

What it is not: measured. No product reaches the peak, elementwise work in VMEM is free here though
it is not on a chip, links are taken to be free of other traffic, and hosts never to be late. It
ranks meshes and finds what a step spends on bytes and links; a real step is slower. Beside it stand
the compiler's own cycles of each fusion, which know elementwise work, at the chip's clock: they are
its guess for choosing between ways to compile, larger than what is measured as a rule.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from peft_jax.plan.chips import HOP
from peft_jax.plan.topology import Topology
from peft_jax.plan.work import Collective, Step, Work

Coordinates = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Collectives of one kind over groups of one size, of the whole program.

    Attributes:
      count: how many run.
      bytes: on each chip, together.
      seconds: together, as if nothing ran beside them.
    """

    kind: str
    group: int
    count: int
    bytes: float
    seconds: float
    overlapped: bool


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one run of a program.

    Attributes:
      matrix: all matrix products at the peak.
      memory: all bytes at the bandwidth.
      chip: products and bytes, instruction by instruction.
      collectives: what they add to it.
      cycles: the compiler's cycles at the chip's clock, with what collectives add; None where it
        gave none.
      exchanges: the collectives, the longest first.
    """

    matrix: float
    memory: float
    chip: float
    collectives: float
    cycles: float | None
    exchanges: tuple[Exchange, ...]

    @property
    def seconds(self) -> float:
        return self.chip + self.collectives


def estimate(work: Work, topology: Topology, places: Sequence[Coordinates]) -> Estimate:
    """The estimate of a program.

    Args:
      places: where each partition's chip is in the torus; see :func:`coordinates`.
    """
    chip = topology.chip
    matrix, memory = work.flops / chip.flops, work.bytes / chip.bandwidth
    apart = sum(
        step.times * max(step.flops / chip.flops, step.bytes / chip.bandwidth)
        for step in work.steps
        if not step.asynchronous
    )
    busy = max(apart, memory)
    times = {id(c): collective_seconds(c, topology, places) for _, c in work.collectives}
    alone = sum(n * times[id(c)] for n, c in work.collectives if not c.overlapped)
    beside = sum(n * times[id(c)] for n, c in work.collectives if c.overlapped)
    # What runs beside can hide behind all that the chip does, and no further.
    added = alone + max(0.0, beside - busy)
    cycles = sum(step.times * (step.cycles or 0) for step in work.steps) / chip.clock
    return Estimate(
        matrix,
        memory,
        busy,
        added,
        max(cycles, memory) + added if cycles else None,
        _exchanges(work, times),
    )


def _exchanges(work: Work, times: dict[int, float]) -> tuple[Exchange, ...]:
    found: dict[tuple[str, int, bool], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for count, each in work.collectives:
        total = found[each.kind, _group_size(each), each.overlapped]
        total[0] += count
        total[1] += count * each.bytes
        total[2] += count * times[id(each)]
    rows = (
        Exchange(kind, group, int(count), size, seconds, overlapped)
        for (kind, group, overlapped), (count, size, seconds) in found.items()
    )
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def _group_size(each: Collective) -> int:
    return 2 if each.kind == "collective-permute" else max(map(len, each.groups), default=1)


def collective_seconds(
    each: Collective, topology: Topology, places: Sequence[Coordinates]
) -> float:
    """Seconds of one collective, by itself.

    A ring of n chips moves (n - 1) / n of the gathered bytes through each chip's two links; a line
    has no link between its ends, and takes twice as long. Over several dimensions each moves a part
    of the bytes at the same time. An all-reduce is a reduce-scatter and an all-gather.
    """
    if each.kind == "collective-permute":
        return _permute_seconds(each, topology, places)
    group = max(each.groups, key=len, default=())
    n = len(group)
    if n < 2:
        return 0.0
    dimensions = _spanned([places[i] for i in group if i < len(places)])
    rate = sum(_rate(topology, d, length) for d, length in dimensions) or topology.chip.link
    hops = sum(length // 2 for _, length in dimensions) or 1
    share = (n - 1) / n
    if each.kind == "all-reduce":
        return 2 * share * each.bytes / rate + 2 * hops * HOP
    if each.kind == "all-to-all":
        # On a ring a byte travels a quarter of the way round on average, in both directions.
        return each.bytes * n / 8 / rate + hops * HOP
    return share * each.bytes / rate + hops * HOP


def _permute_seconds(each: Collective, topology: Topology, places) -> float:
    far = 0
    for source, target in each.groups:
        apart = 0
        for d, (a, b) in enumerate(zip(places[source], places[target], strict=True)):
            straight = abs(a - b)
            ring = topology.is_ring(d) and topology.shape[d] - straight
            apart += min(straight, ring) if ring else straight
        far = max(far, apart)
    return each.bytes / topology.chip.link * max(far, 1) + far * HOP


def _spanned(group: Sequence[Coordinates]) -> list[tuple[int, int]]:
    """(dimension of the torus, chips along it) of those that a group spans."""
    if not group:
        return []
    lengths = ((d, len({place[d] for place in group})) for d in range(len(group[0])))
    return [(d, length) for d, length in lengths if length > 1]


def _rate(topology: Topology, dimension: int, length: int) -> float:
    """Bytes/s through a chip along a dimension: both ways round a ring, one way along a line."""
    ring = length == topology.shape[dimension] and topology.is_ring(dimension)
    return topology.chip.link * (2 if ring else 1)


def coordinates(mesh: Any, topology: Topology) -> list[Coordinates]:
    """Where the chip of each partition is: partitions are the mesh's devices in order."""
    return [tuple(device.coords)[: len(topology.shape)] for device in mesh.devices.flat]


def slowest(work: Work, topology: Topology, count: int = 10) -> list[tuple[float, Step]]:
    """The instructions that take longest by the compiler's cycles, and their seconds together."""
    clock = topology.chip.clock
    timed = [(step.times * (step.cycles or 0) / clock, step) for step in work.steps]
    return sorted(timed, key=lambda pair: -pair[0])[:count]
