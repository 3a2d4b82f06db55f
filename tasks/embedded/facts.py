"""Who did what, where: the statements that the reading, inference and paraphrase tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from peft_jax.tasks.embedded.lexicon import KIND_OF, PEOPLE, PLACES, a, sentence

VERBS: tuple[tuple[str, str], ...] = (  # past, base form
    ("bought", "buy"), ("found", "find"), ("sold", "sell"), ("saw", "see"), ("lost", "lose"),
    ("drew", "draw"), ("brought", "bring"), ("stole", "steal"), ("chose", "choose"),
)  # fmt: skip
NOUNS = tuple(KIND_OF)


@dataclass(frozen=True)
class Fact:
    """`name` did `verb` (past, base) to a `noun` at `place`."""

    name: str
    verb: tuple[str, str]
    noun: str
    place: str

    def statement(self, *, place: bool = True, thing: str | None = None, negated=False) -> str:
        """As a sentence; `thing` replaces the noun ("a tool" for "a hammer")."""
        verb = f"did not {self.verb[1]}" if negated else self.verb[0]
        where = f" {self.place}" if place else ""
        return sentence(f"{self.name} {verb} {thing or a(self.noun)}{where}")

    def question(self, *, place: bool = True, thing: str | None = None) -> str:
        where = f" {self.place}" if place else ""
        return f"Did {self.name} {self.verb[1]} {thing or a(self.noun)}{where}?"

    @property
    def kind(self) -> str:
        return KIND_OF[self.noun]


def two_facts(rng: Random) -> tuple[Fact, Fact]:
    """Two facts that differ in every part, the kinds of their nouns included."""
    names, verbs = rng.sample(PEOPLE, 2), rng.sample(VERBS, 2)
    places = rng.sample(PLACES, 2)
    first = rng.choice(NOUNS)
    second = rng.choice([noun for noun in NOUNS if KIND_OF[noun] != KIND_OF[first]])
    return (
        Fact(names[0], verbs[0], first, places[0]),
        Fact(names[1], verbs[1], second, places[1]),
    )


def other_noun(rng: Random, fact: Fact) -> str:
    """A noun of another kind than the fact's."""
    return rng.choice([noun for noun in NOUNS if KIND_OF[noun] != fact.kind])
