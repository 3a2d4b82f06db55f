"""Made-up rows in the schemas of promptsource's datasets, for rendering its templates.

``ROWS`` has every dataset of T0's training mixtures and of T-Few's held-out suite, and those others
that the tests have templates of, by its folder in promptsource. The texts mean nothing; the rows
take the templates' different ways: every label, empty answers, fields longer than promptsource
prints, separators inside texts.
"""

LONG = "A long text. " * 400
SPAN = {"text": ["the cat"], "answer_start": [3]}
ABCD = {"text": ["x", "y", "z", "w"], "label": ["A", "B", "C", "D"]}
NUMBERED = {"text": ["x", "y", "z", "w"], "label": ["1", "2", "3", "4"]}
PROCESS = ["a seed falls", "it rains", "a root grows"]


def _each(labels, **fields) -> list[dict]:
    return [{**fields, "label": label, "idx": idx} for idx, label in enumerate(labels)]


def _squad(**fields) -> list[dict]:
    return [{"id": "1", "title": "A_Title", "context": "On the cat", "question": "Who?", **fields}]


def _duorc(**fields) -> dict:
    return {"plot_id": "p", "title": "T", "question_id": "q", "question": "Who?", **fields}


_ARC = [
    {"id": "a", "question": "Which?", "choices": ABCD, "answerKey": "C"},
    {"id": "b", "question": "Which?", "choices": NUMBERED, "answerKey": "2"},
]
_ADVERSARIAL = [
    *_squad(answers=SPAN, metadata={"split": "train"}),
    *_squad(answers=SPAN, metadata={"split": "test"}),
]
_DUORC = [
    _duorc(plot=LONG, answers=["Ann"], no_answer=False),
    _duorc(plot="p", answers=[], no_answer=True),
]
_RACE = [
    {"article": "art", "answer": "C", "question": question, "options": ["w", "x", "y", "z"]}
    for question in ("What?", "The _ is")
]
_WIQA = [
    {
        "question_stem": "suppose more rain happens, how will it affect floods.",
        "question_para_step": [*PROCESS, last],
        "answer_label": label,
        "answer_label_as_choice": letter,
        "choices": {"text": ["more", "less", "no effect"], "label": ["A", "B", "C"]},
        "metadata_question_type": kind,
    }
    for label, letter, last, kind in (
        ("more", "A", "", "INPARA_EFFECT"),
        ("no_effect", "C", "leaves grow", "EXOGENOUS_EFFECT"),
    )
]
_NLI = {"premise": "It rains ||| hard.", "hypothesis": "It is wet."}
_PAIR = {"sentence1": "It rains.", "sentence2": LONG}
_WINOGRANDE = {"sentence": "Ann saw Bo as _ ran.", "option1": "Ann", "option2": "Bo"}
_STORY = {f"input_sentence_{number}": f"Part {number}." for number in range(1, 5)}
_E2E = [
    {"meaning_representation": mr, "human_reference": text}
    for mr, text in (
        ("name[The Mill], eatType[pub], food[Thai], area[riverside]", "The Mill is a Thai pub."),
        ("name[Bo's], priceRange[cheap], customer rating[5 out of 5], near[A]", "Bo's is cheap."),
        ("name[X], familyFriendly[yes]", "X is family friendly."),
    )
]

