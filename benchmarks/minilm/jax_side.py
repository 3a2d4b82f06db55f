"""Ours: the library as its users call it."""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

import peft_jax as pj
from benchmarks.minilm import data, plan
from peft_jax import objectives, optimizers, tokenizer, train, tree
from peft_jax.methods import from_spec


def prepare(threads: int) -> dict[str, str]:
    """Called once, before the first run; the versions."""
    del threads  # XLA takes as many as the process may run on
    import jaxlib

    return {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "peft_jax": pj.__version__}


@functools.cache
def _tokenizer():
    return tokenizer.load_tokenizer(data.model_folder())


def encode(text: str, pair: str | None, limit: int) -> tuple[list[int], list[int]]:
    return _tokenizer().input_ids(text, pair, max_length=limit)


@functools.cache
def _backbone(dropout: float) -> pj.Backbone:
    # torch recomputes nothing in the backward pass either.
    return pj.load_backbone(data.model_folder(), dropout=dropout, remat="none")


@functools.cache
def _programs(dataset: str, method: str, dropout: float, learning_rate: float, steps: int):
    """The method, its optimiser, the compiled step: the same for every seed."""
    backbone = _backbone(dropout)
    labels = len(plan.DATASETS[dataset].labels)
    tuning = pj.compose(
        from_spec(plan.METHODS[method].ours),
        pj.classification_head(labels, std=data.HEAD_STD),
    )
    optimizer = optimizers.make_optimizer(
        optimizers.OptimizerConfig(
            name="adamw", learning_rate=learning_rate, schedule="linear", total_steps=steps,
            warmup_steps=plan.warmup(steps), weight_decay=plan.WEIGHT_DECAY,
            clip_norm=plan.CLIP_NORM,
        )
    )  # fmt: skip
    step = train.make_train_step(backbone, tuning, optimizer, objectives.head_objective())
    return tuning, optimizer, step


@jax.jit
def _predict(backbone: pj.Backbone, batch) -> jax.Array:
    """One program for all methods that fold: their parameters are then of one form."""
    return jnp.argmax(backbone.classify(backbone.params, batch), axis=-1)


def _drawn(adapter, seed: int):
    """The adapter with the leaves that are drawn at random taken from the shared draws."""

    def leaf(path: str, own: jax.Array) -> jax.Array:
        if path.endswith("classifier/out/kernel"):
            return jnp.asarray(data.head_weights(seed, *own.shape))
        if path.endswith("/lora_a"):
            projection = path.split("/")[-2]
            width = own.shape[1]
            layers = [data.lora_factor(seed, i, projection, width) for i in range(len(own))]
            return jnp.asarray(np.stack(layers))
        return own

    return tree.map_with_path(leaf, adapter)


def _inputs(batch: data.Batch) -> dict[str, jax.Array]:
    names = {
        "tokens": "encoder_input_tokens",
        "mask": "encoder_mask",
        "types": "encoder_token_types",
        "label": "label",
    }
    return {theirs: jnp.asarray(batch[ours]) for ours, theirs in names.items()}


def train_run(run: plan.Run, batches: list[data.Batch]):
    """Trains; the model, the losses, the seconds of every step, the trained parameters."""
    backbone = _backbone(run.dropout)
    tuning, optimizer, step = _programs(
        run.dataset, run.method, run.dropout, run.learning_rate, run.steps
    )
    adapter = _drawn(tuning.init(jax.random.key(run.seed), backbone), run.seed)
    state = train.init_state(adapter, optimizer, jax.random.key(run.seed))
    losses, seconds = [], []
    for batch in batches:
        start = time.perf_counter()
        state, metrics = step(state, backbone.params, _inputs(batch))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
    if tuning.fold is not None:
        params = tuning.fold(backbone.params, state.stored)
    else:
        params = pj.merge(backbone.params, tuning.bind(state.stored))
    model = dataclasses.replace(backbone, params=params)
    return model, losses, seconds, pj.count(adapter)


def predict(model: pj.Backbone, batch: data.Batch) -> np.ndarray:
    """The most likely label of every row."""
    return np.asarray(_predict(model, _inputs(batch)))
