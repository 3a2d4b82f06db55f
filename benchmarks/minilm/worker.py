"""One side in a process of its own: reads commands as JSON lines, answers with JSON lines."""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
import time
from typing import Any

FIRST_LOSSES = 10
TIMED_STEPS = 3


def train(side, run, splits) -> dict[str, Any]:
    """One run: trained, evaluated, and what both sides must agree on."""
    from benchmarks.minilm import data, plan

    examples, evaluation = splits(run.dataset, run.held_out)
    lengths = plan.DATASETS[run.dataset].lengths
    batches = data.training_batches(examples, run.seed, run.steps, lengths)
    model, losses, seconds, trained = side.train_run(run, batches)
    predictions = [0] * len(evaluation)
    for places, batch in data.evaluation_batches(evaluation, lengths):
        for place, label in zip(places, side.predict(model, batch), strict=False):
            predictions[place] = int(label)
    labels = [e.label for e in evaluation]
    most_common = statistics.mode(e.label for e in examples)
    return {
        "accuracy": sum(p == l for p, l in zip(predictions, labels, strict=True)) / len(labels),
        "majority": labels.count(most_common) / len(labels),
        "trained": trained,
        "batches": data.digest(batches),
        "first_losses": losses[:FIRST_LOSSES],
        "last_loss": statistics.fmean(losses[-FIRST_LOSSES:]),
        "seconds": sum(seconds),
        "predictions": "".join(map(str, predictions)),
    }


def time_steps(side, run, splits) -> dict[str, Any]:
    """Seconds of the run's mean step, from a few steps of each length of its batches.

    The first step of a length compiles, or finds cold caches; it is not counted.
    """
    from benchmarks.minilm import data, plan
    from benchmarks.peer import Busy

    examples, _ = splits(run.dataset, run.held_out)
    lengths = plan.DATASETS[run.dataset].lengths
    batches = data.training_batches(examples, run.seed, run.steps, lengths)
    by_length: dict[int, list] = {}
    for batch in batches:
        by_length.setdefault(batch["tokens"].shape[1], []).append(batch)
    busy, used = Busy(), time.process_time()
    total = 0.0
    for same in by_length.values():
        chosen = [same[i % len(same)] for i in range(TIMED_STEPS + 1)]
        _, _, seconds, _ = side.train_run(run, chosen)
        total += statistics.median(seconds[1:]) * len(same)
    others = busy.others(time.process_time() - used)
    return {"seconds_per_step": total / len(batches), "others": others}


def main() -> None:
    settings = json.loads(sys.argv[1])
    os.sched_setaffinity(0, settings["cores"])
    # The answers' pipe is kept for answers: whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from benchmarks.minilm import data, plan

    if settings["side"] == "ours":
        from benchmarks.minilm import jax_side as side
    else:
        from benchmarks.minilm import torch_side as side
    versions = side.prepare(len(settings["cores"]))

    @functools.cache
    def splits(dataset: str, held_out: bool):
        run = plan.Run(settings["side"], dataset, "", 0, 0.0, 0, held_out=held_out)
        return data.splits(run, side.encode)

    print(json.dumps(versions), file=answers)
    tasks = {"train": train, "time": time_steps}
    for line in sys.stdin:
        command = json.loads(line)
        answer = tasks[command["do"]](side, plan.Run(**command["run"]), splits)
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
