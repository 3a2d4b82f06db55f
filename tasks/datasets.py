"""The datasets of the few-shot study, as one table.

A `Dataset` says what a dataset's rows hold and where they may be found; `peft_jax.tasks.sources`
reads them. Field names are those of promptsource's templates, which are those of Hugging Face's
copies. The order of the labels is that of TFDS and Hugging Face, which the templates' answer
choices follow (cb: entailment, contradiction, neutral).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peft_jax.errors import InputError
from peft_jax.tasks.held_out import HeldOut

Expand = Callable[[dict], list[dict]]


@dataclass(frozen=True)
class Published:
    """Files of a form of their own: the challenge's XML, or plain text.

    Attributes:
        splits: the splits that a folder holds in that form; none for another folder.
        read: (folder, split) -> its rows.
    """

    splits: Callable[[Path], tuple[str, ...]]
    read: Callable[[Path, str], list[dict]]


@dataclass(frozen=True)
class Dataset:
    """A dataset, labelled or of texts.

    Attributes:
        name: what the user types, e.g. "rte".
        fields: the fields that every row must have, besides the label.
        labels: the labels' names in order; a row's label is an index into them. Empty: any
            non-negative integer.
        label_field: the field that holds the label in the files; None: the rows have no label.
        tfds: the name in TensorFlow Datasets, or None.
        hub: the dataset and its configuration on the Hugging Face hub, by which a downloaded folder
            is called, or None.
        folder: the name of the folder of files.
        templates: the folder of the promptsource collection that holds the templates.
        template_limit: only the first so many templates are used, or None.
        shots: how many training examples a few-shot draw takes (per class if ``per_class``).
        per_class: whether the draw is made class by class.
        named_labels: whether the names alone tell which answer choice is meant, so that templates
            may list the choices in any order (a user's own folder).
        splits: our split -> the source's, where they are called otherwise (anli: train_r1).
        expand: what makes one row of a file into the rows that it holds (MultiRC nests questions
            and answers in a passage), before anything is checked; None: each is one.
        published: how files are read that hold no rows as such, before any others; None: there are
            no such files.
        sizes: published numbers of rows, by the source's splits.
        download: where the files are had, in one line.
        held_out: the part of train that stands for validation where there is no file for it; None:
            a missing file is an error.
    """

    name: str
    fields: tuple[str, ...]
    labels: tuple[str, ...] = ()
    label_field: str | None = "label"
    tfds: str | None = None
    hub: str | None = None
    folder: str = ""
    templates: str = ""
    template_limit: int | None = None
    shots: int = 32
    per_class: bool = False
    named_labels: bool = False
    splits: Mapping[str, str] = field(default_factory=dict)
    expand: Expand | None = None
    published: Published | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    download: str = ""
    held_out: HeldOut | None = None

    def normalise(self, row: Mapping, position: int, where: str) -> dict:
        """A row of either source -> promptsource's fields, an int ``label`` and an int ``idx``.

        Rows of a dataset without labels have no ``label``.

        Args:
            row: the row as the source has it; bytes are decoded, a nested ``target`` is unpacked.
            position: the row's place in its split, the ``idx`` of a row that has none.
            where: the file and line, or the dataset and split, for messages.

        Raises InputError for a missing field and for a label that is none of the dataset's.
        """
        row = {key: _python_value(value) for key, value in row.items()}
        nested = row.pop("target", None) if "target" not in self.fields else None
        if isinstance(nested, Mapping):  # SuperGLUE's own WSC files
            row |= {key: _python_value(value) for key, value in nested.items()}
        wanted = self.fields if self.label_field is None else (*self.fields, self.label_field)
        missing = [f for f in wanted if row.get(f) is None]
        if missing:
            raise InputError(
                f"{where}: field {missing[0]!r} of {self.name} is missing or null; the row has "
                + ", ".join(row)
            )
        if self.label_field is not None:
            row["label"] = self._label(row.pop(self.label_field), where)
        if "span1_text" in self.fields:
            row |= _spans_as_in_text(row)
        row.setdefault("idx", position)
        if self.named_labels:
            row.setdefault("label_names", self.labels)
        return row

    def _label(self, label, where: str) -> int:
        """A name, a bool or an integer -> the index of the label."""
        if isinstance(label, str) and label in self.labels:
            return self.labels.index(label)
        if isinstance(label, (bool, int)):
            index = int(label)
            if index >= 0 and (index < len(self.labels) or not self.labels):
                return index
            if index == -1:
                raise InputError(f"{where}: the row has no label (-1), as hidden test sets have")
        names = ", ".join(f"{i} {name!r}" for i, name in enumerate(self.labels))
        raise InputError(
            f"{where}: field {self.label_field!r} is {label!r}, no label of {self.name}; "
            f"the labels are {names or 'integers from 0'}"
        )


def _python_value(value):
    """TFDS's bytes as text and numpy scalars as Python numbers; others as they are."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.item() if getattr(value, "shape", None) == () else value


def _spans_as_in_text(row: Mapping) -> dict:
    """The repair that makes "wsc" into "wsc.fixed": spans are written as the text has them.

    A span that is not in the text takes the case of the word at its index and loses line breaks
    and a final full stop; one that is still not there (two names with words between) stays.
    """
    repaired = {}
    for span in ("span1", "span2"):
        text = str(row[f"{span}_text"])
        words, index = row["text"].split(), int(row[f"{span}_index"])
        if text not in row["text"] and text and 0 <= index < len(words):
            same_case = str.lower if words[index][0].islower() else str.upper
            candidate = (same_case(text[0]) + text[1:]).rstrip(".").replace("\n", " ")
            text = candidate if candidate in row["text"] else text
        repaired[f"{span}_text"] = text
    return repaired


_NLI = ("premise", "hypothesis")
_NO_YES = ("False", "True")

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="rte",
            fields=_NLI,
            labels=("entailment", "not_entailment"),
            tfds="super_glue/rte",
            hub="super_glue/rte",
            sizes={"train": 2490, "validation": 277, "test": 3000},
            folder="superglue_rte",
            templates="super_glue/rte",
        ),
        Dataset(
            name="cb",
            fields=_NLI,
            labels=("entailment", "contradiction", "neutral"),
            tfds="super_glue/cb",
            hub="super_glue/cb",
            sizes={"train": 250, "validation": 56, "test": 250},
            folder="superglue_cb",
            templates="super_glue/cb",
        ),
        Dataset(
            name="copa",
            fields=("premise", "choice1", "choice2", "question"),
            labels=("choice1", "choice2"),
            tfds="super_glue/copa",
            hub="super_glue/copa",
            sizes={"train": 400, "validation": 100, "test": 500},
            folder="superglue_copa",
            templates="super_glue/copa",
            template_limit=8,  # the last four ask only for causes or only for effects
        ),
        Dataset(
            name="wic",
            fields=("word", "sentence1", "sentence2"),
            labels=_NO_YES,
            tfds="super_glue/wic",
            hub="super_glue/wic",
            sizes={"train": 5428, "validation": 638, "test": 1400},
            folder="superglue_wic",
            templates="super_glue/wic",
        ),
        Dataset(
            name="wsc",
            fields=("text", "span1_text", "span2_text", "span1_index", "span2_index"),
            labels=_NO_YES,
            tfds="super_glue/wsc.fixed",
            hub="super_glue/wsc.fixed",
            sizes={"train": 554, "validation": 104, "test": 146},
            folder="superglue_wsc",
            templates="super_glue/wsc.fixed",
        ),
        Dataset(
            name="boolq",
            fields=("question", "passage"),
            labels=_NO_YES,
            tfds="super_glue/boolq",
            hub="super_glue/boolq",
            sizes={"train": 9427, "validation": 3270, "test": 3245},
            folder="superglue_boolq",
            templates="super_glue/boolq",
        ),
        Dataset(
            name="sst2",
            fields=("sentence",),
            labels=("negative", "positive"),
            tfds="glue/sst2",
            hub="glue/sst2",
            sizes={"train": 67349, "validation": 872, "test": 1821},
            folder="sst2",
            templates="glue/sst2",
            shots=16,
            per_class=True,
        ),
    )
}

ALIASES = {"wsc.fixed": "wsc"}


def find_dataset(name: str) -> Dataset | None:
    """The dataset of the table with this name or alias; None if it is not in the table."""
    return DATASETS.get(ALIASES.get(name, name))
