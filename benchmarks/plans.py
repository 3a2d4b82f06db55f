"""Plans of T-Few on T0-3B and T0-11B for slices of TPU pods: figures, tables and the picture.

    python -m benchmarks.plans                    compiles what is not there yet
    python -m benchmarks.plans --only t0_3b       of these alone
    python -m benchmarks.plans --write            docs/plan_results.md and docs/plan.png

Every program is a file in benchmarks/plans/: one that is there is not compiled again. Nothing is
run: the TPU compiler works on a machine without TPUs, and its figures are the same on all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from peft_jax import plan as plans
from peft_jax.config import MeshConfig, load_preset
from peft_jax.errors import InputError
from peft_jax.plan import executables, tables, worker
from peft_jax.plan.compiled import Planned
from peft_jax.plan.topology import prepare_environment
from peft_jax.programs import BatchShape

FOLDER = Path(__file__).parent / "plans"
DOCS = Path(__file__).parent.parent / "docs"

ROWS = {"t0_3b": 8, "t0_11b": 4}
"""Rows a chip of a batch."""
SHAPE = BatchShape(0, input_length=256, choices=4, choice_length=16, target_length=64)
SLICES = ("v5e-16", "v5e-256", "v5p-128", "v4-64")
SCALING = {
    "t0_3b": ("v5e-1", "v5e-4", "v5e-16", "v5e-64", "v5e-256"),
    "t0_11b": ("v5p-2", "v5p-16", "v5p-128", "v5p-512"),
}


class Case(NamedTuple):
    """One program. ``mesh``: sizes that are given; the others are chosen as a run chooses them."""

    preset: str
    topology: str
    program: str
    mesh: tuple[tuple[str, int], ...] = ()

    @property
    def path(self) -> Path:
        given = "".join(f".{name}{size}" for name, size in self.mesh)
        return FOLDER / f"{self.preset}.{self.topology}{given}.{self.program}.json"

    def done(self) -> Planned | None:
        if not self.path.is_file():
            return None
        return worker.planned_from(json.loads(self.path.read_text())["plan"])


def cases() -> list[Case]:
    """What there is to compile, the most wanted first."""
    both = [(preset, place) for place in SLICES for preset in ROWS]
    found = [Case(preset, place, "train") for preset, place in both]
    found += [Case(preset, place, "train") for preset in SCALING for place in SCALING[preset]]
    for program in ("score", "decode"):
        found += [Case(preset, place, program) for preset, place in both]
    return list(dict.fromkeys(found))


def compile_case(case: Case) -> None:
    """Compiles one program and writes its file."""
    topology = plans.parse_topology(case.topology)
    rows = ROWS[case.preset] * topology.chips
    config = load_preset(case.preset)
    config = dataclasses.replace(
        config,
        mesh=MeshConfig(**dict(case.mesh)),
        training=dataclasses.replace(config.training, batch_size=rows),
        evaluation=dataclasses.replace(config.evaluation, batch_size=rows),
    )
    shape = SHAPE._replace(batch=rows)
    (one,) = plans.plan(config, case.topology, (case.program,), shape, tell=print)
    made = {"versions": executables.versions(), "plan": plans.planned_as_dict(one)}
    FOLDER.mkdir(exist_ok=True)
    case.path.write_text(json.dumps(made, indent=1) + "\n")


# --------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------
def markdown(columns, rows) -> list[str]:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def write() -> None:
    """docs/plan_results.md and docs/plan.png, from the files that are there."""
    known = {case: one for case in cases() if (one := case.done()) is not None}
    lines = [
        "# Plans of T-Few on T0-3B and T0-11B",
        "",
        "Made by `python -m benchmarks.plans --write` from benchmarks/plans/; nothing here was run"
        " on a TPU. docs/plan.md says what the columns mean and what the times are not.",
        f"Inputs of {SHAPE.input_length} tokens, {SHAPE.choices} choices of {SHAPE.choice_length},"
        f" written answers of {SHAPE.target_length}; {ROWS['t0_3b']} rows a chip for T0-3B and"
        f" {ROWS['t0_11b']} for T0-11B; meshes as a run there chooses them.",
        "",
    ]
    columns = ("model", "slice", "mesh", "remat", *tables.SUMMARY, "links ms")
    rows = []
    for case, one in known.items():
        if case.topology in SLICES:
            topology = plans.parse_topology(case.topology)
            head = (case.preset, case.topology, tables.mesh_words(one.axes), one.remat)
            links = "-" if one.estimate is None else f"{one.estimate.collectives * 1e3:,.1f}"
            rows.append((*head, *tables.summary_row(one, topology), links))
    lines += markdown(columns, sorted(rows, key=lambda row: (row[0], SLICES.index(row[1]))))
    series = {}
    for preset, places in SCALING.items():
        name = f"{preset} on {places[0].split('-')[0]}, {ROWS[preset]} rows a chip"
        series[name] = [
            (plans.parse_topology(place), known[case])
            for place in places
            if (case := Case(preset, place, "train")) in known
        ]
        if series[name]:
            table = markdown(tables.SCALING, tables.scaling_rows(series[name]))
            lines += ["", f"## {name}, train", "", *table]
    if max(map(len, series.values())) > 1:
        tables.draw_scaling(DOCS / "plan.png", series)
        lines += ["", "![](plan.png)"]
    (DOCS / "plan_results.md").write_text("\n".join([*lines, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose file's name has this in it")
    parser.add_argument("--write", action="store_true", help="the tables and the picture alone")
    given = parser.parse_args()
    prepare_environment()
    for case in () if given.write else cases():
        if given.only in case.path.name and case.done() is None:
            try:
                compile_case(case)
            except InputError as error:
                print(f"{case.path.name}: {error}")
    write()


if __name__ == "__main__":
    main()
