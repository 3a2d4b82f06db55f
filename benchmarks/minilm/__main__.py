"""A real pretrained MiniLM on SST-2, AG News, RTE and CB, next to transformers + PEFT.

python -m benchmarks.minilm              # the study; finished runs are not repeated
python -m benchmarks.minilm --search     # learning rates on held-out training rows, the peer's
python -m benchmarks.minilm --methods lora --datasets sst2 --seeds 1 --results try.jsonl
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks import report as pages
from benchmarks.minilm import plan, report, study, timing

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"


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
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--search", action="store_true", help="learning rates, on the peer's side")
    what.add_argument("--time", action="store_true", help="seconds of a step, in place of training")
    usable = sorted(os.sched_getaffinity(0))
    parser.add_argument("--cores", nargs="+", type=int, default=usable[-2:])
    parser.add_argument("--folder", type=Path, default=HERE, help="of the files of results")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    if options.search:
        wanted = plan.search(options.methods, "peer")
        lines = study.run_missing(wanted, options.folder / "search.jsonl", options.cores)
        for method, rates in plan.search_scores(lines).items():
            print(method, ", ".join(f"{rate:g}: {score:.1%}" for rate, score in rates.items()))
        return
    if options.time:
        timing.run_all(
            options.datasets, options.methods, options.folder / "timing.json", options.cores
        )
    else:
        wanted = plan.runs(
            options.datasets, options.methods, range(options.seeds), options.sides, options.dropout
        )
        study.run_missing(wanted, options.folder / "results.jsonl", options.cores)
    if options.folder == HERE:
        pages.write_page(DOCS)
        report.picture(report.Study(study.read(HERE / "results.jsonl")), DOCS / "minilm.png")
    else:
        print(report.section(options.folder))


if __name__ == "__main__":
    main()
