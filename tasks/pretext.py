"""PPT's pretext tasks from any folder of text (Gu et al. 2022, section 3; github.com/thu-coai/PPT).

Before a soft prompt is tuned on a few examples it is trained on tasks of the same form that are
made from plain text:

======================  ============================================================================
``ppt_next_sentence``   two sentences: neighbours (yes), of one document (maybe), of two (no)
``ppt_multiple_choice`` a sentence and six: which stands beside it? One other is of its document,
                        four are of others
``ppt_single_sentence`` a sentence and the label that a model or a person gave it, in five degrees
``ppt_unified``         the multiple choice with 2 to 16 options: the one form of Unified PPT
======================  ============================================================================

The texts that a model reads of them, and the few-shot tasks in the same form, are in
`peft_jax.tasks.ppt`.

Every row is a function of the documents, the seed and the row's index. The documents of validation
are in no row of training, nor in an option (`peft_jax.tasks.documents`). What differs from the
published code: texts are cut into sentences and not into lines only, a short one is joined to its
neighbour instead of its document being left out, and each row draws its own other documents.

The tasks read a folder of text as it is (`published`). For other seeds, limits by tokens and texts
that take long to read, `write` makes files of rows.
"""

import contextlib
import functools
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from peft_jax.errors import InputError
from peft_jax.tasks.datasets import Published
from peft_jax.tasks.documents import read_documents, split_of, split_sentences
from peft_jax.tasks.files import ending_of, read_file

Cut = Callable[[str, int], str]
"""(text, limit in tokens) -> what of the text is kept."""
Units = Sequence[str]
"""The sentences of a document, in order."""
Row = dict
Make = Callable[[Sequence[Units], int, int, random.Random, Cut], Row | None]
"""(documents, document, place in it, random numbers, cut) -> a row, or None where there is none."""

ADJACENT, SAME_DOCUMENT, OTHER_DOCUMENT = range(3)
"""The classes of a pair, in the order of `PAIR_WORDS`."""
PAIR_WORDS = ("yes", "maybe", "no")
DEGREES = ("terrible", "bad", "maybe", "good", "great")
THRESHOLDS = (0.95, 0.5, 0.5, 0.5, 0.7)
"""How sure a labeller must be of each degree (the published tools/infer_roberta.py)."""
LETTERS = "ABCDEFGHIJKLMNOP"

LARGEST_RATIO = 100
"""A pair is left out if one of its sentences is so many times longer than the other."""
FEWEST_UNITS = 5
"""A document of fewer sentences makes no rows of its own."""


