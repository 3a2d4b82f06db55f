"""One run, from an :class:`~peft_jax.config.Experiment` to its folder.

::

    OUTPUT/config.json          every field as it was used
    OUTPUT/metrics.jsonl        a line per log; the same figures for TensorBoard in tensorboard/
    OUTPUT/checkpoints/         trainables, optimiser, step, random state, data position (orbax)
    OUTPUT/adapter.safetensors  the stored tree and what is needed to use it
    OUTPUT/predictions.jsonl    every choice's score for every evaluated row
    OUTPUT/result.json          the final figures
    OUTPUT/run.png              loss, accuracy, accuracy under each template
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from rich.console import Console

from peft_jax import compilation, distributed, report, sharding, tree
from peft_jax._version import __version__
from peft_jax.adapter import FILE as ADAPTER_FILE
from peft_jax.adapter import save_adapter
from peft_jax.answers import Answer, find_answer
from peft_jax.backbones import Backbone
from peft_jax.checkpoint import Checkpoints, first_process_says
from peft_jax.config import Experiment, check, first_difference, make_method, to_json
from peft_jax.decoding import Decoding
from peft_jax.errors import InputError
from peft_jax.evaluation import (
    Evaluation,
    Scorer,
    TextEvaluation,
    evaluate,
    write_texts,
)
from peft_jax.examples import ChoiceExamples, FewShotSampler
from peft_jax.files import replace_file
from peft_jax.fisher import fisher_information
from peft_jax.methods import (
    Method,
    count,
    from_spec,
    with_information,
)
from peft_jax.methods.fish_mask import information_targets, others, wants_information
from peft_jax.methods.prompt_places import marker_rows
from peft_jax.mixed_examples import (
    Examples,
    MixedEvaluation,
    MixedExamples,
    Sampler,
    are_written,
    digest,
    make_sampler,
    parts_of,
)
from peft_jax.objectives import Objective
from peft_jax.optimizers import make_optimizer
from peft_jax.placement import notes_of_mesh, open_backbone, open_mesh, placed
from peft_jax.profiling import Profile, StepTimes, Tracer, longest_operations, split_line
from peft_jax.programs import BatchShape, method_with_head, objective_for, scorer_for
from peft_jax.progress import TrainingProgress, step_bar
from peft_jax.run_data import Rows, notes_of, open_examples, with_metrics
from peft_jax.text_examples import TextExamples
from peft_jax.train import Step, TrainState, init_state, make_train_step

Measured = Evaluation | TextEvaluation | MixedEvaluation
Measure = Callable[..., Measured]
TaskMeasure = Callable[..., Evaluation | TextEvaluation]
"""``measure(adapter, frozen, examples, advance=None)``, from :func:`open_measure`."""


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved its state."""

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.exit_code = 128 + number


# --------------------------------------------------------------------------------------------
# Parts of a run, which studies use too
# --------------------------------------------------------------------------------------------
def open_scorer(
    config: Experiment, backbone: Backbone, method: Method | None, mesh: jax.sharding.Mesh
) -> Scorer:
    """The compiled scorer that an experiment describes; see ``evaluation.make_scorer``."""
    return scorer_for(config, backbone, method, answer_of(config, backbone, method), mesh)


def answer_of(
    config: Experiment,
    backbone: Backbone,
    method: Method | None = None,
    examples: Rows | None = None,
) -> Answer:
    """How an experiment's model answers.

    Args:
      method: one that was loaded; None: those that the experiment trains.
      examples: what it answers; None: rows with choices or classes.
    """
    names = config.method if method is None else method_names(method)
    written = examples is not None and are_written(examples)
    return find_answer(config.answer, backbone, names, ranks=not written)


def open_measure(
    config: Experiment,
    backbone: Backbone,
    method: Method | None,
    examples: Rows,
    mesh: jax.sharding.Mesh,
) -> Measure:
    """What evaluates a task's examples, or those of several tasks one after the other.

    See :func:`open_task_measure`.
    """
    if not isinstance(examples, MixedExamples):
        return open_task_measure(config, backbone, method, examples, mesh)
    measures = [open_task_measure(config, backbone, method, e, mesh) for e in examples.parts]

    def each(adapter, frozen, examples, advance=None):
        parts = zip(measures, examples.parts, strict=True)
        measured = [measure(adapter, frozen, part, advance) for measure, part in parts]
        return MixedEvaluation(examples.task, measured)

    return each


