"""The figures that papers report, on one record of answers.

``compute(names, answers)`` gives the figures of the named metrics; ``METRICS`` holds them all, and
``describe()`` lists what each of them reads. The libraries that compute them (scikit-learn, SciPy,
sacrebleu, rouge-score) are imported when a metric is first called.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from peft_jax.errors import InputError
from peft_jax.metrics import bias, calibration, classification, generation, numbers, reading
from peft_jax.metrics.base import Answers, Figures, Metric
from peft_jax.metrics.generation import missing

__all__ = ["METRICS", "Answers", "Figures", "Metric", "compute", "describe", "find", "missing"]

_MODULES = (classification, numbers, reading, generation, bias, calibration)
METRICS: dict[str, Metric] = {
    metric.name: metric for module in _MODULES for metric in module.METRICS
}


def find(name: str) -> Metric:
    """The metric of that name.

    Raises:
      InputError: there is none; the message has the nearest names.
    """
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=3, cutoff=0.4) or sorted(METRICS)
        raise InputError(f"no metric is called {name!r}; is it one of {', '.join(near)}?")
    return METRICS[name]


def compute(names: Sequence[str], answers: Answers) -> Figures:
    """The figures of all named metrics, in the order of the names.

    Raises:
      InputError: an unknown name, answers that lack what a metric reads, or two metrics that call
        a figure by one name.
    """
    figures: Figures = {}
    for metric in [find(name) for name in dict.fromkeys(names)]:
        own = metric(answers)
        if both := figures.keys() & own.keys():
            raise InputError(
                f"metric {metric.name!r} and one named before it both give {min(both)!r}: "
                "compute them apart"
            )
        figures |= own
    return figures


def describe() -> list[dict[str, str]]:
    """One row per metric: its name, figures, what it reads of the answers, and its source."""
    return [
        {
            "metric": metric.name,
            "figures": ", ".join(metric.figures),
            "reads": ", ".join(metric.reads),
            "about": metric.about,
        }
        for metric in METRICS.values()
    ]
