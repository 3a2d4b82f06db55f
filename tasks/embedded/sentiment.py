"""Sentiment: opinions and emotions, and what follows from them."""

from __future__ import annotations

from random import Random

from peft_jax.tasks.embedded.lexicon import (
    ASPECTS,
    BAD,
    BLAME,
    EMOTIONS,
    GOOD,
    PEOPLE,
    PRAISE,
    TIMES,
    fill,
    sentence,
    two,
)

REVIEWED = tuple(thing for thing in ASPECTS if thing != "hotel")  # hotels are held out
EMOTION_NAMES = tuple(EMOTIONS)


def opinion(rng: Random, thing: str, positive: bool) -> str:
    """One or two sentences about the thing, some of them with a negated adjective."""
    aspects = two(rng, ASPECTS[thing])
    closing = rng.choice(PRAISE if positive else BLAME)

    def said(aspect: str) -> str:
        if rng.random() < 0.2:
            return f"the {aspect} was not {rng.choice(BAD if positive else GOOD)}"
        return f"the {aspect} was {rng.choice(GOOD if positive else BAD)}"

    form = rng.randrange(4)
    if form == 0:
        return sentence(f"{said(aspects[0])} and {said(aspects[1])}")
    if form == 1:
        return f"{sentence(said(aspects[0]))} {sentence(closing)}"
    if form == 2:
        return sentence(f"{closing}, {said(aspects[0])}")
    return sentence(said(aspects[0]))


def review(rng: Random) -> dict:
    """{text, thing, label} (0 positive, 1 negative): a review of a film, a book, a phone ..."""
    label, thing = rng.randrange(2), rng.choice(REVIEWED)
    return {"text": opinion(rng, thing, positive=label == 0), "thing": thing, "label": label}


def emotion(rng: Random) -> dict:
    """{text, name, label}: what somebody felt, label an index of `EMOTION_NAMES`."""
    label, name = rng.randrange(len(EMOTION_NAMES)), rng.choice(PEOPLE)
    text = fill(rng.choice(EMOTIONS[EMOTION_NAMES[label]]), name)
    return {"text": sentence(f"{rng.choice(TIMES)} {text}"), "name": name, "label": label}


def complaint(rng: Random) -> dict:
    """{text, label} (0 a complaint, 1 praise): what a guest writes about a hotel."""
    label = rng.randrange(2)
    return {"text": opinion(rng, "hotel", positive=label == 1), "label": label}


def comfort(rng: Random) -> dict:
    """{text, name, label} (0 somebody sad or afraid, who needs comfort, 1 somebody else)."""
    label, name = rng.randrange(2), rng.choice(PEOPLE)
    felt = rng.choice(("happy", "angry") if label else ("sad", "afraid"))
    text = f"I heard that {fill(rng.choice(EMOTIONS[felt]), name)} {rng.choice(TIMES)}"
    return {"text": sentence(text), "name": name, "label": label}