def open_task_measure(
    config: Experiment,
    backbone: Backbone,
    method: Method | None,
    examples: Examples,
    mesh: jax.sharding.Mesh,
) -> TaskMeasure:
    """What evaluates examples of a kind, as an experiment says.

    Args:
        method: the method that is evaluated; None: the frozen backbone alone.
        examples: choices are ranked, texts written.

    Returns ``measure(adapter, frozen, examples, advance=None)``.
    """
    size = config.evaluation.batch_size
    if isinstance(examples, TextExamples):
        decoding = decoding_of(config, examples)

        def write(adapter, frozen, examples, advance=None):
            return write_texts(
                backbone,
                method,
                adapter,
                frozen,
                examples,
                decoding=decoding,
                batch_size=size,
                mesh=mesh,
                advance=advance,
            )

        return write
    scorer = open_scorer(config, backbone, method, mesh)

    def rank(adapter, frozen, examples, advance=None):
        return evaluate(
            scorer, adapter, frozen, examples, batch_size=size, mesh=mesh, advance=advance
        )

    return rank


def decoding_of(config: Experiment, examples: TextExamples) -> Decoding:
    """How texts are written: as the experiment says, else as the task's paper, else greedily."""
    details, plain = examples.details, dataclasses.asdict(Decoding())
    own = {"max_length": details.get("max_target_length", plain["max_length"])}
    own |= details.get("decoding", {})
    given = dataclasses.asdict(config.decoding)
    return Decoding(**own | {name: v for name, v in given.items() if v != plain[name]})


def method_names(method: Method) -> tuple[str, ...]:
    """The names of a method, or of those that it is composed of."""
    return tuple(part["name"] for part in method.spec.get("methods", [method.spec]))


def check_method(method: Method, backbone: Backbone, *several: Rows) -> None:
    """Raises InputError unless a method has a row for each marker, and a class for each answer."""
    stored = jax.eval_shape(method.init, jax.random.key(0), backbone)
    bound = jax.eval_shape(method.bind, stored)
    for examples in (part for rows in several for part in parts_of(rows)):
        examples.check_fits(backbone.config.vocab_size, marker_rows(bound))
        if isinstance(examples, TextExamples):
            continue
        answers = examples.choices.shape[1]
        if "verbalizer" in bound and bound["verbalizer"]["kernel"].shape[1] != answers:
            raise InputError(
                f"warp trains {bound['verbalizer']['kernel'].shape[1]} class vectors and "
                f"{examples.task} has {answers} answers; give --warp.labels {answers}"
            )


def open_method(config: Experiment, backbone: Backbone, examples: Rows) -> Method:
    """The method that is trained: with a head for the examples' classes, where that answers."""
    if are_written(examples) or answer_of(config, backbone) != "head":
        return make_method(config)
    if not isinstance(examples, ChoiceExamples):
        raise InputError(
            f"answer 'head': {examples.task} has several tasks, and a head one's classes"
        )
    return method_with_head(config, backbone, examples.choices.shape[1])


# --------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Training:
    """What a training loop works on; made by :func:`set_up`."""

    config: Experiment
    backbone: Backbone
    method: Method
    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: jax.sharding.Mesh
    step: Step
    sampler: Sampler = dataclasses.field(init=False)
    examples: Rows = dataclasses.field(init=False)
    state: TrainState = dataclasses.field(init=False)
    times: StepTimes = dataclasses.field(default_factory=StepTimes)
    tracer: Tracer = dataclasses.field(default_factory=Tracer)

    @property
    def frozen(self) -> tree.Params:
        """The backbone's weights, where they lie."""
        return self.backbone.params

    def restart(self, seed: int, examples: Rows) -> None:
        """Back to the state before the first step, with another seed or other examples."""
        self.examples = examples
        data, size = self.config.data, self.config.training.batch_size
        self.sampler = make_sampler(
            examples,
            size,
            seed,
            templates=data.templates_drawn,
            packed=data.pack,
            rows=sharding.local_rows(self.mesh, size),
        )
        self.method = _informed(self, seed, examples)
        self.state = _first_state(self, seed)

    def expect(self, method: Method) -> None:
        """A state of this method's shapes, in which a checkpoint is to be restored."""
        self.method = method
        self.state = _first_state(self, self.config.seed)


