"""The embedded backbone's vocabulary: a small SentencePiece model of the tasks' own words.

Its text is that of all tasks and templates, the held-out ones included, as a real model's
vocabulary covers words that its training tasks never ask about; only the pieces come from there,
no weight.  Every word of the text is one piece, pieces of words serve any other text, and bytes
serve unknown letters.  Text is folded to lower case: a tiny model cannot afford to learn each word
twice.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from pathlib import Path

from peft_jax.errors import InputError
from peft_jax.tasks.embedded import TASKS, TEMPLATES, rows
from peft_jax.tasks.prompts import load_templates

ROWS_PER_TASK = 600
# Added to the score of a piece of a word, so that a whole word wins over its pieces.
_PIECE_PENALTY = -20.0
_NORMAL = 1  # SentencePiece's type of a piece that is neither control, unknown nor byte


def train_vocabulary(file: Path, size: int) -> Path:
    """Writes a SentencePiece unigram model with T5's ids (pad 0, eos 1, unk 2); returns `file`.

    Args:
      file: where to write it.
      size: the most pieces: 256 bytes, about 960 words, and pieces of words.

    Raises:
      InputError: a size that the text does not allow.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    texts = list(_texts())
    words = Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
    model = ModelProto.FromString(_train_unigram(texts, size - len(words)))
    for piece in model.pieces:
        if piece.type == _NORMAL:
            piece.score += _PIECE_PENALTY
    known = {piece.piece: piece for piece in model.pieces}
    total = words.total()
    for word, count in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        piece = known.get("▁" + word) or model.pieces.add(piece="▁" + word)
        piece.score = math.log(count / total)
    model.trainer_spec.vocab_size = len(model.pieces)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model.SerializeToString(deterministic=True))
    return file


def _train_unigram(texts: list[str], size: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,  # more threads sum in another order
            minloglevel=2,
        )
    except RuntimeError as error:  # SentencePiece names the sizes that the text allows
        raise InputError(f"a vocabulary with {size} word pieces cannot be made: {error}") from error
    return model.getvalue()


def _texts():
    for name in TASKS:
        templates = load_templates(TEMPLATES / f"{name}.yaml").values()
        for row in rows(name, "train", ROWS_PER_TASK):
            for template in templates:
                rendered = template.render(row)
                yield rendered.input
                yield from rendered.choices
