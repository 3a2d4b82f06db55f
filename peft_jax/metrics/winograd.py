"""Whether a written referent names the referent in question: the Winograd schemas as T5 reads them.

T5 turns SuperGLUE's WSC into text: the model reads a sentence with one pronoun marked and writes
what it stands for. The row offers a referent, and its label says whether that is the right one. The
written text counts as "yes" if it names the offered referent, and as "no" if it names another.
"""

from __future__ import annotations

import numpy as np

from peft_jax.metrics.base import Answers, Figures, Metric

# fmt: off
_DETERMINERS = frozenset((
    "a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that",
    "the", "their", "these", "this", "those", "which", "whose", "your",
))
# fmt: on


def names_referent(text: str, referent: str) -> int:
    """1 if a text names a referent, 0 if it names another, -1 if it says nothing.

    Case and determiners do not count. One of the two may say more ("fuzzy bunny" for "bunny"), in
    any order of words, but a possessive ("Bob's hat") is not its owner ("Bob"). The rule is that of
    t5.data.postprocessors.wsc_simple (t5 0.9.4).
    """
    written, wanted = _without_determiners(text), _without_determiners(referent)
    if not written:
        return -1
    if ("'" in written) != ("'" in wanted):
        return 0
    said, right = set(written.split(" ")), set(wanted.split(" "))
    return int(said <= right or right <= said)


def _without_determiners(text: str) -> str:
    # Split at single spaces, as t5 does: a second space makes an empty word, which is one.
    words = text.strip().lower().split(" ")
    return " ".join(word for word in words if word not in _DETERMINERS)


def wsc(answers: Answers) -> Figures:
    """Share of the rows whose text names the referent if, and only if, it is the right one."""
    pairs = zip(answers.predictions, answers.references, strict=True)
    named = np.array([names_referent(text, references[0]) for text, references in pairs])
    return {"accuracy": 100 * np.mean(named == np.asarray(answers.kept("correct"), int))}


METRICS = (
    Metric(
        "wsc",
        wsc,
        ("accuracy",),
        ("predictions", "references", "keep.correct"),
        "accuracy of SuperGLUE's WSC by T5's rule, where the pronoun's referent is written",
    ),
)
