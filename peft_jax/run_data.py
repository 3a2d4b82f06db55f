"""The examples of a run: a task's or several tasks', tokenised now or read from a file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from peft_jax.answers import Answer, find_answer
from peft_jax.backbones import Backbone
from peft_jax.config import DataConfig
from peft_jax.errors import InputError
from peft_jax.example_rows import some_of
from peft_jax.examples import ChoiceExamples, vocabulary_identity
from peft_jax.metrics import find, missing
from peft_jax.mixed_examples import Examples, MixedExamples, mix, parts_of
from peft_jax.text_examples import TextExamples, is_text_file

EMBEDDED = "embedded_"
DENOISING = ("span_corruption", "prefix_lm")
"""Tasks that are made of plain text: `peft_jax.tasks.denoising`."""
Rows = Examples | MixedExamples


def open_examples(
    task: str,
    data: DataConfig,
    backbone: Backbone,
    seed: int,
    *,
    training: bool,
    answer: str = "auto",
    methods: Sequence[str] = (),
) -> Rows:
    """The training draw, or the evaluation split, as arrays.

    Args:
      seed: of the few-shot draw, where the data's own is not set.
      task: of the catalogue, a mixture's name, or several tasks joined by "+".
      training: which of the two.
      answer, methods: how the backbone answers, see ``answers.find_answer``.
    """
    if "+" in task or (data.prepared is None and _is_mixture(task)):
        return _open_mixture(
            task, data, backbone, seed, training=training, answer=answer, methods=methods
        )
    return open_task_examples(
        task, data, backbone, seed, training=training, answer=answer, methods=methods
    )


def _is_mixture(task: str) -> bool:
    from peft_jax.tasks.catalogue import mixtures

    return task in mixtures()


def _open_mixture(
    task: str,
    data: DataConfig,
    backbone: Backbone,
    seed: int,
    *,
    training: bool,
    answer: str,
    methods: Sequence[str],
) -> MixedExamples:
    from peft_jax.tasks.catalogue import MixtureDefinition, find_mixture

    if data.prepared is not None or data.prepared_evaluation is not None:
        raise InputError(f"{task} has several tasks, and data.prepared is a file of one")
    found = MixtureDefinition(task, tuple(task.split("+"))) if "+" in task else find_mixture(task)
    if twice := [name for name in found.tasks if found.tasks.count(name) > 1]:
        raise InputError(
            f"{task}: {twice[0]} is named twice; --data.mixing says how often it is drawn"
        )
    if data.shots is None:
        data = dataclasses.replace(data, shots=0)
    answer = _answer_of_all(found.tasks, data, backbone, answer)
    parts: Any = [
        open_task_examples(
            name, data, backbone, seed, training=training, answer=answer, methods=methods
        )
        for name in found.tasks
    ]
    rate = data.mixing or found.rate
    limits = {} if rate == "equal" else {"cap": data.mixing_cap or found.cap, "caps": found.caps}
    return mix(task, parts, rates="equal" if rate == "equal" else "rows", **limits)


def _answer_of_all(tasks: Sequence[str], data: DataConfig, backbone: Backbone, answer: str) -> str:
    """ "text" for all tasks of a mixture where one of them has open answers."""
    if answer != "auto" or backbone.config.kind == "encoder":
        return answer
    from peft_jax.tasks.prompted import find_task

    def ranks(task: str) -> bool:
        directory = None if task.startswith(EMBEDDED) else data.directory
        return task not in DENOISING and find_task(task, directory=directory).ranks

    return "auto" if all(map(ranks, tasks)) else "text"


def open_task_examples(
    task: str,
    data: DataConfig,
    backbone: Backbone,
    seed: int,
    *,
    training: bool,
    answer: str = "auto",
    methods: Sequence[str] = (),
) -> Examples:
    """`open_examples` of one task."""
    if backbone.vocabulary is None:
        raise InputError(
            f"backbone {backbone.name!r} has no vocabulary: tokens cannot be made or compared"
        )
    prepared = data.prepared if training else data.prepared_evaluation
    if prepared is None:
        examples = _tokenise(task, data, backbone, seed, training, answer, methods)
    else:
        examples = load_examples(prepared, vocabulary_identity(backbone.vocabulary))
        find_answer(answer, backbone, methods, ranks=not isinstance(examples, TextExamples))
        if not training and data.evaluation_examples is not None:
            examples = _some_of(examples, data.evaluation_examples)
    examples.check_fits(backbone.config.vocab_size)
    return examples


def _some_of(examples: Examples, limit: int) -> Examples:
    """So many of a file's examples, as `peft_jax.tasks.draws.Draw` takes them of rows."""
    if limit >= examples.num_examples:
        return examples
    grouped = bool(len(examples.keep)) and "group" in examples.keep[0]
    chosen = some_of(examples.num_examples, limit, grouped=grouped)
    return examples.subset(examples=chosen).trimmed()


