"""The command ``peft-jax plan``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from peft_jax import plan as plans
from peft_jax.config import Experiment, check
from peft_jax.errors import InputError
from peft_jax.plan import tables
from peft_jax.plan.executables import versions
from peft_jax.plan.search import search
from peft_jax.plan.topology import Topology, parse_topology, prepare_environment
from peft_jax.programs import BatchShape

Name = Literal["train", "score", "decode"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compile a run's programs for a slice of a TPU pod that is not here; say what they need."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    config: str = "t0_3b"
    """Preset from configs/, or the path of a Python file with a function config()."""
    topology: str = "v5e-16"
    """Cloud's name of a slice (v5e-16, v4-64, v5p-128) or the compiler's (v5e:4x4)."""
    programs: tuple[Name, ...] = ("train", "score", "decode")
    """What to compile."""
    input_length: int = 256
    """Tokens of an input; --data.max-input-length is not read."""
    choices: int = 4
    """Answer choices of a row; 0: the answers are written."""
    choice_length: int = 16
    """Tokens of a choice."""
    target_length: int = 64
    """Tokens of a written answer."""
    largest_batch: bool = False
    """Also find the largest batch of a train step that fits."""
    search: int = 0
    """Compile the train step on so many of the most promising meshes, each with the first remat
    policy that fits, and rank them. Mesh sizes that are given are kept."""
    scaling: tuple[str, ...] = ()
    """Slices of several sizes instead of the one: a table with training.batch_size rows a chip."""
    json: Path | None = None
    """File for all figures."""
    picture: Path | None = None
    """File for the picture of --scaling."""
    save: Path | None = None
    """Folder for the executables, which a job on the slice can load instead of compiling."""
    text: Path | None = None
    """Folder for the compiled programs' texts."""


def run(given: Plan, console: Console) -> None:
    """Plans, prints, and writes the files that were asked for."""
    prepare_environment()  # this process needs no device, and must not wait for one
    check(given.experiment)
    shape = BatchShape(
        given.experiment.training.batch_size,
        given.input_length,
        given.choices,
        given.choice_length,
        given.target_length,
    )
    for field, least in (("choices", 0), ("input_length", 1), ("choice_length", 1)):
        if getattr(given, field) < least:
            raise InputError(f"{field} is {getattr(given, field)}; it must be at least {least}")
    if given.text is not None:
        given.text.mkdir(parents=True, exist_ok=True)

    def tell(line: str) -> None:
        console.print(f"compiling {line}", style="dim", markup=False)

    if given.scaling:
        results = _scaling(given, shape, console, tell)
    else:
        results = _one(given, shape, console, tell)
    if given.json is not None:
        made = {"versions": versions(), "backbone": given.experiment.backbone, **results}
        given.json.write_text(json.dumps(made, indent=1) + "\n")
        console.print(f"written to {given.json}", markup=False)


def _one(given: Plan, shape: BatchShape, console: Console, tell) -> dict[str, Any]:
    topology = parse_topology(given.topology)
    if given.search:
        found = search(given.experiment, given.topology, shape, candidates=given.search, tell=tell)
        console.print(tables.search_table(found))
        return _described(topology) | {"search": [plans.planned_as_dict(one) for one in found]}
    names = given.programs if shape.choices else tuple(n for n in given.programs if n != "score")
    planned = plans.plan(
        given.experiment, given.topology, names, shape, save=given.save, text=given.text, tell=tell
    )
    console.print(tables.summary_table(planned, topology))
    if any(one.fits for one in planned):
        for make in (tables.memory_table, tables.work_table, tables.exchange_table):
            console.print(make(planned))
    results = _described(topology) | {"plans": [plans.planned_as_dict(one) for one in planned]}
    train = next((one for one in planned if one.name == "train"), None)
    if given.largest_batch and train is not None:
        largest = plans.largest_batch(given.experiment, given.topology, train, tell=tell)
        if largest is None:
            console.print("no batch fits: split the weights further, or keep less (model.remat)")
        else:
            console.print(tables.summary_table([largest], topology))
            results["largest_batch"] = plans.planned_as_dict(largest)
    return results


def _scaling(given: Plan, shape: BatchShape, console: Console, tell) -> dict[str, Any]:
    found = plans.scaling(given.experiment, given.scaling, shape.batch, shape, tell=tell)
    title = f"{given.experiment.backbone}, train, {shape.batch} rows a chip"
    console.print(tables.report.table(title, tables.SCALING, tables.scaling_rows(found)))
    if given.picture is not None:
        tables.draw_scaling(given.picture, {title: found})
    return {
        "scaling": [
            _described(topology) | {"plan": one and plans.planned_as_dict(one)}
            for topology, one in found
        ]
    }


def _described(topology: Topology) -> dict[str, Any]:
    """A slice and its chip, for files."""
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "chip": topology.chip._asdict(),
    }
