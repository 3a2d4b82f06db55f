"""Sections of docs/benchmarks.md: qwix, compiling, forced devices, a pod's collectives, a GPU."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks import depth, devices, gpu, qwix_lora

PLANS = Path(__file__).parent / "plans"
AXES = ("data", "fsdp", "model")
MIB = 2**20
GIB = 2**30
# Above this load, for four cores, the machine was busy with other work.
BUSY = 2.0
SIDES = {
    "qwix": "qwix",
    "peft_jax": "peft_jax",
    "peft_jax, nothing recomputed": "peft_jax, remat none",
}


def section() -> str:
    """All of them; one that has no results here is left out, but for the GPU's, which says so."""
    parts = [
        _of(qwix_lora.RESULTS, against_qwix),
        _of(depth.RESULTS, compiling),
        _of(devices.RESULTS, forced_devices),
        exchanges(plans_of_training()),
        _of(gpu.RESULTS, on_gpu) or WITHOUT_GPU,
    ]
    return "\n".join(filter(None, parts))


def _of(path: Path, write) -> str:
    return write(json.loads(path.read_text())) if path.exists() else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    align = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, align, *rows])


def _machine(results: dict[str, Any]) -> str:
    machine, load = results["machine"], results.get("load", 0.0)
    busy = ""
    if load > BUSY:
        busy = f" Other work kept the machine busy meanwhile (load {load:.0f})."
    cores = f"{machine['cores']} of {machine['of']} cores"
    return f"{machine['cpu']}, {cores}; {machine['date']}.{busy}"


def _spread(values: list[float]) -> str:
    return f"**{statistics.median(values):.2f}** ({min(values):.2f}–{max(values):.2f})"


# ------------------------------------------------------------------------------------------- qwix

QWIX = """\
## Against qwix, on the same XLA

A train step of LoRA r=8 on queries and values (forward, backward, AdamW) of the encoder of {size}
in float32, batch of 8 x 128, from the same weights and factors: qwix on a flax.nnx module of one
module a layer, split into trained and frozen outside the step (its faster form), and this
library's own encoder and train step. Losses of the first steps differ by {difference:.0e},
relatively. `python -m benchmarks.qwix_lora`: rounds alternate between the two; *step* is qwix's
processor time divided by ours, the median over rounds and its range, above 1 where ours needs
less. *First step* is the processor time of the first call, tracing and compiling included.
qwix's side keeps everything for the backward pass, as ours does with `remat none`; the default,
`dots`, keeps the products alone.

{machine} {versions}.
"""


def against_qwix(results: dict[str, Any]) -> str:
    step = qwix_lora.ratios(results)
    wall = qwix_lora.ratios(results, "wall_seconds")
    first = results["first_step_processor_seconds"]
    rows = []
    for name, label in SIDES.items():
        seconds = statistics.median(results["processor_seconds"][name])
        rows.append(
            [
                label,
                f"{1e3 * seconds:,.0f} ms",
                _spread(step[name]) if name in step else "1",
                _spread(wall[name]) if name in wall else "1",
                f"{first[name]:.1f} s",
                f"{results['extra_memory'][name] / MIB:,.0f} MiB",
            ]
        )
    versions = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    head = QWIX.format(
        size=results["size"], difference=results["difference"], machine=_machine(results),
        versions=versions,
    )  # fmt: skip
    header = ["", "a step", "step", "the same, on the wall", "first step", "extra memory"]
    return head + "\n" + _table(header, rows) + "\n"


# -------------------------------------------------------------------------------------- compiling

COMPILING = """\
## Compile time against depth

Processor seconds of tracing, lowering and compiling a LoRA train step of {size}, layers in a scan,
as they are here, and the same program unrolled, which is what a module a layer comes to. Nothing
is run. `python -m benchmarks.depth`. {machine} jax {jax}.
"""


def compiling(results: dict[str, Any]) -> str:
    seconds = results["seconds"]
    depths = sorted(seconds["scanned"], key=int)
    totals = {
        form: {d: sum(parts.values()) for d, parts in of.items()} for form, of in seconds.items()
    }
    rows = []
    for layers in depths:
        scanned, unrolled = totals["scanned"][layers], totals["unrolled"].get(layers)
        rows.append(
            [
                f"{layers}+{layers} layers",
                f"{scanned:.1f} s",
                f"{scanned / totals['scanned'][depths[0]]:.2f}",
                "–" if unrolled is None else f"{unrolled:.1f} s",
                "–" if unrolled is None else f"**{scanned / unrolled:.0%}**",
            ]
        )
    header = ["", "scanned", f"/ {depths[0]}+{depths[0]}", "unrolled", "scanned / unrolled"]
    head = COMPILING.format(size=results["size"], machine=_machine(results), jax=results["jax"])
    return head + "\n" + _table(header, rows) + "\n"


# --------------------------------------------------------------------------------- forced devices

DEVICES = """\
## Forced devices

A LoRA train step of {size} with {layers}+{layers} layers, batch of 8 x 128, split over 1, 2, 4 and
8 forced host devices by jit over a mesh, and by pmap. The devices share {cores}: nothing can
become faster, and what is seen is what splitting costs. All compute the same losses (largest
difference {difference:.0e}, relative). `python -m benchmarks.devices`; medians over {rounds}
rounds that rotate over all. {machine}
"""


