"""Examples a second that reach the model, against what a train step on an H100 takes.

    python -m benchmarks.pipeline --task boolq --directory DATA --vocabulary spiece.model \\
        --core 1 --json benchmarks/pipeline.json

One process pinned to one core makes batches of 8 for rank classification in four ways: seqio from
the texts, seqio from its offline cache, our prepared file, and a mixture of two prepared files; and
batches to be written from a mapped file, as they are and packed. The ways take turns; figures are
medians over rounds, in processor time, which other work on the machine does not lengthen. The
appetite is computed: peak x a stated share of it, divided by the FLOPs of a T-Few step with (IA)³
as XLA counts them in the compiled program.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

BATCH = 8
INPUT, CHOICES, ANSWER = 256, 4, 8
H100_PEAK = 989e12
"""Dense bfloat16 products, FLOP/s: NVIDIA's data sheet of the SXM part."""
MFU = 0.4
SIZES = ("t5_v1_1_base", "t5_v1_1_xl")
RESULTS = Path(__file__).parent / "pipeline.json"

WAYS = {
    "seqio": "seqio, from texts",
    "seqio_cached": "seqio, cached tokens",
    "prepared": "prepared file",
    "mixture": "mixture of two prepared files",
    "texts": "texts to write, mapped file",
    "packed": "the same, packed to 512 + 64",
}


# --------------------------------------------------------------------------------------------
# What makes batches
# --------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Source:
    """Where the rows come from."""

    task: str
    directory: str | None
    vocabulary: Path

    @property
    def options(self) -> dict[str, Any]:
        return {"directory": self.directory} if self.directory else {}


def make_ways(source: Source, folder: Path) -> tuple[dict[str, Iterator], dict[str, float]]:
    """Infinite batches by way, and rows a second of each kind of preparation."""
    import seqio

    from peft_jax.examples import ChoiceExamples, FewShotSampler
    from peft_jax.mixtures import MixtureSampler
    from peft_jax.packing import pack
    from peft_jax.tasks.cache import prepare_seqio
    from peft_jax.tasks.prepare import choice_examples, text_examples
    from peft_jax.text_examples import TextExamples

    prepared: dict[str, float] = {}
    own = {"backbone_vocabulary_path": source.vocabulary, "max_input_length": INPUT}

    def timed(name: str, make: Callable[[], Any]) -> Any:
        start = time.process_time()
        made = make()
        prepared[name] = time.process_time() - start
        return made

    # Each of these reads the data and renders the templates itself.
    examples = timed(
        "prepared", lambda: choice_examples(source.task, "train", **own, **source.options)
    )
    examples.save(folder / "choices.safetensors")
    timed(
        "seqio_cached",
        lambda: prepare_seqio(
            source.task,
            folder,
            splits=["train"],
            backbone_vocabulary_path=source.vocabulary,
            **source.options,
        ),
    )
    timed(
        "texts",
        lambda: text_examples(
            source.task, "train", **own, **source.options, file=folder / "texts.safetensors"
        ),
    )
    rates = {name: len(examples) / seconds for name, seconds in prepared.items()}
    seqio.set_global_cache_dirs([str(folder)])
    shape = (examples.choices.shape[1], examples.choices.shape[2])
    examples = ChoiceExamples.load(folder / "choices.safetensors")
    texts = TextExamples.load(folder / "texts.safetensors").trimmed(8)
    packed = pack(texts, 512, 64)
    name = _registered(source)
    return {
        "seqio": _seqio_batches(name, shape, use_cached=False),
        "seqio_cached": _seqio_batches(name, shape, use_cached=True),
        "prepared": FewShotSampler(examples, BATCH, seed=0),
        "mixture": MixtureSampler([examples, examples], BATCH, seed=0),
        "texts": FewShotSampler(texts, BATCH, seed=0),
        "packed": _texts_of_packed(packed),
    }, rates


def _registered(source: Source) -> str:
    from peft_jax.tasks.registry import seqio_task_name

    return seqio_task_name(source.task)


def _seqio_batches(name: str, shape: tuple[int, int], *, use_cached: bool) -> Iterator:
    import seqio

    from peft_jax.tasks.converters import RankClassificationFeatureConverter, choice_lengths

    dataset = seqio.get_dataset(
        name,
        choice_lengths(INPUT, *shape),
        RankClassificationFeatureConverter(),
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        seed=0,
        use_cached=use_cached,
        verbose=False,
    )
    return dataset.batch(BATCH, drop_remainder=True).as_numpy_iterator()


def _texts_of_packed(packed) -> Iterator:
    """Batches of packed rows; each counts as the texts in it."""
    from peft_jax.examples import FewShotSampler

    texts = packed.members.lengths
    for batch in FewShotSampler(packed, BATCH, seed=0):
        yield batch | {"examples": int(texts[batch["row"]].sum())}


