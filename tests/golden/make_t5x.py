"""Writes T5X checkpoints the way T5X does, from the tensors of the golden T5s beside this file.

    python tests/golden/make_t5x.py

writes t5x/<variant>/checkpoint_<step>. The names, shapes and files are those of T5X (google-
research/t5x at cc342d4: checkpoints.py, examples/t5/network.py, examples/scalable_t5/network.py),
written here with msgpack and tensorstore alone: neither T5X nor peft_jax is imported. Since the
tensors are those of transformers' models in t5/, what transformers computed with them (oracle.npz
there) is what a checkpoint must give. The same functions write further layouts while the tests run.
"""

import json
from collections import defaultdict
from pathlib import Path

import ml_dtypes  # noqa: F401 (gives NumPy the name "bfloat16")
import msgpack
import numpy as np
import tensorstore as ts
from safetensors.numpy import load_file

HERE = Path(__file__).parent

Tensors = dict[str, np.ndarray]

# What the sub-layers of a block are, in T5X's names.
BLOCKS = {
    "encoder": ("attention", "mlp"),
    "decoder": ("self_attention", "encoder_decoder_attention", "mlp"),
}
NORMS = {
    "attention": "pre_attention_layer_norm",
    "self_attention": "pre_self_attention_layer_norm",
    "encoder_decoder_attention": "pre_cross_attention_layer_norm",
    "mlp": "pre_mlp_layer_norm",
}
PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "out"}


def t5x_name(name: str) -> str:
    """T5X's name of a tensor of transformers' T5."""
    if name == "shared.weight":
        return "token_embedder/embedding"
    if name == "lm_head.weight":
        return "decoder/logits_dense/kernel"
    stack, kind, *rest = name.split(".")
    if kind == "final_layer_norm":
        return f"{stack}/{stack}_norm/scale"
    layer, _, place, module, *last = rest
    block = BLOCKS[stack][int(place)]
    if module == "layer_norm":
        return f"{stack}/layers_{layer}/{NORMS[block]}/scale"
    if last[0] == "relative_attention_bias":
        return f"{stack}/relpos_bias/rel_embedding"
    return f"{stack}/layers_{layer}/{block}/{PROJECTIONS.get(last[0], last[0])}/kernel"


def is_transposed(name: str) -> bool:
    """Whether T5X keeps a tensor of transformers' T5 the other way round."""
    return "layer_norm" not in name and name != "shared.weight"


def tensors_of(folder: Path) -> Tensors:
    """The tensors of a Hugging Face folder under T5X's names."""
    loaded = load_file(folder / "model.safetensors")
    return {
        t5x_name(n): np.ascontiguousarray(a.T if is_transposed(n) else a) for n, a in loaded.items()
    }


def split_heads(tensors: Tensors, heads: int) -> Tensors:
    """As scalable_t5 keeps them: heads and their width apart in attention kernels."""
    split = {}
    for name, array in tensors.items():
        if "attention/" in name:
            out = "/out/" in name
            array = array.reshape(heads, -1, array.shape[1]) if out else array
            array = array if out else array.reshape(array.shape[0], heads, -1)
        split[name] = array
    return split


def bias_per_layer(tensors: Tensors) -> Tensors:
    """Every layer with a copy of the relative bias that they share."""
    found = {}
    for name, array in tensors.items():
        stack, _, rest = name.partition("/")
        if not rest.startswith("relpos_bias"):
            found[name] = array
            continue
        layers = {n.split("/")[1] for n in tensors if n.startswith(f"{stack}/layers_")}
        found |= {f"{stack}/{layer}/{rest}": array for layer in layers}
    return found


def scanned(tensors: Tensors) -> Tensors:
    """All layers in one array, on axis 1."""
    apart, layers = {}, defaultdict(list)
    for name, array in sorted(tensors.items()):
        stack, layer, rest = (*name.split("/", 2), "")[:3]
        if layer.startswith("layers_"):
            layers[f"{stack}/{stack}/{rest}"].append((int(layer.removeprefix("layers_")), array))
        else:
            apart[name] = array
    stacked = {
        name: np.stack([array for _, array in sorted(arrays, key=lambda pair: pair[0])], axis=1)
        for name, arrays in layers.items()
    }
    return apart | stacked


# --------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------
def nested(flat: dict) -> dict:
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def packed(array: np.ndarray) -> msgpack.ExtType:
    """An array as flax.serialization packs it."""
    array = np.asarray(array)
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def save_zarr(folder: Path, name: str, array: np.ndarray, chunks, **options) -> dict:
    """One array, and the spec that T5X's msgpack file has of it."""
    spec = {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "gfile", "path": f"{name}/"},
        "metadata": {
            "shape": list(array.shape),
            "chunks": list(chunks or array.shape),
            "compressor": {"id": "gzip", "level": 1},
        },
    }
    place = {"driver": "file", "path": f"{folder}/{name}/"}
    place = spec | {"kvstore": options.pop("kvstore", place)}
    ts.open(place, create=True, **options).result().write(array).result()
    return spec


