"""Using a saved adapter: evaluation on a task, and single answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from peft_jax import distributed, report, sharding
from peft_jax.adapter import load_adapter, read_header
from peft_jax.answers import mask_token
from peft_jax.backbones import Backbone
from peft_jax.config import Experiment, check, to_json
from peft_jax.decoding import Decoding, decode_texts, generate
from peft_jax.errors import InputError
from peft_jax.experiment import (
    check_method,
    method_names,
    open_measure,
)
from peft_jax.methods import merge
from peft_jax.methods.prompt_places import marker_rows
from peft_jax.mixed_examples import digest
from peft_jax.placement import load_where_it_fits, notes_of_mesh, open_backbone, open_mesh
from peft_jax.progress import step_bar
from peft_jax.run_data import notes_of, open_examples, with_metrics
from peft_jax.scoring import score_choices, score_classes, score_labels, score_verbalizers
from peft_jax.tokenizer import Tokenizer, check_fits, kind_of, load_tokenizer, row_ids
from peft_jax.tree import Params


def evaluate_adapter(
    adapter_folder: Path | None, config: Experiment, output: Path | None, console: Console
) -> dict[str, Any]:
    """Measures an adapter on ``config.task``; prints the table, and writes the files if asked to.

    Args:
      adapter_folder: a run's folder or an adapter file; None: the frozen backbone by itself.
    """
    console = report.main_console(console)
    with distributed.agreed():
        check(config)
        main = distributed.is_main()
        if main and output is not None and output.is_dir() and any(output.iterdir()):
            raise InputError(f"output {output} is not empty; give a new folder")
    distributed.check_same("flags", json.loads(to_json(config)))
    mesh = open_mesh(config, training=False)
    with distributed.agreed():
        backbone = open_backbone(config, mesh)
        adapter: Params = {}
        method = None
        if adapter_folder is not None:
            adapter, method = load_adapter(adapter_folder, backbone)
            answer = read_header(adapter_folder)["details"].get("answer")
            if config.answer == "auto" and answer is not None:
                config = dataclasses.replace(config, answer=answer)  # as it was trained
        examples = open_examples(
            config.task,
            config.data,
            backbone,
            config.seed,
            training=False,
            answer=config.answer,
            methods=() if method is None else method_names(method),
        )
        examples = with_metrics(examples, config.evaluation.metrics)
        if method is not None:
            check_method(method, backbone, examples)
    distributed.check_same("evaluation examples", digest(examples))
    for note in notes_of_mesh(backbone, mesh) + notes_of(examples):
        console.print(note, markup=False, soft_wrap=True)
    measure = open_measure(config, backbone, method, examples, mesh)
    with step_bar(console, "evaluation", len(examples)) as advance:
        stored = sharding.place(mesh, adapter, backbone.config)
        evaluation = measure(stored, backbone.params, examples, advance)
    summary = evaluation.summary(config.evaluation.bootstrap)
    console.print(report.evaluation_table(summary))
    for note in evaluation.notes:
        console.print(note, markup=False, soft_wrap=True)
    if output is not None and main:
        output.mkdir(parents=True, exist_ok=True)
        (output / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
        evaluation.write(output / "predictions.jsonl")
    distributed.wait()
    return summary


def predict_text(
    adapter_folder: Path,
    source: str,
    text: str,
    choices: Sequence[str] = (),
    *,
    pair: str | None = None,
    length_normalization: float = 1.0,
    decoding: Decoding | None = None,
    seed: int | None = None,
) -> list[tuple[str, float | None]]:
    """Answers to one input: the choices with their scores, best first, or generated texts.

    Args:
      adapter_folder: a run's folder or an adapter file.
      source: the backbone, as for ``load_backbone``.
      text: the input; of a decoder-only backbone the prompt, which the answer follows behind a
        space unless it ends in white space itself.
        An adapter with a head knows its classes, and one that fills a mask needs its words.
      pair: a second text, of an adapter that tells classes of pairs.
      length_normalization: of the choices' scores, as in ``score_choices``.
      decoding: how texts are generated; several of them (``sequences``) have scores, and one none.
      seed: of the draws, where they are sampled; 0 by default.

    Raises:
      InputError: the arguments contradict each other, or do not fit the adapter.
    """
    if len(choices) == 1:
        raise InputError("one choice leaves nothing to rank; give two or more, or none to generate")
    decoding = decoding or Decoding()
    _check_drawing(decoding, seed)
    backbone = load_where_it_fits(source)
    adapter, method = load_adapter(adapter_folder, backbone)
    bound = method.bind(adapter)
    params = merge(backbone.params, bound)
    details = read_header(adapter_folder)["details"]
    answer = details.get("answer")
    if choices or answer in ("head", "verbalizer", "trained_verbalizer"):
        _refuse_decoding(decoding)
    if answer == "head":
        return _rank_classes(backbone, params, text, pair, choices, details.get("labels") or ())
    rows = marker_rows(bound)
    if pair is not None:
        raise InputError("a pair of texts is read by an adapter with a classification head alone")
    if answer == "verbalizer":
        return _rank_at_mask(backbone, params, text, choices, rows)
    if answer == "trained_verbalizer":
        return _rank_trained(backbone, params, text, choices, rows)
    config, tokenizer = backbone.config, _tokenizer(backbone)
    ids, encoded = row_ids(tokenizer, kind_of(config), text, choices)
    check_fits([id for row in (ids, *encoded) for id in row], config.vocab_size, "the texts", rows)
    batch = {"encoder_input_tokens": np.asarray([ids], np.int32)}
    if not choices:
        return _write(backbone, params, batch, decoding, seed or 0, tokenizer)
    shape = (1, len(encoded), max(map(len, encoded)))
    padded = np.full(shape, config.pad_id, np.int32)
    for row, ids in zip(padded[0], encoded, strict=True):
        row[: len(ids)] = ids
    batch |= {"choices": padded, "choice_mask": np.ones(padded.shape[:2], bool)}
    scores = score_choices(backbone, params, batch, length_normalization=length_normalization)
    ranked = sorted(zip(choices, np.asarray(scores)[0].tolist(), strict=True), key=lambda x: -x[1])
    return list(ranked)


def _check_drawing(decoding: Decoding, seed: int | None) -> None:
    if seed is not None and not decoding.samples:
        raise InputError(
            f"seed {seed}: nothing is drawn; sample (temperature, top_k, top_p) or leave it out"
        )


def _refuse_decoding(decoding: Decoding) -> None:
    """Raises InputError for options of what is not done: choices and classes are ranked."""
    plain = dataclasses.asdict(Decoding())
    given = [name for name, value in dataclasses.asdict(decoding).items() if value != plain[name]]
    if given:
        raise InputError(
            f"{', '.join(given)}: choices and classes are ranked, no text is generated; leave out "
            "one or the other"
        )


def _write(backbone, params, batch, decoding, seed, tokenizer) -> list[tuple[str, float | None]]:
    """Generated texts without their ends, with scores where there are several."""
    written = generate(backbone, params, batch, decoding, jax.random.key(seed), tokenizer=tokenizer)
    (texts,) = decode_texts(written, backbone.config, decoding, tokenizer)
    if len(texts) == 1:
        return [(texts[0], None)]
    return list(zip(texts, written.scores[0].tolist(), strict=True))


def _rank_classes(backbone, params, text, pair, choices, labels) -> list[tuple[str, float | None]]:
    if choices:
        raise InputError("the adapter has a classification head: it ranks its classes, no choices")
    tokenizer = _any_tokenizer(backbone)
    if backbone.config.kind == "decoder":
        ids, types = tokenizer.prompt_ids(text if pair is None else f"{text}\n{pair}"), None
    else:
        ids, types = tokenizer.input_ids(text, pair)
    check_fits(ids, backbone.config.vocab_size, "the texts")
    batch = {"encoder_input_tokens": np.asarray([ids], np.int32)}
    if backbone.config.token_types and types is not None:
        batch["encoder_token_types"] = np.asarray([types], np.int32)
    scores = np.asarray(score_labels(backbone, params, batch))[0].tolist()
    names = labels if len(labels) == len(scores) else [str(i) for i in range(len(scores))]
    return sorted(zip(names, scores, strict=True), key=lambda x: -x[1])


def _rank_trained(backbone, params, text, choices, rows) -> list[tuple[str, float | None]]:
    """The classes of a trained verbaliser, by the names that are given to them in order."""
    tokenizer, mask_id = _any_tokenizer(backbone), None
    if backbone.config.kind == "encoder":
        mask_id = mask_token(backbone)
        ids = tokenizer.masked_ids(_with_mask(tokenizer, mask_id, text)).ids
    else:
        ids, _ = row_ids(tokenizer, kind_of(backbone.config), text, ())
    check_fits(ids, backbone.config.vocab_size, "the text", rows)
    classes = params["verbalizer"]["kernel"].shape[-1]
    if choices and len(choices) != classes:
        raise InputError(f"{len(choices)} choices; the adapter has {classes} classes to name")
    batch = {
        "encoder_input_tokens": np.asarray([ids], np.int32),
        "choice_mask": np.ones((1, classes), bool),
    }
    scores = np.asarray(score_classes(backbone, params, batch, mask_id))[0].tolist()
    names = choices or [str(i) for i in range(classes)]
    return sorted(zip(names, scores, strict=True), key=lambda x: -x[1])


def _with_mask(tokenizer: Tokenizer, mask_id: int, text: str) -> str:
    """The text with its mask; where it names none, in the place that training used, behind it."""
    mask = tokenizer.token(mask_id)
    return text if mask is not None and mask in text else f"{text} {mask}"


def _rank_at_mask(backbone, params, text, choices, rows) -> list[tuple[str, float | None]]:
    if not choices:
        raise InputError("the adapter fills a mask: give the words to rank (--choices)")
    from peft_jax.tasks.encoders import one_token

    tokenizer, mask_id = _any_tokenizer(backbone), mask_token(backbone)
    text = _with_mask(tokenizer, mask_id, text)
    ids = tokenizer.masked_ids(text).ids
    check_fits(ids, backbone.config.vocab_size, "the text", rows)
    words = [[one_token(tokenizer, text, choice)] for choice in choices]
    batch = {
        "encoder_input_tokens": np.asarray([ids], np.int32),
        "choices": np.asarray([words], np.int32),
        "choice_mask": np.ones((1, len(words)), bool),
    }
    scores = np.asarray(score_verbalizers(backbone, params, batch, mask_id))[0].tolist()
    return sorted(zip(choices, scores, strict=True), key=lambda x: -x[1])


def _any_tokenizer(backbone: Backbone) -> Tokenizer:
    if backbone.vocabulary is None:
        raise InputError(f"backbone {backbone.name!r} has no vocabulary to read text with")
    return load_tokenizer(backbone.vocabulary)


def _tokenizer(backbone: Backbone) -> Tokenizer:
    if kind_of(backbone.config) == "encoder":
        raise InputError(
            f"backbone {backbone.name!r} is an encoder and writes no answers, and the adapter says "
            "neither of a head nor of words at a mask how it was trained"
        )
    return _any_tokenizer(backbone)
