"""What XLA compiled: FLOPs of a step against a forward pass, and compile time against depth.

    python -m benchmarks.flops --json flops.json

A step on a frozen backbone should cost two forward passes: the forward, and the gradient with
respect to activations. A third, the gradient with respect to frozen weights, must not be there.
Nothing is run and no weight is allocated; the FLOPs are the same on every machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax

import peft_jax as pj
from benchmarks import jobs
from peft_jax import objectives, train

METHODS = {"ia3": pj.ia3, "lora": lambda: pj.lora(jobs.LORA_RANK), "full": pj.full}
DEPTHS = (2, 24)


def _abstract(size: str, depth: int, remat: str):
    config = jobs.toy_config() if size == "toy" else pj.backbone_config(size)
    config = dataclasses.replace(
        config, encoder_layers=depth, decoder_layers=depth, remat=remat, dropout=0.0
    )
    return pj.abstract_backbone(config)


def _batch(size: str) -> dict[str, Any]:
    shape = jobs.shapes(size)["train"]
    inputs = jax.ShapeDtypeStruct((shape.inputs, shape.input_length), jnp.int32)
    targets = jax.ShapeDtypeStruct((shape.inputs, shape.target_length), jnp.int32)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": targets,
        "decoder_target_tokens": targets,
    }


def lower_forward(size: str, depth: int):
    """The lowered forward pass, the adapter-less backbone's."""
    backbone = _abstract(size, depth, "none")
    return jax.jit(backbone.logits).lower(backbone.params, _batch(size))


def lower_step(size: str, method: pj.Method, depth: int, remat: str):
    """The lowered train step: forward, backward and AdamW."""
    backbone = _abstract(size, depth, remat)
    step, state = make_step(backbone, method, objectives.lm_objective())
    return step.lower(state, backbone.params, _batch(size))


def make_step(backbone: pj.Backbone, method: pj.Method, objective: objectives.Objective):
    """The train step with AdamW, and the shapes of its state."""
    optimizer = optax.adamw(jobs.LEARNING_RATE)
    stored = jax.eval_shape(method.init, jax.random.key(0), backbone)
    state = jax.eval_shape(lambda s: train.init_state(s, optimizer, jax.random.key(0)), stored)
    return train.make_train_step(backbone, method, optimizer, objective), state


def flops(lowered) -> float:
    """FLOPs of the compiled program, which must have no loop: XLA counts a loop's body once."""
    analysis = lowered.compile().cost_analysis()
    return analysis["flops"]


def flop_ratios(size: str, depth: int) -> dict[str, float]:
    """FLOPs of a step / FLOPs of a forward pass, per method, nothing recomputed."""
    unrolled = functools.partial(jax.lax.scan, unroll=True)
    with mock.patch.object(jax.lax, "scan", unrolled):
        forward = flops(lower_forward(size, depth))
        steps = {n: flops(lower_step(size, m(), depth, "none")) for n, m in METHODS.items()}
    return {name: step / forward for name, step in steps.items()}


def compile_seconds(size: str, repeats: int = 3) -> dict[int, float]:
    """Seconds to trace, lower and compile a LoRA step, the least of several, per depth."""
    method = METHODS["lora"]()
    seconds: dict[int, float] = {}
    for _ in range(repeats):
        for depth in DEPTHS:
            jax.clear_caches()
            start = time.perf_counter()
            lower_step(size, method, depth, "dots").compile()
            taken = time.perf_counter() - start
            seconds[depth] = min(seconds.get(depth, taken), taken)
    return seconds


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="t5_v1_1_small", help="a configuration, or toy")
    parser.add_argument("--depth", type=int, default=4, help="layers a stack for the FLOPs")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(argv)
    ratios = flop_ratios(options.size, options.depth)
    for name, ratio in ratios.items():
        print(f"{options.size}: FLOPs of a step with {name:5s} / forward  {ratio:.3f}")
    seconds = compile_seconds(options.size)
    shallow, deep = DEPTHS
    for depth, taken in seconds.items():
        print(f"{options.size}: compile, {depth}+{depth} layers  {taken:.2f} s")
    print(f"{options.size}: compile time ratio  {seconds[deep] / seconds[shallow]:.2f}")
    results = {"size": options.size, "flops": ratios, "compile_seconds": seconds}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
