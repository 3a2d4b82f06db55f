"""Tasks for models that write no answer: classes of a head, and words of a masked-LM's mask.

Both give the arrays of `peft_jax.examples`, so that sampling and evaluation go as for every task.
They read texts with `peft_jax.tokenizer` and need no seqio.
"""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Unpack

import numpy as np

from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples
from peft_jax.tasks.options import TaskOptions, check_limits, describe, open_task, progress_bar
from peft_jax.tasks.prompted import PromptedRow, PromptedTask
from peft_jax.tokenizer import Kind, Tokenizer, Tokens, load_tokenizer

FIELDS = "fields"
"""The name of the one template of `label_examples`: the dataset's fields as they are."""

MASK = "mask"
"""What a template calls the mask token: ``{{mask}}``."""

_NO_TEXT = ("idx", "label", "label_names")


def label_examples(
    task: str,
    split: str,
    *,
    backbone_vocabulary_path: str | os.PathLike,
    fields: Sequence[str] | None = None,
    max_input_length: int = 256,
    multiple: int = 1,
    kind: Kind = "encoder",
    pad_id: int = 0,
    progress: bool = False,
    **options: Unpack[TaskOptions],
) -> ChoiceExamples:
    """Tokenises a split for a classification head: the dataset's fields, without a prompt.

    One field is one text, two are a pair (premise and hypothesis); of more, those behind the first
    are joined by spaces into the second text. A decoder, which knows no pairs, reads all of them as
    lines of one text.

    Args:
        task, split, multiple, progress, options: see
            `peft_jax.tasks.prepare.choice_examples`; no templates are needed.
        backbone_vocabulary_path: the backbone's vocabulary, a Hugging Face folder or a file of it.
        fields: the fields to read, in this order; by default the texts among the dataset's.
        max_input_length: S at most, special tokens included. The longer text of a pair is cut
            first, at its end; a decoder's text at its start.
        kind: of the model that will read the rows.
        pad_id: of the backbone (``config.pad_id``).

    Returns rows of one template, "fields". ``label`` is the class; ``choices`` are the classes'
    names in tokens and say only what they are (names that the dataset lacks are their numbers).
    ``encoder_token_types`` are there for an encoder that tells the texts of a pair apart.

    Raises InputError for everything that is wrong with the task, its files, its fields, the
    vocabulary or the limits.
    """
    check_limits(max_input_length=max_input_length, multiple=multiple)
    tokenizer = load_tokenizer(backbone_vocabulary_path)
    found = open_task(task, split, prompts=False, **options)
    if found.dataset.label_field is None:
        raise InputError(
            f"task {task} has no classes that all of its rows share: a head cannot answer it"
        )
    rows = found.rows(split)
    chosen = tuple(fields) if fields else _text_fields(found, rows[0][1])
    names = _label_names(found, split)
    with progress_bar(progress) as track:
        inputs = [
            _field_tokens(tokenizer, kind, found, position, row, chosen, max_input_length)
            for position, row in track(rows, f"{task}: tokens")
        ]
    details = describe(found, kind=kind, fields=list(chosen))
    details |= {"labels": list(names), "max_input_length": max_input_length}
    tokens, types = _padded_inputs(inputs, pad_id, with_types=kind == "encoder")
    answers = [[tokenizer.encode(name) for name in names]] * len(rows)
    return ChoiceExamples(
        task=task,
        split=split,
        template_names=(FIELDS,),
        encoder_input_tokens=tokens,
        encoder_token_types=types,
        **_padded_choices(answers, pad_id),
        label=np.asarray([row["label"] for _, row in rows], np.int32),
        example=np.asarray([position for position, _ in rows], np.int32),
        template=np.zeros(len(rows), np.int32),
        vocabulary=tokenizer.identity,
        details=details,
        pad_id=pad_id,
    ).trimmed(multiple)


