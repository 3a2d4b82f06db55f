"""A backbone and a method as a model of T5X, so that what runs ``t5x.train`` trains an adapter.

    python -m t5x.train --gin_file=configs/t5x/finetune.gin --gin_file=configs/t5x/ia3.gin ...

T5X optimises and saves what a train state has as its parameters: here the method's trainable tree
and nothing else. The backbone's frozen weights travel beside it, as a collection of T5X's
``flax_mutables`` that no gradient is taken of, no optimizer sees and no checkpoint holds; they are
read from the backbone's own files whenever a state is made or restored, each device its part.

This file alone imports T5X (google-research/t5x, Roberts et al. 2022), which is no package of PyPI;
docs/t5x.md says what it needs. Everything here is named in the gin files of ``configs/t5x``.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.core
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from flax.linen import partitioning as flax_partitioning
from t5x import decoding, losses, metrics, models, optimizers, train_state, utils

from peft_jax import scoring, sharding, transformer, tree
from peft_jax.adapter import load_adapter
from peft_jax.backbones import (
    TINY,
    Backbone,
    abstract_backbone,
    formats,
    load_backbone,
    native,
)
from peft_jax.errors import InputError
from peft_jax.methods import Method, merge
from peft_jax.objectives import Objective
from peft_jax.optimizers import OptimizerConfig, learning_rate_at, make_optimizer
from peft_jax.paths import as_path
from peft_jax.tree import Params

FROZEN = "frozen"
"""The collection of variables with the backbone's weights."""
FIXED = tree.FIXED
"""The collection with a method's constants: saved, never trained; most methods have none."""

# What a dimension counts, in T5X's logical axes.
_LOGICAL = {
    "vocabulary": "vocab",
    "width": "embed",
    "heads": "joined_kv",
    "kv_heads": "joined_kv",
    "hidden": "mlp",
}
_LAYERS = "layers"
# For what no table of ours names: names that T5X's tables know and do not split over a mesh, first
# those along which its Adafactor factors nothing. A leaf may not have a name twice.
_WHOLE = ("relpos_buckets", "layer_norm_scale", "stack", "mlp_activations")


def logical_axes(path: str, rank: int) -> tuple[str, ...]:
    """T5X's names for the dimensions of a leaf of ours, frozen or trained.

    >>> logical_axes("encoder/layers/mlp/wo/kernel", 3)
    ('layers', 'mlp', 'embed')
    """
    counted = next((names for end, names in sharding.RULES if tree.ends_with(end, path)), ())
    counted = counted if len(counted) <= rank else ()
    names = [None] * (rank - len(counted)) + [_LOGICAL.get(name or "") for name in counted]
    if names and names[0] is None and "layers" in path.split("/"):
        names[0] = _LAYERS
    whole = iter(_WHOLE)
    return tuple(next(whole) if name is None else name for name in names)