def measure(ways: dict[str, Iterator], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Examples a second of each way, one figure a round, taking turns."""
    for batches in ways.values():
        _draw(batches, seconds / 2)  # files are opened, buffers filled
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, batches in ways.items():
            found[name].append(_draw(batches, seconds))
    return found


def _draw(batches: Iterator, seconds: float) -> float:
    examples, start = 0, time.process_time()
    while (taken := time.process_time() - start) < seconds:
        examples += next(batches).get("examples", BATCH)
    return examples / taken


# --------------------------------------------------------------------------------------------
# What a step takes
# --------------------------------------------------------------------------------------------
def step_flops(size: str) -> float:
    """FLOPs of a T-Few step with (IA)³ on a batch: forward, backward and AdamW.

    Of the compiled programs of one and of two layers a stack, unrolled (XLA counts a loop's body
    once), continued to the model's depth; nothing is run and no weight is allocated.
    """
    import peft_jax as pj

    one, two = (_compiled_flops(size, depth) for depth in (1, 2))
    return one + (pj.backbone_config(size).encoder_layers - 1) * (two - one)


def _compiled_flops(size: str, depth: int) -> float:
    import jax
    import jax.numpy as jnp
    import optax

    import peft_jax as pj
    from benchmarks import flops, jobs
    from peft_jax import objectives, train

    config = dataclasses.replace(
        pj.backbone_config(size),
        encoder_layers=depth,
        decoder_layers=depth,
        remat="none",
        dropout=0.0,
    )
    backbone, method = pj.abstract_backbone(config), pj.ia3()
    optimizer = optax.adamw(jobs.LEARNING_RATE)
    stored = jax.eval_shape(method.init, jax.random.key(0), backbone)
    state = jax.eval_shape(lambda s: train.init_state(s, optimizer, jax.random.key(0)), stored)
    batch = {
        "encoder_input_tokens": jax.ShapeDtypeStruct((BATCH, INPUT), jnp.int32),
        "choices": jax.ShapeDtypeStruct((BATCH, CHOICES, ANSWER), jnp.int32),
        "choice_mask": jax.ShapeDtypeStruct((BATCH, CHOICES), jnp.bool_),
        "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }
    # All answers at once, however large: a loop over parts of them would be counted once.
    objective = objectives.tfew_objective(memory_budget=2**62)
    unrolled = functools.partial(jax.lax.scan, unroll=True)
    with mock.patch.object(jax.lax, "scan", unrolled):
        step = train.make_train_step(backbone, method, optimizer, objective)
        return flops.flops(step.lower(state, backbone.params, batch))


def appetites(mfu: float) -> dict[str, dict[str, float]]:
    """FLOPs of an example, and examples a second that one H100 takes, by size."""
    found = {}
    for size in SIZES:
        each = step_flops(size) / BATCH
        found[size] = {"flops": each, "examples_per_second": mfu * H100_PEAK / each}
    return found


# --------------------------------------------------------------------------------------------
# Report
# --------------------------------------------------------------------------------------------
def section(path: Path = RESULTS) -> str:
    """The section of docs/benchmarks.md; empty where nothing was measured."""
    if not path.exists():
        return ""
    return markdown(json.loads(path.read_text()))


def markdown(results: dict[str, Any]) -> str:
    """A row a way: examples a second, and how often that feeds an H100's step."""
    appetite = results["appetite"]
    header = ["batches from", "examples/s", "range", *(f"÷ {_short(s)}" for s in appetite)]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, speeds in results["examples_per_second"].items():
        speed = statistics.median(speeds)
        times = [speed / taken["examples_per_second"] for taken in appetite.values()]
        spread = f"{min(speeds):,.0f}–{max(speeds):,.0f}"
        rows.append([WAYS[name], f"{speed:,.0f}", spread, *(f"{t:,.1f}" for t in times)])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    needs = "; ".join(
        f"{_short(size)} {taken['flops'] / 1e12:.2f} TFLOP an example, "
        f"{taken['examples_per_second']:,.0f} examples/s"
        for size, taken in appetite.items()
    )
    made = ", ".join(
        f"{WAYS[name]} {rate:,.0f}" for name, rate in results["prepared_per_second"].items()
    )
    return INTRODUCTION.format(needs=needs, made=made, table=table, **results)


INTRODUCTION = """\
## Is the device fed?

Batches of {batch} from {task} ({rows:,} rows under all templates, inputs of at most {input} tokens)
as one process on one core makes them, in examples a second: medians over {rounds} rounds, and the
range, in processor time. `python -m benchmarks.pipeline`. The last columns divide by what a T-Few
step with (IA)³ takes on one H100, which is computed and not measured: its peak of 989 TFLOP/s in
bfloat16, of which the step is taken to reach {mfu:.0%}, and the FLOPs that XLA counts in the
compiled step ({input} tokens in, {choices} choices of {answer}). That makes
{needs}.
Above 1 the device waits for nothing, even where one core makes its batches between two steps.

{table}

Preparing, once, files and templates read and rendered, in rows a second on the same core:
{made}.
"""


def _short(size: str) -> str:
    return "T5 " + size.rpartition("_")[2]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="embedded_entailment", help="a task with choices")
    parser.add_argument("--directory", help="where its files lie")
    parser.add_argument("--vocabulary", type=Path, help="default: the embedded backbone's")
    parser.add_argument("--core", type=int, help="run on this core alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each way in a round")
    parser.add_argument("--mfu", type=float, default=MFU, help="share of the peak that is reached")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(argv)
    # Before anything starts threads.
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    results = run(options)
    print(markdown(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the page is made of."""
    from peft_jax.backbones import TINY

    source = Source(options.task, options.directory, options.vocabulary or TINY)
    with tempfile.TemporaryDirectory() as folder:
        ways, prepared = make_ways(source, Path(folder))
        rows = len(ways["prepared"].examples)
        speeds = measure(ways, options.rounds, options.seconds)
    return {
        "task": source.task,
        "rows": rows,
        "batch": BATCH,
        "input": INPUT,
        "choices": CHOICES,
        "answer": ANSWER,
        "rounds": options.rounds,
        "mfu": options.mfu,
        "examples_per_second": speeds,
        "prepared_per_second": prepared,
        "appetite": appetites(options.mfu),
    }


if __name__ == "__main__":
    main()
