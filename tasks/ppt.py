"""The texts of PPT (Gu et al. 2022): its pretext tasks, and few-shot tasks in the same form.

A blank, T5's first sentinel, stands where the answer belongs, and the answer comes behind the same
sentinel, as in T5's pretraining. Soft prompts are put in front by the method; ``_hybrid`` adds hard
words around the blank; ``_unified`` makes every task the same multiple choice::

    soft     {hypothesis} <extra_id_0> {premise}                            yes, maybe, no
    hybrid   {hypothesis}? <extra_id_0> . {premise}                         yes, maybe, no
    unified  {hypothesis}? {premise}.A. no.B. maybe.C. yes.?
             The correct one is <extra_id_0>                                A, B, C

These are the texts whose tokens the published code puts together (data_utils/ and tools/ of
github.com/thu-coai/PPT), with two differences: pieces that a vocabulary has across the joints are
made there, and a letter of an answer is the piece with the space in front.

The pretext tasks' rows are those that `peft_jax.tasks.pretext` makes of text.
"""

from collections.abc import Callable, Mapping, Sequence

from peft_jax.tasks import pretext
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import DATASETS, Dataset
from peft_jax.tasks.pretext import DEGREES, LETTERS, PAIR_WORDS
from peft_jax.tasks.prompts import Rendered, TextFormat

BLANK, END = "<extra_id_0>", "<extra_id_1>"


def multiple_choice_text(asked: str, options: Sequence[str]) -> str:
    """The unified form: ``asked?A. option.B. option.? The correct one is <extra_id_0>``.

    Args:
        asked: with the mark at its end.
    """
    listed = "".join(f"{letter}. {text}." for letter, text in zip(LETTERS, options, strict=False))
    return f"{asked}{listed}? The correct one is {BLANK}"


def _ranked(text: str, words: Sequence[str], label: int, end: str = "") -> Rendered:
    choices = tuple(f"{BLANK} {word} {end}".rstrip() for word in words)
    return Rendered(text.strip(), choices[label], choices=choices, keep={"label": label})


# --------------------------------------------------------------------------------------------
# Pretext tasks
# --------------------------------------------------------------------------------------------
def _next_sentence(row: Mapping) -> Rendered:
    text = f"{row['first']} {BLANK} {row['second']}"
    return _ranked(text, PAIR_WORDS, row["label"], END)


def _options(row: Mapping) -> Rendered:
    text = multiple_choice_text(f"{row['query']}?", row["options"])
    return _ranked(text, LETTERS[: len(row["options"])], row["label"], END)


def _single_sentence(row: Mapping) -> Rendered:
    return _ranked(f"{row['sentence']} {BLANK}", DEGREES, row["label"], END)


_DOWNLOAD = "any folder of text: .txt files, or rows with a field text"


def _pretext_task(
    name: str, render: Callable, about: str, length: int = 512, **fields
) -> TaskDefinition:
    dataset = Dataset(name=name, folder=name, shots=0, **fields)
    return TaskDefinition(
        name=name,
        dataset=dataset,
        group="PPT's pretext tasks",
        formats=(TextFormat("pretext", render, ranks=True),),
        about=f"{about} (Gu et al. 2022, section 3.2)",
        max_input_length=length,
        max_target_length=10,
    )


PRETEXT_TASKS = (
    _pretext_task(
        "ppt_next_sentence",
        _next_sentence,
        "do two sentences stand side by side, in one document, or in two?",
        fields=("first", "second"),
        labels=PAIR_WORDS,
        published=pretext.published("ppt_next_sentence"),
        download=_DOWNLOAD,
    ),
    _pretext_task(
        "ppt_multiple_choice",
        _options,
        "which of six sentences stands beside one?",
        length=1024,
        fields=("query", "options"),
        published=pretext.published("ppt_multiple_choice"),
        download=_DOWNLOAD,
    ),
    _pretext_task(
        "ppt_single_sentence",
        _single_sentence,
        "the label of a sentence, in five degrees",
        fields=("sentence",),
        labels=DEGREES,
        expand=pretext.sure_rows,
        download="rows of sentence, label (0 to 4) and score, see peft_jax.tasks.pretext",
    ),
    _pretext_task(
        "ppt_unified",
        _options,
        "which of 2 to 16 sentences stands beside one?",
        length=768,
        fields=("query", "options"),
        published=pretext.published("ppt_unified"),
        download=_DOWNLOAD,
    ),
)


