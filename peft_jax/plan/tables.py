"""Plans as tables and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft_jax import report
from peft_jax.plan.compiled import Planned
from peft_jax.plan.topology import Topology
from peft_jax.sharding import Axes

Row = tuple[str, ...]


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"


def mesh_words(axes: Axes) -> str:
    """The axes that are not 1, or "1"."""
    return " x ".join(f"{n} {size}" for n, size in axes._asdict().items() if size > 1) or "1"


# --------------------------------------------------------------------------------------------
# One plan
# --------------------------------------------------------------------------------------------
SUMMARY = ("program", "rows", "GiB/chip", "of", "ms", "floor ms", "ratio", "cycles ms", "rows/s")


def summary_row(one: Planned, topology: Topology) -> Row:
    """A line of the table that ``SUMMARY`` heads."""
    head = (one.name, f"{one.shape.batch:,}")
    limit, floor = gib(topology.chip.usable), milliseconds(one.floor.seconds)
    if one.memory is None or one.estimate is None or one.ratio is None:
        needed = "?" if one.needed in (None, float("inf")) else gib(one.needed or 0)
        return (*head, f"{needed} (does not fit)", limit, "-", floor, "-", "-", "-")
    cycles = one.estimate.cycles
    return (
        *head,
        gib(one.memory.total),
        limit,
        milliseconds(one.estimate.seconds),
        floor,
        f"{one.ratio:.2f}",
        "-" if cycles is None else milliseconds(cycles),
        f"{one.rows_per_second:,.0f}",
    )


def summary_table(planned: Sequence[Planned], topology: Topology) -> Any:
    """Memory, time and floor of each program."""
    first = planned[0]
    title = (
        f"{topology.name}, {topology.chips} chips, mesh {mesh_words(first.axes)}, "
        f"remat {first.remat}"
    )
    return report.table(title, SUMMARY, [summary_row(one, topology) for one in planned])


def memory_table(planned: Sequence[Planned]) -> Any:
    """Where a chip's memory goes, GiB."""
    rows = [
        (
            one.name,
            *map(gib, (m.arguments, m.temporaries, m.outputs, m.code, m.total, m.limit)),
            f"{m.total / m.limit:.0%}",
        )
        for one in planned
        for m in [one.memory]
        if m is not None
    ]
    columns = ("GiB a chip", "arguments", "temporaries", "outputs", "code", "total", "limit", "")
    return report.table("memory", columns, rows)


def work_table(planned: Sequence[Planned]) -> Any:
    """What a chip computes and moves, and how long each would take alone."""
    rows = [
        (
            one.name,
            f"{one.flops / 1e12:,.2f}",
            f"{one.bytes / 1e9:,.1f}",
            milliseconds(e.matrix),
            milliseconds(e.memory),
            milliseconds(e.chip),
            milliseconds(e.collectives),
        )
        for one in planned
        for e in [one.estimate]
        if e is not None
    ]
    columns = ("a chip", "TFLOP", "GB", "products ms", "memory ms", "both ms", "+ links ms")
    return report.table("work", columns, rows)


def exchange_table(planned: Sequence[Planned], longest: int = 5) -> Any:
    """The collectives, by kind and size of the group."""
    rows = [
        (
            one.name,
            f"{each.kind}{' (beside other work)' if each.overlapped else ''}",
            str(each.group),
            f"{each.count:,}",
            f"{each.bytes / 1e6:,.1f}",
            milliseconds(each.seconds),
        )
        for one in planned
        if one.estimate is not None
        for each in one.estimate.exchanges[:longest]
    ]
    columns = ("collectives", "kind", "chips", "count", "MB a chip", "ms")
    return report.table("collectives", columns, rows)


# --------------------------------------------------------------------------------------------
# Many plans
# --------------------------------------------------------------------------------------------
SEARCH = ("mesh", "remat", "GiB/chip", "ms", "links ms", "cycles ms", "ratio")


def search_table(planned: Sequence[Planned]) -> Any:
    """Ranked meshes; see :func:`peft_jax.plan.search.search`."""
    rows: list[Row] = []
    for one in planned:
        head = (mesh_words(one.axes), one.remat)
        if one.memory is None or one.estimate is None or one.ratio is None:
            needed = one.needed or 0.0
            rows.append((*head, f"{gib(needed)} (does not fit)", "-", "-", "-", "-"))
            continue
        e = one.estimate
        times = (e.seconds, e.collectives, e.cycles or 0.0)
        rows.append((*head, gib(one.memory.total), *map(milliseconds, times), f"{one.ratio:.2f}"))
    return report.table("train, ranked", SEARCH, rows)


SCALING = ("chips", "mesh", "rows", "GiB/chip", "ms", "links ms", "rows/s", "a chip", "ratio")


def scaling_rows(found: Sequence[tuple[Topology, Planned | None]]) -> list[Row]:
    """The lines of the scaling table that ``SCALING`` heads."""
    rows: list[Row] = []
    for topology, one in found:
        head: Row = (str(topology.chips),)
        if one is None:
            rows.append((*head, *("-",) * (len(SCALING) - 1)))
            continue
        head = (*head, mesh_words(one.axes), f"{one.shape.batch:,}")
        if one.memory is None or one.estimate is None or one.rows_per_second is None:
            rows.append((*head, f"{gib(one.needed or 0)} (does not fit)", *("-",) * 5))
            continue
        rows.append(
            (
                *head,
                gib(one.memory.total),
                milliseconds(one.estimate.seconds),
                milliseconds(one.estimate.collectives),
                f"{one.rows_per_second:,.0f}",
                f"{one.rows_per_second / topology.chips:,.1f}",
                f"{one.ratio:.2f}",
            )
        )
    return rows


def draw_scaling(path: Path, series: dict[str, Sequence[tuple[Topology, Planned | None]]]) -> None:
    """Rows a second, a chip's share of it, and what fills its memory, against the chips.

    Args:
      series: name -> what :func:`peft_jax.plan.scaling` found.
    """
    made, (rate, share, memory) = report.figure(3, width=4.4)
    known = {name: found for name, found in series.items() if any(one for _, one in found)}
    marks = zip(("o", "s", "^", "D"), known.items(), strict=False)
    for mark, (name, found) in marks:
        fitting = [(t, one) for t, one in found if one is not None and one.estimate is not None]
        chips = [t.chips for t, _ in fitting]
        speeds = [one.rows_per_second or 0.0 for _, one in fitting]
        (line,) = rate.plot(chips, speeds, mark, ls="-", ms=4, label=name)
        if chips:
            ideal = [speeds[0] / chips[0] * n for n in chips]
            rate.plot(chips, ideal, color=line.get_color(), ls=":", lw=1)
        efficiency = [100 / one.ratio if one.ratio else 0.0 for _, one in fitting]
        share.plot(chips, efficiency, mark, ls="-", ms=4, color=line.get_color(), label=name)
        filled = [100 * m.total / m.limit for _, one in fitting for m in [one.memory] if m]
        memory.plot(chips, filled, mark, ls="-", ms=4, color=line.get_color(), label=name)
    rate.set(title="rows a second, estimated", yscale="log")
    share.set(title="floor / estimate, %", ylim=(0, 105))
    memory.set(title="of a chip's memory, %", ylim=(0, 105))
    for axis in (rate, share, memory):
        axis.set_xscale("log", base=2)
        ticks = sorted({t.chips for found in series.values() for t, _ in found})
        axis.set_xticks(ticks, list(map(str, ticks)))
        axis.set_xlabel("chips")
        axis.minorticks_off()
    rate.legend(frameon=False, fontsize=8)
    report.save_figure(made, path)
