"""Makes metrics_t5.json and metrics_e2e.json: figures of the public code, on texts made up here.

    PERL5LIB=STUB python make_metrics.py --e2e E2E --dart DART

E2E is a checkout of github.com/tuetschek/e2e-metrics (1b9c4d8) with its three jars in place; its
Perl script imports XML::Twig and uses it for XML files alone, so that an empty module of that name
in STUB is enough. DART is a checkout of github.com/Yale-LILY/dart. Needs java and perl, and
t5 0.9.4 (--no-deps), scikit-learn, scipy, sacrebleu, rouge-score, editdistance, unidecode, future,
matplotlib, scikit-image. t5's modules of metrics and postprocessors are loaded alone: the whole of
t5 would ask for mesh-tensorflow.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent

# Invented restaurants, and lines that a tokenizer can stumble on.
REFERENCES = [
    [
        "The Blue Kettle is a pub near the old mill.",
        "Near the old mill there's a pub, The Blue Kettle.",
    ],
    [
        "Marlo's serves cheap Thai food.",
        "Cheap Thai food can be had at Marlo's.",
        "Marlo's: Thai, cheap.",
    ],
    ["Quince Hall, a family-friendly café, has a 3 out of 5 rating."],
    [
        "You can't get a table under £20-25 at Dr. Vole's inn.",
        "At Dr. Vole's inn a table isn't under £20-25.",
    ],
    ['It is "very" good (4.5/5), isn\'t it?', "Isn't it 'very' good? It has 4.5/5."],
    [
        "The U.S. team won 1,250.50 points in 2011-12.",
        "In 2011-12 the U.S. team won 1,250.50 points...",
    ],
    ["Kid-friendly and low-priced, Old Pine serves A. B. Fisher's ale."],
    [
        "Rösti & Co. stands beside the Sé, not far from São Tomé.",
        "Beside the Sé stands Rösti & Co.",
    ],
    [
        "0 of 10 guests liked 0 stars.",
        "0 stars: 0 of 10 guests liked it.",
        "No guest liked it at all!",
    ],
    ["Gonna eat at Nan's? You cannot go wrong – it's open 24/7."],
    [
        "The Ferry, by the river, is highly rated.",
        "By the river is The Ferry, which is highly rated.",
    ],
    ["Bistro 9 has a price range of less than £20.", "Less than £20 is what Bistro 9 costs."],
]
CLOSE = [
    "The Blue Kettle is a pub by the old mill.",
    "Marlo's has cheap Thai food.",
    "Quince Hall is a family-friendly café with a rating of 3 out of 5.",
    "A table at Dr. Vole's inn isn't under £20-25.",
    "It is very good, isn't it? (4.5/5)",
    "The U.S. team won 1,250.50 points in 2011-12.",
    "Old Pine is kid-friendly, low-priced and serves ale.",
    "Rösti & Co. is beside the Se.",
    "0 stars were liked by 0 of 10 guests.",
    "You cannot go wrong at Nan's, open 24/7.",
    "The Ferry is by the river. It is highly rated.",
    "Bistro 9",
]
SYSTEMS = {
    "close": CLOSE,
    "moved": CLOSE[3:] + CLOSE[:3],
    "copied": [row[-1] for row in REFERENCES],
    "short": [" ".join(row[0].split()[:2]) for row in REFERENCES],
}
LINES = [
    "He said: \"Don't you'll've ma'am o'clock\" -- the boys' '90s.",
    "We gotta, wanna, lemme; cannot CAN'T won't it’s don’t ‘hi’ “yes”",
    "E.g. Jan. 5, Mr. T vs. Mrs. U etc., i.e. the Co. in Okla. or No. 7 of St. Ives",
    "www.example.org/a?b=c x@y.org #tag @me C++ C# AT&T R&B q&a AC/DC and/or a/b/c/d",
    "12:30 1/2 1 1/2 .5 -5 +5 a-5 5km 5.5km $3.50 US$4 €6 5% 1.2.3 1,000 20° (555)",
    "wait... what?! [x] {y} <br> & _z_ a_b --- ---- *** ### … ½ naïve Öl word.Word F.C. A.",
    "The line before ends in a letter that is no abbreviation. Series B.",
    "Another one begins otherwise.",
    "Non-breaking high-end 4-star mid-1990s 2001-05-06 a—b 5–10 l'Oréal d'Or O'Hara",
]


def load_t5(name: str):
    """A module of t5 without t5's own imports."""
    root = Path(importlib.util.find_spec("t5").submodule_search_locations[0])
    for package in ("t5", "t5.evaluation", "t5.data"):
        module = types.ModuleType(package)
        module.__path__ = [str(root.parent / package.replace(".", "/"))]
        sys.modules[package] = module
    tensorflow = types.ModuleType("tensorflow")
    compat, v2 = types.ModuleType("tensorflow.compat"), types.ModuleType("tensorflow.compat.v2")
    v2.compat = types.SimpleNamespace(as_text=lambda t: t.decode() if isinstance(t, bytes) else t)
    tensorflow.compat, compat.v2 = compat, v2
    names = ("tensorflow", "tensorflow.compat", "tensorflow.compat.v2")
    sys.modules |= dict(zip(names, (tensorflow, compat, v2), strict=True))
    return importlib.import_module(name)


