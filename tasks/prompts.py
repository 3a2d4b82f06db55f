"""Prompt templates in promptsource's YAML format.

A template turns a row of a dataset into an input text, a target text and the answer choices that
are ranked. The format is promptsource's (Bach et al., 2022; github.com/bigscience-workshop/
promptsource), so that the templates of T0 and T-Few are used as they are::

    templates:
      any-unique-key: !Template
        name: does it follow
        jinja: '{{premise}} Does it follow that {{hypothesis}}? ||| {{answer_choices[label]}}'
        answer_choices: Yes ||| No
        metadata: !TemplateMetadata
          original_task: true

A templates file is data from elsewhere: it is read with a safe YAML loader and rendered in jinja2's
sandbox, and nothing in it can run code. Rendering agrees with promptsource's ``Template.apply`` and
``get_answer_choices_list``, except that a field which the row lacks is an error and not an empty
string, and that the ``choice`` filter draws the same item whenever the same row is rendered.
"""

import collections
import functools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jinja2
import yaml
from jinja2.filters import do_truncate
from jinja2.sandbox import SandboxedEnvironment

from peft_jax.errors import InputError

MAX_FIELD_LENGTH = 2048
"""promptsource cuts what an expression prints into a prompt to this many characters."""

_SEPARATOR = "|||"
# promptsource's own word for it, which some of its templates print and split at.
_PROTECTED_SEPARATOR = "3ed2dface8203c4c9dfb1a5dc58e41e0"
_DRAWS = "__draws__"


class Rendered(NamedTuple):
    """One example as text.

    Attributes:
        input, target: stripped texts.
        choices: the answers that are ranked; None where the answer is open.
        references: all texts that are right; empty: the target alone.
        keep: JSON values that a metric needs beside the texts (MultiRC's question), and ``label``
            where the format numbers its choices itself.
    """

    input: str
    target: str
    choices: tuple[str, ...] | None = None
    references: tuple[str, ...] = ()
    keep: Mapping[str, Any] = MappingProxyType({})


class Format(Protocol):
    """What makes a row of a dataset into examples: a `Template`, or a `TextFormat`."""

    @property
    def name(self) -> str:
        """Unique among the formats of a task."""
        ...

    @property
    def file(self) -> str:
        """Where it was read, for messages; empty for one in Python."""
        ...

    @property
    def ranks(self) -> bool:
        """Whether its examples have choices to rank; else their answers are open."""
        ...

    def render_all(self, row: Mapping) -> Sequence[Rendered]:
        """The examples that a row makes: none where the format does not apply to it."""
        ...


@dataclass(frozen=True)
class TextFormat:
    """A format that is a Python function.

    Attributes:
        name: unique among the formats of a task.
        function: row -> one example, several, or None where it does not apply.
        ranks: whether the examples have choices.
    """

    name: str
    function: Callable[[Mapping], Rendered | Sequence[Rendered] | None]
    ranks: bool = False
    file: str = ""

    def render_all(self, row: Mapping) -> Sequence[Rendered]:
        """See `Format`. Raises InputError, with the row's fields, for one that it lacks."""
        try:
            made = self.function(row)
        except KeyError as error:
            raise InputError(
                f"format {self.name!r}: the row has no field {error.args[0]!r}; its fields are "
                + ", ".join(map(str, row))
            ) from error
        several = () if made is None else (made,) if isinstance(made, Rendered) else made
        if any((one.choices is not None) != self.ranks for one in several):
            raise ValueError(f"format {self.name!r} has ranks={self.ranks}, its examples say not")
        return several


@dataclass(frozen=True)
class Template:
    """One prompt template.

    Attributes:
        name: unique in its file.
        jinja: the prompt, as ``input ||| target``.
        answer_choices: an expression that renders to ``choice ||| choice ...``, or None.
        original_task: whether the prompt asks for the dataset's own task (T-Few uses only these).
        metrics: promptsource's names of the metrics of its answers.
        file: where it was read, for messages.
    """

    name: str
    jinja: str
    answer_choices: str | None = None
    original_task: bool = True
    metrics: tuple[str, ...] = ()
    file: str = ""

    def render(self, row: Mapping) -> Rendered | None:
        """The texts for a row; None where the template does not apply.

        A template skips a row by printing nothing, as promptsource's copa templates do for the
        question that they cannot ask.

        Raises InputError, with the template and the row's fields, for a field that the row lacks
        and for whatever else the template cannot do with the row.
        """
        if "answer_choices" in row:
            raise self._error(row, "a row may not have a field 'answer_choices'")
        fields = {key: _protect(value) for key, value in row.items()}
        fields[_DRAWS] = random.Random(f"{self.name}\n{sorted(row.items(), key=lambda kv: kv[0])}")
        choices = None
        if self.answer_choices is not None:
            text = self._print(_choices_environment(), self.answer_choices, fields, row)
            choices = [choice.strip() for choice in text.split(_SEPARATOR)]
        fields["answer_choices"] = choices
        parts = self._print(_prompt_environment(), self.jinja, fields, row).split(_SEPARATOR)
        if len(parts) > 2:
            raise self._error(row, f"it prints {_SEPARATOR!r} {len(parts) - 1} times, not once")
        if len(parts) < 2 or not parts[0].strip():
            return None
        input_text, target = (_unprotect(part.strip()) for part in parts)
        return Rendered(input_text, target, choices and tuple(map(_unprotect, choices)))

    @property
    def ranks(self) -> bool:
        """Whether the prompt has answer choices."""
        return self.answer_choices is not None

    def render_all(self, row: Mapping) -> Sequence[Rendered]:
        """`render` as a `Format`."""
        made = self.render(row)
        return () if made is None else (made,)

    def _print(self, environment, text: str, fields: dict, row: Mapping) -> str:
        try:
            return _compiled(environment, text).render(fields)
        except jinja2.TemplateSyntaxError as error:
            raise self._error(row, f"jinja2: {error.message} (line {error.lineno})") from error
        except jinja2.UndefinedError as error:
            field = re.fullmatch(r"'(.+)' is undefined", error.message or "")
            problem = f"it uses the unknown field {field[1]!r}" if field else str(error.message)
            if "has no element" in problem and fields.get("answer_choices"):
                problem += f" (it offers {len(fields['answer_choices'])} answer choices)"
            raise self._error(row, problem) from error
        except Exception as error:  # a template may fail in any way that Python can
            raise self._error(row, f"{type(error).__name__}: {error}") from error

    def _error(self, row: Mapping, problem: str) -> InputError:
        place = f"{self.file}: " if self.file else ""
        return InputError(
            f"{place}template {self.name!r}: {problem}; the row's fields are "
            + ", ".join(map(str, row))
        )


