"""T5X checkpoints of the T5 family, read and written without T5X (Roberts et al. 2022).

Three of T5X's networks write such checkpoints. Heads are joined in the first and apart in the
second; the third is the first or the second with all layers in one array::

    t5, flaxformer   encoder/layers_0/attention/query/kernel   [D, H*K]      relpos_bias shared
    scalable_t5      encoder/layers_0/attention/query/kernel   [D, H, K]     relpos_bias per layer
    scanned          encoder/encoder/attention/query/kernel    [D, L, (H, K)]     likewise

Tables of a relative bias per layer that are all equal are read as one that the layers share, and
such a one is written as copies.
"""

from __future__ import annotations

import functools
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import quantization, transformer, tree
from peft_jax.backbones import loading
from peft_jax.backbones.base import Backbone
from peft_jax.backbones.loading import StoredBackbone
from peft_jax.backbones.names import Rule
from peft_jax.backbones.native import TOKENIZER_FILES, copy_vocabulary
from peft_jax.backbones.t5x_config import GIN_FILES, find_config, gin_text
from peft_jax.backbones.t5x_files import (
    new_folder,
    open_checkpoint,
    write_checkpoint,
    write_orbax,
)
from peft_jax.errors import InputError
from peft_jax.paths import as_path, is_remote, local_folder
from peft_jax.tensor_files import Index, StoredTensor, aligned_empty
from peft_jax.transformer import Config

Tensors = dict[str, StoredTensor]


# --------------------------------------------------------------------------------------------
# Names
# --------------------------------------------------------------------------------------------
class Layout(NamedTuple):
    """Which of T5X's networks made a checkpoint.

    Attributes:
      scanned: whether all layers lie in one array, on axis 1.
      split_heads: whether attention kernels keep heads and their width apart.
      bias_per_layer: whether every layer has a relative bias of its own.
    """

    scanned: bool = False
    split_heads: bool = False
    bias_per_layer: bool = False


UNSCANNED = Layout()
"""T5X's ``t5`` network, and Flaxformer's: all the published T5, mT5, LM-adapted and Flan-T5."""
SCANNED = Layout(True, True, True)
"""T5X's ``scalable_t5`` network."""


_ATTENTIONS = {
    "encoder": {"attention": ("attention", "pre_attention_layer_norm")},
    "decoder": {
        "self_attention": ("self_attention", "pre_self_attention_layer_norm"),
        "cross_attention": ("encoder_decoder_attention", "pre_cross_attention_layer_norm"),
    },
}


def t5x_rules(config: Config, layout: Layout = UNSCANNED) -> list[Rule]:
    """Our paths against T5X's, for reading and for writing.

    Names are those of layers apart; :func:`_scanned_name` makes the others of them.
    """
    rules = [Rule("token_embedder/embedding", "token_embedder/embedding")]
    inputs = ("wi_0", "wi_1") if config.gated else ("wi",)
    for stack, attentions in _ATTENTIONS.items():
        ours, theirs = f"{stack}/layers", f"{stack}/layers_{{layer}}"
        bias = f"{theirs if layout.bias_per_layer else stack}/relpos_bias/rel_embedding"
        owner = ours if config.relative_per_layer else stack
        rules.append(Rule(f"{owner}/relative_bias/embedding", bias, transpose=True))
        for name, (attention, norm) in attentions.items():
            rules.append(Rule(f"{ours}/{name}_norm/scale", f"{theirs}/{norm}/scale"))
            for part in ("query", "key", "value", "out"):
                rules.append(
                    Rule(f"{ours}/{name}/{part}/kernel", f"{theirs}/{attention}/{part}/kernel")
                )
        rules.append(Rule(f"{ours}/mlp_norm/scale", f"{theirs}/pre_mlp_layer_norm/scale"))
        for name in (*inputs, "wo"):
            rules.append(Rule(f"{ours}/mlp/{name}/kernel", f"{theirs}/mlp/{name}/kernel"))
        rules.append(Rule(f"{stack}/final_norm/scale", f"{stack}/{stack}_norm/scale"))
    if not config.tied_head:
        rules.append(Rule("lm_head/kernel", "decoder/logits_dense/kernel"))
    return rules


def _scanned_name(rule: Rule) -> str:
    return rule.theirs.replace("layers_{layer}", rule.theirs.partition("/")[0])


def _names(config: Config, rule: Rule, layout: Layout) -> list[str]:
    """T5X's tensors of a row: one for each layer, or one for all."""
    if rule.stacked and layout.scanned:
        return [_scanned_name(rule)]
    return [name for _, name in rule.names(config.depth(rule.ours))]