def open_choices(
    task: str, data: DataConfig, backbone: Backbone, seed: int, *, training: bool, answer: str
) -> ChoiceExamples:
    """`open_examples` for studies that rank choices.

    Raises:
      InputError: the task has none; and as `open_examples` does.
    """
    examples = open_examples(task, data, backbone, seed, training=training, answer=answer)
    if not isinstance(examples, ChoiceExamples):
        raise InputError(f"task {task} has no answer choices, which this study ranks")
    return examples


def with_metrics(rows: Rows, names: Sequence[str]) -> Rows:
    """The same rows, evaluated with these metrics beside their tasks' own.

    Raises:
      InputError: a metric that does not exist, that cannot be had on this machine, or that reads
        what the rows do not have; before anything is trained.
    """
    if isinstance(rows, MixedExamples):
        parts = tuple(_with_metrics(part, names) for part in rows.parts)
        return dataclasses.replace(rows, parts=parts)
    return _with_metrics(rows, names)


def _with_metrics(examples: Examples, names: Sequence[str]) -> Examples:
    own = list(examples.details.get("metrics") or ("accuracy",))
    kept = examples.keep[0] if len(examples.keep) else {}
    written = isinstance(examples, TextExamples)
    for name in names:
        metric = find(name)
        if reason := missing([name]):
            raise InputError(f"evaluation.metrics: {name}: {next(iter(reason.values()))}")
        lacking = [f for f in metric.reads if f.startswith("keep.") and f[5:] not in kept]
        if written:
            lacking += [field for field in metric.reads if field == "scores"]
            classes = {"predicted", "labels"} & set(metric.reads)
            lacking += sorted(classes) if "choices" not in kept else []
        if lacking:
            raise InputError(
                f"evaluation.metrics: {name} reads {lacking[0]}, which {examples.task}'s rows lack"
            )
    details = examples.details | {"metrics": list(dict.fromkeys([*own, *names]))}
    return dataclasses.replace(examples, details=details)


def notes_of(rows: Rows) -> list[str]:
    """What somebody who reads a score should know of the rows: what was skipped, and cut."""
    return [note for examples in parts_of(rows) for note in _notes_of(examples)]


def _notes_of(examples: Examples) -> list[str]:
    notes = list(examples.details.get("notes", ()))
    if cut := examples.details.get("cut_targets"):
        limit, rows = examples.details["max_target_length"], examples.details["rows"]
        notes.append(
            f"{examples.task} {examples.split}: {cut:,} of {rows:,} targets are longer than "
            f"{limit} tokens and are cut (data.max_target_length)"
        )
    return notes


def load_examples(path: str | os.PathLike, vocabulary: str | None = None) -> Examples:
    """What ``peft-jax prepare`` wrote: choices or texts, as the file says.

    Raises:
      InputError: see `ChoiceExamples.load` and `TextExamples.load`.
    """
    kind = TextExamples if is_text_file(path) else ChoiceExamples
    return kind.load(path, vocabulary)


def task_and_answer(
    task: str, backbone: Backbone, answer: str, methods: Sequence[str] = (), **source: Any
) -> tuple[Any, Answer]:
    """The task of a name, and how a backbone answers it.

    Args:
      answer, methods: see ``answers.find_answer``.
      source: see `peft_jax.tasks.options.TaskOptions`; templates are read only where they may
        decide whether answers are ranked or written.

    Returns a `peft_jax.tasks.prompted.PromptedTask`, and the answer.

    Raises:
      InputError: there is no such task, or the backbone cannot answer it so.
    """
    from peft_jax.tasks.options import open_task

    prompts = backbone.config.kind != "encoder" and answer in ("auto", "choices", "text")
    found = open_task(task, "train", prompts=prompts, **source)
    return found, find_answer(answer, backbone, methods, ranks=found.ranks)


