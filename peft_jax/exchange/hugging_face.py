"""PEFT's folders (``adapter_config.json``, ``adapter_model.safetensors``), read and written.

What is written loads in peft and gives the same logits, and the other way round. What one side
cannot say is an error: nothing is dropped. Modules are found by the families' own name tables; the
files' names lie below ``base_model.model.``, the adapter's own name ("default") is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.exchange import peft_low_rank, peft_prompts, peft_vectors
from peft_jax.exchange.modules import Names, composed, parts_of
from peft_jax.exchange.peft_config import read_config, write_config
from peft_jax.files import replace_folder
from peft_jax.methods import Method, classification_head
from peft_jax.tensor_files import StoredTensor, open_tensors, write_tensors
from peft_jax.torch_files import open_torch
from peft_jax.tree import Params

WEIGHTS = "adapter_model.safetensors"
TORCH_WEIGHTS = "adapter_model.bin"

_READERS: dict[str, Callable] = {
    "IA3": peft_vectors.read_ia3,
    "LN_TUNING": peft_vectors.read_norms,
    "LORA": peft_low_rank.read_lora,
    "ADALORA": peft_low_rank.read_adalora,
    "VERA": peft_low_rank.read_vera,
    "PROMPT_TUNING": peft_prompts.read_prompt,
    "P_TUNING": peft_prompts.read_prompt,
    "PREFIX_TUNING": peft_prompts.read_prefix,
}
WRITERS: dict[str, Callable] = {
    "ia3": peft_vectors.write_ia3,
    "norm_tuning": peft_vectors.write_norms,
    "lora": peft_low_rank.write_lora,
    "dora": peft_low_rank.write_lora,
    "adalora": peft_low_rank.write_adalora,
    "vera": peft_low_rank.write_vera,
    "prompt_tuning": peft_prompts.write_prompt,
    "p_tuning": peft_prompts.write_prompt,
    "prefix_tuning": peft_prompts.write_prefix,
}


class Imported(NamedTuple):
    """What a file of another library holds.

    Attributes:
      adapter: the stored tree.
      method: that it belongs to.
      notes: what of the file was not needed, and why.
    """

    adapter: Params
    method: Method
    notes: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------
def load_peft(folder: str | Path, backbone: Backbone) -> tuple[Params, Method]:
    """Reads an adapter that Hugging Face PEFT saved: the stored tree and its method.

    Read are (IA)³, LoRA (with rsLoRA, DoRA, PiSSA, patterns), AdaLoRA, VeRA, prompt tuning,
    P-tuning, prefix tuning of decoders, norm tuning, and a classification head beside any of them.
    A LoRA whose ranks differ between the layers of a module is filled up with zeros; one on a fused
    projection becomes one of the same A on each of its parts.

    Args:
      folder: with ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``, which is
        read without torch).
      backbone: that it was made for. An abstract one is enough, but for PiSSA, which refers to the
        weights themselves, and for norms of a part of the layers.

    Raises:
      InputError: a file is missing or broken; a method, or a field of its configuration, is not
        supported; a tensor has no place in the backbone, or not its shape.
    """
    read = read_peft(folder, backbone)
    return read.adapter, read.method


def read_peft(folder: str | Path, backbone: Backbone) -> Imported:
    """As :func:`load_peft`, with notes on what of the file was not needed."""
    folder = Path(folder)
    fields = read_config(folder)
    tensors = {name: np.asarray(t.read(), np.float32) for name, t in _open(folder).items()}
    names = Names(backbone.config)
    try:
        head = _read_head(tensors, names)
        names.classifies = bool(head or backbone.config.num_labels)
        parts, notes = _READERS[fields["peft_type"]](fields, tensors, names, backbone)
        if not parts:
            raise InputError(f"there is no tensor of a {fields['peft_type']} in it")
        if tensors:
            some = ", ".join(sorted(tensors)[:3]) + (", ..." if len(tensors) > 3 else "")
            raise InputError(
                f"{len(tensors)} tensors are left over, which no {fields['peft_type']} of this "
                f"{backbone.config.family} has: {some}"
            )
        adapter, method = composed([*parts, *head])
        check_shapes(adapter, method, backbone)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    return Imported(adapter, method, tuple(notes))


def _open(folder: Path) -> Mapping[str, StoredTensor]:
    if (folder / WEIGHTS).is_file():
        return open_tensors(folder / WEIGHTS)
    if (folder / TORCH_WEIGHTS).is_file():
        return open_torch(folder / TORCH_WEIGHTS)
    raise InputError(f"{folder} has neither {WEIGHTS} nor {TORCH_WEIGHTS}")


def _read_head(tensors: dict[str, np.ndarray], names: Names) -> list[tuple[Method, Params]]:
    stored = {}
    for name in list(tensors):
        rule = names.head.get(re.sub(r"^base_model\.(model\.)?", "", name))
        if rule is not None:
            array = tensors.pop(name)
            stored[rule.ours] = jnp.asarray(array.T if rule.transpose else array)
    if not stored:
        return []
    if len(stored) < len(names.head):
        absent = next(rule.theirs for rule in names.head.values() if rule.ours not in stored)
        raise InputError(f"the classification head lacks its tensor {absent}")
    labels = stored["classifier/out/kernel"].shape[-1]
    return [(classification_head(labels), tree.unflatten(stored))]


def check_shapes(adapter: Params, method: Method, backbone: Backbone) -> None:
    """Raises InputError unless the tree is one of the method's on the backbone."""
    wanted = tree.flatten(jax.eval_shape(method.init, jax.random.key(0), backbone))
    held = tree.flatten(adapter)
    for path in {**wanted, **held}:
        shapes = [tuple(flat[path].shape) if path in flat else None for flat in (held, wanted)]
        if shapes[0] != shapes[1]:
            raise InputError(f"{path!r} has shape {shapes[0]}, but the backbone wants {shapes[1]}")


