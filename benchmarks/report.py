"""Writes docs/benchmarks.md and docs/benchmarks.png from the results of a run.

python -m benchmarks.report benchmarks/results.json docs
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

MIB = 2**20
RESULTS = Path(__file__).parent / "results.json"

JOB_NAMES = {
    "train": "train step",
    "tfew": "T-Few step",
    "rank": "rank classification",
    "decode": "greedy decoding",
}
METHOD_NAMES = {"ia3": "(IA)³", "lora": "LoRA r=8"}
DTYPE_NAMES = {"float32": "f32", "bfloat16": "bf16"}

# Another process that takes more than this share of the pinned cores makes a ratio doubtful.
NOISY = 0.08

INTRODUCTION = """\
# Benchmarks

peft_jax against transformers + PEFT on the same machine, in the same run, with the same random
weights (T5 v1.1) and the same adapter, at the same precision, dropout off. This page is written by
`python -m benchmarks`; `python -m benchmarks.peer --help` runs a part of it.

- **train step**: batch of 8, 128 tokens in, 8 out; forward, backward, AdamW.
- **T-Few step**: batch of 8 with 4 choices of 8 tokens, all three losses, AdamW.
- **rank classification**: batch of 32 with 4 choices of 8 tokens.
- **greedy decoding**: batch of 8, 32 new tokens, the encoder included.

Both encode an input once for all of its choices; PEFT's side then repeats the encoder's states, as
T-Few's released code does, ours shares the cross-attention's keys and values. Before anything is
timed, both compute the same losses from the same weights over three steps (column *difference*:
relative, and for decoding the share of tokens that differ). The two libraries run in processes of
their own, pinned to the same cores, one at a time in alternating rounds; a ratio is the median over
rounds of PEFT's time divided by ours, above 1 where ours is faster, with its range over the rounds.
*Products* is the same quotient for a matrix product alone, of the feed-forward's size, timed in the
same rounds: what this CPU's kernels in XLA and torch differ by before any of our code runs.
*Extra memory* is what a step adds at its peak to what was resident before it.

