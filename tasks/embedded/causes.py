"""Cause and effect: how a sentence goes on, whether a reason makes sense, cause or result."""

from __future__ import annotations

from random import Random

from peft_jax.tasks.embedded.lexicon import PEOPLE, SCRIPTS, TIMES, fill, pronoun, sentence, two


def completion(rng: Random) -> dict:
    """{start, choice1, choice2, label}: how "..., so" goes on."""
    (cause, effect), (_, wrong) = two(rng, SCRIPTS)
    return _choose(rng, "start", cause, effect, wrong)


def reason(rng: Random) -> dict:
    """{text, label} (0 the reason makes sense, 1 it does not): "... because ..."."""
    label, name = rng.randrange(2), rng.choice(PEOPLE)
    (cause, effect), (wrong, _) = two(rng, SCRIPTS)
    effect, because = fill(effect, name), fill(wrong if label else cause, name)
    if name in effect:
        because = because.replace(name, pronoun(name), 1)
    return {
        "text": sentence(f"{rng.choice(TIMES)} {effect} because {because}"),
        "label": label,
    }


def cause_or_effect(rng: Random) -> dict:
    """{premise, question, choice1, choice2, label}: COPA's form, question "cause" or "effect"."""
    (cause, effect), (other_cause, other_effect) = two(rng, SCRIPTS)
    if rng.randrange(2):
        row = _choose(rng, "premise", cause, effect, other_effect)
        return {**row, "question": "effect"}
    row = _choose(rng, "premise", effect, cause, other_cause)
    return {**row, "question": "cause"}


def _choose(rng: Random, field: str, given: str, right: str, wrong: str) -> dict:
    """A row with `given` in `field` and the two continuations in random places."""
    name, label = rng.choice(PEOPLE), rng.randrange(2)
    choices = [fill(right, name), fill(wrong, name)]
    if label:
        choices.reverse()
    return {
        field: fill(given, name),
        "choice1": choices[0],
        "choice2": choices[1],
        "label": label,
    }
