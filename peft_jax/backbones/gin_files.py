"""The values in a gin file, T5X's configuration language, read without gin.

Only what is a value is taken: numbers, strings, booleans, tuples, and macros that stand for such.
References to functions (``@network.T5Config()``), imports and includes are passed over.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft_jax.errors import InputError

_NAME = r"[A-Za-z_][\w./]*"
_BLOCK = re.compile(rf"({_NAME}):")
_BINDING = re.compile(rf"({_NAME})\s*=(?!=)\s*(.*)", re.DOTALL)
_MACRO = re.compile(rf"%({_NAME})")
_OPEN, _CLOSE = "([{", ")]}"


def read_gin(path: str | Path) -> dict[str, Any]:
    """Name -> value: ``Class.parameter``, without modules and scopes, or a macro's name.

    >>> read_gin("model_config.gin")  # doctest: +SKIP
    {'T5Config.num_heads': 12, 'T5Config.mlp_activations': ('gelu', 'linear'), 'DROPOUT_RATE': 0.1}

    Raises:
      InputError: a statement is not finished at the end of the file.
    """
    path = Path(path) if isinstance(path, str) else path
    raw: dict[str, str] = {}
    block = ""
    for number, indented, text in _statements(path):
        if not indented:
            block = ""
        opened, binding = _BLOCK.fullmatch(text), _BINDING.fullmatch(text)
        if opened:
            block = opened[1] + "."
        elif binding:
            raw[_short(block + binding[1])] = binding[2]
        elif not text.startswith(("import ", "from ", "include ")):
            raise InputError(f"{path}, line {number}: {text!r} is no statement of gin")
    values = ((name, _value(text, raw)) for name, text in raw.items())
    return {name: value for name, value in values if value is not None}


def _short(name: str) -> str:
    """``scope/module.Class.parameter`` as ``Class.parameter``."""
    return ".".join(name.rpartition("/")[2].split(".")[-2:])


def _statements(path: Path) -> Iterator[tuple[int, bool, str]]:
    """(line, whether it is indented, text) of every statement; one in brackets goes on."""
    text, first, indented = "", 0, False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = _without_comment(line).rstrip()
        if not text:
            first, indented = number, line[:1].isspace()
        continued = line.endswith("\\")
        text += line.removesuffix("\\").strip() + " "
        depth = sum(text.count(c) for c in _OPEN) - sum(text.count(c) for c in _CLOSE)
        if continued or depth > 0:
            continue
        if text.strip():
            yield first, indented, text.strip()
        text = ""
    if text.strip():
        raise InputError(f"{path}, line {first}: {text.strip()!r} does not end")


def _without_comment(line: str) -> str:
    """The line up to a ``#`` that stands in no string."""
    quote = ""
    for place, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#":
            return line[:place]
    return line


def _value(text: str, raw: dict[str, str], depth: int = 0) -> Any:
    """The value that the text is, or None where it is none."""
    macro = _MACRO.fullmatch(text)
    if macro:
        name = _short(macro[1])
        return _value(raw[name], raw, depth + 1) if name in raw and depth < 20 else None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
