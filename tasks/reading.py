"""Reading comprehension in T5's form: SQuAD, and the sets of MRQA 2019 for domain transfer.

``question: ... context: ...``, answered by a span of the context, with a space on both sides of all
punctuation (t5.data.preprocessors.squad; the prompt-tuning repository's ``mrqa`` does the same to
MRQA's sets). The first answer is the target; an evaluation takes the best of all answers.

Rows are read as TFDS and Hugging Face have them, from SQuAD's own JSON, and from MRQA's JSON lines,
whose first line is a header.
"""

from collections.abc import Mapping

from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.prompts import Rendered, TextFormat
from peft_jax.tasks.t5_formats import MAX_INPUT_LENGTH, collapse_spaces, pad_punctuation

GROUP = "Reading (T5)"


# --------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------
def reading_rows(row: dict) -> list[dict]:
    """A row of any of the sources -> rows with id, question, context and ``answers``, texts.

    Taken are a flat row (Hugging Face, TFDS), an article of SQuAD's JSON (``paragraphs``), a
    paragraph with its ``qas`` (SQuAD's, MRQA's) and MRQA's header, which holds no row.

    Raises InputError for a question without an answer, which SQuAD 2.0 has and T5's form cannot
    ask.
    """
    if "header" in row and "qas" not in row:
        return []
    if "paragraphs" in row:
        return [made for paragraph in row["paragraphs"] for made in reading_rows(paragraph)]
    if "qas" not in row:
        return [_reading_row(row, _text(row["context"]))]
    return [_reading_row(asked, row["context"]) for asked in row["qas"]]


def _reading_row(asked: Mapping, context: str) -> dict:
    name = _text(asked.get("qid", asked.get("id", "")))
    answers = _answers(asked.get("answers")) or _answers(asked.get("detected_answers"))
    if not answers:
        raise InputError(
            f"question {name!r} has no answer: the questions of SQuAD 2.0 that cannot be answered "
            "are no part of this form"
        )
    question = _text(asked["question"])
    if "qid" in asked:  # MRQA's texts are stripped as in TFDS, SQuAD's are not
        question, context = question.strip(), context.strip()
    return {"id": name, "question": question, "context": context, "answers": answers}


def _answers(found) -> list[str]:
    """Texts; ``{"text": texts}`` or ``[{"text": text}]``, with where they stand; or nothing."""
    if found is None:
        return []
    if isinstance(found, Mapping):
        found = found["text"]
    return [_text(one["text"] if isinstance(one, Mapping) else one) for one in found]


def _text(value) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _dataset(name: str, tfds: str, sizes: Mapping[str, int], **details) -> Dataset:
    return Dataset(
        name=name,
        fields=("question", "context", "answers"),
        label_field=None,
        tfds=tfds,
        expand=reading_rows,
        sizes=sizes,
        **details,
    )


SQUAD = _dataset(
    "squad",
    "squad/v1.1",
    {"train": 87599, "validation": 10570},
    hub="squad/plain_text",
    folder="squad",
    download="rajpurkar.github.io/SQuAD-explorer: train-v1.1.json and dev-v1.1.json as train.json "
    "and validation.json; or huggingface.co/datasets/rajpurkar/squad",
)

# Our name, TFDS's name, the name of MRQA's file, rows.
_OUT_OF_DOMAIN = (
    ("textbookqa", "textbook_qa", "TextbookQA", {"test": 1503}),
    ("bioasq", "bio_asq", "BioASQ", {"test": 1504}),
    ("race", "race", "RACE", {"test": 674}),
    ("re", "relation_extraction", "RelationExtraction", {"test": 2948}),
    ("duorc", "duo_rc", "DuoRC.ParaphraseRC", {"test": 1501}),
    ("drop", "drop", "DROP", {"test": 1503}),
)
_IN_DOMAIN = (
    ("newsqa", "news_qa", "NewsQA", {"train": 74160, "validation": 4212}),
    ("triviaqa", "trivia_qa", "TriviaQA-web", {"train": 61688, "validation": 7785}),
    ("searchqa", "search_qa", "SearchQA", {"train": 117384, "validation": 16980}),
    ("hotpotqa", "hotpot_qa", "HotpotQA", {"train": 72928, "validation": 5901}),
    ("nq", "natural_questions", "NaturalQuestionsShort", {"train": 104071, "validation": 12836}),
)


def _mrqa(name: str, tfds: str, file: str, sizes: Mapping[str, int]) -> Dataset:
    held_out = "train" not in sizes
    return _dataset(
        f"mrqa_{name}",
        f"mrqa/{tfds}",
        sizes,
        folder=f"mrqa_{name}",
        # Sets that no one trains on have a test split alone, which stands for validation.
        splits={"validation": "test"} if held_out else {},
        download=f"github.com/mrqa/MRQA-Shared-Task-2019: {file}.jsonl.gz as "
        + ("test" if held_out else "train or validation")
        + ".jsonl.gz; or tensorflow.org/datasets",
    )


DATASETS = (SQUAD, *(_mrqa(*entry) for entry in (*_OUT_OF_DOMAIN, *_IN_DOMAIN)))


# --------------------------------------------------------------------------------------------
# Texts and tasks
# --------------------------------------------------------------------------------------------
def question_and_context(row: Mapping) -> Rendered:
    """``question: ... context: ...`` -> the first answer, all with padded punctuation."""
    question, context = pad_punctuation(row["question"]), pad_punctuation(row["context"])
    answers = tuple(pad_punctuation(answer) for answer in row["answers"])
    text = collapse_spaces(f"question: {question} context: {context}")
    return Rendered(text, answers[0], references=answers)


def question_alone(row: Mapping) -> Rendered:
    """The question without its context, to be answered by heart."""
    answers = tuple(pad_punctuation(answer) for answer in row["answers"])
    text = collapse_spaces(f"squad trivia question: {pad_punctuation(row['question'])}")
    return Rendered(text, answers[0], references=answers)


def _task(name: str, dataset: Dataset, about: str, aliases: tuple[str, ...], **details):
    details = {"formats": (TextFormat("t5", question_and_context),)} | details
    return TaskDefinition(
        name,
        dataset,
        GROUP,
        metrics=("squad",),
        about=about,
        max_input_length=MAX_INPUT_LENGTH,
        aliases=aliases,
        **details,
    )


def _mrqa_task(entry: tuple, dataset: Dataset) -> TaskDefinition:
    name, tfds, file, sizes = entry
    return _task(
        f"mrqa_{name}",
        dataset,
        f"{file} of MRQA 2019 ({'in' if 'train' in sizes else 'out of'} domain) in SQuAD's form "
        "(Lester et al. 2021, section 5)",
        tuple(dict.fromkeys((f"mrqa_{tfds}_v100", f"mrqa_{tfds}"))),
    )


TASKS: tuple[TaskDefinition, ...] = (
    _task(
        "squad",
        SQUAD,
        "Which words of the context answer? (Raffel et al. 2020, appendix D.15)",
        ("squad_v010_allanswers", "squad_v010"),
    ),
    _task(
        "squad_context_free",
        SQUAD,
        "SQuAD's questions without their context (t5)",
        ("squad_v010_context_free",),
        formats=(TextFormat("t5_context_free", question_alone),),
    ),
    *(
        _mrqa_task(entry, dataset)
        for entry, dataset in zip((*_OUT_OF_DOMAIN, *_IN_DOMAIN), DATASETS[1:], strict=True)
    ),
)