def load_templates(path: str | Path) -> dict[str, Template]:
    """Reads a templates file: name -> template, sorted by name.

    Args:
        path: a YAML file, or a folder that holds ``templates.yaml``.

    Raises InputError for a file that is missing, is not YAML or not of this form, for two templates
    of one name, and for a template that jinja2 cannot parse.
    """
    path = Path(path)
    file = path / "templates.yaml" if path.is_dir() else path
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_TemplateLoader)
    except OSError as error:
        raise InputError(f"no templates at {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a YAML file of templates: {error}") from error
    entries = content.get("templates") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{file} has no mapping `templates:` with at least one template in it")
    templates = [_template(entry, key, file) for key, entry in entries.items()]
    counts = collections.Counter(template.name for template in templates)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"{file} has two templates named {twice[0]!r}")
    return {template.name: template for template in sorted(templates, key=lambda t: t.name)}


def template_slugs(names) -> dict[str, str]:
    """Names -> short names of a-z, 0-9 and _ only, as seqio's task names ask for; all different."""
    slugs: dict[str, str] = {}
    for name in names:
        slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "template"
        taken, count = set(slugs.values()), 2
        while slug in taken:
            slug, count = re.sub(r"(_\d+)?$", f"_{count}", slug, count=1), count + 1
        slugs[name] = slug
    return slugs


class _TemplateLoader(yaml.SafeLoader):
    """A safe loader that reads promptsource's two tags as plain mappings."""


for _tag in ("!Template", "!TemplateMetadata"):
    _TemplateLoader.add_constructor(
        _tag, lambda loader, node: loader.construct_mapping(node, deep=True)
    )


def _template(entry, key, file: Path) -> Template:
    if not isinstance(entry, dict):
        raise InputError(f"{file}: template {key!r} is not a mapping with `name` and `jinja`")
    name = entry.get("name", key)
    for field in ("jinja", "answer_choices"):
        if not isinstance(entry.get(field), str) and not (
            field == "answer_choices" and entry.get(field) is None
        ):
            raise InputError(f"{file}: template {name!r}: `{field}` is not a text")
    metadata = entry.get("metadata") or {}
    template = Template(
        name=str(name),
        jinja=entry["jinja"],
        answer_choices=entry.get("answer_choices"),
        # promptsource leaves the mark out where nobody judged the template, and T-Few then does
        # not use it; a file without any metadata was written by hand for its own task.
        original_task=bool(metadata.get("original_task")) if metadata else True,
        metrics=tuple(map(str, metadata.get("metrics") or ())),
        file=str(file),
    )
    for text in (template.jinja, template.answer_choices or ""):
        try:
            _compiled(_prompt_environment(), text)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"{file}: template {name!r}: jinja2 cannot parse it: {error.message} "
                f"(line {error.lineno} of the template)"
            ) from error
    return template


def _protect(value):
    """A separator inside a text field must not split the prompt."""
    return value.replace(_SEPARATOR, _PROTECTED_SEPARATOR) if isinstance(value, str) else value


def _unprotect(text: str) -> str:
    return text.replace(_PROTECTED_SEPARATOR, _SEPARATOR)


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, items):
    """promptsource's filter: one item at random."""
    return context[_DRAWS].choice(items)


def _most_frequent(items):
    """promptsource's filter: the list of all items that occur most often."""
    if not items:
        return None
    counts = collections.Counter(items)
    return [item for item in counts if counts[item] == max(counts.values())]


def _environment(**options) -> SandboxedEnvironment:
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, **options)
    environment.globals["zip"] = zip
    environment.filters |= {"choice": _choice, "most_frequent": _most_frequent}
    return environment


@functools.cache
def _choices_environment() -> SandboxedEnvironment:
    return _environment()


@functools.cache
def _prompt_environment() -> SandboxedEnvironment:
    environment = _environment()
    environment.finalize = lambda value: do_truncate(environment, str(value), MAX_FIELD_LENGTH)
    return environment


@functools.lru_cache(maxsize=1024)
def _compiled(environment: SandboxedEnvironment, text: str) -> jinja2.Template:
    return environment.from_string(text)
