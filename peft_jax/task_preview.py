"""A few examples of a task as a model reads them: rendered, tokenised, with what is cut.

The input's tokens stand on two backgrounds in turn, so that their boundaries can be seen; where
there are no colours, a bar stands between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from peft_jax import tree
from peft_jax.backbones import backbone_outline
from peft_jax.errors import InputError
from peft_jax.markers import is_soft
from peft_jax.tasks.prompted import PromptedRow, PromptedTask
from peft_jax.tokenizer import Kind, Tokenizer, kind_of, load_tokenizer, row_ids

# Two backgrounds that are told apart beside each other, in the dark and by the colour-blind.
_BACKGROUNDS = ("black on #bfdcff", "black on #ffdfa8")
_SPECIAL = "white on #6b6b6b"
_CUT = "strike #a05050"
_SHOWN_CUT = 40  # tokens of what is cut that are shown
# A token without a letter of its own: part of one, or a blank at the start.
_NOTHING = "·"
_CONTEXT = 8  # tokens
_LONGEST_LETTER = 4  # bytes of UTF-8
# Rows that are tried until one is found to which a template applies.
_TRIED = 200


class Preview(NamedTuple):
    """An example, tokenised.

    Attributes:
      row: its texts.
      template: the name of its template.
      input: (piece of text, token id) of every token that is read.
      cut: pieces of the first tokens that are not, for want of room.
      cut_at: how many of ``input`` stand before them.
      cut_tokens: how many are not read.
      answers: number of tokens of every choice, or of the target; EOS included.
    """

    row: PromptedRow
    template: str
    input: list[tuple[str, int]]
    cut: list[str]
    cut_at: int
    cut_tokens: int
    answers: list[int]


def previews(
    task: PromptedTask,
    split: str,
    *,
    backbone: str | Path = "tiny",
    examples: int = 3,
    template: str | None = None,
    max_input_length: int | None = None,
) -> Iterator[Preview]:
    """The first examples of a split, each under the next of the task's templates.

    Args:
      task: see `peft_jax.tasks.prompted.find_task`.
      split: of its source.
      backbone: whose tokenizer reads them: "tiny", or a checkpoint folder.
      template: the name or number of the one template to use.
      max_input_length: in tokens; None: the task's own.

    Raises:
      InputError: there is no such template, or what is wrong with the files and the backbone.
    """
    outline = backbone_outline(backbone)
    assert outline.vocabulary is not None
    tokenizer = load_tokenizer(outline.vocabulary)
    length = max_input_length or (task.definition.max_input_length if task.definition else 256)
    templates = [_find_template(task, template)] if template else range(len(task.templates))
    rows = task.rows(split)
    for example in range(min(examples, len(rows))):
        index = templates[example % len(templates)]
        row = _first_under(task, rows[example : example + _TRIED], index)
        if row is not None:
            name = task.templates[index].name
            yield _tokenised(tokenizer, kind_of(outline.config), row, name, length)


def _find_template(task: PromptedTask, wanted: str) -> int:
    names = [template.name for template in task.templates]
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    raise InputError(
        f"{task.name} has no template {wanted!r}; {tree.nearest(wanted, names)}, or a number from "
        f"0 to {len(names) - 1}"
    )


def _first_under(
    task: PromptedTask, rows: Sequence[tuple[int, dict]], template: int
) -> PromptedRow | None:
    """The first of some rows to which a template applies."""
    made = (made for position, row in rows for made in task.render(position, row, template))
    return next(made, None)


# --------------------------------------------------------------------------------------------
# Tokens
# --------------------------------------------------------------------------------------------
def _tokenised(
    tokenizer: Tokenizer, kind: Kind, row: PromptedRow, template: str, length: int
) -> Preview:
    texts = row.choices or (row.target,)
    whole, answers = row_ids(tokenizer, kind, row.input, texts)
    read, _ = row_ids(tokenizer, kind, row.input, texts, max_input_length=length)
    start, stop = _left_out(whole, read)
    # Of a long text that is cut, no more is decoded than what is shown.
    shown = min(start + _SHOWN_CUT, stop)
    front = token_pieces(tokenizer, whole[:shown])
    context = max(0, stop - _CONTEXT)
    back = token_pieces(tokenizer, whole[context:])[stop - context :]
    return Preview(
        row=row,
        template=template,
        input=list(zip(front[:start] + back, read, strict=True)),
        cut=front[start:],
        cut_at=start,
        cut_tokens=stop - start,
        answers=[len(answer) for answer in answers],
    )


def _left_out(whole: Sequence[int], read: Sequence[int]) -> tuple[int, int]:
    """The stretch of the whole input that is not read: it is cut in one place."""
    missing = len(whole) - len(read)
    start = next(
        (i for i, (a, b) in enumerate(zip(whole, read, strict=False)) if a != b), len(read)
    )
    # A token at the cut may be the same on both sides: what is read must come out whole.
    while start and list(whole[start + missing :]) != list(read[start:]):
        start -= 1
    return start, start + missing


def token_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The part of the text that each token stands for; together they are the decoded text.

    A token that ends inside a letter (of a byte-level vocabulary) has an empty piece, and the one
    that completes the letter has all of it.
    """
    pieces: list[str] = []
    ends = [0]  # of letters, in tokens
    for number, id in enumerate(ids):
        # What a token adds hangs on those in front of it, but on no distant ones.
        start, done = ends[max(0, len(ends) - _CONTEXT)], ends[-1]
        before, text = tokenizer.decode(ids[start:done]), tokenizer.decode(ids[start : number + 1])
        inside = text.endswith("\ufffd") and not is_soft(id) and number + 1 < len(ids)
        if inside and number - done < _LONGEST_LETTER:
            pieces.append("")
            continue
        # A decoder that joins otherwise than token by token leaves the token as it is written.
        whole = text.startswith(before)
        pieces.append(text[len(before) :] if whole else tokenizer.token(id) or "")
        ends.append(number + 1)
    return pieces


