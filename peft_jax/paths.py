"""Paths of what is read: local ones, and those in a bucket (gs://, s3://, az://).

A bucket is read through etils' ``epath``, which comes with orbax and reads with TensorFlow where
that is installed, and else with fsspec and its package for the bucket (gcsfs, s3fs, adlfs).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft_jax.errors import InputError
from peft_jax.files import replace_file

SCHEMES = ("gs", "s3", "az")
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}


def as_path(source: str | os.PathLike) -> Path:
    """A path to read from: a ``pathlib.Path``, or an ``epath.Path``, which is used like one.

    Raises:
      InputError: it is an address of another kind, such as https://.
    """
    # pathlib makes one slash of two: what went through it is still known.
    remote = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.*)", os.fspath(source))
    if remote is None:
        return Path(source)
    scheme, rest = remote.groups()
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise InputError(f"{source} is not read from there: give a local path, or one of {known}")
    from etils import epath

    return epath.Path(f"{scheme}://{rest}")  # type: ignore[return-value]


def is_remote(path: Path) -> bool:
    """Whether a path of :func:`as_path` lies in a bucket."""
    return "://" in str(path)


def exists(path: Path) -> bool:
    """Whether there is something at a path of :func:`as_path`.

    Raises:
      InputError: nothing here can read from such a place, or it lets nobody in.
    """
    if not is_remote(path):
        return path.exists()
    try:
        return path.exists()
    except ImportError:
        package = _PACKAGES[str(path).partition(":")[0]]
        raise InputError(
            f"{path} cannot be read here: install {package} (or tensorflow), or copy it to a "
            "local folder"
        ) from None
    except Exception as error:  # each of the packages behind has its own
        raise InputError(f"{path} cannot be read: {error}") from None


def file_sizes(path: Path) -> list[int]:
    """Bytes of every file in a folder and the folders in it, or of a file."""
    if path.is_dir():
        return [size for each in path.iterdir() for size in file_sizes(each)]
    found: Any = path.stat()
    return [found.length if is_remote(path) else found.st_size]


def local_folder(folder: Path, names: Iterable[str]) -> Path:
    """A local folder with the named files of a folder, those of them that it has.

    A local folder is its own. Files of a bucket are copied into the user's cache, where a folder's
    name says what is in it: it is never changed, and processes may share it.
    """
    if not is_remote(folder):
        return folder
    contents = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    copy = Path(caches) / "peft_jax" / "files" / digest.hexdigest()[:32]
    for name, content in contents.items():
        if not (copy / name).is_file():
            with replace_file(copy / name) as new:
                new.write_bytes(content)
    return copy


def open_file(path: Path) -> Any:
    """A file opened to read bytes, to be used in a ``with``; no buffer of Python's is in between.

    It has ``seek`` and ``read``; of a local one ``readinto`` too.
    """
    return path.open("rb") if is_remote(path) else path.open("rb", buffering=0)