def _layer_shape(config: Config, rule: Rule, layout: Layout) -> tuple[int, ...]:
    """T5X's shape of one layer of a row."""
    shape = _specs(config)[rule.ours].shape
    shape = rule.their_shape(shape[1:] if "/layers/" in rule.ours else shape)
    if layout.split_heads and "attention/" in rule.ours and rule.ours.endswith("kernel"):
        heads = (config.num_heads, config.d_kv)
        return (*heads, shape[1]) if "/out/" in rule.ours else (shape[0], *heads)
    return shape


def _tensor_shape(config: Config, rule: Rule, layout: Layout) -> tuple[int, ...]:
    shape = _layer_shape(config, rule, layout)
    if rule.stacked and layout.scanned:
        return (shape[0], config.depth(rule.ours), *shape[1:])
    return shape


@functools.cache
def _specs(config: Config) -> dict[str, transformer.Spec]:
    return tree.flatten(transformer.specification(config))


# --------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------
def read_backbone(
    path: str | Path,
    dtype: Any = None,
    named: str | None = None,
    on_leaf: Callable[[str], None] = lambda path: None,
) -> Backbone:
    """The backbone of a T5X checkpoint, T5X's own or written through orbax.

    Args:
      path: the folder ``checkpoint_<step>``, local or in a bucket (``gs://``), or a file that holds
        all arrays itself.
      dtype: of the parameters; None keeps each as it is stored.
      named: a configuration ("t5_v1_1_base") whose fields hold where neither the arrays' shapes nor
        a gin file beside them say otherwise. Its sizes need not be the checkpoint's.
      on_leaf: called with the path of every leaf of ours that is read.

    Raises:
      InputError: no such checkpoint; a tensor that is missing, left over, or whose shape does not
        fit the others; fields that nothing tells. Nothing is read before all are checked.
    """
    return loading.read(open_backbone(path, named), dtype, on_leaf=on_leaf)


def open_backbone(path: str | Path, named: str | None = None) -> StoredBackbone:
    """What a checkpoint holds as leaves of our tree, all of it checked and no leaf read.

    Raises:
      InputError: as :func:`read_backbone`.
    """
    path = as_path(path)
    tensors = open_checkpoint(path)
    sizes, layout = _sizes(path, tensors)
    config = find_config(path, sizes, named)
    rules = t5x_rules(config, layout)
    _check_tensors(path, config, rules, layout, tensors)
    leaves = {rule.ours: _leaf(config, rule, layout, tensors) for rule in rules}
    return StoredBackbone(leaves, config, path.name, _vocabulary(path))


def _vocabulary(path: Path) -> Path | None:
    """The vocabulary beside a checkpoint; of one in a bucket a local copy."""
    names = [name for name in TOKENIZER_FILES if name.endswith(".model")]
    beside = local_folder(path if path.is_dir() else path.parent, names)
    found = next((beside / name for name in names if (beside / name).is_file()), None)
    return found and found.resolve()


def read_config(path: str | Path, named: str | None = None) -> Config:
    """The configuration of a checkpoint, without its arrays; see :func:`read_backbone`."""
    path = as_path(path)
    sizes, _ = _sizes(path, open_checkpoint(path))
    return find_config(path, sizes, named)


def _check_tensors(
    path: Path, config: Config, rules: list[Rule], layout: Layout, tensors: Tensors
) -> None:
    known: set[str] = set()
    for rule in rules:
        wanted = _tensor_shape(config, rule, layout)
        for name in _names(config, rule, layout):
            known.add(name)
            shape, dtype = _tensor(path, tensors, name)[:2]
            if shape != wanted:
                raise InputError(
                    f"{path}: tensor {name} has shape {shape}; the other tensors ask for {wanted}"
                )
            if not jnp.issubdtype(dtype, jnp.floating):
                raise InputError(f"{path}: tensor {name} holds {dtype}; wanted a floating dtype")
    left = sorted(set(tensors) - known)
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise InputError(
            f"{path}: tensor {', '.join(left[:3])}{more} is not part of a T5 of this kind"
        )


def _tensor(path: Path, tensors: Tensors, name: str) -> StoredTensor:
    if name not in tensors:
        raise InputError(f"{path}: tensor {name} is missing; {tree.nearest(name, tensors)}")
    return tensors[name]


