"""The study of methods: T-Few's baselines on the same tasks, accuracy against parameters.

The comparison of Liu et al. 2022, figure 2 and table 6: every method with its own steps and
learning rate (the presets ``tfew*``), on the same draws, with the same losses.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from peft_jax import distributed, report
from peft_jax.backbones import Backbone, abstract_backbone, backbone_config
from peft_jax.config import Experiment, check, load_preset, make_method, to_json
from peft_jax.errors import InputError
from peft_jax.evaluation import spread
from peft_jax.method_config import CLASSES
from peft_jax.methods import Method, count, eject, prefix_tuning
from peft_jax.placement import open_backbone, open_mesh
from peft_jax.study import (
    Bench,
    check_ranks_choices,
    held_out_tasks,
    open_folder,
    record_runs,
)
from peft_jax.tree import Params

ZERO_SHOT = "zero-shot"
BASELINES = {
    "tfew": "(IA)³",
    "tfew_lora_scaling": "LoRA scaling",
    "tfew_lora": "LoRA",
    "tfew_adapter": "Adapter",
    "tfew_compacter": "Compacter",
    "tfew_compacter_plus_plus": "Compacter++",
    "tfew_prefix": "Prefix tuning",
    "tfew_prompt_10": "Prompt tuning (10)",
    "tfew_prompt_100": "Prompt tuning (100)",
    "tfew_bitfit": "BitFit",
    "tfew_layer_norm": "LayerNorm",
    "tfew_fish_02": "FISH mask (0.2%)",
    "tfew_fish_002": "FISH mask (0.02%)",
    "tfew_said_500k": "SAID (500K)",
    "tfew_said_20k": "SAID (20K)",
    "tfew_full": "Full fine-tuning",
}
"""Preset -> what the paper calls it."""


def baselines_markdown() -> str:
    """The table of T-Few's baselines in docs/methods.md: what each preset sets, and its count."""
    backbone = abstract_backbone(backbone_config("t0_3b"))
    lines = [
        "| preset | method | steps | learning rate | trained on T0-3B |",
        "|---|---|--:|--:|--:|",
    ]
    for name, called in BASELINES.items():
        preset = load_preset(name)
        method = make_method(preset)
        if preset.method == ("prefix_tuning",):
            # Its texts would have to be read with T0's vocabulary; the shapes are the same.
            fields = dataclasses.asdict(preset.prefix_tuning)
            method = prefix_tuning(**fields | {"init": "normal", "text": "", "target_text": ""})
        stored = jax.eval_shape(method.init, jax.random.key(0), backbone)
        kept = count(jax.eval_shape(functools.partial(_kept, method), stored))
        training, rate = preset.training, preset.optimizer.learning_rate
        parts = " + ".join(f"`{part}`" for part in preset.method)
        lines.append(f"| `{name}`: {called} | {parts} | {training.steps:,} | {rate:g} | {kept:,} |")
    return "\n".join(lines) + "\n"


class MethodRun(NamedTuple):
    """One run; the accuracy is the median over templates.

    ``parameters`` counts what is kept after training: the MLP of a prefix is dropped.
    """

    task: str
    system: str
    seed: int
    accuracy: float
    per_template: dict[str, float]
    parameters: int
    steps: int


def compare_methods(
    config: Experiment,
    output: Path,
    *,
    presets: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (42, 1024, 0, 1, 32),
    steps_share: float = 1.0,
    console: Console | None = None,
) -> list[MethodRun]:
    """Runs what is not yet in ``output/results.jsonl``; writes table.md and study.png.

    Args:
      config: data, backbone, losses, batch size and evaluation of all runs. Method, optimiser and
        steps are those of the presets.
      presets: what is compared; by default T-Few's baselines.
      tasks: by default the embedded held-out ones.
      seeds: of the draw, and of everything else that is random.
      steps_share: part of each preset's steps that is run, for a short comparison.

    Raises:
      InputError: the folder holds a study with other fields, or a share is out of range.
    """
    console = report.main_console(console)
    if not 0 < steps_share <= 1:
        raise InputError(f"steps_share {steps_share} must be above 0 and at most 1")
    tasks, presets = tuple(tasks) or held_out_tasks(), tuple(presets) or tuple(BASELINES)
    configs = {name: with_preset(config, load_preset(name), steps_share) for name in presets}
    for each in configs.values():
        check(each)
    fields = json.loads(to_json(config))
    for own in ("task", "seed", "method", "optimizer", *config.method):
        fields.pop(own, None)
    done = [MethodRun(**x) for x in open_folder(output, fields | {"steps_share": steps_share})]
    finished = {run[:3] for run in done}
    wanted = [
        (task, system, seed)
        for task in tasks
        for system in (ZERO_SHOT, *presets)
        for seed in (seeds[:1] if system == ZERO_SHOT else seeds)
    ]
    missing = [run for run in wanted if run not in finished]
    if missing:
        mesh = open_mesh(config)
        backbone = open_backbone(config, mesh)
        check_ranks_choices(config, backbone)
        made = _run_missing(config, configs, backbone, mesh, missing, seeds)
        done += record_runs(output, made, len(missing), console)
    runs = [run for run in done if run[:3] in set(wanted)]
    if distributed.is_main():
        _report(output, runs, presets, tasks, seeds, steps_share, console)
    distributed.wait()
    return runs


