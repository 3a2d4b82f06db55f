"""The programs of a run on abstract arguments: what it would compile, without weights or data.

They are the run's own train step, scorer and decoding loop, made by the same functions; only the
arguments are ``jax.ShapeDtypeStruct`` with shardings. A mesh may be one of devices that are not
there (``peft_jax.plan.topology``). Nothing is allocated, so T0-11B fits on a laptop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from peft_jax import constraints, sharding
from peft_jax.answers import Answer, find_answer, make_objective, make_score
from peft_jax.backbones import CONFIGS, TINY, Backbone, abstract_backbone
from peft_jax.config import Experiment, ModelConfig, make_method
from peft_jax.decoding import Decoding, generate
from peft_jax.errors import InputError
from peft_jax.evaluation import Scorer, make_scorer
from peft_jax.methods import Method, classification_head, compose
from peft_jax.methods.merging import merge
from peft_jax.objectives import Objective
from peft_jax.optimizers import make_optimizer
from peft_jax.train import init_state, make_train_step
from peft_jax.tree import Params


class BatchShape(NamedTuple):
    """The shape of a batch.

    Attributes:
      batch: rows, of all devices together.
      input_length: tokens of an input, S.
      choices: answer choices of a row, C (classes of a head); 0: the answers are written.
      choice_length: tokens of a choice.
      target_length: tokens of a written answer, in training and in decoding.
    """

    batch: int
    input_length: int = 256
    choices: int = 4
    choice_length: int = 16
    target_length: int = 64


class Program(NamedTuple):
    """A compiled function's name, itself, and the arguments that it would have."""

    name: str
    function: Any
    arguments: tuple[Any, ...]

    def lower(self) -> jax.stages.Lowered:
        return self.function.lower(*self.arguments)


# --------------------------------------------------------------------------------------------
# What is planned
# --------------------------------------------------------------------------------------------
def outline(config: Experiment, *, accelerated: bool = True) -> Backbone:
    """The backbone that an experiment names, abstract, with the dtypes that a run would give it.

    Args:
      accelerated: whether "auto" dtypes are those of an accelerator (bfloat16).

    Raises:
      InputError: neither a named configuration nor a folder with a checkpoint's configuration.
    """
    from peft_jax.backbones import formats

    auto = "bfloat16" if accelerated else "float32"
    model = config.model
    name = config.backbone
    if name in CONFIGS and not Path(name).exists():
        found = CONFIGS[name]
    else:
        found = formats.read_config(TINY if name == "tiny" else Path(name))
    run = {"activation_dtype": auto} | run_fields(model)
    dtype = jnp.dtype(auto if model.dtype == "auto" else model.dtype)
    backbone = abstract_backbone(found, dtype, Path(name).name).replace(**run)
    return backbone if model.quantize == "none" else backbone.quantize(model.quantize)


def run_fields(model: ModelConfig) -> dict[str, Any]:
    """Fields of a backbone's configuration that an experiment changes; what is "auto" is not in."""
    run: dict[str, Any] = {"remat": model.remat}
    if model.activation_dtype != "auto":
        run["activation_dtype"] = model.activation_dtype
    if model.dropout is not None:
        run["dropout"] = model.dropout
    return run


def answer_to(config: Experiment, backbone: Backbone, shape: BatchShape) -> Answer:
    """How the experiment answers batches of this shape."""
    return find_answer(config.answer, backbone, config.method, ranks=shape.choices > 0)


def method_for(config: Experiment, backbone: Backbone, shape: BatchShape) -> Method:
    """The experiment's method, with a head of as many classes as there are choices if it needs."""
    if answer_to(config, backbone, shape) != "head":
        return make_method(config)
    return method_with_head(config, backbone, shape.choices)


def method_with_head(config: Experiment, backbone: Backbone, labels: int) -> Method:
    """The experiment's method, and a classification head for so many classes."""
    method = make_method(config)
    if "full" in config.method and backbone.config.num_labels == labels:
        return method  # trains the checkpoint's own head
    return compose(method, classification_head(labels))