def write_native(
    folder: Path, tensors: Tensors, step: int, partitioned: dict | None = None
) -> Path:
    """T5X's own format: arrays of ``partitioned`` (name -> chunks) in zarr, the others inline.

    As in a training run there are an optimizer's states, and the first array was written on GCS by
    an early tensorstore.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partitioned = dict.fromkeys(tensors) if partitioned is None else partitioned
    target, states = {}, {}
    for name, array in tensors.items():
        states[f"{name}/v"] = packed(np.ones_like(array, dtype=np.float32))
        if name not in partitioned:
            target[name] = packed(array)
            continue
        spec = save_zarr(folder, f"target.{name.replace('/', '.')}", array, partitioned[name])
        if not any(isinstance(leaf, dict) for leaf in target.values()):
            place = spec["kvstore"].pop("path")
            spec |= {"path": place, "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}}
        target[name] = spec
    state = {"step": packed(np.int32(step)), "param_states": nested(states)}
    tree = {"version": 3, "optimizer": {"target": nested(target), "state": state}}
    (folder / "checkpoint").write_bytes(msgpack.packb(tree))
    return folder


def write_ocdbt(folder: Path, tensors: Tensors, step: int) -> Path:
    """What T5X writes through orbax: one database in state/."""
    state = folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    arrays = {f"target.{n.replace('/', '.')}": a for n, a in tensors.items()}
    arrays |= {"state.step": np.asarray(step, np.int32)}
    context = ts.Context()
    for name, array in arrays.items():
        place = {"driver": "memory", "path": f"{name}/"}
        save_zarr(state, name, array, None, kvstore=place, context=context)
    memory = ts.KvStore.open({"driver": "memory"}, context=context).result()
    base = {"driver": "file", "path": f"{state}/"}
    database = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    # All at once: else every write would be a generation of its own.
    for write in [database.write(key, memory[key]) for key in memory.list().result()]:
        write.result()
    return folder


def write_placeholders(folder: Path, tensors: Tensors, step: int) -> Path:
    """What T5X wrote through early orbax: zarr folders, and a msgpack file with their names."""
    folder.mkdir(parents=True, exist_ok=True)
    target = {}
    for name, array in tensors.items():
        stored = f"_optimizer.target.{name.replace('/', '.')}"
        save_zarr(folder, stored, array, None)
        target[name] = f"PLACEHOLDER://{stored}"
    tree = {"_optimizer": {"target": nested(target), "state": {"step": packed(np.int32(step))}}}
    (folder / "checkpoint").write_bytes(msgpack.packb(tree))
    return folder


# --------------------------------------------------------------------------------------------
# Gin
# --------------------------------------------------------------------------------------------
def gin_of(folder: Path) -> str:
    """What T5X writes into its model_dir, as gin prints it, for a T5 of Flaxformer."""
    config = json.loads((folder / "config.json").read_text())
    gated = config["feed_forward_proj"].startswith("gated")
    activations = ("gelu", "linear") if gated else ("relu",)
    return "\n".join(
        [
            "import flaxformer.components.relative_position_biases",
            "",
            "# Macros:",
            "# " + "=" * 78,
            "DROPOUT_RATE = 0.1",
            "",
            "# Parameters for relative_position_biases.RelativePositionBiases:",
            "# " + "=" * 78,
            "relative_position_biases.RelativePositionBiases.max_distance = \\",
            f"    {config['relative_attention_max_distance']}",
            "relative_position_biases.RelativePositionBiases.num_buckets = "
            f"{config['relative_attention_num_buckets']}",
            "relative_position_biases.RelativePositionBiases.num_heads = %NUM_HEADS",
            "",
            "# Parameters for dense.MlpBlock:",
            "# " + "=" * 78,
            f"dense.MlpBlock.activations = {activations}",
            "dense.MlpBlock.bias_init = @bias_init/linen.initializers.normal()",
            "",
        ]
    )


if __name__ == "__main__":
    source = HERE / "t5" / "v1_1"
    chunks = {
        "token_embedder/embedding": (8, 8),
        "decoder/logits_dense/kernel": (8, 10),
        "encoder/layers_0/mlp/wi_0/kernel": (8, 10),
    }
    place = HERE / "t5x" / "v1_1"
    write_native(place / "checkpoint_3", tensors_of(source), 3, chunks)
    (place / "config.gin").write_text(gin_of(source))

    source = HERE / "t5" / "v1_0"
    place = write_ocdbt(HERE / "t5x" / "v1_0" / "checkpoint_5", tensors_of(source), 5)
    (place / "model_config.gin").write_text(gin_of(source))
