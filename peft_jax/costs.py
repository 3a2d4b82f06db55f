"""What a run needs before it starts: parameters, disk, FLOPs, and memory of a device by part.

FLOPs and activations are read off the run's own programs, traced on shapes (``programs``): nothing
is compiled or allocated. A device of a mesh is traced as what it is: a model with its share of the
rows, heads, hidden units and vocabulary. T-Few's own accounting (Liu et al. 2022, section 4.3 and
table 1) stands beside these, for comparing with the paper.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType

from peft_jax import program_memory, programs, scoring, sharding, tree
from peft_jax.architecture import REMAT
from peft_jax.backbones import Backbone, abstract_backbone
from peft_jax.config import Experiment
from peft_jax.program_flops import jaxpr_flops
from peft_jax.programs import BatchShape
from peft_jax.quantization import kind_of
from peft_jax.sharding import Axes
from peft_jax.transformer import Config


# --------------------------------------------------------------------------------------------
# T-Few's accounting
# --------------------------------------------------------------------------------------------
def inference_flops(parameters: float, tokens: float, kind: str) -> float:
    """Forward FLOPs by the rule of T-Few's table 1 (Kaplan et al. 2020).

    Two for each parameter and token; in an encoder-decoder model a token passes half of them.

    Args:
      parameters: of the whole model.
      tokens: of the input and all choices.
      kind: ``Config.kind``.

    Example:
      >>> f"{inference_flops(11e9, 103, 'encoder_decoder'):.1e}"  # T-Few, one example
      '1.1e+12'
    """
    return (1 if kind == "encoder_decoder" else 2) * parameters * tokens


def training_flops(parameters: float, tokens: float, kind: str) -> float:
    """FLOPs of training by the same rule: three forward passes.

    T-Few counts no saving for the gradients of frozen weights, which are never computed: a third.

    Example:
      >>> f"{training_flops(11e9, 1000 * 8 * 103, 'encoder_decoder'):.1e}"  # T-Few, 1000 steps of 8
      '2.7e+16'
    """
    return 3 * inference_flops(parameters, tokens, kind)


def in_context_flops(
    parameters: float, shots: int, shot_tokens: float, tokens: float, kind: str
) -> float:
    """Forward FLOPs of in-context learning, which reads its shots again with every example.

    Example:
      >>> f"{in_context_flops(175e9, 41, 98, 103, 'decoder'):.1e}"  # GPT-3
      '1.4e+15'
    """
    return inference_flops(parameters, shots * shot_tokens + tokens, kind)


# --------------------------------------------------------------------------------------------
# Memory of a device
# --------------------------------------------------------------------------------------------
class DeviceMemory(NamedTuple):
    """Bytes on one device.

    Attributes:
      weights: of the frozen backbone.
      adapter: what is trained, and its constants.
      optimizer: its state.
      batch: the tokens.
      activations: what the layers keep for the backward pass.
      working: all else at the fullest moment: a layer's own arrays, logits, gradients.
      logits: of ``working``, one array of the logits that are made at one time.
    """

    weights: int
    adapter: int
    optimizer: int
    batch: int
    activations: int
    working: int
    logits: int

    @property
    def total(self) -> int:
        return sum(self[:6])


def device_memory(
    name: str,
    config: Experiment,
    backbone: Backbone,
    shape: BatchShape,
    axes: Axes,
    platform: str | None = None,
) -> DeviceMemory:
    """The memory of a program of ``programs.PROGRAMS`` on a device of a mesh.

    Args:
      name: "train" or "score".
      backbone: abstract, as ``programs.outline`` makes it.
      shape: the batch, of all devices together.
      axes: the mesh.
      platform: whose compiler is meant, "cpu" or an accelerator's; by default this machine's.

    Raises:
      InputError: the method, the answer or the batch do not fit the backbone or the mesh.
    """
    traced = trace(name, config, backbone, shape, axes)
    return _device_memory(name, config, backbone, shape, axes, platform, traced)


def _device_memory(name, config, backbone, shape, axes, platform, traced) -> DeviceMemory:
    mesh: Any = AbstractMesh(axes, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    first, frozen, batch = programs.PROGRAMS[name](config, backbone, _one(), shape).arguments
    adapter = first.stored if name == "train" else first
    optimizer = (first.opt_state, first.step, first.key) if name == "train" else ()
    parts = (frozen, adapter, optimizer)
    weights, stored, state = (_share(part, backbone.config, mesh) for part in parts)
    needed = program_memory.memory(traced, platform or jax.default_backend())
    return DeviceMemory(
        weights,
        stored,
        state,
        tree.size_in_bytes(batch) // sharding.batch_ways(mesh),
        needed.kept,
        needed.peak - needed.kept,
        _logits(config, backbone.config, shape, axes) if backbone.config.lm_head else 0,
    )


def trace(name: str, config: Experiment, backbone: Backbone, shape: BatchShape, axes: Axes) -> Any:
    """The jaxpr of a program as one device of a mesh runs it, without its exchanges."""
    own = dataclasses.replace(
        abstract_backbone(_local(backbone.config, axes), _dtype(backbone), backbone.name),
        vocabulary=backbone.vocabulary,
    )
    if kind_of(backbone.params) != "none":
        own = own.quantize(kind_of(backbone.params))
    rows = shape._replace(batch=max(1, shape.batch // (axes.data * axes.fsdp)))
    program = programs.PROGRAMS[name](config, own, _one(), rows)
    return program.function.trace(*program.arguments).jaxpr.jaxpr


def _local(config: Config, axes: Axes) -> Config:
    """A model with a device's share of what is split over "model"."""

    def share(size: int) -> int:
        return size if size % axes.model else size // axes.model

    heads = share(config.num_heads)
    split = share(config.kv_heads)
    if heads % split:
        split = math.gcd(heads, config.kv_heads)
    return dataclasses.replace(
        config,
        num_heads=heads,
        num_kv_heads=None if config.num_kv_heads is None else split,
        d_ff=share(config.d_ff),
        vocab_size=share(config.vocab_size),
    )


