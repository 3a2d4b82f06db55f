"""T0's datasets and T-Few's held-out suite, as one table.

`TRAINING` has every dataset of the training mixtures of T0, T0+ and T0++ (Sanh et al. 2022, table
5): the fields that promptsource's templates read, the training examples that t-zero counts
(``t0/datasets.csv`` of github.com/bigscience-workshop/t-zero) and the number of its promptsource
templates (github.com/bigscience-workshop/promptsource at commit 7dab96a3ee, after 0.2.3).
`HELD_OUT` has the eleven columns of T-Few's table 1 (Liu et al. 2022; ``configs/*.json`` and
``src/data/dataset_readers.py`` of github.com/r-three/t-few), in the paper's order.

The rest of this module makes `Dataset`s and task definitions of the two; `peft_jax.tasks.p3` makes
tasks of the templates.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import DATASETS as FEW_SHOT_DATASETS
from peft_jax.tasks.datasets import Dataset

Stage = Literal["T0", "T0+", "T0++"]
STAGES: tuple[Stage, ...] = ("T0", "T0+", "T0++")

CAP = 500_000
"""A dataset of more training examples than this counts as so many, over all of its templates."""


@dataclass(frozen=True)
class Training:
    """A dataset of the training mixtures.

    Attributes:
        stage: the smallest of the three mixtures that has it; the larger ones have it too.
        family: t-zero's ``task_by_convention``.
        hub: the dataset and its configuration on the Hugging Face hub and in promptsource.
        rows: training examples.
        prompts: promptsource templates.
        fields: what every row has, besides the label, separated by blanks.
        labels: the labels' names in order, separated by |, where the field ``label`` holds one.
    """

    stage: Stage
    family: str
    hub: str
    rows: int
    prompts: int
    fields: str
    labels: str = ""

    @property
    def name(self) -> str:
        """The dataset's part of t-zero's task names, "glue_mrpc"."""
        return p3_slug(self.hub)

    def cap(self, *, tfew: bool = False) -> int:
        """How many examples one of its templates counts as in a mixture.

        t-zero lets every template of a dataset with at most 500,000 examples count in full; T-Few's
        pretraining cuts to 500,000 / templates whenever there are more than that.
        """
        share = CAP // self.prompts
        capped = self.rows > (share if tfew else CAP)
        return share if capped else self.rows


@dataclass(frozen=True)
class HeldOut:
    """A column of T-Few's few-shot suite.

    Attributes:
        column: the paper's heading.
        task: our task's name.
        tfew: T-Few's name of the dataset (``dataset`` in its configs).
        hub: as in `Training`.
        shots: training examples drawn, not balanced by class.
        train: the source's split that is drawn from.
        evaluation: the source's split that is scored.
        templates: positions, in the order of names, of promptsource's templates that are used:
            those of the original task.
        choices: the order of the answer choices: the labels, or the fields that hold the texts.
    """

    column: str
    task: str
    tfew: str
    hub: str
    shots: int
    train: str
    evaluation: str
    templates: tuple[int, ...]
    choices: tuple[str, ...]


# fmt: off
_QA4 = "question answer0 answer1 answer2 answer3"
_PAIR = "sentence1 sentence2"
_DBPEDIA = (
    "Company|EducationalInstitution|Artist|Athlete|OfficeHolder|MeanOfTransportation|Building|"
    "NaturalPlace|Village|Animal|Plant|Album|Film|WrittenWork"
)

TRAINING: tuple[Training, ...] = (
    Training("T0",   "paraphrase", "glue/mrpc", 3_668, 7, _PAIR, "not_equivalent|equivalent"),
    Training("T0",   "paraphrase", "glue/qqp", 363_846, 6, "question1 question2",
             "not_duplicate|duplicate"),
    Training("T0",   "paraphrase", "paws/labeled_final", 49_401, 12, _PAIR, "0|1"),

    Training("T0",   "closed-book QA", "kilt_tasks/hotpotqa", 88_869, 5, "input output"),
    Training("T0",   "closed-book QA", "wiki_qa", 20_360, 11, "question answer document_title",
             "0|1"),
    Training("T0+",  "closed-book QA", "ai2_arc/ARC-Challenge", 1_119, 6,
             "question choices answerKey"),
    Training("T0+",  "closed-book QA", "ai2_arc/ARC-Easy", 2_251, 6, "question choices answerKey"),
    Training("T0+",  "closed-book QA", "trivia_qa/unfiltered", 87_622, 5, "question answer"),
    Training("T0+",  "closed-book QA", "web_questions", 3_778, 5, "question answers"),

    Training("T0",   "extractive QA", "adversarial_qa/dbidaf", 10_000, 5,
             "context question answers metadata"),
    Training("T0",   "extractive QA", "adversarial_qa/dbert", 10_000, 5,
             "context question answers metadata"),
    Training("T0",   "extractive QA", "adversarial_qa/droberta", 10_000, 5,
             "context question answers metadata"),
    Training("T0",   "extractive QA", "duorc/SelfRC", 60_721, 9,
             "title plot question answers no_answer"),
    Training("T0",   "extractive QA", "duorc/ParaphraseRC", 69_524, 9,
             "title plot question answers no_answer"),
    Training("T0",   "extractive QA", "ropes", 10_924, 12, "background situation question answers"),
    Training("T0",   "extractive QA", "quoref", 19_399, 11, "title context question answers"),
    Training("T0+",  "extractive QA", "squad_v2", 130_319, 12, "title context question answers"),
    Training("T0++", "extractive QA", "super_glue/record", 100_730, 20,
             "passage query entities answers"),

    Training("T0",   "multiple-choice QA", "cos_e/v1.11", 9_741, 11,
             "question choices answer abstractive_explanation"),
    Training("T0",   "multiple-choice QA", "cosmos_qa", 25_262, 13, f"context {_QA4}", "0|1|2|3"),
    Training("T0",   "multiple-choice QA", "dream", 6_116, 5, "dialogue question choice answer"),
    Training("T0",   "multiple-choice QA", "qasc", 8_134, 8,
             "question choices answerKey fact1 fact2 combinedfact"),
    Training("T0",   "multiple-choice QA", "quail", 10_246, 13,
             "context question answers correct_answer_id"),
    Training("T0",   "multiple-choice QA", "quarel", 1_941, 5,
             "question answer_index world_literals"),
    Training("T0",   "multiple-choice QA", "quartz", 2_696, 8, "para question choices answerKey"),
    Training("T0",   "multiple-choice QA", "sciq", 11_679, 5,
             "question correct_answer distractor1 distractor2 distractor3 support"),
    Training("T0",   "multiple-choice QA", "social_i_qa", 33_410, 6,
             "context question answerA answerB answerC label"),
    Training("T0",   "multiple-choice QA", "wiki_hop/original", 43_738, 9,
             "question candidates supports answer"),
    Training("T0",   "multiple-choice QA", "wiqa", 29_808, 8,
             "question_stem question_para_step choices answer_label answer_label_as_choice "
             "metadata_question_type"),
    Training("T0+",  "multiple-choice QA", "openbookqa/main", 4_957, 7,
             "question_stem choices answerKey"),
    Training("T0+",  "multiple-choice QA", "race/high", 62_445, 8,
             "article question options answer"),
    Training("T0+",  "multiple-choice QA", "race/middle", 25_421, 8,
             "article question options answer"),
    Training("T0+",  "multiple-choice QA", "piqa", 16_113, 11, "goal sol1 sol2", "0|1"),
    Training("T0++", "multiple-choice QA", "super_glue/boolq", 9_427, 10, "passage question",
             "False|True"),
    Training("T0++", "multiple-choice QA", "super_glue/copa", 400, 12,
             "premise choice1 choice2 question", "choice1|choice2"),
    Training("T0++", "multiple-choice QA", "super_glue/multirc", 27_243, 10,
             "paragraph question answer", "False|True"),

    Training("T0",   "sentiment", "amazon_polarity", 3_600_000, 9, "title content",
             "negative|positive"),
    Training("T0",   "sentiment", "app_reviews", 288_065, 4, "package_name review star"),
    Training("T0",   "sentiment", "imdb", 25_000, 11, "text", "neg|pos"),
    Training("T0",   "sentiment", "rotten_tomatoes", 8_530, 10, "text", "neg|pos"),
    Training("T0",   "sentiment", "yelp_review_full", 650_000, 7, "text",
             "1 star|2 star|3 stars|4 stars|5 stars"),

    Training("T0+",  "story completion", "hellaswag", 39_905, 11,
             "ctx ctx_a ctx_b activity_label endings", "0|1|2|3"),

    Training("T0",   "structure to text", "common_gen", 67_389, 9, "concepts target"),
    Training("T0",   "structure to text", "wiki_bio", 582_659, 5, "input_text target_text"),

    Training("T0",   "summarisation", "cnn_dailymail/3.0.0", 287_113, 9, "article highlights"),
    Training("T0",   "summarisation", "gigaword", 3_803_957, 9, "document summary"),
    Training("T0",   "summarisation", "multi_news", 44_972, 6, "document summary"),
    Training("T0",   "summarisation", "samsum", 14_732, 7, "dialogue summary"),
    Training("T0",   "summarisation", "xsum", 204_045, 10, "document summary"),

    Training("T0",   "topic", "ag_news", 120_000, 7, "text", "World|Sports|Business|Sci/Tech"),
    Training("T0",   "topic", "dbpedia_14", 560_000, 4, "title content", _DBPEDIA),
    Training("T0",   "topic", "trec", 5_452, 18, "text coarse_label fine_label"),

    Training("T0++", "coreference", "super_glue/wsc.fixed", 554, 10,
             "text span1_text span2_text span1_index span2_index", "False|True"),
    Training("T0++", "word sense", "super_glue/wic", 5_428, 10, "word sentence1 sentence2",
             "False|True"),
)

_TWO, _FOUR = ("choice1", "choice2"), ("endings 0", "endings 1", "endings 2", "endings 3")
_QUIZ, _OPTIONS = ("sentence_quiz1", "sentence_quiz2"), ("option1", "option2")
_CB = ("entailment", "contradiction", "neutral")    # the order of labels, and so of choices,
_ANLI = ("entailment", "neutral", "contradiction")  # differs between these two
_RTE, _BOOL = ("entailment", "not_entailment"), ("False", "True")
_ALL_10, _ALL_15 = tuple(range(10)), tuple(range(15))
_COPA = tuple(range(8))  # of 12: the other four ask only for causes or only for effects
_XL, _XS = "winogrande/winogrande_xl", "validation"

HELD_OUT: tuple[HeldOut, ...] = (
    #       column         task           tfew          hub                     shots
    #       train         evaluation    templates         choices
    HeldOut("COPA",        "copa",        "copa",       "super_glue/copa",      32,
            "train",      "validation", _COPA,            _TWO),
    HeldOut("H-Swag",      "hellaswag",   "h-swag",     "hellaswag",            20,
            "train",      "validation", (3, 4, 8, 10),    _FOUR),
    HeldOut("StoryCloze",  "story_cloze", "storycloze", "story_cloze/2016",     70,
            "validation", "test",       (0, 1, 3, 4, 5),  _QUIZ),
    HeldOut("Winogrande",  "winogrande",  "winogrande", _XL,                    50,
            "train",      "validation", (0, 2, 3, 4, 5),  _OPTIONS),
    HeldOut("WSC",         "wsc",         "wsc",        "super_glue/wsc.fixed", 32,
            "train",      "validation", _ALL_10,          _BOOL),
    HeldOut("WiC",         "wic",         "wic",        "super_glue/wic",       32,
            "train",      "validation", _ALL_10,          _BOOL),
    HeldOut("RTE",         "rte",         "rte",        "super_glue/rte",       32,
            "train",      "validation", _ALL_10,          _RTE),
    HeldOut("CB",          "cb",          "cb",         "super_glue/cb",        32,
            "train",      "validation", _ALL_15,          _CB),
    HeldOut("ANLI R1",     "anli_r1",     "anli-r1",    "anli",                 50,
            "train_r1",   "test_r1",    _ALL_15,          _ANLI),
    HeldOut("ANLI R2",     "anli_r2",     "anli-r2",    "anli",                 50,
            "train_r2",   "test_r2",    _ALL_15,          _ANLI),
    HeldOut("ANLI R3",     "anli_r3",     "anli-r3",    "anli",                 50,
            "train_r3",   "test_r3",    _ALL_15,          _ANLI),
)
# fmt: on


def p3_slug(text: str) -> str:
    """A dataset, or a dataset and template, as t-zero's task names write it.

    "super_glue/rte GPT-3 style" -> "super_glue_rte_GPT_3_style" (``task_clean`` of t-zero).
    """
    return re.sub(r"[^\w.]+", "_", text)


def in_mixture(stage: Stage) -> tuple[Training, ...]:
    """The datasets of a mixture: its own and those of the smaller ones, in the order of stages."""
    wanted = STAGES[: STAGES.index(stage) + 1]
    return tuple(entry for one in wanted for entry in TRAINING if entry.stage == one)


# --------------------------------------------------------------------------------- datasets


def with_plain_names(row: Mapping) -> dict:
    """Field names without hyphens, as promptsource's templates spell them ("label-fine")."""
    return {key.replace("-", "_"): value for key, value in row.items()}


