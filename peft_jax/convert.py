"""`peft-jax convert`: a backbone from one format into another, tensor by tensor.

The model is in memory once, on the host, as our stacked tree. Nothing is lost on the way (a
conversion back gives the same tensors, bit by bit) unless another dtype is asked for; what the new
format cannot say is an error before anything is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from peft_jax import tree
from peft_jax.backbones import TINY, hugging_face, native, t5x
from peft_jax.backbones.base import Backbone
from peft_jax.backbones.formats import FORMATS, Format, checkpoint_format, read_backbone
from peft_jax.errors import InputError
from peft_jax.files import check_free, replace_folder
from peft_jax.paths import as_path, file_sizes
from peft_jax.progress import step_bar

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What lies in a checkpoint's folder.

    Attributes:
      path: of the folder.
      format: one of FORMATS.
      family: the Hugging Face model type.
      parameters: how many scalars the backbone has.
      dtype: of its leaves; several are joined by "+", and "" where it was not looked at.
      size: bytes of all files.
      files: how many there are.
    """

    path: Path
    format: Format
    family: str
    parameters: int
    dtype: str
    size: int
    files: int


def convert(
    source: str | Path,
    target: str | Path,
    to: Format | None = None,
    *,
    dtype: Any = None,
    config: str | None = None,
    scanned: bool = False,
    orbax: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> tuple[Summary, Summary]:
    """Reads the backbone at ``source`` in its format and writes it to ``target`` in another.

    Args:
      source: a checkpoint in any of the formats, local or in a bucket (gs://), or "tiny".
      target: the folder to write; must not exist or be empty, unless it may be overwritten.
      to: the format to write. By default T5X's for a folder named ``checkpoint_<step>``, Hugging
        Face's for a backbone in our own, and our own for the others.
      dtype: of the parameters that are written; None keeps what is stored.
      config: for a T5X checkpoint that no gin file describes: the published model that it is like,
        such as "t5_v1_1_base".
      scanned: for T5X: all layers in one array, as its ``scalable_t5`` keeps them.
      orbax: for T5X: the form that it has with ``use_orbax``, not its own.
      overwrite: replace the backbone that is at ``target``.
      console: where progress is shown; None shows none.

    Returns:
      What was read and what was written.

    Raises:
      InputError: before anything is written or overwritten.
    """
    source, target = TINY if str(source) == "tiny" else as_path(source), Path(target)
    stored = checkpoint_format(source)
    to = to or _default_format(stored, target)
    if to not in FORMATS:
        raise InputError(f"format {to!r} is unknown; one of {', '.join(FORMATS)}")
    for name, given in (("scanned", scanned), ("orbax", orbax)):
        if given and to != "t5x":
            raise InputError(f"{name} is a layout of T5X's; {target} is to be {to}")
    _check_target(source, target, overwrite)
    # On the host: a model that is converted need not fit into an accelerator.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        with _counting(console, "reading") as reading:
            backbone = read_backbone(source, dtype, config, reading)
        with _counting(console, "writing", len(tree.flatten(backbone.params))) as writing:
            _write(target, to, backbone, scanned, orbax, overwrite, writing)
    read = _summary(source, stored, backbone)
    if dtype is not None:
        read = dataclasses.replace(read, dtype="")  # what is stored was cast as it was read
    return read, _summary(target, to, backbone)


def _default_format(stored: Format, target: Path) -> Format:
    if re.fullmatch(r"checkpoint_\d+", target.name):
        return "t5x"
    return "hugging_face" if stored == "native" else "native"


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    check_free(target, overwrite)
    here, there = source.resolve(), target.resolve()
    if there == here or there in here.parents:
        raise InputError(f"{target} holds {source} itself; give another place")
    if overwrite and target.is_dir() and any(target.iterdir()):
        try:
            checkpoint_format(target)
        except InputError as error:
            raise InputError(f"{target} is not overwritten: {error}") from None


@contextlib.contextmanager
def _counting(
    console: Console | None, description: str, total: int | None = None
) -> Iterator[Callable[[str], None]]:
    """A bar over leaves; how many there are is not known before a backbone is read."""
    with step_bar(console or Console(quiet=True), description, total) as advance:
        yield lambda path: advance(1)


def _write(
    target: Path,
    to: Format,
    backbone: Backbone,
    scanned: bool,
    orbax: bool,
    overwrite: bool,
    on_leaf: Callable[[str], None],
) -> None:
    if to == "native":
        native.write_backbone(target, backbone, overwrite=overwrite, on_leaf=on_leaf)
    elif to == "t5x":
        numbered = re.fullmatch(r"checkpoint_(\d+)", target.name)
        t5x.write_backbone(
            target,
            backbone,
            scanned=scanned,
            orbax=orbax,
            step=int(numbered[1]) if numbered else 0,
            overwrite=overwrite,
            on_leaf=on_leaf,
        )
    else:
        with replace_folder(target, overwrite) as new:
            hugging_face.write_backbone(new, backbone)


def _summary(path: Path, kind: Format, backbone: Backbone) -> Summary:
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(backbone.params)})
    sizes = file_sizes(path)
    return Summary(
        path=path,
        format=kind,
        family=backbone.config.family,
        parameters=tree.count(backbone.params),
        dtype="+".join(dtypes),
        size=sum(sizes),
        files=len(sizes),
    )


_WORDS = {"path": "folder", "size": "bytes"}


def table(read: Any, written: Any, words: Mapping[str, str] = _WORDS) -> Table:
    """What was read and what was written, side by side, for a terminal.

    Args:
      read, written: two summaries of one dataclass, of backbones or of adapters.
      words: what fields are called, where not by their own names.
    """
    made = Table(box=None, pad_edge=False)
    for name in ("", "from", "to"):
        made.add_column(name, overflow="fold")
    for field in dataclasses.fields(read):
        values = (getattr(each, field.name) for each in (read, written))
        texts = (f"{v:,}" if isinstance(v, int) else str(v) for v in values)
        made.add_row(words.get(field.name, field.name), *texts)
    return made
