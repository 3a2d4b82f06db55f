"""The section of docs/benchmarks.md on mixed batches, from the results of benchmarks.bank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import bank
from benchmarks.bank import ratio

RESULTS = Path(__file__).parent / "bank.json"
NAMES = {
    "ia3": "(IA)³",
    "lora": "LoRA r=8",
    "prompt": f"prompt, {bank.PROMPT_LENGTH} rows",
    "prefix": f"prefix, {bank.PREFIX_LENGTH} rows",
    "adapter": f"Houlsby adapter, {bank.BOTTLENECK} wide",
}
LIBRARIES = {"peft_jax": "peft_jax", "peft": "PEFT"}

INTRODUCTION = """\
## Many tasks in one batch

A forward pass of {size} in float32 over {batch} inputs of {length} tokens with targets of {target},
every input with the adapter of its own task out of a bank, divided by the same pass with one
adapter for all of them. `python -m benchmarks.bank`: all variants of a method take turns in every
round; medians over rounds of the quotients, and their range. Times are processor times.

PEFT mixes LoRAs alone (`adapter_names`), for inference alone; it was run with {peers} adapters, not
with a thousand. Both libraries compute the same mixed logits from the same weights (largest
difference {difference:.0e}, relative).
"""

FORMS = """\
### How a mixed LoRA is computed

One projection [512, 384] with rank {rank} over the same batch, in milliseconds; the frozen
product alone takes {kernel:.1f}. *gather* picks each input's own factors and multiplies in a batch;
*grouped* sorts the inputs by task and multiplies by groups (`jax.lax.ragged_dot`); *concatenated*
multiplies by the factors of all tasks side by side and masks those of the others. All three give
the same numbers. All times include the frozen product; the gradients are those of x and of all
factors. A thousand tasks were timed in one round, fewer in five.

{table}

The library gathers. The tokens of an input share a task, so that a batched product with one matrix
for each input has long rows already and grouping saves no work, while XLA on a CPU computes
`ragged_dot` with every group over all rows; side by side, the products grow with the bank, whatever
the batch asks for. Gathering costs about the same with 8 tasks and with 1,000: it copies as many
factors as the batch has inputs. On an accelerator with a kernel for ragged products, where many
inputs share few tasks, that may differ; none was measured.
"""


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(header: list[str], rows: list[list[str]]) -> str:
    align = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(_row(cells) for cells in (header, align, *rows))


def _variants(result: dict[str, Any], library: str) -> list[str]:
    return [name.split()[1] for name in result["rounds"] if name.split()[0] == library]


def _times(results: dict[str, Any]) -> str:
    sizes = _variants(results["methods"][0], "peft_jax")
    header = ["method", "one adapter", *(f"{int(n):,} tasks" for n in sizes if n != "one")]
    rows = []
    for result in results["methods"]:
        for library, label in LIBRARIES.items():
            held = _variants(result, library)
            if not held:
                continue
            cells = [f"{NAMES[result['method']]}, {label}"]
            cells.append(f"{1e3 * result['seconds'][f'{library} one']:,.0f} ms")
            for size in sizes[1:]:
                if size in held:
                    middle, low, high = ratio(result, f"{library} {size}", f"{library} one")
                    cells.append(f"**{middle:.2f}** ({low:.2f}-{high:.2f})")
                else:
                    cells.append("-")
            rows.append(cells)
    return _table(header, rows)


def _against_the_peer(results: dict[str, Any]) -> str:
    """PEFT's time divided by ours, for the batches that it can mix."""
    found = [r for r in results["methods"] if "peft one" in r["rounds"]]
    lines = []
    for result in found:
        for size in _variants(result, "peft"):
            middle, low, high = ratio(result, f"peft {size}", f"peft_jax {size}")
            what = "one adapter" if size == "one" else f"{size} tasks mixed"
            lines.append(f"{what} {middle:.2f} ({low:.2f}-{high:.2f})")
    return "PEFT's time divided by ours, LoRA: " + "; ".join(lines) + "."


def _forms(results: dict[str, Any]) -> str:
    rows = []
    for result in results["forms"]:
        seconds = result["seconds"]
        cells = [f"{result['tasks']:,} tasks"]
        for form in bank.FORMS:
            cells += [f"{1e3 * seconds[f'{form} {kind}']:,.1f}" for kind in ("forward", "gradient")]
        rows.append(cells)
    header = [""]
    for form in bank.FORMS:
        header += [form, "with gradient"]
    kernel = min(r["seconds"]["kernel forward"] for r in results["forms"])
    table = _table(header, rows)
    return FORMS.format(rank=bank.jobs.LORA_RANK, kernel=1e3 * kernel, table=table)


def section(path: Path = RESULTS) -> str:
    """The section; nothing where it was never measured."""
    if not path.exists():
        return ""
    results = json.loads(path.read_text())
    machine = results["machine"]
    methods = results["methods"]
    load = max(result["load"] for result in methods)
    parts = [
        INTRODUCTION.format(
            size=results["size"],
            batch=bank.BATCH,
            length=bank.INPUT_LENGTH,
            target=bank.TARGET_LENGTH,
            peers=" and ".join(map(str, bank.PEER_TASKS)),
            difference=max(r["difference"] or 0 for r in methods),
        ),
        f"{machine['cpu']}, {machine['cores']} of {machine['of']} cores; {machine['date']}. Other "
        f"work kept all cores\nbusy meanwhile (load up to {load:.0f}), so that single quotients "
        "differ by tens of per cent, and medians by\nseveral.\n",
        _times(results),
        "",
        _against_the_peer(results),
        "",
    ]
    if results["forms"]:
        parts.append(_forms(results))
    return "\n".join(parts)
