"""Many tasks, one table: an adapter, or the frozen backbone, on every task whose data is there.

::

    OUTPUT/config.json     every field as it was used
    OUTPUT/results.jsonl   a task's figures a line, as soon as they are there
    OUTPUT/table.md        the same, as a table
    OUTPUT/tasks.png       the reported figure of every task
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from peft_jax import distributed, report, sharding
from peft_jax.adapter import load_adapter, read_header
from peft_jax.backbones import Backbone
from peft_jax.config import Experiment, check, to_json
from peft_jax.errors import InputError
from peft_jax.experiment import (
    TaskMeasure,
    check_method,
    method_names,
    open_task_measure,
)
from peft_jax.methods import Method
from peft_jax.mixed_examples import Examples, digest
from peft_jax.placement import open_backbone, open_mesh
from peft_jax.progress import step_bar
from peft_jax.run_data import notes_of, open_task_examples, with_metrics
from peft_jax.study import open_folder
from peft_jax.text_examples import TextExamples
from peft_jax.tree import Params

EVERY = "all"
_PLACES = 16


class Outcome(NamedTuple):
    """A task's figures, or why there are none.

    Attributes:
      task, group: the task, and under which it is listed.
      metric: the reported figure's name.
      score, iqr: its median over templates and their interquartile range, in the metric's units.
      figures: all figures' medians.
      examples, templates: how many.
      seconds: reading, tokenising and answering.
      notes: what was skipped, or cut.
      problem: why there are no figures; else empty.
    """

    task: str
    group: str
    metric: str = ""
    score: float = 0.0
    iqr: float = 0.0
    figures: dict[str, float] = {}  # noqa: RUF012 (never changed)
    examples: int = 0
    templates: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    problem: str = ""


def evaluate_tasks(
    config: Experiment,
    names: Sequence[str],
    *,
    adapter: Path | None = None,
    output: Path | None = None,
    console: Console | None = None,
) -> list[Outcome]:
    """Evaluates tasks one after the other; prints the table, and one line for each that is absent.

    Args:
      config: the backbone, the data's folder, and how many examples (``data.evaluation_examples``).
      names: of tasks, or "all" for every one whose files lie in ``data.directory``, and the
        embedded tasks where there is no directory.
      adapter: a run's folder or an adapter file; None: the frozen backbone alone.
      output: a folder for the files above; tasks that it has are not evaluated again.

    Raises:
      InputError: a name that is no task's, or fields that cannot be meant. What is wrong with one
        task's data is its row's ``problem``.
    """
    console = report.main_console(console)
    check(config)
    wanted, absent = find_tasks(names, config.data.directory)
    mesh = open_mesh(config, training=False)
    backbone = open_backbone(config, mesh)
    done = _open(output, config, adapter)
    bench = _Bench(config, backbone, mesh, adapter)
    found = {outcome.task: outcome for outcome in done}
    missing = [name for name in wanted if name not in found]
    with step_bar(console, "tasks", len(wanted)) as advance:
        advance(len(wanted) - len(missing))
        for name in missing:
            outcome = bench.outcome(name, wanted[name])
            found[name] = outcome
            _append(output, outcome)
            advance(1)
            if not console.is_terminal:
                console.print(_line(outcome), markup=False, soft_wrap=True)
    outcomes = [found[name] for name in wanted]
    if distributed.is_main():
        _finish(outcomes, absent, output, console, _title(backbone, bench.method))
    distributed.wait()
    return outcomes


def find_tasks(
    names: Sequence[str], directory: Path | None
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Names -> groups of the tasks that can be evaluated, and what the others want.

    Args:
      names: of tasks and mixtures, or "all".
      directory: the data's folder; None: TFDS, and the embedded tasks for "all".

    Returns the tasks in the catalogue's order, and, for "all", a mapping of the file or download
    that is wanted to the tasks that want it.

    Raises:
      InputError: there is no task of a name.
    """
    from peft_jax.tasks.embedded import TASKS
    from peft_jax.tasks.prompted import EMBEDDED_PREFIX

    if not names:
        raise InputError(f"no tasks are named; give names, or {EVERY!r}")
    embedded = {EMBEDDED_PREFIX + key: "embedded" for key in TASKS}
    if EVERY not in names:
        return _named_tasks(names, directory, embedded), {}
    if directory is None:
        return embedded, {}
    return _present_tasks(directory)