def verbalizer_examples(
    task: str,
    split: str,
    *,
    backbone_vocabulary_path: str | os.PathLike,
    max_input_length: int = 256,
    multiple: int = 1,
    pad_id: int = 0,
    one_token: bool = True,
    progress: bool = False,
    **options: Unpack[TaskOptions],
) -> ChoiceExamples:
    """Tokenises a split for a masked-LM: prompts with a mask where the answer goes (PET, WARP).

    A template marks the place with ``{{mask}}``; in one that does not, as in all of promptsource's,
    the mask stands behind the input, after a space. Schick and Schütze 2021 (PET), section 3.

    Args: as in `peft_jax.tasks.prepare.choice_examples`. An input that is too long is cut at its
        two ends and keeps the mask.
        one_token: whether each answer must be one token, which stands in the mask's place (PET); a
            trained verbaliser (WARP) reads no answer, and any name will do for a class.

    Returns rows whose ``choices`` [R, C, 1] are the answers' tokens in the mask's place, without
    EOS (or [R, C, T], the classes' names); ``details["mask_id"]`` is the mask's token.

    Raises InputError besides for an answer of more than one token at the mask, which it names with
    its pieces, for one that is unknown to the vocabulary or the same token as another, and for a
    vocabulary without a mask.
    """
    check_limits(max_input_length=max_input_length, multiple=multiple)
    tokenizer = load_tokenizer(backbone_vocabulary_path)
    if tokenizer.mask_id is None:
        raise InputError(
            f"the vocabulary {backbone_vocabulary_path} has no mask token: verbalizers are for "
            "masked language models (BERT, RoBERTa)"
        )
    mask = str(tokenizer.token(tokenizer.mask_id))
    found = open_task(task, split, **options)
    found = _with_mask(found, mask)
    with progress_bar(progress) as track:
        rows = found.prompted(split, lambda examples: track(examples, f"{task}: prompts"))
        texts = [row.input if mask in row.input else f"{row.input} {mask}" for row in rows]
        made = [
            _mask_tokens(tokenizer, found, row, text, max_input_length, one_token)
            for row, text in track(list(zip(rows, texts, strict=True)), f"{task}: tokens")
        ]
    details = describe(found, kind="verbalizer", mask_id=tokenizer.mask_id) | {
        "max_input_length": max_input_length
    }
    tokens, _ = _padded_inputs([row for row, _ in made], pad_id, with_types=False)
    examples = ChoiceExamples(
        task=task,
        split=split,
        template_names=tuple(template.name for template in found.templates),
        encoder_input_tokens=tokens,
        **_padded_choices([answers for _, answers in made], pad_id),
        label=np.asarray([row.label for row in rows], np.int32),
        example=np.asarray([row.example for row in rows], np.int32),
        template=np.asarray([row.template for row in rows], np.int32),
        vocabulary=tokenizer.identity,
        details=details,
        pad_id=pad_id,
    ).trimmed(multiple)
    return (
        dataclasses.replace(examples, choices=examples.choices[..., :1]) if one_token else examples
    )


# --------------------------------------------------------------------------------------------
# Fields and labels
# --------------------------------------------------------------------------------------------
def _text_fields(task: PromptedTask, row: dict) -> tuple[str, ...]:
    candidates = [name for name in task.dataset.fields or row if name not in _NO_TEXT]
    texts = tuple(name for name in candidates if isinstance(row.get(name), str))
    if not texts:
        raise InputError(f"{task.name} has no field of text; the row's fields are {', '.join(row)}")
    return texts


def _label_names(task: PromptedTask, split: str) -> tuple[str, ...]:
    """The dataset's names; where it has none, the numbers up to the largest label that occurs."""
    if task.dataset.labels:
        return task.dataset.labels
    rows = list(task.read(split))
    if split != "train":
        with contextlib.suppress(InputError):  # a split may be all there is
            rows += task.read("train")
    return tuple(str(label) for label in range(1 + max(row["label"] for row in rows)))


