"""Topic: what a headline is about, whether two share it, and where a customer must go."""

from __future__ import annotations

from random import Random

from peft_jax.tasks.embedded.lexicon import DEPARTMENTS, KINDS, PEOPLE, TIMES, TOPICS, a, sentence

TOPIC_NAMES = tuple(TOPICS)
DEPARTMENT_NAMES = tuple(DEPARTMENTS)


def headline(rng: Random, topic: str) -> str:
    """A short headline with two words of the topic."""
    first, second = rng.sample(TOPICS[topic], 2)
    name, time = rng.choice(PEOPLE), rng.choice(TIMES)
    return sentence(
        rng.choice(
            (
                f"new {first} changes the {second}",
                f"why the {first} matters more than the {second}",
                f"{name} talks about the {first} and the {second}",
                f"trouble with the {first} and the {second} {time}",
                f"{name} saw the {first} and asked about the {second}",
                f"{time} there was no {first} and no {second}",
            )
        )
    )


def news(rng: Random) -> dict:
    """{headline, choice1, choice2, choice3, choice4, topic, label}: the topic among four."""
    topics = rng.sample(TOPIC_NAMES, 4)
    label = rng.randrange(4)
    choices = {f"choice{place + 1}": topic for place, topic in enumerate(topics)}
    return {"headline": headline(rng, topics[label]), **choices, "label": label}


def same(rng: Random) -> dict:
    """{headline1, headline2, label} (0 same topic, 1 different topics)."""
    label = rng.randrange(2)
    first, second = rng.sample(TOPIC_NAMES, 2)
    return {
        "headline1": headline(rng, first),
        "headline2": headline(rng, second if label else first),
        "label": label,
    }


def department(rng: Random) -> dict:
    """{request, label}: the department of a store that sells what the customer asks for."""
    label = rng.randrange(len(DEPARTMENT_NAMES))
    nouns = [noun for kind in DEPARTMENTS[DEPARTMENT_NAMES[label]] for noun in KINDS[kind]]
    first, second = (a(noun) for noun in rng.sample(nouns, 2))
    name = rng.choice(PEOPLE)
    request = rng.choice((
        f"{name} is looking for {first} and {second}",
        f"{name} needs {first}",
        f"my friend {name} asked me to bring {first} or {second}",
        f"do you have {first} for {name}? And {second}, please",
    ))  # fmt: skip
    return {"request": sentence(request), "label": label}