def _trec(row: dict) -> list[dict]:
    row = with_plain_names(row)  # older copies: label-coarse
    old = {"label_coarse": "coarse_label", "label_fine": "fine_label"}
    return [{old.get(key, key): value for key, value in row.items()}]


def _ag_news(row: dict) -> list[dict]:
    if "text" not in row and {"title", "description"} <= row.keys():  # TFDS, and the original CSV
        row = row | {"text": f"{row['title']} {row['description']}"}
    return [row]


def _winogrande(row: dict) -> list[dict]:
    return [_numbered_from_one(row, "answer")]


def _story_cloze(row: dict) -> list[dict]:
    return [_numbered_from_one(row, "answer_right_ending")]


def _numbered_from_one(row: dict, field: str) -> dict:
    """The row with a label made of a field that counts the choices from one."""
    answer = str(row.get(field, ""))
    return row | {"label": int(answer) - 1} if answer.isdecimal() else row


_EXPAND = {"ag_news": _ag_news, "trec": _trec}
_NO_VALIDATION = {"ag_news", "amazon_polarity", "dbpedia_14", "imdb", "trec", "yelp_review_full"}
_TFDS = {
    "ag_news": "ag_news_subset",
    "cnn_dailymail/3.0.0": "cnn_dailymail",
    "cosmos_qa": "cosmos_qa",
    "gigaword": "gigaword",
    "glue/mrpc": "glue/mrpc",
    "glue/qqp": "glue/qqp",
    "imdb": "imdb_reviews/plain_text",
    "multi_news": "multi_news",
    "piqa": "piqa",
    "samsum": "samsum",
    "trec": "trec",
    "xsum": "xsum",
}
"""Those whose TFDS copies have the same fields."""