def forced_devices(results: dict[str, Any]) -> str:
    times = results["times"]
    alone = statistics.median(times["1 jit"]["cpu"])
    rows = []
    for count in devices.COUNTS:
        cells = [f"{count}"]
        for form in devices.FORMS:
            clocks = {c: statistics.median(v) for c, v in times[f"{count} {form}"].items()}
            cells += [f"{1 / clocks['wall']:.2f}", f"{clocks['cpu'] / alone:.2f}"]
        rows.append(cells)
    number = results["machine"]["cores"]
    head = DEVICES.format(
        size=results["size"], layers=results["layers"], difference=results["difference"],
        cores="one core" if number == 1 else f"{number} cores", machine=_machine(results),
        rounds=len(times["1 jit"]["cpu"]),
    )  # fmt: skip
    header = ["devices"]
    for form in devices.FORMS:
        header += [f"{form}, steps/s", f"{form}, processor time / one device, jit"]
    return head + "\n" + _table(header, rows) + "\n"


# ------------------------------------------------------------------------------------ collectives

EXCHANGES = """\
## What the chips of a pod exchange

One T-Few train step with (IA)³ on inputs of 256 tokens with 4 choices of 16: the collectives of the
program that the TPU compiler makes of the run's own step on the mesh that a run there would choose,
with the trips of the loops that they stand in. *MiB* are on each chip, of a whole step; *beside*
are collectives that run while the chip computes. Compiled by `python -m benchmarks.plans`;
[plan.md](plan.md) has the times. {versions}. No TPU was used.
"""


def plans_of_training() -> list[tuple[str, dict[str, Any]]]:
    """(backbone and slice, what ``benchmarks.plans`` has written) of every train step."""
    found = []
    for path in sorted(PLANS.glob("*.train.json")):
        preset, topology, *mesh = path.name.removesuffix(".train.json").split(".")
        found.append((" ".join([preset, topology, *mesh]), json.loads(path.read_text())))
    return found


def exchanges(found: list[tuple[str, dict[str, Any]]]) -> str:
    """A row for each kind of collective over groups of one size, of every program."""
    rows, versions = [], {}
    for name, held in found:
        one, versions = held["plan"], held["versions"]
        axes = " x ".join(f"{axis} {n}" for axis, n in zip(AXES, _axes(one["axes"]), strict=True))
        label = f"{name}: {axes}, batch {_batch(one['shape'])}, remat {one['remat']}"
        sent = one["estimate"]["exchanges"] if one["fits"] else []
        if not sent:
            rows.append([label, "none" if one["fits"] else "does not fit", "", "", "", ""])
        for number, each in enumerate(sent):
            rows.append(
                [
                    "" if number else label,
                    each["kind"],
                    f"{each['group']}",
                    f"{each['count']:,}",
                    f"{each['bytes'] / MIB:,.1f}",
                    "yes" if each["overlapped"] else "no",
                ]
            )
    if not rows:
        return ""
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    header = ["step", "collective", "chips in a group", "times", "MiB", "beside"]
    return EXCHANGES.format(versions=told) + "\n" + _table(header, rows) + "\n"


def _axes(axes: Any) -> list[int]:
    return list(axes.values()) if isinstance(axes, dict) else list(axes)


def _batch(shape: Any) -> int:
    return shape["batch"] if isinstance(shape, dict) else shape[0]


# ----------------------------------------------------------------------------------------- a GPU

WITHOUT_GPU = """\
## On a GPU

Not measured: no GPU was at hand when the results on this page were taken. `python -m
benchmarks.gpu` runs T5 v1.1 large and XL in bfloat16 against PEFT where one is, with the
utilisation of the measured matrix-product peak, and adds its table here. On toy sizes on a CPU
(`--device cpu --sizes toy`) it runs, and both libraries' losses agree.
"""

ON_GPU = """\
## On a GPU

T5 v1.1 with random weights in {dtype} on {device}; *utilisation* is the time that a step's
necessary matrix products would take at the rate of one large product here ({peak:,.0f} TFLOP/s),
divided by the step's time. `python -m benchmarks.gpu`. {versions}; {date}.
"""


def on_gpu(results: dict[str, Any]) -> str:
    rows = []
    for one in results["cases"]:
        case, used, faster = one["case"], gpu.utilisation(one), gpu.ratio(one)
        shape, seconds = case["shape"], one["seconds"]["peft_jax"]
        speed = f"{shape['inputs'] / seconds:,.0f} examples/s"
        if case["job"] == "decode":
            speed = f"{shape['inputs'] * shape['target_length'] / seconds:,.0f} tokens/s"
        rows.append(
            [
                f"{case['size'].rpartition('_')[2]}: {case['job']}, {case['method']}",
                f"{1e3 * seconds:,.1f} ms",
                speed,
                "–" if used is None else f"{used:.0%}",
                "–" if faster is None else f"**{faster:.2f}**",
                f"{one['memory']['peft_jax']['extra'] / GIB:.1f} GiB",
            ]
        )
    first = results["cases"][0]
    head = ON_GPU.format(
        dtype=first["case"]["dtype"], device=results["device"], date=results["machine"]["date"],
        peak=max(first["product_flops_per_second"].values()) / 1e12,
        versions=", ".join(f"{name} {v}" for name, v in first["versions"].items()),
    )  # fmt: skip
    header = ["job", "a step", "speed", "utilisation", "PEFT / peft_jax", "extra memory"]
    return head + "\n" + _table(header, rows) + "\n"