def _leaf(config: Config, rule: Rule, layout: Layout, tensors: Tensors) -> StoredTensor:
    """One leaf of our tree: T5X's tensors of a row, their heads joined and their layers stacked."""
    shape = _specs(config)[rule.ours].shape
    names = _names(config, rule, layout)
    sources = [tensors[name] for name in names]
    read = functools.partial(_read_leaf, config, rule, layout, tensors)
    if "/layers/" not in rule.ours or rule.transpose:
        # A relative bias is small: it is read whole.
        plain = not rule.transpose and len(sources) == 1
        part = sources[0].part if plain else None
        return StoredTensor(shape, sources[0].dtype, read, part=part)
    scanned = rule.stacked and layout.scanned
    heads = _heads_axis(config, rule, layout)

    def read_part(box: Index) -> np.ndarray:
        there, cut = box[1:], (slice(None),) * (len(box) - 1)
        if heads is not None:
            there, cut = _whole_heads(there, heads, config.d_kv)
        if scanned:
            layers = np.moveaxis(sources[0].read_part((there[0], box[0], *there[1:])), 1, 0)
        else:
            layers = np.stack([source.read_part(there) for source in sources[box[0]]])
        if heads is not None:
            first, last = layers.shape[: heads + 1], layers.shape[heads + 3 :]
            layers = layers.reshape(*first, -1, *last)
        return layers[(slice(None), *cut)]

    # Layers apart lie in their own arrays; together they lie within the rows of one.
    axes = (1, 0, *range(2, len(shape))) if scanned else ()
    return StoredTensor(shape, sources[0].dtype, read, part=read_part, axes=axes)


def _heads_axis(config: Config, rule: Rule, layout: Layout) -> int | None:
    """The axis of one layer of our leaf that T5X has as two, heads and their width."""
    if not layout.split_heads or "attention/" not in rule.ours or not rule.ours.endswith("kernel"):
        return None
    return 0 if "/out/" in rule.ours else 1


def _whole_heads(box: Index, axis: int, width: int) -> tuple[Index, Index]:
    """The box of whole heads around a box of one layer of our leaf, and this one within it."""
    first, last = box[axis].start // width, -(-box[axis].stop // width)
    there = (*box[:axis], slice(first, last), slice(0, width), *box[axis + 1 :])
    start, stop = box[axis].start - first * width, box[axis].stop - first * width
    return there, (*(slice(None),) * axis, slice(start, stop))


def _read_leaf(config: Config, rule: Rule, layout: Layout, tensors: Tensors) -> np.ndarray:
    """A whole leaf of our tree, its layers stacked on axis 0 as they are read."""
    spec = _specs(config)[rule.ours]
    names = _names(config, rule, layout)
    out = aligned_empty(spec.shape, tensors[names[0]].dtype)
    stacked = "/layers/" in rule.ours
    for layer, array in enumerate(_layers(rule, layout, names, tensors)):
        array = array.T if rule.transpose else array
        if stacked:
            out[layer] = array.reshape(spec.shape[1:])
        else:  # one array, or equal ones
            out[...] = array
    return out


def _layers(rule: Rule, layout: Layout, names: list[str], tensors: Tensors) -> Iterator[np.ndarray]:
    for name in names:
        array = tensors[name].read()
        if rule.stacked and layout.scanned:
            yield from np.moveaxis(array, 1, 0)
        else:
            yield array


def _sizes(path: Path, tensors: Tensors) -> tuple[dict[str, Any], Layout]:
    """The fields of a configuration that shapes tell, and the layout they are in."""
    scanned = any(name.startswith("encoder/encoder/") for name in tensors)

    def first(stack: str) -> str:
        return f"{stack}/{stack if scanned else 'layers_0'}"

    def shape(name: str, *ranks: int) -> tuple[int, ...]:
        found = _tensor(path, tensors, name).shape
        if len(found) not in ranks:
            raise InputError(
                f"{path}: tensor {name} has shape {found}; wanted one of "
                f"{' or '.join(map(str, ranks))} axes"
            )
        return found

    def depth(stack: str) -> int:
        if scanned:
            return shape(f"{first(stack)}/mlp/wo/kernel", 3)[1]
        numbers = (re.match(rf"{stack}/layers_(\d+)/", name) for name in tensors)
        return 1 + max((int(match[1]) for match in numbers if match), default=0)

    layers = 1 if scanned else 0
    vocabulary, width = shape("token_embedder/embedding", 2)
    shared = "encoder/relpos_bias/rel_embedding"
    per_layer = shared not in tensors
    bias = f"{first('encoder')}/relpos_bias/rel_embedding" if per_layer else shared
    heads, *_, buckets = shape(bias, 2 + (layers and per_layer))
    query = shape(f"{first('encoder')}/attention/query/kernel", 2 + layers, 3 + layers)
    inner = math.prod(query[1 + layers :])
    if inner % heads:
        raise InputError(f"{path}: {bias} has {heads} heads, which do not divide {inner} units")
    gated = f"{first('encoder')}/mlp/wi_0/kernel" in tensors
    hidden = shape(f"{first('encoder')}/mlp/{'wi_0' if gated else 'wi'}/kernel", 2 + layers)
    sizes = {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_ff": hidden[-1],
        "num_heads": heads,
        "d_kv": inner // heads,
        "encoder_layers": depth("encoder"),
        "decoder_layers": depth("decoder"),
        "gated": gated,
        "tied_head": "decoder/logits_dense/kernel" not in tensors,
        "relative_buckets": buckets,
        "relative_per_layer": per_layer and not _biases_agree(tensors, scanned),
    }
    return sizes, Layout(scanned, len(query) == 3 + layers, per_layer)


