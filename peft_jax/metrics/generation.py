"""Metrics of generated text: BLEU, chrF, TER, ROUGE, and those of the table-to-text challenges.

sacrebleu and rouge-score compute what they can; ``ngrams``, ``captions`` and ``java_tools`` hold
what the challenges' own scripts have otherwise.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from peft_jax.metrics import captions, java_tools, ngrams
from peft_jax.metrics.base import Answers, Figures, Metric, Sums, mean_of_rows
from peft_jax.metrics.ptb_tokenizer import caption_tokens

# --------------------------------------------------------------------------------------------
# sacrebleu and rouge-score
# --------------------------------------------------------------------------------------------


def _bleu_rows(answers: Answers) -> np.ndarray:
    """sacrebleu's counts of each row by itself; a corpus' counts are their sum."""
    import sacrebleu

    scorer = sacrebleu.BLEU(tokenize="intl", smooth_method="exp")
    rows = []
    for text, references in zip(answers.predictions, answers.references, strict=True):
        score = scorer.corpus_score([text], [[reference] for reference in references])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, np.float64)


def _bleu(sums: np.ndarray) -> dict[str, Any]:
    import sacrebleu

    def score(row: np.ndarray) -> float:
        counts = [round(number) for number in row]
        return sacrebleu.BLEU.compute_bleu(
            counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp"
        ).score

    return {"bleu": np.apply_along_axis(score, -1, sums)}


def _transposed(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """sacrebleu's layout: the k-th list has every row's k-th reference, None where it has fewer."""
    most = max(len(row) for row in references)
    return [[row[k] if k < len(row) else None for row in references] for k in range(most)]


def chrf(answers: Answers) -> Figures:
    """sacrebleu's chrF2 (Popovic 2015): character 6-grams, the best reference per row."""
    import sacrebleu

    references: Any = _transposed(answers.references)
    return {"chrf": sacrebleu.CHRF().corpus_score(list(answers.predictions), references).score}


def ter(answers: Answers) -> Figures:
    """sacrebleu's TER (Snover et al. 2006): edits over words of the references; less is better."""
    import sacrebleu

    references: Any = _transposed(answers.references)
    return {"ter": sacrebleu.TER().corpus_score(list(answers.predictions), references).score}


def _rouge(names: tuple[str, ...], *, stem: bool, split: bool) -> Sums:
    """Mean F of rouge-score's figures, each the best over a row's references."""

    def values(answers: Answers) -> list[list[float]]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(names, use_stemmer=stem)

        def prepared(text: str) -> str:
            # t5's way to tell ROUGE-Lsum where sentences end.
            return text.replace(" . ", " .\n") if split else text

        rows = []
        for text, references in zip(answers.predictions, answers.references, strict=True):
            score = scorer.score_multi([prepared(r) for r in references], prepared(text))
            rows.append([score[name].fmeasure for name in names])
        return rows

    return mean_of_rows(*names, values=values)


# --------------------------------------------------------------------------------------------
# The E2E challenge: mteval-v13a and the MS COCO caption evaluation
# --------------------------------------------------------------------------------------------
_E2E = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")


def e2e(answers: Answers) -> Figures:
    """The five figures that the E2E challenge's measure_scores.py prints, x 100 where papers do.

    METEOR is left out, with a warning that says why, where its Java program cannot be run: see
    :func:`missing`.
    """
    mteval, coco = _MtevalTexts(answers), _CaptionTexts(answers)
    figures = {"BLEU": mteval.bleu(), "NIST": mteval.nist()}
    if reason := java_tools.why_missing(java_tools.METEOR):
        warnings.warn(f"METEOR is left out of 'e2e': {reason}", stacklevel=2)
    else:
        figures["METEOR"] = coco.meteor()
    return figures | {"ROUGE_L": coco.rouge_l(), "CIDEr": coco.cider()}


def missing(names: Sequence[str]) -> dict[str, str]:
    """Figures of the named metrics that cannot be had on this machine, each with one line why."""
    reason = java_tools.why_missing(java_tools.METEOR)
    return {"METEOR": reason} if reason and {"e2e", "meteor"} & set(names) else {}


class _MtevalTexts:
    def __init__(self, answers: Answers):
        tokens = functools.cache(ngrams.mteval_tokens)
        self.texts = [tokens(text) for text in answers.predictions]
        self.references = [[tokens(text) for text in row] for row in answers.references]

    def bleu_rows(self) -> np.ndarray:
        rows = []
        for text, references in zip(self.texts, self.references, strict=True):
            # The script fills up missing references with empty ones, which have no length.
            lengths = [len(r) for k, r in enumerate(references) if r or not k]
            closest = ngrams.closest_length(len(text), lengths)
            rows.append(ngrams.bleu_row(text, references, closest))
        return np.array(rows, np.float64)

    def bleu(self) -> float:
        return 100 * float(ngrams.mteval_bleu(self.bleu_rows().sum(axis=0)))

    def nist(self) -> float:
        return ngrams.nist(self.texts, self.references)


class _CaptionTexts:
    def __init__(self, answers: Answers):
        flat = [*answers.predictions, *(text for row in answers.references for text in row)]
        tokens = iter(caption_tokens(flat))
        self.texts = [next(tokens) for _ in answers.predictions]
        self.references = [[next(tokens) for _ in row] for row in answers.references]

    def rouge_l(self) -> float:
        pairs = zip(self.texts, self.references, strict=True)
        return 100 * float(np.mean([captions.rouge_l(text, row) for text, row in pairs]))

    def cider(self) -> float:
        return captions.cider(self.texts, self.references)

    def meteor(self) -> float:
        return 100 * java_tools.meteor(self.texts, self.references)


def _e2e_figure(name: str, kind: type, method: str) -> Callable[[Answers], Figures]:
    return lambda answers: {name: getattr(kind(answers), method)()}


