"""Studies: many runs, one table, one picture.

``few_shot`` compares, on every task and for several draws of the training examples: the frozen
backbone (zero-shot), in-context learning, T-Few without L_UL and L_LN, and T-Few (the comparison
of Liu et al. 2022, tables 1 and 2).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from peft_jax import distributed, icl, report, sharding
from peft_jax.answers import find_answer
from peft_jax.backbones import Backbone
from peft_jax.config import Experiment, check, to_json
from peft_jax.errors import InputError
from peft_jax.evaluation import Scorer, evaluate, spread
from peft_jax.examples import ChoiceExamples
from peft_jax.experiment import (
    Training,
    open_scorer,
    set_up,
    train_steps,
)
from peft_jax.placement import open_backbone, open_mesh
from peft_jax.progress import step_bar
from peft_jax.run_data import open_choices

ZERO_SHOT, ICL, LM_ONLY, TFEW = "zero-shot", "in-context", "T-Few, L_LM only", "T-Few"
SYSTEMS = (ZERO_SHOT, ICL, LM_ONLY, TFEW)


class Outcome(NamedTuple):
    """One run: the accuracy is the median over templates."""

    task: str
    system: str
    seed: int
    accuracy: float
    per_template: dict[str, float]


def held_out_tasks() -> tuple[str, ...]:
    """The embedded tasks that the embedded backbone was not trained on."""
    from peft_jax.tasks.embedded import TASKS

    return tuple(f"embedded_{name}" for name, task in TASKS.items() if task.held_out)


def few_shot(
    config: Experiment,
    output: Path,
    *,
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (42, 1024, 0, 1, 32),
    demonstrations: int = 8,
    console: Console | None = None,
) -> list[Outcome]:
    """Runs what is not yet in ``output/results.jsonl``; writes table.md and study.png.

    Args:
      config: of the T-Few runs; its task and seed are replaced.
      tasks: by default the embedded held-out ones.
      seeds: of the draw, and of everything else that is random.
      demonstrations: for in-context learning.

    Raises:
      InputError: the folder holds a study with other fields.
    """
    console = report.main_console(console)
    tasks = tuple(tasks) or held_out_tasks()
    check(config)
    fields = json.loads(to_json(config))
    del fields["task"], fields["seed"]
    fields["demonstrations"] = demonstrations
    done = [Outcome(**line) for line in open_folder(output, fields)]
    finished = {(o.task, o.system, o.seed) for o in done}
    wanted = [(t, s, seed) for t in tasks for s in SYSTEMS for seed in _seeds_of(s, seeds)]
    missing = [run for run in wanted if run not in finished]
    if missing:
        mesh = open_mesh(config)
        backbone = open_backbone(config, mesh)
        check_ranks_choices(config, backbone)
        made = _run_missing(config, backbone, mesh, missing, seeds, demonstrations)
        done += record_runs(output, made, len(missing), console)
    outcomes = [o for o in done if (o.task, o.system, o.seed) in set(wanted)]
    if distributed.is_main():
        _report(output, outcomes, tasks, seeds, demonstrations, console)
    distributed.wait()
    return outcomes


def record_runs(output: Path, runs: Iterable[Any], count: int, console: Console) -> list[Any]:
    """Appends each run to ``results.jsonl`` as soon as it is made, under a progress bar.

    Of several processes the first writes; all of them make the runs, and return them.

    Args:
      runs: named tuples with ``task``, ``system``, ``seed`` and ``accuracy``, of any study.
      count: how many there will be.
    """
    done = []
    results = output / "results.jsonl" if distributed.is_main() else os.devnull
    with (
        step_bar(console, "runs", count) as advance,
        open(results, "a", encoding="utf-8") as file,
    ):
        for run in runs:
            file.write(json.dumps(run._asdict()) + "\n")
            file.flush()
            done.append(run)
            advance(1)
            if not console.is_terminal:
                console.print(
                    f"{run.task}  {run.system}  seed {run.seed}  {100 * run.accuracy:.1f}"
                )
    return done


def _seeds_of(system: str, seeds: Sequence[int]) -> Sequence[int]:
    """The frozen backbone alone has nothing that a seed could change."""
    return seeds[:1] if system == ZERO_SHOT else seeds


def check_ranks_choices(config: Experiment, backbone: Backbone) -> None:
    """Raises InputError unless the backbone answers by ranking choices."""
    if find_answer(config.answer, backbone) != "choices":
        raise InputError(
            f"this study compares systems that rank answer choices; {backbone.name!r} answers "
            "otherwise: take an encoder-decoder or a decoder-only backbone"
        )


def open_folder(output: Path, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The finished runs of a study's folder, which process 0 makes where it is not there.

    Args:
      fields: what all runs have in common, and another study in the folder would not.

    Raises:
      InputError: the folder holds another study, or something else.
    """
    distributed.check_same("flags", fields)
    with distributed.agreed():
        found = _open_folder(output, fields) if distributed.is_main() else []
    return distributed.share(found)


