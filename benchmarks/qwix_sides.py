"""The two sides of benchmarks.qwix_lora: one LoRA step on the encoder of a T5 v1.1.

qwix's side is a flax.nnx module, a module a layer, to which qwix adds the factors, as its users do.
Ours is the library's own encoder and train step. The loss is the mean squared distance of the
hidden states to given ones: no head, no decoder, nothing but the stack.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jobs


def prepare(settings: dict[str, Any]):
    """A function that makes one step and returns its loss; versions."""
    arrays = np.load(Path(settings["folder"]) / "qwix.npz")
    make = {"peft_jax": _ours, "qwix": _qwix}[settings["library"]]
    return make(settings, {name: arrays[name] for name in arrays})


def config_of(size: str):
    """The model's sizes, without dropout."""
    import peft_jax as pj

    config = jobs.toy_config() if size == "toy" else pj.backbone_config(size)
    return dataclasses.replace(config, dropout=0.0)


def write_inputs(folder: Path, size: str) -> None:
    """Weights of the encoder, LoRA factors, tokens and target states, under our names."""
    import jax

    import peft_jax as pj
    from peft_jax import tree

    config = config_of(size)
    backbone = pj.init_backbone(config, jax.random.key(0), name=size)
    rng = np.random.default_rng(0)
    shape = jobs.shapes(size)["train"]
    batch = (shape.inputs, shape.input_length)
    arrays: dict[str, Any] = {
        "tokens": rng.integers(jobs.VOCABULARY_START, config.vocab_size, batch, dtype=np.int32),
        "target": rng.normal(size=(*batch, config.d_model)).astype(np.float32),
    }
    for name in ("query", "value"):
        drawn = rng.normal(size=(config.encoder_layers, config.d_model, jobs.LORA_RANK))
        arrays[f"lora_a/{name}"] = (drawn * config.d_model**-0.5).astype(np.float32)
    for path, leaf in tree.flatten(backbone.params).items():
        if path.startswith(("encoder", "token_embedder")):
            arrays[path] = np.asarray(leaf)
    np.savez(folder / "qwix.npz", **arrays)


# ------------------------------------------------------------------------------------------- ours


