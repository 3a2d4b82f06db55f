"""Paraphrase: two sentences that say the same, or nearly the same words that do not."""

from __future__ import annotations

from random import Random

from peft_jax.tasks.embedded.facts import NOUNS
from peft_jax.tasks.embedded.lexicon import PEOPLE, PLACES, SAME_ACTION, a, sentence, two

PASSIVE = ("helped", "called", "thanked", "invited", "praised", "visited", "followed", "painted")


def paraphrase(rng: Random) -> dict:
    """{sentence1, sentence2, label} (0 the same meaning, 1 another meaning)."""
    label = rng.randrange(2)
    first, second = (_action, _people, _gift)[rng.randrange(3)](rng, same=label == 0)
    if rng.random() < 0.5:
        first, second = second, first
    return {"sentence1": sentence(first), "sentence2": sentence(second), "label": label}


def _action(rng: Random, same: bool) -> tuple[str, str]:
    verb, synonym = two(rng, rng.choice(SAME_ACTION))
    name, noun, place = rng.choice(PEOPLE), rng.choice(NOUNS), rng.choice(PLACES)
    first = f"{name} {verb} {a(noun)} {place}"
    if not same:
        change = rng.randrange(3)
        if change == 0:
            name = rng.choice([other for other in PEOPLE if other != name])
        elif change == 1:
            noun = rng.choice([other for other in NOUNS if other != noun])
        else:
            pairs = [pair for pair in SAME_ACTION if verb not in pair]
            synonym = rng.choice(rng.choice(pairs))
    if rng.random() < 0.5:
        return first, f"{place}, {name} {synonym} {a(noun)}"
    return first, f"{name} {synonym} {a(noun)} {place}"


def _people(rng: Random, same: bool) -> tuple[str, str]:
    doer, done = two(rng, PEOPLE)
    verb, place = rng.choice(PASSIVE), rng.choice(PLACES)
    first = f"{doer} {verb} {done} {place}"
    if not same:
        doer, done = done, doer
    return first, f"{done} was {verb} by {doer} {place}"


def _gift(rng: Random, same: bool) -> tuple[str, str]:
    giver, taker = two(rng, PEOPLE)
    thing = a(rng.choice(NOUNS))
    first = f"{giver} gave {taker} {thing}"
    if not same:
        giver, taker = taker, giver
    return first, f"{taker} got {thing} from {giver}"
