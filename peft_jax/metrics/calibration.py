"""Whether probabilities can be believed, and how to make them more so."""

from __future__ import annotations

import dataclasses

import numpy as np

from peft_jax.errors import InputError
from peft_jax.metrics.base import Answers, Figures, Metric

BINS = 15  # as Guo et al. 2017 use


@dataclasses.dataclass(frozen=True)
class ReliabilityBin:
    """The rows whose confidence lies in (low, high].

    Attributes:
      low, high: of confidence, in [0, 1].
      count: rows.
      confidence: their mean, NaN where there are none.
      accuracy: share of them that is right, in [0, 1].
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def normalize(scores: np.ndarray) -> np.ndarray:
    """[R, C] float64 log-probabilities over the choices alone: they sum to one in each row.

    Raises:
      InputError: a row whose scores are all -inf, or one that is not a number.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2:
        raise InputError(f"scores must be [rows, choices], not of shape {scores.shape}")
    best = scores.max(axis=1, keepdims=True)
    if not np.isfinite(best).all():
        row = int(np.flatnonzero(~np.isfinite(best[:, 0]))[0])
        raise InputError(f"row {row} has no finite score: {scores[row].tolist()}")
    return scores - best - np.log(np.exp(scores - best).sum(axis=1, keepdims=True))


def reliability(
    scores: np.ndarray, labels: np.ndarray, *, bins: int = BINS, adaptive: bool = False
) -> list[ReliabilityBin]:
    """The table behind a reliability diagram (Guo et al. 2017, section 2).

    Args:
      scores: [R, C] log-probabilities, -inf where a row has no such choice. They are normalised
        over the choices; the confidence is the highest probability.
      labels: [R] int.
      bins: how many.
      adaptive: bins with equally many rows each (Nguyen and O'Connor 2015), not of equal width.
    """
    log_probabilities = normalize(scores)
    confidence = np.exp(log_probabilities.max(axis=1))
    right = log_probabilities.argmax(axis=1) == np.asarray(labels)
    if adaptive:
        order = np.argsort(confidence, kind="stable")
        parts = [part for part in np.array_split(order, bins) if len(part)]
        return [
            _bin(confidence[part].min(), confidence[part].max(), part, confidence, right)
            for part in parts
        ]
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    return [
        _bin(edges[i], edges[i + 1], np.flatnonzero(index == i), confidence, right)
        for i in range(bins)
    ]


def _bin(low, high, rows, confidence, right) -> ReliabilityBin:
    if not len(rows):
        return ReliabilityBin(float(low), float(high), 0, float("nan"), float("nan"))
    mean, share = float(confidence[rows].mean()), float(right[rows].mean())
    return ReliabilityBin(float(low), float(high), len(rows), mean, share)


def calibration_error(table: list[ReliabilityBin]) -> float:
    """Mean over the rows of their bin's |accuracy - confidence|, in [0, 1]."""
    filled = [row for row in table if row.count]
    total = sum(row.count for row in filled)
    return sum(row.count * abs(row.accuracy - row.confidence) for row in filled) / total


def contextual_calibration(log_probabilities: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    """Divides the classes' probabilities by those that inputs without content get.

    Args:
      log_probabilities: [R, C] of the choices.
      content_free: [K, C] of the same choices for inputs such as "N/A", "" and "[MASK]"; their
        probabilities are averaged over the K inputs.

    Returns:
      [R, C] float64 log-probabilities, each row normalised: log softmax of log p - log p_cf, whose
      argmax is that of W p + b with W = diag(p_cf)^-1 and b = 0 (Zhao et al. 2021, section 5).

    Raises:
      InputError: other classes in one than in the other, or a choice that exists but has no
        content-free probability.
    """
    scores = np.asarray(log_probabilities, np.float64)
    free = np.asarray(content_free, np.float64)
    if free.ndim != 2 or scores.ndim != 2 or free.shape[1] != scores.shape[1]:
        raise InputError(
            f"content-free scores of shape {free.shape} do not fit choices of shape "
            f"{scores.shape}: both must be [rows, choices]"
        )
    prior = normalize(np.logaddexp.reduce(free, axis=0)[None])[0]
    exists = np.isfinite(scores)
    if (exists & ~np.isfinite(prior)).any():
        choice = int(np.flatnonzero((exists & ~np.isfinite(prior)).any(axis=0))[0])
        raise InputError(f"choice {choice} has no content-free probability")
    return normalize(np.where(exists, scores - np.where(exists, prior, 0), -np.inf))


def ece(answers: Answers) -> Figures:
    """Expected calibration error over 15 bins of equal width, in percent."""
    return {"ece": 100 * calibration_error(_table(answers, adaptive=False))}


def ece_adaptive(answers: Answers) -> Figures:
    """Expected calibration error over 15 bins of equally many rows, in percent."""
    return {"ece_adaptive": 100 * calibration_error(_table(answers, adaptive=True))}


def _table(answers: Answers, *, adaptive: bool) -> list[ReliabilityBin]:
    scores, labels = np.asarray(answers.scores), np.asarray(answers.labels)
    return reliability(scores, labels, adaptive=adaptive)


METRICS = (
    Metric(
        "ece",
        ece,
        ("ece",),
        ("scores", "labels"),
        "expected calibration error, 15 bins of equal width (Guo et al. 2017)",
    ),
    Metric(
        "ece_adaptive",
        ece_adaptive,
        ("ece_adaptive",),
        ("scores", "labels"),
        "expected calibration error, 15 bins of equally many rows (Nguyen and O'Connor 2015)",
    ),
)
