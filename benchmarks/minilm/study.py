"""Runs what is missing from a file of results, a line a run, and says how far it is.

A run is identified by all of its fields: a changed learning rate or number of steps is a new run,
an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.minilm.plan import Run

ROOT = Path(__file__).resolve().parents[2]

# The other side's threads spin for a while after their last task.
SETTLE_SECONDS = 0.2


class Side:
    """A library in its own process, pinned to the cores; started at its first run."""

    def __init__(self, name: str, cores: list[int]):
        self.name, self.cores = name, cores
        self.process: subprocess.Popen | None = None
        self.versions: dict[str, str] = {}

    def __call__(self, run: Run) -> dict[str, Any]:
        if self.process is None:
            self._start()
        print(json.dumps(dataclasses.asdict(run)), file=self.process.stdin, flush=True)
        return self._answer()

    def _start(self) -> None:
        # A file, since a pipe that nobody reads would fill and stop the worker.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        environment = os.environ | {
            "OMP_NUM_THREADS": str(len(self.cores)),
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TOKENIZERS_PARALLELISM": "false",
        }
        settings = json.dumps({"side": self.name, "cores": self.cores})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.minilm.worker", settings],
            cwd=ROOT, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self.versions = self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"{self.name} ended:\n{self.errors.read()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.kill()
            self.process.wait()
            self.errors.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The finished runs: {"run": fields, "result": ..., "versions": ...}."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(run: dict[str, Any]) -> str:
    return json.dumps(run, sort_keys=True)


def run_missing(wanted: Iterable[Run], path: Path, cores: list[int]) -> list[dict[str, Any]]:
    """The wanted runs' lines in their order, those that were missing added to the file."""
    wanted = list(wanted)
    finished = {key(line["run"]): line for line in read(path)}
    missing = [run for run in wanted if key(dataclasses.asdict(run)) not in finished]
    print(f"{len(wanted)} runs, {len(missing)} of them missing from {path.name}")
    sides = {name: Side(name, cores) for name in {run.side for run in missing}}
    began = time.monotonic()
    try:
        for number, run in enumerate(missing, 1):
            time.sleep(SETTLE_SECONDS)
            side = sides[run.side]
            result = side(run)
            line = {"run": dataclasses.asdict(run), "result": result, "versions": side.versions}
            finished[key(line["run"])] = line
            with path.open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            left = (time.monotonic() - began) / number * (len(missing) - number)
            print(show(number, len(missing), run, result, left), flush=True)
    finally:
        for side in sides.values():
            side.close()
    return [finished[key(dataclasses.asdict(run))] for run in wanted]


def show(number: int, total: int, run: Run, result: dict[str, Any], left: float) -> str:
    """One line of the running report."""
    return (
        f"{number:4d}/{total} {run.dataset:14s} {run.method:7s} {run.side:5s} seed {run.seed} "
        f"lr {run.learning_rate:<7g} {result['accuracy']:6.1%}  "
        f"{1e3 * result['seconds_per_step']:5.0f} ms/step  {left / 60:4.1f} min left"
    )
