"""Reading: questions about a passage of two facts, answered by yes or no or by a name."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from peft_jax.tasks.embedded.facts import other_noun, two_facts
from peft_jax.tasks.embedded.lexicon import a


def check(rng: Random) -> dict:
    """A yes/no question about the passage: {passage, question, label} (0 yes, 1 no)."""
    facts = two_facts(rng)
    label, asked = rng.randrange(2), rng.randrange(2)
    fact, other = facts[asked], facts[1 - asked]
    if label:
        # What is wrong comes from the other fact as often as from outside the passage.
        fact = rng.choice((
            replace(fact, name=other.name),
            replace(fact, noun=other.noun),
            replace(fact, noun=other_noun(rng, fact)),
            replace(fact, place=other.place),
        ))  # fmt: skip
    wrong_place = fact.place != facts[asked].place
    thing = a(fact.kind) if rng.random() < 0.4 else None
    question = fact.question(place=wrong_place or rng.random() < 0.4, thing=thing)
    return {"passage": _passage(facts), "question": question, "label": label}


def who(rng: Random) -> dict:
    """Who did it: {passage, question, choice1, choice2, label}."""
    facts = two_facts(rng)
    asked = rng.randrange(2)
    fact = facts[asked]
    place = f" {fact.place}" if rng.random() < 0.4 else ""
    thing = a(fact.kind) if rng.random() < 0.4 else a(fact.noun)
    order = rng.sample((0, 1), 2)
    return {
        "passage": _passage(facts),
        "question": f"Who {fact.verb[0]} {thing}{place}?",
        "choice1": facts[order[0]].name,
        "choice2": facts[order[1]].name,
        "label": order.index(asked),
    }


def _passage(facts) -> str:
    return " ".join(fact.statement() for fact in facts)
