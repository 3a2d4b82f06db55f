"""What the chips of a pod exchange in one T-Few step, read from the program that libtpu compiles.

    python -m benchmarks.collectives                  # writes benchmarks/collectives.json

T0-3B with (IA)³ on a v5e slice of 16 chips, split over each axis of the mesh in turn, through
``peft_jax.plan``: the step is the run's own, nothing of it is run, and no TPU is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "collectives.json"
BACKBONE = "t0_3b"
TOPOLOGY = "v5e:4x4"
ROWS = 64
# data, fsdp, model: the batch alone is split, the weights, the layers' width; and two mixed ones.
MESHES = [(16, 1, 1), (1, 16, 1), (2, 1, 8), (4, 1, 4), (4, 4, 1)]


def measure(
    backbone: str, topology: str, rows: int, meshes: list[tuple[int, int, int]], remat: str
) -> dict[str, Any]:
    """The train step's exchanges on each mesh."""
    from peft_jax import plan
    from peft_jax.config import load_preset
    from peft_jax.plan.executables import versions
    from peft_jax.programs import BatchShape, outline
    from peft_jax.sharding import Axes

    config = dataclasses.replace(load_preset("tfew"), backbone=backbone)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
    layers = outline(config).config
    results: dict[str, Any] = {
        "backbone": backbone,
        "topology": topology,
        "rows": rows,
        "remat": remat,
        "layers": [layers.encoder_layers, layers.decoder_layers],
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "meshes": [],
    }
    for mesh in meshes:
        (planned,) = plan.plan(
            config, topology, ("train",), BatchShape(rows), axes=Axes(*mesh), tell=print
        )
        one = plan.planned_as_dict(planned)
        results["meshes"].append(one)
        print(json.dumps(one.get("estimate"))[:400], flush=True)
    return results


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--topology", default=TOPOLOGY)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a batch, on all chips together")
    parser.add_argument("--remat", default="full")
    parser.add_argument(
        "--meshes", nargs="+", default=MESHES,
        type=lambda text: tuple(map(int, text.split("x"))), help="data x fsdp x model, as 2x1x8",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=RESULTS, help="write the results here")
    options = parser.parse_args(argv)
    results = measure(
        options.backbone, options.topology, options.rows, options.meshes, options.remat
    )
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
