"""A prompt that somebody writes for their own rows: an input, and a target or choices.

Every text is a jinja2 template over the row's fields, rendered in jinja2's sandbox: a configuration
is data from elsewhere, and nothing in it can run code. A field whose name is no word is had from
``row``: ``{{row["Tweet text"]}}``. Unlike promptsource's templates, nothing is cut and no text is
split at ``|||``.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import SandboxedEnvironment

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tasks.prompts import Rendered

_WHOLE_EXPRESSION = re.compile(r"\s*\{\{(?P<inside>(?:(?!\}\}).)*)\}\}\s*", re.DOTALL)
# What a template may use beside a row's fields; the mask is that of a masked-LM.
_OWN_NAMES = ("row", "answer_choices", "mask")
_NOTHING: Mapping = MappingProxyType({})


@dataclass(frozen=True)
class OwnFormat:
    """One prompt, a `peft_jax.tasks.prompts.Format`.

    Attributes:
        name: unique in its task.
        input: the template of what the model reads. A row for which it prints nothing is left out.
        target: that of what it should write, or None where choices are ranked.
        choices: the answers that are ranked: templates of each, or one that gives all: a field or
            an expression whose value is a list, then as many as the row has. None: the answer is
            open.
        references: all right texts of an open answer, written as ``choices`` are. None: the target.
        label: a field or template that says which choice is right, by number or by text, where the
            rows' ``label`` does not.
        file: where it was written, for messages.
    """

    name: str
    input: str
    target: str | None = None
    choices: tuple[str, ...] | str | None = None
    references: tuple[str, ...] | str | None = None
    label: str | None = None
    file: str = ""

    @property
    def ranks(self) -> bool:
        """Whether there are choices to rank."""
        return self.choices is not None

    def render_all(self, row: Mapping) -> Sequence[Rendered]:
        """See `Format`. Raises InputError, with the template and the field, for what fails."""
        choices = None if self.choices is None else self._choices(row)
        more = {} if choices is None else {"answer_choices": list(choices)}
        text = self._print("input", self.input, row, more)
        if not text:
            return ()
        if choices is not None:
            keep = {} if self.label is None else {"label": self._label(row, choices)}
            return (Rendered(text, "", choices, keep=keep),)
        references = tuple(self._texts("references", self.references or (), row))
        target = "" if self.target is None else self._print("target", self.target, row, more)
        target = target or next(iter(references), "")
        if not target:
            raise self.error("target", "it prints nothing", row)
        return (Rendered(text, target, None, references or (target,)),)

    def templates(self) -> Iterator[tuple[str, str]]:
        """(key, text) of everything that is a template or the name of a field."""
        for key in ("input", "target", "choices", "references", "label"):
            value = getattr(self, key)
            for text in (value,) if isinstance(value, str) else value or ():
                yield key, text

    def _choices(self, row: Mapping) -> tuple[str, ...]:
        texts = self._texts("choices", self.choices or (), row)
        while texts and not texts[-1]:  # a table's columns for more options than the row has
            texts.pop()
        if "" in texts:
            raise self.error("choices", f"choice {texts.index('')} of {len(texts)} is blank", row)
        return tuple(texts)

    def _label(self, row: Mapping, choices: Sequence[str]) -> int:
        label = label_of(self.label or "", row, self.error)
        texts = [choice for choice in choices if choice == label]
        if len(texts) == 1:
            return choices.index(texts[0])
        if re.fullmatch(r"\d+", str(label)) and int(label) < len(choices):
            return int(label)
        listed = ", ".join(f"{number} {choice!r}" for number, choice in enumerate(choices))
        raise self.error("label", f"{label!r} is none of the row's choices: {listed}", row)

    def _texts(self, key: str, written: tuple[str, ...] | str, row: Mapping) -> list[str]:
        """Each of several templates, or the items of the one list that an expression gives."""
        if not isinstance(written, str):
            return [self._print(key, text, row) for text in written]
        value = value_of(written, row, functools.partial(self.error, key))
        if isinstance(value, str):
            return [value.strip()]
        if not isinstance(value, Sequence):
            raise self.error(key, f"{written!r} is {type(value).__name__}, not a list", row)
        return [str(item).strip() for item in value]

    def _print(self, key: str, text: str, row: Mapping, more: Mapping = _NOTHING) -> str:
        return print_text(text, row, functools.partial(self.error, key), more)

    def error(self, key: str, problem: str, row: Mapping) -> InputError:
        place = f"{self.file}: " if self.file else ""
        prompt = f"prompt {self.name!r}: " if self.name != "own" else ""
        return InputError(f"{place}{prompt}{key}: {problem}")


def label_of(written: str, row: Mapping, error) -> Any:
    """The label of a row: a field's value, or what a template prints."""
    if is_template(written):
        return print_text(written, row, functools.partial(error, "label"))
    value = row.get(written)
    if value is None:
        raise error("label", f"field {written!r} is missing or null", row)
    return int(value) if isinstance(value, bool) else value