def _hub_page(hub: str) -> str:
    name, _, configuration = hub.partition("/")
    of = f", configuration {configuration}" if configuration else ""
    return f"https://huggingface.co/datasets/{name}{of}"


def _training_dataset(entry: Training) -> Dataset:
    return Dataset(
        name=entry.name,
        fields=tuple(entry.fields.split()),
        labels=tuple(entry.labels.split("|")) if entry.labels else (),
        label_field="label" if entry.labels else None,
        tfds=_TFDS.get(entry.hub),
        hub=entry.hub,
        folder=entry.name,
        templates=entry.hub,
        splits={"validation": "test"} if entry.hub in _NO_VALIDATION else {},
        expand=_EXPAND.get(entry.hub),
        sizes={"train": entry.rows},
        download=_hub_page(entry.hub),
    )


_STORY = "input_sentence_1 input_sentence_2 input_sentence_3 input_sentence_4 sentence_quiz1"
_SIZES = {
    "hellaswag": {"train": 39_905, "validation": 10_042, "test": 10_003},
    "winogrande": {"train": 40_398, "validation": 1_267, "test": 1_767},
    "story_cloze": {"validation": 1_871, "test": 1_871},
    "anli_r1": {"train_r1": 16_946, "dev_r1": 1_000, "test_r1": 1_000},
    "anli_r2": {"train_r2": 45_460, "dev_r2": 1_000, "test_r2": 1_000},
    "anli_r3": {"train_r3": 100_459, "dev_r3": 1_200, "test_r3": 1_200},
}


