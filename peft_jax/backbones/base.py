"""The backbone: a configuration and a plain tree of parameters, and where methods may attach."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from peft_jax import quantization, transformer, tree
from peft_jax.errors import InputError
from peft_jax.layers import ACTIVATIONS
from peft_jax.transformer import Batch, Config
from peft_jax.tree import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen transformer. As a pytree its children are the parameters; the rest is static.

    Attributes:
      params: nested dict of arrays, see :mod:`peft_jax.transformer`.
      config: what the parameters mean.
      name: where it came from: a named configuration or a folder.
      vocabulary: the folder or file that ``tokenizer.load_tokenizer`` reads, or None.
      fingerprint: of the weights before they were quantised (:class:`Fingerprint`); None: these.
    """

    params: Params
    config: Config = dataclasses.field(metadata={"static": True})
    name: str = dataclasses.field(default="", metadata={"static": True})
    vocabulary: Path | None = dataclasses.field(default=None, metadata={"static": True})
    fingerprint: str | None = dataclasses.field(default=None, metadata={"static": True})

    def logits(self, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Logits [B, T, V] float32 of a batch with the keys of seqio's feature converters.

        Args:
          params: this backbone's tree, alone or merged with a method's leaves.
          batch: ``encoder_input_tokens`` [B, S] and ``decoder_input_tokens`` [B, T] int32; an
            encoder reads the first alone (and T is S), a decoder-only model the second.
          key: for dropout; None means evaluation.
        """
        return transformer.logits(self.config, params, batch, key)

    def replace(self, **changes: Any) -> Backbone:
        """The same backbone with fields of its configuration changed (dropout, remat, ...).

        A dropout of 0 turns all of them off; another rate is that of attention weights and of a
        classification head too.
        """
        if "dropout" in changes:
            changes = {"attention_dropout": None, "classifier_dropout": None} | changes
            if changes["dropout"] == 0:
                changes = {"activation_dropout": None} | changes
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    def quantize(self, kind: str) -> Backbone:
        """The same backbone with the kernels of its layers in "int8" or "nf4" (``quantization``).

        Adapters do not tell the two apart: its fingerprint stays that of the weights before.
        """
        if quantization.kind_of(self.params) != "none":
            raise InputError(f"this backbone is {quantization.kind_of(self.params)} already")
        known = self.fingerprint or identity(self)["fingerprint"]
        params = quantization.quantize_params(self.params, kind)
        return dataclasses.replace(self, params=params, fingerprint=known)

    def dequantize(self) -> Backbone:
        """The same backbone with plain arrays, rounded as :meth:`quantize` left them."""
        return dataclasses.replace(self, params=quantization.dequantize_params(self.params))

    def classify(self, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Logits [B, labels] float32 of the classification head; see ``transformer.classify``."""
        return transformer.classify(self.config, params, batch, key)


def init_backbone(
    config: Config, key: jax.Array, dtype: Any = jnp.float32, name: str = "random"
) -> Backbone:
    """A backbone with random weights: for tests, benchmarks and pretraining."""
    return Backbone(transformer.init(key, config, dtype), config, name)


def abstract_backbone(config: Config, dtype: Any = jnp.float32, name: str = "") -> Backbone:
    """A backbone of ``jax.ShapeDtypeStruct``: sizes and counts without memory.

    >>> jax.eval_shape(method.init, jax.random.key(0), abstract_backbone(config))  # doctest: +SKIP
    """
    return Backbone(transformer.abstract(config, dtype), config, name)


# Fields that change how a backbone is run but not what it computes at evaluation.
RUN_FIELDS = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "classifier_dropout",
    "final_dropout",
    "remat",
    "activation_dtype",
)


def identity(backbone: Backbone) -> dict[str, Any]:
    """What an adapter remembers of the backbone that it was made for.

    ``config`` holds every field that fixes the function; ``fingerprint`` is a hash over the shape
    and the first entries of every tensor, rounded to bfloat16 so that it does not depend on the
    precision the weights were loaded in, and None for an abstract backbone.
    """
    config = dataclasses.asdict(backbone.config)
    for field in RUN_FIELDS:
        del config[field]
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(backbone.params))
    fingerprint = backbone.fingerprint
    if fingerprint is None and not abstract:
        taken = Fingerprint()
        for path, leaf in tree.flatten(backbone.params).items():
            taken.add(path, leaf)
        fingerprint = taken.digest()
    return {"name": backbone.name, "config": config, "fingerprint": fingerprint}


class Fingerprint:
    """A hash over the shape and the first entries of every tensor of a backbone.

    Taken one leaf at a time, so that a leaf may be quantised (and dropped) as soon as it is added.
    """

    def __init__(self) -> None:
        self._heads: dict[str, bytes] = {}

    def add(self, path: str, leaf: Any) -> None:
        """Takes note of a leaf, before it is quantised."""
        if quantization.is_quantized(leaf):
            raise InputError(f"{path}: a quantised leaf has no fingerprint; take it before")
        head = leaf[(0,) * (leaf.ndim - 1)][:64]
        if isinstance(head, jax.Array) and not head.is_fully_addressable:
            assert isinstance(head.sharding, NamedSharding)
            head = jax.device_put(head, NamedSharding(head.sharding.mesh, PartitionSpec()))
        bits = np.asarray(head.astype(jnp.bfloat16)).view(np.uint16)
        self._heads[path] = f"{path}{leaf.shape}".encode() + bits.tobytes()

    def digest(self) -> str:
        """32 hexadecimal digits, whatever the order in which leaves were added."""
        return hashlib.sha256(b"".join(x for _, x in sorted(self._heads.items()))).hexdigest()[:32]


