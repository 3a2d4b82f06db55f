"""A real pretrained MiniLM on SST-2, AG News, RTE and CB, next to transformers + PEFT.

python -m benchmarks.minilm              # the study; finished runs are not repeated
python -m benchmarks.minilm --search     # learning rates on held-out training rows, the peer's
python -m benchmarks.minilm --methods lora --datasets sst2 --seeds 1 --results /tmp/try.jsonl
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.minilm import plan, study

HERE = Path(__file__).parent


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    datasets, methods = list(plan.DATASETS), list(plan.METHODS)
    parser.add_argument("--datasets", nargs="+", default=datasets, choices=datasets)
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--sides", nargs="+", default=list(plan.SIDES), choices=plan.SIDES)
    parser.add_argument("--seeds", type=int, default=plan.SEEDS)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--search", action="store_true", help="learning rates, on the peer's side")
    usable = sorted(os.sched_getaffinity(0))
    parser.add_argument("--cores", nargs="+", type=int, default=usable[-2:])
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    if options.search:
        path = options.results.with_name("search.jsonl")
        study.run_missing(
            plan.search(options.datasets, options.methods, "peer"), path, options.cores
        )
        return
    wanted = plan.runs(
        options.datasets, options.methods, range(options.seeds), options.sides, options.dropout
    )
    study.run_missing(wanted, options.results, options.cores)


if __name__ == "__main__":
    main()