class Options(NamedTuple):
    """Where the options come from, and of how many tokens, as the published code has it."""

    query_limit: int
    option_limit: int
    same_document: int
    other_documents: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many they are with the right one."""
        return 1 + self.same_document + sum(self.other_documents)


SIX_OPTIONS = Options(389, 86, 1, (1, 1, 1, 1))
UNIFIED_OPTIONS: Mapping[int, Options] = {
    options.total: options
    for options in (
        Options(400, 50, 1, (0, 0, 0, 0)),
        Options(400, 50, 1, (1, 0, 0, 0)),
        Options(400, 50, 1, (1, 1, 0, 0)),
        Options(400, 40, 1, (1, 1, 1, 0)),
        Options(300, 40, 1, (1, 1, 1, 1)),
        Options(250, 30, 2, (1, 1, 1, 1)),
        Options(200, 30, 2, (2, 1, 1, 1)),
        Options(200, 30, 2, (2, 2, 1, 1)),
        Options(150, 20, 2, (2, 2, 2, 1)),
        Options(150, 20, 3, (2, 2, 2, 1)),
        Options(150, 20, 3, (2, 2, 2, 2)),
        Options(150, 20, 3, (3, 2, 2, 2)),
        Options(150, 20, 3, (3, 3, 2, 2)),
        Options(150, 20, 3, (3, 3, 3, 2)),
        Options(150, 20, 3, (3, 3, 3, 3)),
    )
}
"""2 to 16 options: more of them, and then of fewer tokens each."""
PAIR_LIMIT = 410
"""Tokens of a pair: 512 less a prompt of 100, the blank and EOS."""
SENTENCE_LIMIT = 366


def cut_words(text: str, limit: int) -> str:
    """The first words of a text, as many as make about ``limit`` tokens, three words in four.

    A text that is short enough stays as it is.
    """
    words = text.split()
    most = max(1, limit * 3 // 4)
    return text if len(words) <= most else " ".join(words[:most])


def cut_tokens(tokenizer) -> Cut:
    """A `Cut` that counts the tokens of a `peft_jax.tokenizer.Tokenizer`."""

    def cut(text: str, limit: int) -> str:
        ids = tokenizer.encode(text)
        return text if len(ids) <= limit else tokenizer.decode(ids[:limit])

    return cut


# --------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------
def next_sentence_row(
    documents: Sequence[Units], document: int, place: int, rng: random.Random, cut: Cut
) -> Row | None:
    """``first``, ``second`` and ``label``: the class, each of the three with probability 1/3.

    A pair that is longer than `PAIR_LIMIT` is cut, both parts in proportion. None where one part is
    more than `LARGEST_RATIO` times longer than the other.
    """
    units = documents[document]
    label = rng.randrange(3)
    if label == ADJACENT:
        second = units[_neighbour(units, place, rng)]
    elif label == SAME_DOCUMENT:
        (other,) = _far_places(units, place, 1, rng)
        second = units[other]
    else:
        (other,) = _other_documents(documents, document, (1,), rng)
        second = rng.choice(documents[other])
    lengths = len(units[place].split()), len(second.split())
    if max(lengths) > LARGEST_RATIO * min(lengths):
        return None
    first, second = _cut_pair(units[place], second, cut)
    return {"first": first, "second": second, "label": label}


def multiple_choice_row(
    documents: Sequence[Units],
    document: int,
    place: int,
    rng: random.Random,
    cut: Cut,
    options: Options = SIX_OPTIONS,
) -> Row | None:
    """``query``, ``options`` in random order, and ``label``: which is the query's neighbour.

    None where two options are the same text, so that the right one could not be told.
    """
    units = documents[document]
    found = [units[_neighbour(units, place, rng)]]
    found += [units[p] for p in _far_places(units, place, options.same_document, rng)]
    counts = [count for count in options.other_documents if count]
    for other, count in zip(
        _other_documents(documents, document, counts, rng), counts, strict=True
    ):
        found += rng.sample(documents[other], count)
    order = rng.sample(range(len(found)), len(found))
    texts = [cut(found[i], options.option_limit) for i in order]
    if len(set(texts)) < len(texts):
        return None
    query = cut(units[place], options.query_limit)
    return {"query": query, "options": texts, "label": order.index(0)}


def unified_row(
    documents: Sequence[Units], document: int, place: int, rng: random.Random, cut: Cut
) -> Row | None:
    """A `multiple_choice_row` of 2 to 16 options, every number alike.

    None where the document has too few sentences away from the query for so many of its own.
    """
    options = UNIFIED_OPTIONS[rng.randint(2, 16)]
    if len(documents[document]) < options.same_document + 3:
        return None
    return multiple_choice_row(documents, document, place, rng, cut, options)


MAKERS: Mapping[str, Make] = {
    "ppt_next_sentence": next_sentence_row,
    "ppt_multiple_choice": multiple_choice_row,
    "ppt_unified": unified_row,
}


def pretext_rows(
    task: str,
    documents: Iterable[Units],
    *,
    seed: int = 0,
    cut: Cut = cut_words,
    limit: int | None = None,
) -> list[Row]:
    """The rows of a task: one for each sentence of each document of `FEWEST_UNITS` and more.

    Args:
        task: of `MAKERS`.
        documents: the sentences of each; of one split alone.
        seed: row i is drawn with random numbers of (seed, task, i).
        cut: keeps sentences within the published limits.
        limit: only so many rows; those of sentences that are chosen at random.

    Raises InputError for another task, and where there are too few documents.
    """
    if task not in MAKERS:
        raise InputError(f"{task!r} is made from no text; one of {', '.join(MAKERS)}")
    kept = [units for units in documents if len(units) >= FEWEST_UNITS]
    needed = 2 if task == "ppt_next_sentence" else 5
    if len(kept) < needed:
        raise InputError(
            f"{task} needs {needed} documents of {FEWEST_UNITS} sentences and more in each split, "
            f"there are {len(kept)}"
        )
    places = _places(kept)
    chosen: Sequence[int] = range(len(places))
    if limit is not None and limit < len(places):
        # Some places make no row: a few more are tried, in an order that the limit does not change.
        chosen = random.Random(f"{seed} {task}").sample(chosen, len(places))
    rows: list[Row] = []
    for index in chosen:
        row = _row(task, kept, places, index, seed, cut)
        if row is not None:
            rows.append(row)
        if len(rows) == limit:
            break
    return rows


def _places(documents: Sequence[Units]) -> list[tuple[int, int]]:
    """(document, place in it) of every sentence: what a row's index is an index of."""
    return [(d, p) for d, units in enumerate(documents) for p in range(len(units))]


