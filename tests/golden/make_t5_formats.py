"""What t5 and Google's prompt-tuning repository make of rows: the texts of their tasks.

    pip install --no-deps t5==0.9.4
    pip install seqio babel nltk rouge-score sacrebleu scikit-learn pandas gin-config
    git clone https://github.com/google-research/prompt-tuning
    git -C prompt-tuning checkout 72285ee
    python -m tests.golden.make_t5_formats prompt-tuning

writes t5_formats.json beside this file. The rows are made up, in the fields of TFDS, and hold what
the formats treat in a way of their own: line breaks, markup, several answers or none, hidden labels
(-1), punctuation at either end, white space beyond ASCII, ties in rounding. Each goes through the
text preprocessors of the registered task. ``examples_of`` is also what the comparison on real rows
calls.
"""

import importlib.util
import json
import sys
from pathlib import Path

import seqio
import t5
import t5.data.glue_utils
import t5.data.mixtures
import tensorflow as tf
from t5.data.postprocessors import wsc_simple

HERE = Path(__file__).parent
NLI = [
    {"premise": "The cat sat.", "hypothesis": "A cat sat.", "label": 0},
    {
        "premise": "Line one\nline two,  with\tspaces. ",
        "hypothesis": " Naïve “quotes” ",
        "label": 1,
    },
    {"premise": "Hidden.", "hypothesis": "Hidden?", "label": -1},
]
PAIRS = [
    {"sentence1": "The cat sat.", "sentence2": "A cat was sitting.", "label": 1},
    {"sentence1": "Says he :  “no” ", "sentence2": "sentence1: yes", "label": 0},
    {"sentence1": "Hidden.", "sentence2": "", "label": -1},
]
SENTENCES = [
    {"sentence": "The cat sat the mat.", "label": 0},
    {"sentence": "a 日本語  sentence ", "label": 1},
    {"sentence": "hidden", "label": -1},
]
ARTICLE = "\n@highlight\n".join(
    ("Ann met Bob.", "Ann was glad!", "Bob not", "Who won?", '"Ann"', "'Bob'", "", "The end’", "")
)
ROWS = {
    "super_glue_boolq": [
        {"question": "is the sky blue", "passage": "Sky -- The sky is  blue.\n", "label": 1},
        {"question": "is “it” so ", "passage": " Café\tpassage: x", "label": 0},
        {"question": "hidden", "passage": "p", "label": -1},
    ],
    "super_glue_cb": [*NLI, {"premise": "B: uh, no.", "hypothesis": "no", "label": 2}],
    "super_glue_copa": [
        {
            "premise": "It rained.",
            "choice1": "I got wet.",
            "choice2": "I flew. ",
            "question": "effect",
            "label": 0,
        },
        {
            "premise": "He left .",
            "choice1": "",
            "choice2": "He was “late”",
            "question": "cause",
            "label": 1,
        },
        {"premise": "Hidden.", "choice1": "a", "choice2": "b", "question": "cause", "label": -1},
    ],
    "super_glue_multirc": [
        {
            "paragraph": "<b>Sent 1: </b>Ann ran.<br><b>Sent 2: </b>Bob sat. <br>",
            "question": "Who<br>ran?",
            "answer": "<b>Ann</b> ",
            "label": 1,
            "idx": {"paragraph": 3, "question": 14, "answer": 159},
        },
        {
            "paragraph": "<B>Kept</B> <br/> <bold> </br> <<b>b>",
            "question": "multirc?",
            "answer": "日本",
            "label": 0,
            "idx": {"paragraph": 3, "question": 15, "answer": 160},
        },
        {
            "paragraph": "p",
            "question": "q",
            "answer": "a",
            "label": -1,
            "idx": {"paragraph": 4, "question": 16, "answer": 161},
        },
    ],
    "super_glue_record": [
        {
            "passage": ARTICLE,
            "query": "@placeholder met Bob",
            "entities": ["Ann", "Bob", "Oslo"],
            "answers": ["Ann"],
            "idx": {"passage": 7, "query": 21},
        },
        {
            "passage": "No highlights here.",
            "query": "Then @placeholder, the “Queen”, sang ",
            "entities": ["Ann Lee", "Lee", "Ann Lee", "München"],
            "answers": ["Lee", "Ann Lee"],
            "idx": {"passage": 8, "query": 22},
        },
        {
            "passage": "Hidden \n@highlight\n",
            "query": "@placeholder",
            "entities": [],
            "answers": [],
            "idx": {"passage": 8, "query": 23},
        },
    ],
    "super_glue_rte": NLI,
    "super_glue_wic": [
        {
            "word": "bank",
            "sentence1": "The bank of a river .",
            "sentence2": " Go to the bank",
            "label": 0,
            "start1": 4,
            "start2": 11,
            "end1": 8,
            "end2": 15,
        },
        {
            "word": "carry on",
            "sentence1": "Carry on!",
            "sentence2": "word: carry on",
            "label": 1,
            "start1": 0,
            "start2": 6,
            "end1": 8,
            "end2": 14,
        },
        {
            "word": "x",
            "sentence1": "x",
            "sentence2": "x",
            "label": -1,
            "start1": 0,
            "start2": 0,
            "end1": 1,
            "end2": 1,
        },
    ],
    "super_glue_axb": PAIRS,
    "super_glue_axg": NLI,
    "super_glue_wsc_simple_train": (
        WSC := [
            {
                "text": "Ann told Bea that she had won.",
                "span1_text": "Bea",
                "span2_text": "she",
                "span1_index": 2,
                "span2_index": 4,
                "label": 1,
            },
            {
                "text": "Ann told Bea that she had won.",
                "span1_text": "Ann's  friend",
                "span2_text": "she",
                "span1_index": 0,
                "span2_index": 4,
                "label": 0,
            },
            {
                "text": "The ball  hit X and it broke it",
                "span1_text": "The ball",
                "span2_text": "it",
                "span1_index": 0,
                "span2_index": 8,
                "label": 1,
            },
            {
                "text": "Mark X asked Zoë if his hat was his .",
                "span1_text": "Zoë",
                "span2_text": "his",
                "span1_index": 3,
                "span2_index": 5,
                "label": 1,
            },
        ]
    ),
    "super_glue_wsc_simple_eval": [*WSC, WSC[0] | {"label": -1}],
    "dpr_simple": [
        {
            "sentence": "Bob asked Tom if he can lend some money.",
            "pronoun": "he",
            "candidates": ["Bob", "Tom"],
            "label": 1,
        },
        {
            "sentence": "Cats chase mice because they, as they say, run.",
            "pronoun": "they",
            "candidates": ["Cats", "mice"],
            "label": 0,
        },
        {
            "sentence": "The lid fits the jar; break it.",
            "pronoun": "it",
            "candidates": ["The lid", "the jar"],
            "label": 1,
        },
        {
            "sentence": "He left; nobody saw him?",
            "pronoun": "him",
            "candidates": ["He", "nobody"],
            "label": 0,
        },
    ],
    "glue_cola": SENTENCES,
    "glue_sst2": SENTENCES,
    "glue_mrpc": PAIRS,
    "glue_qqp": [
        {"question1": "Why is it so?", "question2": "Why is that so ?", "label": 1},
        {"question1": "What is π ? ", "question2": "question1: what", "label": 0},
        {"question1": "Hidden", "question2": "", "label": -1},
    ],
    "glue_stsb": [
        PAIRS[0] | {"label": score}
        for score in (0.0, 0.1, 0.3, 0.5, 1.25, 2.5, 2.7, 3.0, 3.799999952316284, 4.9, 5.0, -1.0)
    ],
    "glue_mnli": [*NLI, {"premise": "So?", "hypothesis": "No.", "label": 2}],
    "glue_mnli_mismatched": NLI,
    "glue_qnli": [
        {"question": "Who ran?", "sentence": "Ann ran.", "label": 0},
        {"question": "Who sat ? ", "sentence": "question: Ann ran.", "label": 1},
        {"question": "hidden", "sentence": "", "label": -1},
    ],
    "glue_rte": PAIRS,
    "glue_wnli": PAIRS,
    "glue_ax": NLI,
    "squad": (
        SQUAD := [
            {
                "id": "a1",
                "question": "Who won in 1,066?",
                "context": "William (the “Conqueror”) won.\nYes!",
                "answers": {
                    "text": ["William (the “Conqueror”)", "William"],
                    "answer_start": [0, 0],
                },
            },
            {
                "id": "a2",
                "question": " How  much\u00a0was\u000bit? ",
                "context": "It was $1,000.00—or 50% off. ",
                "answers": {"text": ["$1,000.00", "1,000.00—or 50%"], "answer_start": [7, 8]},
            },
            {
                "id": "a3",
                "question": "^_`{|}~",
                "context": "a\\b [c] <d> e@f #g &h *i +j =k ;l 日本。",
                "answers": {"text": ["#g"], "answer_start": [16]},
            },
        ]
    ),
    "squad_context_free": SQUAD,
    "mrqa_textbookqa": [
        {
            "qid": row["id"],
            "question": row["question"].strip(),
            "context": row["context"].strip(),
            "answers": row["answers"]["text"],
        }
        for row in SQUAD
    ],
}
# Our names -> t5's, where t5's is not ours with a version behind.
NAMES = {
    "super_glue_wsc_simple_train": "super_glue_wsc_v102_simple_train",
    "super_glue_wsc_simple_eval": "super_glue_wsc_v102_simple_eval",
    "dpr_simple": "dpr_v001_simple",
    "squad": "squad_v010_allanswers",
    "squad_context_free": "squad_v010_context_free",
}
REFERENTS = [
    ("Bea", "Bea"), ("the Bea", "bea"), ("bunny", "the fuzzy bunny"), ("fuzzy  bunny", "bunny"),
    ("Bob", "Bob's hat"), ("Bob's hat", "Bob's hat"), ("", "Bob"), (" the ", "Bob"),
    ("a   the", "Bob"), ("Ann", "Bob"), ("bunny fuzzy big", "big bunny"), ("her dog", "his dog"),
    ("Ann and Bob", "Bob and Ann"), ("Zoë", "ZOË"), ("hat.", "hat"),
]  # fmt: skip


