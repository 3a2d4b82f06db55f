"""Compile time of a LoRA step against depth: layers in a scan, as they are here, and unrolled.

    python -m benchmarks.depth                        # writes benchmarks/depth.json

Nothing is run and no weight is allocated. Seconds are processor time, which other work on the
machine disturbs less than the wall's: tracing and lowering apart from XLA.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from benchmarks import flops, peer

RESULTS = Path(__file__).parent / "depth.json"
DEPTHS = (2, 8, 24)
FORMS = ("scanned", "unrolled")


def compile_seconds(size: str, depth: int, form: str) -> dict[str, float]:
    """Processor seconds of tracing and lowering, and of compiling, one step."""
    method = flops.METHODS["lora"]()
    jax.clear_caches()
    start = time.process_time()
    if form == "scanned":
        lowered = flops.lower_step(size, method, depth, "dots")
    else:
        unrolled = functools.partial(jax.lax.scan, unroll=True)
        with mock.patch.object(jax.lax, "scan", unrolled):
            lowered = flops.lower_step(size, method, depth, "dots")
    middle = time.process_time()
    lowered.compile()
    return {"lower": middle - start, "compile": time.process_time() - middle}


def measure(size: str, depths: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """The least of several repeats, for each depth and form."""
    jax.config.update("jax_enable_compilation_cache", False)
    seconds: dict[str, dict[str, dict[str, float]]] = {form: {} for form in FORMS}
    for _ in range(repeats):
        for form in FORMS:
            for depth in depths:
                taken = compile_seconds(size, depth, form)
                held = seconds[form].setdefault(str(depth), taken)
                if sum(taken.values()) < sum(held.values()):
                    seconds[form][str(depth)] = taken
    return {
        "size": size,
        "machine": peer.machine(sorted(os.sched_getaffinity(0))),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "seconds": seconds,
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="t5_v1_1_small", help="a configuration, or toy")
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS, help="write the results here")
    options = parser.parse_args(argv)
    results = measure(options.size, tuple(options.depths), options.repeats)
    for form, depths in results["seconds"].items():
        for depth, parts in depths.items():
            print(f"{form:9s} {depth:>3s}+{depth:3s} layers  {sum(parts.values()):6.1f} s {parts}")
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