def _row(
    task: str,
    documents: Sequence[Units],
    places: Sequence[tuple[int, int]],
    index: int,
    seed: int,
    cut: Cut,
) -> Row | None:
    rng = random.Random(f"{seed} {task} {index}")
    row = MAKERS[task](documents, *places[index], rng, cut)
    return None if row is None else row | {"idx": index}


def read_pretext(
    task: str,
    folder: str | Path,
    split: str,
    *,
    seed: int = 0,
    split_units: Callable[[str], Units] = split_sentences,
    cut: Cut = cut_words,
    limit: int | None = None,
) -> list[Row]:
    """The rows of a task from a folder of text; see `read_documents` and `pretext_rows`.

    Args:
        split_units: what makes a text into the parts that pairs and options are made of;
            `peft_jax.tasks.documents.split_lines` is the published code's.
    """
    documents = map(split_units, read_documents(folder, split, seed=seed))
    return pretext_rows(task, documents, seed=seed, cut=cut, limit=limit)


def _neighbour(units: Units, place: int, rng: random.Random) -> int:
    """The place before or behind, alike where there are both."""
    if place == 0:
        return 1
    if place == len(units) - 1:
        return place - 1
    return place + (1 if rng.random() < 0.5 else -1)


def _far_places(units: Units, place: int, count: int, rng: random.Random) -> list[int]:
    """Different places that are neither the given one nor beside it."""
    far = [p for p in range(len(units)) if abs(p - place) > 1]
    return rng.sample(far, count)


def _other_documents(
    documents: Sequence[Units], document: int, counts: Sequence[int], rng: random.Random
) -> list[int]:
    """Different documents other than the given one, as many as counts."""
    drawn = rng.sample(range(len(documents) - 1), len(counts))
    return [d + (d >= document) for d in drawn]


def _cut_pair(first: str, second: str, cut: Cut) -> tuple[str, str]:
    words = len(first.split()), len(second.split())
    if sum(words) * 4 // 3 <= PAIR_LIMIT:
        return first, second
    share = PAIR_LIMIT * words[0] // sum(words)
    return cut(first, max(share, 1)), cut(second, max(PAIR_LIMIT - share, 1))