# --------------------------------------------------------------------------------------------
# The model
# --------------------------------------------------------------------------------------------
class AdapterModel(models.BaseTransformerModel):
    """A frozen encoder-decoder and a method, as T5X trains, evaluates and decodes a model.

    Batches are those of seqio's ``EncDecFeatureConverter``; with an objective that ranks choices,
    such as ``objectives.tfew_objective()``, those of our ``RankClassificationFeatureConverter``.

    Args:
      backbone: what ``load_backbone`` takes: a folder, or "tiny".
      method: such as ``methods.ia3()``.
      optimizer_def: T5X's, or :func:`optimizer`.
      input_vocabulary, output_vocabulary: seqio's; by default the backbone's own.
      decode_fn: T5X's ``decoding.beam_search`` or ``temperature_sample``, with their own options.
      objective: what is minimised; None: T5X's cross-entropy with the three options below.
      label_smoothing, z_loss, loss_normalizing_factor: as in T5X's own models.
      adapter: an adapter file of ours to start from; its method must be ``method``.
      dtype: of the frozen weights; None: bfloat16 on an accelerator, float32 on a CPU.
      backbone_config: for a T5X checkpoint that no gin file describes, see ``load_backbone``.
      dropout: rate while training.
      num_decodes, return_all_decodes: defaults of :meth:`predict_batch_with_aux`.
    """

    def __init__(
        self,
        backbone: str | Path,
        method: Method,
        optimizer_def: optimizers.OptimizerDefType,
        input_vocabulary: Any = None,
        output_vocabulary: Any = None,
        decode_fn: models.DecodeFnCallable = decoding.beam_search,
        objective: Objective | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_normalizing_factor: float | str | None = None,
        adapter: str | None = None,
        dtype: Any = None,
        backbone_config: str | None = None,
        dropout: float = 0.0,
        num_decodes: int = 1,
        return_all_decodes: bool = False,
        **run: Any,
    ):
        outline = _outline(backbone, backbone_config, {"dropout": dropout, **run})
        config = outline.config
        if config.kind != "encoder_decoder":
            raise InputError(
                f"backbone {os.fspath(backbone)!r} is a {config.family}, which has no encoder and "
                "decoder; the models that T5X trains here have both"
            )
        super().__init__(
            module=None,
            input_vocabulary=input_vocabulary or _vocabulary(outline),
            output_vocabulary=output_vocabulary or input_vocabulary or _vocabulary(outline),
            optimizer_def=optimizer_def,
            decode_fn=decode_fn,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            loss_normalizing_factor=loss_normalizing_factor,
        )
        self.config, self.method, self.objective = config, method, objective
        self._source, self._adapter, self._backbone_config = backbone, adapter, backbone_config
        self._dtype = load_dtype(dtype)
        self._decodes = (num_decodes, return_all_decodes)
        self.FEATURE_CONVERTER_CLS = _feature_converter(config, objective)

    # ---------------------------------------------------------------------------- variables
    @functools.cached_property
    def outline(self) -> Backbone:
        """The backbone without its weights."""
        return abstract_backbone(self.config, self._dtype, str(self._source))

    def load_frozen(self, mesh: jax.sharding.Mesh | None = None) -> Params:
        """The backbone's weights; on a mesh every process reads the parts of its devices."""
        named = self._backbone_config
        return load_backbone(self._source, self._dtype, config=named, mesh=mesh).params

    def variables(self, rng: jax.Array, frozen: Params) -> dict[str, Any]:
        """The collections of variables before the first step, without the weights.

        Args:
          rng: for what the method draws.
          frozen: the backbone's weights, which some methods start from; arrays or traced.
        """
        backbone = dataclasses.replace(self.outline, params=frozen)
        stored = self.method.init(rng, backbone)
        if self._adapter is not None:
            stored = _started(self._adapter, self.outline, self.method, stored)
        trainable, fixed = tree.split_fixed(stored)
        found: dict[str, Any] = {"params": trainable, "params_axes": _axes(trainable)}
        if fixed:
            found |= {FIXED: fixed, f"{FIXED}_axes": _axes(fixed)}
        return found

    def get_abstract_variables(self, rng, input_shapes=None, input_types=None):
        """All collections, the weights as zeros: for shapes alone."""
        del input_shapes, input_types
        frozen = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.outline.params)
        return flax.core.freeze({**self.variables(rng, frozen), FROZEN: frozen})

    def get_initial_variables(self, rng, input_shapes, input_types=None):
        """All collections, with the weights read from the backbone's files.

        Raises:
          InputError: it is compiled, as T5X's own TrainStateInitializer does.
        """
        del input_shapes, input_types
        if isinstance(rng, jax.core.Tracer):
            raise InputError(
                "a frozen backbone's weights cannot be drawn: set train_state_initializer_cls of "
                "train, evaluate or infer to peft_jax.t5x_bridge.AdapterStateInitializer"
            )
        frozen = self.load_frozen()
        return flax.core.freeze({**self.variables(rng, frozen), FROZEN: frozen})

    def merged(self, params: Any, flax_mutables: Any) -> Params:
        """What the transformer reads: the weights with the method's leaves."""
        mutables = flax.core.unfreeze(flax_mutables or {})
        if FROZEN not in mutables:
            raise InputError(
                "the backbone's weights are not in the train state: set "
                "train_state_initializer_cls to peft_jax.t5x_bridge.AdapterStateInitializer"
            )
        stored = tree.join(flax.core.unfreeze(params), mutables.get(FIXED, {}))
        return merge(mutables[FROZEN], self.method.bind(stored))

    # ---------------------------------------------------------------------------- training
    def _compute_logits(self, params, batch, dropout_rng=None):
        """Logits [B, T, V] float32; ``params`` is what :meth:`merged` gives."""
        return transformer.logits(self.config, params, dict(batch), dropout_rng)

    def loss_fn(self, params, batch, dropout_rng, flax_mutables=None):
        """The loss, and (metrics, flax_mutables) as T5X takes them from such a model."""
        merged = self.merged(params, flax_mutables)
        if self.objective is None:
            loss, found = super().loss_fn(merged, batch, dropout_rng)
        else:
            counts = self.objective.counts(self.config, batch)
            loss, values = self.objective.value(self.config, merged, batch, dropout_rng, counts)
            found = _step_metrics(values, len(batch["encoder_input_tokens"]))
        return loss, (found, flax_mutables)

    def eval_fn(self, params, batch, flax_mutables=None):
        """The loss without dropout, and its metrics."""
        loss, (found, _) = self.loss_fn(params, batch, None, flax_mutables)
        return loss, found

    # ---------------------------------------------------------------------------- scoring
    def score_batch(self, params, batch, return_intermediates=False, flax_mutables=None):
        """Log-probability [B] float32 of each target; of choices, of the labelled one."""
        merged = self.merged(params, flax_mutables)
        if "choices" in batch:
            if return_intermediates:
                raise InputError("return_intermediates: choices have none; score targets")
            scores = self._score_choices(merged, batch, 0.0)
            return jnp.take_along_axis(scores, batch["label"].reshape(-1, 1), axis=1)[:, 0]
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        logits = self._compute_logits(merged, batch)
        one_hot = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
        of_tokens = -losses.cross_entropy_with_logits(logits, one_hot, z_loss=0.0)[0] * weights
        scores = jnp.sum(of_tokens, axis=-1)
        if not return_intermediates:
            return scores
        held = {"target_tokens": targets, "loss_weights": weights, "token_scores": of_tokens}
        return scores, {"decoder": {name: (array,) for name, array in held.items()}}

    def _score_choices(self, merged, batch, length_normalization):
        backbone = dataclasses.replace(self.outline, params=merged)
        return scoring.score_choices(
            backbone, merged, dict(batch), length_normalization=length_normalization
        )

    # ---------------------------------------------------------------------------- prediction
    def predict_batch(self, params, batch, rng=None, flax_mutables=None):
        """Tokens [B, T] int32; see :meth:`predict_batch_with_aux`."""
        return self.predict_batch_with_aux(params, batch, rng, flax_mutables=flax_mutables)[0]

    def predict_batch_with_aux(
        self,
        params,
        batch,
        rng=None,
        decoder_params=None,
        return_all_decodes=None,
        num_decodes=None,
        prompt_with_targets=False,
        flax_mutables=None,
    ):
        """The tokens that ``decode_fn`` writes, and ``scores``, as T5X's EncoderDecoderModel does.

        Of choices the best one is the prediction, by the mean log-probability of its tokens.

        Returns:
          [B, T] int32 and {"scores": [B]}; with ``return_all_decodes`` [B, n, T] and [B, n], the
          best last.
        """
        merged = transformer.without_tails(self.merged(params, flax_mutables))
        if "choices" in batch:
            scores = self._score_choices(merged, batch, 1.0)
            best = jnp.argmax(scores, axis=1)[:, None]
            tokens = jnp.take_along_axis(batch["choices"], best[..., None], axis=1)[:, 0]
            return tokens, {"scores": jnp.take_along_axis(scores, best, axis=1)[:, 0]}
        default_number, default_all = self._decodes
        number = default_number if num_decodes is None else num_decodes
        given = batch["decoder_input_tokens"]
        options = {"eos_id": self.output_vocabulary.eos_id or 1, **(decoder_params or {})}
        if rng is not None:
            if options.get("decode_rng") is not None:
                raise InputError("decoder_params holds a decode_rng, and rng is given too")
            options["decode_rng"] = rng
        forced = given * (given != options["eos_id"]) if prompt_with_targets else given * 0
        cache, step = self._decoder(merged, batch, given.shape[1])
        tokens, scores = self.decode_fn(
            inputs=forced,
            cache=cache,
            tokens_to_logits=step,
            num_decodes=number,
            cache_offset=1,
            **options,
        )
        if default_all if return_all_decodes is None else return_all_decodes:
            return tokens, {"scores": scores}
        return tokens[:, -1, :], {"scores": scores[:, -1]}

    def _decoder(self, merged: Params, batch, length: int):
        """The empty cache of a batch, layers in front, and T5X's ``tokens_to_logits``."""
        config = self.config
        inputs = {"encoder_input_tokens": batch["encoder_input_tokens"]}
        context = transformer.context(config, merged, inputs)
        rows = len(context.start)
        places = transformer.cache_length(config, merged, length)
        cache = transformer.init_cache(config, rows, places)
        first = places - length
        if first:
            # A soft prompt's rows are read once; the start token behind them is read again.
            start = context.start[:, None]
            cache = transformer.decode_step(config, merged, context, start, 0, cache)[1]

        def step(state: decoding.DecodingState):
            place = jnp.ravel(state.cur_index)[0]  # all sequences are at the same place
            tokens = state.cur_token
            start = jnp.repeat(context.start, len(tokens) // rows)[:, None]
            tokens = jnp.where(place == 0, start, tokens)
            held = transformer.Cache(state.cache["cached_key"], state.cache["cached_value"])
            hidden, held = transformer.decode_step(
                config, merged, context, tokens, first + place, held
            )
            logits = transformer.head(config, merged, hidden)[:, 0]
            return logits, {"cached_key": held.key, "cached_value": held.value}

        return {"cached_key": cache.key, "cached_value": cache.value}, step


def load_dtype(dtype: Any) -> Any:
    """A dtype of weights; None: bfloat16 on an accelerator, float32 on a CPU."""
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(dtype)


def _outline(source: Any, named: str | None, run: Mapping[str, Any]) -> Backbone:
    """The backbone without its weights, run as ``load_backbone`` would have it."""
    folder = TINY if str(source) == "tiny" else as_path(source)
    accelerated = jax.default_backend() != "cpu"
    fields = {"activation_dtype": "bfloat16" if accelerated else "float32", **run}
    outline = abstract_backbone(formats.read_config(folder, named), name=folder.name)
    outline = outline.replace(**fields)
    return dataclasses.replace(outline, vocabulary=native.local_vocabulary(folder))


def _vocabulary(outline: Backbone) -> Any:
    from peft_jax.tasks.vocabularies import load_vocabulary

    if outline.vocabulary is None:
        raise InputError(
            f"backbone {outline.name} has no vocabulary: give input_vocabulary, such as T5X's "
            "@seqio.SentencePieceVocabulary()"
        )
    return load_vocabulary(outline.vocabulary)


def _feature_converter(config: transformer.Config, objective: Objective | None) -> Callable:
    from peft_jax.tasks import converters

    # T5X says whether to pack; choices never are.
    def converter(pack: bool = False, use_custom_packing_ops: bool = False):
        if objective is not None:
            return converters.RankClassificationFeatureConverter(config.pad_id)
        if config.pad_id == config.decoder_start_id == 0:
            return converters.EncDecFeatureConverter(
                pack=pack, use_custom_packing_ops=use_custom_packing_ops
            )
        return converters.TextToTextFeatureConverter(
            config.pad_id, config.decoder_start_id, pack=pack
        )

    return converter


def _started(path: str, backbone: Backbone, method: Method, drawn: Params) -> Params:
    """The stored tree of an adapter file, which must have the leaves of the method's own."""
    stored, _ = load_adapter(path, backbone)
    wanted, held = tree.flatten(drawn), tree.flatten(stored)
    shapes = [{path: x.shape for path, x in flat.items()} for flat in (wanted, held)]
    wrong = [p for p in {**wanted, **held} if shapes[0].get(p) != shapes[1].get(p)]
    if wrong:
        raise InputError(f"{path} is no adapter of method {method.spec['name']!r}: {wrong[0]!r}")
    return stored


def _axes(params: Params) -> Params:
    """Flax's metadata that names the dimensions of every leaf."""
    flat = {
        f"{path}_axes": flax_partitioning.AxisMetadata(names=logical_axes(path, leaf.ndim))
        for path, leaf in tree.flatten(params).items()
    }
    return tree.unflatten(flat)


def _step_metrics(values: Mapping[str, jax.Array], examples: int) -> dict[str, Any]:
    """An objective's metrics as T5X adds them up: means over the steps."""
    found: dict[str, Any] = {
        name: metrics.AveragePerStep(total=value) for name, value in values.items()
    }
    return found | {
        "timing/seqs_per_second": metrics.TimeRate.from_model_output(numerator=examples),
        "timing/steps_per_second": metrics.StepsPerTime.from_model_output(),
        "examples": clu_metrics.Average(total=jnp.float32(examples), count=jnp.float32(1)),
    }


# --------------------------------------------------------------------------------------------
# The train state
# --------------------------------------------------------------------------------------------
class _BesideWeights:
    """A train state whose checkpoints leave out the backbone's weights."""

    flax_mutables: Any
    load: Any

    def state_dict(self):
        state = dict(super().state_dict())  # type: ignore[misc]
        kept = {n: x for n, x in state.pop("flax_mutables", {}).items() if n != FROZEN}
        return {**state, "flax_mutables": kept} if kept else state

    def restore_state(self, state_dict):
        restored = super().restore_state(state_dict)  # type: ignore[misc]
        frozen, load = self.flax_mutables.get(FROZEN), self.load
        # T5X restores shapes and axes of meshes in the same way as arrays.
        arrays = [isinstance(x, jax.Array | np.ndarray) for x in jax.tree.leaves(restored.params)]
        if load is not None and all(arrays):
            frozen, load = load(), None
        mutables = {n: x for n, x in restored.flax_mutables.items() if n != FROZEN}
        if frozen is not None:
            mutables[FROZEN] = frozen
        return restored.replace(flax_mutables=flax.core.freeze(mutables), load=load)

    def as_logical_axes(self):
        return _beside_weights(super().as_logical_axes())  # type: ignore[misc]


class AdapterTrainState(_BesideWeights, train_state.FlaxOptimTrainState):
    """A state of training: the trainable tree, its optimizer, and the weights beside them.

    Attributes:
      load: makes the weights; None once they are there.
    """

    load: Callable[[], Any] | None = flax.struct.field(pytree_node=False, default=None)


class AdapterInferenceState(_BesideWeights, train_state.InferenceState):
    """The same without an optimizer."""

    load: Callable[[], Any] | None = flax.struct.field(pytree_node=False, default=None)


def _beside_weights(state: Any, frozen: Any = None, load: Callable[[], Any] | None = None):
    """T5X's state as one of ours, with the weights (or their axes, or shapes) in it."""
    trains = isinstance(state, train_state.FlaxOptimTrainState)
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    mutables = {n: x for n, x in fields["flax_mutables"].items() if n != FROZEN}
    if frozen is not None:
        mutables[FROZEN] = frozen
    fields |= {"flax_mutables": flax.core.freeze(mutables), "load": load}
    return (AdapterTrainState if trains else AdapterInferenceState)(**fields)


class AdapterStateInitializer(utils.TrainStateInitializer):
    """Makes train states of an :class:`AdapterModel`, from scratch or from a checkpoint.

    For ``train_state_initializer_cls`` of ``t5x.train``, ``t5x.eval`` and ``t5x.infer``.
    """

    global_train_state_shape: Any
    train_state_axes: Any

    def __init__(self, optimizer_def, init_fn, input_shapes, partitioner, input_types=None):
        model = init_fn.__self__
        if not isinstance(model, AdapterModel):
            raise InputError(f"AdapterStateInitializer: {type(model).__name__} is no AdapterModel")
        self._model = model
        self._optimizer_def = optimizer_def
        super().__init__(
            optimizer_def, model.get_abstract_variables, input_shapes, partitioner, input_types
        )
        shapes, axes = self.global_train_state_shape, self.train_state_axes
        self._check_divided(shapes, axes)
        # The axes of a state as it is drawn, before the weights are put beside it.
        self._drawn_axes = axes
        self._frozen_axes = flax.core.freeze(_mesh_axes(model.outline.params, partitioner))
        self.train_state_axes = _beside_weights(axes, self._frozen_axes)
        self.global_train_state_shape = _beside_weights(
            shapes, shapes.flax_mutables[FROZEN], self.load_frozen
        )

    def _check_divided(self, shapes, axes) -> None:
        """Raises InputError for a trained leaf that the mesh cannot split as T5X's rules say."""
        mesh = self._partitioner.mesh
        flat, specs = tree.flatten(shapes.params), tree.flatten(axes.params)
        for path, leaf in flat.items():
            for size, axis in zip(leaf.shape, specs[path] or (), strict=False):
                ways = _ways(mesh, axis)
                if size % ways:
                    raise InputError(
                        f"{path} {leaf.shape} does not divide over {axis} ({ways} devices) of the "
                        "partitioner's mesh; take another num_partitions or another rule"
                    )

    def load_frozen(self):
        """The backbone's weights where the partitioner's rules put them."""
        mesh = self._partitioner.mesh
        frozen = flax.core.freeze(self._model.load_frozen(mesh))
        placed = jax.tree.map(
            lambda spec: jax.sharding.NamedSharding(mesh, spec),
            self._frozen_axes,
            is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
        )
        return jax.device_put(frozen, placed)

    def from_scratch(self, init_rng):
        """A state before the first step, the trainable tree drawn on its devices."""
        frozen = self.load_frozen()

        def draw(rng, frozen):
            drawn = self._model.variables(rng, flax.core.unfreeze(frozen))
            variables = flax.core.freeze(drawn)
            if self._optimizer_def:
                return train_state.FlaxOptimTrainState.create(self._optimizer_def, variables)
            return train_state.InferenceState.create(variables)

        drawn = self._partitioner.partition(
            draw,
            in_axis_resources=(None, self._frozen_axes),
            out_axis_resources=self._drawn_axes,
        )(init_rng, frozen)
        return _beside_weights(drawn, frozen)


def _ways(mesh: jax.sharding.Mesh, axis: Any) -> int:
    """Devices that a dimension is split over."""
    ways = 1
    for name in (axis,) if isinstance(axis, str) else axis or ():
        ways *= mesh.shape[name]
    return ways


def _mesh_axes(params: Params, partitioner: Any) -> Params:
    """Where the partitioner's rules put the weights; what does not divide is not split."""
    mesh = partitioner.mesh

    def one(path, leaf):
        names = logical_axes(path, leaf.ndim)
        spec = flax_partitioning.logical_to_mesh_axes(names, partitioner.logical_axis_rules)
        fits = [
            axis if not size % _ways(mesh, axis) else None
            for size, axis in zip(leaf.shape, spec or (), strict=True)
        ]
        return jax.sharding.PartitionSpec(*fits)

    return tree.map_with_path(one, params)


# --------------------------------------------------------------------------------------------
# Optimizers
# --------------------------------------------------------------------------------------------
class AdapterOptimizer(optimizers.OptaxWrapper):
    """Any optax transformation as an optimizer of T5X, T-Few's Adafactor among them.

    T5X's own wrapper knows the states of optax alone. Here what is kept of a leaf in the leaf's
    shape lies as the leaf does, and the rest is whole on every device.
    """

    def init_state(self, params):
        return super().init_state(flax.core.unfreeze(params))

    def apply_gradient(self, hyper_params, params, state, grads):
        new, state = super().apply_gradient(
            hyper_params, flax.core.unfreeze(params), state, flax.core.unfreeze(grads)
        )
        return (flax.core.freeze(new) if isinstance(params, flax.core.FrozenDict) else new), state

    def derive_logical_axes(self, optimizer, param_logical_axes):
        shapes = tree.flatten(flax.core.unfreeze(optimizer.target))
        axes = tree.flatten(flax.core.unfreeze(param_logical_axes))

        def one(path, leaf):
            name = sharding.leaf_path(path)
            like = shapes.get(name)
            return axes[name] if like is not None and like.shape == leaf.shape else None

        kept = jax.tree_util.tree_map_with_path(one, optimizer.state.param_states)
        state = optimizers.OptimizerState(step=None, param_states=kept)
        return optimizer.replace(state=state, target=param_logical_axes)


def optimizer(config: OptimizerConfig, method: Method | None = None) -> AdapterOptimizer:
    """Our optimizer for ``optimizer_def``; its learning rate is the configuration's schedule.

    Args:
      config: T-Few's for (IA)³ by default; ``total_steps`` is what ``train`` is given.
      method: what is trained, see ``optimizers.make_optimizer``.
    """
    return AdapterOptimizer(make_optimizer(config, method))


def learning_rate(config: OptimizerConfig) -> Callable[[jax.Array], jax.Array]:
    """The schedule of :func:`optimizer`, for the ``learning_rate_fn`` that T5X's logs ask."""
    return lambda step: learning_rate_at(config, step)


# --------------------------------------------------------------------------------------------
# Tasks
# --------------------------------------------------------------------------------------------
def task(
    name: str,
    vocabulary: str | os.PathLike,
    directory: str | Path | None = None,
    ranks: bool = False,
) -> str:
    """Registers a task of ours with seqio; returns the name that ``DatasetConfig`` takes.

    Args:
      name, directory: as ``peft_jax.tasks.registry.register`` takes them.
      vocabulary: the backbone's folder, or "tiny".
      ranks: whether rows have their answer choices, which a T-Few objective needs.
    """
    from peft_jax.tasks import registry

    where = TINY if str(vocabulary) == "tiny" else vocabulary
    return registry.register(name, vocabulary=where, directory=directory, ranks=ranks)[0]
