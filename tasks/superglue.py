"""SuperGLUE in T5's text-to-text form, and its mixtures.

``super_glue_<task>`` has the task's name before the input and ``taskless_super_glue_<task>`` has it
not; the aliases are the names that t5 (``super_glue_<task>_v102``) and Google's prompt-tuning
repository give them. The texts, the label words and the metrics are those of t5 0.9.4, string by
string. boolq, cb, copa, multirc, rte and wic have fixed answers, which can be ranked as well as
written; record and wsc are open: the answer is a name from the text.

wsc is T5's "simple" form: the model reads a sentence with ``*the pronoun*`` marked and writes what
it stands for. Rows that offer a wrong referent can be asked but not taught.
"""

import re
from collections.abc import Mapping

from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import MixtureDefinition, TaskDefinition
from peft_jax.tasks.datasets import DATASETS as TABLE
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.prompts import Rendered
from peft_jax.tasks.t5_formats import (
    UNLABELLED,
    LabelledFields,
    renamed,
    with_and_without_name,
)

GROUP = "SuperGLUE (T5)"
_DOWNLOAD = "super.gluebenchmark.com/tasks, tensorflow.org/datasets or huggingface.co/datasets"


# --------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------
def multirc_rows(row: dict) -> list[dict]:
    """A passage of MultiRC's own files -> a row per answer; a flat row (Hugging Face, TFDS) -> it.

    The rows have paragraph, question, answer, label (-1: hidden), ``group``, the question's
    "passage-question" number, and ``idx``, the answer's.
    """
    passage = row.get("passage")
    if not isinstance(passage, Mapping):
        return [row | _indices(row.get("idx"), ("paragraph", "question"), "answer")]
    return [
        {
            "paragraph": passage["text"],
            "question": question["question"],
            "answer": answer["text"],
            "label": answer.get("label", -1),
            "group": f"{row['idx']}-{question['idx']}",
            "idx": answer["idx"],
        }
        for question in passage["questions"]
        for answer in question["answers"]
    ]


def record_rows(row: dict) -> list[dict]:
    """A passage of ReCoRD's own files -> a row per query; a flat row (Hugging Face, TFDS) -> it.

    The rows have passage, query, entities and answers (each text once; in the files' own order or,
    from ReCoRD's files, sorted as in TFDS), ``group``, the "passage-query" number, and ``idx``.
    """
    passage = row.get("passage")
    if not isinstance(passage, Mapping):
        lists = {key: [_text(one) for one in row[key]] for key in ("entities", "answers")}
        return [row | lists | _indices(row.get("idx"), ("passage", "query"), "query")]
    text = passage["text"]
    spans = {text[span["start"] : span["end"] + 1] for span in passage["entities"]}
    return [
        {
            "passage": text,
            "query": asked["query"],
            "entities": sorted(spans),
            "answers": sorted({answer["text"] for answer in asked.get("answers", ())}),
            "group": f"{row['idx']}-{asked['idx']}",
            "idx": asked["idx"],
        }
        for asked in row["qas"]
    ]


def _indices(idx, group: tuple[str, str], own: str) -> dict:
    """``group`` and ``idx`` of a row whose index is a mapping; nothing else has them."""
    if not isinstance(idx, Mapping):
        raise InputError(
            f"idx is {idx!r}: the metric groups rows by it, so it must have "
            + ", ".join(dict.fromkeys((*group, own)))
        )
    return {"group": "-".join(str(int(idx[key])) for key in group), "idx": int(idx[own])}


def _text(value) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