# --------------------------------------------------------------------------------------------
# Shown
# --------------------------------------------------------------------------------------------
def print_previews(console: Console, task: PromptedTask, split: str, found: list[Preview]) -> None:
    """Prints the task's head and its examples.

    Args:
      found: what `previews` gave, all of it: an example that fails is told before any is printed.
    """
    console.print(_head(task, split))
    for preview in found:
        console.print(_shown(task, preview, coloured=console.color_system is not None))
    for line in task.report.lines():
        console.print(line, style="yellow", markup=False)


def _head(task: PromptedTask, split: str) -> Text:
    definition = task.definition
    text = Text.assemble((task.name, "bold"), f" {split}, {len(task.rows(split)):,} examples")
    prompts = len(task.templates)
    text.append(f", {prompts:,} prompt{'s' if prompts != 1 else ''}")
    if definition is not None:
        text.append(f", {', '.join(definition.metrics)}")
        if definition.about:
            text.append(f"\n{definition.about}", "dim")
    return text


def _shown(task: PromptedTask, preview: Preview, coloured: bool) -> Group:
    row = preview.row
    title = Text(f"example {row.example}, {preview.template!r}", "bold")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("input", _input(preview, coloured))
    grid.add_row("", Text(_counts(preview), "dim"))
    if row.choices:
        for index, (choice, tokens) in enumerate(zip(row.choices, preview.answers, strict=True)):
            grid.add_row("choices" if index == 0 else "", _choice(row, index, choice, tokens))
    else:
        text = Text(_visible(row.target), "green")
        grid.add_row("target", text.append(f"  {preview.answers[0]} tokens", "dim"))
    for number, reference in enumerate(row.references if len(row.references) > 1 else ()):
        grid.add_row("references" if number == 0 else "", Text(_visible(reference)))
    for name, value in row.keep.items():
        grid.add_row(name, Text(str(value)))
    return Group(Rule(title, align="left", style="dim"), Padding(grid, (0, 0, 1, 0)))


def _counts(preview: Preview) -> str:
    read = len(preview.input)
    cut = preview.cut_tokens
    return f"{read:,} of {read + cut:,} tokens: {cut:,} are cut" if cut else f"{read:,} tokens"


def _choice(row: PromptedRow, index: int, choice: str, tokens: int) -> Text:
    right = index == row.label
    text = Text("✓ " if right else "  ", "green")
    text.append(_visible(choice), "bold green" if right else "")
    return text.append(f"  {tokens} token{'s' if tokens != 1 else ''}", "dim")


def _input(preview: Preview, coloured: bool) -> Text:
    text = Text()
    for number, (piece, id) in enumerate(preview.input):
        if number == preview.cut_at:
            _append_cut(text, preview)
        if number and not coloured:
            text.append("│")
        special = is_soft(id) or (piece.strip().startswith("<") and piece.strip().endswith(">"))
        text.append(_visible(piece) or _NOTHING, _SPECIAL if special else _BACKGROUNDS[number % 2])
    if preview.cut_at >= len(preview.input):
        _append_cut(text, preview)
    return text


def _append_cut(text: Text, preview: Preview) -> None:
    text.append(_visible("".join(preview.cut)), _CUT)
    more = preview.cut_tokens - len(preview.cut)
    text.append(f" [{more:,} more tokens are cut] " if more > 0 else "", "#a05050")


def _visible(text: str) -> str:
    """Line breaks with a mark, so that an empty line or a blank at a line's end can be seen."""
    return text.replace("\n", "↵\n")
