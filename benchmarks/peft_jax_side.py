"""Ours: the library's own jobs, as its users call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jobs


def prepare(settings: dict[str, Any]):
    """A function that runs one step and returns what both libraries must agree on; versions."""
    import jax
    import jax.numpy as jnp
    import jaxlib

    import peft_jax as pj

    folder = Path(settings["folder"])
    backbone = pj.load_backbone(
        folder / "model", jnp.dtype(settings["dtype"]), dropout=0.0, **settings.get("run", {})
    )
    method = pj.ia3() if settings["method"] == "ia3" else pj.lora(jobs.LORA_RANK)
    adapter = method.init(jax.random.key(0), backbone)
    if settings["method"] == "lora":
        adapter = _lora_factors(adapter, backbone.config, np.load(folder / "lora.npz"))
    job = settings["job"]
    data = {name: jnp.asarray(a) for name, a in np.load(folder / f"{job}.npz").items()}
    make = {"train": _train, "tfew": _tfew, "rank": _rank, "decode": _decode}[job]
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "peft_jax": pj.__version__}
    return make(backbone, method, adapter, data), versions


def matrix_product(rows: int, inner: int, columns: int, dtype: str):
    """A function that multiplies [rows, inner] by [inner, columns] once, as a layer does."""
    import jax
    import jax.numpy as jnp

    a, b = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    product(a, b).block_until_ready()
    return lambda: product(a, b).block_until_ready()


def extra_device_memory(step) -> dict[str, int]:
    """Bytes by which the peak on the device exceeds what lies there between steps.

    XLA's allocator cannot be asked to forget its peak, which is over the whole process: loading the
    weights one after the other stays below what a step takes.
    """
    import jax

    step()
    found = jax.devices()[0].memory_stats()
    before, peak = found["bytes_in_use"], found["peak_bytes_in_use"]
    return {"before": before, "peak": peak, "extra": peak - before}


def _lora_factors(adapter, config, factors):
    import jax.numpy as jnp

    from peft_jax import tree
    from peft_jax.backbones.t5 import hugging_face_rules

    flat = tree.flatten(adapter)
    for rule in hugging_face_rules(config):
        path = rule.ours.removesuffix("kernel") + "lora_a"
        if path in flat:
            layers = [factors[name].T for _, name in rule.names(config.encoder_layers)]
            flat[path] = jnp.asarray(np.stack(layers))
    return tree.unflatten(flat)


def _stepper(backbone, method, adapter, batch, objective):
    import jax
    import optax

    from peft_jax import train

    optimizer = optax.adamw(jobs.LEARNING_RATE, weight_decay=jobs.WEIGHT_DECAY)
    update = train.make_train_step(backbone, method, optimizer, objective)
    held = [train.init_state(adapter, optimizer, jax.random.key(0))]

    def step() -> float:
        held[0], metrics = update(held[0], backbone.params, batch)
        return float(metrics["loss"])

    return step


def _train(backbone, method, adapter, data):
    from peft_jax import objectives, transformer

    targets = data["choices"][:, 0]
    batch = {
        "encoder_input_tokens": data["inputs"],
        "decoder_input_tokens": transformer.shift_right(backbone.config, targets),
        "decoder_target_tokens": targets,
    }
    return _stepper(backbone, method, adapter, batch, objectives.lm_objective())


def _choices(data):
    import jax.numpy as jnp

    return {
        "encoder_input_tokens": data["inputs"],
        "choices": data["choices"],
        "choice_mask": jnp.ones(data["choices"].shape[:2], bool),
        "label": data["label"],
    }


def _tfew(backbone, method, adapter, data):
    from peft_jax import objectives

    return _stepper(backbone, method, adapter, _choices(data), objectives.tfew_objective())


def _rank(backbone, method, adapter, data):
    import jax

    import peft_jax as pj

    batch = _choices(data)
    params = pj.merge(backbone.params, method.bind(adapter))
    score = jax.jit(lambda params, batch: pj.score_choices(backbone, params, batch))

    def step() -> list[list[float]]:
        return np.asarray(score(params, batch)).tolist()

    return step


def _decode(backbone, method, adapter, data):
    import peft_jax as pj

    batch = {"encoder_input_tokens": data["inputs"]}
    length = data["choices"].shape[-1]
    params = pj.merge(backbone.params, method.bind(adapter))

    def step() -> list[list[int]]:
        return np.asarray(pj.greedy(backbone, params, batch, length)).tolist()

    return step