def _tokenise(
    task: str,
    data: DataConfig,
    backbone: Backbone,
    seed: int,
    training: bool,
    answer: str,
    methods: Sequence[str],
) -> Examples:
    if task in DENOISING:
        return _denoised(task, data, backbone, seed, training, answer, methods)
    # These import TensorFlow, which takes seconds and which a prepared file does without.
    from peft_jax.tasks import encoders, prepare

    source: dict[str, Any] = {} if task.startswith(EMBEDDED) else {"directory": data.directory}
    if source:
        source["own"] = {key: getattr(data, key) for key in ("input", "choices", "target", "label")}
    found, answer = task_and_answer(
        task, backbone, answer, methods, templates=data.templates, **source
    )
    kind = backbone.config.kind
    if source and answer != "head":
        source["templates"] = data.templates
    split, draw = _split_and_draw(data, found, seed, training)
    options: dict[str, Any] = {
        "backbone_vocabulary_path": backbone.vocabulary,
        "max_input_length": data.max_input_length or found.definition.max_input_length,
        "pad_id": backbone.config.pad_id,
        "progress": True,
        "on_bad_row": data.on_bad_row,
        **source,
        **draw,
    }
    make: Any = prepare.choice_examples
    if answer == "text":
        options |= {"kind": kind, "max_target_length": data.max_target_length}
        options["start_id"] = backbone.config.decoder_start_id
        make = prepare.text_examples
    elif answer == "choices" or (answer == "trained_verbalizer" and kind != "encoder"):
        options["max_choice_length"] = data.max_choice_length
        options["kind"] = kind
    elif answer == "head":
        options["kind"] = kind
        make = encoders.label_examples
    else:
        options["one_token"] = answer == "verbalizer"
        make = encoders.verbalizer_examples
    return make(task, split, **options)


def _denoised(
    task: str,
    data: DataConfig,
    backbone: Backbone,
    seed: int,
    training: bool,
    answer: str,
    methods: Sequence[str],
) -> TextExamples:
    """Plain text with parts to be written (`peft_jax.tasks.denoising`)."""
    from peft_jax.tasks.denoising import folder_examples

    find_answer(answer, backbone, methods, ranks=False)
    assert backbone.vocabulary is not None
    examples = folder_examples(
        task,
        (data.train_split or "train") if training else (data.evaluation_split or "validation"),
        directory=data.directory,
        backbone_vocabulary_path=backbone.vocabulary,
        inputs_length=data.max_input_length or 512,
        seed=seed if data.few_shot_seed is None else data.few_shot_seed,
        kind=backbone.config.kind,
        pad_id=backbone.config.pad_id,
        start_id=backbone.config.decoder_start_id,
    )
    limit = data.evaluation_examples
    return examples if training or limit is None else _some_of(examples, limit)  # type: ignore[return-value]


def _split_and_draw(
    data: DataConfig, found: Any, seed: int, training: bool
) -> tuple[str, dict[str, Any]]:
    """The split that is read, and the options of what is drawn of it.

    Folds and development rows are of the training split, and depend on the same seed as what is
    trained on.
    """
    train = data.train_split or found.definition.train_split
    held_out = not training and (data.folds is not None or data.dev_shots is not None)
    if not training and not held_out:
        split = data.evaluation_split or found.definition.evaluation_split
        return split, {"limit": data.evaluation_examples}
    shots = found.definition.shots if data.shots is None else data.shots
    if data.folds is not None and data.shots is None:
        shots = 0  # all of the other folds
    draw = {
        "shots": shots or None,
        "seed": seed if data.few_shot_seed is None else data.few_shot_seed,
        "few_shot_style": data.few_shot_style,
        "folds": data.folds,
        "fold": data.fold,
    }
    if not held_out:
        return train, draw
    limit = data.evaluation_examples
    return train, draw | {"held_out": True, "dev_shots": data.dev_shots, "limit": limit}