# --------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------
def save_peft(
    folder: str | Path,
    adapter: Params,
    method: Method,
    backbone: Backbone,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes an adapter as a folder that ``peft.PeftModel.from_pretrained`` loads; returns it.

    The model to load it onto is the one that ``save_backbone`` writes (with a classification head,
    its ``...ForSequenceClassification``). One method at a time, beside a classification head:
    :func:`load_peft` lists them. Written as something else, with the same function: PiSSA as a
    plain LoRA of twice the rank; P-tuning and reparameterised prefixes as what their encoders make;
    a LoRA on a part of a fused projection (a GPT-2's queries) as one of a larger rank, and an (IA)³
    on a part as one that is 1 elsewhere.

    Args:
      folder: must not exist or be empty, unless it may be overwritten.
      adapter: the stored tree.
      method: that it belongs to.
      backbone: that it was trained on; an abstract one is enough, but for a DoRA on a part of a
        fused projection.
      overwrite: replace what is in the folder.

    Raises:
      InputError: PEFT has no such method, or cannot say what this one does.
    """
    with replace_folder(folder, overwrite) as new:
        fields, tensors = to_peft(adapter, method, backbone)
        write_config(new, fields)
        write_tensors(new / WEIGHTS, tensors, {"format": "pt"})
    return Path(folder)


def to_peft(
    adapter: Params, method: Method, backbone: Backbone
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields of ``adapter_config.json``, and the tensors by name."""
    check_shapes(adapter, method, backbone)
    names = Names(backbone.config)
    parts = parts_of(method, adapter)
    head = [stored for each, stored in parts if each.spec["name"] == "classification_head"]
    parts = [part for part in parts if part[0].spec["name"] != "classification_head"]
    write = _writer(parts)
    names.classifies = bool(head or backbone.config.num_labels)
    fields, tensors = write(parts, names, backbone)
    prompts = fields["peft_type"] in ("PROMPT_TUNING", "PREFIX_TUNING")
    if prompts and backbone.config.num_labels and not head:
        # peft replaces the head of every prompted classifier by one of the adapter.
        head = [{"classifier": backbone.params["classifier"]}]
    if head:
        below = "base_model." if prompts else "base_model.model."
        written = _write_head(head[0], names)
        tensors |= {below + name: array for name, array in written.items()}
        fields["modules_to_save"] = sorted({name.partition(".")[0] for name in written})
    fields |= {
        "task_type": _task(names, bool(head), prompts),
        "base_model_name_or_path": backbone.name or None,
        "inference_mode": True,
    }
    return fields, {name: np.ascontiguousarray(a, np.float32) for name, a in tensors.items()}


def _writer(parts: Sequence[tuple[Method, Params]]) -> Callable:
    kinds = list(dict.fromkeys(each.spec["name"] for each, _ in parts))
    if not kinds:
        raise InputError("a classification head alone is no adapter of PEFT's")
    unknown = [kind for kind in kinds if kind not in WRITERS]
    if unknown:
        raise InputError(
            f"PEFT has no method like {unknown[0]!r}; it has {', '.join(sorted(WRITERS))}"
        )
    if len(kinds) > 1:
        raise InputError(
            f"a PEFT folder holds one method; this adapter has {' and '.join(kinds)}: write each "
            "into a folder of its own"
        )
    return WRITERS[kinds[0]]


def _write_head(stored: Params, names: Names) -> dict[str, np.ndarray]:
    flat = tree.flatten(stored)
    places = {rule.ours: rule for rule in names.head.values()}
    lost = sorted(set(flat) - set(places))
    if lost:
        raise InputError(
            f"the head's {lost[0]!r} has no place in transformers' classifier of this "
            f"{names.config.family}: its pooler is a part of the model"
        )
    arrays = {path: np.asarray(leaf, np.float32) for path, leaf in flat.items()}
    return {
        rule.theirs: arrays[path].T if rule.transpose else arrays[path]
        for path, rule in places.items()
    }


def _task(names: Names, head: bool, prompts: bool) -> str | None:
    """PEFT's ``task_type``: which of its classes wraps the model."""
    config = names.config
    if head:
        return "SEQ_CLS"
    if config.num_labels or (config.kind == "encoder" and not prompts):
        return None
    if not config.lm_head or config.kind == "encoder":
        return "FEATURE_EXTRACTION"
    return "SEQ_2_SEQ_LM" if config.kind == "encoder_decoder" else "CAUSAL_LM"
