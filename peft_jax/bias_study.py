"""The study of feature biases: what a backbone takes from demonstrations that do not say.

Si et al. 2023, "Measuring Inductive Biases of In-Context Learning with Underspecified
Demonstrations": sixteen demonstrations agree with two features h1 and h2, the tests tell them
apart, and the h1-accuracy is the share of answers that follow h1. Plain, and with contextual
calibration (Zhao et al. 2021), which the paper's figures have.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from rich.console import Console

from peft_jax import distributed, report
from peft_jax.backbones import Backbone
from peft_jax.config import Experiment, check, to_json
from peft_jax.errors import InputError
from peft_jax.evaluation import evaluate
from peft_jax.examples import ChoiceExamples, vocabulary_identity
from peft_jax.experiment import open_scorer
from peft_jax.icl import CONTENT_FREE
from peft_jax.metrics.calibration import contextual_calibration
from peft_jax.placement import open_backbone, open_mesh
from peft_jax.study import check_ranks_choices, open_folder, record_runs
from peft_jax.tokenizer import Tokenizer, kind_of, load_tokenizer, row_ids

if TYPE_CHECKING:
    from peft_jax.tasks.underspecified import Bias, Prompts

_SAME_SHAPE = 256  # tokens that prompts' lengths are rounded up to, so that few programs compile


class BiasRun(NamedTuple):
    """One run, on the demonstrations of a seed.

    Attributes:
      task: the pair of features.
      system: the intervention.
      seed: of the demonstrations.
      accuracy: share of the answers that follow h1; the others follow h2.
      calibrated: the same with contextual calibration.
      tests: how many there were.
      demonstrations: how many every prompt had room for.
    """

    task: str
    system: str
    seed: int
    accuracy: float
    calibrated: float
    tests: int
    demonstrations: int


def underspecified_study(
    config: Experiment,
    output: Path,
    *,
    tasks: Sequence[str] = (),
    features: tuple[str, str] | None = None,
    interventions: Sequence[str] = ("none",),
    seeds: Sequence[int] = (0, 10, 20),
    demonstrations: int = 16,
    max_prompt_length: int = 4096,
    console: Console | None = None,
) -> list[BiasRun]:
    """Runs what is not yet in ``output/results.jsonl``; writes table.md and study.png.

    Args:
      config: the backbone, how it is evaluated (``data.evaluation_examples`` tests at most, by
        default the paper's 1,200), and ``data.directory``, where the files lie.
      tasks: names of the paper's pairs, by default all whose files are there; with ``features``,
        names of datasets.
      features: two features of one's own, h1 and h2, as ``text_features.find_feature`` reads them.
      interventions: of ``underspecified.INTERVENTIONS``.
      seeds: which demonstrations (the paper's code: 0 and 10).
      demonstrations: in all.
      max_prompt_length: in tokens; where they do not fit, demonstrations are left out, from the
        front. A backbone with learned positions may have fewer.

    Raises:
      InputError: no files, an unknown name, a feature that does not fit the rows, or the folder
        holds a study with other fields.
    """
    console = report.main_console(console)
    check(config)
    sources = _sources(config.data.directory, tasks, features, console)
    fields = json.loads(to_json(config))
    del fields["task"], fields["seed"]
    fields |= {
        "features": list(features or ()),
        "demonstrations": demonstrations,
        "max_prompt_length": max_prompt_length,
    }
    done = [BiasRun(**line) for line in open_folder(output, fields)]
    finished = {run[:3] for run in done}
    wanted = [(t, i, seed) for t in sources for i in interventions for seed in seeds]
    missing = [run for run in wanted if run not in finished]
    if missing:
        mesh = open_mesh(config, training=False)
        backbone = open_backbone(config, mesh)
        check_ranks_choices(config, backbone)
        bench = _Bench(config, backbone, mesh, max_prompt_length)
        tests = config.data.evaluation_examples or 1200
        made = _run_missing(bench, sources, missing, demonstrations, tests - tests % 2)
        done += record_runs(output, made, len(missing), console)
    runs = [run for run in done if run[:3] in set(wanted)]
    if distributed.is_main():
        _report(output, runs, list(sources), interventions, seeds, demonstrations, console)
    distributed.wait()
    return runs


# --------------------------------------------------------------------------------------------
# The runs
# --------------------------------------------------------------------------------------------
def _sources(
    directory: Path | None, tasks: Sequence[str], features, console: Console
) -> dict[str, Callable[[], Bias]]:
    """What reads each task's demonstrations and tests."""
    from peft_jax.tasks import underspecified
    from peft_jax.tasks.feature_pairs import PAIRS, find_pair

    if directory is None:
        raise InputError(
            "this study reads files: give --data.directory with those of the paper "
            "(github.com/NoviScl/AmbigPrompt, testsets_ambiguous/) or of a dataset"
        )
    if features is not None:
        if not tasks:
            raise InputError("two features of one's own need the datasets they are of: --tasks")
        return {task: functools.partial(_own, task, features, directory) for task in tasks}
    names = [find_pair(task).name for task in tasks]
    if not names:
        names = [name for name in PAIRS if underspecified.has_files(name, directory)]
        absent = [name for name in PAIRS if name not in names]
        if not names:
            underspecified.read_bias(next(iter(PAIRS)), directory)  # says what is looked for
        if absent:
            console.print(f"no files of {len(absent)} of {len(PAIRS)} pairs: {', '.join(absent)}")
    return {name: functools.partial(underspecified.read_bias, name, directory) for name in names}


def _own(task: str, features: tuple[str, str], directory: Path) -> Bias:
    """Two features of a dataset's rows, its texts joined to make the input."""
    from peft_jax.tasks.feature_pairs import FeaturePair, Hypothesis
    from peft_jax.tasks.prompted import find_rows
    from peft_jax.tasks.underspecified import bias_of

    found = find_rows(task, directory=directory)
    train, test = (found.read(split) for split in ("train", "validation"))
    texts = tuple(name for name in found.dataset.fields if isinstance(train[0].get(name), str))
    return bias_of(FeaturePair(task, texts, *map(Hypothesis, features)), train, test)


def _run_missing(bench: _Bench, sources, missing, demonstrations, tests) -> Iterator[BiasRun]:
    for task in dict.fromkeys(run[0] for run in missing):
        bias = sources[task]()
        for _, intervention, seed in (run for run in missing if run[0] == task):
            prompts = bias.prompts(seed, intervention, demonstrations=demonstrations, tests=tests)
            scores, free, shown = bench.scores(task, prompts)
            h1 = np.array([test.h1 for test in prompts.tests])
            plain, calibrated = (
                float((made.argmax(axis=1) == h1).mean())
                for made in (scores, contextual_calibration(scores, free))
            )
            yield BiasRun(task, intervention, seed, plain, calibrated, len(h1), shown)


class _Bench:
    """The frozen backbone and its tokenizer, compiled once for prompts of one rounded length."""

    def __init__(
        self,
        config: Experiment,
        backbone: Backbone,
        mesh: jax.sharding.Mesh,
        max_prompt_length: int,
    ):
        if backbone.vocabulary is None:
            raise InputError(f"backbone {backbone.name!r} has no vocabulary: nothing can be asked")
        self.config = config
        self.backbone = backbone
        self.mesh = mesh
        self.scorer = open_scorer(config, backbone, None, mesh)
        self.tokenizer = load_tokenizer(backbone.vocabulary)
        shape = backbone.config
        learned = shape.max_positions if shape.positions == "learned" else max_prompt_length
        self.room = min(max_prompt_length, learned)

    def scores(self, task: str, prompts: Prompts) -> tuple[np.ndarray, np.ndarray, int]:
        """[R, 2] and [K, 2] log-probabilities of the two answers to the tests and to inputs that
        say nothing; and how many demonstrations every prompt had."""
        made, shown = self._examples(task, prompts)
        scored = evaluate(
            self.scorer,
            {},
            self.backbone.params,
            made,
            batch_size=self.config.evaluation.batch_size,
            mesh=self.mesh,
        )
        return scored.scores[: len(prompts.tests)], scored.scores[len(prompts.tests) :], shown

    def _examples(self, task: str, prompts: Prompts) -> tuple[ChoiceExamples, int]:
        shape, answers = self.backbone.config, prompts.style.answers
        fit = _Fit(self.tokenizer, prompts, self.room - max(map(self._length, answers)))
        texts = [test.text for test in prompts.tests]
        skips = [fit.skip(text) for text in texts]
        usual = int(np.median(skips))
        asked = list(zip(texts, skips, strict=True)) + [(text, usual) for text in CONTENT_FREE]
        rows = [
            row_ids(self.tokenizer, kind_of(shape), prompts.text(text, skip), answers)
            for text, skip in asked
        ]
        made = ChoiceExamples(
            task=task,
            split="validation",
            template_names=("prompt",),
            encoder_input_tokens=_padded([ids for ids, _ in rows], shape.pad_id, _SAME_SHAPE),
            choices=_padded([ids for _, both in rows for ids in both], shape.pad_id, 1).reshape(
                len(rows), 2, -1
            ),
            choice_mask=np.ones((len(rows), 2), bool),
            label=np.array([t.h1 for t in prompts.tests] + [0] * len(CONTENT_FREE), np.int32),
            example=np.arange(len(rows), dtype=np.int32),
            template=np.zeros(len(rows), np.int32),
            vocabulary=vocabulary_identity(self.backbone.vocabulary or ""),
            pad_id=shape.pad_id,
        )
        made.check_fits(shape.vocab_size)
        return made, len(prompts.demonstrations) - max(skips)

    def _length(self, text: str) -> int:
        return len(self.tokenizer.encode(text)) + 1


class _Fit:
    """How many demonstrations must be left out for a prompt to have room."""

    def __init__(self, tokenizer: Tokenizer, prompts: Prompts, room: int):
        self.tokenizer, self.prompts, self.room = tokenizer, prompts, room
        lengths = [len(tokenizer.encode(part)) for part in prompts.demonstrations]
        self._behind = [sum(lengths[skip:]) for skip in range(len(lengths) + 1)]

    def skip(self, text: str) -> int:
        """The fewest that do. Raises InputError for a text that is too long alone."""
        alone = self.prompts.text(text, len(self.prompts.demonstrations))
        length = len(self.tokenizer.encode(alone)) + 2  # BOS or EOS, and a joint
        for skip, behind in enumerate(self._behind):
            if behind + length <= self.room:
                return skip
        raise InputError(
            f"an input of {length} tokens does not fit a prompt of {self.room}: {text[:60]!r}"
        )


def _padded(rows: Sequence[Sequence[int]], pad_id: int, multiple: int) -> np.ndarray:
    width = -(-max(map(len, rows)) // multiple) * multiple
    made = np.full((len(rows), width), pad_id, np.int32)
    for row, ids in zip(made, rows, strict=True):
        row[: len(ids)] = ids
    return made


# --------------------------------------------------------------------------------------------
# The table and the picture
# --------------------------------------------------------------------------------------------
def _report(output, runs, tasks, interventions, seeds, demonstrations, console) -> None:
    several = len(interventions) > 1
    rows = []
    for task in tasks:
        for system in interventions:
            here = [run for run in runs if (run.task, run.system) == (task, system)]
            row = [task, *([system] if several else [])]
            for field in ("accuracy", "calibrated"):
                row += _cells([getattr(run, field) for run in here])
            rows.append([*row, f"{here[0].tests:,}"])
    columns = ["features", *(["intervention"] if several else []), "h1", "h2"]
    columns += ["h1, cal.", "h2, cal.", "tests"]
    named = "" if several or interventions[0] == "none" else f", {interventions[0]}"
    title = (
        f"Answers that follow h1 and h2 (%), {demonstrations} underspecified demonstrations{named};"
        f" mean (standard deviation) over {len(seeds)} draws"
    )
    console.print(report.table(title, columns, rows))
    report.write_markdown(output / "table.md", title, columns, rows)
    draw_biases(output / "study.png", runs, tasks, interventions)
    console.print(f"written to {output}: table.md, study.png, results.jsonl")


def _cells(accuracies: Sequence[float]) -> tuple[str, str]:
    """The h1-accuracy and the h2-accuracy, which deviates as much."""
    mean, deviation = 100 * np.mean(accuracies), 100 * np.std(accuracies)
    return f"{mean:.1f} ({deviation:.1f})", f"{100 - mean:.1f}"


def draw_biases(
    path: Path, runs: Sequence[BiasRun], tasks: Sequence[str], interventions: Sequence[str]
) -> None:
    """A dot per run and a bar at the mean: left of the middle answers follow h2, right of it h1."""
    colors = (report.BLUE, report.ORANGE, report.GREEN, report.PINK, report.GREY)
    height = 1.6 + 0.22 * len(tasks) * (1 + len(interventions))
    figure, axes = report.figure(2, width=5.2, height=height)
    for axis, field, title in zip(
        axes, ("accuracy", "calibrated"), ("as scored", "with contextual calibration"), strict=True
    ):
        for i, system in enumerate(interventions):
            color, marker = colors[i % len(colors)], "os^Dv"[i // len(colors) % 5]
            for t, task in enumerate(tasks):
                here = [run for run in runs if (run.task, run.system) == (task, system)]
                values = [100 * getattr(run, field) for run in here]
                y = t + (i - (len(interventions) - 1) / 2) * 0.8 / len(interventions)
                axis.plot(values, [y] * len(values), marker, color=color, ms=5, alpha=0.6)
                half = 0.3 / len(interventions)
                axis.vlines(np.mean(values), y - half, y + half, color=color, lw=3)
            axis.plot([], [], marker, color=color, label=system)
        axis.axvline(50, color=report.GREY, ls="--", lw=1)
        axis.set(title=title, xlim=(-2, 102), ylim=(len(tasks) - 0.5, -0.5))
        axis.set_xlabel("answers that follow h2  \N{LEFT RIGHT ARROW}  h1 (%)")
        axis.set_yticks(range(len(tasks)), tasks if axis is axes[0] else [""] * len(tasks))
        axis.grid(axis="x", alpha=0.25)
    if len(interventions) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, ncols=5, loc="outside lower center")
    report.save_figure(figure, path)


__all__ = ["BiasRun", "draw_biases", "underspecified_study"]