def _dtype(backbone: Backbone) -> Any:
    return backbone.params["token_embedder"]["embedding"].dtype


def _one() -> jax.sharding.Mesh:
    return sharding.make_mesh(devices=jax.devices()[:1])


def _share(params: Any, config: Config, mesh: Any) -> int:
    """Bytes of a tree's arrays on one device."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        spec = sharding.leaf_spec(sharding.leaf_path(path), leaf.shape, config, mesh)
        ways = math.prod(mesh.shape[axis] for axis in spec if axis is not None)
        total += tree.size_in_bytes(leaf) // ways
    return total


def _logits(config: Experiment, model: Config, shape: BatchShape, axes: Axes) -> int:
    """Bytes of one float32 array of the logits that are made at one time."""
    rows = max(1, shape.batch // (axes.data * axes.fsdp) // config.training.accumulate)
    length = shape.choice_length if shape.choices else shape.target_length
    local = _local(model, axes)
    budget = config.evaluation.memory_budget_mb * 2**20
    choices = max(1, shape.choices)
    together = -(-choices // scoring.choice_parts(local, rows, choices, length, budget))
    parts = scoring.token_parts(local, rows * together, length, budget)
    return 4 * local.vocab_size * rows * together * -(-length // parts)


# --------------------------------------------------------------------------------------------
# A run
# --------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Costs:
    """What a run needs.

    Attributes:
      parameters: of the backbone.
      trainable: of the adapter.
      backbone_bytes: of the backbone's weights, as they are loaded.
      adapter_bytes: of the adapter's file, float32.
      train_flops: of one example's part of a step, with what the backward pass recomputes.
      forward_flops: of scoring one example; half a step's where texts are written.
      tokens: of an example: input and choices.
      memory: remat policy -> a device's memory in the train step.
      scoring: a device's memory in the evaluation; None where texts are written.
    """

    parameters: int
    trainable: int
    backbone_bytes: int
    adapter_bytes: int
    train_flops: float
    forward_flops: float
    tokens: int
    memory: dict[str, DeviceMemory]
    scoring: DeviceMemory | None


def costs(
    config: Experiment,
    backbone: Backbone,
    shape: BatchShape,
    axes: Axes = Axes(1, 1, 1),
    policies: tuple[str, ...] = tuple(REMAT),
    platform: str = "tpu",
) -> Costs:
    """The costs of an experiment.

    Args:
      backbone: abstract, from ``programs.outline``; its remat policy is the one FLOPs are told of.
      shape: the batch, of all devices together.
      axes: the mesh.
      policies: the remat policies whose memory is told.
      platform: as in :func:`device_memory`.

    Raises:
      InputError: the method, the answer or the batch do not fit the backbone or the mesh.
    """
    stored = programs.stored_shapes(backbone, programs.method_for(config, backbone, shape))
    trained, _ = tree.split_fixed(stored)
    per_example = axes.data * axes.fsdp * axes.model / shape.batch
    own, ranked = backbone.config.remat, shape.choices > 0
    flops, memory = {}, {}
    for policy in dict.fromkeys((own, *policies)):
        of_policy = backbone.replace(remat=policy)
        traced = trace("train", config, of_policy, shape, axes)
        if policy == own:
            flops["train"] = jaxpr_flops(traced) * per_example
        if policy in policies:
            memory[policy] = _device_memory(
                "train", config, of_policy, shape, axes, platform, traced
            )
    scores = None
    if ranked:
        traced = trace("score", config, backbone, shape, axes)
        flops["score"] = jaxpr_flops(traced) * per_example
        scores = _device_memory("score", config, backbone, shape, axes, platform, traced)
    answers = shape.choices * shape.choice_length if ranked else shape.target_length
    return Costs(
        parameters=tree.count(backbone.params),
        trainable=tree.count(trained),
        backbone_bytes=tree.size_in_bytes(backbone.params),
        adapter_bytes=tree.size_in_bytes(stored),
        train_flops=flops["train"],
        forward_flops=flops.get("score", flops["train"] / 2),
        tokens=shape.input_length + answers,
        memory=memory,
        scoring=scores,
    )


def summary(config: Experiment, backbone: Backbone, shape: BatchShape, axes: Axes) -> str:
    """One line for a run that is about to start: a device's memory in its train step, by part.

    Args:
      backbone: abstract or loaded; only shapes are read.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), backbone.params)
    outline = dataclasses.replace(backbone, params=shapes)
    memory = device_memory("train", config, outline, shape, axes)
    return (
        f"needs about {size(memory.total)} a device: weights {size(memory.weights)}, adapter and "
        f"optimiser {size(memory.adapter + memory.optimizer)}, activations "
        f"{size(memory.activations)} (remat {backbone.config.remat}), working "
        f"{size(memory.working)}"
    )


def size(count: float) -> str:
    """Bytes in words: "1.25 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:,.2f} GiB"
