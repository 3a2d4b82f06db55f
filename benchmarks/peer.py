"""Times peft_jax against transformers + PEFT: one machine, one run, the same weights.

    python -m benchmarks.peer --json results.json                  # everything
    python -m benchmarks.peer --sizes t5_v1_1_small --jobs tfew --dtypes float32

Each library runs in a process of its own, both pinned to the same cores, one at a time: rounds
alternate between them, so that whatever else the machine does falls on both. Nothing is timed
before both have computed the same losses from the same weights, step after step. A ratio is the
median over rounds of (the peer's time / ours); its range over the rounds stands beside it.

Memory is what a step adds at its peak to what was resident before it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jobs

ROOT = Path(__file__).parent.parent
SIZES = ["t5_v1_1_small", "t5_v1_1_base"]
DTYPES = ["float32", "bfloat16"]

# How far the first losses may differ, relative to their size. bfloat16 keeps eight bits, and the
# peer computes everything in it, where ours keeps activations, norms and logits in float32.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}

# Pause before a worker's turn: the other library's threads spin for a while after their last task.
SETTLE_SECONDS = 0.2

# How long matrix products alone are timed in every round: the limit that the CPU sets to each side.
PRODUCT_SECONDS = 0.1


class Worker:
    """A library in its own process."""

    module = "benchmarks.worker"

    def __init__(self, library: str, case: jobs.Case, folder: Path, cores: list[int], **options):
        settings = {
            "library": library, "folder": str(folder), "cores": cores,
            "job": case.job, "method": case.method, "dtype": case.dtype, **options,
        }  # fmt: skip
        environment = os.environ | {
            "OMP_NUM_THREADS": str(len(cores)),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if options.get("device", "cpu") == "cpu":
            environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        else:  # two libraries share the device: neither may take all of its memory
            environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.name = f"{library} on {case.name}"
        # A file, since a pipe that nobody reads would fill and stop the worker.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, json.dumps(settings)],
            cwd=ROOT, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip

    def answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"{self.name} ended:\n{self.errors.read()[-3000:]}")
        return json.loads(line)

    def ask(self, **command: Any) -> Any:
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return self.answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()


class Busy:
    """How much of the machine other processes use while a worker has its turn."""

    def __init__(self):
        self.start, self.used = time.monotonic(), self._used()

    @staticmethod
    def _used() -> float:
        """Seconds of CPU that this machine has spent, all cores together, idle time apart."""
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
        user, nice, system, _, _, irq, softirq = (int(f) for f in fields[1:8])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")

    def others(self, own: float) -> float:
        """The share of all cores' time that was neither idle nor the worker's ``own`` seconds."""
        passed = (time.monotonic() - self.start) * os.cpu_count()
        return max(0.0, self._used() - self.used - own) / passed


# ------------------------------------------------------------------------------------- one case


def check_parity(case: jobs.Case, peer: list, ours: list) -> float:
    """The largest disagreement of the first steps' results: relative, or the share of tokens.

    Raises:
      SystemExit: the two libraries did not compute the same thing, so their times say nothing.
    """
    a, b = np.asarray(peer, np.float64), np.asarray(ours, np.float64)
    if a.shape != b.shape:
        raise SystemExit(f"{case.name}: the results have shapes {a.shape} and {b.shape}")
    if case.job == "decode":
        difference, allowed = float(np.mean(a != b)), 0.0
        if case.dtype == "bfloat16":
            allowed = 1.0  # one rounded near-tie changes all that follows: only reported
    else:
        difference = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
        allowed = TOLERANCE[case.dtype]
    if not difference <= allowed:
        raise SystemExit(
            f"{case.name}: results differ by {difference:.2g}, more than {allowed:.2g}: "
            f"peer {peer}, ours {ours}"
        )
    return difference


def measure(case: jobs.Case, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Parity, memory and interleaved times of one case."""
    began = time.monotonic()
    cores = options.cores
    # Three steps of training show that the gradients agree too; scoring repeats itself.
    warmup = 2 if case.job in ("train", "tfew") else 0
    with (
        Worker("peft", case, folder, cores, warmup=warmup) as peer,
        Worker("peft_jax", case, folder, cores, warmup=warmup, run=options.run) as ours,
    ):
        workers = {"peer": peer, "ours": ours}
        started = {side: worker.answer() for side, worker in workers.items()}
        difference = check_parity(case, *(started[side]["results"] for side in workers))
        memory = {side: worker.ask(do="memory") for side, worker in workers.items()}
        times: dict[str, list[float]] = {side: [] for side in workers}
        products: dict[str, list[float]] = {side: [] for side in workers}
        others = []
        while len(times["ours"]) < options.rounds:
            late = time.monotonic() - began > options.budget
            if late and len(times["ours"]) >= options.least_rounds:
                break
            for side, worker in workers.items():
                time.sleep(SETTLE_SECONDS)
                busy = Busy()
                answer = worker.ask(do="time", seconds=options.seconds)
                times[side].append(statistics.median(answer["seconds"]))
                others.append(busy.others(answer["cpu"]))
                products[side].append(worker.ask(do="product", seconds=PRODUCT_SECONDS))
    ratios = [p / o for p, o in zip(times["peer"], times["ours"], strict=True)]
    return {
        "case": dataclasses.asdict(case),
        "difference": difference,
        "seconds": {side: statistics.median(t) for side, t in times.items()},
        "rounds": times,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "first_step_seconds": {side: s["first_s"] for side, s in started.items()},
        "memory": memory,
        "product_flops": {side: statistics.median(f) for side, f in products.items()},
        "others": statistics.median(others),
        "versions": started["peer"]["versions"] | started["ours"]["versions"],
    }


