"""Comparison: which of two people is taller, older, richer."""

from __future__ import annotations

from random import Random

from peft_jax.tasks.embedded.lexicon import PEOPLE, sentence

SCALES: tuple[tuple[str, str], ...] = (
    ("taller", "shorter"), ("older", "younger"), ("faster", "slower"), ("richer", "poorer"),
    ("heavier", "lighter"), ("stronger", "weaker"), ("louder", "quieter"),
)  # fmt: skip


def comparison(rng: Random) -> dict:
    """{text, adjective, choice1, choice2, label}: which of the two has more of the adjective."""
    more, less = rng.choice(SCALES)
    if rng.randrange(2):
        more, less = less, more
    high, low = rng.sample(PEOPLE, 2)
    text = f"{high} is {more} than {low}" if rng.randrange(2) else f"{low} is {less} than {high}"
    asked = rng.randrange(2)
    order = rng.sample((0, 1), 2)
    names = (high, low)
    return {
        "text": sentence(text),
        "adjective": less if asked else more,
        "choice1": names[order[0]],
        "choice2": names[order[1]],
        "label": order.index(asked),
    }
