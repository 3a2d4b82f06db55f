"""Using a saved adapter: evaluation on a task, and single answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from peft_jax import report, sharding
from peft_jax.adapter import load_adapter
from peft_jax.backbones import Backbone, load_backbone
from peft_jax.config import Experiment, check
from peft_jax.errors import InputError
from peft_jax.evaluation import evaluate
from peft_jax.experiment import evaluation_mesh, open_backbone, open_examples, open_scorer
from peft_jax.generate import greedy
from peft_jax.methods import merge
from peft_jax.progress import step_bar
from peft_jax.scoring import score_choices
from peft_jax.tokenizer import Tokenizer, check_fits, kind_of, load_tokenizer, row_ids


def evaluate_adapter(
    adapter_folder: Path, config: Experiment, output: Path | None, console: Console
) -> dict[str, Any]:
    """Scores an adapter on ``config.task``; prints the table, and writes the files if asked to."""
    check(config)
    if output is not None and output.is_dir() and any(output.iterdir()):
        raise InputError(f"output {output} is not empty; give a new folder")
    backbone = open_backbone(config)
    adapter, method = load_adapter(adapter_folder, backbone)
    examples = open_examples(config.task, config.data, backbone, config.seed, training=False)
    mesh = evaluation_mesh(config)
    scorer = open_scorer(config, backbone, method, mesh)
    with step_bar(console, "evaluation", len(examples)) as advance:
        evaluation = evaluate(
            scorer,
            sharding.replicate(mesh, adapter),
            sharding.replicate(mesh, backbone.params),
            examples,
            batch_size=config.evaluation.batch_size,
            mesh=mesh,
            advance=advance,
        )
    summary = evaluation.summary()
    console.print(report.evaluation_table(summary))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
        evaluation.write(output / "predictions.jsonl")
    return summary


def predict_text(
    adapter_folder: Path,
    source: str,
    text: str,
    choices: Sequence[str] = (),
    *,
    max_length: int = 64,
    length_normalization: float = 1.0,
) -> list[tuple[str, float | None]]:
    """Answers to one input, best first: the choices with their scores, or one generated text.

    Args:
      adapter_folder: a run's folder or an adapter file.
      source: the backbone, as for ``load_backbone``.
      text: the input; of a decoder-only backbone the prompt, which the answer follows behind a
        space unless it ends in white space itself.
      choices: at least two answers to rank, or none to generate.
    """
    if len(choices) == 1:
        raise InputError("one choice leaves nothing to rank; give two or more, or none to generate")
    backbone = load_backbone(source)
    adapter, method = load_adapter(adapter_folder, backbone)
    params = merge(backbone.params, method.bind(adapter))
    config, tokenizer = backbone.config, _tokenizer(backbone)
    ids, encoded = row_ids(tokenizer, kind_of(config), text, choices)
    check_fits([id for row in (ids, *encoded) for id in row], config.vocab_size, "the texts")
    batch = {"encoder_input_tokens": np.asarray([ids], np.int32)}
    if not choices:
        ends = (config.pad_id, config.eos_id, *config.extra_eos_ids)
        written = np.asarray(greedy(backbone, params, batch, max_length))[0]
        kept = [int(id) for id in written if id not in ends]
        return [(tokenizer.decode(kept, skip_special=True).strip(), None)]
    shape = (1, len(encoded), max(map(len, encoded)))
    padded = np.full(shape, config.pad_id, np.int32)
    for row, ids in zip(padded[0], encoded, strict=True):
        row[: len(ids)] = ids
    batch |= {"choices": padded, "choice_mask": np.ones(padded.shape[:2], bool)}
    scores = score_choices(backbone, params, batch, length_normalization=length_normalization)
    ranked = sorted(zip(choices, np.asarray(scores)[0].tolist(), strict=True), key=lambda x: -x[1])
    return list(ranked)


def _tokenizer(backbone: Backbone) -> Tokenizer:
    if backbone.vocabulary is None:
        raise InputError(f"backbone {backbone.name!r} has no vocabulary to read text with")
    if kind_of(backbone.config) == "encoder":
        raise InputError(
            f"backbone {backbone.name!r} is an encoder and writes no answers: evaluate its adapter "
            "on a task of labels"
        )
    return load_tokenizer(backbone.vocabulary)
