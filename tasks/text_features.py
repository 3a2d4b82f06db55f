"""Binary features of texts: what a model may have learned from examples that do not say.

A feature reads fields of a row and says True, False, or None where it is neither (a review that
ends with a question mark, of "exclaims"). By name, as a user writes them::

    find_feature("longer(passage, 50)")({"passage": "..."})
    find_feature("is(genre, government, fiction)")(row)

These are the features of Si et al. 2023, "Measuring Inductive Biases of In-Context Learning with
Underspecified Demonstrations" (ACL). Its code (github.com/NoviScl/AmbigPrompt) holds the data that
were made with them but not what made these, so that the rules here are found from the paper and the
instructions in run.py, and counted against the published rows: docs/evaluation.md has the figures.
"""

import functools
import inspect
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft_jax import tree
from peft_jax.errors import InputError

BE_FORMS = frozenset(("is", "was"))
DO_FORMS = frozenset(("do", "does", "did"))
NEGATIONS = frozenset(("not", "no", "cannot"))


# --------------------------------------------------------------------------------------------
# One text
# --------------------------------------------------------------------------------------------
def longer(text: str, words: int) -> bool:
    """Whether the text has more than so many words (stretches between white space)."""
    return len(text.split()) > words


def shorter(text: str, words: int) -> bool:
    """Whether the text has fewer than so many words (stretches between white space)."""
    return len(text.split()) < words


def capitals(text: str) -> bool:
    """Whether a word of two or more letters and digits has capitals alone, as in THIS or 4G."""
    return any(len(word) > 1 and word.isupper() for word in re.findall(r"\w+", text))


def exclaims(text: str) -> bool | None:
    """Whether the text ends with an exclamation mark; False for a full stop, else None."""
    return {"!": True, ".": False}.get(text.rstrip()[-1:])


def contains(text: str, words: str) -> bool:
    """Whether a word, or words in this order, stand in the text as whole words, in any case."""
    inner = r"\s+".join(re.escape(word) for word in words.split())
    return re.search(rf"(?<!\w){inner}(?!\w)", text, re.IGNORECASE) is not None


def negates(text: str) -> bool:
    """Whether the text has "not", "no", "cannot" or a word that ends in "n't"."""
    words = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split()
    bare = (word.strip(string.punctuation) for word in words)
    return any(word in NEGATIONS or word.endswith("n't") for word in bare)


def affirms(text: str) -> bool:
    """Whether the text has no word of negation (see "negates")."""
    return not negates(text)


def asks_be(question: str) -> bool | None:
    """Whether a question begins with is or was; False for do, does or did, else None."""
    first = question.lower().split()[:1]
    if not first or first[0] not in BE_FORMS | DO_FORMS:
        return None
    return first[0] in BE_FORMS


# --------------------------------------------------------------------------------------------
# Two texts
# --------------------------------------------------------------------------------------------
def shorter_than(text: str, other: str) -> bool:
    """Whether the first text has fewer words than the second."""
    return len(text.split()) < len(other.split())


def all_in(text: str, other: str) -> bool:
    """Whether every word of the first text stands in the second, in any case and order.

    Words are what is between white space, punctuation included.
    """
    return set(text.lower().split()) <= set(other.lower().split())


def mostly_in(text: str, other: str) -> bool:
    """Whether more than half of the first text's content words stand in the second.

    Content words are all but stop words: scikit-learn's, the forms of do, and the s of a genitive.
    A text without any counts as being in the other.
    """
    found = set(re.findall(r"\w+", other.lower()))
    content = [word for word in re.findall(r"\w+", text.lower()) if word not in _stop_words()]
    return not content or 2 * sum(word in found for word in content) > len(content)


@functools.cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return ENGLISH_STOP_WORDS | DO_FORMS | {"s"}


# --------------------------------------------------------------------------------------------
# What an annotator said
# --------------------------------------------------------------------------------------------
def equals(value: Any, wanted: str) -> bool:
    """Whether a field has a value."""
    return value_is(value, wanted, "") is True


def value_is(value: Any, yes: str, no: str) -> bool | None:
    """Whether a field has the first value; False for the second, None for another."""
    text = str(int(value)) if isinstance(value, bool) else str(value)
    return {yes: True, no: False}.get(text)


