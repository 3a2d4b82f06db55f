"""Steps/s on 1, 2, 4 and 8 forced host devices, under jit over a mesh and under pmap.

    python -m benchmarks.devices                      # writes benchmarks/devices.json

The devices share the processor's cores, so nothing becomes faster: what is seen is what splitting
one batch costs, and what the two forms differ by. Every number of devices is a process of its own;
rounds rotate over all. The losses of the first steps must be those of one device.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jobs, peer

RESULTS = Path(__file__).parent / "devices.json"
COUNTS = (1, 2, 4, 8)
FORMS = ("jit", "pmap")
LAYERS = 2
TOLERANCE = 1e-5


def prepare(size: str, form: str):
    """A train step on all devices of this process, which returns its loss."""
    import dataclasses

    import jax
    import optax

    import peft_jax as pj
    from peft_jax import objectives, sharding, train, transformer

    config = jobs.toy_config() if size == "toy" else pj.backbone_config(size)
    config = dataclasses.replace(config, dropout=0.0, encoder_layers=LAYERS, decoder_layers=LAYERS)
    shape = dataclasses.replace(jobs.shapes(size)["train"], inputs=8)
    rng = np.random.default_rng(0)
    inputs, targets = (
        rng.integers(jobs.VOCABULARY_START, config.vocab_size, (shape.inputs, n), dtype=np.int32)
        for n in (shape.input_length, shape.target_length)
    )
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.asarray(transformer.shift_right(config, targets)),
        "decoder_target_tokens": targets,
    }
    mesh = sharding.make_mesh(shape.inputs, len(jax.devices()))
    backbone = pj.init_backbone(config, jax.random.key(0), name=size)
    method, optimizer = pj.lora(jobs.LORA_RANK), optax.adamw(jobs.LEARNING_RATE)
    update = train.make_train_step(
        backbone, method, optimizer, objectives.lm_objective(), mesh=mesh, parallel=form
    )
    frozen = sharding.place(mesh, backbone.params, config)
    state = train.init_state(method.init(jax.random.key(1), backbone), optimizer, jax.random.key(2))
    held = [sharding.replicate(mesh, state)]
    placed = sharding.put_batch(mesh, batch)

    def step() -> float:
        held[0], metrics = update(held[0], frozen, placed)
        # Of all devices: a collective queued behind another's would wait for its threads.
        jax.block_until_ready((held, metrics))
        return float(metrics["loss"])

    return step


def work(settings: dict[str, Any]) -> None:
    """One process: prepares both forms, then times the one that it is asked for."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.sched_setaffinity(0, settings["cores"])
    steps, losses, first = {}, {}, {}
    for form in FORMS:
        start = time.perf_counter()
        steps[form] = prepare(settings["size"], form)
        losses[form] = [steps[form]()]
        first[form] = time.perf_counter() - start
        losses[form] += [steps[form]() for _ in range(2)]
    print(json.dumps({"losses": losses, "first_s": first}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        made, start, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < command["seconds"] or not made:
            steps[command["form"]]()
            made += 1
        passed, cpu = time.perf_counter() - start, time.process_time() - used
        print(json.dumps({"wall": passed / made, "cpu": cpu / made}), file=answers)


class Process:
    """A worker with so many forced devices."""

    def __init__(self, count: int, size: str, cores: list[int]):
        flags = f"--xla_force_host_platform_device_count={count}"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            # Forced devices share one thread pool; a collective needs a thread of each.
            "NPROC": "16",
        }
        settings = json.dumps({"size": size, "cores": cores})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.devices", "--worker", settings],
            cwd=peer.ROOT, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a worker of benchmarks.devices ended; run it with --worker to see")
        return json.loads(line)

    def ask(self, **command: Any) -> Any:
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(size: str, cores: list[int], rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds a step of each form on each number of devices, round by round."""
    processes: dict[int, Process] = {}
    try:
        started = {}
        for count in COUNTS:
            processes[count] = Process(count, size, cores)
            started[count] = processes[count].answer()
        alone = np.asarray(started[1]["losses"]["jit"])
        difference = max(
            float(np.max(np.abs(np.asarray(losses) - alone) / np.abs(alone)))
            for one in started.values()
            for losses in one["losses"].values()
        )
        if not difference <= TOLERANCE:
            raise SystemExit(f"losses differ by {difference:.1e} between numbers of devices")
        names = [(count, form) for count in COUNTS for form in FORMS]
        times: dict[str, dict[str, list[float]]] = {
            f"{count} {form}": {"wall": [], "cpu": []} for count, form in names
        }
        for _ in range(rounds):
            for count, form in names:
                answer = processes[count].ask(form=form, seconds=seconds)
                for clock, taken in answer.items():
                    times[f"{count} {form}"][clock].append(taken)
    finally:
        for process in processes.values():
            process.end()
    return {
        "size": size,
        "layers": LAYERS,
        "machine": peer.machine(cores),
        "load": os.getloadavg()[0],
        "difference": difference,
        "first_step_seconds": {
            f"{count} {form}": started[count]["first_s"][form] for count, form in names
        },
        "times": times,
    }


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="t5_v1_1_small", help="a configuration, or toy")
    parser.add_argument("--cores", nargs="+", type=int, default=sorted(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of a turn")
    parser.add_argument("--json", type=Path, default=RESULTS, help="write the results here")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        work(options.worker)
        return None
    results = measure(options.size, options.cores, options.rounds, options.seconds)
    for name, clocks in results["times"].items():
        wall, cpu = (statistics.median(clocks[clock]) for clock in ("wall", "cpu"))
        print(f"{name:8s} {1 / wall:6.2f} steps/s, {cpu:.3f} s of the processor a step")
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
