"""Bootstrap confidence intervals of any metric, and of the difference of two systems.

Rows are drawn with replacement and the metric is computed of each draw, so that it works for corpus
metrics too. Rows that belong together (the templates of one example, the answers of one question)
are drawn together: ``clusters`` says which. Medians and interquartile ranges over templates and
seeds are ``peft_jax.evaluation.spread``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np

from peft_jax.errors import InputError
from peft_jax.metrics import find
from peft_jax.metrics.base import Answers, Metric, Sums, groups_of

Method = Literal["percentile", "bca"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap confidence interval.

    Attributes:
      value: of all rows.
      low, high: of the interval.
      standard_error: standard deviation over the draws.
      confidence: of the interval, e.g. 0.95.
    """

    value: float
    low: float
    high: float
    standard_error: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """A figure of one system less that of another.

    Attributes:
      p_value: two-sided: twice the share of draws in which the difference has the other sign or
        is zero, at least 2 / (draws + 1) and at most 1 (Koehn 2004; Efron and Tibshirani 1993,
        section 15.4).
    """

    p_value: float


def bootstrap(
    metric: str | Metric,
    answers: Answers,
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    method: Method = "percentile",
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict[str, Interval]:
    """Each of a metric's figures with its interval.

    Metrics that sum over rows (accuracy, F1 of SQuAD, BLEU, ROUGE) take milliseconds; others are
    computed anew of every draw.

    Args:
      draws: how many.
      method: "percentile", or "bca": bias-corrected and accelerated (Efron 1987), which for other
        than summing metrics costs one more computation per cluster.
      clusters: R keys; rows with one key are drawn together. None: each row by itself, or each
        ``keep["group"]`` where the metric reads it.

    Raises:
      InputError: answers that lack what the metric reads, or arguments out of range.
    """
    metric = _checked(metric, draws, confidence, method)
    metric.check(answers)
    groups = _groups(metric, answers, clusters)
    sample = _sampler(metric, answers, groups)
    drawn = sample(_draws(len(groups), draws, seed))
    left_out = sample(_one_left_out(len(groups))) if method == "bca" else None
    intervals = {}
    for name, value in metric(answers).items():
        limits = _limits(name, value, drawn, left_out, confidence)
        intervals[name] = Interval(value, *limits, float(drawn[name].std()), confidence)
    return intervals


def paired_bootstrap(
    metric: str | Metric,
    answers: Answers,
    others: Answers,
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    method: Method = "percentile",
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict[str, Difference]:
    """A metric's figures of one system less those of another, on the same draws of rows.

    Arguments as in :func:`bootstrap`; both answers must be of the same rows in the same order.
    """
    metric = _checked(metric, draws, confidence, method)
    if len(answers) != len(others):
        raise InputError(f"one system answers {len(answers)} rows, the other {len(others)}")
    metric.check(answers)
    metric.check(others)
    groups = _groups(metric, answers, clusters)
    one, other = (_sampler(metric, system, groups) for system in (answers, others))

    def sample(counts: np.ndarray) -> dict[str, np.ndarray]:
        mine, theirs = one(counts), other(counts)
        return {name: mine[name] - theirs[name] for name in mine}

    drawn = sample(_draws(len(groups), draws, seed))
    left_out = sample(_one_left_out(len(groups))) if method == "bca" else None
    theirs = metric(others)
    differences = {}
    for name, value in metric(answers).items():
        difference = value - theirs[name]
        not_better = ((drawn[name] <= 0).sum() + 1) / (draws + 1)
        not_worse = ((drawn[name] >= 0).sum() + 1) / (draws + 1)
        limits = _limits(name, difference, drawn, left_out, confidence)
        p_value = min(1.0, 2 * float(min(not_better, not_worse)))
        error = float(drawn[name].std())
        differences[name] = Difference(difference, *limits, error, confidence, p_value)
    return differences


def bootstrap_median(
    metric: str | Metric,
    parts: Sequence[Answers],
    clusters: Sequence[Sequence[Hashable]],
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of the median, over several parts, of a metric's reported figure.

    Such as the same examples under several templates, whose median papers report: what is drawn is
    drawn for all parts at once.

    Args:
      parts: the answers of each.
      clusters: for each part the keys of its rows; rows of one key are drawn together.

    Returns (low, high). Raises InputError as :func:`bootstrap`.
    """
    metric = _checked(metric, draws, confidence, "percentile")
    place = {key: i for i, key in enumerate(dict.fromkeys(k for own in clusters for k in own))}
    counts = _draws(len(place), draws, seed)
    figures = []
    for answers, own in zip(parts, clusters, strict=True):
        metric.check(answers)
        groups: list[list[int]] = [[] for _ in place]
        for row, key in enumerate(own):
            groups[place[key]].append(row)
        # A part none of whose rows are drawn has no figure.
        with np.errstate(invalid="ignore", divide="ignore"):
            figures.append(_sampler(metric, answers, groups)(counts)[metric.figures[0]])
    medians = np.nanmedian(np.asarray(figures, np.float64), axis=0)
    low, high = np.nanpercentile(medians, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


def _checked(metric: str | Metric, draws: int, confidence: float, method: str) -> Metric:
    if draws < 1:
        raise InputError(f"draws is {draws}; it must be at least 1")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; it must lie between 0 and 1")
    if method not in ("percentile", "bca"):
        raise InputError(f"method {method!r} is neither 'percentile' nor 'bca'")
    return find(metric) if isinstance(metric, str) else metric


def _groups(
    metric: Metric, answers: Answers, clusters: Sequence[Hashable] | None
) -> list[list[int]]:
    if clusters is None and "keep.group" in metric.reads:
        clusters = answers.kept("group")
    if clusters is None:
        return [[row] for row in range(len(answers))]
    if len(clusters) != len(answers):
        raise InputError(f"{len(clusters)} clusters are given for {len(answers)} rows")
    return groups_of(list(clusters))


# --------------------------------------------------------------------------------------------
# Draws, as how often each group occurs: [draws, groups]
# --------------------------------------------------------------------------------------------
def _draws(groups: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)


def _one_left_out(groups: int) -> np.ndarray:
    return 1 - np.eye(groups, dtype=np.int64) if groups > 1 else np.ones((1, 1), np.int64)


Sampler = Callable[[np.ndarray], dict[str, np.ndarray]]


def _sampler(metric: Metric, answers: Answers, groups: list[list[int]]) -> Sampler:
    """The figures, each [draws], of draws of the groups."""
    if isinstance(metric.function, Sums):
        sums = metric.function
        rows = sums.rows(answers)
        per_group = np.stack([rows[group].sum(axis=0) for group in groups])
        return lambda counts: sums.figures(counts @ per_group)

    def one(count: np.ndarray) -> dict[str, float]:
        repeated = np.repeat(np.arange(len(groups)), count)
        return metric(_redrawn(answers, groups, repeated))

    def sample(counts: np.ndarray) -> dict[str, np.ndarray]:
        figures = [one(count) for count in counts]
        return {name: np.array([f[name] for f in figures]) for name in figures[0]}

    return sample


def _redrawn(answers: Answers, groups: list[list[int]], drawn: np.ndarray) -> Answers:
    """The rows of the drawn groups; a question that is drawn twice is two questions."""
    rows = [row for group in drawn for row in groups[group]]
    selected = answers.select(rows)
    if not (len(answers.keep) and "group" in answers.keep[0]):
        return selected
    draw = [index for index, group in enumerate(drawn) for _ in groups[group]]
    keep = [
        {**kept, "group": (index, str(kept["group"]))}
        for index, kept in zip(draw, selected.keep, strict=True)
    ]
    return dataclasses.replace(selected, keep=keep)


def _limits(
    name: str,
    value: float,
    drawn: dict[str, np.ndarray],
    left_out: dict[str, np.ndarray] | None,
    confidence: float,
) -> tuple[float, float]:
    from scipy.special import ndtr, ndtri

    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    figures = drawn[name]
    if left_out is not None and figures.std() > 0:
        share = ((figures < value).mean() + (figures <= value).mean()) / 2
        bias = ndtri(np.clip(share, 0.5 / len(figures), 1 - 0.5 / len(figures)))
        away = left_out[name].mean() - left_out[name]
        spread = (away**2).sum() ** 1.5
        acceleration = (away**3).sum() / (6 * spread) if spread else 0.0
        normal = bias + ndtri(tails)
        tails = ndtr(bias + normal / (1 - acceleration * normal))
    low, high = np.quantile(figures, tails)
    return float(low), float(high)
