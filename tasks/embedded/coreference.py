"""Coreference: whom a pronoun means, by gender or by what the sentence says."""

from __future__ import annotations

from random import Random

from peft_jax.tasks.embedded.lexicon import MEN, PLACES, WOMEN, pronoun, sentence

MEETINGS = ("met", "saw", "waited for", "talked to", "sat next to", "walked with", "called")
STATES = (
    "wore a red hat", "carried a heavy bag", "looked tired", "was in a hurry", "had a new bike",
    "ate an apple", "smiled", "was reading a book", "lived next door", "came from the village",
)  # fmt: skip
# verb, what the pronoun did, whether it means the subject (0) or the object (1)
REASONS: tuple[tuple[str, str, int], ...] = (
    ("thanked", "had helped so much", 1), ("praised", "had done a good job", 1),
    ("visited", "was ill", 1), ("scolded", "had told a lie", 1),
    ("paid", "had fixed the roof", 1), ("comforted", "had lost a friend", 1),
    ("envied", "had won a prize", 1), ("punished", "had stolen a bike", 1),
    ("begged", "needed money", 0), ("called", "wanted some advice", 0),
    ("apologised to", "had broken the cup", 0), ("bothered", "was bored", 0),
    ("hid from", "was afraid", 0), ("lied to", "wanted to keep the secret", 0),
    ("ran after", "wanted to give back the wallet", 0), ("asked", "did not know the way", 0),
)  # fmt: skip


def _mention(rng: Random) -> tuple[str, tuple[str, str], str, int]:
    """A text, its two names, the pronoun in it, and which of the names it means."""
    if rng.random() < 0.6:
        names = [rng.choice(WOMEN), rng.choice(MEN)]
        rng.shuffle(names)
        meant = rng.randrange(2)
        word = pronoun(names[meant])
        text = sentence(f"{names[0]} {rng.choice(MEETINGS)} {names[1]} {rng.choice(PLACES)}")
        text += " " + sentence(f"{word} {rng.choice(STATES)}")
    else:
        names = rng.sample(rng.choice((WOMEN, MEN)), 2)
        verb, state, meant = rng.choice(REASONS)
        word = pronoun(names[0])
        text = sentence(f"{names[0]} {verb} {names[1]} because {word} {state}")
    return text, (names[0], names[1]), word, meant


def who(rng: Random) -> dict:
    """{text, pronoun, choice1, choice2, label}: the name that the pronoun stands for."""
    text, names, word, meant = _mention(rng)
    order = rng.sample((0, 1), 2)
    return {
        "text": text,
        "pronoun": word,
        "choice1": names[order[0]],
        "choice2": names[order[1]],
        "label": order.index(meant),
    }


def check(rng: Random) -> dict:
    """{text, pronoun, name, label} (0 the pronoun means the name, 1 it means the other)."""
    text, names, word, meant = _mention(rng)
    label = rng.randrange(2)
    return {"text": text, "pronoun": word, "name": names[meant ^ label], "label": label}