# -------------------------------------------------------------------- memory of a step, by remat

MEMORY_VARIANTS = {
    "peft": ("peft", {}),
    "peft, gradient checkpointing": ("peft", {"remat": "full"}),
    "peft_jax, remat none": ("peft_jax", {"run": {"remat": "none"}}),
    "peft_jax, remat dots": ("peft_jax", {"run": {"remat": "dots"}}),
    "peft_jax, remat full": ("peft_jax", {"run": {"remat": "full"}}),
}


def measure_memory(case: jobs.Case, folder: Path, cores: list[int]) -> dict[str, Any]:
    """Extra memory, and the time, of a step with what each library can recompute."""
    variants = {}
    for name, (library, settings) in MEMORY_VARIANTS.items():
        with Worker(library, case, folder, cores, warmup=1, **settings) as worker:
            worker.answer()
            memory = worker.ask(do="memory")
            seconds = statistics.median(worker.ask(do="time", seconds=1.0)["seconds"])
        variants[name] = {"memory": memory, "seconds": seconds}
    return {"case": dataclasses.asdict(case), "variants": variants}


# ---------------------------------------------------------------------------------- the whole run


def machine(cores: list[int]) -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in info.splitlines() if ":" in line
    )
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cores": len(cores),
        "of": os.cpu_count(),
        "vector": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def show(result: dict[str, Any]) -> str:
    """One line of the running report."""
    case, seconds, memory = jobs.Case(**result["case"]), result["seconds"], result["memory"]
    low, high = result["ratio_range"]
    product = result["product_flops"]
    return (
        f"{case.name:40s} {1e3 * seconds['peer']:8.0f} {1e3 * seconds['ours']:8.0f} ms "
        f"{result['ratio']:6.2f}x [{low:.2f}-{high:.2f}] "
        f"{memory['peer']['extra'] / 2**20:6.0f} {memory['ours']['extra'] / 2**20:6.0f} MiB "
        f"{result['difference']:.1e} {result['others']:4.0%} "
        f"products {product['ours'] / product['peer']:.2f}x"
    )


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usable = sorted(os.sched_getaffinity(0))
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="configurations, or toy")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    names = list(jobs.SHAPES)
    parser.add_argument("--jobs", nargs="+", default=names, choices=names)
    parser.add_argument("--cores", nargs="+", type=int, default=usable[-2:])
    parser.add_argument("--rounds", type=int, default=7, help="most rounds of a case")
    parser.add_argument("--least-rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="least time of a worker's turn")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds a case may take")
    parser.add_argument(
        "--run", type=json.loads, default={}, help='fields of our Config, e.g. {"remat": "none"}'
    )
    parser.add_argument("--no-memory", action="store_true", help="skip the table of remat policies")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = arguments(argv)
    results: dict[str, Any] = {"machine": machine(options.cores), "cases": [], "memory": []}
    print(json.dumps(results["machine"]))
    print(
        f"{'':40s} {'peft':>8s} {'peft_jax':>8s}    ratio, extra memory, difference, load, products"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for size in options.sizes:
            folder = Path(temporary) / size
            folder.mkdir()
            jobs.write_inputs(folder, size)
            for case in jobs.cases([size], options.dtypes, options.jobs):
                results["cases"].append(measure(case, folder, options))
                print(show(results["cases"][-1]), flush=True)
                write_results(options.json, results)
        if not options.no_memory:  # of the last size, the largest by default
            case = jobs.Case(size, "train", "lora", "float32", jobs.shapes(size)["train"])
            results["memory"].append(measure_memory(case, folder, options.cores))
            for name, variant in results["memory"][-1]["variants"].items():
                extra, seconds = variant["memory"]["extra"] / 2**20, variant["seconds"]
                print(f"{case.name:40s} {name:30s} {extra:6.0f} MiB {1e3 * seconds:8.0f} ms")
            write_results(options.json, results)
    return results


def write_results(path: Path | None, results: dict[str, Any]) -> None:
    """As JSON, after every case: what was measured survives an interruption."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
