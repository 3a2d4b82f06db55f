"""Underspecified demonstrations: which of two features does a model take from examples?

Si et al. 2023, "Measuring Inductive Biases of In-Context Learning with Underspecified
Demonstrations" (ACL; github.com/NoviScl/AmbigPrompt). Every demonstration has two features h1 and
h2, both true (label 1) or both false (label 0), so that nothing says which of them is meant. The
tests have one of the two; an answer then agrees with h1 or with h2, and the share of answers that
agree with h1 is the h1-accuracy, one less the h2-accuracy.

`Bias` has the demonstrations and tests of one of the paper's 22 pairs (`feature_pairs.PAIRS`), or
of any two features (`text_features`) of any dataset. Its prompts are plain, or changed by one of
the paper's `INTERVENTIONS`: an instruction, label words that mean something, explanations, or
demonstrations that do tell the features apart. Each pair is a task ``underspecified_<pair>``, too,
and with an intervention ``underspecified_<pair>.<intervention>``.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.feature_pairs import PAIRS, PREFIX, FeaturePair, find_pair
from peft_jax.tasks.prompted import find_rows
from peft_jax.tasks.prompts import Rendered, TextFormat
from peft_jax.tasks.text_features import find_feature

PLAIN = "none"
INTERVENTIONS = (
    PLAIN,
    "instruction_h1",
    "instruction_h2",
    "verbalizer_h1",
    "verbalizer_h2",
    "explanation_h1",
    "explanation_h2",
    "disambiguation_h1",
    "disambiguation_h2",
)
"""What is done to make a model take one feature rather than the other."""

_SHUFFLE_SEED = 2022  # run.py's, for the order of the demonstrations
_DISAMBIGUATION = "disambiguation"


# --------------------------------------------------------------------------------------------
# What a prompt looks like
# --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Style:
    """How a prompt is written under an intervention.

    Attributes:
        front: in front of everything, or "".
        asks: behind an input.
        answers: the texts for 0 and 1.
    """

    front: str = ""
    asks: str = "Label:"
    answers: tuple[str, str] = ("0", "1")

    def query(self, text: str) -> str:
        """An input that is to be answered."""
        return f"Input: {text.strip()} {self.asks}"

    def solved(self, text: str, label: int) -> str:
        """An input with its answer."""
        return f"{self.query(text)} {self.answers[label]}"


def style_of(pair: FeaturePair, intervention: str) -> Style:
    """How an intervention writes a pair's prompts.

    Raises InputError for an unknown one, and for one that the pair has no words for (two features
    of the user's own have neither instruction, label words nor explanations).
    """
    if intervention not in INTERVENTIONS:
        raise InputError(
            f"no intervention {intervention!r}; {tree.nearest(intervention, INTERVENTIONS)}"
        )
    kind, _, which = intervention.partition("_")
    if kind in (PLAIN, _DISAMBIGUATION):
        return Style()
    hypothesis = getattr(pair, which)
    if not hypothesis.decide:
        raise InputError(
            f"{intervention}: {pair.name} has no words for it, as the paper's pairs have; take "
            f"{PLAIN} or {_DISAMBIGUATION}_{which}"
        )
    if kind == "instruction":
        return Style(front=f"{pair.given}, decide {hypothesis.decide}. Answer with 1 or 0.")
    if kind == "verbalizer":
        return Style(asks=hypothesis.asks, answers=hypothesis.words)
    zero, one = (
        f"{says} Therefore, the answer is {label}." for label, says in enumerate(hypothesis.says)
    )
    return Style(answers=(zero, one))


# --------------------------------------------------------------------------------------------
# Demonstrations and tests
# --------------------------------------------------------------------------------------------
class Marked(NamedTuple):
    """A text with its two features, 0 or 1 each."""

    text: str
    h1: int
    h2: int


class Prompts(NamedTuple):
    """What a model is asked.

    Attributes:
        style: how, with the two answers that are ranked.
        demonstrations: the solved examples, in order.
        tests: examples of which h1 and h2 disagree.
    """

    style: Style
    demonstrations: tuple[str, ...]
    tests: tuple[Marked, ...]

    def text(self, query: str, skip: int = 0) -> str:
        """The prompt for an input.

        Args:
            query: the input, a test's text or one without content ("N/A").
            skip: so many demonstrations are left out, from the front, for want of room.
        """
        front = [self.style.front] if self.style.front else []
        parts = [*front, *self.demonstrations[skip:], self.style.query(query)]
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Bias:
    """Demonstrations that agree with both features, and tests that tell them apart.

    Attributes:
        pair: the two features.
        agreeing: examples with h1 = h2, to demonstrate with.
        disagreeing: examples with one of them, to test with.
    """

    pair: FeaturePair
    agreeing: tuple[Marked, ...]
    disagreeing: tuple[Marked, ...]

    def prompts(
        self,
        seed: int,
        intervention: str = PLAIN,
        *,
        demonstrations: int = 16,
        tests: int = 1200,
    ) -> Prompts:
        """The demonstrations of a seed, and the tests.

        As in run.py of the paper: half of the demonstrations are the (1, 1) examples from number
        ``seed`` on, half the (0, 0) ones; of the disambiguation, a quarter each these and the
        (1, 0) and (0, 1) tests from number ``seed`` on, which then are no tests, labelled by the
        feature that is meant. They stand in one shuffled order. Past the end, counting goes on at
        the start (run.py takes fewer).

        Args:
            demonstrations: how many in all.
            tests: how many at most, as many (1, 0) as (0, 1), from the first.

        Raises InputError if there are not so many examples of a kind, or the intervention is none.
        """
        style = style_of(self.pair, intervention)
        kind, _, which = intervention.partition("_")
        told_apart = kind == _DISAMBIGUATION
        step = 4 if told_apart else 2
        if demonstrations < step or demonstrations % step or tests < 2 or tests % 2:
            raise InputError(
                f"{demonstrations} demonstrations and {tests} tests: {intervention} needs multiples"
                f" of {step} and of 2"
            )
        each = demonstrations // step
        kinds = [(1, 1), (0, 0), (1, 0), (0, 1)][:step]
        shown = [marked for h1, h2 in kinds for marked in self._from(h1, h2, seed, each)]
        random.Random(_SHUFFLE_SEED).shuffle(shown)
        label = "h2" if which == "h2" else "h1"
        solved = tuple(style.solved(each.text, getattr(each, label)) for each in shown)
        texts = {marked.text.strip() for marked in shown}
        rows = [marked for marked in self.disagreeing if marked.text.strip() not in texts]
        sides = [[row for row in rows if row.h1 == h1][: tests // 2] for h1 in (1, 0)]
        if not all(sides):
            raise InputError(
                f"{self.pair.name}: {len(sides[0])} tests with h1 alone and {len(sides[1])} with "
                "h2 alone; both are needed"
            )
        return Prompts(style, solved, tuple(row for side in sides for row in side))

    def _from(self, h1: int, h2: int, start: int, count: int) -> list[Marked]:
        pool = self.agreeing if h1 == h2 else self.disagreeing
        rows = [marked for marked in pool if (marked.h1, marked.h2) == (h1, h2)]
        if len(rows) < count:
            raise InputError(
                f"{self.pair.name}: {count} examples with h1={h1} and h2={h2} are to be shown, and "
                f"there are {len(rows)}"
            )
        return [rows[(start + i) % len(rows)] for i in range(count)]


def read_bias(name: str, directory: str | Path) -> Bias:
    """A pair of the paper, from its files.

    Args:
        name: of the pair, with or without "underspecified_".
        directory: holds the paper's own ``<pair>.json``, or a folder ``underspecified_<pair>`` with
            the splits train (to demonstrate with) and validation (to test with); or is that folder.
            A row has the text ``question`` and ``split``, "h1_h2".

    Raises InputError if there is none of them, or for a row of another form (with its place).
    """
    pair = find_pair(name)
    file = _json_file(pair, directory)
    if file is not None:
        return _of_json(pair, file)
    task = find_rows(PREFIX + pair.name, directory=directory)
    shown, tests = (
        [_stored(row, getattr(row, "where", "a row")) for row in task.read(split)]
        for split in ("train", "validation")
    )
    return _bias(pair, shown, tests)


def has_files(name: str, directory: str | Path) -> bool:
    """Whether `read_bias` finds files of a pair below a directory."""
    pair = find_pair(name)
    if _json_file(pair, directory) is not None:
        return True
    return any((Path(directory) / place).is_dir() for place in (PREFIX + pair.name, pair.name))


def _json_file(pair: FeaturePair, directory: str | Path) -> Path | None:
    for place in (Path(directory), Path(directory) / "testsets_ambiguous"):
        if (place / f"{pair.name}.json").is_file():
            return place / f"{pair.name}.json"
    return None


def bias_of(pair: FeaturePair, train: Iterable[Mapping], test: Iterable[Mapping]) -> Bias:
    """Two features of the rows of any dataset.

    Args:
        pair: one of the paper's, whose fields the rows have, or of the user's own features::

                FeaturePair(
                    "mine",
                    ("text",),
                    Hypothesis("equals(label, 1)"),
                    Hypothesis("longer(text, 30)"),
                )

        train: rows to demonstrate with, those of which the features agree.
        test: rows to test with, those of which they disagree.

    Rows of which a feature is neither true nor false are left out. Raises InputError for a row
    without a field that is read.
    """
    features = (find_feature(pair.h1.feature), find_feature(pair.h2.feature))

    def marked(rows: Iterable[Mapping]) -> list[Marked]:
        found = []
        for row in rows:
            values = [feature(row) for feature in features]
            if None not in values:
                found.append(Marked(_joined(row, pair.fields), *map(int, values)))
        return found

    return _bias(pair, marked(train), marked(test))


def _joined(row: Mapping, fields: Sequence[str]) -> str:
    for field in fields:
        if not isinstance(row.get(field), str):
            raise InputError(f"the row has no text {field!r}; its fields are {', '.join(row)}")
    return "\n".join(row[field] for field in fields)


def _bias(pair: FeaturePair, shown: Sequence[Marked], tests: Sequence[Marked]) -> Bias:
    agreeing = tuple(row for row in shown if row.h1 == row.h2)
    return Bias(pair, agreeing, tuple(row for row in tests if row.h1 != row.h2))


def _of_json(pair: FeaturePair, file: Path) -> Bias:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        parts = [held[f"demos_{both}_{both}"] for both in (1, 0)]
        parts += [held[f"testset_{h1}_{1 - h1}"] for h1 in (1, 0)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not a file of the paper (an object with demos_1_1, demos_0_0, testset_1_0 "
            f"and testset_0_1): {error}"
        ) from error
    rows = [
        [_stored(row, f"{file}, row {i}") for i, row in enumerate(first + second)]
        for first, second in (parts[:2], parts[2:])
    ]
    return _bias(pair, *rows)


def _stored(row: Any, where: str) -> Marked:
    """A row of the paper's files, which say the features in ``split``."""
    features = row.get("split") if isinstance(row, Mapping) else None
    if features not in ("1_1", "0_0", "1_0", "0_1") or not isinstance(row.get("question"), str):
        raise InputError(
            f"{where}: a text 'question' and a 'split' of 1_1, 0_0, 1_0 or 0_1 are needed; the row "
            f"is {row!r:.120}"
        )
    return Marked(row["question"], int(features[0]), int(features[2]))


# --------------------------------------------------------------------------------------------
# The tasks
# --------------------------------------------------------------------------------------------
def _format(pair: FeaturePair, intervention: str) -> TextFormat:
    style = style_of(pair, intervention)
    by: Literal["h1", "h2"] = "h2" if intervention.endswith("h2") else "h1"

    def render(row: Mapping) -> Rendered:
        marked = _stored(row, f"a row of {pair.name}")
        query = style.query(marked.text)
        label = getattr(marked, by)
        return Rendered(
            f"{style.front}\n\n{query}" if style.front else query,
            style.answers[label],
            choices=style.answers,
            keep={"h1": marked.h1, "h2": marked.h2, "label": label},
        )

    return TextFormat(intervention, render, ranks=True)


def _definition(pair: FeaturePair) -> TaskDefinition:
    dataset = Dataset(
        PREFIX + pair.name,
        fields=("question", "split"),
        labels=("0", "1"),
        label_field="answer",
        folder=PREFIX + pair.name,
        download=f"github.com/NoviScl/AmbigPrompt, testsets_ambiguous/{pair.name}.json: the rows of"
        " demos_* as train.jsonl, of testset_* as validation.jsonl",
    )
    return TaskDefinition(
        dataset.name,
        dataset,
        group="Underspecified demonstrations",
        formats=(_format(pair, PLAIN),),
        metrics=("h_accuracy",),
        about=f"h1: {pair.h1.feature}, h2: {pair.h2.feature} (Si et al. 2023)",
        max_input_length=512,
    )


TASKS: tuple[TaskDefinition, ...] = tuple(_definition(pair) for pair in PAIRS.values())


def resolve(name: str, directory: str | Path | None) -> TaskDefinition | None:
    """``underspecified_<pair>.<intervention>``: a pair's task with changed examples.

    Raises InputError for an unknown intervention, and for disambiguation, which changes only which
    examples are shown.
    """
    stem, _, intervention = name.partition(".")
    pair = PAIRS.get(stem.removeprefix(PREFIX)) if stem.startswith(PREFIX) else None
    if pair is None or not intervention:
        return None
    if intervention.startswith(_DISAMBIGUATION):
        raise InputError(f"{name}: {intervention} is of demonstrations, and changes no task")
    return replace(_definition(pair), name=name, formats=(_format(pair, intervention),))
