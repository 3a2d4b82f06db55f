"""Table-to-text: E2E, WebNLG 2017 and DART in the linearisations of prefix-tuning and LoRA.

The tasks ``e2e_nlg``, ``web_nlg`` and ``dart`` have the inputs of the prefix-tuning repository (Li
and Liang 2021; github.com/XiangLi1999/PrefixTuning), and decode as it does; those with ``_lora``
are the LoRA repository's (Hu et al. 2022; github.com/microsoft/LoRA), whose WebNLG inputs begin
without a bar, and whose beams are other ones. ``_seq2seq`` puts T5's kind of task prefix in front.

A row's ``references`` are all texts of its input, as an evaluation needs them. A row of a file
called train... is as many rows as it has references, each with one.

Rows are accepted as `peft_jax.tasks.table_files` writes them of the published files, as JSONL with
``mr`` and ``ref`` or ``refs``, with ``modifiedtripleset`` and ``lex`` or ``refs``, or as in Hugging
Face's e2e_nlg, web_nlg, dart and GEM's copies.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.documents import split_of
from peft_jax.tasks.prompts import Rendered, TextFormat
from peft_jax.tasks.table_files import published, split_triple

Triple = Sequence[str]
"""Subject, property, object."""

_SLOT = re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]")
_SLOT_NAMES = {"eatType": "Type", "familyFriendly": "family friendly", "priceRange": "price"}
_VALUE_TOKEN = re.compile(r"£|-|[^\s£-]+")


def meaning_slots(meaning: str) -> list[tuple[str, str]]:
    """``name[Alimentum], area[city centre]`` -> [("name", "Alimentum"), ("area", "city centre")].

    Raises InputError for a text that is not of this form.
    """
    slots = [(name.strip(), value.strip()) for name, value in _SLOT.findall(meaning)]
    if not slots or _SLOT.sub("", meaning).strip(", \t"):
        raise InputError(f"{meaning!r} is no meaning representation like name[...], area[...]")
    return slots


def linearise_meaning(meaning: str) -> str:
    """``name : Alimentum | area : city centre | family friendly : no``.

    The names of the slots and the spaces in their values are those of the prefix-tuning
    repository's e2e_data: familyFriendly is "family friendly", £20-25 is "£ 20 - 25".
    """
    return " | ".join(
        f"{_SLOT_NAMES.get(name, name)} : {' '.join(_VALUE_TOKEN.findall(value))}"
        for name, value in meaning_slots(meaning)
    )


def linearise_triples(triples: Sequence[Triple]) -> str:
    """``subject : property : object | subject : property : object``, all as they are."""
    return " | ".join(" : ".join(triple) for triple in triples)


def linearise_webnlg(triples: Sequence[Triple]) -> str:
    """The prefix-tuning repository's WebNLG input: a bar stands in front of each triple."""
    return f"| {linearise_triples(triples)}"


def linearise_dart(triples: Sequence[Triple]) -> str:
    """DART's input in both repositories: the properties are in lower case."""
    return linearise_triples([(subject, name.lower(), object) for subject, name, object in triples])


# --------------------------------------------------------------------------------------------
# Rows of any source
# --------------------------------------------------------------------------------------------
def e2e_rows(row: Mapping) -> list[dict]:
    """A row of any copy of E2E -> one with ``meaning_representation`` and ``references``."""
    meaning = row.get("meaning_representation", row.get("mr"))
    references = _texts(row, "references", "refs", "ref", "human_reference", "target")
    return _for_training(row, {"meaning_representation": meaning, "references": references})


def webnlg_rows(row: Mapping) -> list[dict]:
    """A row of any copy of WebNLG 2017 -> one with ``triples``, ``category``, ``references``.

    A row of one text that was not judged good makes none, as in the papers' training data.
    """
    if isinstance(row.get("lex"), str) and row.get("comment", "good") != "good":
        return []
    lex = row.get("lex")
    references = lex.get("text") if isinstance(lex, Mapping) else None
    references = references or _texts(row, "references", "refs", "lex", "target")
    return _for_training(row, {"triples": _triples(row), "references": references})


