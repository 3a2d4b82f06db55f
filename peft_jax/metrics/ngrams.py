"""Counts of n-grams, and BLEU and NIST from them as the scripts of the papers have it.

Three BLEUs are in use. T5's is sacrebleu's (``generation.py``); the E2E and the WebNLG challenge
each ran a Perl script whose tokens, case, smoothing and brevity differ, and which are here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

Tokens = Sequence[str]
ORDER, NIST_ORDER = 4, 5
_UPPER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
# Perl's \s, which lacks four control characters of Python's.
_SPACE = re.compile(r"[^\S\x1c-\x1f]+")
_PUNCTUATION = re.compile(r"([{-~\[-` -&(-+:-@/])")


def mteval_tokens(text: str) -> list[str]:
    """The tokens of mteval-v13a: ASCII lower case, punctuation apart but not inside numbers."""
    text = _SPACE.sub(" ", text.translate(_UPPER)).replace("<skipped>", "")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    text = _PUNCTUATION.sub(r" \1 ", f" {text} ")
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    text = re.sub(r"([0-9])(-)", r"\1 \2 ", text)
    return _SPACE.sub(" ", text).strip(" ").split(" ") if text.strip() else []


def count(tokens: Tokens, order: int) -> list[Counter[tuple[str, ...]]]:
    """How often each n-gram occurs, for n = 1 ... order."""
    shifted = [tokens[i:] for i in range(order)]
    return [Counter(zip(*shifted[:n], strict=False)) for n in range(1, order + 1)]


def most(counts: Sequence[list[Counter[tuple[str, ...]]]]) -> list[Counter[tuple[str, ...]]]:
    """Of some texts' counts, each n-gram's in the text where it occurs most."""
    merged = [Counter(order) for order in counts[0]]
    for others in counts[1:]:
        for total, own in zip(merged, others, strict=True):
            total |= own
    return merged


def closest_length(length: int, lengths: Sequence[int]) -> int:
    """Of some reference lengths the one nearest to a text's, the shorter of two equally near."""
    return min(lengths, key=lambda other: (abs(other - length), other))


def bleu_row(tokens: Tokens, references: Sequence[Tokens], reference_length: int) -> list[int]:
    """What BLEU sums over rows: matches and n-grams for n = 1 ... 4, and both lengths."""
    own, best = count(tokens, ORDER), most([count(reference, ORDER) for reference in references])
    matches = [(mine & theirs).total() for mine, theirs in zip(own, best, strict=True)]
    return [*matches, *(grams.total() for grams in own), len(tokens), reference_length]


def mteval_bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU in [0, 1] of sums [..., 10] of :func:`bleu_row`, with mteval-v13a's smoothing.

    The k-th order without a match counts 1 / 2^k matches; an order without n-grams counts as 1.
    """
    matches, totals = sums[..., :ORDER], sums[..., ORDER : 2 * ORDER]
    unmatched = (matches == 0) & (totals > 0)
    smoothed = np.where(unmatched, 0.5 ** np.cumsum(unmatched, axis=-1), matches)
    precision = np.where(totals > 0, smoothed / np.maximum(totals, 1), 1.0)
    return _brevity(sums) * np.exp(np.log(precision).mean(axis=-1))


def multi_bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU in [0, 1] of sums [..., 10] as Moses' multi-bleu.perl: 0 where an order has no match."""
    matches, totals = sums[..., :ORDER], sums[..., ORDER : 2 * ORDER]
    some = np.asarray((matches > 0).all(axis=-1))
    precision = np.where(some[..., None], matches, 1) / np.maximum(totals, 1)
    return np.where(some, _brevity(sums) * np.exp(np.log(precision).mean(axis=-1)), 0.0)


def _brevity(sums: np.ndarray) -> np.ndarray:
    length, reference = sums[..., -2], sums[..., -1]
    penalty = np.exp(np.minimum(0, 1 - reference / np.maximum(length, 1)))
    return np.where(length > 0, penalty, 0.0)


def nist(texts: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """NIST of R tokenised texts as the E2E script's mteval-v13a-sig.pl computes it.

    An n-gram's information is log2 of how often its first n - 1 words occur in all references, over
    how often it occurs itself (Doddington 2002); the length that texts are held against is that
    of all references over their mean number per row. Neither NLTK's NIST, which penalises by the
    closest reference, nor the E2E repository's own Python port gives this script's figure.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    hits: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(NIST_ORDER)]
    totals = np.zeros(NIST_ORDER)
    for tokens, row in zip(texts, references, strict=True):
        counts = [count(reference, NIST_ORDER) for reference in row]
        for order in (order for orders in counts for order in orders):
            seen.update(order)
        own, best = count(tokens, NIST_ORDER), most(counts)
        for n in range(NIST_ORDER):
            hits[n].update(own[n] & best[n])
            totals[n] += own[n].total()
    words = sum(times for gram, times in seen.items() if len(gram) == 1)
    counted = sum(1 for row in references for reference in row if len(reference))
    if not words or not totals[0]:
        return 0.0

    def information(gram: tuple[str, ...]) -> float:
        # Perl takes a first word "0" for no word at all.
        before = words if gram[:-1] in ((), ("0",)) else seen[gram[:-1]]
        return np.log2(before / seen[gram])

    gained = [sum(information(g) * times for g, times in order.items()) for order in hits]
    ratio = totals[0] * counted / (len(texts) * words)
    penalty = np.exp(np.log(0.5) / np.log(1.5) ** 2 * np.log(min(ratio, 1.0)) ** 2)
    return float(penalty * np.sum(gained / np.maximum(totals, 1)))
