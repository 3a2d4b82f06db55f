"""ROUGE-L and CIDEr of the MS COCO caption evaluation, which the E2E challenge took over.

Both read texts as ``ptb_tokenizer.caption_tokens`` leaves them. ROUGE-L here is not rouge-score's:
precision and recall are the best over the references each, and recall weighs more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from peft_jax.metrics.ngrams import count

BETA = 1.2  # of ROUGE-L: weight of recall
SIGMA = 6.0  # of CIDEr-D's penalty on a difference in length
ORDER = 4


def rouge_l(text: str, references: Sequence[str]) -> float:
    """F of the longest common subsequence, in [0, 1] (pycocoevalcap's, after Lin 2004)."""
    tokens = text.split(" ")
    precision = recall = 0.0
    for reference in references:
        other = reference.split(" ")
        common = _longest_common(tokens, other)
        precision, recall = max(precision, common / len(tokens)), max(recall, common / len(other))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence; a row of its table is the bits of one number.

    A bit is 0 where the length grows from one word of ``one`` to the next (Hyyrö 2004).
    """
    where: dict[str, int] = {}
    for place, word in enumerate(one):
        where[word] = where.get(word, 0) | 1 << place
    row = every = (1 << len(one)) - 1
    for word in other:
        match = row & where.get(word, 0)
        row = (row + match | row - match) & every
    return len(one) - row.bit_count()


def cider(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of R texts, usually between 0 and 10 (Vedantam et al. 2015, section 8).

    Document frequencies are those of these references. The length in the penalty is counted in
    bigrams, as pycocoevalcap does.
    """
    grams = [[_grams(reference) for reference in row] for row in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for row in grams:
        frequency.update({gram for counts in row for order in counts for gram in order})
    weight = {gram: np.log(len(texts)) - np.log(times) for gram, times in frequency.items()}
    unseen = np.log(len(texts))

    def vectors(counts):
        weighted = [{g: n * weight.get(g, unseen) for g, n in order.items()} for order in counts]
        return [(order, np.sqrt(sum(v * v for v in order.values()))) for order in weighted]

    scores = []
    for text, row in zip(texts, grams, strict=True):
        own = _grams(text)
        mine, length = vectors(own), own[1].total()
        similar = [_similarity(mine, vectors(counts), length - counts[1].total()) for counts in row]
        scores.append(10 * np.mean(similar))
    return float(np.mean(scores))


def _grams(text: str) -> list[Counter[tuple[str, ...]]]:
    return count(text.split(), ORDER)


def _similarity(mine: list, other: list, difference: int) -> float:
    """Mean over n of the clipped cosine, times the penalty on a difference in length."""
    cosines = []
    for (a, norm), (b, other_norm) in zip(mine, other, strict=True):
        product = sum(min(value, b[gram]) * b[gram] for gram, value in a.items() if gram in b)
        norms = norm * other_norm
        cosines.append(product / norms if norms else product)
    return float(np.mean(cosines)) * float(np.exp(-(difference**2) / (2 * SIGMA**2)))
