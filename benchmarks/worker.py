"""One library in one process: reads commands as JSON lines, answers with JSON lines.

A worker holds one case. Its threads are pinned before the library is imported, and it idles while
the other library's worker is measured.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import statistics
import sys
import time
from pathlib import Path


def resident() -> int:
    """Bytes resident now."""
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def extra_memory(step) -> dict[str, int]:
    """Bytes by which the resident set grows at its peak during one step, and that peak.

    The allocator's free pages are returned first, so that what an earlier step left in the heap
    does not hide what this one needs.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident()
    step()
    peak = _status("VmHWM")
    return {"before": before, "peak": peak, "extra": peak - before}


def timed(step, seconds: float) -> dict[str, object]:
    """Durations of single steps, until ``seconds`` have passed and at least one is done.

    ``cpu`` is the processor time that all of them took together, over all threads.
    """
    durations = []
    used = time.process_time()
    while sum(durations) < seconds or not durations:
        start = time.perf_counter()
        step()
        durations.append(time.perf_counter() - start)
    return {"seconds": durations, "cpu": time.process_time() - used}


def product_sizes(settings: dict) -> tuple[int, int, int]:
    """(rows, d_model, d_ff): the feed-forward's first product over a batch's inputs."""
    import numpy as np  # not before the threads are pinned

    folder = Path(settings["folder"])
    config = json.loads((folder / "model/config.json").read_text())
    inputs = np.load(folder / f"{settings['job']}.npz")["inputs"]
    return inputs.size, config["d_model"], config["d_ff"]


def main() -> None:
    settings = json.loads(sys.argv[1])
    os.sched_setaffinity(0, settings["cores"])
    # The answers' pipe is kept for answers: whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    side = importlib.import_module(
        "benchmarks." + settings.get("side", f"{settings['library']}_side")
    )
    step, versions = side.prepare(settings)
    product = None
    start, used = time.perf_counter(), time.process_time()
    results = [step()]
    first, first_cpu = time.perf_counter() - start, time.process_time() - used
    results += [step() for _ in range(settings["warmup"])]
    print(
        json.dumps(
            {"results": results, "first_s": first, "first_cpu": first_cpu, "versions": versions}
        ),
        file=answers,
    )
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "time":
            answer = timed(step, command["seconds"])
        elif command["do"] == "product":
            if product is None:
                rows, inner, columns = settings.get("product") or product_sizes(settings)
                product = side.matrix_product(rows, inner, columns, settings["dtype"])
            seconds = statistics.median(timed(product, command["seconds"])["seconds"])
            answer = 2 * rows * inner * columns / seconds
        elif command["do"] == "memory":
            # Of a device's own memory the side knows; of the host's, the system.
            on_host = settings.get("device", "cpu") == "cpu"
            answer = extra_memory(step) if on_host else side.extra_device_memory(step)
        else:
            raise ValueError(f"unknown command {command['do']!r}")
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