def dart_rows(row: Mapping) -> list[dict]:
    """A row of any copy of DART -> one with ``triples`` and ``references``."""
    notes = row.get("annotations")
    references: list[str] | None
    if isinstance(notes, Mapping):  # Hugging Face's: a list for each key
        references = list(notes.get("text", ()))
    elif notes:
        references = [note["text"] for note in notes]
    else:
        references = _texts(row, "references", "refs", "target")
    return _for_training(row, {"triples": _triples(row), "references": references})


def _for_training(row: Mapping, made: dict) -> list[dict]:
    """The row with what was made of it; of a training file one row for each reference."""
    file = Path(re.sub(r":\d+$|, row \d+$", "", getattr(row, "where", "")))
    whole = dict(row) | made
    if not made["references"] or split_of(Path(*file.parts[-2:])) != "train":
        return [whole]
    return [whole | {"references": [text]} for text in made["references"]]


def _texts(row: Mapping, *names: str) -> list[str] | None:
    """The first of some fields that is there and not empty, as a list of texts."""
    for name in names:
        if row.get(name):
            value = row[name]
            return [value] if isinstance(value, str) else list(value)
    return None


def _triples(row: Mapping) -> list[list[str]] | None:
    sets = row.get("modified_triple_sets")
    if isinstance(sets, Mapping):  # Hugging Face's: an entry's own first set
        found = sets.get("mtriple_set") or [()]
        found = found[0]
    else:
        names = ("triples", "modifiedtripleset", "tripleset", "input")
        found = next((row[name] for name in names if row.get(name)), None)
    if not found:
        return None
    return [split_triple(t) if isinstance(t, str) else _three(t) for t in found]


def _three(triple) -> list[str]:
    if isinstance(triple, Mapping):
        triple = [triple.get(part) for part in ("subject", "property", "object")]
    if len(triple) != 3 or not all(isinstance(part, str) for part in triple):
        raise InputError(f"triple {triple!r} is not subject, property and object")
    return list(triple)


# --------------------------------------------------------------------------------------------
# Tasks
# --------------------------------------------------------------------------------------------
E2E = Dataset(
    name="e2e_nlg",
    fields=("meaning_representation", "references"),
    label_field=None,
    shots=0,
    hub="e2e_nlg",
    folder="e2e_nlg",
    templates="e2e_nlg_cleaned",
    expand=e2e_rows,
    published=published("e2e_nlg"),
    sizes={"train": 42_061, "validation": 4_672, "test": 4_693},
    download="github.com/tuetschek/e2e-dataset",
)
WEBNLG = Dataset(
    name="web_nlg",
    fields=("triples", "references"),
    label_field=None,
    shots=0,
    hub="web_nlg/webnlg_challenge_2017",
    folder="webnlg_2017",
    expand=webnlg_rows,
    published=published("web_nlg"),
    sizes={"train": 6_940, "validation": 872, "test": 1_862},
    download="gitlab.com/shimorina/webnlg-dataset: webnlg_challenge_2017",
)
DART = Dataset(
    name="dart",
    fields=("triples", "references"),
    label_field=None,
    shots=0,
    hub="dart",
    folder="dart",
    expand=dart_rows,
    published=published("dart"),
    sizes={"train": 30_526, "validation": 2_768, "test": 5_097},
    download="github.com/Yale-LILY/dart: dart-v1.1.1-full-{train,dev,test}.json",
)

PREFIX_TUNING_DECODING = {"beams": 5, "min_length": 5, "max_length": 100}
"""The prefix-tuning repository's gpt2/run_generation.py; the paper's section 5 names the beams."""
LORA_DECODING = {"beams": 10, "length_penalty": 0.8, "no_repeat_ngram": 4, "max_length": 64}
"""The LoRA repository's examples/NLG; the paper's table 11 has a length penalty of 0.9 for E2E."""


