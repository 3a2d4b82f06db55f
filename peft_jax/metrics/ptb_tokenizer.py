"""Penn Treebank tokens of English, as the MS COCO caption evaluation reads texts.

The evaluation runs Stanford's PTBTokenizer (CoreNLP 3.4.1, Java) and drops punctuation. Where that
program can be run it is; elsewhere the rules below take its place, which give the same tokens for
every line of the E2E and WebNLG data (tests/test_metrics_e2e.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from peft_jax.metrics import java_tools

DROPPED = frozenset(["''", "'", "``", "`", *".?!,:;", "-", "--", "..."])


def caption_tokens(lines: Sequence[str]) -> list[str]:
    """Each text in lower case, its tokens between single spaces, with no punctuation."""
    if java_tools.why_missing(java_tools.TOKENIZER) is None:
        tokenized = java_tools.stanford_tokens(lines)
    else:
        tokenized = [" ".join(tokens(line)) for line in lines]
    return [" ".join(w for w in line.split(" ") if w not in DROPPED) for line in tokenized]


def tokens(text: str) -> list[str]:
    return text.lower().split()
