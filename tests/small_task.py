"""A small task of a user's own, for the tests of the data side: a folder and a vocabulary."""

import json
from pathlib import Path

TEMPLATES = """
templates:
  plain: !Template
    name: plain question
    jinja: '{{text}} Is it warm? ||| {{answer_choices[label]}}'
    answer_choices: No ||| Yes
    metadata: !TemplateMetadata {original_task: true}
  three: !Template
    name: three answers
    jinja: '{{text}} Warm, cold or something else? ||| {{answer_choices[label]}}'
    answer_choices: cold weather ||| warm weather ||| something else
    metadata: !TemplateMetadata {original_task: true}
  short: !Template
    name: some rows only
    jinja: '{% if idx % 2 == 0 %}{{text}} ||| {{answer_choices[label]}}{% endif %}'
    answer_choices: cold ||| warm
    metadata: !TemplateMetadata {original_task: true}
  other: !Template
    name: another task
    jinja: 'Write about the weather. ||| {{text}}'
    answer_choices: null
    metadata: !TemplateMetadata {original_task: false}
"""
WORDS = {0: ("snow", "ice", "frost", "north wind"), 1: ("sun", "sand", "summer", "south wind")}


def write_rows(folder: Path, split: str, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def write_task(folder: Path, train: int = 12, validation: int = 7) -> Path:
    """A folder with train.jsonl, validation.jsonl and templates.yaml; even rows are cold."""
    for split, count in (("train", train), ("validation", validation)):
        rows = [
            {"text": f"There is {WORDS[i % 2][i // 2 % 4]} {'and more of it ' * i}", "label": i % 2}
            for i in range(count)
        ]
        write_rows(folder, split, rows)
    (folder / "templates.yaml").write_text(TEMPLATES)
    return folder


def write_vocabulary(folder: Path) -> Path:
    """A SentencePiece model with T5's ids: pad 0, EOS 1, unknown 2."""
    import sentencepiece

    text = [word for words in WORDS.values() for word in words] + TEMPLATES.split("\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 3 + ["There is and more of it yes no Yes No"] * 5),
        model_prefix=str(folder / "spiece"),
        vocab_size=90,
        character_coverage=1.0,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    return folder / "spiece.model"