def t5_figures() -> dict:
    metrics = load_t5("t5.evaluation.metrics")
    post = importlib.import_module("t5.data.postprocessors")
    draw = random.Random(7)
    return {
        "versions": {p: importlib.metadata.version(p) for p in ("t5", "scikit-learn", "sacrebleu")},
        "binary": [binary_case(metrics, draw) for _ in range(6)],
        "three_classes": [three_class_case(metrics, draw) for _ in range(4)],
        "numbers": number_case(metrics, post, draw),
        "reading": reading_case(metrics, draw),
        "wsc": wsc_case(post),
        "generation": generation_case(metrics),
    }


def binary_case(metrics, draw) -> dict:
    size = draw.choice([5, 12, 30])
    labels = [draw.randint(0, 1) for _ in range(size)]
    chosen = [draw.choice([label, 0, 1, -1]) for label in labels]
    groups = [f"q{draw.randint(0, size // 3)}" for _ in range(size)]
    targets = [{"value": v, "group": g} for v, g in zip(labels, groups, strict=True)]
    given = [{"value": v} for v in chosen]
    matthews = metrics.sklearn_metrics_wrapper(
        "matthews_corrcoef", metric_post_process_fn=lambda x: 100 * x
    )
    return {
        "labels": labels,
        "predicted": chosen,
        "groups": groups,
        "accuracy": metrics.accuracy(labels, chosen)["accuracy"],
        "f1": metrics.f1_score_with_invalid(labels, list(chosen))["f1"],
        "matthews": matthews(labels, chosen)["matthews_corrcoef"],
        "f1a": metrics.multirc_f1_over_all_answers(targets, given)["f1"],
        "em": metrics.mean_group_metric(metrics.all_match)(targets, given)["exact_match"],
    }


def three_class_case(metrics, draw) -> dict:
    labels = [draw.randint(0, 2) for _ in range(15)]
    chosen = [draw.choice([label, draw.randint(-1, 2)]) for label in labels]
    figure = metrics.mean_multiclass_f1(3)(labels, chosen)["mean_3class_f1"]
    return {"labels": labels, "predicted": chosen, "macro_f1": figure}


def number_case(metrics, post, draw) -> dict:
    references = [f"{draw.randint(0, 25) / 5}" for _ in range(20)]
    texts = [draw.choice([r, f"{draw.randint(0, 25) / 5}", "", "high", "-0.2"]) for r in references]
    wanted, given = ([post.string_to_float(t) for t in side] for side in (references, texts))
    return {
        "references": references,
        "predictions": texts,
        "pearson": float(metrics.pearson_corrcoef(wanted, given)["pearson_corrcoef"]),
        "spearman": float(metrics.spearman_corrcoef(wanted, given)["spearman_corrcoef"]),
    }


def reading_case(metrics, draw) -> dict:
    words = re.findall(r"\S+", "The the a an cat. Cat's dog's-ear red, blue! 7 x_y ‘seven’ and")

    def text() -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(0, 4)))

    references = [[text() for _ in range(draw.randint(1, 3))] for _ in range(40)]
    texts = [draw.choice([text(), row[-1], row[0].lower() + " x"]) for row in references]
    groups = [[draw.randint(0, 3), draw.randint(0, 3)] for _ in references]
    targets = [
        {"group": tuple(g), "value": value} for g, value in zip(groups, references, strict=True)
    ]
    record = metrics.deduplicate_metric(metrics.squad)
    return {
        "references": references,
        "predictions": texts,
        "groups": groups,
        "squad": numbers(metrics.squad(references, texts)),
        "trivia_qa": numbers(metrics.trivia_qa(references, texts)),
        "record": numbers(record(targets, [{"value": t} for t in texts])),
    }