MULTIRC = Dataset(
    name="multirc",
    fields=("paragraph", "question", "answer", "group"),
    labels=("False", "True"),
    tfds="super_glue/multirc",
    hub="super_glue/multirc",
    folder="superglue_multirc",
    templates="super_glue/multirc",
    expand=multirc_rows,
    sizes={"train": 27243, "validation": 4848, "test": 9693},
    download=_DOWNLOAD,
)
RECORD = Dataset(
    name="record",
    fields=("passage", "query", "entities", "answers", "group"),
    label_field=None,
    tfds="super_glue/record",
    hub="super_glue/record",
    folder="superglue_record",
    templates="super_glue/record",
    expand=record_rows,
    sizes={"train": 100730, "validation": 10000, "test": 10000},
    download=_DOWNLOAD,
)
AXB = Dataset(
    name="axb",
    fields=("premise", "hypothesis"),
    labels=TABLE["rte"].labels,
    tfds="super_glue/axb",
    hub="super_glue/axb",
    folder="superglue_axb",
    expand=lambda row: [renamed(row, {"sentence1": "premise", "sentence2": "hypothesis"})],
    sizes={"test": 1104},
    download=_DOWNLOAD,
)
AXG = Dataset(
    name="axg",
    fields=("premise", "hypothesis"),
    labels=TABLE["rte"].labels,
    tfds="super_glue/axg",
    hub="super_glue/axg",
    folder="superglue_axg",
    sizes={"test": 356},
    download=_DOWNLOAD,
)
DPR = Dataset(
    name="definite_pronoun_resolution",
    fields=("sentence", "pronoun", "candidates"),
    tfds="definite_pronoun_resolution",
    hub="definite_pronoun_resolution",
    folder="definite_pronoun_resolution",
    expand=lambda row: [row | {"candidates": [_text(one) for one in row["candidates"]]}],
    sizes={"train": 1322, "test": 564},
    download="tensorflow.org/datasets or huggingface.co/datasets",
)
DATASETS = (MULTIRC, RECORD, AXB, AXG, DPR)


# --------------------------------------------------------------------------------------------
# Texts
# --------------------------------------------------------------------------------------------
def without_markup(text: str) -> str:
    """MultiRC's line breaks as spaces, and no bold type."""
    return re.sub(r"</?b>", "", text.replace("<br>", " "))


def record(row: Mapping) -> list[Rendered]:
    """One example per answer, each with all of them as references; t5.data.preprocessors.record.

    The highlights of the article follow it as sentences. An evaluation takes the first example of
    each query (the metric's ``keep.group``).
    """
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", row["passage"])
    passage = passage.replace("\n@highlight\n", ". ")
    entities = ", ".join(row["entities"])
    text = f"query: {row['query']} entities: {entities} passage: {passage}"
    answers = tuple(row["answers"]) or (UNLABELLED,)
    keep = {"group": row["group"], "answers": list(answers)}
    return [Rendered(text, answer, references=answers, keep=keep) for answer in answers]


def wsc_simple(row: Mapping) -> Rendered:
    """The text with its pronoun marked -> the referent that the row offers, right or wrong.

    As t5.data.preprocessors.wsc_simple; also where T5 refuses a row, for a pronoun that begins the
    text. ``keep["label"]`` tells the metric "wsc" whether it is the right one.
    """
    before, after = _around_pronoun(row)
    # T5 writes " X " for the pronoun and then marks every " X " of the text: so do we.
    text = f"{before} X {after}".replace(" X ", f" *{row['span2_text']}* ")
    return Rendered(
        input=text if before else text.lstrip(),
        target=row["span1_text"],
        keep={"label": int(row["label"])},
    )


def _around_pronoun(row: Mapping) -> tuple[str, str]:
    """The text before and after the pronoun, which stands at word ``span2_index``.

    Two rows of SuperGLUE have no such word there, because punctuation clings to it or because the
    index is one too small; T5 spells both out, and these rules write the same.
    """
    words, index, pronoun = row["text"].split(" "), int(row["span2_index"]), row["span2_text"]
    there = words[index] if index < len(words) else ""
    if there == pronoun:
        return " ".join(words[:index]), " ".join(words[index + 1 :])
    if re.match(re.escape(pronoun) + r"\W", there):
        rest = [there.removeprefix(pronoun), *words[index + 1 :]]
        return " ".join(words[:index]), " ".join(rest).rstrip()
    places = [place for place, word in enumerate(words) if word == pronoun]
    if not places:
        raise InputError(
            f"wsc: {pronoun!r} is not word {index} of the text, nor any other word: {row['text']!r}"
        )
    index = min(places, key=lambda place: abs(place - index))
    return " ".join(words[:index]), " ".join(words[index + 1 :]).rstrip()


def dpr_simple(row: Mapping) -> Rendered:
    """The sentence with the first such pronoun marked -> the candidate that it stands for.

    As t5.data.preprocessors.definite_pronoun_resolution_simple.
    """
    pattern = f" ({re.escape(row['pronoun'])})([ .,])"
    candidates = tuple(row["candidates"])
    return Rendered(
        input=re.sub(pattern, r" *\1*\2", row["sentence"], count=1),
        target=candidates[row["label"]],
        choices=candidates,
    )