def _informed(run: Training, seed: int, examples: Rows) -> Method:
    """The method with what it chooses by looking at the examples: the entries of a FISH mask.

    As in T-Few, every example counts once, under one template drawn at random.
    """
    if not wants_information(run.method):
        return run.method
    if isinstance(examples, MixedExamples):
        raise InputError(f"a FISH mask is measured on one task, and {examples.task} has several")
    one_each = FewShotSampler(examples, 1, seed)
    batches = (one_each.batch(i) for i in range(examples.num_examples))
    rest = others(run.method)
    with step_bar(report.main_console(), "information", examples.num_examples) as advance:
        information = fisher_information(
            run.backbone,
            run.objective,
            ({name: x for name, x in batch.items() if name != "row"} for batch in batches),
            targets=information_targets(run.method),
            beside=rest and rest.bind(rest.init(jax.random.key(seed), run.backbone)),
            advance=advance,
        )
    return with_information(run.method, sharding.fetch(run.mesh, information))


def _first_state(run: Training, seed: int) -> TrainState:
    """The state before the first step, made where it will lie."""
    init_key, run_key = jax.random.split(jax.random.key(seed))

    def start(init_key, run_key, backbone):
        return init_state(run.method.init(init_key, backbone), run.optimizer, run_key)

    inputs = (init_key, run_key, run.backbone)
    shapes = jax.eval_shape(start, *inputs)
    lies = sharding.state_shardings(shapes, run.backbone.config, run.mesh)
    return jax.jit(start, out_shardings=lies)(*inputs)


def set_up(
    config: Experiment, backbone: Backbone, examples: Rows, mesh: jax.sharding.Mesh | None = None
) -> Training:
    """Everything that a loop needs, with the state before the first step.

    Args:
      mesh: from ``placement.open_mesh``, on which the backbone lies already; None: it is put there.
    """
    training = config.training
    if mesh is None:
        mesh = open_mesh(config)
        backbone = placed(backbone, mesh)
    method = open_method(config, backbone, examples)
    optimizer = make_optimizer(config.optimizer.over(training.steps), method)
    check_method(method, backbone, examples)
    objective = objective_for(config, backbone, answer_of(config, backbone, examples=examples))
    step = make_train_step(
        backbone,
        method,
        optimizer,
        objective,
        mesh=mesh,
        parallel=training.parallel,
        accumulate=training.accumulate,
    )
    made = Training(config, backbone, method, objective, optimizer, mesh, step)
    made.restart(config.seed, examples)
    return made


def train_steps(run: Training, until: int) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """Makes updates up to step ``until``; yields (updates made, metrics still on the device)."""
    several = jax.default_backend() == "cpu" and run.mesh.size > 1
    for made in range(int(run.state.step) + 1, until + 1):
        with run.tracer.step(made):
            with run.times("data"):
                batch = next(run.sampler)
                for name in ("row", "task_ids"):
                    batch.pop(name, None)
                placed = sharding.put_batch(run.mesh, batch)
            with run.times("compute"):
                run.state, metrics = run.step(run.state, run.frozen, placed)
                if several:
                    # Forced host devices share threads: queued collectives would wait for each
                    # other.
                    jax.block_until_ready(run.state)
        yield made, metrics


