"""Times batches that mix the adapters of many tasks: one machine, one run, the same weights.

    python -m benchmarks.bank --cores 0 --json benchmarks/bank.json

A forward pass over a batch of 32 inputs, each with the adapter of its own task out of a bank of 8,
64 or 1,000, against the same pass with one adapter for all; for LoRA also against PEFT's mixed
batch (``adapter_names``), whose logits are compared first. As in benchmarks.peer the libraries are
in processes of their own on the same cores, one at a time, and all variants of a method take turns
in every round. What is measured is the processor time of a step: on a core that others use too it
says what the work costs, and is the time of the step where the core is free.

``forms`` times one projection with three ways of computing a mixed LoRA batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jobs, peer

SIZE = "t5_v1_1_small"
BATCH, INPUT_LENGTH, TARGET_LENGTH = 32, 64, 8
MIXED = 8
TASKS = (MIXED, 64, 1000)
# PEFT walks in every layer over the adapters that a batch names.
PEER_TASKS = (MIXED, 64)
METHODS = ("ia3", "lora", "prompt", "prefix", "adapter")
PROMPT_LENGTH, PREFIX_LENGTH, BOTTLENECK = 20, 10, 8
TOLERANCE = 1e-4


class Case:
    """A method under which the workers run; what ``peer.Worker`` wants to know of a case."""

    job, dtype = "bank", "float32"

    def __init__(self, method: str):
        self.method = method
        self.name = f"bank of {method}"


class Worker(peer.Worker):
    module = "benchmarks.bank_sides"


def write_inputs(folder: Path, size: str, batch: int = BATCH, length: int = INPUT_LENGTH) -> None:
    """A random backbone as a Hugging Face folder, LoRA factors of MIXED tasks, tokens, task ids."""
    import dataclasses

    import jax

    import peft_jax as pj
    from peft_jax.backbones.t5 import hugging_face_rules

    config = jobs.toy_config() if size == "toy" else pj.backbone_config(size)
    config = dataclasses.replace(config, dropout=0.0)
    pj.save_backbone(folder / "model", pj.init_backbone(config, jax.random.key(0), name=size))
    rng = np.random.default_rng(0)
    factors = {}
    for rule in hugging_face_rules(config):
        module = rule.ours.removesuffix("/kernel")
        if not module.endswith(("attention/query", "attention/value")):
            continue
        names = [name for _, name in rule.names(config.encoder_layers)]
        for name, task in itertools.product(names, range(MIXED)):
            factors[f"{task}/{name}/A"] = rng.normal(size=(jobs.LORA_RANK, config.d_model)) * 0.05
            factors[f"{task}/{name}/B"] = rng.normal(size=(config.inner, jobs.LORA_RANK)) * 0.05
    np.savez(folder / "lora.npz", **{n: x.astype(np.float32) for n, x in factors.items()})
    np.savez(
        folder / "batch.npz",
        inputs=rng.integers(3, config.vocab_size, (batch, length), dtype=np.int32),
        targets=rng.integers(3, config.vocab_size, (batch, TARGET_LENGTH), dtype=np.int32),
        # As many different tasks as there are inputs, where the bank has them.
        **{f"tasks_{n}": (np.arange(batch) * 7919) % n for n in TASKS},
    )


# --------------------------------------------------------------------------------------- a method


def measure(method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Interleaved times of one adapter for all inputs and of banks; with PEFT's for LoRA."""
    libraries = ["peft_jax", "peft"] if method == "lora" else ["peft_jax"]
    workers, started = {}, {}
    try:
        for library in libraries:
            sizes = options.tasks if library == "peft_jax" else options.peer_tasks
            workers[library] = Worker(library, Case(method), folder, options.cores, tasks=sizes)
            started[library] = workers[library].answer()
        difference = None
        if method == "lora":
            ours, theirs = (np.asarray(started[name]["mixed"]) for name in libraries)
            difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
            if not difference <= TOLERANCE:
                raise SystemExit(f"mixed LoRA batches differ by {difference:.2g}")
        variants = [(name, v) for name in libraries for v in started[name]["variants"]]
        times: dict[str, list[float]] = {f"{name} {v}": [] for name, v in variants}
        others = []
        for turn in range(options.rounds):
            for name, variant in variants[:: 1 if turn % 2 else -1]:
                time.sleep(0.05)
                busy = peer.Busy()
                answer = workers[name].ask(do="time", variant=variant, seconds=options.seconds)
                times[f"{name} {variant}"].append(answer["cpu"] / len(answer["seconds"]))
                others.append(busy.others(answer["cpu"]))
    finally:
        for worker in workers.values():
            worker.__exit__()
    return {
        "method": method,
        "difference": difference,
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "rounds": times,
        "bytes": started["peft_jax"]["bytes"],
        "others": statistics.median(others),
        "load": os.getloadavg()[0],
        "versions": {k: v for s in started.values() for k, v in s["versions"].items()},
    }


