"""GLUE in T5's text-to-text form, its mixtures, and the paraphrase tasks under each other's words.

``glue_<task>`` has the task's name before the input and ``taskless_glue_<task>`` has it not; the
aliases are the names that t5 (``glue_<task>_v002``) and Google's prompt-tuning repository give
them. Texts, label words and metrics are those of t5 0.9.4, string by string. All but stsb have
fixed answers, which can be ranked as well as written; stsb writes a number in steps of 0.2.

Rows are read as TFDS and Hugging Face have them, and with the headers of GLUE's own TSV files.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from peft_jax.tasks.catalogue import MixtureDefinition, TaskDefinition
from peft_jax.tasks.datasets import DATASETS as TABLE
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.prompts import Rendered
from peft_jax.tasks.superglue import CAP
from peft_jax.tasks.t5_formats import LabelledFields, renamed, with_and_without_name

GROUP = "GLUE (T5)"
_DOWNLOAD = "gluebenchmark.com/tasks, tensorflow.org/datasets or huggingface.co/datasets"
_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_NLI = ("hypothesis", "premise")  # sorted by name, as T5 writes them
_NLI_LABELS = ("entailment", "neutral", "contradiction")


# --------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------
def _dataset(
    name: str,
    fields: tuple[str, ...],
    labels: tuple[str, ...],
    sizes: tuple[int, ...],
    source: str = "",
    own_names: Mapping[str, str] | None = None,
    splits: Mapping[str, str] = MappingProxyType({}),
    **details,
) -> Dataset:
    """A dataset of GLUE.

    Args:
        sizes: rows of train, validation, test.
        source: what TFDS calls it; "" as ``name``.
        own_names: GLUE's own names of the fields -> ours.
        splits: our split -> the source's, where they are called otherwise.
    """
    expand = None
    if own_names is not None:
        expand = functools.partial(_renamed_rows, own_names | {"index": "idx"})
    source = source or name
    return Dataset(
        name=name,
        fields=fields,
        labels=labels,
        tfds=f"glue/{source}",
        hub=f"glue/{source}",
        folder=f"glue_{source}",
        templates=f"glue/{source}",
        expand=expand,
        splits=splits,
        sizes={
            splits.get(split, split): size
            for split, size in zip(("train", "validation", "test"), sizes, strict=True)
        },
        download=_DOWNLOAD,
        **details,
    )


def _renamed_rows(names: Mapping[str, str], row: dict) -> list[dict]:
    made = renamed(row, names)
    for key in ("idx", "label"):  # a TSV file's numbers are texts
        if isinstance(made.get(key), str) and made[key].isdecimal():
            made[key] = int(made[key])
    return [made]


def _multi_nli(name: str, which: str) -> Dataset:
    """MultiNLI with one of its two validation and test sets, "matched" or "mismatched"."""
    sizes = {"matched": (392702, 9815, 9796), "mismatched": (392702, 9832, 9847)}
    return _dataset(
        name,
        _NLI,
        _NLI_LABELS,
        sizes[which],
        "mnli",
        {"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
        splits={"validation": f"validation_{which}", "test": f"test_{which}"},
    )


COLA = _dataset("cola", ("sentence",), ("unacceptable", "acceptable"), (8551, 1043, 1063))
MRPC = _dataset(
    "mrpc",
    _PAIR,
    ("not_equivalent", "equivalent"),
    (3668, 408, 1725),
    own_names={"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
)
QQP = _dataset(
    "qqp",
    _QUESTIONS,
    ("not_duplicate", "duplicate"),
    (363849, 40430, 390965),
    own_names={"is_duplicate": "label", "id": "idx"},
)
STSB = _dataset(
    "stsb",
    (*_PAIR, "label"),
    (),
    (5749, 1500, 1379),
    own_names={"score": "label"},
    label_field=None,  # a number, no class
)
MNLI = _multi_nli("mnli", "matched")
MNLI_MISMATCHED = _multi_nli("mnli_mismatched", "mismatched")
QNLI = _dataset(
    "qnli",
    ("question", "sentence"),
    ("entailment", "not_entailment"),
    (104743, 5463, 5463),
    own_names={},
)
RTE = _dataset(
    "glue_rte", _PAIR, ("entailment", "not_entailment"), (2490, 277, 3000), "rte", own_names={}
)
WNLI = _dataset("wnli", _PAIR, ("not_entailment", "entailment"), (635, 71, 146), own_names={})
AX = Dataset(
    name="ax",
    fields=_NLI,
    labels=_NLI_LABELS,
    tfds="glue/ax",
    hub="glue/ax",
    folder="glue_ax",
    expand=functools.partial(
        _renamed_rows, {"sentence1": "premise", "sentence2": "hypothesis", "index": "idx"}
    ),
    sizes={"test": 1104},
    download=_DOWNLOAD,
)
DATASETS = (COLA, MRPC, QQP, STSB, MNLI, MNLI_MISMATCHED, QNLI, RTE, WNLI, AX)


# --------------------------------------------------------------------------------------------
# Texts and tasks
# --------------------------------------------------------------------------------------------
def similarity(row: Mapping) -> Rendered:
    """STS-B's pair -> its score, rounded to 0.2; t5.data.preprocessors.stsb.

    T5's own score is of the rounded targets; ``keep["score"]`` is the one that people gave.
    """
    score = np.float32(row["label"])
    rounded = np.round(score * np.float32(5)) / np.float32(5)
    return Rendered(
        input=f"sentence1: {row['sentence1']} sentence2: {row['sentence2']}",
        target=f"{rounded:.1f}",
        keep={"score": float(row["label"])},
    )


def _labelled(
    name: str,
    dataset: Dataset,
    keys: tuple[str, ...],
    metrics: tuple[str, ...],
    asked: str,
    *,
    task: str = "",
    aliases: tuple[str, ...] = (),
    **details,
) -> tuple[TaskDefinition, ...]:
    return with_and_without_name(
        f"glue_{name}",
        dataset,
        task or name,
        LabelledFields(keys, dataset.labels),
        group=GROUP,
        metrics=metrics,
        about=f"{asked} (Raffel et al. 2020, appendix D)",
        aliases=(*aliases, f"glue_{name}_v002", f"glue_{name}_v200"),
        **details,
    )


def _under_words_of(name: str, source: Dataset, task: TaskDefinition) -> tuple[TaskDefinition, ...]:
    """The task ``name``, answered in the label words of ``source``, which a model has learned."""
    return with_and_without_name(
        f"glue_{name}_from_{source.name}",
        task.dataset,
        name,
        LabelledFields(task.dataset.fields, source.labels),
        group=GROUP,
        metrics=task.metrics,
        about=f"{name}'s rows in {source.name}'s words, to evaluate what was trained on "
        f"{source.name} (Lester et al. 2021, section 5)",
        aliases=(f"glue_{name}_from_{source.name}_v002",),
    )


_PARAPHRASE = ("f1", "accuracy")
_MRPC = _labelled("mrpc", MRPC, _PAIR, _PARAPHRASE, "Do the sentences mean the same?")
_QQP = _labelled("qqp", QQP, _QUESTIONS, _PARAPHRASE, "Do the questions ask the same?")

TASKS: tuple[TaskDefinition, ...] = (
    *_labelled("cola", COLA, ("sentence",), ("matthews",), "Is it English grammar?"),
    *_labelled("sst2", TABLE["sst2"], ("sentence",), ("accuracy",), "Does the review praise?"),
    *_MRPC,
    *_QQP,
    *with_and_without_name(
        "glue_stsb",
        STSB,
        "stsb",
        similarity,
        ranks=False,
        group=GROUP,
        metrics=("pearson", "spearman"),
        about="How alike do the sentences mean, 0 to 5? (Raffel et al. 2020, section 2.4)",
        aliases=("glue_stsb_v002", "glue_stsb_v200"),
    ),
    *_labelled(
        "mnli",
        MNLI,
        _NLI,
        ("accuracy",),
        "Does the premise entail the hypothesis? Validation: the genres of training",
        aliases=("glue_mnli_matched", "glue_mnli_matched_v002", "glue_mnli_matched_v200"),
    ),
    *_labelled(
        "mnli_mismatched",
        MNLI_MISMATCHED,
        _NLI,
        ("accuracy",),
        "MNLI, evaluated on genres that training has not",
        task="mnli",
    ),
    *_labelled(
        "qnli",
        QNLI,
        ("question", "sentence"),
        ("accuracy",),
        "Does the sentence answer the question?",
    ),
    *_labelled("rte", RTE, _PAIR, ("accuracy",), "Does the first sentence entail the second?"),
    *_labelled(
        "wnli", WNLI, _PAIR, ("accuracy",), "Is the pronoun resolved rightly? T5 leaves it out"
    ),
    *_labelled(
        "ax",
        AX,
        _NLI,
        ("matthews",),
        "MNLI's question of a diagnostic set; test rows only",
        task="mnli",
        evaluation_split="test",
    ),
    *_under_words_of("qqp", MRPC, _QQP[0]),
    *_under_words_of("mrpc", QQP, _MRPC[0]),
)

# In the order of t5.data.glue_utils, which counts 8,551, 67,349, 3,668, 363,849, 5,749, 392,702,
# 104,743 and 2,490 examples. WNLI is left out: Raffel et al. train on WSC for it.
_TRAINED = tuple(
    f"glue_{name}" for name in ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")
)
MIXTURES = (
    MixtureDefinition(
        "glue",
        _TRAINED,
        cap=CAP,
        about="GLUE's training sets in proportion to their examples; without WNLI",
    ),
    MixtureDefinition(
        "glue_equal", _TRAINED, rate="equal", about="GLUE's training sets alike; without WNLI"
    ),
    MixtureDefinition(
        "glue_v002_proportional", _TRAINED, cap=CAP, about="the name that t5 gives to glue"
    ),
)
