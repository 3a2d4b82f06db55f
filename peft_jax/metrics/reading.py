"""Metrics of answers to questions about a text: exact match and F1 over words."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from peft_jax.metrics.base import Answers, Metric, Sums, groups_of, mean_of_rows

Normalize = Callable[[str], str]
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACED_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`_", " "))


def normalize_squad(text: str) -> str:
    """Lower case, with no punctuation and no articles (SQuAD 1.1's evaluation script)."""
    return _squeeze(text.lower().translate(_NO_PUNCTUATION))


def normalize_trivia_qa(text: str) -> str:
    """As SQuAD's, but punctuation separates words (TriviaQA's evaluation script)."""
    return _squeeze(text.lower().translate(_SPACED_PUNCTUATION))


def _squeeze(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text).split())


def word_f1(reference: str, prediction: str) -> float:
    """F1 of two normalised texts as bags of words, in [0, 1]; 0 where they share none."""
    wanted, given = reference.split(), prediction.split()
    shared = (Counter(wanted) & Counter(given)).total()
    return 2 * shared / (len(wanted) + len(given)) if shared else 0.0


def answer_scores(
    prediction: str, references: Sequence[str], normalize: Normalize = normalize_squad
) -> tuple[float, float]:
    """(F1, exact match) in [0, 1], each the best over the references."""
    text, right = normalize(prediction), [normalize(reference) for reference in references]
    return max(word_f1(reference, text) for reference in right), float(text in right)


def _question_answering(normalize: Normalize) -> Sums:
    def values(answers: Answers) -> list[tuple[float, float]]:
        pairs = zip(answers.predictions, answers.references, strict=True)
        return [answer_scores(text, references, normalize) for text, references in pairs]

    return mean_of_rows("f1", "em", values=values)


def record(answers: Answers) -> dict[str, float]:
    """SQuAD's figures over the first row of each ``keep["group"]``.

    The references are ``keep["answers"]`` where the row has it: ReCoRD is trained with one example
    per answer, and each query is scored once against them all.
    """
    first = answers.select([rows[0] for rows in groups_of(answers.kept("group"))])
    references = [
        kept.get("answers") or references
        for kept, references in zip(first.keep, first.references, strict=True)
    ]
    pairs = zip(first.predictions, references, strict=True)
    scores = [answer_scores(text, right) for text, right in pairs]
    f1, em = (100 * sum(column) / len(scores) for column in zip(*scores, strict=True))
    return {"f1": f1, "em": em}


_DETERMINERS = re.compile(
    "a|an|the|this|that|these|those|few|some|many|much|each|every|which|whose|my|your|his|her|our|"
    "their"
)


def names_referent(prediction: str, referent: str) -> int:
    """T5's rule for WSC: 1, the text names the referent; 0, it does not; -1, it is empty.

    Case and determiners are ignored, and one text's words may be some of the other's, but only
    one of two texts with an apostrophe ("Bob", "Bob's hat") are never the same (Raffel et al. 2020,
    appendix B; t5's postprocessor ``wsc_simple``).
    """

    def cleaned(text: str) -> str:
        words = text.strip().lower().split(" ")
        return " ".join(word for word in words if not _DETERMINERS.fullmatch(word))

    given, wanted = cleaned(prediction), cleaned(referent)
    if not given:
        return -1
    if ("'" in given) != ("'" in wanted):
        return 0
    one, other = set(given.split(" ")), set(wanted.split(" "))
    return int(one <= other or other <= one)


def wsc(answers: Answers) -> list[bool]:
    """R: the text names the referent, the first reference, exactly where ``keep["label"]`` is 1."""
    rows = zip(answers.predictions, answers.references, answers.kept("label"), strict=True)
    return [names_referent(text, references[0]) == int(label) for text, references, label in rows]


_TEXTS, _FIGURES = ("predictions", "references"), ("f1", "em")
METRICS = (
    Metric(
        "squad",
        _question_answering(normalize_squad),
        _FIGURES,
        _TEXTS,
        "SQuAD 1.1's F1 and exact match, the best over the references",
    ),
    Metric(
        "trivia_qa",
        _question_answering(normalize_trivia_qa),
        _FIGURES,
        _TEXTS,
        "TriviaQA's F1 and exact match, the best over the references",
    ),
    Metric(
        "record",
        record,
        _FIGURES,
        (*_TEXTS, "keep.group"),
        "ReCoRD: SQuAD's figures, one row per keep.group, over keep.answers where a row has it",
    ),
    Metric(
        "wsc",
        mean_of_rows("accuracy", values=wsc),
        ("accuracy",),
        (*_TEXTS, "keep.label"),
        "WSC as T5 has it: the text names the referent exactly where keep.label is 1",
    ),
)