def ratio(result: dict[str, Any], one: str, other: str) -> tuple[float, float, float]:
    """Median, least and largest over rounds of (time of ``one`` / time of ``other``)."""
    pairs = zip(result["rounds"][one], result["rounds"][other], strict=True)
    quotients = [a / b for a, b in pairs]
    return statistics.median(quotients), min(quotients), max(quotients)


def show(result: dict[str, Any]) -> str:
    lines = [f"{result['method']}: difference {result['difference']}, load {result['load']:.1f}"]
    for name, seconds in result["seconds"].items():
        library = name.split()[0]
        middle, low, high = ratio(result, name, f"{library} one")
        lines.append(f"  {name:16s} {1e3 * seconds:8.1f} ms  {middle:.3f} [{low:.3f}-{high:.3f}]")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- forms


def gathered(x, a, b, ids):
    """Each input's own factors, then a batched product: what ``layers.linear`` does."""
    return (x @ a[ids]) @ b[ids]


def grouped(x, a, b, ids):
    """Inputs sorted by task, then one ragged product over the groups."""
    import jax
    import jax.numpy as jnp

    order = jnp.argsort(ids)
    rows = x[order].reshape(-1, x.shape[-1])
    sizes = jnp.bincount(ids, length=a.shape[0]).astype(jnp.int32) * x.shape[1]
    y = jax.lax.ragged_dot(jax.lax.ragged_dot(rows, a, sizes), b, sizes)
    return y.reshape(*x.shape[:2], -1)[jnp.argsort(order)]


def concatenated(x, a, b, ids):
    """All tasks' factors side by side, the products of other tasks masked away."""
    import jax.numpy as jnp

    tasks, inner, rank = a.shape
    low = x @ jnp.moveaxis(a, 0, 1).reshape(inner, tasks * rank)
    mine = jnp.repeat(ids[:, None] == jnp.arange(tasks), rank, axis=1)
    return jnp.where(mine[:, None], low, 0) @ b.reshape(tasks * rank, -1)


FORMS = {"gather": gathered, "grouped": grouped, "concatenated": concatenated}


def measure_forms(tasks: int, options: argparse.Namespace) -> dict[str, Any]:
    """One projection [512, 384] with a mixed LoRA: forward, and with the gradient.

    Compared first: all forms compute the same. Times are medians over rounds in which they take
    turns; "kernel" is the frozen projection alone.
    """
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) * 0.05, jnp.float32)

    x, w = draw(BATCH, INPUT_LENGTH, 512), draw(512, 384)
    a, b = draw(tasks, 512, jobs.LORA_RANK), draw(tasks, jobs.LORA_RANK, 384)
    ids = jnp.asarray((np.arange(BATCH) * 7919) % tasks, jnp.int32)
    runs: dict[str, Any] = {"kernel forward": jax.jit(lambda x, a, b: x @ w)}
    wanted = None
    for name, form in FORMS.items():
        forward = jax.jit(lambda x, a, b, form=form: x @ w + form(x, a, b, ids))
        y = np.asarray(forward(x, a, b))
        wanted = y if wanted is None else wanted
        np.testing.assert_allclose(y, wanted, atol=1e-4)
        runs[f"{name} forward"] = forward

        def loss(x, a, b, forward=forward):
            return jnp.sum(forward(x, a, b) ** 2)

        runs[f"{name} gradient"] = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    # A thousand groups take the slower forms up to half a minute.
    for turn in range(1 + (options.rounds if tasks < 1000 else 1)):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            began, count = time.process_time(), 0
            while not count or time.process_time() - began < options.seconds / 4:
                jax.block_until_ready(runs[name](x, a, b))
                count += 1
            if turn:  # the first round compiles
                times[name].append((time.process_time() - began) / count)
    return {
        "tasks": tasks,
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "rounds": times,
    }


# ------------------------------------------------------------------------------------ the whole run


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usable = sorted(os.sched_getaffinity(0))
    parser.add_argument("--size", default=SIZE, help="a T5 configuration, or toy")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--tasks", nargs="+", type=int, default=list(TASKS))
    parser.add_argument("--peer-tasks", nargs="*", type=int, default=list(PEER_TASKS))
    parser.add_argument("--cores", nargs="+", type=int, default=usable[-1:])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="least time of a turn")
    parser.add_argument("--no-forms", action="store_true", help="skip the forms of a mixed LoRA")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = arguments(argv)
    results: dict[str, Any] = {"machine": peer.machine(options.cores), "size": options.size}
    results |= {"methods": [], "forms": []}
    print(json.dumps(results["machine"]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder, options.size)
        for method in options.methods:
            results["methods"].append(measure(method, folder, options))
            print(show(results["methods"][-1]), flush=True)
            peer.write_results(options.json, results)
    if not options.no_forms:
        os.sched_setaffinity(0, options.cores)
        for tasks in options.tasks:
            results["forms"].append(measure_forms(tasks, options))
            seconds = results["forms"][-1]["seconds"]
            milliseconds = {name: round(1e3 * t, 2) for name, t in seconds.items()}
            print(tasks, milliseconds, flush=True)
            peer.write_results(options.json, results)
    return results


if __name__ == "__main__":
    main()
