"""Compiling one program of a run for a slice, and all that is known of it then."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import jax

from peft_jax import programs, sharding
from peft_jax.backbones import Backbone
from peft_jax.config import Experiment
from peft_jax.errors import InputError
from peft_jax.plan import estimate as estimates
from peft_jax.plan import hlo, work
from peft_jax.plan.floor import Floor, floor_of
from peft_jax.plan.topology import Topology
from peft_jax.sharding import Axes


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on a chip, as the compiler lays them out.

    Attributes:
      arguments: weights, adapter, optimiser and batch.
      outputs: those that do not take the place of an argument.
      temporaries: everything between.
      code: of the program itself.
      limit: what a program may use.
    """

    arguments: float
    outputs: float
    temporaries: float
    code: float
    limit: float

    @property
    def total(self) -> float:
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Planned:
    """A program on a slice.

    Attributes:
      name: "train", "score" or "decode".
      shape: the batch, of all chips together.
      axes: the mesh.
      remat: what the backward pass keeps.
      fits: whether it compiled within a chip's memory.
      memory: None where it does not fit.
      needed: bytes that the compiler says it would have needed; None where it fits.
      compile_seconds: on this machine.
      flops, bytes: on one chip, as often as each instruction runs.
      estimate: seconds; see :mod:`peft_jax.plan.estimate`.
      floor: see :mod:`peft_jax.plan.floor`.
      slowest: (seconds by the compiler's cycles, times, what) of the longest instructions.
      unknown_loops: loops whose length could not be read, counted once.
    """

    name: str
    shape: programs.BatchShape
    axes: Axes
    remat: str
    fits: bool
    memory: Memory | None
    needed: float | None
    compile_seconds: float
    flops: float
    bytes: float
    estimate: estimates.Estimate | None
    floor: Floor
    slowest: tuple[tuple[float, int, str], ...] = ()
    unknown_loops: int = 0

    @property
    def rows_per_second(self) -> float | None:
        return None if self.estimate is None else self.shape.batch / self.estimate.seconds

    @property
    def ratio(self) -> float | None:
        """Of the estimate to the floor."""
        return None if self.estimate is None else self.estimate.seconds / self.floor.seconds


def compile_program(
    name: str,
    config: Experiment,
    backbone: Backbone,
    topology: Topology,
    mesh: jax.sharding.Mesh,
    shape: programs.BatchShape,
    *,
    save: Path | None = None,
    text: Path | None = None,
) -> Planned:
    """Compiles a program for a slice's devices.

    Args:
      name: of ``programs.PROGRAMS``.
      mesh: over the devices of ``topology.open_devices``.
      save: folder for the executable; see :mod:`peft_jax.plan.executables`.
      text: file for the compiled program's text.

    Raises:
      InputError: the run makes no sense; or the compiler refuses the program for another reason
        than memory.
    """
    axes = Axes(*(mesh.shape[axis] for axis in sharding.AXES))
    program = programs.PROGRAMS[name](config, backbone, mesh, shape)
    floor = floor_of(name, config, backbone, shape, topology)
    lowered = program.lower()
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed_bytes(str(error))
        if needed is None:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"the compiler refuses {name}: {first}") from None
        seconds = time.perf_counter() - started
        return Planned(
            name,
            shape,
            axes,
            backbone.config.remat,
            False,
            None,
            needed,
            seconds,
            0,
            0,
            None,
            floor,
        )
    seconds = time.perf_counter() - started
    printed = compiled.as_text() or ""
    if text is not None:
        text.write_text(printed)
    if save is not None:
        from peft_jax.plan.executables import save_executable

        save_executable(save, name, compiled, topology, axes)
    done = work.work_of(hlo.parse(printed))
    return Planned(
        name,
        shape,
        axes,
        backbone.config.remat,
        True,
        _memory(compiled, topology),
        None,
        seconds,
        done.flops,
        done.bytes,
        estimates.estimate(done, topology, estimates.coordinates(mesh, topology)),
        floor,
        _slowest(done, topology),
        done.unknown_loops,
    )


def _memory(compiled: Any, topology: Topology) -> Memory:
    found = compiled.memory_analysis()
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
        topology.chip.usable,
    )


def _slowest(done: work.Work, topology: Topology) -> tuple[tuple[float, int, str], ...]:
    found = estimates.slowest(done, topology)
    return tuple((s, step.times, f"{step.name} {step.source}".strip()) for s, step in found if s)


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}


def _needed_bytes(message: str) -> float | None:
    """The bytes that a program would have needed, from the compiler's refusal; else None."""
    used = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    used = used or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", message)
    if used is not None:
        return float(used[1]) * _UNITS[used[2]]
    return float("inf") if "RESOURCE_EXHAUSTED" in message else None
