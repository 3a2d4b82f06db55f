"""Words: kinds of things, the odd one out, same and opposite, counting."""

from __future__ import annotations

from random import Random

from peft_jax.tasks.embedded.lexicon import (
    ANTONYMS,
    KIND_OF,
    KINDS,
    PEOPLE,
    PLACES,
    SYNONYMS,
    TIMES,
    a,
    plural,
    sentence,
)

KIND_NAMES = tuple(KINDS)
COUNTS = ("one", "two", "three", "four")


def membership(rng: Random) -> dict:
    """{text, thing, kind, label} (0 the thing is of the kind, 1 it is not)."""
    label = rng.randrange(2)
    noun = rng.choice(list(KIND_OF))
    kind = KIND_OF[noun]
    if label:
        kind = rng.choice([other for other in KIND_NAMES if other != kind])
    return {
        "text": sentence(f"{rng.choice(PEOPLE)} saw {a(noun)} {rng.choice(PLACES)}"),
        "thing": a(noun),
        "kind": f"a {kind}" if kind[0] not in "aeiou" else f"an {kind}",
        "label": label,
    }


def kind(rng: Random) -> dict:
    """{things, choice1..choice4, label}: the kind of two things, among four."""
    kinds, label = rng.sample(KIND_NAMES, 4), rng.randrange(4)
    first, second = rng.sample(KINDS[kinds[label]], 2)
    choices = {f"choice{place + 1}": kind for place, kind in enumerate(kinds)}
    return {"things": f"{a(first)} and {a(second)}", **choices, "label": label}


def same_kind(rng: Random) -> dict:
    """{text, thing1, thing2, label} (0 the things are of one kind, 1 of two)."""
    label, kinds = rng.randrange(2), rng.sample(KIND_NAMES, 2)
    first, second = rng.sample(KINDS[kinds[0]], 2)
    if label:
        second = rng.choice(KINDS[kinds[1]])
    text = sentence(f"{rng.choice(PEOPLE)} drew {a(first)} and {a(second)} {rng.choice(TIMES)}")
    return {"text": text, "thing1": a(first), "thing2": a(second), "label": label}


def odd_one_out(rng: Random) -> dict:
    """{choice1..choice4, label}: three words of one kind and one of another."""
    many, one = rng.sample(KIND_NAMES, 2)
    words, label = rng.sample(KINDS[many], 4), rng.randrange(4)
    words[label] = rng.choice(KINDS[one])
    return {**{f"choice{place + 1}": word for place, word in enumerate(words)}, "label": label}


def same_meaning(rng: Random) -> dict:
    """{text, word1, word2, label} (0 the words mean the same, 1 the opposite)."""
    label = rng.randrange(2)
    pair = list(rng.choice(ANTONYMS if label else SYNONYMS))
    rng.shuffle(pair)
    text = sentence(f"{rng.choice(PEOPLE)} learned two words {rng.choice(TIMES)}")
    return {"text": text, "word1": pair[0], "word2": pair[1], "label": label}


def counting(rng: Random) -> dict:
    """{words, kind, label}: how many of the five words are of the kind."""
    label = rng.randrange(len(COUNTS))
    asked, other = rng.sample(KIND_NAMES, 2)
    words = rng.sample(KINDS[asked], label + 1) + rng.sample(KINDS[other], 4 - label)
    rng.shuffle(words)
    return {"words": ", ".join(words), "kind": plural(asked), "label": label}