def _ours(settings: dict[str, Any], arrays: dict[str, np.ndarray]):
    import jax
    import jax.numpy as jnp
    import jaxlib
    import optax

    import peft_jax as pj
    from peft_jax import train, transformer, tree
    from peft_jax.objectives import Objective

    config = dataclasses.replace(config_of(settings["size"]), **settings.get("run", {}))
    held = {p: jnp.asarray(x) for p, x in arrays.items() if p.startswith(("encoder", "token_"))}
    outline = pj.abstract_backbone(config)
    backbone = dataclasses.replace(outline, params=tree.unflatten(held))
    targets = "encoder/layers/attention/(query|value)"
    method = pj.lora(jobs.LORA_RANK, targets=targets)
    flat = tree.flatten(method.init(jax.random.key(0), backbone))
    for name in ("query", "value"):
        path = f"encoder/layers/attention/{name}/lora_a"
        flat[path] = jnp.asarray(arrays[f"lora_a/{name}"]).astype(flat[path].dtype)

    def value(config, params, batch, key, counts):
        hidden = transformer.encode(config, params, batch, key).hidden.astype(jnp.float32)
        loss = jnp.sum((hidden - batch["target"]) ** 2) / counts
        return loss, {"loss": loss}

    objective = Objective(lambda config, batch: batch["target"].size, value)
    optimizer = optax.adamw(jobs.LEARNING_RATE, weight_decay=jobs.WEIGHT_DECAY)
    update = train.make_train_step(backbone, method, optimizer, objective)
    state = [train.init_state(tree.unflatten(flat), optimizer, jax.random.key(0))]
    batch = {"encoder_input_tokens": arrays["tokens"], "target": arrays["target"]}
    batch = {name: jnp.asarray(array) for name, array in batch.items()}

    def step() -> float:
        state[0], metrics = update(state[0], backbone.params, batch)
        return float(metrics["loss"])

    return step, {
        "jax": jax.__version__, "jaxlib": jaxlib.__version__, "peft_jax": pj.__version__
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- qwix


def relative_buckets(length: int, buckets: int, distance: int) -> np.ndarray:
    """Bucket of the place of a key seen from a query, [S, S]: Raffel et al. 2020, section 2.1."""
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    far = np.maximum(np.abs(offset), 1)
    spread = np.log(far / exact) / math.log(distance / exact) * (half - exact)
    near = np.abs(offset)
    bucket = np.where(near < exact, near, np.minimum(exact + spread.astype(int), half - 1))
    return np.where(offset > 0, half + bucket, bucket)


def encoder_module(config, arrays: dict[str, np.ndarray]):
    """A T5 v1.1 encoder as a flax.nnx module with these weights."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    heads, width = config.num_heads, config.d_kv
    rngs = nnx.Rngs(0)

    def linear(path: str, layer: int):
        kernel = arrays[f"encoder/layers/{path}/kernel"][layer]
        made = nnx.Linear(*kernel.shape, use_bias=False, rngs=rngs)
        made.kernel.value = jnp.asarray(kernel)
        return made

    class Norm(nnx.Module):
        def __init__(self, scale: np.ndarray):
            self.scale = nnx.Param(jnp.asarray(scale))

        def __call__(self, x):
            mean = jnp.mean(x * x, axis=-1, keepdims=True)
            return x * jax.lax.rsqrt(mean + config.norm_epsilon) * self.scale.value

    class Attention(nnx.Module):
        def __init__(self, layer: int):
            self.query, self.key, self.value, self.out = (
                linear(f"attention/{name}", layer) for name in ("query", "key", "value", "out")
            )

        def __call__(self, x, bias):
            def split(y):
                return y.reshape(*y.shape[:2], heads, width)

            scores = jnp.einsum("bqhk,bshk->bhqs", split(self.query(x)), split(self.key(x)))
            weights = jax.nn.softmax(scores + bias, axis=-1)
            seen = jnp.einsum("bhqs,bshk->bqhk", weights, split(self.value(x)))
            return self.out(seen.reshape(*x.shape[:2], heads * width))

    class FeedForward(nnx.Module):
        def __init__(self, layer: int):
            self.wi_0, self.wi_1, self.wo = (
                linear(f"mlp/{name}", layer) for name in ("wi_0", "wi_1", "wo")
            )

        def __call__(self, x):
            return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))

    class Layer(nnx.Module):
        def __init__(self, layer: int):
            self.attention, self.mlp = Attention(layer), FeedForward(layer)
            self.attention_norm, self.mlp_norm = (
                Norm(arrays[f"encoder/layers/{name}/scale"][layer])
                for name in ("attention_norm", "mlp_norm")
            )

        def __call__(self, x, bias):
            x = x + self.attention(self.attention_norm(x), bias)
            return x + self.mlp(self.mlp_norm(x))

    class Encoder(nnx.Module):
        def __init__(self):
            self.embedding = nnx.Param(jnp.asarray(arrays["token_embedder/embedding"]))
            self.bias = nnx.Param(jnp.asarray(arrays["encoder/relative_bias/embedding"]))
            self.layers = nnx.List([Layer(i) for i in range(config.encoder_layers)])
            self.final_norm = Norm(arrays["encoder/final_norm/scale"])

        # qwix finds the module that a product belongs to by a variable called self.
        def __call__(self, tokens, buckets):
            x = self.embedding.value[tokens]
            bias = jnp.transpose(self.bias.value[buckets], (2, 0, 1))[None]
            for layer in self.layers:
                x = layer(x, bias)
            return self.final_norm(x)

    return Encoder()


def _qwix(settings: dict[str, Any], arrays: dict[str, np.ndarray]):
    import flax
    import jax
    import jax.numpy as jnp
    import optax
    import qwix
    from flax import nnx

    config = config_of(settings["size"])
    tokens, target = jnp.asarray(arrays["tokens"]), jnp.asarray(arrays["target"])
    distances = (config.relative_buckets, config.relative_max_distance)
    buckets = jnp.asarray(relative_buckets(tokens.shape[1], *distances))
    provider = qwix.LoraProvider(
        module_path=r".*attention/(query|value)", rank=jobs.LORA_RANK, alpha=jobs.LORA_RANK
    )
    model = qwix.apply_lora_to_model(
        encoder_module(config, arrays), provider, tokens, buckets, rngs=nnx.Rngs(0)
    )
    for number, layer in enumerate(model.layers):
        for name in ("query", "value"):
            factor = getattr(layer.attention, name).kernel_lora_a
            given = jnp.asarray(arrays[f"lora_a/{name}"][number])
            factor.value = given.reshape(factor.value.shape)
    graph, trained, frozen = nnx.split(model, nnx.LoRAParam, ...)
    optimizer = optax.adamw(jobs.LEARNING_RATE, weight_decay=jobs.WEIGHT_DECAY)

    # Split and merged outside the step: faster than nnx.jit, which does it in every call.
    def update(trained, moments, frozen, tokens, target):
        def loss(trained):
            hidden = nnx.merge(graph, trained, frozen)(tokens, buckets)
            return jnp.mean((hidden - target) ** 2)

        value, gradients = jax.value_and_grad(loss)(trained)
        updates, moments = optimizer.update(gradients, moments, trained)
        return optax.apply_updates(trained, updates), moments, value

    compiled = jax.jit(update, donate_argnums=(0, 1))
    state = [trained, optimizer.init(trained)]

    def step() -> float:
        *state[:], value = compiled(*state, frozen, tokens, target)
        return float(value)

    return step, {"flax": flax.__version__, "qwix": qwix.__version__}
