"""One of several processes that train a toy model and keep checkpoints, for tests/test_checkpoint.

    python -m tests.checkpoint_process ADDRESS PROCESSES PROCESS FOLDER STEPS [damaged]

Prints a line of JSON at its end: the step reached, whether it was told to stop, the weights' sum of
squares, and what it was told of damage. With "damaged", this process cannot read the newest
checkpoint's arrays, the others can.
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from peft_jax import sharding
from peft_jax.checkpoint import Checkpoints


@jax.jit
def update(state):
    w = state["w"] * 1.001 + jnp.sin(state["step"] + jnp.arange(state["w"].size)).reshape(24, 8)
    return {"w": w, "step": state["step"] + 1}


def main(address: str, processes: int, process: int, folder: str, steps: int, *rest: str) -> None:
    if processes > 1:
        jax.distributed.initialize(address, processes, process)
    mesh = sharding.make_mesh(data=1, fsdp=jax.device_count())
    lies = {
        "w": NamedSharding(mesh, PartitionSpec("fsdp")),
        "step": sharding.replicated(mesh),
    }
    state = jax.jit(
        lambda: {"w": jnp.zeros((24, 8)), "step": jnp.zeros((), jnp.int32)}, out_shardings=lies
    )()
    told: list[str] = []
    checkpoints = Checkpoints(folder, tell=told.append)
    if "damaged" in rest:
        _fail_once(checkpoints)
    if checkpoints.latest() is not None:
        state, _ = checkpoints.restore(lambda _: state)
    stopped, made = False, int(state["step"])
    while made < steps and not stopped:
        state = update(state)
        jax.block_until_ready(state)
        made += 1
        stopped = processes > 1 and multihost_utils.reached_preemption_sync_point(made)
        if stopped or made % 20 == 0 or made == steps:
            checkpoints.save(made, state, {"made": made})
    checkpoints.close()
    square = float(np.asarray(jax.jit(lambda w: (w * w).sum())(state["w"])))
    print(json.dumps({"step": made, "stopped": stopped, "square": square, "told": told}))


def _fail_once(checkpoints: Checkpoints) -> None:
    read, newest = checkpoints._read_arrays, checkpoints.latest()

    def fail(step, like):
        if step == newest:
            raise OSError("this process cannot read it")
        return read(step, like)

    checkpoints._read_arrays = fail


if __name__ == "__main__":
    first, *numbers = sys.argv[1:]
    main(first, int(numbers[0]), int(numbers[1]), numbers[2], int(numbers[3]), *numbers[4:])
