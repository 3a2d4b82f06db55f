"""Files and folders that are there whole or not at all.

What is written is written beside its place and moved there when it is complete: a reader never
meets half of it, and a writer that dies leaves what was there before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from peft_jax.errors import InputError


def _beside(path: Path, use: str) -> Path:
    # Hidden, so that no pattern of file names finds it; of this process, so that two writers of one
    # file do not write into each other's.
    return path.with_name(f".{path.name}.{os.getpid()}.{use}")


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """The place to write the new content of the file ``path``, which becomes it on leaving.

    The folder is made where it is missing. Where the block raises, what was written is deleted and
    ``path`` is as it was.

    >>> with replace_file("run/result.json") as new:  # doctest: +SKIP
    ...     new.write_text("{}")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(path, "partial")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to write into, which becomes the folder ``path`` on leaving.

    Args:
      path: must not exist, or be an empty folder.
      overwrite: accept that it has content; all of that is replaced.

    Raises:
      InputError: there is a file at ``path``, or content that may not be overwritten. Where the
        block raises, what was written is deleted and ``path`` is as it was.
    """
    path = Path(path).absolute()
    check_free(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = _beside(path, "partial"), _beside(path, "replaced")
    new.mkdir()
    try:
        yield new
        # A folder is not replaced by a move: for a moment there is none at the place.
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_free(path: str | Path, overwrite: bool = False) -> None:
    """Raises InputError unless :func:`replace_folder` would write there."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; a folder is to be written there")
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise InputError(
            f"{path} exists and is not empty; give another place, or overwrite it (--overwrite)"
        )