def wsc_case(post) -> list:
    pairs = [
        ("the dog", "The Dog"), ("Bob", "Bob's hat"), ("fuzzy bunny", "bunny"), ("", "it"),
        ("the", "it"), ("her cat", "cat food"), ("red cat", "blue cat"), ("Ann's", "Ann's cat"),
        ("a  b", "a b"), (" big tree ", "tree"),
    ]  # fmt: skip
    return [
        [text, referent, post.wsc_simple(text, example={"targets_pretokenized": referent})]
        for text, referent in pairs
    ]


def generation_case(metrics) -> dict:
    single = [row[0] for row in REFERENCES]
    np.random.seed(0)  # noqa: NPY002  rouge-score's bootstrap draws from it
    return {
        "bleu": metrics.bleu(single, CLOSE)["bleu"],
        "rouge": numbers(metrics.rouge(single, CLOSE)),
    }


def numbers(figures: dict) -> dict:
    return {name: float(value) for name, value in figures.items()}


def e2e_figures(e2e: Path, dart: Path) -> dict:
    sys.path.insert(0, str(e2e))
    from pycocoevalcap.tokenizer.ptbtokenizer import STANFORD_CORENLP_3_4_1_JAR as jar

    with tempfile.TemporaryDirectory() as folder:
        lines = [*LINES, *(text for row in REFERENCES for text in row), *CLOSE]
        file = Path(folder) / "lines.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", jar]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        run = subprocess.run(
            [*command, str(file)],
            cwd=e2e / "pycocoevalcap" / "tokenizer",
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        return {
            "references": REFERENCES,
            "systems": SYSTEMS,
            "e2e": {name: measure_scores(e2e, Path(folder), s) for name, s in SYSTEMS.items()},
            "webnlg": {
                name: webnlg_bleu(dart, Path(folder), system) for name, system in SYSTEMS.items()
            },
            "lines": lines,
            "tokens": [line.rstrip().split(" ") for line in run.stdout.split("\n")[: len(lines)]],
        }


def measure_scores(e2e: Path, folder: Path, system: list[str]) -> dict[str, str]:
    """What the script prints."""
    (folder / "refs").write_text("\n\n".join("\n".join(row) for row in REFERENCES) + "\n")
    (folder / "system").write_text("\n".join(system) + "\n")
    run = subprocess.run(
        [sys.executable, "measure_scores.py", str(folder / "refs"), str(folder / "system")],
        cwd=e2e,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(re.findall(r"^(\w+): ([0-9.]+)$", run.stdout, re.MULTILINE))


def webnlg_bleu(dart: Path, folder: Path, system: list[str]) -> str:
    """multi-bleu.perl's figure, on texts prepared as webnlg-automatic-evaluation/evaluation.py."""
    from unidecode import unidecode

    def spaced(text: str) -> str:
        return " ".join(" ".join(re.split(r"(\W)", text)).split())

    files = []
    for k in range(3):
        files.append(folder / f"reference{k}.lex")
        texts = [unidecode(spaced(row[k]).lower()) if k < len(row) else "" for row in REFERENCES]
        files[-1].write_text("\n".join(texts) + "\n")
    given = "\n".join(spaced(unidecode(unidecode(text).lower())) for text in system) + "\n"
    script = dart / "evaluation" / "webnlg-automatic-evaluation" / "multi-bleu.perl"
    command = ["perl", str(script), "-lc", *map(str, files)]
    run = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return re.match(r"BLEU = ([0-9.]+),", run.stdout)[1]


def write(name: str, content: dict) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=None, separators=(", ", ": "))
    (FOLDER / name).write_text(text.replace('], "', '],\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--e2e", type=Path, required=True)
    parser.add_argument("--dart", type=Path, required=True)
    arguments = parser.parse_args()
    write("metrics_t5.json", t5_figures())
    write("metrics_e2e.json", e2e_figures(arguments.e2e.resolve(), arguments.dart.resolve()))