def _held_out_dataset(entry: HeldOut) -> Dataset:
    fields, labels, expand = {
        "hellaswag": ("ctx ctx_a ctx_b activity_label endings", ("0", "1", "2", "3"), None),
        "story_cloze": (f"{_STORY} sentence_quiz2 answer_right_ending", _QUIZ, _story_cloze),
        "winogrande": ("sentence option1 option2 answer", _OPTIONS, _winogrande),
    }.get(entry.task, ("premise hypothesis", _ANLI, None))
    splits = {"train": entry.train, "validation": entry.evaluation}
    if entry.hub == "anli":
        splits["dev"] = entry.train.replace("train", "dev")
    return Dataset(
        name=entry.task,
        fields=tuple(fields.split()),
        labels=labels,
        hub=entry.hub,
        folder=p3_slug(entry.hub),
        templates=entry.hub,
        shots=entry.shots,
        splits={ours: theirs for ours, theirs in splits.items() if ours != theirs},
        expand=expand,
        sizes=_SIZES[entry.task],
        download=(
            "https://cs.rochester.edu/nlp/rocstories (by registration; the Spring 2016 files)"
            if entry.task == "story_cloze"
            else _hub_page(entry.hub)
        ),
    )


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        *map(_training_dataset, TRAINING),
        *(_held_out_dataset(entry) for entry in HELD_OUT if entry.task not in FEW_SHOT_DATASETS),
    )
}
"""By name; hellaswag, which is in both tables, is the held-out one (its fields are the same)."""

_ALIASES = {
    "hellaswag": ("h-swag",),
    "story_cloze": ("storycloze", "story_cloze_2016"),
    "winogrande": ("winogrande_xl", "winogrande_winogrande_xl"),
    "anli_r1": ("anli-r1",),
    "anli_r2": ("anli-r2",),
    "anli_r3": ("anli-r3",),
}

TASKS: tuple[TaskDefinition, ...] = tuple(
    TaskDefinition(
        name=entry.task,
        dataset=DATASETS[entry.task],
        group="T-Few",
        about=f"{entry.column} of T-Few's suite: {entry.shots} shots of {entry.train}, scored on "
        f"{entry.evaluation} (Liu et al. 2022, appendix G)",
        aliases=_ALIASES[entry.task],
        few_shot=True,
    )
    for entry in HELD_OUT
    if entry.task not in FEW_SHOT_DATASETS
)