def _named_tasks(
    names: Sequence[str], directory: Path | None, embedded: dict[str, str]
) -> dict[str, str]:
    """Names, those of mixtures replaced by their tasks', -> groups."""
    from peft_jax.tasks import catalogue
    from peft_jax.tasks.prompted import find_rows

    combined = catalogue.mixtures()
    found = {}
    for name in (n for one in names for n in (combined[one].tasks if one in combined else [one])):
        definition = catalogue.find_definition(name, directory) or catalogue.offered().get(name)
        if definition is None and name not in embedded:
            find_rows(name, directory=directory)  # one's own, or it says that there is none
        found[name] = definition.group if definition else embedded.get(name, "own")
    return found


def _present_tasks(directory: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The tasks whose files are in a folder -> groups, and what is wanted -> the others."""
    from peft_jax.tasks import catalogue
    from peft_jax.tasks.sources import find_folder, splits_of, wanted_file

    present: dict[str, str] = {}
    absent: dict[str, list[str]] = {}
    for definition in catalogue.known_in(directory):
        dataset = definition.dataset
        try:
            folder = find_folder(dataset, directory)
        except InputError:
            folder = None
        # Files in the directory itself are of the dataset that it is called after, not of all.
        own = folder != Path(directory) or folder.name in (dataset.folder, dataset.name)
        if folder and own and definition.evaluation_split in splits_of(dataset, folder):
            present[definition.name] = definition.group
            continue
        absent.setdefault(dataset.download or wanted_file(dataset), []).append(definition.name)
    if not present:
        raise InputError(
            f"--data.directory {directory} has files of no task; `peft-jax tasks --directory "
            f"{directory}` says what is wanted"
        )
    return present, absent


class _Bench:
    """What tasks share: the weights on their devices, and compiled scorers."""

    def __init__(
        self,
        config: Experiment,
        backbone: Backbone,
        mesh: jax.sharding.Mesh,
        adapter: Path | None,
    ):
        self.config, self.backbone, self.mesh = config, backbone, mesh
        self.method: Method | None = None
        self.answer = config.answer
        stored: Params = {}
        if adapter is not None:
            stored, self.method = load_adapter(adapter, backbone)
            # Its own way to answer is of the task that it was trained on; texts are for the rest.
            trained = read_header(adapter)["details"].get("answer", "auto")
            if config.answer == "auto" and trained not in ("choices", "text"):
                self.answer = trained
        self.stored = sharding.place(mesh, stored, backbone.config)
        self._rank: TaskMeasure | None = None

    def outcome(self, name: str, group: str) -> Outcome:
        """A task's figures, or what is wrong with its data."""
        started = time.perf_counter()
        try:
            with distributed.agreed(ends=False):
                examples = self._open(name)
            distributed.check_same(f"rows of {name}", digest(examples))
            evaluation = self._measure(examples)(self.stored, self.backbone.params, examples)
            figures = {key: s.median for key, s in evaluation.figures.items()}
            metric, score = evaluation.reported
        except InputError as error:
            return Outcome(name, group, problem=str(error))
        return Outcome(
            task=name,
            group=group,
            metric=metric,
            score=score.median,
            iqr=score.iqr,
            figures=figures,
            examples=examples.num_examples,
            templates=len(evaluation.figures_per_template),
            seconds=time.perf_counter() - started,
            notes=(*notes_of(examples), *evaluation.notes),
        )

    def _open(self, name: str) -> Examples:
        examples = open_task_examples(
            name,
            self.config.data,
            self.backbone,
            self.config.seed,
            training=False,
            answer=self.answer,
            methods=() if self.method is None else method_names(self.method),
        )
        if self.method is not None:
            check_method(self.method, self.backbone, examples)
        examples = with_metrics(examples, self.config.evaluation.metrics)  # type: ignore[assignment]
        # Tasks of like lengths share compiled programs.
        return examples.trimmed(_PLACES)

    def _measure(self, examples: Examples) -> TaskMeasure:
        def opened() -> TaskMeasure:
            return open_task_measure(self.config, self.backbone, self.method, examples, self.mesh)

        if isinstance(examples, TextExamples):
            return opened()
        self._rank = self._rank or opened()
        return self._rank


# --------------------------------------------------------------------------------------------
# The folder, the table and the picture
# --------------------------------------------------------------------------------------------
def _open(output: Path | None, config: Experiment, adapter: Path | None) -> list[Outcome]:
    if output is None:
        return []
    fields = json.loads(to_json(config)) | {"adapter": None if adapter is None else str(adapter)}
    return [Outcome(**line) for line in open_folder(output, fields)]


def _append(output: Path | None, outcome: Outcome) -> None:
    if output is not None and distributed.is_main():
        with open(output / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(outcome._asdict(), ensure_ascii=False) + "\n")


def _finish(
    outcomes: Sequence[Outcome],
    absent: dict[str, list[str]],
    output: Path | None,
    console: Console,
    title: str,
) -> None:
    columns = ("task", "examples", "templates", "metric", "score (IQR)", "seconds", "others")
    rows = [_cells(outcome) for outcome in outcomes if not outcome.problem]
    if rows:
        # What else the metrics say is for the wide page.
        console.print(report.table(title, columns[:-1], [row[:-1] for row in rows]))
    for outcome in outcomes:
        for note in outcome.notes:
            console.print(note, markup=False, soft_wrap=True, style="dim")
        if outcome.problem:
            console.print(_line(outcome), markup=False, soft_wrap=True, style="yellow")
    for line, tasks in absent.items():
        console.print(f"absent: {', '.join(tasks)}: wanted is {line}", markup=False, soft_wrap=True)
    if output is not None and rows:
        report.write_markdown(output / "table.md", title, columns, rows)
        draw_tasks(output / "tasks.png", title, outcomes)
        console.print(f"written to {output}: results.jsonl, table.md, tasks.png")


def _title(backbone: Backbone, method: Method | None) -> str:
    what = "zero-shot" if method is None else "+".join(method_names(method))
    return f"{backbone.name}, {what}"


def _cells(outcome: Outcome) -> tuple[str, ...]:
    others = (f"{name} {value:.1f}" for name, value in list(outcome.figures.items())[1:])
    return (
        outcome.task,
        f"{outcome.examples:,}",
        str(outcome.templates),
        outcome.metric,
        f"{outcome.score:.1f} ({outcome.iqr:.1f})",
        f"{outcome.seconds:.1f}",
        ", ".join(others),
    )


def _line(outcome: Outcome) -> str:
    if outcome.problem:
        return f"{outcome.task}: {outcome.problem}"
    return f"{outcome.task}  {outcome.metric} {outcome.score:.1f}  {outcome.seconds:.1f} s"


def draw_tasks(path: Path, title: str, outcomes: Sequence[Outcome]) -> None:
    """The reported figure of every task, group by group, with the spread over its templates."""
    shown = [outcome for outcome in outcomes if not outcome.problem]
    groups = list(dict.fromkeys(outcome.group for outcome in shown))
    shown = [outcome for group in groups for outcome in shown if outcome.group == group]
    made, (axis,) = report.figure(1, width=8, height=1.2 + 0.19 * len(shown))
    colors = [report.BLUE, report.ORANGE, report.GREEN, report.PINK, report.GREY]
    for place, outcome in enumerate(shown):
        color = colors[groups.index(outcome.group) % len(colors)]
        axis.errorbar(outcome.score, place, xerr=outcome.iqr / 2, fmt="o", ms=4, color=color)
        text = f"{outcome.score:.1f} {outcome.metric}"
        axis.annotate(
            text, (102, place), fontsize=7, va="center", color=report.GREY, annotation_clip=False
        )
    axis.set_yticks(range(len(shown)), [outcome.task for outcome in shown], fontsize=7)
    axis.set(xlim=(-2, 101), ylim=(len(shown) - 0.4, -0.6), title=title)
    axis.set_xlabel("median over templates, with their interquartile range")
    axis.grid(axis="x", alpha=0.25)
    report.save_figure(made, path)