# --------------------------------------------------------------------------------------------
# Slots: every place where a trainable leaf may sit
# --------------------------------------------------------------------------------------------
class Slot(NamedTuple):
    """A place for a trainable leaf.

    Attributes:
      kind: the leaf's name in :mod:`peft_jax.layers`, such as "lora_a" or "prefix_key"; "bias" is
        that of a projection that has none, and "parameter" one of the backbone's own, or of a head
        that an adapter brings.
      shape: with the layer axis in front; a string is a size that the method chooses.
    """

    kind: str
    shape: tuple[int | str, ...]


def slots(config: Config) -> dict[str, Slot]:
    """Path -> :class:`Slot` for every leaf that :mod:`peft_jax.layers` looks for."""
    found: dict[str, Slot] = {}
    own = tree.flatten(transformer.specification(config))
    for path, spec in own.items():
        found[path] = Slot("parameter", spec.shape)
        module, _, leaf = path.rpartition("/")
        if leaf != "kernel":
            continue
        *stack, inputs, outputs = spec.shape
        found[f"{module}/lora_a"] = Slot("lora_a", (*stack, inputs, "rank"))
        found[f"{module}/lora_b"] = Slot("lora_b", (*stack, "rank", outputs))
        found[f"{module}/magnitude"] = Slot("magnitude", (*stack, outputs))
        found[f"{module}/input_scale"] = Slot("input_scale", (*stack, inputs))
        found[f"{module}/ia3"] = Slot("ia3", (*stack, outputs))
        if f"{module}/bias" not in own:
            found[f"{module}/bias"] = Slot("bias", (*stack, outputs))
        if module.endswith("/wo"):
            found[f"{module.removesuffix('/wo')}/ia3"] = Slot("ia3", (*stack, inputs))
    for stack, depth in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        if depth:
            found |= _stack_slots(config, stack, depth)
    if not config.num_labels:
        found |= _classifier_slots(config)
    found["verbalizer/kernel"] = Slot("parameter", (config.d_model, "labels"))
    found["verbalizer/bias"] = Slot("parameter", ("labels",))
    return found


# Where a bottleneck adapter stands: on the sub-layer's output, on the sum with the residual stream,
# or beside the sub-layer.
ADAPTER_PLACES = ("inner", "outer", "parallel")


def _stack_slots(config: Config, stack: str, depth: int) -> dict[str, Slot]:
    """Places of a stack and of its sub-layers that are beside no kernel."""
    d, kv = config.d_model, config.kv_heads * config.d_kv
    found = {
        f"{stack}/prompt": Slot("prompt", ("length", d)),
        f"{stack}/layers/prompt": Slot("prompt", (depth, "length", d)),
        f"{stack}/prefix_places": Slot("prefix_places", ("prefix",)),
    }
    if stack == config.input_stack:
        found[f"{stack}/soft_tokens"] = Slot("soft_tokens", ("soft", d))
        found[f"{stack}/soft_places"] = Slot("soft_places", ("soft",))
    attentions = transformer.attentions(config, stack)
    for name in attentions:
        for leaf in ("prefix_key", "prefix_value"):
            found[f"{stack}/layers/{name}/{leaf}"] = Slot(leaf, (depth, "length", kv))
    for name in (*attentions, "mlp"):
        for place in ADAPTER_PLACES:
            for activation in ACTIVATIONS:
                at = f"{stack}/layers/{name}_adapter/{place}/{activation}"
                found[f"{at}/down"] = Slot("down", (depth, d, "bottleneck"))
                found[f"{at}/down_bias"] = Slot("down_bias", (depth, "bottleneck"))
                found[f"{at}/up"] = Slot("up", (depth, "bottleneck", d))
                found[f"{at}/up_bias"] = Slot("up_bias", (depth, d))
    return found


def _classifier_slots(config: Config) -> dict[str, Slot]:
    """A head that an adapter may own, with as many labels as it says."""
    head = tree.flatten({"classifier": transformer.classifier_spec(config, 1)})
    return {
        path: Slot("parameter", (*spec.shape[:-1], "labels") if "/out/" in path else spec.shape)
        for path, spec in head.items()
    }


def find_modules(config: Config, kind: str, targets: str | Iterable[str]) -> dict[str, Slot]:
    """Modules whose path ends as a target says, with the slot of that kind in each.

    >>> find_modules(config, "lora_a", "attention/(query|value)")  # doctest: +SKIP
    {'encoder/layers/attention/query': Slot('lora_a', (8, 512, 'rank')), ...}

    Raises:
      InputError: a target matches no module, with the nearest ones.
    """
    modules = {
        path.rpartition("/")[0]: slot for path, slot in slots(config).items() if slot.kind == kind
    }
    return {module: modules[module] for module in tree.match(targets, modules)}


def check_slots(bound: Params, config: Config) -> None:
    """Raises InputError unless every leaf sits in a slot and has its shape."""
    places = slots(config)
    sizes: dict[tuple[str, str], int] = {}
    for path, leaf in tree.flatten(bound).items():
        if path not in places:
            raise InputError(
                f"no layer of this backbone reads a leaf at {path!r}; {tree.nearest(path, places)}"
            )
        wanted = places[path].shape
        module = path.rpartition("/")[0]
        # A size that the method chooses, such as a rank, must be the same in a module's leaves.
        fits = len(wanted) == len(leaf.shape) and all(
            have == (sizes.setdefault((module, want), have) if isinstance(want, str) else want)
            for want, have in zip(wanted, leaf.shape, strict=True)
        )
        if not fits:
            raise InputError(f"leaf {path!r} has shape {leaf.shape}; its slot wants {wanted}")
