"""Times generation against transformers' generate: one machine, one run, the same weights.

    python -m benchmarks.decoding --cores 0 1 --json benchmarks/decoding.json

As in benchmarks.peer the two libraries take turns on the same cores, in processes of their own, and
a ratio is the median over rounds of (transformers' time / ours). Weights are random; nothing is
timed before both have written the same tokens (but where they are drawn). Every text has exactly
the length that is asked for; reading the input is part of the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jobs, peer


@dataclasses.dataclass(frozen=True)
class Case:
    """What is generated.

    Attributes:
      size: a named configuration of peft_jax.
      method: "lora", or "none".
      batch: inputs, of INPUT_LENGTH tokens each.
      options: fields of Decoding.
    """

    size: str
    batch: int
    method: str = "none"
    dtype: str = "float32"
    length: int = 32
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    job = "generate"

    @property
    def name(self) -> str:
        how = " ".join(f"{name} {value}" for name, value in self.options.items()) or "greedy"
        method = "" if self.method == "none" else f" {self.method}"
        return f"{self.size}{method} {self.dtype} batch {self.batch} {how}"


INPUT_LENGTH = 128
T5 = {"size": "t5_v1_1_small", "method": "lora"}
CASES = [
    *(Case(**T5, batch=batch) for batch in (1, 8, 32)),
    Case(**T5, batch=8, options={"beams": 4}),
    Case("t5_v1_1_base", 8, "lora"),
    *(Case("gpt2", batch) for batch in (1, 8, 32)),
    Case("gpt2", 8, options={"beams": 4}),
    Case("gpt2", 2, options={"temperature": 0.8, "sequences": 8}),
    Case(**T5, batch=8, dtype="bfloat16"),
    Case("gpt2", 8, dtype="bfloat16"),
]


class Worker(peer.Worker):
    module = "benchmarks.decoding_sides"


def write_inputs(folder: Path, size: str) -> None:
    """A random backbone as a Hugging Face folder, inputs, and (for a T5) LoRA factors."""
    import jax

    import peft_jax as pj

    if size.startswith("t5"):
        jobs.write_inputs(folder, size)
    else:
        backbone = pj.init_backbone(pj.backbone_config(size), jax.random.key(0))
        pj.save_backbone(folder / "model", backbone)
    config = pj.backbone_config(size)
    shape = (max(case.batch for case in CASES), INPUT_LENGTH)
    rng = np.random.default_rng(0)
    tokens = rng.integers(jobs.VOCABULARY_START, config.vocab_size - 1, shape, dtype=np.int32)
    np.save(folder / "inputs.npy", tokens)


def check_tokens(case: Case, peers: list, ours: list) -> float:
    """The share of tokens that differ: none may, but where they are drawn, and in bfloat16, where
    a rounded near-tie changes all that follows.

    Raises:
      SystemExit: the two libraries did not write the same, so their times say nothing.
    """
    a, b = np.asarray(peers), np.asarray(ours)
    if a.shape != b.shape:
        raise SystemExit(f"{case.name}: the texts have shapes {a.shape} and {b.shape}")
    difference = float(np.mean(a != b))
    free = case.dtype != "float32" or "temperature" in case.options
    if difference and not free:
        raise SystemExit(f"{case.name}: {difference:.2%} of the tokens differ")
    return difference


def measure(case: Case, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Parity, memory and interleaved times of one case."""
    settings = {"batch": case.batch, "length": case.length, "options": case.options}
    with (
        Worker("peft", case, folder, options.cores, **settings) as theirs,
        Worker("peft_jax", case, folder, options.cores, **settings) as ours,
    ):
        workers = {"peer": theirs, "ours": ours}
        started = {side: worker.answer() for side, worker in workers.items()}
        difference = check_tokens(case, *(s["tokens"] for s in started.values()))
        memory = {side: worker.ask(do="memory") for side, worker in workers.items()}
        times: dict[str, list[float]] = {side: [] for side in workers}
        others = []
        for turn in range(options.rounds):
            for side in list(workers)[:: 1 if turn % 2 else -1]:
                time.sleep(peer.SETTLE_SECONDS)
                busy = peer.Busy()
                answer = workers[side].ask(do="time", seconds=options.seconds)
                times[side].append(statistics.median(answer["seconds"]))
                others.append(busy.others(answer["cpu"]))
    ratios = [p / o for p, o in zip(times["peer"], times["ours"], strict=True)]
    return {
        "case": dataclasses.asdict(case),
        "name": case.name,
        "difference": difference,
        "seconds": {side: statistics.median(t) for side, t in times.items()},
        "rounds": times,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "first_seconds": {side: s["first_s"] for side, s in started.items()},
        "memory": memory,
        "others": statistics.median(others),
        "load": os.getloadavg()[0],
        "versions": started["peer"]["versions"] | started["ours"]["versions"],
    }


def show(result: dict[str, Any]) -> str:
    """One line of the running report."""
    seconds, memory = result["seconds"], result["memory"]
    low, high = result["ratio_range"]
    return (
        f"{result['name']:52s} {1e3 * seconds['peer']:7.0f} {1e3 * seconds['ours']:7.0f} ms "
        f"{result['ratio']:5.2f}x [{low:.2f}-{high:.2f}] "
        f"{memory['peer']['extra'] / 2**20:5.0f} {memory['ours']['extra'] / 2**20:5.0f} MiB "
        f"first {result['first_seconds']['ours']:.1f} s, {result['difference']:.0e}, "
        f"others {result['others']:.0%}, load {result['load']:.1f}"
    )


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usable = sorted(os.sched_getaffinity(0))
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--cores", nargs="+", type=int, default=usable[-2:])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="least time of a turn")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = arguments(argv)
    results: dict[str, Any] = {"machine": peer.machine(options.cores), "cases": []}
    print(json.dumps(results["machine"]))
    chosen = [case for case in CASES if options.only in case.name]
    with tempfile.TemporaryDirectory() as temporary:
        for case in chosen:
            folder = Path(temporary) / case.size
            if not folder.exists():
                folder.mkdir()
                write_inputs(folder, case.size)
            results["cases"].append(measure(case, folder, options))
            print(show(results["cases"][-1]), flush=True)
            peer.write_results(options.json, results)
    return results


if __name__ == "__main__":
    main()
