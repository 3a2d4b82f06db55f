"""Metrics of texts that are numbers."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

import numpy as np

from peft_jax.metrics.base import Answers, Figures, Metric, mean_of_rows

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_MARKED = re.compile(r"####\s*\$?\s*(-?[\d.,]+)")


def to_float(text: str, default: float = -1.0) -> float:
    """The number that a text is; ``default`` (t5's) where it is none, or is not finite."""
    try:
        value = float(text)
    except ValueError:
        return default
    return value if math.isfinite(value) else default


def pearson(answers: Answers) -> Figures:
    """Pearson's correlation of the predicted and the first reference's numbers."""
    from scipy.stats import pearsonr

    return {"pearson": 100 * _correlation(pearsonr, answers)}


def spearman(answers: Answers) -> Figures:
    """Spearman's rank correlation; ties share their mean rank."""
    from scipy.stats import spearmanr

    return {"spearman": 100 * _correlation(spearmanr, answers)}


def _correlation(function: Callable, answers: Answers) -> float:
    """NaN where it is not defined: one row, or the same number everywhere."""
    predicted = np.array([to_float(text) for text in answers.predictions])
    wanted = np.array([to_float(references[0]) for references in answers.references])
    if len(wanted) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's, of constant numbers
        return float(function(wanted, predicted)[0])


def final_number(text: str) -> Decimal | None:
    """The number behind ``####`` or, without that mark, the last number of the text."""
    marked = _MARKED.findall(text)
    found = marked[-1:] or _NUMBER.findall(text)[-1:]
    if not found:
        return None
    try:
        return Decimal(found[0].rstrip(".,").replace(",", ""))
    except InvalidOperation:
        return None


def same_number(answers: Answers) -> list[bool]:
    """R: the final number is that of one of the references, as a number (7.0 is 7)."""
    right = []
    for text, references in zip(answers.predictions, answers.references, strict=True):
        number = final_number(text)
        right.append(number is not None and number in map(final_number, references))
    return right


_TEXTS = ("predictions", "references")
METRICS = (
    Metric(
        "pearson",
        pearson,
        ("pearson",),
        _TEXTS,
        "Pearson's correlation x 100 (STS-B); a text that is no number is -1, as in t5",
    ),
    Metric(
        "spearman",
        spearman,
        ("spearman",),
        _TEXTS,
        "Spearman's correlation x 100 (STS-B); a text that is no number is -1, as in t5",
    ),
    Metric(
        "gsm8k",
        mean_of_rows("gsm8k", values=same_number),
        ("gsm8k",),
        _TEXTS,
        "GSM8K: share of right final numbers: the one behind ####, or else the last one",
    ),
)