In bf16, PEFT's side keeps everything in bfloat16; ours keeps the frozen weights in it, and
activations, norms and logits in float32. On a CPU without bfloat16 products, XLA's compiler makes a
float32 copy of the frozen weights on its own: our extra memory in bf16 holds it there.
"""


def _table(header: list[str], rows: list[list[str]]) -> str:
    align = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, align, *rows])


def _label(case: dict[str, Any]) -> str:
    return f"{JOB_NAMES[case['job']]}, {METHOD_NAMES[case['method']]}"


def _size(case: dict[str, Any]) -> str:
    return case["size"].rpartition("_")[2]


def times_table(cases: list[dict[str, Any]]) -> str:
    """A row a case: times, their ratio, extra memory, disagreement."""
    rows = []
    for result in cases:
        case, seconds, memory = result["case"], result["seconds"], result["memory"]
        low, high = result["ratio_range"]
        doubt = " *" if result["others"] > NOISY else ""
        product = result["product_flops"]
        rows.append(
            [
                f"{_size(case)} {DTYPE_NAMES[case['dtype']]}: {_label(case)}",
                f"{1e3 * seconds['peer']:,.0f} ms",
                f"{1e3 * seconds['ours']:,.0f} ms",
                f"**{result['ratio']:.2f}** ({low:.2f}–{high:.2f}){doubt}",
                f"{product['ours'] / product['peer']:.2f}",
                f"{memory['peer']['extra'] / MIB:,.0f} MiB",
                f"{memory['ours']['extra'] / MIB:,.0f} MiB",
                f"{result['difference']:.0e}",
            ]
        )
    header = [
        "job",
        "PEFT",
        "peft_jax",
        "ratio",
        "products",
        "PEFT, extra",
        "peft_jax, extra",
        "difference",
    ]
    return _table(header, rows)


def memory_table(results: list[dict[str, Any]]) -> str:
    """Extra memory of a step by what is recomputed, against PEFT without checkpointing."""
    rows = []
    for result in results:
        variants = result["variants"]
        plain = variants["peft"]["memory"]["extra"]
        for name, variant in variants.items():
            extra = variant["memory"]["extra"]
            rows.append(
                [
                    f"{_size(result['case'])}: {name}",
                    f"{extra / MIB:,.0f} MiB",
                    f"{extra / plain:.2f}" if plain else "–",
                    f"{1e3 * variant['seconds']:,.0f} ms",
                ]
            )
    return _table(["LoRA train step, f32", "extra memory", "/ PEFT", "time"], rows)


def markdown(results: dict[str, Any]) -> str:
    """What the first study has measured."""
    machine, cases = results["machine"], results["cases"]
    vector = ", ".join(machine["vector"]) or "no AVX2"
    versions = ", ".join(f"{name} {v}" for name, v in cases[0]["versions"].items())
    parts = [
        INTRODUCTION,
        f"{machine['cpu']} ({vector}), {machine['cores']} of {machine['of']} cores; Python "
        f"{machine['python']}, {versions}; {machine['date']}.\n",
        "## Time and memory\n",
        "![Time of PEFT divided by the time of peft_jax](benchmarks.png)\n",
        times_table(cases),
        "",
    ]
    if any(result["others"] > NOISY for result in cases):
        parts.append(
            f"\\* Other processes took more than {NOISY:.0%} of the machine during this case.\n"
        )
    if results["memory"]:
        parts += ["## Memory of a step, by what is recomputed\n", memory_table(results["memory"])]
    if results.get("flops"):
        parts.append(_compiled(results["flops"]))
    return "\n".join(parts).rstrip() + "\n"


def _compiled(results: dict[str, Any]) -> str:
    seconds = {int(depth): s for depth, s in results["compile_seconds"].items()}
    shallow, deep = min(seconds), max(seconds)
    rows = [[METHOD_NAMES.get(n, n), f"{r:.3f}"] for n, r in results["flops"].items()]
    return (
        "\n## What was compiled\n\n"
        "FLOPs of a train step divided by those of a forward pass, from XLA's cost analysis of "
        "the unrolled program. Two is the floor for a frozen backbone; full fine-tuning adds the "
        "weights' gradients.\n\n"
        + _table(["method", "step / forward"], rows)
        + f"\n\nCompile time of the LoRA step: {seconds[shallow]:.1f} s with {shallow}+{shallow} "
        f"layers, {seconds[deep]:.1f} s with {deep}+{deep}: {seconds[deep] / seconds[shallow]:.2f} "
        "times as long.\n"
    )


def picture(results: dict[str, Any], path: Path) -> None:
    """Bars of the ratios, their ranges as whiskers; a line at equal speed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = results["cases"]
    groups = sorted({(_size(r["case"]), r["case"]["dtype"]) for r in cases}, reverse=True)
    groups.sort(key=lambda group: (group[0] != "small", group[1] != "float32"))
    labels = list(dict.fromkeys(_label(r["case"]) for r in cases))
    figure, axes = pyplot.subplots(figsize=(9, 0.9 + 0.75 * len(labels)), layout="constrained")
    height = 0.8 / len(groups)
    for index, group in enumerate(groups):
        chosen = [r for r in cases if (_size(r["case"]), r["case"]["dtype"]) == group]
        where = [labels.index(_label(r["case"])) + (index - (len(groups) - 1) / 2) * height
                 for r in chosen]  # fmt: skip
        ratios = [r["ratio"] for r in chosen]
        below = [r["ratio"] - r["ratio_range"][0] for r in chosen]
        above = [r["ratio_range"][1] - r["ratio"] for r in chosen]
        axes.barh(
            where, ratios, height * 0.9, xerr=[below, above], label=f"{group[0]}, "
            f"{DTYPE_NAMES[group[1]]}", error_kw={"lw": 1, "ecolor": "0.3", "capsize": 2},
        )  # fmt: skip
        for y, ratio, up in zip(where, ratios, above, strict=True):
            axes.annotate(
                f"{ratio:.1f}", (ratio + up, y), (4, 0), textcoords="offset points", va="center",
                fontsize=8,
            )  # fmt: skip
    axes.axvline(1, color="0.2", lw=1, ls="--")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("time of transformers + PEFT / time of peft_jax  (dashed: equal)")
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def write_page(folder: Path) -> None:
    """Writes benchmarks.md into a folder, from the committed results."""
    results = json.loads(RESULTS.read_text())
    (folder / "benchmarks.md").write_text(page(results))


def page(results: dict[str, Any]) -> str:
    """The whole of benchmarks.md: these results, those of other runs, and the MiniLM's study."""
    from benchmarks import bank_report, pipeline, scaling_report
    from benchmarks.minilm import report as minilm

    parts = [
        markdown(results),
        scaling_report.section(),
        bank_report.section(),
        pipeline.section(),
        minilm.section(),
    ]
    return "\n".join(filter(None, parts))


def write(results: dict[str, Any], folder: Path) -> None:
    """Writes benchmarks.md and benchmarks.png into a folder."""
    (folder / "benchmarks.md").write_text(page(results))
    picture(results, folder / "benchmarks.png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    write(json.loads(options.results.read_text()), options.folder)


if __name__ == "__main__":
    main()
