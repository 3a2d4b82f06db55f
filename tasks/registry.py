"""Tasks for seqio: a dataset under its templates becomes seqio tasks that any seqio user can mix.

``register("rte", vocabulary="spiece.model", directory="data")`` adds the tasks ``rte`` (every
example under every template) and ``rte_<template>`` (one per template) to ``seqio.TaskRegistry``.
Their rows hold

    inputs            [s] int32, as the kind of model reads them (a T5: with EOS)
    targets           [t] int32, with EOS
    choices           [c, t'] int32, every answer choice with EOS, filled up with -1
    label             [1] int32, the correct choice
    example, template [1] int32, which row of the source, which template

All are output features, because seqio's mixtures drop what is not declared. A task of open answers,
such as ``e2e_nlg``, declares its inputs and targets alone, which is what T5X's own models take; so
does one with choices that is registered with ``ranks=False``. What metrics read stands beside them:
``references`` [n] texts and ``keep`` [], JSON; seqio's Evaluator gives the task's own figures of
predicted texts (`peft_jax.tasks.seqio_metrics`). Inputs are cut so that they keep their special
tokens, as Hugging Face's tokenizers cut them.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from peft_jax.errors import InputError
from peft_jax.markers import has_markers
from peft_jax.tasks.catalogue import MixtureDefinition, find_mixture
from peft_jax.tasks.converters import refuse_long_choices
from peft_jax.tasks.draws import Draw
from peft_jax.tasks.embedded import TASKS as EMBEDDED_TASKS
from peft_jax.tasks.prompted import (
    EMBEDDED_PREFIX,
    PromptedRow,
    PromptedTask,
    find_task,
)
from peft_jax.tasks.prompts import template_slugs
from peft_jax.tasks.seqio_metrics import metric_fns, postprocess
from peft_jax.tasks.tensorflow_data import seqio, tf
from peft_jax.tasks.vocabularies import PAD, HuggingFaceVocabulary, load_vocabulary, tokenize_rows
from peft_jax.tokenizer import Kind

EMBEDDED_MIXTURE = "embedded_train"
SPLITS = ("train", "validation")


def register(
    name: str,
    *,
    vocabulary: str | os.PathLike,
    directory: str | Path | None = None,
    templates: str | Path | None = None,
    draw: Draw | None = None,
    kind: Kind = "encoder_decoder",
    ranks: bool | None = None,
) -> list[str]:
    """Registers a task, and one task per template; a task registered before is replaced.

    Args:
        name: see `peft_jax.tasks.prompted.find_task`, as for ``directory`` and ``templates``.
        vocabulary: the backbone's: a Hugging Face folder or one of its vocabulary's files.
        directory: the folder of JSONL files; None for TFDS and for embedded tasks.
        templates: where the templates lie.
        draw: what stands for one of the splits.
        kind: of the model that will read the rows, see `peft_jax.tokenizer.row_ids`.
        ranks: False leaves out the choices, for a model that writes its answers; None: a task has
            the choices that it has.

    Returns the registered names, ``name`` first. Raises InputError for whatever is wrong with the
    name, the folder, the templates or the vocabulary; the rows are read when they are asked for.
    """
    task = find_task(name, directory=directory, templates=templates, draw=draw)
    marked = any(has_markers(getattr(format, "jinja", "")) for format in task.templates)
    vocabulary = load_vocabulary(vocabulary, kind, marked=marked)
    slugs = template_slugs([template.name for template in task.templates])
    seqio_name = seqio_task_name(name)
    parts = {f"{seqio_name}_{slug}": index for index, slug in enumerate(slugs.values())}
    for part, index in ({seqio_name: None} | parts).items():
        seqio.TaskRegistry.remove(part)
        made = seqio_task(part, task, vocabulary, index, kind, ranks)
        seqio.TaskRegistry.add_provider(part, made)
    return [seqio_name, *parts]


def register_embedded(vocabulary: str | os.PathLike, kind: Kind = "encoder_decoder") -> list[str]:
    """Registers all embedded tasks, and the mixture ``embedded_train`` of those not held out.

    The mixture draws from its tasks alike. Returns the names of the tasks with all templates.
    """
    names = [EMBEDDED_PREFIX + key for key in EMBEDDED_TASKS]
    for name in names:
        register(name, vocabulary=vocabulary, kind=kind)
    training = [
        n for n, task in zip(names, EMBEDDED_TASKS.values(), strict=True) if not task.held_out
    ]
    seqio.MixtureRegistry.remove(EMBEDDED_MIXTURE)
    seqio.MixtureRegistry.add(EMBEDDED_MIXTURE, training, default_rate=1.0)
    return names


def register_mixture(
    name: str,
    *,
    vocabulary: str | os.PathLike,
    directory: str | Path | None = None,
    kind: Kind = "encoder_decoder",
) -> list[str]:
    """Registers a mixture of the catalogue, and its tasks with all of their templates.

    A task's rate is as the mixture says, in rows (examples times templates) of its training split,
    which are counted when the mixture is drawn from. seqio mixes tasks of equal features only: of
    the ones with choices and of the open ones in one mixture, all lose their choices.

    Args: as for `register`.

    Returns the mixture's name and its tasks'. Raises InputError for another name, and, with what is
    wanted, for a task whose files or templates are not there.
    """
    mixture = find_mixture(name)
    found = {task: find_task(task, directory=directory) for task in mixture.tasks}
    ranks = all(task.ranks for task in found.values())
    loaded = load_vocabulary(vocabulary, kind)
    rates = []
    for task_name, task in found.items():
        seqio.TaskRegistry.remove(task_name)
        seqio.TaskRegistry.add_provider(
            task_name, seqio_task(task_name, task, loaded, kind=kind, ranks=ranks)
        )
        rates.append((task_name, _rate(mixture, task)))
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, rates)
    return [name, *found]


def _rate(mixture: MixtureDefinition, task: PromptedTask) -> Callable[[seqio.Task], float] | float:
    if mixture.rate == "equal":
        return 1.0
    cap = mixture.caps.get(task.name, mixture.cap)

    def rows(_: seqio.Task) -> float:
        number = len(task.prompted(train_split(task)))
        return float(number if cap is None else min(number, cap))

    return rows


def train_split(task: PromptedTask) -> str:
    """The split that a task is trained on."""
    return task.definition.train_split if task.definition else "train"


def seqio_task_name(name: str) -> str:
    """A task's name with what seqio does not allow in names replaced by _."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.:") else "_" for c in name)