def t5_name(task: str) -> str:
    return NAMES.get(task) or task + ("_v102" if task.startswith("super_glue") else "_v002")


def tensor_spec(key: str, value):
    """The type that TFDS gives a field."""
    if isinstance(value, dict):
        return {inner: tensor_spec(inner, v) for inner, v in value.items()}
    if isinstance(value, list):
        return tf.TensorSpec([None], tf.int32 if key == "answer_start" else tf.string)
    if isinstance(value, float):
        return tf.TensorSpec([], tf.float32)
    if isinstance(value, int):
        return tf.TensorSpec([], tf.int64 if key == "label" else tf.int32)
    return tf.TensorSpec([], tf.string)


def examples_of(task: str, rows: list[dict], prompt_tuning=None, taskless: bool = False) -> list:
    """(input, target) of all examples that the rows make, in their order.

    Args:
        prompt_tuning: that repository's preprocessors, for mrqa and for ``taskless``.
    """
    if not task.startswith(("squad", "mrqa", "dpr")):
        rows = [{"idx": position} | row for position, row in enumerate(rows)]
    signature = {key: tensor_spec(key, value) for key, value in rows[0].items()}
    examples = tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)
    if task.startswith("mrqa"):
        examples = prompt_tuning.mrqa(examples)
    else:
        for preprocess in seqio.TaskRegistry.get(t5_name(task)).preprocessors:
            if preprocess is seqio.preprocessors.tokenize:
                break
            examples = preprocess(examples)
    if taskless:
        examples = prompt_tuning.remove_first_text_token(examples)
    return [
        [example[key].decode("utf-8") for key in ("inputs", "targets")]
        for example in examples.as_numpy_iterator()
    ]