def is_template(text: str) -> bool:
    """Whether a text holds an expression or a statement of jinja2."""
    return "{{" in text or "{%" in text


def print_text(text: str, row: Mapping, error, more: Mapping = _NOTHING) -> str:
    """A template's text for a row, stripped.

    Args:
        error: (problem, row) -> the exception to raise.
        more: what the template may use beside the row's fields.
    """
    with_row = {"row": row} | dict(row) | dict(more)
    return _run(lambda: _template(text).render(with_row), row, error).strip()


def value_of(written: str, row: Mapping, error) -> Any:
    """The value of a field, or of an expression ``{{...}}``; the text of any other template."""
    whole = _WHOLE_EXPRESSION.fullmatch(written)
    if whole is None and is_template(written):
        return print_text(written, row, error)
    expression = written if whole is None else whole["inside"]
    if whole is None:
        expression = f"row[{written!r}]"
    with_row = {"row": row} | dict(row)

    def evaluate():
        value = _expression(expression)(with_row)
        if isinstance(value, jinja2.Undefined):
            str(value)  # StrictUndefined raises, with the field's name
        return value

    return _run(evaluate, row, error)


def _run(function, row: Mapping, error) -> Any:
    try:
        return function()
    except jinja2.UndefinedError as problem:
        message = problem.message or ""
        field = re.fullmatch(r"'(.+)' is undefined", message) or re.fullmatch(
            r"'.*' has no attribute '(.+)'", message
        )
        if field is None:
            raise error(message, row) from problem
        wanted = field[1]
        raise error(f"unknown field {wanted!r}; {tree.nearest(wanted, map(str, row))}", row) from (
            problem
        )
    except Exception as problem:  # a template may fail in any way that Python can
        raise error(f"{type(problem).__name__}: {problem}", row) from problem


@functools.cache
def _environment() -> SandboxedEnvironment:
    return SandboxedEnvironment(undefined=jinja2.StrictUndefined)


@functools.lru_cache(maxsize=1024)
def _template(text: str) -> jinja2.Template:
    return _environment().from_string(text)


@functools.lru_cache(maxsize=1024)
def _expression(text: str):
    return _environment().compile_expression(text, undefined_to_none=False)


# --------------------------------------------------------------------------------------------
# Which fields a template needs
# --------------------------------------------------------------------------------------------
def needed_fields(text: str) -> list[str]:
    """The fields that a template reads whatever the row: those it prints without a condition.

    Raises jinja2.TemplateSyntaxError for a text that is no template.
    """
    parsed = _environment().parse(text)
    free = meta.find_undeclared_variables(parsed) - set(_OWN_NAMES)
    found = dict.fromkeys(name for name in _unconditional(parsed) if name in free)
    return [*found, *_of_row(parsed)]


def _unconditional(node: nodes.Node) -> Iterator[str]:
    guarded = isinstance(node, (nodes.CondExpr, nodes.If)) or (
        isinstance(node, (nodes.Test, nodes.Filter)) and node.name in _GUARDS
    )
    if guarded:
        return
    if isinstance(node, nodes.Name):
        yield node.name
    for child in node.iter_child_nodes():
        yield from _unconditional(child)


_GUARDS = ("defined", "undefined", "default", "d")


def _of_row(node: nodes.Node) -> Iterator[str]:
    """The names in ``row["..."]``."""
    for item in node.find_all(nodes.Getitem):
        of_row = isinstance(item.node, nodes.Name) and item.node.name == "row"
        if of_row and isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str):
            yield item.arg.value
