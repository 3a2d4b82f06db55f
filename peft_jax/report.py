"""Tables and pictures of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peft_jax import distributed

# Okabe & Ito's palette: told apart by colour-blind readers and in grey.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#777777"


def main_console(console: Any = None) -> Any:
    """The console of process 0 (by default the terminal); that of any other says nothing."""
    from rich.console import Console

    return (console or Console()) if distributed.is_main() else quiet_console()


def quiet_console():
    """A console that shows nothing, for callers that want the result only."""
    from rich.console import Console

    return Console(quiet=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def figure(columns: int, width: float = 4.6, height: float = 3.8):
    """A figure with axes side by side, in the house's style."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(
        1, columns, figsize=(width * columns, height), layout="constrained", squeeze=False
    )
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
    return made, axes[0]


def save_figure(made, path: Path) -> None:
    """Writes and closes it."""
    import matplotlib.pyplot as plt

    made.savefig(path, dpi=120)
    plt.close(made)


def draw_run(path: Path, metrics: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> None:
    """Loss and accuracy over steps, and accuracy under every template before and after."""
    made, (losses, accuracy, templates) = figure(3)
    train = [line for line in metrics if "loss" in line]
    steps = [line["step"] for line in train]
    parts = {
        "loss": ("total", "black"),
        "lm_loss": ("L_LM", BLUE),
        "unlikelihood_loss": ("L_UL", ORANGE),
        "length_normalized_loss": ("L_LN", GREEN),
    }
    for name, (label, color) in parts.items():
        # A head has one loss, and no parts; a written answer's is L_LM itself.
        whole = name != "loss" and all(line.get(name) == line["loss"] for line in train)
        if train and name in train[0] and not whole:
            losses.plot(steps, [line[name] for line in train], label=label, color=color, lw=1.2)
    losses.set(title="Training loss", xlabel="step", ylabel="nats")
    losses.legend(frameon=False)

    metric, split = result["evaluation"]["metric"], result["evaluation"]["split"]
    if train and metric in train[0]:
        batches = [100 * line[metric] for line in train]
        accuracy.plot(steps, batches, color=GREY, lw=1, label="training batches")
    points = [(m["step"], m["evaluation_score"]) for m in metrics if "evaluation_score" in m]
    accuracy.plot(*zip(*points, strict=True), "o-", color=BLUE, label=split)
    if result.get("zero_shot"):
        zero = result["zero_shot"]["score"]
        accuracy.axhline(zero, color=ORANGE, ls="--", label="zero-shot")
    accuracy.set(title=f"{metric}, %" if metric == "accuracy" else metric, xlabel="step")
    accuracy.set_ylim(0, 102 if metric == "accuracy" else None)
    accuracy.set_xlim(losses.get_xlim())
    accuracy.legend(frameon=False, loc="lower right")

    _draw_templates(templates, result)
    name = f"{result['task']}: {'+'.join(result['method'])} on {result['backbone']}"
    made.suptitle(f"{name}, {result['trainable_parameters']:,} trained parameters")
    save_figure(made, path)


def _draw_templates(axis, result: Mapping[str, Any]) -> None:
    after = result["evaluation"]["score_per_template"]
    before = (result.get("zero_shot") or {}).get("score_per_template", {})
    names = sorted(after, key=after.__getitem__)
    places = np.arange(len(names))
    for place, name in zip(places, names, strict=True):
        if name in before:
            axis.plot([before[name], after[name]], [place, place], color=GREY, lw=1, zorder=1)
    axis.scatter([after[n] for n in names], places, color=BLUE, label="trained", zorder=2)
    if before:
        axis.scatter([before[n] for n in names], places, color=ORANGE, label="zero-shot", zorder=2)
    axis.set_yticks(places, [n if len(n) < 28 else n[:26] + "…" for n in names], fontsize=8)
    axis.grid(axis="x", alpha=0.25)
    metric = result["evaluation"]["metric"]
    several = "tasks" in result["evaluation"]
    axis.set(title="score of each task" if several else f"{metric} under each template")
    axis.set_xlim(0, 102 if metric == "accuracy" else None)
    axis.legend(frameon=False, loc="best")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]):
    """A rich table; the first column is text, the others are aligned right."""
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        made.add_row(*row)
    return made


def write_markdown(
    path: Path, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """The same as :func:`table`, as a Markdown file."""
    lines = [f"# {title}", "", "| " + " | ".join(columns) + " |"]
    lines.append("|" + "|".join(["---"] + ["--:"] * (len(columns) - 1)) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_table(result: Mapping[str, Any]):
    """The final figures of a run."""

    def figures(part: Mapping[str, Any] | None) -> str:
        if not part:
            return "-"
        return f"{part['score']:.1f} ({part['score_iqr']:.1f})"

    evaluation = result["evaluation"]
    metric = evaluation["metric"]
    rows = [
        (f"{metric}, {evaluation['score_of']} (IQR)", figures(evaluation)),
        (f"zero-shot {metric} (IQR)", figures(result.get("zero_shot"))),
        ("95 % interval over examples", _interval(evaluation)),
        ("evaluated on", f"{evaluation['examples']:,} examples x {_templates(evaluation)}"),
        ("trained on", f"{result['training_examples']:,} examples, {result['steps']:,} steps"),
        (
            "trained parameters",
            f"{result['trainable_parameters']:,} ({result['trainable_share']:.3%})",
        ),
        ("adapter file", f"{result['adapter_bytes'] / 1000:,.1f} kB"),
        (
            "training",
            f"{result['training_seconds']:,.1f} s, {result['examples_per_second']:,.1f}/s",
        ),
    ]
    return table(f"{result['task']}, {'+'.join(result['method'])}", ("", "value"), rows)


def evaluation_table(summary: Mapping[str, Any]):
    """Every figure under every template, and the medians."""
    names = list(summary["figures"])
    rows = [
        (template, *(f"{figures[name]:.1f}" for name in names))
        for template, figures in summary["figures_per_template"].items()
    ]
    spreads = (summary["figures"][name] for name in names)
    medians = [f"{s['median']:.1f} ({s['iqr']:.1f})" for s in spreads]
    rows.append((f"{summary['score_of']} (IQR)", *medians))
    if summary["interval_95"]:
        rows.append(("95 % interval over examples", _interval(summary), *[""] * (len(names) - 1)))
    title = f"{summary['task']} {summary['split']}, {summary['examples']:,} examples"
    return table(title, ("template", *names), rows)


def _interval(summary: Mapping[str, Any]) -> str:
    interval = summary["interval_95"]
    return "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _templates(evaluation: Mapping[str, Any]) -> str:
    number = len(evaluation["score_per_template"])
    what = "task" if "tasks" in evaluation else "template"
    return f"{number} {what}{'s' if number != 1 else ''}"
