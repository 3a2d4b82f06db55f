"""`peft-jax pretrain`: trains the embedded backbone from nothing.

A tiny T5 v1.1 learns the embedded training tasks under all their templates, as T0 learnt its own
(Sanh et al. 2022): the input is a prompted example, sometimes behind a few solved ones, the target
is its answer, the loss is the mean cross-entropy per token.  The result is a Hugging Face folder.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peft_jax import losses, transformer, tree
from peft_jax.backbones import backbone_outline, save_backbone
from peft_jax.backbones.base import Backbone
from peft_jax.backbones.hugging_face import VOCABULARY
from peft_jax.checkpoint import Checkpoints
from peft_jax.errors import InputError
from peft_jax.transformer import Config
from peft_jax.tree import Params

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Everything that fixes a pretraining run; the same fields give the same backbone."""

    output: Path | None = None
    """Folder for the result: config.json, model.safetensors, spiece.model; the run's own files
    (checkpoints/, metrics.jsonl, pretrain.json) lie in its sub-folder "run"."""
    tasks: tuple[str, ...] = ()
    """Embedded tasks to learn; empty: all that are not held out."""
    rows_per_task: int = 4_000
    """Rows of each task's train split that are used."""
    few_shot_share: float = 0.05
    """Share of the examples that stand behind solved examples of their task and template."""
    max_shots: int = 8
    """The most solved examples in front of one (the least is 2)."""
    vocabulary: str | None = None
    """Backbone whose vocabulary is taken: "tiny", or a checkpoint folder. By default one is trained
    on the texts of all embedded tasks."""
    pieces: int = 1_800
    """The most pieces of the vocabulary: bytes, whole words, pieces of words."""
    d_model: int = 128
    """Width of the residual stream."""
    d_kv: int = 32
    """Width of one attention head."""
    d_ff: int = 384
    """Width of the gated feed-forward."""
    num_heads: int = 4
    """Attention heads."""
    num_layers: int = 4
    """Layers of the encoder."""
    num_decoder_layers: int = 3
    """Layers of the decoder."""
    dropout: float = 0.0
    """Rate of dropout while pretraining; what is written says 0.1, the rate for fine-tuning."""
    steps: int = 6_000
    """Optimiser steps."""
    batch_tokens: int = 2_048
    """Input tokens of a batch, padding included."""
    learning_rate: float = 1e-3
    """Peak of the learning rate: AdamW with linear warm-up and cosine decay to a hundredth."""
    warmup_steps: int = 300
    """Steps of linear warm-up from zero."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    embedding_scale: float = 0.3
    """Standard deviation of the initial embedding (T5's is 1, which Adam is slow to move)."""
    table_rate: float = 10.0
    """Factor on the learning rate of the two kinds of tables, the embedding and the relative
    biases: a word's row moves only where it occurs, and a bias must reach several units before a
    head can look at a neighbour."""
    seed: int = 0
    """Seed of the initial weights, the data's order and dropout."""
    log_interval: int = 50
    """Steps between two lines of metrics.jsonl."""
    eval_interval: int = 1_000
    """Steps between two evaluations on the training tasks' validation rows."""
    eval_rows: int = 32
    """Validation rows of each task in an evaluation, under all its templates."""
    checkpoint_interval: int = 500
    """Steps between two checkpoints, from which a killed run goes on."""
    resume: bool = False
    """Go on from the checkpoint in the output folder."""


class TrainState(NamedTuple):
    """What changes from step to step."""

    params: Params
    optimizer: Any
    step: jax.Array


def model_config(config: PretrainConfig) -> Config:
    """The backbone's configuration: a row for each piece, T5's 100 sentinels, and up to a 64th."""
    return Config(
        family="t5",
        vocab_size=-(-(config.pieces + 100) // 64) * 64,
        d_model=config.d_model,
        d_ff=config.d_ff,
        num_heads=config.num_heads,
        d_kv=config.d_kv,
        encoder_layers=config.num_layers,
        decoder_layers=config.num_decoder_layers,
        # On a CPU the tanh of a gated GELU costs more than all the products around it.
        activation="relu",
        dropout=config.dropout,
        remat="none",
    )


def run(config: PretrainConfig) -> Path:
    """Trains the backbone and writes its folder; returns the folder.

    Raises:
      InputError: no output folder, a folder that is in use, or a checkpoint of another run.
    """
    from peft_jax.tasks.embedded import TASKS
    from peft_jax.tasks.embedded.mixture import Mixture

    output = _prepare_output(config)
    if not config.tasks:
        names = tuple(name for name, task in TASKS.items() if not task.held_out)
        config = dataclasses.replace(config, tasks=names)
    vocabulary = _make_vocabulary(config, output / VOCABULARY)
    mixture = Mixture(
        vocabulary,
        config.tasks,
        config.rows_per_task,
        config.batch_tokens,
        config.few_shot_share,
        config.max_shots,
        config.seed,
    )
    model, optimizer = model_config(config), make_optimizer(config)
    state, position = _initial_state(config, model, optimizer), (0, 0)
    checkpoints = Checkpoints(_checkpoints(output))
    try:
        if config.resume:
            state, position = _restore(checkpoints, config, state)
        state = _train(config, model, optimizer, state, mixture, position, output, checkpoints)
    finally:
        checkpoints.close()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
    fine_tuned = dataclasses.replace(model, dropout=0.1)
    return save_backbone(output, Backbone(params, fine_tuned, "tiny", vocabulary))


def _make_vocabulary(config: PretrainConfig, file: Path) -> Path:
    """Trains or copies the vocabulary, unless an earlier part of the run did."""
    import sentencepiece

    from peft_jax.tasks.embedded.vocabulary import train_vocabulary

    if file.exists():
        return file
    if config.vocabulary is None:
        return train_vocabulary(file, config.pieces)
    source = backbone_outline(config.vocabulary).vocabulary
    assert source is not None
    found = sentencepiece.SentencePieceProcessor(model_file=str(source)).get_piece_size()
    if found > config.pieces:
        raise InputError(
            f"the vocabulary of {config.vocabulary!r} has {found} pieces; "
            f"pieces is {config.pieces}, give at least {found}"
        )
    shutil.copyfile(source, file)
    return file


def make_optimizer(config: PretrainConfig) -> optax.GradientTransformation:
    """AdamW behind global clipping at 1; norms and biases are not decayed."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        config.warmup_steps,
        max(config.steps, config.warmup_steps + 1),
        config.learning_rate / 100,
    )

    def decayed(params):
        return tree.map_with_path(lambda path, _: path.endswith("kernel"), params)

    def faster_tables(updates, params):
        del params

        def scaled(path: str, update: jax.Array) -> jax.Array:
            return update * config.table_rate if path.endswith("embedding") else update

        return tree.map_with_path(scaled, updates)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=decayed),
        optax.stateless(faster_tables),
    )


def train_step(
    model: Config,
    optimizer: optax.GradientTransformation,
    seed: int,
    state: TrainState,
    batch: dict[str, jax.Array],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on ``encoder_input_tokens`` [B, S] and ``decoder_target_tokens`` [B, T]."""
    key = jax.random.fold_in(jax.random.key(seed), state.step) if model.dropout else None
    targets = batch["decoder_target_tokens"]
    inputs = {**batch, "decoder_input_tokens": transformer.shift_right(model, targets)}

    def loss(params):
        logits = transformer.logits(model, params, inputs, key)
        right = jnp.all((logits.argmax(-1) == targets) | (targets == model.pad_id), axis=1)
        return losses.sequence_loss(logits, targets)[0], jnp.mean(right)

    (value, right), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "exact_match": right}
    return TrainState(params, optimizer_state, state.step + 1), metrics


# --------------------------------------------------------------------------------------------
# Initial weights
# --------------------------------------------------------------------------------------------
def initial_params(key: jax.Array, model: Config, embedding_scale: float) -> Params:
    """Weights that already look at equal tokens and at neighbours, and copy what they look at.

    From T5's own random weights a model this small spends its whole budget on a plateau: it knows
    words, and compares nothing. Weights in the form that attention takes once trained ("mimetic
    initialization", Trockman & Kolter 2023) skip it: reading_who alone is solved in 200 steps
    instead of not at all in 800. Nothing is fixed, everything is trained on.

    - Encoder heads, first half: key = query, so that a token finds its other occurrences, and a
      bias against itself. Second half: weak content, biases that fall with the distance; the
      first of them looks back only.
    - Every attention: out = value transposed, so that what is attended is added as it is.
    - The head is the embedding transposed, so that an input's words are likely answers.
    """
    params = transformer.init(key, model)
    embedding = params["token_embedder"]["embedding"] * embedding_scale
    params["token_embedder"]["embedding"] = embedding
    params["lm_head"]["kernel"] = embedding.T * (model.d_model**-0.5 / embedding_scale)
    for stack in ("encoder", "decoder"):
        layers = params[stack]["layers"]
        layers["mlp"]["wo"]["kernel"] *= 0.3
        for name in layers:
            if name.endswith("attention"):
                value = layers[name]["value"]["kernel"]
                layers[name]["out"]["kernel"] = 0.7 * jnp.swapaxes(value, 1, 2)
    matching = model.num_heads // 2 * model.d_kv  # columns of the first half of the heads
    attention = params["encoder"]["layers"]["attention"]
    query, key_ = attention["query"]["kernel"], attention["key"]["kernel"]
    same = query[..., :matching] * model.d_kv**0.5
    attention["key"]["kernel"] = key_.at[..., :matching].set(same)
    attention["query"]["kernel"] = query.at[..., matching:].multiply(0.2)
    params["encoder"]["relative_bias"]["embedding"] = _initial_biases(model)
    return params


def _initial_biases(model: Config) -> jax.Array:
    """The encoder's relative biases [buckets, H]; the first half of the buckets looks back."""
    half = model.relative_buckets // 2
    # Distances up to half // 2 have a bucket each, further ones share logarithmic buckets.
    exact = np.arange(half // 2)
    far = np.geomspace(half // 2, model.relative_max_distance, half - half // 2)
    distance = np.concatenate([exact, far])
    back, both = -0.7 * distance, -0.3 * distance
    biases = np.zeros((2 * half, model.num_heads), np.float32)
    matching = model.num_heads // 2
    biases[0, :matching] = -6.0
    biases[:half, matching], biases[half:, matching] = back, -8.0
    biases[:, matching + 1 :] = np.concatenate([both, both])[:, None]
    return jnp.asarray(biases)


def _initial_state(config: PretrainConfig, model: Config, optimizer) -> TrainState:
    params = initial_params(jax.random.key(config.seed), model, config.embedding_scale)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def _train(config, model, optimizer, state, mixture, position, output, checkpoints) -> TrainState:
    step = jax.jit(functools.partial(train_step, model, optimizer, config.seed), donate_argnums=0)
    evaluate = make_evaluation(config, model, output / VOCABULARY)
    log = (output / "run" / "metrics.jsonl").open("a")
    first, started, pending = int(state.step), time.monotonic(), []
    done = first
    with log:
        for batch, behind in _prefetched(mixture, position):
            if done >= config.steps:
                break
            state, metrics = step(state, batch)
            pending.append(metrics)
            done += 1
            if done % config.log_interval == 0:
                line = _mean(pending) | {"step": done}
                pending = []
                _check_finite(line)
                rate = (done - first) / (time.monotonic() - started)
                _report(log, line | {"steps_per_second": round(rate, 2)})
                left = (config.steps - done) / rate
                print(f"  {rate:.2f} steps/s, {left / 60:.0f} min left", flush=True)
            if done % config.eval_interval == 0 or done == config.steps:
                _report(log, {"step": done} | evaluate(state.params))
            if done % config.checkpoint_interval == 0 or done == config.steps:
                _save(checkpoints, config, state, behind)
    return state


def _prefetched(mixture, position: tuple[int, int]) -> Iterator[tuple[Batch, tuple[int, int]]]:
    """Batches from a position on, each with the position behind it, made by a second thread."""
    ready: queue.Queue = queue.Queue(maxsize=2)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def produce() -> None:
        block = position[0]
        while not stop.is_set():
            try:
                put((block, mixture.block(block)))
            except BaseException as error:
                return put(error)
            block += 1

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    skip = position[1]
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            block, batches = item
            for index in range(skip, len(batches)):
                last = index + 1 == len(batches)
                yield batches[index], ((block + 1, 0) if last else (block, index + 1))
            skip = 0
    finally:
        stop.set()
        thread.join()  # Python aborts where it ends while a thread is in C++, the tokenizer's say


# --------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------
def make_evaluation(config: PretrainConfig, model: Config, vocabulary: Path):
    """A function of the parameters: rank-classification accuracy by task, and their mean."""
    from peft_jax.scoring import score_choices

    batches = {name: _choice_batches(name, config, vocabulary) for name in config.tasks}
    backbone = Backbone({}, model)
    predict = jax.jit(lambda params, batch: score_choices(backbone, params, batch).argmax(-1))

    def evaluate(params: Params) -> dict[str, float]:
        accuracy = {
            name: float(np.mean([predict(params, b) == b["label"] for b in batches[name]]))
            for name in config.tasks
        }
        return {"accuracy": float(np.mean(list(accuracy.values())))} | accuracy

    return evaluate


def _choice_batches(name: str, config: PretrainConfig, vocabulary: Path) -> list[Batch]:
    """The first validation rows, a batch per template, in one static shape for all tasks."""
    import sentencepiece

    from peft_jax.tasks.embedded import TEMPLATES, rows
    from peft_jax.tasks.prompts import load_templates

    encode = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary)).encode
    examples = rows(name, "validation", config.eval_rows)
    batches = []
    for template in load_templates(TEMPLATES / f"{name}.yaml").values():
        inputs = np.zeros((len(examples), 96), np.int32)
        choices = np.zeros((len(examples), 4, 16), np.int32)
        for i, row in enumerate(examples):
            rendered = template.render(row)
            tokens = [*encode(rendered.input)[:95], 1]
            inputs[i, : len(tokens)] = tokens
            # Classes that a template gives one word count as one choice.
            distinct = list(dict.fromkeys(rendered.choices))
            for c, choice in enumerate(distinct):
                tokens = [*encode(choice)[:15], 1]
                choices[i, c, : len(tokens)] = tokens
            row["answer"] = distinct.index(rendered.target)
        batches.append({
            "encoder_input_tokens": inputs,
            "choices": choices,
            "choice_mask": (choices != 0).any(-1),
            "label": np.array([row["answer"] for row in examples]),
        })  # fmt: skip
    return batches


# --------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------
def _checkpoints(output: Path) -> Path:
    return output / "run" / "checkpoints"


def _prepare_output(config: PretrainConfig) -> Path:
    if config.output is None:
        raise InputError("pretrain: no output folder was given (--output DIR)")
    output = Path(config.output)
    if config.resume and not any(_checkpoints(output).glob("[0-9]*")):
        raise InputError(f"--resume: there is no checkpoint in {output / 'run'} to go on from")
    if not config.resume and output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty: give a new folder, or --resume to go on in it")
    (output / "run").mkdir(parents=True, exist_ok=True)
    fields = {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()}
    (output / "run" / "pretrain.json").write_text(json.dumps(fields, indent=2) + "\n")
    return output


_FREE_FIELDS = ("output", "resume", "log_interval", "eval_interval", "eval_rows",
                "checkpoint_interval")  # fmt: skip


def _fixed(config: PretrainConfig) -> str:
    """The fields that two parts of one run must share, as JSON."""
    fields = {k: v for k, v in vars(config).items() if k not in _FREE_FIELDS}
    return json.dumps(fields, sort_keys=True)


def _save(checkpoints: Checkpoints, config: PretrainConfig, state: TrainState, position) -> None:
    progress = {"position": list(position), "config": _fixed(config)}
    checkpoints.save(int(state.step), state, progress)


def _restore(checkpoints: Checkpoints, config: PretrainConfig, like: TrainState):
    def of_this_run(progress: dict[str, Any]) -> TrainState:
        if progress["config"] != _fixed(config):
            raise InputError(
                "--resume: the checkpoints belong to a run with other fields (run/pretrain.json "
                "shows them): give the same configuration, or a new output folder"
            )
        return like

    state, progress = checkpoints.restore(of_this_run)
    block, index = progress["position"]
    return state, (block, index)


def _mean(metrics: list[dict]) -> dict[str, float]:
    return {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}


def _check_finite(line: dict) -> None:
    if not np.isfinite(line["loss"]):
        raise InputError(
            f"the loss is {line['loss']} at step {line['step']}: a lower learning_rate is needed; "
            "the last checkpoint is kept"
        )


def _report(log, line: dict) -> None:
    log.write(json.dumps(line) + "\n")
    log.flush()
    shown = ", ".join(
        f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()
    )
    print(shown, flush=True)