def _format(name: str, field: str, linearise: Callable[..., str], prefix: str = "") -> TextFormat:
    def render(row: Mapping) -> Rendered:
        references = tuple(text.strip() for text in row["references"])
        return Rendered(prefix + linearise(row[field]), references[0], references=references)

    return TextFormat(name, render)


_E2E_FORMAT = _format("slots", "meaning_representation", linearise_meaning)
# The papers' third, METEOR, is a Java program: the metric "meteor", for who has it.
_WEBNLG_METRICS = ("bleu_webnlg", "ter")

_E2E_TASK = TaskDefinition(
    name="e2e_nlg",
    dataset=E2E,
    group="Table-to-text",
    formats=(_E2E_FORMAT,),
    metrics=("e2e",),
    about="describe a restaurant; E2E as prefix-tuning reads it (Li and Liang 2021, section 5)",
    max_input_length=128,
    max_target_length=100,
    decoding=PREFIX_TUNING_DECODING,
)
_WEBNLG_TASK = TaskDefinition(
    name="web_nlg",
    dataset=WEBNLG,
    group="Table-to-text",
    formats=(_format("triples", "triples", linearise_webnlg),),
    metrics=_WEBNLG_METRICS,
    about="describe triples; WebNLG 2017 as prefix-tuning reads it (Li and Liang 2021, section 5)",
    max_input_length=256,
    max_target_length=128,
    decoding=PREFIX_TUNING_DECODING,
    aliases=("webnlg", "webnlg_2017"),
)
_DART_TASK = TaskDefinition(
    name="dart",
    dataset=DART,
    group="Table-to-text",
    formats=(_format("triples", "triples", linearise_dart),),
    metrics=_WEBNLG_METRICS,
    about="describe triples; DART as prefix-tuning reads it (Li and Liang 2021, section 5)",
    max_input_length=384,
    max_target_length=128,
    decoding=PREFIX_TUNING_DECODING,
)


def _lora(task: TaskDefinition, *formats: TextFormat) -> TaskDefinition:
    about = task.about.split(" as ")[0] + " as LoRA reads it (Hu et al. 2022, section 5.4)"
    made = replace(task, name=f"{task.name}_lora", about=about, decoding=LORA_DECODING, aliases=())
    return replace(made, formats=formats) if formats else made


def _seq2seq(task: TaskDefinition, render: TextFormat) -> TaskDefinition:
    about = task.about.split(" as ")[0] + " behind a task prefix, for T5"
    return replace(task, name=f"{task.name}_seq2seq", about=about, formats=(render,), aliases=())


def _webnlg_test(part: str, about: str) -> TaskDefinition:
    """WebNLG evaluated on its test data, or on a part of them."""
    split = "test" if part == "all" else f"test_{part}"
    return replace(
        _WEBNLG_TASK,
        name=f"web_nlg_{part}",
        about=f"describe triples; WebNLG 2017 evaluated on {about}",
        evaluation_split=split,
        aliases=(),
    )


_GRAPH_PREFIX = "translate Graph to English: "
"""The task prefix with which Ribeiro et al. (2021, section 3) train T5 on WebNLG."""
_TABLE_PREFIX = "translate Table to English: "

TASKS: tuple[TaskDefinition, ...] = (
    _E2E_TASK,
    _lora(_E2E_TASK),
    _seq2seq(
        _E2E_TASK,
        _format("prefixed", "meaning_representation", linearise_meaning, _TABLE_PREFIX),
    ),
    _WEBNLG_TASK,
    _webnlg_test("all", "the whole test set"),
    _webnlg_test("seen", "the test set's ten categories that training has"),
    _webnlg_test("unseen", "the test set's five categories that training has not"),
    _lora(_WEBNLG_TASK, _format("triples", "triples", linearise_triples)),
    _seq2seq(_WEBNLG_TASK, _format("prefixed", "triples", linearise_triples, _GRAPH_PREFIX)),
    _DART_TASK,
    _lora(_DART_TASK),
    _seq2seq(_DART_TASK, _format("prefixed", "triples", linearise_dart, _GRAPH_PREFIX)),
)