# --------------------------------------------------------------------------------------------
# Single sentences
# --------------------------------------------------------------------------------------------
def labelled_rows(
    sentences: Sequence[str],
    label: Callable[[Sequence[str]], np.ndarray],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    balanced: bool = False,
    cut: Cut = cut_words,
    batch: int = 256,
) -> list[Row]:
    """``sentence``, ``label`` and ``score`` of the sentences that a labeller is sure of.

    Args:
        label: texts -> probabilities [n, classes] float, classes as many as thresholds.
        thresholds: a sentence stays if the probability of its likeliest class is higher.
        balanced: whether only as many of each class stay as the rarest has, the first of each.

    Raises InputError if the labeller gives another shape.
    """
    rows: list[Row] = []
    for start in range(0, len(sentences), batch):
        part = [cut(text, SENTENCE_LIMIT) for text in sentences[start : start + batch]]
        probabilities = np.asarray(label(part))
        if probabilities.shape != (len(part), len(thresholds)):
            raise InputError(
                f"the labeller gave {probabilities.shape} probabilities for {len(part)} sentences "
                f"of {len(thresholds)} classes"
            )
        best = probabilities.argmax(-1)
        scores = probabilities[np.arange(len(part)), best]
        rows += [
            {"sentence": text, "label": int(k), "score": float(score)}
            for text, k, score in zip(part, best, scores, strict=True)
            if score > thresholds[k]
        ]
    return balance(rows, len(thresholds)) if balanced else rows


def balance(rows: Sequence[Row], classes: int) -> list[Row]:
    """The first rows of each class, as many as the rarest of the classes has, in their order."""
    counts = np.bincount([row["label"] for row in rows], minlength=classes)
    taken = np.zeros(classes, int)
    kept = []
    for row in rows:
        taken[row["label"]] += 1
        if taken[row["label"]] <= counts.min():
            kept.append(row)
    return kept


def sure_rows(row: Mapping) -> list[dict]:
    """An `expand`: a row of labels from elsewhere, if its ``score`` is above its threshold.

    ``text`` is taken for ``sentence``; rows without a score stay.
    """
    made = dict(row)
    if "sentence" not in made and "text" in made:
        made["sentence"] = made.pop("text")
    label = made.get("label")
    label = DEGREES.index(label) if label in DEGREES else label
    if isinstance(label, int) and 0 <= label < len(THRESHOLDS) and "score" in made:
        return [made] if made["score"] > THRESHOLDS[label] else []
    return [made]


# --------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------
def write(
    task: str,
    folder: str | Path,
    output: str | Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    cut: Cut = cut_words,
) -> dict[str, int]:
    """Writes train.jsonl and validation.jsonl of a task that is made from a folder of text.

    Args: as of `read_pretext`; ``limit`` is of the training rows, a twentieth of it of validation.

    Returns the number of rows of each. Raises InputError as `read_pretext`.
    """
    limits = {"train": limit, "validation": None if limit is None else max(1, limit // 20)}
    made = {
        split: read_pretext(task, folder, split, seed=seed, cut=cut, limit=most)
        for split, most in limits.items()
    }
    Path(output).mkdir(parents=True, exist_ok=True)
    for split, rows in made.items():
        with open(Path(output) / f"{split}.jsonl", "w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {split: len(rows) for split, rows in made.items()}


def published(task: str) -> Published:
    """A folder of plain text as the rows of a task, with documents held out for validation.

    Plain text is ``.txt`` files, or rows with a field ``text`` and no label.
    """

    def splits(folder: Path) -> tuple[str, ...]:
        files = sorted(file for file in folder.iterdir() if ending_of(file) is not None)
        if not any(_is_plain_text(file) for file in files[:1]):
            return ()
        others = {split_of(Path(file.name)) for file in files}
        return ("train", "validation", *(("test",) if "test" in others else ()))

    return Published(splits, functools.lru_cache(maxsize=4)(functools.partial(read_pretext, task)))


def _is_plain_text(file: Path) -> bool:
    if ending_of(file) == "txt":
        return True
    with contextlib.suppress(InputError):
        row = next(iter(read_file(file)), None)
        return isinstance(row, Mapping) and "text" in row and "label" not in row
    return False