# --------------------------------------------------------------------------------------------
# Tasks
# --------------------------------------------------------------------------------------------
def _labelled(
    name: str,
    keys: tuple[str, ...],
    metrics: tuple[str, ...],
    asked: str,
    dataset: Dataset | None = None,
    task: str = "",
    **details,
) -> tuple[TaskDefinition, ...]:
    dataset = dataset or TABLE[name]
    clean, kept = (without_markup, ("group",)) if name == "multirc" else (None, ())
    return with_and_without_name(
        f"super_glue_{name}",
        dataset,
        task or name,
        LabelledFields(keys, dataset.labels, clean, kept),
        group=GROUP,
        metrics=metrics,
        about=f"{asked} (Raffel et al. 2020, appendix D)",
        aliases=(f"super_glue_{name}_v102",),
        **details,
    )


_ENTAILMENT = ("hypothesis", "premise")

TASKS: tuple[TaskDefinition, ...] = (
    *_labelled("boolq", ("passage", "question"), ("accuracy",), "Does the passage say yes?"),
    *_labelled(
        "cb", _ENTAILMENT, ("macro_f1", "accuracy"), "Does the premise entail, deny or neither?"
    ),
    *_labelled(
        "copa",
        ("choice1", "choice2", "premise", "question"),
        ("accuracy",),
        "Which is the cause, or the effect?",
    ),
    *_labelled(
        "multirc",
        ("question", "answer", "paragraph"),
        ("multirc",),
        "Is this answer right?",
        dataset=MULTIRC,
    ),
    *with_and_without_name(
        "super_glue_record",
        RECORD,
        "record",
        record,
        ranks=False,
        group=GROUP,
        metrics=("record",),
        about="Which entity fills the gap? (Raffel et al. 2020, appendix D)",
        aliases=("super_glue_record_v102",),
        max_target_length=64,
    ),
    *_labelled("rte", _ENTAILMENT, ("accuracy",), "Does the premise entail the hypothesis?"),
    *_labelled(
        "wic", ("sentence1", "sentence2", "word"), ("accuracy",), "Is it the same sense of a word?"
    ),
    *_labelled(
        "axb",
        _ENTAILMENT,
        ("matthews",),
        "RTE's question of a broad diagnostic set; test rows only",
        dataset=AXB,
        task="rte",
        evaluation_split="test",
    ),
    *_labelled(
        "axg",
        _ENTAILMENT,
        ("accuracy",),
        "RTE's question of pairs that differ in a person's gender; test rows only",
        dataset=AXG,
        task="rte",
        evaluation_split="test",
    ),
    *with_and_without_name(
        "super_glue_wsc",
        TABLE["wsc"],
        "wsc:",
        wsc_simple,
        ranks=False,
        group=GROUP,
        metrics=("wsc",),
        about="Whom does the pronoun mean? Learned from the right referents, asked of all rows "
        "(Raffel et al. 2020, section 2.4 and appendix D.14)",
        learns_from=lambda row: row["label"] == 1,
        aliases=(
            "super_glue_wsc_v102_simple_train",
            "super_glue_wsc_v102_simple_eval",
            "super_glue_wsc_and_dev_v102_simple",
        ),
        max_target_length=64,
    ),
    *with_and_without_name(
        "dpr_simple",
        DPR,
        "wsc:",
        dpr_simple,
        group=GROUP,
        about="Which candidate does the pronoun mean? T5 trains on it beside WSC",
        aliases=("dpr_v001_simple",),
        evaluation_split="test",
        max_target_length=64,
    ),
)


# --------------------------------------------------------------------------------------------
# Mixtures
# --------------------------------------------------------------------------------------------
# Their examples in SuperGLUE's training files, in the order of t5.data.glue_utils: 259 (the rows
# with the right referent), 9,427, 250, 400, 27,243, 138,854 (one per answer), 2,490 and 5,428.
_TRAINED = tuple(
    f"super_glue_{name}"
    for name in ("wsc", "boolq", "cb", "copa", "multirc", "record", "rte", "wic")
)
CAP = 2**21  # Raffel et al. 2020, section 3.5.2; no task of SuperGLUE or GLUE has so many

MIXTURES = (
    MixtureDefinition(
        "super_glue",
        _TRAINED,
        cap=CAP,
        about="SuperGLUE's training sets in proportion to their examples (Lester et al. 2021)",
    ),
    MixtureDefinition(
        "super_glue_equal", _TRAINED, rate="equal", about="SuperGLUE's training sets alike"
    ),
    MixtureDefinition(
        "super_glue_v102_proportional",
        ("dpr_simple", *_TRAINED),
        cap=CAP,
        about="the same with definite pronouns beside WSC (Raffel et al. 2020; t5 0.9.4)",
    ),
)