# --------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------
def placed(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes with where each array lies."""
    return jax.tree.map(
        lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, shardings
    )


def frozen_arguments(backbone: Backbone, mesh: jax.sharding.Mesh) -> Params:
    """The backbone's parameters, split as ``sharding.place`` splits them."""
    return placed(backbone.params, sharding.shardings(backbone.params, backbone.config, mesh))


def state_arguments(
    backbone: Backbone,
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> Any:
    """The ``train.TrainState`` before the first step."""
    stored = stored_shapes(backbone, method)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda s, k: init_state(s, optimizer, k), stored, key)
    return placed(state, sharding.state_shardings(state, backbone.config, mesh))


def stored_shapes(backbone: Backbone, method: Method) -> Params:
    """The shapes of what a method trains and keeps."""
    return jax.eval_shape(method.init, jax.random.key(0), backbone)


def batch_arguments(
    backbone: Backbone, answer: Answer, shape: BatchShape, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as the samplers make it for this answer.

    Raises:
      InputError: the mesh does not divide the batch.
    """
    ways = sharding.batch_ways(mesh)
    if shape.batch % ways:
        raise InputError(
            f"a batch of {shape.batch} does not divide over data x fsdp = {ways} of the mesh"
        )
    config, (b, s, c) = backbone.config, shape[:3]
    if answer == "text":
        length = shape.target_length + (0 if config.encoder_layers else s)
        targets = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
        sizes: dict[str, tuple[int, ...]] = dict.fromkeys(targets, (b, length))
        if config.encoder_layers:
            sizes["encoder_input_tokens"] = (b, s)
    else:
        one_token = answer == "verbalizer"
        sizes = {
            "encoder_input_tokens": (b, s),
            "choices": (b, c, 1 if one_token else shape.choice_length),
            "choice_mask": (b, c),
            "label": (b,),
        }
    at = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(
            size, jnp.bool_ if name == "choice_mask" else jnp.int32, sharding=at
        )
        for name, size in sizes.items()
    }


# --------------------------------------------------------------------------------------------
# Programs
# --------------------------------------------------------------------------------------------
def objective_for(config: Experiment, backbone: Backbone, answer: Answer) -> Objective:
    """What an experiment minimises, where its model answers so."""
    return make_objective(
        answer,
        backbone,
        **dataclasses.asdict(config.loss),
        memory_budget=config.evaluation.memory_budget_mb * 2**20,
    )


def scorer_for(
    config: Experiment,
    backbone: Backbone,
    method: Method | None,
    answer: Answer,
    mesh: jax.sharding.Mesh,
) -> Scorer:
    """The compiled scorer of an experiment's evaluations; see ``evaluation.make_scorer``."""
    score = make_score(
        answer,
        backbone,
        length_normalization=config.evaluation.length_normalization,
        memory_budget=config.evaluation.memory_budget_mb * 2**20,
    )
    return make_scorer(backbone, method, mesh=mesh, score=score)


def train_program(
    config: Experiment, backbone: Backbone, mesh: jax.sharding.Mesh, shape: BatchShape
) -> Program:
    """The train step: ``train.make_train_step`` for the experiment's method, loss and optimiser.

    Args:
      backbone: abstract, from :func:`outline`.
      mesh: from ``sharding.make_mesh``.

    Raises:
      InputError: the method, the answer or the batch do not fit the backbone or the mesh.
    """
    answer = answer_to(config, backbone, shape)
    method = method_for(config, backbone, shape)
    optimizer = make_optimizer(config.optimizer.over(config.training.steps), method)
    objective = objective_for(config, backbone, answer)
    step = make_train_step(
        backbone,
        method,
        optimizer,
        objective,
        mesh=mesh,
        accumulate=config.training.accumulate,
    )
    arguments = (
        state_arguments(backbone, method, optimizer, mesh),
        frozen_arguments(backbone, mesh),
        batch_arguments(backbone, answer, shape, mesh),
    )
    return Program("train", step, arguments)


def score_program(
    config: Experiment, backbone: Backbone, mesh: jax.sharding.Mesh, shape: BatchShape
) -> Program:
    """The scorer of an evaluation: ``evaluation.make_scorer``; see :func:`train_program`."""
    answer = answer_to(config, backbone, shape)
    method = method_for(config, backbone, shape)
    scorer = scorer_for(config, backbone, method, answer, mesh)
    arguments = (
        _adapter_arguments(backbone, method, mesh),
        frozen_arguments(backbone, mesh),
        batch_arguments(backbone, answer, shape, mesh),
    )
    return Program("score", scorer, arguments)


def decode_program(
    config: Experiment, backbone: Backbone, mesh: jax.sharding.Mesh, shape: BatchShape
) -> Program:
    """Writing texts: ``decoding.generate`` up to ``shape.target_length`` tokens.

    A run compiles its two parts, reading the input and the loop, one after the other; here they are
    one program.
    """
    if backbone.config.kind == "encoder":
        raise InputError(f"{backbone.name!r} is an encoder and writes no texts")
    method = method_for(config, backbone, shape)
    decoding = dataclasses.replace(config.decoding, max_length=shape.target_length)
    tokens = batch_arguments(backbone, "choices", shape, mesh)["encoder_input_tokens"]
    arguments: tuple[Any, ...] = (
        _adapter_arguments(backbone, method, mesh),
        frozen_arguments(backbone, mesh),
        {"encoder_input_tokens": tokens},
    )
    if decoding.samples:
        key = jax.eval_shape(lambda: jax.random.key(0))
        arguments += (placed(key, sharding.replicated(mesh)),)
    return Program("decode", jax.jit(_make_writer(backbone, method, mesh, decoding)), arguments)


def _make_writer(backbone: Backbone, method: Method, mesh, decoding: Decoding) -> Callable:
    backbone = dataclasses.replace(backbone, params={})

    def write(adapter: Params, frozen: Params, batch, key=None):
        with constraints.on_mesh(mesh):
            params = merge(frozen, method.bind(adapter))
            return generate(backbone, params, batch, decoding, key)

    return write


def _adapter_arguments(backbone: Backbone, method: Method, mesh: jax.sharding.Mesh) -> Params:
    stored = stored_shapes(backbone, method)
    return placed(stored, sharding.shardings(stored, backbone.config, mesh))


PROGRAMS: dict[str, Callable[..., Program]] = {
    "train": train_program,
    "score": score_program,
    "decode": decode_program,
}
"""Name -> what makes the program."""