def _biases_agree(tensors: Tensors, scanned: bool) -> bool:
    """Whether all layers of a stack have the same relative bias."""
    found: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        if name.endswith("/relpos_bias/rel_embedding"):
            array = tensor.read()
            arrays = np.moveaxis(array, 1, 0) if scanned else [array]
            found.setdefault(name.partition("/")[0], []).extend(arrays)
    return all(np.array_equal(first, one) for first, *more in found.values() for one in more)


# --------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------
def write_backbone(
    folder: str | Path,
    backbone: Backbone,
    *,
    scanned: bool = False,
    orbax: bool = False,
    step: int = 0,
    overwrite: bool = False,
    on_leaf: Callable[[str], None] = lambda path: None,
) -> Path:
    """Writes a checkpoint that T5X restores, whole or not at all; returns the folder.

    There is no optimizer state in it: T5X restores it with ``fallback_state``, or without an
    optimizer. A ``model_config.gin`` in it says what the shapes do not.

    Args:
      folder: must not exist or be empty, unless it may be overwritten; ``gs://`` for a bucket.
      backbone: a T5, written in the dtype that it has.
      scanned: write the layout of T5X's ``scalable_t5``, not that of ``t5`` and Flaxformer.
      orbax: write the form that T5X has with ``use_orbax``, not its own.
      step: the step of training that T5X goes on from.
      overwrite: replace what is in the folder.
      on_leaf: called with the path of every leaf of ours that is written.

    Raises:
      InputError: T5X has no such model; the message says what it cannot say.
    """
    quantization.check_plain(backbone.params)
    config = backbone.config
    layout = SCANNED if scanned else UNSCANNED
    if config.relative_per_layer and not scanned:
        layout = Layout(split_heads=True, bias_per_layer=True)
    gin = gin_text(config, scanned)
    tensors: dict[str, Callable[[], np.ndarray]] = {}
    last: dict[str, str] = {}
    for rule in t5x_rules(config, layout):
        leaf = tree.get(backbone.params, rule.ours)
        names = _names(config, rule, layout)
        for layer, name in enumerate(names):
            tensors[name] = functools.partial(
                _their_array, config, rule, layout, leaf, layer if len(names) > 1 else None
            )
        last[names[-1]] = rule.ours
    write = write_orbax if orbax else write_checkpoint
    with new_folder(folder, overwrite) as new:
        (new / GIN_FILES[0]).write_text(gin)
        _copy_vocabulary(backbone.vocabulary, new)
        write(new, tensors, step, lambda name: on_leaf(last[name]) if name in last else None)
    return as_path(folder)


def _copy_vocabulary(vocabulary: Path | None, folder: Path) -> None:
    if not is_remote(folder):
        copy_vocabulary(vocabulary, folder)
        return
    with tempfile.TemporaryDirectory() as place:
        copy_vocabulary(vocabulary, Path(place))
        for file in Path(place).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())


def _their_array(
    config: Config, rule: Rule, layout: Layout, leaf: jax.Array, layer: int | None
) -> np.ndarray:
    """T5X's tensor of a leaf, or of one of its layers."""
    array = np.asarray(leaf)
    shape = _layer_shape(config, rule, layout)
    depth = config.depth(rule.ours)
    if "/layers/" not in rule.ours:
        array = array.T if rule.transpose else array
        if rule.stacked and layout.scanned:
            array = np.stack([array] * depth, axis=1)
        return np.ascontiguousarray(array)
    array = array.swapaxes(1, 2) if rule.transpose else array
    if rule.stacked and layout.scanned:
        return np.ascontiguousarray(np.moveaxis(array.reshape(depth, *shape), 0, 1))
    return np.ascontiguousarray(array[0 if layer is None else layer].reshape(shape))
