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
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.minilm.plan import SIDES, Run

ROOT = Path(__file__).resolve().parents[2]

# The other side's threads spin for a while after their last task.
SETTLE_SECONDS = 0.2


class Side:
    """A library in its own process, pinned to the cores; started at its first run."""

    def __init__(self, name: str, cores: list[int]):
        self.name, self.cores = name, cores
        self.process: subprocess.Popen | None = None
        self.versions: dict[str, str] = {}

    def ask(self, do: str, run: Run) -> dict[str, Any]:
        """``train`` or ``time``, see :mod:`benchmarks.minilm.worker`."""
        if self.process is None:
            self._start()
        time.sleep(SETTLE_SECONDS)
        command = json.dumps({"do": do, "run": dataclasses.asdict(run)})
        print(command, file=self.process.stdin, flush=True)
        return self._answer()

    def _start(self) -> None:
        # A file, since a pipe that nobody reads would fill and stop the worker.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        environment = os.environ | {
            "OMP_NUM_THREADS": str(len(self.cores)),
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TOKENIZERS_PARALLELISM": "false",
            # What one process has compiled, the next one reads.
            "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "peft_jax_minilm"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
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
    """The wanted runs' lines in their order, those that were missing added to the file.

    Every core works for itself, with one thread: a run's result does not depend on its speed, and
    two processes of one thread get through more than two threads that wait for each other.
    """
    wanted = list(wanted)
    finished = {key(line["run"]): line for line in read(path)}
    missing = [run for run in wanted if key(dataclasses.asdict(run)) not in finished]
    print(f"{len(wanted)} runs, {len(missing)} of them missing from {path.name}", flush=True)
    queue = Queue(missing)

    def done(run: Run, side: Side, result: dict[str, Any]) -> None:
        line = {"run": dataclasses.asdict(run), "result": result, "versions": side.versions}
        finished[key(line["run"])] = line
        with path.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(show(run, result, *queue.progress()), flush=True)

    with ThreadPoolExecutor(len(cores)) as pool:
        turns = [
            pool.submit(work, queue, core, SIDES[place % len(SIDES)], done)
            for place, core in enumerate(cores)
        ]
        for turn in turns:
            turn.result()
    return [finished[key(dataclasses.asdict(run))] for run in wanted]


class Queue:
    """The missing runs, taken by several threads."""

    def __init__(self, runs: list[Run]):
        self.runs, self.total, self.done = list(runs), len(runs), 0
        self.lock = threading.Lock()
        self.began = time.monotonic()

    def take(self, side: str) -> Run | None:
        """The next run of a side, of the other where it has none left; None at the end."""
        with self.lock:
            chosen = next((r for r in self.runs if r.side == side), None)
            chosen = chosen or next(iter(self.runs), None)
            if chosen is not None:
                self.runs.remove(chosen)
            return chosen

    def progress(self) -> tuple[int, int, float]:
        """Runs done, one more than at the last call; their total; seconds left."""
        self.done += 1
        passed = time.monotonic() - self.began
        return self.done, self.total, passed / self.done * (self.total - self.done)


def work(queue: Queue, core: int, preferred: str, done: Callable) -> None:
    """One core's share: a process for each side that it meets."""
    sides: dict[str, Side] = {}
    try:
        while (run := queue.take(preferred)) is not None:
            side = sides.setdefault(run.side, Side(run.side, [core]))
            result = side.ask("train", run)
            with queue.lock:
                done(run, side, result)
    except BaseException:
        queue.runs.clear()  # the other threads end with their runs in hand
        raise
    finally:
        for side in sides.values():
            side.close()


def show(run: Run, result: dict[str, Any], number: int, total: int, left: float) -> str:
    """One line of the running report."""
    return (
        f"{number:4d}/{total} {run.dataset:14s} {run.method:7s} {run.side:5s} seed {run.seed} "
        f"lr {run.learning_rate:<7g} {result['accuracy']:6.1%}  {result['seconds']:4.0f} s  "
        f"{left / 60:4.1f} min left"
    )
