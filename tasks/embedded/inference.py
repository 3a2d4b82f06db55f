"""Inference: does the second sentence follow from the first?"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from peft_jax.tasks.embedded.facts import other_noun, two_facts
from peft_jax.tasks.embedded.lexicon import a


def entailment(rng: Random) -> dict:
    """{premise, hypothesis, label} (0 follows, 1 does not).

    What follows drops the place, names the kind for the thing, or both; what does not changes
    the person, the thing, its kind or the place, or says that it did not happen.
    """
    facts = two_facts(rng)
    premise = " ".join(fact.statement() for fact in facts)
    label, told = rng.randrange(2), rng.randrange(2)
    fact, other = facts[told], facts[1 - told]
    negated, place = False, rng.random() < 0.4
    if label:
        change = rng.choice(("name", "noun", "other noun", "place", "negation"))
        if change == "name":
            fact = replace(fact, name=other.name)
        elif change == "noun":
            fact = replace(fact, noun=other.noun)
        elif change == "other noun":
            fact = replace(fact, noun=other_noun(rng, fact))
        elif change == "place":
            fact, place = replace(fact, place=other.place), True
        else:
            negated = True
    thing = a(fact.kind) if rng.random() < 0.4 else None
    return {
        "premise": premise,
        "hypothesis": fact.statement(place=place, thing=thing, negated=negated),
        "label": label,
    }