def _open_folder(output: Path, fields: dict[str, Any]) -> list[dict[str, Any]]:
    held, results = output / "config.json", output / "results.jsonl"
    if held.is_file():
        if json.loads(held.read_text()) != fields:
            raise InputError(f"{output} holds a study with other fields; give another --output")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output {output} exists and holds no study")
    output.mkdir(parents=True, exist_ok=True)
    held.write_text(json.dumps(fields, indent=2) + "\n")
    lines = results.read_text().splitlines() if results.is_file() else []
    # A line without its end is that of a run that was stopped while it was written.
    return [json.loads(line) for line in lines if line.endswith("}")]


# --------------------------------------------------------------------------------------------
# The runs
# --------------------------------------------------------------------------------------------
def _run_missing(
    config: Experiment, backbone: Backbone, mesh, missing, seeds, demonstrations
) -> Iterator[Outcome]:
    for task in dict.fromkeys(run[0] for run in missing):
        here = [run for run in missing if run[0] == task]
        bench = Bench(dataclasses.replace(config, task=task), backbone, mesh, seeds)
        for _, system, seed in here:
            per_template = _accuracy(bench, system, seed, demonstrations)
            accuracy = spread(list(per_template.values())).median
            yield Outcome(task, system, seed, accuracy, per_template)


def _accuracy(bench: Bench, system: str, seed: int, demonstrations: int) -> dict[str, float]:
    """Accuracy per template."""
    if system == ZERO_SHOT:
        return bench.frozen(bench.test)
    if system == ICL:
        longest = max(bench.test.encoder_input_tokens.shape[1], bench.test.choices.shape[2])
        queries = icl.with_demonstrations(
            bench.test,
            bench.draws[seed],
            count=demonstrations,
            seed=seed,
            max_input_length=min(demonstrations * (longest + 1) + longest, 1024),
            eos_id=bench.backbone.config.eos_id,
        )
        return bench.frozen(queries)
    config = bench.config
    if system == LM_ONLY:
        loss = dataclasses.replace(config.loss, unlikelihood=0.0, length_normalized=0.0)
        config = dataclasses.replace(config, loss=loss)
    # Both train the same method, and so share what scores it.
    return bench.trained(system, config, seed, scorer="T-Few")[0]


class Bench:
    """One task: its draws padded to one shape, so that every system is compiled once."""

    def __init__(
        self,
        config: Experiment,
        backbone: Backbone,
        mesh: jax.sharding.Mesh,
        seeds: Sequence[int],
    ):
        self.config = config
        self.backbone = backbone
        self.mesh = mesh
        self.test = open_choices(
            config.task, config.data, backbone, config.seed, training=False, answer=config.answer
        )
        draws = [
            open_choices(config.task, config.data, backbone, s, training=True, answer=config.answer)
            for s in seeds
        ]
        self.draws = dict(zip(seeds, _same_shape(draws), strict=True))
        self._training: dict[str, Training] = {}
        self._scorers: dict[str, Scorer] = {}

    def frozen(self, examples: ChoiceExamples) -> dict[str, float]:
        """The backbone's own accuracy per template."""
        return self._evaluate("", None, {}, examples)

    def trained(
        self, system: str, config: Experiment, seed: int, scorer: str = ""
    ) -> tuple[dict[str, float], Training]:
        """Accuracy per template of what an experiment trains on a seed's draw, and the run.

        Args:
          system: a name; experiments of one name differ in their seeds only.
          scorer: a name for the method, where several systems train the same; else the system's.
        """
        config = dataclasses.replace(config, seed=seed)
        draw = self.draws[seed]
        if system in self._training:
            self._training[system].restart(seed, draw)
        else:
            self._training[system] = set_up(config, self.backbone, draw, self.mesh)
        training = self._training[system]
        for _ in train_steps(training, config.training.steps):
            pass
        stored = training.state.stored
        return self._evaluate(scorer or system, training.method, stored, self.test), training

    def _evaluate(self, name: str, method, adapter, examples: ChoiceExamples) -> dict[str, float]:
        if name not in self._scorers:
            self._scorers[name] = open_scorer(self.config, self.backbone, method, self.mesh)
        scored = evaluate(
            self._scorers[name],
            sharding.place(self.mesh, adapter, self.backbone.config),
            self.backbone.params,
            examples,
            batch_size=self.config.evaluation.batch_size,
            mesh=self.mesh,
        )
        return scored.accuracy_per_template


