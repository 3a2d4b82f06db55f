"""Grammar: is the sentence correct English?"""

from __future__ import annotations

from random import Random

from peft_jax.tasks.embedded.facts import NOUNS, VERBS
from peft_jax.tasks.embedded.lexicon import COUNTLESS, KINDS, PEOPLE, PLACES, a, plural, sentence

LIVING = (*KINDS["animal"], *KINDS["bird"])
DOING = (("sleeps", "sleep"), ("eats", "eat"), ("runs", "run"), ("hides", "hide"),
         ("drinks", "drink"), ("waits", "wait"))  # fmt: skip


def acceptability(rng: Random) -> dict:
    """{text, label} (0 correct, 1 not): agreement, articles, word order, the verb's form."""
    label = rng.randrange(2)
    text = (_agreement, _article, _order, _form)[rng.randrange(4)](rng, wrong=label == 1)
    return {"text": sentence(text), "label": label}


def _agreement(rng: Random, wrong: bool) -> str:
    noun, (singular, many) = rng.choice(LIVING), rng.choice(DOING)
    if rng.randrange(2):
        return f"the {noun} {many if wrong else singular} {rng.choice(PLACES)}"
    return f"the {plural(noun)} {singular if wrong else many} {rng.choice(PLACES)}"


def _article(rng: Random, wrong: bool) -> str:
    noun = rng.choice([noun for noun in NOUNS if noun not in COUNTLESS])
    article, _, rest = a(noun).partition(" ")
    if wrong:
        article = "a" if article == "an" else "an"
    return f"{rng.choice(PEOPLE)} {rng.choice(VERBS)[0]} {article} {rest} {rng.choice(PLACES)}"


def _order(rng: Random, wrong: bool) -> str:
    name, verb, thing = rng.choice(PEOPLE), rng.choice(VERBS)[0], a(rng.choice(NOUNS))
    parts = [name, verb, thing]
    if wrong:
        parts = rng.choice(([name, thing, verb], [verb, thing, name], [thing, name, verb]))
    return " ".join((*parts, rng.choice(PLACES)))


def _form(rng: Random, wrong: bool) -> str:
    past, base = rng.choice(VERBS)
    verb = past if wrong else base
    name, thing = rng.choice(PEOPLE), a(rng.choice(NOUNS))
    return f"{name} {rng.choice(('did not', 'will'))} {verb} {thing}"
