"""Times a LoRA step of peft_jax against qwix's, on one encoder stack with the same weights.

    python -m benchmarks.qwix_lora                    # writes benchmarks/qwix.json

Both run on the same jax: what is compared is what the two hand to XLA. The sides lie in
benchmarks.qwix_sides; rounds alternate as in benchmarks.peer, and nothing is timed before both have
computed the same losses, step after step. Both libraries' step is timed on the wall and in
processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import jobs, peer, qwix_sides

RESULTS = Path(__file__).parent / "qwix.json"
# Ours as it is by default, and with everything kept for the backward pass, as qwix's side does.
VARIANTS = {
    "qwix": ("qwix", {}),
    "peft_jax": ("peft_jax", {"run": {"remat": "dots"}}),
    "peft_jax, nothing recomputed": ("peft_jax", {"run": {"remat": "none"}}),
}
PEER = "qwix"


def measure(size: str, cores: list[int], rounds: int, seconds: float) -> dict[str, Any]:
    """First steps, losses, memory, and times in rounds, of every variant."""
    case = jobs.Case(size, "train", "lora", "float32", jobs.shapes(size)["train"])
    workers: dict[str, peer.Worker] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            qwix_sides.write_inputs(Path(folder), size)
            started = {}
            for name, (library, settings) in VARIANTS.items():
                workers[name] = peer.Worker(
                    library, case, Path(folder), cores, warmup=2, side="qwix_sides", size=size,
                    **settings,
                )  # fmt: skip
                started[name] = workers[name].answer()
        differences = {
            name: peer.check_parity(case, started[PEER]["results"], one["results"])
            for name, one in started.items()
        }
        memory = {name: worker.ask(do="memory") for name, worker in workers.items()}
        wall: dict[str, list[float]] = {name: [] for name in workers}
        processor: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                time.sleep(peer.SETTLE_SECONDS)
                answer = worker.ask(do="time", seconds=seconds)
                wall[name].append(statistics.median(answer["seconds"]))
                processor[name].append(answer["cpu"] / len(answer["seconds"]))
    finally:
        for worker in workers.values():
            worker.__exit__()
    return {
        "size": size,
        "machine": peer.machine(cores),
        "load": os.getloadavg()[0],
        "versions": started["peft_jax"]["versions"] | started[PEER]["versions"],
        "difference": max(differences.values()),
        "first_step_seconds": {name: one["first_s"] for name, one in started.items()},
        "first_step_processor_seconds": {name: one["first_cpu"] for name, one in started.items()},
        "extra_memory": {name: one["extra"] for name, one in memory.items()},
        "wall_seconds": wall,
        "processor_seconds": processor,
    }


def ratios(results: dict[str, Any], times: str = "processor_seconds") -> dict[str, list[float]]:
    """qwix's time divided by each variant's, round by round."""
    of = results[times]
    return {
        name: [theirs / ours for theirs, ours in zip(of[PEER], rounds, strict=True)]
        for name, rounds in of.items()
        if name != PEER
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="t5_v1_1_small", help="a configuration, or toy")
    parser.add_argument(
        "--cores", nargs="+", type=int, default=sorted(os.sched_getaffinity(0))[-2:]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of a turn")
    parser.add_argument("--json", type=Path, default=RESULTS, help="write the results here")
    options = parser.parse_args(argv)
    results = measure(options.size, options.cores, options.rounds, options.seconds)
    for name, rounds in ratios(results).items():
        first = results["first_step_processor_seconds"]
        print(
            f"{name}: step {statistics.median(rounds):.2f}x [{min(rounds):.2f}-{max(rounds):.2f}] "
            f"as fast as qwix's, first step {first[name] / first[PEER]:.0%} of its time"
        )
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