def _same_shape(draws: Sequence[ChoiceExamples]) -> list[ChoiceExamples]:
    """The draws padded to the longest input, the longest choice and the most choices of any."""
    inputs = max(d.encoder_input_tokens.shape[1] for d in draws)
    count = max(d.choices.shape[1] for d in draws)
    length = max(d.choices.shape[2] for d in draws)

    def pad(array: np.ndarray, *shape: int) -> np.ndarray:
        short = [want - have for want, have in zip(shape, array.shape[1:], strict=False)]
        rest = array.ndim - 1 - len(short)
        return np.pad(array, [(0, 0), *((0, n) for n in short), *[(0, 0)] * rest])

    return [
        dataclasses.replace(
            d,
            encoder_input_tokens=pad(d.encoder_input_tokens, inputs),
            choices=pad(d.choices, count, length),
            choice_mask=pad(d.choice_mask, count),
        )
        for d in draws
    ]


# --------------------------------------------------------------------------------------------
# The table and the picture
# --------------------------------------------------------------------------------------------
def _report(output, outcomes, tasks, seeds, demonstrations, console) -> None:
    runs: dict[tuple[str, str], list[float]] = {
        (task, system): [] for task in tasks for system in SYSTEMS
    }
    for outcome in outcomes:
        runs[outcome.task, outcome.system].append(outcome.accuracy)
    rows = [[t.removeprefix("embedded_"), *(_cell(runs[t, s]) for s in SYSTEMS)] for t in tasks]
    means = (np.mean([np.median(runs[t, s]) for t in tasks]) for s in SYSTEMS)
    rows.append(["mean", *(f"{100 * mean:.1f}" for mean in means)])
    names = {ICL: f"in-context, {demonstrations} examples"}
    columns = ["task", *(names.get(system, system) for system in SYSTEMS)]
    title = f"Accuracy, median over templates; median (IQR) over {len(seeds)} seeds"
    console.print(report.table(title, columns, rows))
    report.write_markdown(output / "table.md", title, columns, rows)
    draw_study(output / "study.png", outcomes, tasks, title)
    console.print(f"written to {output}: table.md, study.png, results.jsonl")


def _cell(accuracies: Sequence[float]) -> str:
    """Median and range over seeds; of the frozen backbone, which no seed changes, its accuracy."""
    return str(spread(accuracies)) if len(accuracies) > 1 else f"{100 * accuracies[0]:.1f}"


def draw_study(path: Path, outcomes: Sequence[Outcome], tasks: Sequence[str], title: str) -> None:
    """A dot per run and a bar at the median, by task and system."""
    colors: dict[str, Any] = dict(
        zip(SYSTEMS, (report.GREY, report.ORANGE, report.GREEN, report.BLUE), strict=True)
    )
    figure, (axis,) = report.figure(1, width=2.6 + 1.8 * len(tasks), height=4.2)
    for s, system in enumerate(SYSTEMS):
        for t, task in enumerate(tasks):
            values = [100 * o.accuracy for o in outcomes if (o.task, o.system) == (task, system)]
            x = t + (s - 1.5) * 0.2
            axis.scatter([x] * len(values), values, s=18, color=colors[system], alpha=0.6)
            axis.hlines(np.median(values), x - 0.08, x + 0.08, color=colors[system], lw=3)
        axis.plot([], [], color=colors[system], lw=3, label=system)
    axis.set_xticks(range(len(tasks)), [t.removeprefix("embedded_") for t in tasks])
    axis.set(ylabel="accuracy (%)", title=title, ylim=(None, 101))
    axis.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    report.save_figure(figure, path)
