"""The lines of a task.yaml, and the flags that stand for them: which there are, and their checks.

Values are checked by themselves here; `peft_jax.tasks.own_data` holds them against the rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tasks.held_out import HeldOut

CONFIGURATION = "task.yaml"
KEYS = {
    "input": "template of what the model reads",
    "choices": "answers that are ranked: a list of texts, or a field or expression that is one",
    "target": "template of the text that it should write, where there are no choices",
    "label": "field (or template) that says which choice is right, by number from 0 or by text",
    "labels": "the names that the label field has, in the order of the choices",
    "references": "field, expression or list of templates: all right texts of an open answer",
    "prompts": "several prompts: name -> input, choices, target, references",
    "metrics": "names of metrics; the first is reported",
    "fields": "fields that every row must have; by default those that the templates read",
    "splits": "train, validation, test -> the file's name",
    "held_out": "part of train that is held out where validation has no file (0.1), or none",
    "seed": "of that draw (0)",
    "name": "the task's name, by default the folder's",
    "about": "one line for tables",
    "max_input_length": "in tokens",
    "max_target_length": "in tokens, of an answer",
}
"""The lines of a task.yaml."""

PROMPT_KEYS = ("input", "choices", "target", "references")
# What a flag makes void in the file: a text to write has no choices, and the other way round.
_REPLACED = {"input": ("prompts",), "choices": ("target", "references"), "target": ("choices",)}
_LISTS = ("labels", "metrics", "fields")
_NUMBERS = ("seed", "max_input_length", "max_target_length")


@dataclass
class Settings:
    """Checked values by key, and where each was written.

    Attributes:
        name: the task that was asked for.
        directory: its data's.
        values: by key, see `KEYS`; lists as tuples.
        places: the file or the flag of each, for messages.
    """

    name: str
    directory: Path
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, value: Any, place: str) -> None:
        """Sets a value. Raises InputError, with the place, for a key or value that is wrong."""
        if key not in KEYS:
            raise InputError(f"{place}: there is no key {key!r}; {tree.nearest(key, KEYS)}")
        self.places[key] = place
        self.values[key] = self._checked(key, value)

    def replace_by(self, flags: Mapping[str, Any]) -> None:
        """Sets flags, which go before the file's lines and make some of them void."""
        for key in (key for flag, keys in _REPLACED.items() if flag in flags for key in keys):
            self.values.pop(key, None)
        for key, value in flags.items():
            self.add(key, value, f"--data.{key.replace('_', '-')}")

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def error(self, key: str, problem: str) -> InputError:
        """An error with the place of a key."""
        return InputError(f"{self.places.get(key, self.directory)}: {problem}")

    def _checked(self, key: str, value: Any) -> Any:
        if key in _NUMBERS:
            return self._number(key, value)
        if key == "held_out":
            return self._share(value)
        if key in ("splits", "prompts"):
            return self._mapping(key, value)
        if key in _LISTS or (key in ("choices", "references") and not isinstance(value, str)):
            return self._texts(key, value)
        if not isinstance(value, str) or not value.strip():
            hint = ' (a text with {{ must stand in "quotes")' if isinstance(value, dict) else ""
            raise self.error(key, f"{key} must be a text, not {value!r}{hint}")
        return value

    def _texts(self, key: str, value: Any) -> tuple[str, ...]:
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, Sequence) or not all(isinstance(v, str) and v for v in value):
            raise self.error(key, f"{key} must be a list of texts, not {value!r}")
        if len(set(value)) < len(value):
            twice = next(v for v in value if list(value).count(v) > 1)
            raise self.error(key, f"{key} has {twice!r} twice")
        if len(value) < 2 and key in ("choices", "labels"):
            if key == "choices" and value:  # one flag: --data.choices options
                return value[0]
            raise self.error(key, f"{key} must be two at least, not {list(value)}")
        return tuple(value)

    def _number(self, key: str, value: Any) -> int:
        if not re.fullmatch(r"\d+", str(value)):
            raise self.error(key, f"{key} must be a whole number, not {value!r}")
        return int(value)

    def _share(self, value: Any) -> float | None:
        if str(value).lower() == "none":
            return None
        try:
            return HeldOut(float(value)).share
        except ValueError:
            raise self.error(
                "held_out", f"held_out must be between 0 and 1, or none, not {value!r}"
            ) from None

    def _mapping(self, key: str, value: Any) -> dict:
        if not isinstance(value, Mapping) or not value:
            what = "splits to file names" if key == "splits" else "names to prompts"
            raise self.error(key, f"{key} must be a mapping of {what}, not {value!r}")
        for name, entry in value.items():
            if key == "prompts" and not isinstance(entry, Mapping):
                raise self.error(
                    key, f"prompt {name!r} must be a mapping with input, not {entry!r}"
                )
            if key == "splits" and (not isinstance(entry, str) or not entry):
                raise self.error(key, f"split {name!r} must be a file's name, not {entry!r}")
        return dict(value)


def read_configuration(file: Path, settings: Settings) -> None:
    """Adds the lines of a task.yaml to some settings.

    Raises InputError for a file that is not YAML, a key or value that is wrong, and the name of
    another task.
    """
    try:
        # All scalars as texts: `choices: [no, yes]` are words here, not truth values.
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        hint = ' (a text with {{ must stand in "quotes")' if "{{" in _text_of(file) else ""
        raise InputError(f"{file} is not YAML: {problem}{hint}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{file} must hold lines as `input: ...`, `choices: ...`; see {list(KEYS)}"
        )
    for key, value in content.items():
        settings.add(key, value, str(file))
    named = settings.get("name", settings.name)
    if named != settings.name:
        raise InputError(f"{file} is task {named!r}, and {settings.name!r} was asked for")


def _text_of(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "replace")
