"""One side in a process of its own: reads runs as JSON lines, answers with their results."""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
import time
from typing import Any

FIRST_LOSSES = 10


def result(side, run, splits) -> dict[str, Any]:
    """One run: trained, evaluated, and what both sides must agree on."""
    from benchmarks.minilm import data, plan
    from benchmarks.peer import Busy

    train, evaluation = splits(run.dataset, run.held_out)
    lengths = plan.DATASETS[run.dataset].lengths
    batches = data.training_batches(train, run.seed, run.steps, lengths)
    busy, used = Busy(), time.process_time()
    model, losses, seconds, trained = side.train_run(run, batches)
    others = busy.others(time.process_time() - used)
    predictions = [0] * len(evaluation)
    for places, batch in data.evaluation_batches(evaluation, lengths):
        for place, label in zip(places, side.predict(model, batch), strict=False):
            predictions[place] = int(label)
    right = sum(p == e.label for p, e in zip(predictions, evaluation, strict=True))
    return {
        "accuracy": right / len(evaluation),
        "trained": trained,
        "batches": data.digest(batches),
        "first_losses": losses[:FIRST_LOSSES],
        "last_loss": statistics.fmean(losses[-FIRST_LOSSES:]),
        "seconds_per_step": settled(batches, seconds),
        "seconds": sum(seconds),
        "others": others,
        "predictions": "".join(map(str, predictions)),
    }


def settled(batches, seconds: list[float]) -> float:
    """Mean seconds of a step, each one's taken as the median over the steps of its length.

    The first step of a length compiles, and other processes disturb some: neither moves a median.
    """
    lengths = [batch["tokens"].shape[1] for batch in batches]
    of_length = {
        n: statistics.median(s for m, s in zip(lengths, seconds, strict=True) if m == n)
        for n in set(lengths)
    }
    return statistics.fmean(of_length[n] for n in lengths)


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
    for line in sys.stdin:
        run = plan.Run(**json.loads(line))
        print(json.dumps(result(side, run, splits)), file=answers)


if __name__ == "__main__":
    main()
