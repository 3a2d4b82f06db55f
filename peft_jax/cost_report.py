"""The command ``peft-jax cost``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from peft_jax import costs as estimates
from peft_jax.config import Experiment, check
from peft_jax.costs import Costs, DeviceMemory, size
from peft_jax.errors import InputError
from peft_jax.programs import BatchShape, outline
from peft_jax.sharding import Axes
from peft_jax.transformer import Config

Policy = Literal["none", "dots", "attention", "full", "offload"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Say what a run needs before it starts: parameters, disk, FLOPs, and memory of a device.

    Nothing is compiled and no weights are read; ``peft-jax plan`` asks the TPU's compiler.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    config: str = "tfew"
    """Preset from configs/, or the path of a Python file with a function config()."""
    input_length: int = 256
    """Tokens of an input; --data.max-input-length is not read."""
    choices: int = 4
    """Answer choices of a row; 0: the answers are written."""
    choice_length: int = 16
    """Tokens of a choice."""
    target_length: int = 64
    """Tokens of a written answer."""
    policies: tuple[Policy, ...] = ("none", "dots", "attention", "full", "offload")
    """Remat policies whose memory is told."""
    accelerated: bool = True
    """Whether "auto" dtypes and the compiler are an accelerator's; --no-accelerated: a CPU's."""
    json: Path | None = None
    """File for all figures."""


def run(given: Cost, console: Console) -> None:
    """Prints the tables and writes the file.

    Raises:
      InputError: a figure that is no size, or a run that would not start.
    """
    config = given.experiment
    check(config)
    for name in ("input_length", "choice_length", "target_length"):
        if getattr(given, name) < 1:
            raise InputError(f"{name} {getattr(given, name)} must be at least 1")
    mesh = config.mesh
    axes = Axes(mesh.data or 1, mesh.fsdp or 1, mesh.model or 1)
    shape = BatchShape(
        config.training.batch_size,
        given.input_length,
        given.choices,
        given.choice_length,
        given.target_length,
    )
    backbone = outline(config, accelerated=given.accelerated)
    platform = "tpu" if given.accelerated else "cpu"
    found = estimates.costs(config, backbone, shape, axes, given.policies, platform)
    console.print(_general(config, backbone.config, found, shape))
    console.print(_memory(config, found, axes))
    if given.json is not None:
        given.json.write_text(json.dumps(as_dict(found, axes, shape), indent=2) + "\n")


def as_dict(found: Costs, axes: Axes, shape: BatchShape) -> dict[str, Any]:
    """All figures, for a machine."""
    figures = dataclasses.asdict(found)
    figures["memory"] = {name: _parts(one) for name, one in found.memory.items()}
    figures["scoring"] = found.scoring and _parts(found.scoring)
    return {"mesh": axes._asdict(), "shape": shape._asdict(), **figures}


def _parts(memory: DeviceMemory) -> dict[str, int]:
    return {**memory._asdict(), "total": memory.total}


def _general(config: Experiment, model: Config, found: Costs, shape: BatchShape) -> Table:
    table = Table(box=None, show_header=False, title_justify="left", title_style="")
    table.title = f"[bold]{config.backbone}[/bold] with {' + '.join(config.method)}"
    for name in ("what", "figure", "note"):
        table.add_column(name, justify="right" if name == "figure" else "left", no_wrap=True)
    share = found.trainable / found.parameters
    steps, rows = config.training.steps, shape.batch
    by_rule = (found.parameters, found.tokens, model.kind)
    training = estimates.training_flops(found.parameters, steps * rows * found.tokens, model.kind)
    table.add_row("parameters", f"{found.parameters:,}", size(found.backbone_bytes))
    table.add_row("trained", f"{found.trainable:,}", f"{share:.4%}")
    table.add_row("adapter's file", size(found.adapter_bytes), "float32")
    table.add_row(
        "forward, an example", f"{found.forward_flops:.3g} FLOP", f"{found.tokens} tokens"
    )
    table.add_row(
        "train step, an example",
        f"{found.train_flops:.3g} FLOP",
        f"remat {config.model.remat}; {found.train_flops / found.forward_flops:.2f} x forward",
    )
    whole = found.train_flops * steps * rows
    table.add_row("training", f"{whole:.3g} FLOP", f"{steps:,} steps of {rows:,}")
    table.add_row(
        "by T-Few's rule, an example",
        f"{estimates.inference_flops(*by_rule):.3g} FLOP",
        "Liu et al. 2022, section 4.3",
    )
    table.add_row("by T-Few's rule, training", f"{training:.3g} FLOP", "frozen weights not spared")
    return table


PARTS = ("weights", "adapter", "optimizer", "batch", "activations", "working", "logits")


def _memory(config: Experiment, found: Costs, axes: Axes) -> Table:
    rows = dict(found.memory)
    if found.scoring is not None:
        rows["scoring"] = found.scoring
    largest = max((one.total for one in rows.values()), default=0)
    unit, name = (2**30, "GiB") if largest >= 2**30 else (2**20, "MiB")
    ways = " x ".join(f"{axis} {n}" for axis, n in axes._asdict().items() if n > 1) or "1"
    # Narrow enough for the 80 columns of a log file.
    table = Table(
        box=None, header_style="dim", title_justify="left", title_style="", padding=(0, 1, 0, 0)
    )
    table.title = f"[bold]{name} on a device[/bold], mesh {ways}; logits are part of working"
    table.add_column("remat", no_wrap=True)
    for part in ("total", *PARTS):
        table.add_column(part, justify="right", no_wrap=True)
    for program, one in rows.items():
        cells = [f"{getattr(one, part) / unit:,.3f}" for part in ("total", *PARTS)]
        table.add_row(program, *cells, style="bold" if program == config.model.remat else None)
    return table
