"""Metrics of generated text: the challenges' scripts to the printed digit, t5's, sacrebleu's."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.metrics import METRICS, Answers, compute, java_tools, missing, ngrams
from peft_jax.metrics.captions import rouge_l
from peft_jax.metrics.generation import to_ascii
from peft_jax.metrics.ptb_tokenizer import DROPPED, caption_tokens, treebank_tokens

GOLDEN = Path(__file__).parent / "golden"
SCRIPTS = json.loads((GOLDEN / "metrics_e2e.json").read_text("utf-8"))
T5 = json.loads((GOLDEN / "metrics_t5.json").read_text("utf-8"))["generation"]
REFERENCES, SYSTEMS = SCRIPTS["references"], SCRIPTS["systems"]
NOT_PERCENT = ("NIST", "CIDEr")
CHEAP = ["bleu_e2e", "nist", "rouge_l", "cider"]


@pytest.fixture
def no_java(monkeypatch):
    """A machine without the two Java programs, whatever this one has."""
    monkeypatch.setattr(java_tools.shutil, "which", lambda _: None)


def printed(figures):
    """Figures with the four digits of the E2E script."""
    scale = {name: 1 if name in NOT_PERCENT else 100 for name in figures}
    return {name: f"{value / scale[name]:.4f}" for name, value in figures.items()}


# --------------------------------------------------------------------------------------------
# The challenges' scripts
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("system", SYSTEMS)
def test_e2e_to_the_printed_digit(no_java, system):
    answers = Answers(SYSTEMS[system], REFERENCES)
    with pytest.warns(UserWarning, match=r"METEOR is left out of 'e2e': .* no java"):
        figures = compute(["e2e"], answers)
    want = {name: figure for name, figure in SCRIPTS["e2e"][system].items() if name != "METEOR"}
    assert printed(figures) == want
    assert printed(compute(CHEAP, answers)) == want


@pytest.mark.parametrize("system", SYSTEMS)
def test_webnlg_to_the_printed_digit(system):
    figures = compute(["bleu_webnlg"], Answers(SYSTEMS[system], REFERENCES))
    assert f"{figures['bleu']:.2f}" == SCRIPTS["webnlg"][system]


def test_tokens_as_the_java_tokenizers():
    for line, found, want in zip(
        SCRIPTS["lines"], treebank_tokens(SCRIPTS["lines"]), SCRIPTS["tokens"], strict=True
    ):
        # What the program does about dots without spaces around is not followed; all are dropped.
        kept = [[w for w in words if not set(w) <= set(".'`!?\"")] for words in (found, want)]
        assert kept[0] == kept[1], line


def test_punctuation_is_dropped_from_captions(no_java):
    assert caption_tokens(["Hi, \"you\" -- it's (low) U.S. food...", "", "?!"]) == [
        "hi you it 's -lrb- low -rrb- u.s. food", "", "?!",
    ]  # fmt: skip


@pytest.mark.skipif(
    any(java_tools.why_missing(v) for v in (java_tools.METEOR, java_tools.TOKENIZER)),
    reason="no java or no jars (pip install pycocoevalcap)",
)
def test_meteor_to_the_printed_digit():
    answers = Answers(SYSTEMS["close"], REFERENCES)
    assert printed(compute(["e2e"], answers)) == SCRIPTS["e2e"]["close"]
    assert compute(["meteor"], answers)["METEOR"] == pytest.approx(
        100 * float(SCRIPTS["e2e"]["close"]["METEOR"]), abs=0.005
    )


def test_meteor_alone_says_why_it_cannot_be_had(no_java):
    with pytest.raises(InputError, match="no java on the path"):
        compute(["meteor"], Answers(["a"], [["a"]]))
    assert list(missing(["e2e", "bleu"])) == ["METEOR"]
    assert missing(["bleu"]) == {}


def test_jars_are_named_or_found(monkeypatch, tmp_path):
    monkeypatch.setattr(java_tools.shutil, "which", lambda _: "/bin/java")
    monkeypatch.setenv(java_tools.METEOR, str(tmp_path / "none.jar"))
    with pytest.raises(InputError, match=r"PEFT_JAX_METEOR_JAR names .*none\.jar"):
        java_tools.find_jar(java_tools.METEOR)
    (tmp_path / "none.jar").write_text("")
    assert java_tools.find_jar(java_tools.METEOR) == tmp_path / "none.jar"
    monkeypatch.delenv(java_tools.METEOR)
    monkeypatch.setattr(java_tools.importlib.util, "find_spec", lambda _: None)
    assert "pip install pycocoevalcap" in java_tools.why_missing(java_tools.METEOR)


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_meteor_is_driven_row_by_row(monkeypatch, tmp_path):
    """A stand-in for the jar: it counts the lines of rows, and gives back their number."""
    program = tmp_path / "java"
    program.write_text(
        "#!/bin/sh\n"
        "while read -r first rest; do\n"
        '  if [ "$first" = SCORE ]; then n=$((n+1)); echo "$rest" >> said; echo "stat $n"\n'
        '  else for i in $(seq $n); do echo 0.5; done; echo "0.$n"; fi\n'
        "done\n"
    )
    program.chmod(0o755)
    (tmp_path / "meteor.jar").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(java_tools.METEOR, str(tmp_path / "meteor.jar"))
    figure = java_tools.meteor(["a ||| b", "c"], [["x", "y"], ["z"]])
    assert figure == 0.2
    assert (tmp_path / "said").read_text() == "||| x ||| y ||| a b\n||| z ||| c\n"


# --------------------------------------------------------------------------------------------
# Their parts
# --------------------------------------------------------------------------------------------
def test_mteval_bleu_is_sacrebleus():
    import sacrebleu

    for system in SYSTEMS.values():
        want = sacrebleu.corpus_bleu(
            system,
            [[row[k] if k < len(row) else None for row in REFERENCES] for k in range(3)],
            lowercase=True,
            tokenize="13a",
        )
        assert compute(["bleu_e2e"], Answers(system, REFERENCES))["BLEU"] == pytest.approx(
            want.score
        )


def test_bleu_where_an_order_has_no_ngrams_or_no_matches():
    rows = np.array([ngrams.bleu_row(["a", "b"], [["a", "c"]], 2)], float)
    # Order 1: 1 of 2; order 2: none of 1, counted as 1/2; orders 3 and 4 do not occur: 1 each.
    assert ngrams.mteval_bleu(rows[0]) == pytest.approx((1 / 2 * 1 / 2) ** (1 / 4))
    assert ngrams.multi_bleu(rows[0]) == 0.0
    assert ngrams.mteval_bleu(np.zeros(10)) == ngrams.multi_bleu(np.zeros(10)) == 0.0


def test_closest_length_prefers_the_shorter():
    assert ngrams.closest_length(7, [11, 8, 6]) == 6
    assert ngrams.closest_length(7, [11, 8]) == 8


def test_nist_of_one_row_by_hand():
    # Both words match; each word's information is log2(4 / its count of 1 or 2).
    text, references = ["a", "b"], [["a", "b"], ["a", "c"]]
    gained = (np.log2(4 / 2) + np.log2(4 / 1)) / 2 + np.log2(2 / 1)
    assert ngrams.nist([text], [references]) == pytest.approx(gained)
    assert ngrams.nist([[]], [references]) == 0.0


def longest_common(one, other):
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + longest_common(one[:-1], other[:-1])
    return max(longest_common(one[:-1], other), longest_common(one, other[:-1]))


def test_rouge_l_by_recursion():
    draw = random.Random(1)
    for _ in range(60):
        one, other = ([draw.choice("abcd") for _ in range(draw.randint(1, 8))] for _ in range(2))
        common = longest_common(one, other)
        precision, recall = common / len(one), common / len(other)
        want = 2.44 * precision * recall / (recall + 1.44 * precision) if common else 0.0
        assert rouge_l(" ".join(one), [" ".join(other)]) == pytest.approx(want)


def test_to_ascii():
    assert (
        to_ascii("São Tomé, Łódź – “Øre” … naïve Straße")
        == 'Sao Tome, Lodz - "Ore" ... naive Strasse'
    )
    assert to_ascii("日本") == "日本"


# --------------------------------------------------------------------------------------------
# sacrebleu and rouge-score
# --------------------------------------------------------------------------------------------
def test_bleu_and_rouge_as_t5():
    answers = Answers(SYSTEMS["close"], [row[:1] for row in REFERENCES])
    figures = compute(["bleu", "rouge"], answers)
    assert figures["bleu"] == pytest.approx(T5["bleu"])
    # t5 prints the median of 1,000 bootstrap means, which no two calls agree on.
    assert {n: figures[n] for n in T5["rouge"]} == pytest.approx(T5["rouge"], abs=0.5)


def test_several_references_as_sacrebleu():
    import sacrebleu

    references = [[row[k] if k < len(row) else None for row in REFERENCES] for k in range(3)]
    system = SYSTEMS["close"]
    figures = compute(["bleu", "chrf", "ter"], Answers(system, REFERENCES))
    want = {
        "bleu": sacrebleu.corpus_bleu(system, references, tokenize="intl").score,
        "chrf": sacrebleu.corpus_chrf(system, references).score,
        "ter": sacrebleu.corpus_ter(system, references).score,
    }
    assert figures == pytest.approx(want)


def test_rouge_takes_the_best_reference_and_stems_where_it_should():
    answers = Answers(["the cats sat . they ran"], [["dogs", "the cat sits . they run"]])
    plain, stemmed = METRICS["rouge"](answers), METRICS["rouge_stemmed"](answers)
    assert list(plain) == ["rouge1", "rouge2", "rougeLsum"]
    assert list(stemmed) == ["rouge1", "rouge2", "rougeL"]
    assert plain["rouge1"] == pytest.approx(40.0)
    assert stemmed["rouge1"] == pytest.approx(60.0)


# --------------------------------------------------------------------------------------------
# Real texts
# --------------------------------------------------------------------------------------------
def read_rows(folder, number):
    with open(folder / "validation.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(number), file, strict=False)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["e2e_nlg", "webnlg_2017"])
@pytest.mark.skipif(
    bool(java_tools.why_missing(java_tools.TOKENIZER)),
    reason="no java or no jar (pip install pycocoevalcap)",
)
def test_tokens_of_real_references(shared_data, name):
    lines = [text for row in read_rows(shared_data / name, 1000) for text in row["refs"]]
    read = java_tools.stanford_tokens(lines), [" ".join(t) for t in treebank_tokens(lines)]
    want, found = ([[w for w in t.split(" ") if w not in DROPPED] for t in side] for side in read)
    same = sum(a == b for a, b in zip(found, want, strict=True))
    assert same >= 0.999 * len(lines)
