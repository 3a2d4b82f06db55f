"""`peft-jax convert` for adapters: from any of the formats into any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
from rich.table import Table

from peft_jax import tree
from peft_jax.adapter import FILE, load_adapter, read_header, save_adapter
from peft_jax.backbones import CONFIGS, abstract_backbone, backbone_config, load_backbone, native
from peft_jax.backbones.base import Backbone
from peft_jax.convert import table as side_by_side
from peft_jax.errors import InputError
from peft_jax.exchange import hugging_face, loralib, numpy_files, tfew
from peft_jax.exchange.hugging_face import Imported
from peft_jax.exchange.peft_config import CONFIG
from peft_jax.files import check_free
from peft_jax.methods import Method
from peft_jax.methods.base import count
from peft_jax.torch_files import open_torch
from peft_jax.tree import Params

AdapterFormat = Literal["hugging_face", "loralib", "native", "npy", "npz", "tfew"]
FORMATS: tuple[AdapterFormat, ...] = get_args(AdapterFormat)
WRITTEN = tuple(each for each in FORMATS if each != "loralib")

_SUFFIXES: dict[str, AdapterFormat] = {
    ".npy": "npy",
    ".npz": "npz",
    ".pt": "tfew",
    ".bin": "tfew",
    ".safetensors": "native",
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """An adapter in a file or folder.

    Attributes:
      path: of it.
      format: one of FORMATS.
      method: its name, or those of its parts.
      backbone: the name of the one that it is for.
      tensors: how many arrays our stored tree has.
      parameters: how many scalars are trained.
      size: bytes of all files.
    """

    path: Path
    format: AdapterFormat
    method: str
    backbone: str
    tensors: int
    parameters: int
    size: int


def adapter_format(path: str | Path) -> AdapterFormat | None:
    """Which of the formats the adapter at ``path`` has, or None where no adapter is.

    Raises:
      InputError: a torch file is damaged, or holds the tensors of neither library.
    """
    path = Path(path)
    if path.is_dir():
        if (path / CONFIG).is_file():
            return "hugging_face"
        return "native" if (path / FILE).is_file() else None
    if not path.is_file():
        return None
    if path.suffix in (".pt", ".bin", ".pth"):
        return _torch_format(path)
    if path.suffix == ".safetensors":
        try:
            read_header(path)
        except InputError:
            return None
    return _SUFFIXES.get(path.suffix)


def _torch_format(path: Path) -> AdapterFormat:
    kinds = {name.rpartition(".")[2] for name in open_torch(path)}
    if kinds & {"lora_A", "lora_B"}:
        return "loralib"
    if kinds & {"multi_lora_b", "lora_a", "lora_b"}:
        return "tfew"
    raise InputError(
        f"{path} holds neither T-Few's tensors (multi_lora_b, lora_a) nor loralib's (lora_A)"
    )


def convert_adapter(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    *,
    backbone: str | None = None,
    alpha: float | None = None,
    overwrite: bool = False,
) -> tuple[Summary, Summary, tuple[str, ...]]:
    """Reads the adapter at ``source`` in its format and writes it to ``target`` in another.

    Args:
      source: a folder or file in any of the formats.
      target: what to write: a folder for "hugging_face" and "native", a file for the others.
      to: the format to write. By default what the file's ending says; for a folder, Hugging Face's
        for an adapter of ours, and ours for the others.
      backbone: that it was made for: "tiny", a checkpoint, or the name of a published model, whose
        weights are then not needed. Our own files say it themselves.
      alpha: of the LoRA in a file of loralib's, which does not hold it.
      overwrite: replace what is at ``target``.

    Returns:
      What was read, what was written, and what of the source was not needed.

    Raises:
      InputError: before anything is written or overwritten.
    """
    source, target = Path(source), Path(target)
    stored = adapter_format(source)
    if stored is None:
        raise InputError(f"{source} is no adapter of {', '.join(FORMATS)}")
    if to is not None and to not in WRITTEN:
        raise InputError(f"adapters are written as {', '.join(WRITTEN)}, not as {to!r}")
    kind: AdapterFormat = to or _default_format(stored, target)  # type: ignore[assignment]
    if alpha is not None and stored != "loralib":
        raise InputError(f"alpha is for loralib's files, which lack it; {source} is {stored}")
    _check_target(source, target, kind, overwrite)
    # On the host: nothing here is worth an accelerator.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        model = _backbone(source, stored, backbone)
        read = _read(source, stored, model, alpha)
        _write(target, kind, read, model, overwrite)
    return (
        _summary(source, stored, read, model),
        _summary(target, kind, read, model),
        read.notes,
    )


def _default_format(stored: AdapterFormat, target: Path) -> AdapterFormat:
    if target.suffix in _SUFFIXES:
        return _SUFFIXES[target.suffix]
    return "hugging_face" if stored == "native" else "native"


def _check_target(source: Path, target: Path, to: AdapterFormat, overwrite: bool) -> None:
    here, there = source.resolve(), target.resolve()
    if there == here or there in here.parents:
        raise InputError(f"{target} holds {source} itself; give another place")
    if to == "hugging_face" or (to == "native" and target.suffix != ".safetensors"):
        check_free(target, overwrite)
        if overwrite and target.is_dir() and any(target.iterdir()) and not adapter_format(target):
            raise InputError(f"{target} is not overwritten: it holds no adapter")
        return
    if target.is_dir():
        raise InputError(f"{target} is a folder; {to} is one file")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; give another place, or overwrite it (--overwrite)")


def _header(source: Path, stored: AdapterFormat) -> dict[str, Any] | None:
    if stored == "native":
        return read_header(source)
    return numpy_files.read_npz_header(source) if stored == "npz" else None


def _backbone(source: Path, stored: AdapterFormat, given: str | None) -> Backbone:
    """The backbone that is named, or an outline of the one that our own file was made for."""
    if given is not None:
        if given in CONFIGS and not Path(given).exists():
            return abstract_backbone(backbone_config(given), name=given)
        return load_backbone(given)
    header = _header(source, stored)
    if header is None:
        raise InputError(
            f"{source} does not say which backbone it is for; give it (--backbone): a name such as "
            "t0_3b, or a checkpoint"
        )
    made_for = header["backbone"]
    return abstract_backbone(native.config_from_json(made_for["config"]), name=made_for["name"])


def _read(path: Path, stored: AdapterFormat, model: Backbone, alpha: float | None) -> Imported:
    if stored == "hugging_face":
        return hugging_face.read_peft(path, model)
    if stored == "tfew":
        return tfew.read_tfew(path, model)
    if stored == "loralib":
        if alpha is None:
            raise InputError(
                f"{path} is loralib's, which does not keep the scale; give its run's lora_alpha "
                "(--alpha)"
            )
        return loralib.read_loralib(path, model, alpha)
    readers: dict[str, Callable[[Path, Backbone], tuple[Params, Method]]] = {
        "native": load_adapter,
        "npz": numpy_files.load_npz,
        "npy": numpy_files.load_npy,
    }
    return Imported(*readers[stored](path, model))


def _write(
    target: Path, to: AdapterFormat, read: Imported, model: Backbone, overwrite: bool
) -> None:
    adapter, method = read.adapter, read.method
    if to == "hugging_face":
        hugging_face.save_peft(target, adapter, method, model, overwrite=overwrite)
    elif to == "native":
        save_adapter(target, adapter, method, model)
    else:
        writers = {
            "tfew": tfew.save_tfew,
            "npy": numpy_files.save_npy,
            "npz": numpy_files.save_npz,
        }
        writers[to](target, adapter, method, model)


def _summary(path: Path, kind: AdapterFormat, read: Imported, model: Backbone) -> Summary:
    parts = read.method.spec.get("methods", [read.method.spec])
    file = path / FILE if kind == "native" and path.is_dir() else path
    files = [f for f in (file.rglob("*") if file.is_dir() else [file]) if f.is_file()]
    return Summary(
        path=path,
        format=kind,
        method=" + ".join(part["name"] for part in parts),
        backbone=model.name,
        tensors=len(tree.flatten(read.adapter)),
        parameters=count(read.adapter),
        size=sum(f.stat().st_size for f in files),
    )


def table(read: Summary, written: Summary, notes: tuple[str, ...] = ()) -> Table:
    """What was read and what was written, side by side, and what was not needed."""
    made = side_by_side(read, written, {"size": "bytes"})
    for note in notes:
        made.add_row("not needed", note, "")
    return made
