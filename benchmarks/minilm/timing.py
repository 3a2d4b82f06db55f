"""Seconds of a training step on both sides, in alternating rounds.

What is timed is the forward pass, the backward pass, clipping and AdamW, on the study's own batches
with the study's own lengths.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.minilm import plan
from benchmarks.minilm.study import Side
from benchmarks.peer import machine

ROUNDS = 3


def measure(dataset: str, method: str, sides: dict[str, Side], rounds: int) -> dict[str, Any]:
    """One method on one dataset: medians over the rounds, and the ratio's range."""
    runs = {run.side: run for run in plan.runs([dataset], [method], range(1), list(sides))}
    seconds: dict[str, list[float]] = {side: [] for side in runs}
    others = []
    for _ in range(rounds):
        for side, run in runs.items():
            answer = sides[side].ask("time", run)
            seconds[side].append(answer["seconds_per_step"])
            others.append(answer["others"])
    result = {
        "dataset": dataset,
        "method": method,
        "run": dataclasses.asdict(runs["ours"]),
        "seconds": {side: statistics.median(s) for side, s in seconds.items()},
        "others": statistics.median(others),
    }
    if "peer" in seconds:
        ratios = [p / o for p, o in zip(seconds["peer"], seconds["ours"], strict=True)]
        result["ratio"] = statistics.median(ratios)
        result["ratio_range"] = [min(ratios), max(ratios)]
    return result


def run_all(
    datasets: list[str], methods: list[str], path: Path, cores: list[int], rounds: int = ROUNDS
) -> dict[str, Any]:
    """Every method on every dataset; written after each, so that an interruption loses one."""
    sides = {name: Side(name, cores) for name in plan.SIDES}
    results: dict[str, Any] = {"machine": machine(cores), "cases": []}
    try:
        for dataset in datasets:
            for method in methods:
                result = measure(dataset, method, sides, rounds)
                results["cases"].append(result)
                path.write_text(json.dumps(results, indent=1) + "\n")
                print(show(result), flush=True)
    finally:
        for side in sides.values():
            side.close()
    return results


def show(result: dict[str, Any]) -> str:
    """One line of the running report."""
    times = "  ".join(f"{side} {1e3 * s:5.0f} ms" for side, s in result["seconds"].items())
    ratio = f"{result['ratio']:.2f}x" if "ratio" in result else ""
    return f"{result['dataset']:14s} {result['method']:7s} {times}  {ratio} {result['others']:4.0%}"