def load_prompt_tuning(checkout: str):
    """The module prompt_tuning/data/preprocessors.py of a checkout, without its package."""
    file = Path(checkout) / "prompt_tuning" / "data" / "preprocessors.py"
    specification = importlib.util.spec_from_file_location("prompt_tuning_preprocessors", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def label_words(task: str) -> list[str] | None:
    postprocess = seqio.TaskRegistry.get(t5_name(task)).postprocessor
    words = getattr(postprocess, "keywords", {}).get("label_classes")
    return words and list(words)


def main(checkout: str) -> None:
    prompt_tuning = load_prompt_tuning(checkout)
    cases = []
    for task, rows in ROWS.items():
        for row in rows:
            case = {"task": task, "row": row, "examples": examples_of(task, [row], prompt_tuning)}
            if not task.startswith(("squad", "mrqa")):
                case["taskless"] = examples_of(task, [row], prompt_tuning, taskless=True)
            cases.append(case)
    classes = [task for task in ROWS if task not in ("glue_stsb", "mrqa_textbookqa")]
    referents = [
        [said, right, wsc_simple(said, example={"targets_pretokenized": right.encode()})]
        for said, right in REFERENTS
    ]
    golden = {
        "source": f"t5 {t5.__version__}; google-research/prompt-tuning 72285ee",
        "cases": cases,
        "label_words": {task: words for task in classes if (words := label_words(task))},
        "referents": referents,
        "weights": {
            "glue": dict(t5.data.glue_utils.get_glue_weight_mapping()),
            "super_glue": dict(t5.data.glue_utils.get_super_glue_weight_mapping()),
        },
    }
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (HERE / "t5_formats.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
