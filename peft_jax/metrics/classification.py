"""Metrics of chosen classes."""

from __future__ import annotations

import numpy as np

from peft_jax.metrics.base import Answers, Figures, Metric, groups_of, mean_of_rows


def correct(answers: Answers) -> np.ndarray:
    """[R] bool: the chosen class is right."""
    return answers.chosen() == np.asarray(answers.labels)


def matches(answers: Answers) -> list[bool]:
    """R: the text equals one of the references, character by character."""
    pairs = zip(answers.predictions, answers.references, strict=True)
    return [text in references for text, references in pairs]


def f1(answers: Answers) -> Figures:
    """F1 of class 1; a prediction that is neither 0 nor 1 counts as the wrong one of the two."""
    return {"f1": _binary_f1(np.asarray(answers.labels), answers.chosen())}


def _binary_f1(labels: np.ndarray, chosen: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    valid = (chosen == 0) | (chosen == 1)
    return 100 * f1_score(labels, np.where(valid, chosen, 1 - labels), zero_division=0)


def macro_f1(answers: Answers) -> Figures:
    """Mean over all of the task's classes of each class's F1; a class that never occurs has 0."""
    return {"macro_f1": _macro_f1(answers, np.arange(answers.classes()))}


def macro_f1_seen(answers: Answers) -> Figures:
    """As ``macro_f1``, over the classes that occur among the labels or the predictions alone."""
    seen = np.union1d(np.asarray(answers.labels), answers.chosen())
    return {"macro_f1_seen": _macro_f1(answers, seen[seen >= 0])}


def _macro_f1(answers: Answers, classes: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    if not len(classes):
        return 0.0
    return 100 * f1_score(
        answers.labels, answers.chosen(), labels=classes, average="macro", zero_division=0
    )


def matthews(answers: Answers) -> Figures:
    """Matthews correlation; -1, a text that is no choice, is a class of its own as in t5."""
    from sklearn.metrics import matthews_corrcoef

    return {"matthews": 100 * matthews_corrcoef(answers.labels, answers.chosen())}


def multirc(answers: Answers) -> Figures:
    """F1 over all answers (F1a), and the share of questions with every answer judged right."""
    labels, chosen = np.asarray(answers.labels), answers.chosen()
    whole = [np.array_equal(labels[r], chosen[r]) for r in groups_of(answers.kept("group"))]
    return {"f1a": _binary_f1(labels, chosen), "em": 100 * float(np.mean(whole))}


_CLASSES = ("predicted", "labels")
METRICS = (
    Metric(
        "accuracy",
        mean_of_rows("accuracy", values=correct),
        ("accuracy",),
        _CLASSES,
        "share of rows answered right",
    ),
    Metric(
        "exact_match",
        mean_of_rows("exact_match", values=matches),
        ("exact_match",),
        ("predictions", "references"),
        "share of rows whose text is one of the references, compared as it stands",
    ),
    Metric("f1", f1, ("f1",), _CLASSES, "F1 of class 1 (GLUE's MRPC and QQP); invalid is wrong"),
    Metric(
        "macro_f1",
        macro_f1,
        ("macro_f1",),
        _CLASSES,
        "mean F1 over all classes of the task (SuperGLUE's CB)",
    ),
    Metric(
        "macro_f1_seen",
        macro_f1_seen,
        ("macro_f1_seen",),
        _CLASSES,
        "mean F1 over the classes that occur (RAFT's scorer, scikit-learn's default)",
    ),
    Metric("matthews", matthews, ("matthews",), _CLASSES, "Matthews correlation x 100 (CoLA)"),
    Metric(
        "multirc",
        multirc,
        ("f1a", "em"),
        (*_CLASSES, "keep.group"),
        "MultiRC: F1 over all answers, and exact match per question (keep.group: the question)",
    ),
)