def with_preset(config: Experiment, preset: Experiment, steps_share: float = 1.0) -> Experiment:
    """The experiment with a preset's method, its arguments, its optimiser and its steps."""
    steps = max(1, round(preset.training.steps * steps_share))
    return dataclasses.replace(
        config,
        method=preset.method,
        optimizer=preset.optimizer,
        training=dataclasses.replace(config.training, steps=steps),
        **{name: getattr(preset, name) for name in CLASSES},
    )


def _run_missing(
    config: Experiment,
    configs: Mapping[str, Experiment],
    backbone: Backbone,
    mesh: jax.sharding.Mesh,
    missing: Sequence[tuple[str, str, int]],
    seeds: Sequence[int],
) -> Iterator[MethodRun]:
    for task in dict.fromkeys(run[0] for run in missing):
        here = [run for run in missing if run[0] == task]
        bench = Bench(dataclasses.replace(config, task=task), backbone, mesh, seeds)
        for _, system, seed in here:
            if system == ZERO_SHOT:
                per_template, parameters, steps = bench.frozen(bench.test), 0, 0
            else:
                given = dataclasses.replace(configs[system], task=task)
                per_template, training = bench.trained(system, given, seed)
                kept = _kept(training.method, training.state.stored)
                parameters, steps = count(kept), given.training.steps
            accuracy = spread(list(per_template.values())).median
            yield MethodRun(task, system, seed, accuracy, per_template, parameters, steps)


def _kept(method: Method, stored: Params) -> Params:
    """What is left once networks that only training needs are dropped."""
    try:
        return eject(method, stored)[1]
    except InputError:  # there is none
        return stored


# --------------------------------------------------------------------------------------------
# The table and the picture
# --------------------------------------------------------------------------------------------
def _report(output, runs, presets, tasks, seeds, steps_share, console) -> None:
    by_place: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        by_place.setdefault((run.system, run.task), []).append(run.accuracy)
    sizes = {run.system: (run.parameters, run.steps) for run in runs}
    rows = []
    for system in (ZERO_SHOT, *presets):
        cells = [by_place[system, task] for task in tasks]
        mean = np.mean([np.median(cell) for cell in cells])
        parameters, steps = sizes[system]
        rows.append(
            [
                BASELINES.get(system, system),
                f"{parameters:,}",
                f"{steps:,}",
                f"{100 * mean:.1f}",
                *(str(spread(x)) if len(x) > 1 else f"{100 * x[0]:.1f}" for x in cells),
            ]
        )
    names = [task.removeprefix("embedded_") for task in tasks]
    columns = ["method", "parameters", "steps", "mean", *names]
    title = f"Accuracy, median over templates; median (IQR) over {len(seeds)} seeds"
    if steps_share != 1:
        title += f"; {steps_share:g} of T-Few's steps"
    console.print(report.table(title, columns, rows))
    report.write_markdown(output / "table.md", title, columns, rows)
    draw_methods(output / "study.png", runs, presets, title)
    console.print(f"written to {output}: table.md, study.png, results.jsonl")


def draw_methods(path: Path, runs: Sequence[MethodRun], presets: Sequence[str], title: str) -> None:
    """Mean accuracy over tasks against parameters: a dot per seed, a ring at their median."""
    means: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        means.setdefault((run.system, run.seed), []).append(100 * run.accuracy)
    sizes = {run.system: run.parameters for run in runs}
    figure, (axis,) = report.figure(1, width=9.0, height=5.2)
    points = {}
    for system in presets:
        values = [float(np.mean(v)) for (name, _), v in means.items() if name == system]
        color = report.ORANGE if system == "tfew" else report.BLUE
        x, y = sizes[system], float(np.median(values))
        axis.scatter([x] * len(values), values, s=14, color=color, alpha=0.5)
        axis.scatter([x], [y], s=70, facecolors="none", edgecolors=color, lw=1.8)
        points[BASELINES.get(system, system)] = (np.log10(x), y)
    zero = [100 * run.accuracy for run in runs if run.system == ZERO_SHOT]
    axis.axhline(np.mean(zero), color=report.GREY, ls="--", lw=1.2, label=ZERO_SHOT)
    axis.set(xscale="log", xlabel="parameters kept after training", ylabel="mean accuracy (%)")
    axis.set_title(title, fontsize=10)
    axis.margins(x=0.12, y=0.08)
    low, high = axis.get_ylim()
    labels = _label_heights(points, (low, high))
    axis.set_ylim(top=max(high, max(shown for *_, shown in labels.values()) + (high - low) / 26))
    for name, (place, height, shown) in labels.items():
        moved = {"arrowstyle": "-", "color": report.GREY, "lw": 0.5, "shrinkB": 6}
        axis.annotate(
            name,
            (10**place, height),
            (10 ** (place + 0.06), shown),
            fontsize=8,
            va="center",
            arrowprops=moved if shown != height else None,
        )
    # Room for the label of the largest, which is about a decade wide.
    axis.set_xlim(right=10 ** (max(place for place, _ in points.values()) + 1))
    axis.legend(frameon=False, loc="lower right")
    report.save_figure(figure, path)


def _label_heights(
    points: Mapping[str, tuple[float, float]], limits: tuple[float, float]
) -> dict[str, tuple[float, float, float]]:
    """(x, y, height of the label) by name: labels that would overlap are moved up."""
    apart = (limits[1] - limits[0]) / 26
    placed: dict[str, tuple[float, float, float]] = {}
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1][1]):
        shown = y
        for other_x, _, height in sorted(placed.values(), key=lambda p: p[2]):
            # A label is about 0.8 decades wide.
            if abs(other_x - x) < 0.8 and abs(height - shown) < apart:
                shown = height + apart
        placed[name] = (x, y, shown)
    return placed