# --------------------------------------------------------------------------------------------
# The WebNLG challenge and DART: Moses' multi-bleu.perl
# --------------------------------------------------------------------------------------------
_LETTERS = {
    "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D",
    "ð": "d", "ħ": "h", "ı": "i", "ł": "l", "Ł": "L", "þ": "th", "Þ": "Th", "ŋ": "ng", "ə": "@",
    "ʻ": "`", "ʼ": "'", "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "--", "−": "-", "‘": "'",
    "’": "'", "‚": ",", "“": '"', "”": '"', "„": ",,", "…": "...", "′": "'", "″": '"', "°": "deg",
    "×": "x", "·": "*", "•": "*", "€": "EUR", "£": "PS",
}  # fmt: skip
_ASCII = str.maketrans(_LETTERS)


def to_ascii(text: str) -> str:
    """Latin letters without their marks, and plain punctuation, as unidecode writes them.

    Letters of other scripts stay as they are.
    """
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKD", text.translate(_ASCII))
    return "".join(c for c in plain if not unicodedata.combining(c)).translate(_ASCII)


def _apart(text: str) -> str:
    return re.sub(r"(\W)", r" \1 ", text)


def webnlg_tokens(text: str) -> list[str]:
    """A system's text as the WebNLG challenge's evaluation reads it.

    ASCII in lower case, and all but word characters apart.
    """
    return _apart(to_ascii(text).lower()).split()


def webnlg_reference_tokens(text: str) -> list[str]:
    """A reference, of which the evaluation separates the characters before it makes them ASCII."""
    return to_ascii(_apart(text).lower()).split()


Tokenize = Callable[[str], list[str]]


def _multi_bleu(tokens: Tokenize, reference_tokens: Tokenize) -> Sums:
    """multi-bleu.perl over the first three references, as both challenges' scripts pass them."""

    def rows(answers: Answers) -> np.ndarray:
        kept = [row[:3] for row in answers.references]
        files = max(len(row) for row in kept)
        counts = []
        for text, row in zip(answers.predictions, kept, strict=True):
            own, references = tokens(text), [reference_tokens(reference) for reference in row]
            # The files of references have empty lines where a row has fewer, and the script
            # takes these for references of length 0.
            lengths = [len(r) for r in references] + [0] * (files - len(row))
            closest = ngrams.closest_length(len(own), lengths)
            counts.append(ngrams.bleu_row(own, references, closest))
        return np.array(counts, np.float64)

    return Sums(rows, lambda sums: {"bleu": 100 * ngrams.multi_bleu(sums)})


def _words(text: str) -> list[str]:
    return re.findall(r"\S+", text, re.ASCII)


_TEXTS = ("predictions", "references")
_ROUGE, _STEMMED = ("rouge1", "rouge2", "rougeLsum"), ("rouge1", "rouge2", "rougeL")
METRICS = (
    Metric(
        "bleu",
        Sums(_bleu_rows, _bleu),
        ("bleu",),
        _TEXTS,
        "sacrebleu as t5 calls it (international tokens, exponential smoothing)",
    ),
    Metric("chrf", chrf, ("chrf",), _TEXTS, "sacrebleu's chrF2"),
    Metric("ter", ter, ("ter",), _TEXTS, "sacrebleu's TER; less is better"),
    Metric(
        "rouge",
        _rouge(_ROUGE, stem=False, split=True),
        _ROUGE,
        _TEXTS,
        "rouge-score as t5 calls it (no stemming); the mean that t5's bootstrap is centred on",
    ),
    Metric(
        "rouge_stemmed",
        _rouge(_STEMMED, stem=True, split=False),
        _STEMMED,
        _TEXTS,
        "rouge-score with Porter's stemmer, as XSUM is evaluated in prefix-tuning",
    ),
    Metric("e2e", e2e, _E2E, _TEXTS, "the E2E challenge's script; NIST and CIDEr not in percent"),
    Metric(
        "bleu_e2e",
        Sums(
            lambda answers: _MtevalTexts(answers).bleu_rows(),
            lambda sums: {"BLEU": 100 * ngrams.mteval_bleu(sums)},
        ),
        ("BLEU",),
        _TEXTS,
        "of the E2E script: mteval-v13a",
    ),
    Metric(
        "nist",
        _e2e_figure("NIST", _MtevalTexts, "nist"),
        ("NIST",),
        _TEXTS,
        "of the E2E script: mteval-v13a with references in varying number; not in percent",
    ),
    Metric(
        "meteor",
        _e2e_figure("METEOR", _CaptionTexts, "meteor"),
        ("METEOR",),
        _TEXTS,
        "of the E2E script: METEOR 1.5, a Java program (pip install pycocoevalcap)",
    ),
    Metric(
        "rouge_l",
        _e2e_figure("ROUGE_L", _CaptionTexts, "rouge_l"),
        ("ROUGE_L",),
        _TEXTS,
        "of the E2E script: MS COCO's ROUGE-L, which is not rouge-score's",
    ),
    Metric(
        "cider",
        _e2e_figure("CIDEr", _CaptionTexts, "cider"),
        ("CIDEr",),
        _TEXTS,
        "of the E2E script: MS COCO's CIDEr-D; not in percent",
    ),
    Metric(
        "bleu_webnlg",
        _multi_bleu(webnlg_tokens, webnlg_reference_tokens),
        ("bleu",),
        _TEXTS,
        "multi-bleu.perl with the WebNLG challenge's tokens, lower case, first three references",
    ),
    Metric(
        "multi_bleu",
        _multi_bleu(_words, _words),
        ("bleu",),
        _TEXTS,
        "multi-bleu.perl on texts that are tokenised already (DART), first three references",
    ),
)