def seqio_task(
    name: str,
    task: PromptedTask,
    vocabulary: seqio.Vocabulary,
    template: int | None = None,
    kind: Kind = "encoder_decoder",
    ranks: bool | None = None,
) -> seqio.Task:
    """A seqio task, not registered, over the rows of one template or (None) of all.

    Args:
        vocabulary: from `load_vocabulary`, for the same kind of model.
        ranks: whether the rows have their choices; None: where the task has any.

    Raises InputError for an encoder, which writes no answers.
    """
    if kind == "encoder":
        raise InputError(
            f"task {name}: an encoder ranks no answers by writing them; prepare its labels "
            "(label_examples) or the words of its mask (verbalizer_examples)"
        )

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # the rows are in memory: seqio's shuffle buffer does it
        rows = task.prompted(split)
        return rows_to_dataset([r for r in rows if template in (None, r.template)])

    ranks = task.ranks if ranks is None else ranks and task.ranks
    cached = not isinstance(vocabulary, HuggingFaceVocabulary)
    splits = tuple(dict.fromkeys((*SPLITS, *_own_splits(task))))
    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(dataset_fn, splits=splits, caching_permitted=cached),
        preprocessors=_preprocessors(vocabulary, kind, ranks),
        output_features=output_features(vocabulary, ranks=ranks),
        postprocess_fn=postprocess,
        metric_fns=metric_fns(task.definition.metrics if task.definition else ("accuracy",)),
    )


