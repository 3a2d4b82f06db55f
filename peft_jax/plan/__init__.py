"""Planning a run for TPUs that are not there.

The TPU compiler runs on any x86 Linux machine (``pip install libtpu``) and compiles for a named
slice of a pod. :func:`plan` gives it the run's own train, score and decode steps
(:mod:`peft_jax.programs`) and reads the result: memory of a chip, FLOPs, bytes, collectives, and an
estimate of the time (:mod:`peft_jax.plan.estimate` says what it is and what it is not).

``peft-jax plan`` is the command; docs/plan.md shows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from peft_jax import placement, sharding
from peft_jax.config import Experiment
from peft_jax.errors import InputError
from peft_jax.plan.compiled import Memory, Planned
from peft_jax.plan.executables import load_executable, save_executable
from peft_jax.plan.topology import Topology, parse_topology
from peft_jax.plan.worker import compile_apart, planned_as_dict
from peft_jax.programs import BatchShape, outline
from peft_jax.sharding import Axes

__all__ = [
    "Memory",
    "Planned",
    "Topology",
    "axes_for",
    "compile_apart",
    "largest_batch",
    "load_executable",
    "parse_topology",
    "plan",
    "planned_as_dict",
    "save_executable",
    "scaling",
]

Tell = Callable[[str], None]


def _silent(line: str) -> None:
    pass


def axes_for(config: Experiment, topology: Topology, shape: BatchShape) -> Axes:
    """The mesh of a run on a slice: as the experiment says, else as a run there would choose."""
    backbone = outline(config)
    return sharding.choose_axes(
        placement.held_bytes(backbone, config),
        int(topology.chip.usable),
        topology.chips,
        backbone.config,
        shape.batch // config.training.accumulate,
        **dataclasses.asdict(config.mesh),
    )


def plan(
    config: Experiment,
    topology: str,
    names: Sequence[str] = ("train", "score", "decode"),
    shape: BatchShape | None = None,
    *,
    axes: Axes | None = None,
    save: Path | None = None,
    text: Path | None = None,
    tell: Tell = _silent,
) -> list[Planned]:
    """Compiles a run's programs for a slice.

    Args:
      config: the run; ``config.backbone`` may name a published model whose weights are not here.
      topology: "v5e:4x4" or "v5e-16"; see ``topology.parse_topology``.
      names: of ``programs.PROGRAMS``.
      shape: of the batches; by default ``training.batch_size`` rows. Scoring and decoding have
        ``evaluation.batch_size`` rows, filled up to what the mesh divides.
      axes: the mesh; by default :func:`axes_for`.
      save: folder for the executables, which a job on the slice loads with
        :func:`load_executable`.
      text: folder for the compiled programs' texts.
      tell: told what is compiled next.

    Raises:
      InputError: the run, the mesh or the slice make no sense.
    """
    found = parse_topology(topology)
    shape = BatchShape(config.training.batch_size) if shape is None else shape
    axes = axes_for(config, found, shape) if axes is None else axes
    if axes.data * axes.fsdp * axes.model > found.chips:
        raise InputError(f"a mesh of {_words(axes)} is more than the {found.chips} of {topology}")
    planned = []
    for name in names:
        own = shape
        if name != "train":
            own = shape._replace(batch=_filled(config.evaluation.batch_size, axes))
        tell(
            f"{name}: {own.batch} rows on {found.name}, {_words(axes)}, remat {config.model.remat}"
        )
        path = None if text is None else text / f"{name}.hlo.txt"
        planned.append(compile_apart(name, config, found.name, axes, own, save=save, text=path))
    return planned


def _words(axes: Axes) -> str:
    return " x ".join(f"{name} {size}" for name, size in axes._asdict().items())


def _filled(batch: int, axes: Axes) -> int:
    ways = axes.data * axes.fsdp
    return -(-batch // ways) * ways


# --------------------------------------------------------------------------------------------
# The largest batch
# --------------------------------------------------------------------------------------------
def largest_batch(
    config: Experiment,
    topology: str,
    first: Planned,
    *,
    tell: Tell = _silent,
    tries: int = 6,
) -> Planned | None:
    """The largest batch of a train step that fits, found by compiling.

    What a chip holds grows with its rows nearly in a line: two batches that fit say where it would
    be full, and a program of that size is compiled; one that does not fit after all is made smaller
    by an eighth until it does.

    Args:
      first: a plan of the train step, fitting or not.
      tries: programs to compile at most.

    Returns the plan of the largest batch that was seen to fit; None if none did.
    """
    axes, ways = first.axes, first.axes.data * first.axes.fsdp * config.training.accumulate
    seen: dict[int, Planned] = {first.shape.batch: first}

    def compiled(batch: int) -> Planned:
        shape = first.shape._replace(batch=batch)
        tell(f"train: {batch} rows")
        return compile_apart("train", config, topology, axes, shape)

    for _ in range(tries):
        batch = next_batch(seen, ways)
        if batch is None:
            break
        seen[batch] = compiled(batch)
    fitting = [one for one in seen.values() if one.fits]
    return max(fitting, key=lambda one: one.shape.batch) if fitting else None


def next_batch(seen: dict[int, Planned], ways: int) -> int | None:
    """The batch to try next, a multiple of ``ways``; None: nothing larger can be learned.

    Args:
      seen: batch -> its plan.
    """
    fitting = sorted(batch for batch, one in seen.items() if one.fits)
    failing = sorted(batch for batch, one in seen.items() if not one.fits)
    if not fitting:
        smaller = failing[0] // 2 // ways * ways
        return smaller or None
    best = fitting[-1]
    if len(fitting) == 1:
        guess = best * 2
    else:
        (a, one), (b, other) = ((batch, _held(seen[batch])) for batch in fitting[-2:])
        slope = max((other - one) / (b - a), 1.0)
        memory = seen[best].memory
        assert memory is not None
        guess = int(b + 0.97 * (memory.limit - other) / slope)
    if failing:
        guess = min(guess, failing[0] * 7 // 8)
    guess = guess // ways * ways
    # A gain of a twentieth is not worth another program.
    return guess if guess >= best * 1.05 and guess not in seen else None


def _held(one: Planned) -> float:
    assert one.memory is not None
    return one.memory.total


# --------------------------------------------------------------------------------------------
# Scaling
# --------------------------------------------------------------------------------------------
def scaling(
    config: Experiment,
    topologies: Sequence[str],
    rows_per_chip: int,
    shape: BatchShape,
    *,
    tell: Tell = _silent,
) -> list[tuple[Topology, Planned | None]]:
    """The train step on slices of several sizes, each chip with as many rows.

    Returns (slice, plan), with None where no mesh of the slice divides the batch.
    """
    found: list[tuple[Topology, Planned | None]] = []
    for name in topologies:
        topology = parse_topology(name)
        own = shape._replace(batch=rows_per_chip * topology.chips)
        training = dataclasses.replace(config.training, batch_size=own.batch)
        sized = dataclasses.replace(config, training=training)
        try:
            axes = axes_for(sized, topology, own)
            found.append((topology, plan(sized, name, ("train",), own, axes=axes, tell=tell)[0]))
        except InputError as error:
            tell(f"{name}: {error}")
            found.append((topology, None))
    return found
