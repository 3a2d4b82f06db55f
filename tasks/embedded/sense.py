"""Word sense: what an ambiguous word means in a sentence, and whether two uses mean the same."""

from __future__ import annotations

from random import Random

from peft_jax.tasks.embedded.lexicon import PEOPLE, SENSES, TIMES, fill, sentence

WORDS = tuple(SENSES)


def _use(rng: Random, predicate: str) -> str:
    name = rng.choice(PEOPLE)
    time = f" {rng.choice(TIMES)}" if rng.random() < 0.3 else ""
    return sentence(fill("{n} " + predicate + time, name))


def definition(rng: Random) -> dict:
    """{text, word, choice1, choice2, label}: the meaning of the word in the text."""
    word, label = rng.choice(WORDS), rng.randrange(2)
    meanings = rng.sample(list(SENSES[word]), 2)
    text = _use(rng, rng.choice(SENSES[word][meanings[label]]))
    return {
        "text": text,
        "word": word,
        "choice1": meanings[0],
        "choice2": meanings[1],
        "label": label,
    }


def same(rng: Random) -> dict:
    """{sentence1, sentence2, word, label} (0 the same sense, 1 different senses)."""
    word, label = rng.choice(WORDS), rng.randrange(2)
    senses = list(SENSES[word].values())
    rng.shuffle(senses)
    if label:
        first, second = rng.choice(senses[0]), rng.choice(senses[1])
    else:
        first, second = rng.sample(senses[0], 2)
    return {
        "sentence1": _use(rng, first),
        "sentence2": _use(rng, second),
        "word": word,
        "label": label,
    }
