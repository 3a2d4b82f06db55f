"""T5's text-to-text form of labelled rows: ``cola sentence: A cat sat. -> acceptable``.

The name of the task, then every field under its name, then the text (Raffel et al. 2020, appendix
D; t5.data.preprocessors.glue). Lester et al. 2021 leave the task's name away, since the prompt that
is tuned says it: their tasks are called ``taskless_...``. The texts are T5's to the character,
also where a field has spaces at its end.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.prompts import Rendered, TextFormat

UNLABELLED = "<unk>"
"""What T5 writes as the answer of a row of a hidden test set, whose label is -1."""

MAX_INPUT_LENGTH = 512  # tokens, as T5 and Lester et al. trained and evaluated all of these tasks

# The white space of RE2's \s, by which T5 collapses: no vertical tab, nothing beyond ASCII.
_SPACES = re.compile(r"[\t\n\f\r ]+")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")

Render = Callable[[Mapping], Rendered | Sequence[Rendered] | None]


def collapse_spaces(text: str) -> str:
    """Each run of white space becomes one space; the ends are not stripped (t5: _string_join)."""
    return _SPACES.sub(" ", text)


def pad_punctuation(text: str) -> str:
    """A space on both sides of each ASCII punctuation mark, and spaces collapsed.

    As t5.data.preprocessors._pad_punctuation: a final full stop leaves a space behind it.
    """
    return collapse_spaces(_PUNCTUATION.sub(r" \1 ", text))


@dataclass(frozen=True)
class LabelledFields:
    """Rows as ``key: text key: text``, answered by the label's word.

    Attributes:
        keys: the fields in the order in which they are written; T5 sorts them by name, except those
            of MultiRC and WiC.
        words: the labels' words, which are the choices.
        clean: what is done to the whole text at the end.
        kept: fields of the row that a metric needs.
    """

    keys: tuple[str, ...]
    words: tuple[str, ...]
    clean: Callable[[str], str] | None = None
    kept: tuple[str, ...] = ()

    def __call__(self, row: Mapping) -> Rendered:
        text = " ".join(f"{key}: {row[key]}" for key in self.keys)
        label = row["label"]
        return Rendered(
            input=text if self.clean is None else self.clean(text),
            target=UNLABELLED if label == -1 else self.words[label],
            choices=self.words,
            keep={key: row[key] for key in self.kept},
        )


def named(task: str, render: Render) -> Render:
    """The same examples with the task's name, and a space, before the input."""

    def function(row: Mapping) -> list[Rendered]:
        made = render(row)
        several = [made] if isinstance(made, Rendered) else made or []
        return [one._replace(input=f"{task} {one.input}") for one in several]

    return function


def with_and_without_name(
    name: str,
    dataset: Dataset,
    task: str,
    render: Render,
    *,
    ranks: bool = True,
    aliases: tuple[str, ...] = (),
    **details,
) -> tuple[TaskDefinition, TaskDefinition]:
    """The two tasks ``<name>`` and ``taskless_<name>``.

    Args:
        task: what stands before the input of the first, "cola".
        render: a row -> its examples without it.
        ranks: whether the examples have choices.
        aliases: other names of the first; those of the second are the same after ``taskless_``.
        details: further fields of both `TaskDefinition`s.
    """
    details = {"max_input_length": MAX_INPUT_LENGTH, "max_target_length": 16} | details
    with_name = TaskDefinition(
        name,
        dataset,
        formats=(TextFormat("t5", named(task, render), ranks=ranks),),
        aliases=aliases,
        **details,
    )
    without_name = dataclasses.replace(
        with_name,
        name=f"taskless_{name}",
        formats=(TextFormat("taskless", render, ranks=ranks),),
        about=f"{with_name.about}; no task name in front (Lester et al. 2021)",
        aliases=tuple(f"taskless_{alias}" for alias in aliases),
    )
    return with_name, without_name


def renamed(row: Mapping, names: Mapping[str, str]) -> dict:
    """A row with fields renamed, ``{old: new}``, where the new name is not taken."""
    new = {names.get(key, key): value for key, value in row.items()}
    return new | {key: value for key, value in row.items() if key in names.values()}