# --------------------------------------------------------------------------------------------
# The run and its folder
# --------------------------------------------------------------------------------------------
def run(
    config: Experiment,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    profile: Profile | None = None,
) -> dict[str, Any]:
    """Trains, evaluates, and leaves the folder described above; returns what result.json holds.

    Args:
      output: the run's folder. One that holds a run is refused unless told what to do with it.
      resume: go on from the folder's newest checkpoint; the fields must be the same.
      overwrite: delete the folder's run first.
      profile: steps that are traced, for TensorBoard.

    Raises:
      InputError: bad input, before anything is trained or overwritten; or a loss that is not a
        number, with the last good checkpoint kept.
      Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    console = report.main_console(console)
    compiled = compilation.CompileTimes()
    with distributed.agreed():
        check(config)
        if distributed.is_main():
            _check_folder(config, output, resume, overwrite)
    distributed.check_same("flags", json.loads(to_json(config)))
    mesh = open_mesh(config)
    with distributed.agreed():
        backbone = open_backbone(config, mesh)
        train_examples, test_examples = (
            open_examples(
                config.task,
                config.data,
                backbone,
                config.seed,
                training=training,
                answer=config.answer,
                methods=config.method,
            )
            for training in (True, False)
        )
        _check_labels(train_examples)
        test_examples = with_metrics(test_examples, config.evaluation.metrics)
    distributed.check_same("training examples", digest(train_examples))
    distributed.check_same("evaluation examples", digest(test_examples))
    told = [note for rows in (train_examples, test_examples) for note in notes_of(rows)]
    for note in dict.fromkeys(notes_of_mesh(backbone, mesh) + told):
        console.print(note, markup=False, soft_wrap=True)
    training = set_up(config, backbone, train_examples, mesh)
    check_method(training.method, backbone, test_examples)
    if distributed.is_main() and (needs := _needs(training)):
        console.print(needs, markup=False, soft_wrap=True)
    with distributed.agreed():
        _open_folder(config, output, overwrite)
    training.tracer = Tracer(profile)
    made = _Run(output, training, test_examples, console)
    made.compiled = compiled
    return made.go(resume)


# Of a backbone of fewer bytes nobody asks whether it fits.
_SMALL = 2**28


def _needs(training: Training) -> str:
    """One line on the memory of a device, before anything is compiled; empty for a small model."""
    from peft_jax import costs

    if tree.size_in_bytes(training.backbone.params) < _SMALL:
        return ""
    config, axes = training.config, sharding.Axes(**training.mesh.shape)
    parts = parts_of(training.examples)
    ranked = [part for part in parts if isinstance(part, ChoiceExamples)]
    shape = BatchShape(
        batch=config.training.batch_size,
        input_length=max(part.input_length for part in parts),
        choices=max((part.choices.shape[1] for part in ranked), default=0),
        choice_length=max((part.choices.shape[2] for part in ranked), default=0),
        target_length=max(
            (part.lengths[1] for part in parts if isinstance(part, TextExamples)), default=0
        ),
    )
    try:
        return costs.summary(config, training.backbone, shape, axes)
    except InputError:  # a method that no program can be made of without its examples
        return ""


def _check_labels(examples: Rows) -> None:
    if not isinstance(examples, ChoiceExamples):
        return
    labels = np.unique(examples.label)
    if len(labels) < 2 and examples.choice_mask.sum(1).max() > 1:
        raise InputError(
            f"{examples.task}: the {examples.num_examples} training examples all have the label "
            f"{labels[0]}; draw others (data.few_shot_seed) or more (data.shots)"
        )


def _check_folder(config: Experiment, output: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other")
    held = output / "config.json"
    if output.exists() and not output.is_dir():
        raise InputError(f"output {output} is a file; give a folder")
    if resume:
        if not held.is_file():
            raise InputError(f"nothing to resume in {output}: it has no config.json")
        different = first_difference(config, json.loads(held.read_text()))
        if different:
            raise InputError(f"cannot resume {output}: {different}")
    elif output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise InputError(
                f"output {output} is not empty; --resume goes on with its run, --overwrite "
                "replaces it"
            )
        if not held.is_file():
            # Never delete a folder that is not a run's.
            raise InputError(f"will not overwrite {output}: it holds no run (no config.json)")


def _open_folder(config: Experiment, output: Path, overwrite: bool) -> None:
    """Process 0 makes the folder; the others see whether they can write checkpoints there."""
    if distributed.is_main():
        if overwrite and output.is_dir():
            shutil.rmtree(output)
        output.mkdir(parents=True, exist_ok=True)
        with replace_file(output / "config.json") as new:
            new.write_text(to_json(config))
    distributed.wait()
    if config.training.checkpoint_folder is None:
        distributed.check_shared_folder(output)


class _Run:
    """The loop over one folder: logs, checkpoints, signals, and the end."""

    def __init__(self, output: Path, training: Training, test: Rows, console: Console):
        self.output = output
        self.training = training
        self.test = test
        self.console = console
        self.config = training.config
        self.checkpoints = self._open_checkpoints()
        self.seconds = 0.0
        self.compiled = compilation.CompileTimes()
        self.zero_shot: dict[str, Any] | None = None
        self._stop: int | None = None
        self._unscored = False  # whether the state is one to evaluate, and was not
        self._compiled: tuple[int, float] | None = None  # first step made here, seconds by then
        self._answer = answer_of(self.config, training.backbone, examples=test)
        self._measure, self._measure_frozen = (
            open_measure(self.config, training.backbone, method, test, training.mesh)
            for method in (training.method, None)
        )
        self._zero_shot = self.config.evaluation.zero_shot and self._answers_frozen(test)

    def _answers_frozen(self, test: Rows) -> bool:
        """Whether the backbone by itself says anything: it reads no markers, and a head or a
        verbaliser that the adapter brings says nothing before it is trained."""
        if self._answer == "head" and isinstance(test, ChoiceExamples):
            return self.training.backbone.config.num_labels == test.choices.shape[1]
        return self._answer != "trained_verbalizer" and not test.has_markers

    def go(self, resume: bool) -> dict[str, Any]:
        from peft_jax.metrics_log import MetricsLog

        main = distributed.is_main()
        try:
            saved = self.checkpoints.latest()
            if saved is not None and not resume:
                raise InputError(
                    f"training.checkpoint_folder {self.config.training.checkpoint_folder} holds "
                    f"checkpoints of another run (step {saved}); give an empty one"
                )
            if saved is not None:
                self._restore()
            after = int(self.training.state.step)
            with MetricsLog(self.output, after_step=after, writes=main) as log:
                if self._zero_shot and self.zero_shot is None:
                    self.zero_shot = self._evaluate("zero-shot", frozen=True).summary(
                        self.config.evaluation.bootstrap
                    )
                with self._signals():
                    self._train(log)
                evaluation = self._evaluate("evaluation")
                last = evaluation.reported[1].median
                log.write(self.config.training.steps, evaluation_score=last)
            if self.config.training.final == "best" and self._take_best(last):
                evaluation = self._evaluate("evaluation")
            return self._finish(evaluation)
        finally:
            self.checkpoints.close()

    # ------------------------------------------------------------------ checkpoints and signals
    def _open_checkpoints(self) -> Checkpoints:
        training = self.config.training

        def tell(sentence: str) -> None:
            self.console.print(f"warning: {sentence}", markup=False, soft_wrap=True)

        return Checkpoints(
            training.checkpoint_folder or self.output / "checkpoints",
            newest=training.keep_checkpoints,
            every=training.keep_every,
            best=training.keep_best,
            tell=tell,
        )

    def _restore(self) -> None:
        def like(progress: dict[str, Any]) -> TrainState:
            if wants_information(self.training.method):
                # The mask lies in the checkpoint; one measured again might differ by rounding.
                self.training.expect(from_spec(progress["method"]))
            return self.training.state

        self.training.state, progress = self.checkpoints.restore(like)
        self.training.sampler.restore(progress["data"])
        self.seconds = progress["seconds"]
        self.zero_shot = progress["zero_shot"]
        self._unscored = progress["unscored"]
        self.console.print(f"resumed after step {int(self.training.state.step)}")

    def _save(self, step: int, score: float | None) -> None:
        progress = {
            "data": self.training.sampler.state,
            "seconds": self.seconds,
            "zero_shot": self.zero_shot,
            "method": self.training.method.spec,
            "unscored": score is None and self._to_evaluate(step),
        }
        self.checkpoints.save(step, self.training.state, progress, score)

    def _take_best(self, last: float) -> bool:
        """Goes back to the checkpoint with the highest score, if one is above the last state's."""
        for step in self.checkpoints.best():
            if self.checkpoints.scores[step] <= last:
                return False
            try:
                self.training.state, _ = self.checkpoints.restore_step(step, self.training.state)
            except InputError as error:
                self.console.print(f"warning: {error}", markup=False, soft_wrap=True)
                continue
            self.console.print(f"the state after step {step} is used: it has the best score")
            return True
        return False

    def _to_save(self, made: int) -> bool:
        """Whether the state after so many steps is to be saved; the same on every process."""
        config = self.config.training
        if made % config.checkpoint_every == 0 or made == config.steps:
            return True
        if config.keep_every and made % config.keep_every == 0:
            return True
        if config.keep_best and self._to_evaluate(made):
            return True
        if config.checkpoint_minutes is None or made % config.log_every:
            return False
        late = self.checkpoints.seconds_since_save() >= 60 * config.checkpoint_minutes
        return first_process_says(late)

    def _stops(self, made: int) -> bool:
        """Whether this step is the last one, because someone asked for it.

        One process alone stops where its signal finds it. Of several, jax tells all when one is
        told, and names a step that none of them has made yet.
        """
        if jax.process_count() == 1:
            return self._stop is not None
        if multihost_utils.reached_preemption_sync_point(made):
            self._stop = self._stop or signal.SIGTERM
            return True
        return False

    @contextlib.contextmanager
    def _signals(self):
        """While inside, SIGINT and SIGTERM only ask the loop to save and stop."""
        several = jax.process_count() > 1

        def ask(number, frame):
            self._stop = number
            if several:
                os.kill(os.getpid(), signal.SIGTERM)  # which jax passes on to all processes

        # Of several processes, SIGTERM is jax's own: see _stops.
        numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
        try:
            before = {n: signal.signal(n, ask) for n in numbers}
        except ValueError:  # not the main thread: a notebook's worker, say
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ------------------------------------------------------------------ training
    def _train(self, log) -> None:
        config = self.config.training
        pending: list[dict[str, jax.Array]] = []
        shown = TrainingProgress(self.console, config.steps, config.batch_size)
        if self._unscored:
            first = int(self.training.state.step)
            self.checkpoints.scores[first] = self._score(log, first)
        started = time.perf_counter() - self.seconds
        times, tracer = self.training.times, self.training.tracer
        with shown, tracer:
            shown.start_at(int(self.training.state.step))
            for made, metrics in train_steps(self.training, config.steps):
                pending.append(metrics)
                if self._compiled is None:
                    jax.block_until_ready(metrics)
                    self._compiled = made, time.perf_counter() - started
                    times.restart()
                if tracer.done(metrics):
                    self._tell_trace(tracer)
                stops = self._stops(made)
                save = stops or self._to_save(made)
                if made % config.log_every == 0 or save:
                    with times("compute"):
                        jax.block_until_ready(pending)
                    with times("logging"):
                        means = _means(pending)
                        self.seconds = time.perf_counter() - started
                        _check_finite(means, made, self.checkpoints.latest())
                        speed = self._speed(made)
                        split = times.take(len(pending))
                        log.write(made, **means, examples_per_second=speed, **split)
                        shown.update(made, means, speed)
                        pending = []
                score = None
                if self._to_evaluate(made) and not stops:
                    before = time.perf_counter()
                    score = self._score(log, made)
                    started += time.perf_counter() - before
                if save:
                    with times("saving"):
                        self._save(made, score)
                if stops:
                    self.checkpoints.wait()  # a second signal must not cut it short
                    assert self._stop is not None
                    raise Interrupted(made, self._stop)

    def _to_evaluate(self, made: int) -> bool:
        """Whether the state after so many steps is evaluated while training."""
        every = self.config.training.evaluate_every
        return bool(every and made % every == 0 and 0 < made < self.config.training.steps)

    def _score(self, log, made: int) -> float:
        score = self._evaluate("evaluation", quiet=True).reported[1].median
        log.write(made, evaluation_score=score)
        return score

    def _tell_trace(self, tracer: Tracer) -> None:
        """Where the trace lies, and what took longest in it."""
        folder = tracer.written
        assert folder is not None
        self.console.print(
            f"trace written: tensorboard --logdir {folder}", markup=False, soft_wrap=True
        )
        for name, seconds, runs in longest_operations(folder, 5):
            self.console.print(f"  {1e3 * seconds:9.1f} ms  {runs:6d} x  {name}", markup=False)

    def _timed_steps(self) -> int:
        """Steps that this process has made since its first, which compiles."""
        return self.config.training.steps - (self._compiled or (self.config.training.steps, 0))[0]

    def _speed(self, made: int) -> float:
        """Examples per second since this process's first step, which is mostly compilation."""
        first, seconds = self._compiled or (0, 0.0)
        steps = made - first
        return steps * self.config.training.batch_size / max(self.seconds - seconds, 1e-9)

    def _evaluate(self, what: str, frozen: bool = False, quiet: bool = False) -> Measured:
        run = self.training
        adapter = {} if frozen else sharding.place(run.mesh, run.state.stored, run.backbone.config)
        measure = self._measure_frozen if frozen else self._measure
        with step_bar(self.console, f"{what:>10}", len(self.test), quiet) as advance:
            return measure(adapter, run.frozen, self.test, advance)

    # ------------------------------------------------------------------ the end
    def _labels(self) -> list[str]:
        """The names of a head's classes."""
        parts = parts_of(self.test)
        return parts[0].details.get("labels", []) if len(parts) == 1 else []

    def _finish(self, evaluation: Measured) -> dict[str, Any]:
        """Every process fetches the adapter; process 0 writes, and all return what it wrote."""
        adapter = sharding.fetch(self.training.mesh, self.training.state.stored)
        result = self._write(adapter, evaluation) if distributed.is_main() else None
        return distributed.share(result)

    def _write(self, adapter: tree.Params, evaluation: Measured) -> dict[str, Any]:
        run, config = self.training, self.config
        metric, score = evaluation.reported
        details = {
            "task": config.task,
            "answer": self._answer,
            "labels": self._labels(),
            "metric": metric,
            "score": score.median,
        }
        path = save_adapter(self.output / ADAPTER_FILE, adapter, run.method, run.backbone, details)
        evaluation.write(self.output / "predictions.jsonl")
        trainable = count(adapter)
        result = {
            "task": config.task,
            "backbone": run.backbone.name,
            "method": list(config.method),
            "answer": self._answer,
            "seed": config.seed,
            "steps": config.training.steps,
            "used_step": int(run.state.step),
            "training_examples": run.examples.num_examples,
            "trainable_parameters": trainable,
            "trainable_share": trainable / tree.count(run.backbone.params),
            "adapter_bytes": path.stat().st_size,
            "training_seconds": self.seconds,
            "examples_per_second": self._speed(config.training.steps),
            "loop_seconds": run.times.totals() | {"steps": self._timed_steps()},
            "compilation": self.compiled.report(),
            "zero_shot": self.zero_shot,
            "evaluation": evaluation.summary(config.evaluation.bootstrap),
            "devices": [d.device_kind for d in run.mesh.devices.flat],
            "mesh": dict(run.mesh.shape),
            "processes": distributed.processes(),
            "versions": {
                "peft_jax": __version__,
                "jax": jax.__version__,
                "python": platform.python_version(),
            },
        }
        (self.output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        metrics = report.read_metrics(self.output / "metrics.jsonl")
        report.draw_run(self.output / "run.png", metrics, result)
        self.console.print(report.run_table(result))
        if self._timed_steps():
            self.console.print(split_line(run.times.totals(), self._timed_steps()), markup=False)
        self.console.print(
            compilation.summary(self.compiled.report()), markup=False, soft_wrap=True
        )
        for note in evaluation.notes:
            self.console.print(note, markup=False, soft_wrap=True)
        self.console.print(f"written to {self.output}: {ADAPTER_FILE}, result.json, run.png")
        return result


def _means(pending: list[dict[str, jax.Array]]) -> dict[str, float]:
    """The metrics' means over the steps since the last log; the only wait for the device."""
    fetched = jax.device_get(pending)
    return {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}


def _check_finite(means: dict[str, float], made: int, saved: int | None) -> None:
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        kept = f"the checkpoint of step {saved} is kept" if saved else "nothing was saved before"
        raise InputError(
            f"{bad[0]} is not a number by step {made}; {kept}. Try a lower "
            "optimizer.learning_rate, or float32 (model.dtype, model.activation_dtype)"
        )
