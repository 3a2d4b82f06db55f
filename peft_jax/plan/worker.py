"""Compiling in a process of its own: the compiler may crash, and reads its settings when loaded.

``python -m peft_jax.plan.worker`` reads a request as JSON and writes the result as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from peft_jax.config import Experiment, from_dict, to_json
from peft_jax.errors import InputError
from peft_jax.plan.compiled import Memory, Planned, compile_program
from peft_jax.plan.estimate import Estimate, Exchange
from peft_jax.plan.floor import Floor
from peft_jax.plan.topology import open_devices, parse_topology, prepare_environment
from peft_jax.programs import BatchShape, outline
from peft_jax.sharding import Axes, make_mesh

_MARK = "peft-jax plan result: "


def compile_apart(
    name: str,
    config: Experiment,
    topology: str,
    axes: Axes,
    shape: BatchShape,
    *,
    save: Path | None = None,
    text: Path | None = None,
) -> Planned:
    """``compiled.compile_program`` in another process.

    Args:
      topology: a name that ``topology.parse_topology`` knows.

    Raises:
      InputError: as there; or the compiler crashed.
    """
    request = {
        "name": name,
        "config": json.loads(to_json(config)),
        "topology": topology,
        "axes": axes,
        "shape": shape,
        "save": save and str(save),
        "text": text and str(text),
    }
    done = subprocess.run(
        [sys.executable, "-m", "peft_jax.plan.worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not answers:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        last = next((line for line in reversed(said) if "Error" in line or "***" in line), "")
        raise InputError(
            f"the compiler stopped with code {done.returncode} on {name} for {topology} "
            f"({', '.join(f'{k} {v}' for k, v in axes._asdict().items())}): {last}"
        )
    answer = json.loads(answers[-1].removeprefix(_MARK))
    if "error" in answer:
        raise InputError(answer["error"])
    return planned_from(answer)


def main() -> None:
    prepare_environment()
    request = json.loads(sys.stdin.read())
    try:
        answer: dict[str, Any] = planned_as_dict(_answer(request))
    except InputError as error:
        answer = {"error": str(error)}
    print(_MARK + json.dumps(answer), flush=True)


def _answer(request: dict[str, Any]) -> Planned:
    config = from_dict(request["config"])
    topology = parse_topology(request["topology"])
    data, fsdp, model = request["axes"]
    devices = open_devices(topology)
    mesh = make_mesh(devices=devices, data=data, fsdp=fsdp, model=model)
    return compile_program(
        request["name"],
        config,
        outline(config),
        topology,
        mesh,
        BatchShape(*request["shape"]),
        save=request["save"] and Path(request["save"]),
        text=request["text"] and Path(request["text"]),
    )


# --------------------------------------------------------------------------------------------
# As JSON
# --------------------------------------------------------------------------------------------
def planned_as_dict(planned: Planned) -> dict[str, Any]:
    """Plain values; what is derived stands beside what it comes from."""
    made = dataclasses.asdict(planned)
    made["shape"] = planned.shape._asdict()
    made["axes"] = planned.axes._asdict()
    made["floor"] = planned.floor._asdict()
    made |= {"ratio": planned.ratio, "rows_per_second": planned.rows_per_second}
    if planned.memory is not None:
        made["memory"]["total"] = planned.memory.total
    if planned.estimate is not None:
        made["estimate"]["seconds"] = planned.estimate.seconds
    return made


def planned_from(made: dict[str, Any]) -> Planned:
    """The inverse of :func:`planned_as_dict`."""
    values = {field.name: made[field.name] for field in dataclasses.fields(Planned)}
    values["shape"] = BatchShape(**made["shape"])
    values["axes"] = Axes(**made["axes"])
    values["floor"] = Floor(**made["floor"])
    values["slowest"] = tuple(map(tuple, made["slowest"]))
    if made["memory"] is not None:
        values["memory"] = Memory(**{k: v for k, v in made["memory"].items() if k != "total"})
    if made["estimate"] is not None:
        found = {k: v for k, v in made["estimate"].items() if k != "seconds"}
        found["exchanges"] = tuple(Exchange(**each) for each in found["exchanges"])
        values["estimate"] = Estimate(**found)
    return Planned(**values)


if __name__ == "__main__":
    main()