# --------------------------------------------------------------------------------------------
# Few-shot tasks
# --------------------------------------------------------------------------------------------
Texts = Callable[[Mapping], str]
"""A row -> the text that a model reads."""


def _task(dataset: str, variant: str, words: Sequence[str], text: Texts) -> TaskDefinition:
    """A few-shot task; ``words`` in the order of the dataset's labels."""

    def render(row: Mapping) -> Rendered:
        return _ranked(text(row), words, row["label"])

    return _definition(dataset, variant, render)


def _unified(
    dataset: str, options: Sequence[str], words: Sequence[str], query: Texts
) -> TaskDefinition:
    """The same as multiple choice; ``options`` in the order in which they are listed."""

    def render(row: Mapping) -> Rendered:
        right = options.index(words[row["label"]])
        text = multiple_choice_text(query(row), options)
        return _ranked(text, LETTERS[: len(options)], right)

    return _definition(dataset, "unified", render)


def _definition(dataset: str, variant: str, render: Callable) -> TaskDefinition:
    forms = {
        "soft": "with soft prompts alone",
        "hybrid": "with hard words around the blank",
        "unified": "as multiple choice",
    }
    return TaskDefinition(
        name=f"ppt_{dataset}" if variant == "soft" else f"ppt_{dataset}_{variant}",
        dataset=DATASETS[dataset],
        group="PPT",
        formats=(TextFormat(variant, render, ranks=True),),
        metrics=("accuracy", "macro_f1") if dataset == "cb" else ("accuracy",),
        about=f"{dataset} {forms[variant]}, as PPT reads it (Gu et al. 2022, table 1)",
        max_input_length=512,
        max_target_length=10,
    )


_CB = ("yes", "no", "maybe")  # entailment, contradiction, neutral
_RTE = ("yes", "no")  # entailment, not_entailment
_BOOLQ = ("no", "yes")
_SST2 = ("bad", "good")

FEW_SHOT_TASKS = (
    _task("cb", "soft", _CB, lambda row: f"{row['hypothesis']} {BLANK} {row['premise']}"),
    _task("cb", "hybrid", _CB, lambda row: f"{row['hypothesis']}? {BLANK} . {row['premise']}"),
    _unified(
        "cb", ("no", "maybe", "yes"), _CB, lambda row: f"{row['hypothesis']}? {row['premise']}."
    ),
    _task("rte", "soft", _RTE, lambda row: f"{row['premise']} {BLANK} {row['hypothesis']}"),
    _task("rte", "hybrid", _RTE, lambda row: f"{row['hypothesis']}? {BLANK}. {row['premise']}"),
    _unified("rte", ("no", "yes"), _RTE, lambda row: f"{row['hypothesis']}? {row['premise']}."),
    _task("boolq", "soft", _BOOLQ, lambda row: f"{row['question']} {BLANK} {row['passage']}"),
    _task(
        "boolq",
        "hybrid",
        _BOOLQ,
        lambda row: f"question: {row['question']}? {BLANK}. {row['passage']}",
    ),
    _unified("boolq", ("no", "yes"), _BOOLQ, lambda row: f"{row['question']}? {row['passage']}."),
    _task("sst2", "soft", _SST2, lambda row: f"{row['sentence'].strip()} {BLANK}"),
    _task("sst2", "hybrid", _SST2, lambda row: f"{row['sentence'].strip()} It was {BLANK}."),
    _unified("sst2", ("bad", "good"), _SST2, lambda row: f"{row['sentence'].strip()}?"),
)

TASKS: tuple[TaskDefinition, ...] = (*PRETEXT_TASKS, *FEW_SHOT_TASKS)