ROWS: dict[str, list[dict]] = {
    "ade_corpus_v2/Ade_corpus_v2_classification": _each((0, 1), text="It made me ill."),
    "adversarial_qa/dbert": _ADVERSARIAL,
    "adversarial_qa/dbidaf": _ADVERSARIAL,
    "adversarial_qa/droberta": _ADVERSARIAL,
    "ag_news": _each(range(4), text="Shares fall."),
    "ai2_arc/ARC-Challenge": _ARC,
    "ai2_arc/ARC-Easy": _ARC,
    "amazon_polarity": _each((0, 1), title="T", content="bad"),
    "anli": _each(range(3), **_NLI),
    "app_reviews": [
        {"package_name": "org.x", "review": "ok", "star": star} for star in range(1, 6)
    ],
    "banking77": _each((0, 51, 76), text="Where is my card?"),
    "cnn_dailymail/3.0.0": [{"article": LONG, "highlights": "h\nk"}],
    "common_gen": [{"concepts": ["dog", "run"], "target": "A dog runs."}],
    "cos_e/v1.11": [
        {
            "question": "Where?",
            "choices": ["a", "b", "c", "d", "e"],
            "answer": "b",
            "abstractive_explanation": "because",
        }
    ],
    "cosmos_qa": _each(
        range(4),
        context="c",
        question="Why?",
        answer0="a",
        answer1="b",
        answer2="c",
        answer3="None of the above choices .",
    ),
    "dbpedia_14": _each(range(14), title="T", content="c"),
    "dream": [
        {
            "dialogue": ["M: hi", "W: yes", "M: so"],
            "question": "Who?",
            "choice": ["a", "b", "c"],
            "answer": "b",
        }
    ],
    "duorc/ParaphraseRC": _DUORC,
    "duorc/SelfRC": _DUORC,
    "e2e_nlg_cleaned": _E2E,
    "enriched_web_nlg/en": [
        {
            "modified_triple_sets": {"mtriple_set": [["A | isIn | B", "B | isIn | C"]]},
            "lex": {"text": ["A is in B, which is in C."]},
        }
    ],
    "gigaword": [{"document": "d", "summary": "s"}],
    "glue/mnli": _each(range(3), **_NLI),
    "glue/mrpc": _each((0, 1), **_PAIR),
    "glue/qqp": _each((0, 1), question1="Who?", question2="Why?"),
    "glue/rte": _each((0, 1), **_PAIR),
    "glue/sst2": _each((0, 1), sentence="fine work"),
    "hellaswag": [
        {
            "activity_label": "Running",
            "ctx_a": "A man",
            "ctx_b": "he",
            "ctx": "A man he",
            "endings": ["goes", "sits", "runs", "eats"],
            "label": label,
        }
        for label in ("0", "3")
    ],
    "imdb": _each((0, 1), text="t"),
    "kilt_tasks/hotpotqa": [
        {"input": "Who is it?", "output": [{"answer": "Ann"}]},
        {"input": "None?", "output": []},
    ],
    "multi_news": [{"document": "d ||||| e", "summary": "– s"}, {"document": LONG, "summary": "s"}],
    "openbookqa/main": [{"question_stem": "What", "choices": ABCD, "answerKey": "D"}],
    "paws/labeled_final": _each((0, 1), **_PAIR),
    "piqa": _each((0, 1), goal="Do it", sol1="This way.", sol2="That way"),
    "qasc": [
        {
            "question": "What?",
            "choices": {"text": list("stuvwxyz"), "label": list("ABCDEFGH")},
            "answerKey": "C",
            "fact1": "f1.",
            "fact2": "f2",
            "combinedfact": "both.",
        }
    ],
    "quail": [
        {
            "context": "c",
            "question": "Why?",
            "answers": ["a", "b", "c", "not enough information"],
            "correct_answer_id": right,
        }
        for right in (0, 3)
    ],
    "quarel": [
        {
            "answer_index": right,
            "world_literals": {"world1": ["big"], "world2": ["small"]},
            "question": "Which one? (A) x (B) y",
        }
        for right in (0, 1)
    ],
    "quartz": [
        {
            "question": question,
            "choices": {"text": ["more", "less"], "label": ["A", "B"]},
            "answerKey": key,
            "para": "p",
        }
        for question, key in (("Which", "B"), ("Which ____ is", "A"))
    ],
    "quoref": _squad(answers=SPAN),
    "race/high": _RACE,
    "race/middle": _RACE,
    "ropes": [
        {
            "background": "b",
            "situation": "s",
            "question": "Which?",
            "answers": {"text": ["left"]},
        }
    ],
    "rotten_tomatoes": _each((0, 1), text="t"),
    "samsum": [{"dialogue": "A: hi\r\nB: yes", "summary": "s"}],
    "sciq": [
        {
            "question": "What?",
            "distractor1": "a",
            "distractor2": "b",
            "distractor3": "c",
            "correct_answer": "d",
            "support": "because",
        }
    ],
    "social_i_qa": _each(
        ("1", "3"), context="c", question="Why?", answerA="a", answerB="b", answerC="c"
    ),
    "squad_v2": [*_squad(answers=SPAN), *_squad(answers={"text": [], "answer_start": []})],
    "story_cloze/2016": [
        {**_STORY, "sentence_quiz1": "e", "sentence_quiz2": "f", "answer_right_ending": right}
        for right in (1, 2)
    ],
    "super_glue/boolq": _each((0, 1), passage=LONG, question="is it"),
    "super_glue/cb": _each(range(3), **_NLI),
    "super_glue/copa": [
        row | {"question": question}
        for row in _each((0, 1), premise="It rained.", choice1="Wet.", choice2="Dry.")
        for question in ("cause", "effect")
    ],
    "super_glue/multirc": _each((0, 1), paragraph=LONG, question="Who?", answer="Ann"),
    "super_glue/record": [
        {
            "passage": "Ann met Bo.\n@highlight\nThey spoke.",
            "query": "@placeholder went home",
            "entities": ["Ann", "Bo"],
            "answers": ["Ann"],
        }
    ],
    "super_glue/rte": _each((0, 1), **_NLI),
    "super_glue/wic": _each((0, 1), word="bank", sentence1="a bank", sentence2="the bank"),
    "super_glue/wsc.fixed": _each(
        (0, 1),
        text="Ann told Bo she left",
        span1_text="Ann",
        span2_text="she",
        span1_index=0,
        span2_index=3,
    ),
    "trec": [
        {"coarse_label": coarse, "fine_label": fine, "text": "what ?"}
        for coarse, fine in ((0, 0), (1, 2), (2, 24), (3, 28), (4, 32), (5, 38))
    ],
    "trivia_qa/unfiltered": [{"question": "Who?", "answer": {"value": "Bo", "aliases": ["Bo"]}}],
    "web_questions": [{"question": "who?", "answers": ["A"]}],
    "wiki_bio": [
        {
            "input_text": {
                "table": {
                    "column_header": ["name", "article_title", "born"],
                    "row_number": [1, 1, 1],
                    "content": ["Ann\n", "Ann x\n", "1900\n"],
                },
                "context": "ann\n",
            },
            "target_text": "ann was born .\n",
        }
    ],
    "wiki_hop/original": [
        {
            "question": "located_in_the_administrative_entity x y",
            "answer": "Paris",
            "candidates": ["Paris", "Rome"],
            "supports": ["s1", "s2"],
        }
    ],
    "wiki_qa": _each((0, 1), question="how big", document_title="Size", answer="It is big."),
    "winogrande/winogrande_xl": [{**_WINOGRANDE, "answer": right} for right in ("1", "2")],
    "wiqa": _WIQA,
    "xsum": [{"document": "d", "summary": "s"}],
    "yelp_review_full": _each(range(5), text="t"),
}
