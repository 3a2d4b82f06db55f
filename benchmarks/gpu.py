"""The GPU suite: T5 v1.1 large and XL in bfloat16, against transformers + PEFT on the same GPU.

    python -m benchmarks.gpu                          # writes benchmarks/gpu.json
    python -m benchmarks.gpu --device cpu --sizes toy # that it runs, where no GPU is

Train step, T-Few step, rank classification and decoding, with random weights. Both libraries run in
processes of their own on one GPU, one at a time in alternating rounds, after their first losses
have agreed. *Utilisation* is what a step's matrix products would take at the rate that one large
product reaches on this GPU, divided by the step's time; the products are those that a step on a
frozen backbone needs (forward, and the gradient of the activations), with nothing recomputed:
whatever is computed beside them lowers it. Decoding is bound by memory, and has tokens/s instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import flops, jobs, peer
from benchmarks.jobs import Case, Shape

RESULTS = Path(__file__).parent / "gpu.json"
SIZES = ["t5_v1_1_large", "t5_v1_1_xl"]
SHAPES = {
    "train": Shape(32, 256, 1, 32),
    "tfew": Shape(16, 256, 4, 16),
    "rank": Shape(64, 256, 4, 16),
    "decode": Shape(32, 256, 1, 64),
}
# Rows, inner and columns of the product that is taken for the GPU's peak; a small one on a CPU.
PEAK_PRODUCT = {"gpu": [8192, 8192, 8192], "cpu": [256, 256, 256]}


def shapes(size: str) -> dict[str, Shape]:
    return jobs.TOY_SHAPES if size == "toy" else SHAPES


def needed_flops(case: Case) -> float | None:
    """FLOPs of the matrix products that a step needs, nothing recomputed; None: of decoding."""
    import jax
    import jax.numpy as jnp

    import peft_jax as pj
    from peft_jax import objectives
    from peft_jax.program_flops import jaxpr_flops

    if case.job == "decode":
        return None
    config = jobs.toy_config() if case.size == "toy" else pj.backbone_config(case.size)
    config = dataclasses.replace(config, remat="none", dropout=0.0)
    backbone = pj.abstract_backbone(config)
    method = flops.METHODS[case.method]()
    b, s, c, t = dataclasses.astuple(case.shape)

    def of(*shape: int, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    batch = {"encoder_input_tokens": of(b, s)}
    if case.job == "train":
        batch |= {"decoder_input_tokens": of(b, t), "decoder_target_tokens": of(b, t)}
        objective = objectives.lm_objective()
    else:
        batch |= {
            "choices": of(b, c, t), "choice_mask": of(b, c, dtype=jnp.bool_), "label": of(b)
        }  # fmt: skip
        objective = objectives.tfew_objective(memory_budget=1 << 60)
    if case.job == "rank":
        score = jax.jit(lambda p, x: pj.score_choices(backbone, p, x, memory_budget=1 << 60))
        return jaxpr_flops(score.trace(backbone.params, batch).jaxpr.jaxpr)
    step, state = flops.make_step(backbone, method, objective)
    return jaxpr_flops(step.trace(state, backbone.params, batch).jaxpr.jaxpr)


def measure(case: Case, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Parity, memory and alternating times of one case."""
    training = case.job in ("train", "tfew")
    common = {
        "warmup": 2 if training else 0,
        "device": "cuda" if options.device == "gpu" else "cpu",
        "product": PEAK_PRODUCT[options.device],
    }
    libraries = ["peft_jax"] if options.no_peer else ["peft", "peft_jax"]
    workers: dict[str, peer.Worker] = {}
    try:
        for library in libraries:
            run = {"run": options.run} if library == "peft_jax" else {}
            cores = sorted(os.sched_getaffinity(0))
            workers[library] = peer.Worker(library, case, folder, cores, **common, **run)
        started = {library: worker.answer() for library, worker in workers.items()}
        difference = None
        if not options.no_peer:
            difference = peer.check_parity(case, *(one["results"] for one in started.values()))
        memory = {library: worker.ask(do="memory") for library, worker in workers.items()}
        times: dict[str, list[float]] = {library: [] for library in workers}
        for _ in range(options.rounds):
            for library, worker in workers.items():
                time.sleep(peer.SETTLE_SECONDS)
                answer = worker.ask(do="time", seconds=options.seconds)
                times[library].append(statistics.median(answer["seconds"]))
        peak = {
            library: worker.ask(do="product", seconds=1.0) for library, worker in workers.items()
        }
    finally:
        for worker in workers.values():
            worker.__exit__()
    return {
        "case": dataclasses.asdict(case),
        "difference": difference,
        "rounds": times,
        "seconds": {library: statistics.median(rounds) for library, rounds in times.items()},
        "first_step_seconds": {library: one["first_s"] for library, one in started.items()},
        "memory": memory,
        "needed_flops": needed_flops(case),
        "product_flops_per_second": peak,
        "versions": {k: v for one in started.values() for k, v in one["versions"].items()},
    }


def utilisation(result: dict[str, Any], library: str = "peft_jax") -> float | None:
    """Model FLOPs utilisation against the measured peak; None of decoding."""
    if result["needed_flops"] is None:
        return None
    rate = result["needed_flops"] / result["seconds"][library]
    return rate / max(result["product_flops_per_second"].values())


def ratio(result: dict[str, Any]) -> float | None:
    """The peer's time divided by ours, the median over rounds."""
    if "peft" not in result["rounds"]:
        return None
    pairs = zip(result["rounds"]["peft"], result["rounds"]["peft_jax"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def find_device(device: str) -> str:
    """The GPU's name.

    Raises:
      SystemExit: jax sees no GPU.
    """
    import jax

    found = jax.devices()[0]
    if device == "gpu" and found.platform != "gpu":
        raise SystemExit(
            f"jax sees no GPU here, only {found.device_kind}; install peft_jax[cuda], or give "
            "--device cpu --sizes toy to see that the suite runs"
        )
    return found.device_kind


def show(result: dict[str, Any]) -> str:
    case, seconds = Case(**result["case"]), result["seconds"]["peft_jax"]
    used, faster = utilisation(result), ratio(result)
    extra = result["memory"]["peft_jax"]["extra"] / 2**30
    return (
        f"{case.name:44s} {1e3 * seconds:9.1f} ms"
        + (f"  utilisation {used:.0%}" if used is not None else "")
        + (f"  {faster:.2f}x peft" if faster is not None else "")
        + f"  {extra:.2f} GiB"
    )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="configurations, or toy")
    parser.add_argument("--jobs", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--no-peer", action="store_true", help="ours alone, without torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a turn")
    parser.add_argument(
        "--run", type=json.loads, default={}, help='fields of our Config, e.g. {"remat": "none"}'
    )
    parser.add_argument("--json", type=Path, default=RESULTS, help="write the results here")
    options = parser.parse_args(argv)
    name = find_device(options.device)
    cores = sorted(os.sched_getaffinity(0))
    results: dict[str, Any] = {"device": name, "machine": peer.machine(cores), "cases": []}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            jobs.write_inputs(folder, size, shapes(size), options.dtype)
            for job, method in jobs.JOBS:
                if job not in options.jobs:
                    continue
                case = Case(size, job, method, options.dtype, shapes(size)[job])
                results["cases"].append(measure(case, folder, options))
                print(show(results["cases"][-1]), flush=True)
                peer.write_results(options.json, results)
    return results


if __name__ == "__main__":
    main()