def _field_tokens(
    tokenizer: Tokenizer,
    kind: Kind,
    task: PromptedTask,
    position: int,
    row: dict,
    fields: Sequence[str],
    max_input_length: int,
) -> Tokens:
    missing = [name for name in fields if row.get(name) is None]
    if missing:
        raise InputError(
            f"example {position} of {task.name} has no field {missing[0]!r}; its fields are "
            + ", ".join(row)
        )
    texts = [str(row[name]) for name in fields]
    if kind == "decoder":
        ids = tokenizer.prompt_ids("\n".join(texts), max_length=max_input_length)
        tokens = Tokens(ids, [0] * len(ids))
    else:
        pair = " ".join(texts[1:]) if len(texts) > 1 else None
        tokens = tokenizer.input_ids(texts[0], pair, max_length=max_input_length)
    if not tokens.ids:
        raise InputError(f"example {position} of {task.name} has no token: {texts[0][:60]!r}")
    return tokens


# --------------------------------------------------------------------------------------------
# Masks
# --------------------------------------------------------------------------------------------
def _with_mask(task: PromptedTask, mask: str) -> PromptedTask:
    def read(split: str) -> list[dict]:
        rows = task.read(split)
        if MASK in rows[0]:
            raise InputError(
                f"{task.name} has a field {MASK!r}, which stands for the mask token in templates: "
                "rename it"
            )
        return [row | {MASK: mask} for row in rows]

    return dataclasses.replace(task, read=read)


def _mask_tokens(
    tokenizer: Tokenizer,
    task: PromptedTask,
    row: PromptedRow,
    text: str,
    max_input_length: int,
    single: bool,
) -> tuple[Tokens, list[list[int]]]:
    """The input and the answers' tokens of one row."""
    where = f"template {task.templates[row.template].name!r}, example {row.example} of {task.name}"
    answers: dict[int, str] = {}
    try:
        tokens = tokenizer.masked_ids(text, max_length=max_input_length)
        if not single:
            return tokens, [tokenizer.encode(choice) for choice in row.choices]
        for choice in row.choices:
            id = one_token(tokenizer, text, choice)
            if id in answers:
                raise InputError(
                    f"the answers {answers[id]!r} and {choice!r} are one token, "
                    f"{tokenizer.token(id)!r}"
                )
            answers[id] = choice
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return tokens, [[id] for id in answers]


def one_token(tokenizer: Tokenizer, text: str, choice: str) -> int:
    """The one token of an answer in the mask's place in a text; InputError if there is none."""
    ids = tokenizer.ids_at_mask(text, choice)
    pieces = ", ".join(repr(tokenizer.token(id)) for id in ids)
    if len(ids) != 1:
        raise InputError(
            f"the answer {choice!r} is {len(ids)} tokens at the mask ({pieces}), which holds one: "
            "give the template answers of one token"
        )
    if ids[0] == tokenizer.unk_id:
        raise InputError(f"the answer {choice!r} is unknown to the vocabulary ({pieces})")
    return ids[0]


# --------------------------------------------------------------------------------------------
# Arrays
# --------------------------------------------------------------------------------------------
def _padded_inputs(
    rows: Sequence[Tokens], pad_id: int, *, with_types: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """[R, S] int32 ids, and token types where there is any but 0."""
    width = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), width), pad_id, np.int32)
    types = np.zeros((len(rows), width), np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = row.ids
        types[place, : len(row.types)] = row.types
    return ids, types if with_types and types.any() else None


def _padded_choices(rows: Sequence[Sequence[Sequence[int]]], pad_id: int) -> dict[str, np.ndarray]:
    """``choices`` [R, C, T] int32 and ``choice_mask`` [R, C] bool."""
    count = max(len(row) for row in rows)
    width = max(len(ids) for row in rows for ids in row)
    choices = np.full((len(rows), count, width), pad_id, np.int32)
    for place, row in enumerate(rows):
        for choice, ids in enumerate(row):
            choices[place, choice, : len(ids)] = ids
    mask = np.arange(count) < np.asarray([[len(row)] for row in rows])
    return {"choices": choices, "choice_mask": mask}