def _own_splits(task: PromptedTask) -> tuple[str, ...]:
    definition = task.definition
    return (definition.train_split, definition.evaluation_split) if definition else ()


def _preprocessors(vocabulary: seqio.Vocabulary, kind: Kind, ranks: bool) -> list:
    """From texts to tokens; what stands behind the placeholder is done to cached tokens too."""
    end = [end_with_eos, *([refuse_long_choices] if ranks else [])]
    if isinstance(vocabulary, HuggingFaceVocabulary):
        # It cuts a text while it reads it, so that there is nothing uncut to be cached.
        return [tokenize_rows(vocabulary, kind), *end[1:]]
    placeholder = seqio.CacheDatasetPlaceholder()
    if not ranks:
        return [seqio.preprocessors.tokenize, placeholder, *end]
    return [seqio.preprocessors.tokenize, end_choices, placeholder, pad_choices, *end]


def output_features(
    vocabulary: seqio.Vocabulary, *, ranks: bool = True
) -> dict[str, seqio.Feature]:
    """The features of a task's rows; see the head of this file.

    Numbers are arrays of one, because seqio's Evaluator measures the length of every feature.
    """
    number = seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=False, dtype=tf.int32)
    texts = {"inputs": seqio.Feature(vocabulary), "targets": seqio.Feature(vocabulary)}
    if not ranks:
        return texts
    numbers = dict.fromkeys(("label", "example", "template"), number)
    return texts | {"choices": seqio.Feature(vocabulary, rank=2)} | numbers


def end_choices(
    ds: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """A seqio preprocessor: EOS behind every choice, which are never cut; still ragged [c, t]."""
    return seqio.preprocessors.append_eos(ds, {"choices": output_features["choices"]})


def pad_choices(ds: tf.data.Dataset) -> tf.data.Dataset:
    """A seqio preprocessor: choices as a dense [c, t], short ones filled up with -1.

    Behind the cache, whose files keep ragged choices as seqio stores them.
    """
    return ds.map(
        lambda features: features | {"choices": features["choices"].to_tensor(PAD)},
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def end_with_eos(
    ds: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    sequence_length: Mapping | None,
) -> tf.data.Dataset:
    """A seqio preprocessor: EOS behind inputs and targets, which are cut first where they must."""
    cut = {key: output_features[key] for key in ("inputs", "targets")}
    lengths = {key: (sequence_length or {}).get(key) for key in cut}
    return seqio.preprocessors.append_eos_after_trim(
        ds, output_features=cut, sequence_length=lengths
    )


def rows_to_dataset(rows: Sequence[PromptedRow]) -> tf.data.Dataset:
    """Prompted rows as a tf.data dataset of texts and numbers.

    Choices are there wherever the rows have any: metrics of predicted texts read them too.
    """
    ranks = bool(rows) and bool(rows[0].choices)
    numbers = ("label", "example", "template") if ranks else ("example", "template")
    columns = {
        "inputs": tf.constant([row.input for row in rows], tf.string),
        "targets": tf.constant([row.target for row in rows], tf.string),
        "keep": tf.constant([json.dumps(dict(row.keep)) for row in rows], tf.string),
        "references": _ragged_texts([row.references for row in rows]),
    }
    if ranks:
        columns["choices"] = _ragged_texts([row.choices for row in rows])
    columns |= {
        key: tf.constant([[getattr(row, key)] for row in rows], tf.int32) for key in numbers
    }
    return tf.data.Dataset.from_tensor_slices(columns)


def _ragged_texts(rows: Sequence[Sequence[str]]) -> tf.RaggedTensor:
    flat = tf.constant([text for row in rows for text in row], tf.string)
    return tf.RaggedTensor.from_row_lengths(flat, [len(row) for row in rows])