def at_least(*arguments: float) -> bool:
    """Whether any of some numeric fields reaches a threshold, which stands last."""
    *values, threshold = arguments
    return any(value >= threshold for value in values)


def rather(value: float, other: float, threshold: float) -> bool | None:
    """Whether the first of two numeric fields alone reaches a threshold; False for the second.

    None where both do, or neither.
    """
    reached = (value >= threshold, other >= threshold)
    return reached[0] if reached[0] != reached[1] else None


# --------------------------------------------------------------------------------------------
# By name
# --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Kind:
    """How a feature's arguments are written: fields of one type, then constants."""

    function: Callable[..., bool | None]
    fields: int = 1
    of: type | tuple[type, ...] = str
    constants: tuple[type, ...] = ()
    more_fields: bool = False


_NUMBER = (int, float)
FEATURES: dict[str, _Kind] = {
    "longer": _Kind(longer, constants=(int,)),
    "shorter": _Kind(shorter, constants=(int,)),
    "capitals": _Kind(capitals),
    "exclaims": _Kind(exclaims),
    "contains": _Kind(contains, constants=(str,)),
    "negates": _Kind(negates),
    "affirms": _Kind(affirms),
    "asks_be": _Kind(asks_be),
    "shorter_than": _Kind(shorter_than, fields=2),
    "all_in": _Kind(all_in, fields=2),
    "mostly_in": _Kind(mostly_in, fields=2),
    "equals": _Kind(equals, of=(str, int, bool), constants=(str,)),
    "is": _Kind(value_is, of=(str, int, bool), constants=(str, str)),
    "at_least": _Kind(at_least, of=_NUMBER, constants=(float,), more_fields=True),
    "rather": _Kind(rather, fields=2, of=_NUMBER, constants=(float,)),
}
"""The features that `find_feature` knows."""


@dataclass(frozen=True)
class Feature:
    """A feature of a row.

    Attributes:
        text: how it was written, "longer(passage, 50)".
        fields: those of the row that it reads.
        constants: its other arguments.
        function: of the fields' values and the constants.
    """

    text: str
    fields: tuple[str, ...]
    constants: tuple[Any, ...]
    function: Callable[..., bool | None]

    @property
    def about(self) -> str:
        """What it says, in one line."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self, row: Mapping) -> bool | None:
        """True, False, or None where the row has neither.

        Raises InputError, with the row's fields, where one is missing or of another type.
        """
        of = FEATURES[self.text.partition("(")[0]].of
        values = []
        for field in self.fields:
            if not isinstance(row.get(field), of):
                held = f"is {row[field]!r}" if field in row else "is missing"
                raise InputError(
                    f"feature {self.text}: field {field!r} {held}; the row's fields are "
                    + ", ".join(map(str, row))
                )
            values.append(row[field])
        return self.function(*values, *self.constants)


def find_feature(text: str) -> Feature:
    """The feature that is written as ``name(field, ..., constant, ...)``.

    Raises InputError for another form, an unknown name, or arguments that do not fit it.
    """
    form = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text, re.DOTALL)
    if form is None:
        raise InputError(f"{text!r} is no feature: write name(field, ...), as longer(passage, 50)")
    name, arguments = form[1], [part.strip() for part in form[2].split(",")]
    if name not in FEATURES:
        raise InputError(f"no feature {name!r}; {tree.nearest(name, FEATURES)}")
    kind = FEATURES[name]
    count = len(arguments) - len(kind.constants)
    if count < kind.fields or (count > kind.fields and not kind.more_fields) or "" in arguments:
        raise InputError(f"feature {text!r}: write {_usage(name, kind)}")
    try:
        constants = [
            made(part) for made, part in zip(kind.constants, arguments[count:], strict=True)
        ]
    except ValueError:
        raise InputError(f"feature {text!r}: write {_usage(name, kind)}") from None
    written = f"{name}({', '.join(arguments)})"
    return Feature(written, tuple(arguments[:count]), tuple(constants), kind.function)


def _usage(name: str, kind: _Kind) -> str:
    called = {int: "WHOLE NUMBER", float: "NUMBER", str: "WORD"}
    fields = ["FIELD"] * kind.fields + ["..."] * kind.more_fields
    return f"{name}({', '.join([*fields, *(called[constant] for constant in kind.constants)])})"
