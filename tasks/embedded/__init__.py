"""The embedded tasks: a small multitask mixture in the manner of T0, generated, never downloaded.

The training tasks teach the embedded backbone (`peft_jax.pretrain`); the held-out tasks ask for
the same skills under formats, questions and answer words that it never saw, as RTE does of T0.
The world is one (the same people, things and scripts), the rows and the templates are disjoint.

Rows are a function of the task's name alone: a seeded stream of distinct rows, each of which a
checksum of its content sends to "train" or to "validation".
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from random import Random

from peft_jax.errors import InputError
from peft_jax.tasks.embedded import (
    causes,
    comparison,
    coreference,
    grammar,
    inference,
    paraphrase,
    reading,
    sense,
    sentiment,
    topic,
    words,
)

YES_NO = ("yes", "no")
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class EmbeddedTask:
    """One task.

    Attributes:
      name: its key in `TASKS`, and the stem of its template file.
      description: one line, for tables and `--help`.
      labels: the classes in the order of the label's index; None where each row brings its own
        choices, in its fields choice1, choice2, ...
      held_out: never seen by the embedded backbone.
      generate: draws one row: its fields (strings) and "label" (int).
    """

    name: str
    description: str
    labels: tuple[str, ...] | None
    held_out: bool
    generate: Callable[[Random], dict]


def _tasks() -> Iterator[EmbeddedTask]:
    for name, labels, generate, description in (
        ("reading_check", YES_NO, reading.check, "a yes/no question about a short passage"),
        ("reading_who", None, reading.who, "who did it, in a short passage"),
        ("review_sentiment", ("positive", "negative"), sentiment.review, "is a review positive?"),
        ("emotion", sentiment.EMOTION_NAMES, sentiment.emotion, "what somebody felt"),
        ("news_topic", None, topic.news, "the topic of a headline, among four"),
        ("same_topic", YES_NO, topic.same, "are two headlines about one topic?"),
        ("kind_check", YES_NO, words.membership, "is the thing of this kind?"),
        ("kind_choice", None, words.kind, "the kind of two things, among four"),
        ("odd_one_out", None, words.odd_one_out, "the word that does not belong"),
        ("same_meaning", YES_NO, words.same_meaning, "do two words mean the same?"),
        ("counting", words.COUNTS, words.counting, "how many words are of a kind"),
        ("pronoun_who", None, coreference.who, "whom a pronoun stands for"),
        ("paraphrase", YES_NO, paraphrase.paraphrase, "do two sentences mean the same?"),
        ("word_sense", None, sense.definition, "the meaning of a word in a sentence"),
        ("completion", None, causes.completion, "how a sentence goes on"),
        ("reason_check", YES_NO, causes.reason, "does a reason make sense?"),
        ("acceptability", YES_NO, grammar.acceptability, "is the sentence correct English?"),
        ("comparison", None, comparison.comparison, "who is taller, older, richer"),
    ):
        yield EmbeddedTask(name, description, labels, False, generate)
    for name, labels, generate, description in (
        ("entailment", YES_NO, inference.entailment, "does the hypothesis follow? (as RTE)"),
        ("cause_or_effect", None, causes.cause_or_effect, "the cause or the effect (as COPA)"),
        ("same_sense", YES_NO, sense.same, "a word in two sentences, one sense? (as WiC)"),
        ("pronoun_check", YES_NO, coreference.check, "does the pronoun mean this name? (as WSC)"),
        ("complaint", YES_NO, sentiment.complaint, "does a hotel's guest complain?"),
        ("comfort", YES_NO, sentiment.comfort, "does somebody need comfort?"),
        ("same_kind", YES_NO, words.same_kind, "are two things of one kind?"),
        ("department", topic.DEPARTMENT_NAMES, topic.department, "where a store sells a thing"),
    ):
        yield EmbeddedTask(name, description, labels, True, generate)


TASKS: dict[str, EmbeddedTask] = {task.name: task for task in _tasks()}
DEFAULT_COUNTS = {"train": 4_000, "validation": 400}
VALIDATION_SHARE = 8  # one row of eight
_MAX_REPEATS = 20_000  # draws without a new row after which a task counts as exhausted


def rows(name: str, split: str, count: int | None = None) -> list[dict]:
    """The first `count` rows of a split: distinct, always the same, disjoint from the other split.

    Args:
      name: a key of `TASKS`.
      split: "train" or "validation".
      count: how many (default: `DEFAULT_COUNTS`).  A smaller count is a prefix of a larger one.

    Returns:
      New dicts with the task's fields, "label" (int) and "idx" (int, the place in the split).

    Raises:
      InputError: an unknown task or split, or more rows than the task has.
    """
    if name not in TASKS:
        raise InputError(f"no embedded task is called {name!r}; there are: {', '.join(TASKS)}")
    if split not in DEFAULT_COUNTS:
        raise InputError(f"split {split!r} of {name}: an embedded task has train and validation")
    count = DEFAULT_COUNTS[split] if count is None else count
    return [dict(row) for row in _cached_rows(name, split, count)]


@lru_cache(maxsize=64)
def _cached_rows(name: str, split: str, count: int) -> tuple[dict, ...]:
    found = tuple(islice(_stream(name, split), count))
    if len(found) < count:
        raise InputError(
            f"embedded task {name} has only {len(found)} different {split} rows, {count} were asked"
        )
    return found


def _stream(name: str, split: str) -> Iterator[dict]:
    rng, seen, repeats, idx = Random(f"embedded task {name}"), set(), 0, 0
    while repeats < _MAX_REPEATS:
        row = TASKS[name].generate(rng)
        # The label is left out: the same text can't stand in both splits with two answers.
        content = json.dumps({k: v for k, v in row.items() if k != "label"}, sort_keys=True)
        checksum = zlib.crc32(content.encode())
        if content in seen:
            repeats += 1
            continue
        repeats = 0
        seen.add(content)
        if (checksum % VALIDATION_SHARE == 0) == (split == "validation"):
            yield {"idx": idx, **row}
            idx += 1
