"""Which of two features a system answers by, where demonstrations left both possible."""

from __future__ import annotations

import numpy as np

from peft_jax.errors import InputError
from peft_jax.metrics.base import Answers, Figures, Metric


def h_accuracy(answers: Answers) -> Figures:
    """Share of the answers that the features h1 and h2 of the rows foretell.

    ``keep["h1"]`` and ``keep["h2"]`` are classes (int), compared with what was chosen, or texts,
    compared with the predictions. Rows on which the features agree tell nothing and are left out;
    the two figures sum to 100 where every answer is one of the two classes (Si et al. 2023,
    section 3).

    Raises:
      InputError: the features agree on every row.
    """
    h1, h2 = answers.kept("h1"), answers.kept("h2")
    apart = np.array([first != second for first, second in zip(h1, h2, strict=True)])
    if not apart.any():
        raise InputError("metric 'h_accuracy' cannot be had: h1 and h2 agree on every row")
    texts = isinstance(h1[0], str)
    given = list(answers.predictions) if texts else answers.chosen().tolist()

    def share(feature: list) -> float:
        equal = np.array([one == other for one, other in zip(given, feature, strict=True)])
        return 100 * equal[apart].mean()

    return {"h1_accuracy": share(h1), "h2_accuracy": share(h2)}


METRICS = (
    Metric(
        "h_accuracy",
        h_accuracy,
        ("h1_accuracy", "h2_accuracy"),
        ("keep.h1", "keep.h2"),
        "share of answers that follow feature h1, and h2, where the two disagree (Si et al. 2023)",
    ),
)
