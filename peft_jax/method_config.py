"""Configuration classes of the methods, made from their factories' signatures and docstrings.

A factory is the only place where a method's arguments, their types, defaults and meanings are
written down. Its class has a field for each of them, so that a preset, a run's ``config.json`` and
the flags ``--lora.rank 4`` say the same thing, and ``--help`` says what the docstring says.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import operator
import re
import textwrap
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.methods import METHODS

# The head's size is the data's: experiment.open_method adds it.
OF_THE_DATA = ("classification_head",)


def arguments(name: str, **given: Any) -> Any:
    """The arguments of a method's factory, as an instance of its class in ``CLASSES``.

    >>> Experiment(method=("lora",), lora=arguments("lora", rank=4))  # doctest: +SKIP

    Raises:
      InputError: there is no such method, or it has no such argument.
    """
    if name not in CLASSES:
        raise InputError(f"no method is named {name!r}; {tree.nearest(name, CLASSES)}")
    known = [field.name for field in dataclasses.fields(CLASSES[name])]
    unknown = [field for field in given if field not in known]
    if unknown:
        raise InputError(f"{name} has no field {unknown[0]!r}; {tree.nearest(unknown[0], known)}")
    return CLASSES[name](**given)


# --------------------------------------------------------------------------------------------
# From a factory to a class
# --------------------------------------------------------------------------------------------
def config_class(name: str, factory: Callable[..., Any]) -> type:
    """The frozen dataclass of a factory's arguments; help texts lie in its docstring.

    An argument without default gets an empty tuple, which the factory refuses in its own words.
    A mapping is no flag: such an argument is filled in by the library, and left out.
    """
    hints = typing.get_type_hints(factory)
    fields = []
    for parameter in inspect.signature(factory).parameters.values():
        kind = field_type(hints[parameter.name])
        if kind is None:
            continue
        default = () if parameter.default is parameter.empty else parameter.default
        fields.append((parameter.name, kind, _default(default, kind)))
    text = _docstring(name, factory, [field for field, _, _ in fields])
    return dataclasses.make_dataclass(
        _class_name(name),
        fields,
        frozen=True,
        namespace={"__doc__": text, "__module__": __name__},
    )


def field_type(annotation: Any) -> Any:
    """The type of a field: sequences are tuples, and one pattern is a tuple of one.

    None for what no flag can hold, such as a mapping.
    """
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is collections.abc.Mapping:
        return None
    if origin is collections.abc.Sequence:
        return tuple[field_type(parts[0]), ...]  # type: ignore[misc]
    if origin not in (typing.Union, types.UnionType):
        return annotation
    members = [field_type(part) for part in parts]
    if None in members:
        return None
    if any(member is Path or typing.get_origin(member) is tuple for member in members):
        members = [member for member in members if member is not str]
    return functools.reduce(operator.or_, members)


def _default(value: Any, kind: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    tuples = typing.get_origin(kind) is tuple or any(
        typing.get_origin(part) is tuple for part in typing.get_args(kind)
    )
    return (value,) if isinstance(value, str) and tuples else value


def _class_name(name: str) -> str:
    """LoraConfig, HoulsbyAdapterConfig; two are written as the field writes them."""
    own = {"ia3": "IA3", "bitfit": "BitFit"}
    return own.get(name, name.title().replace("_", "")) + "Config"


# --------------------------------------------------------------------------------------------
# From a docstring to help texts
# --------------------------------------------------------------------------------------------
def _docstring(name: str, factory: Callable[..., Any], fields: list[str]) -> str:
    """A docstring with the factory's first sentence, and its words on every field."""
    summary = inspect.cleandoc(factory.__doc__ or name).partition("\n\n")[0]
    texts = argument_texts(factory)
    lines = [" ".join(summary.split()), "", "Args:"]
    lines += [f"    {field}: {texts[field]}" for field in fields if field in texts]
    return "\n".join(lines)


def argument_texts(factory: Callable[..., Any]) -> dict[str, str]:
    """Argument -> what the section "Args" of a Google-style docstring says of it.

    One entry may name several arguments: ``labels, text, file: what the init of that name reads``.
    """
    _, _, section = inspect.cleandoc(factory.__doc__ or "").partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", section, maxsplit=1)[0]
    texts = {}
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(section).strip("\n")):
        names, _, text = entry.partition(":")
        text = re.sub(r":\w+:`([^`]*)`", r"\1", " ".join(text.split())).replace("``", "")
        for name in names.split(","):
            # A formula's letter stays as it is.
            word = re.match("[a-z]{2,}", text)
            texts[name.strip()] = text[:1].upper() + text[1:] if word else text
    return texts


CLASSES: dict[str, Any] = {
    name: config_class(name, factory)
    for name, factory in METHODS.items()
    if name not in OF_THE_DATA
}
"""Method -> class of its factory's arguments."""

if TYPE_CHECKING:

    class MethodFields:
        """A field for every method, of its class."""

        def __getattr__(self, name: str) -> Any: ...

else:
    MethodFields = dataclasses.make_dataclass(
        "MethodFields",
        [(name, made, dataclasses.field(default_factory=made)) for name, made in CLASSES.items()],
        frozen=True,
        namespace={"__module__": __name__},
    )
