"""The typed description of a run: every field with its type and default, on the command line too.

A preset is a plain Python file with a function ``config()`` that returns an :class:`Experiment`;
those under ``configs/`` are known by name.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import pkgutil
import re
import typing
from pathlib import Path
from typing import Any, Literal

from peft_jax import tree
from peft_jax.decoding.options import Decoding
from peft_jax.errors import InputError
from peft_jax.method_config import CLASSES, MethodFields
from peft_jax.methods import METHODS, Method, compose
from peft_jax.optimizers import OptimizerConfig

# The names that presets have used since there were four methods.
IA3Config: Any = CLASSES["ia3"]
LoraConfig: Any = CLASSES["lora"]
BitFitConfig: Any = CLASSES["bitfit"]
PromptTuningConfig: Any = CLASSES["prompt_tuning"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """How the frozen backbone is loaded and run."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen weights; auto: bfloat16 on an accelerator, float32 on a CPU."""
    activation_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of hidden states; auto as above."""
    dropout: float | None = None
    """Rate while training; by default the checkpoint's own (0.1 for a T5)."""
    remat: Literal["none", "dots", "attention", "full", "offload"] = "dots"
    """What the backward pass keeps of a layer: all, the projections' outputs (offload: in the
    host's memory), the attentions' alone, or its input."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Of the layers' frozen kernels: 8 bits with a scale per output, or 4 bits as in QLoRA."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from. Without a directory: the embedded tasks, else TFDS."""

    directory: Path | None = None
    """Folder of JSONL datasets (a folder per dataset), or one dataset's own folder."""
    templates: Path | None = None
    """promptsource templates.yaml, or the folder that holds it; by default those found in the
    directory, else our own."""
    input: str | None = None
    """Files of your own: template of what the model reads, such as "{{text}} Is it a complaint?"
    (docs/data.md says what a task.yaml may hold instead)."""
    choices: tuple[str, ...] = ()
    """The same: the answers that are ranked."""
    target: str | None = None
    """The same: template of the text to write, where there are no choices."""
    label: str | None = None
    """The same: the field that says which choice is right."""
    prepared: Path | None = None
    """File of training examples written by ``peft-jax prepare``: then no TensorFlow is needed."""
    prepared_evaluation: Path | None = None
    """The same for the evaluation split."""
    shots: int | None = None
    """Training examples to draw, 0: all; by default T-Few's number (32) of its own tasks and the
    embedded ones, and all of others."""
    few_shot_seed: int | None = None
    """Seed of the draw; by default the run's seed, as in T-Few."""
    few_shot_style: Literal["tfew", "per_class", "balanced"] = "tfew"
    """tfew: as T-Few drew each dataset, mostly the first of a shuffle; per_class: shots of each
    class; balanced: shots in all, as many of each class."""
    dev_shots: int | None = None
    """Evaluate on so many rows of the training split beside those that are drawn, as few-shot
    papers develop; by default on the evaluation split."""
    folds: int | None = None
    """Cross-validation: deal the training split into so many parts (as many as there are rows:
    leave-one-out), train on all but one and evaluate on that one."""
    fold: int = 0
    """Which part is held out, 0 to folds - 1."""
    templates_drawn: Literal["random", "all"] = "random"
    """An epoch has each example once, under a template drawn at random (T-Few), or under each of
    its templates."""
    pack: bool = False
    """Written answers: several texts stand in one row, apart by segment ids, so that short ones do
    not pay for the longest."""
    mixing: Literal["examples", "equal"] | None = None
    """How often the tasks of a mixture are drawn: in proportion to their rows, or alike; by default
    as the mixture says."""
    mixing_cap: int | None = None
    """Rows of a task that count at most; by default as the mixture says."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be read or rendered stops the run, or is left out and counted."""
    max_input_length: int | None = None
    """Inputs are cut at this many tokens, EOS included; by default the task's own, mostly 256."""
    max_choice_length: int = 64
    """A longer answer choice is an error, never cut."""
    max_target_length: int | None = None
    """Written answers are trained up to this many tokens, EOS included; by default the task's."""
    train_split: str | None = None
    """By default the task's own: train, but where a paper trains on another."""
    evaluation_split: str | None = None
    """By default the task's own, mostly validation."""
    evaluation_examples: int | None = None
    """Evaluate on so many examples, evenly spaced over the split; by default on all."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """L_LM + unlikelihood * L_UL + length_normalized * L_LN (Liu et al. 2022, section 3.2)."""

    unlikelihood: float = 1.0
    length_normalized: float = 1.0
    length_normalization: float = 1.0
    """Exponent of the length in L_LN's scores."""
    variant: Literal["paper", "tfew"] = "paper"
    """"tfew" reproduces the released code's unlikelihood loss instead of the paper's."""
    label_smoothing: float = 0.0
    """Of written answers: the probability taken from the right token."""
    z_loss: float = 0.0
    """Of written answers: pulls the softmax's normaliser to one; T5X pre-trains with 1e-4."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are laid out; the batch is split over data x fsdp."""

    data: int | None = None
    """Ways that only the batch is split; by default what the others leave and the batch allows."""
    fsdp: int | None = None
    """Ways that the batch and the weights are split; by default as few as make the weights fit."""
    model: int | None = None
    """Ways that weights, heads and hidden units are split; by default as few as make them fit."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    """Run each batch in this many parts, one after the other."""
    log_every: int = 10
    checkpoint_every: int = 200
    """Steps between two checkpoints, from which a run that was stopped or killed goes on."""
    checkpoint_minutes: float | None = None
    """Save too where so many minutes have passed since the last checkpoint; looked at where a line
    is logged."""
    checkpoint_folder: str | None = None
    """Where checkpoints lie: a folder that all processes see, or one in a bucket (gs://...); by
    default checkpoints/ in the output folder."""
    keep_checkpoints: int = 2
    """So many newest checkpoints are kept."""
    keep_every: int = 0
    """Checkpoints are made and kept for ever at the multiples of this step; 0: none."""
    keep_best: int = 0
    """So many checkpoints with the highest evaluation scores are kept; each evaluation while
    training (training.evaluate_every) makes one."""
    final: Literal["last", "best"] = "last"
    """Which state is evaluated and written at the end: the last, or that of the best checkpoint
    (training.keep_best). What is chosen by the evaluation split is no estimate for new data."""
    evaluate_every: int = 0
    """Evaluate this often while training; 0: only before and after."""
    devices: int | None = None
    """Devices to use; by default as many as divide the batch."""
    parallel: Literal["jit", "pmap"] = "jit"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Rank classification."""

    batch_size: int = 32
    length_normalization: float = 1.0
    """1: mean log-probability of a choice's tokens (T-Few); 0: their sum (T0)."""
    memory_budget_mb: int = 1024
    """Choices are split into parts so that the decoder's work keeps within this."""
    zero_shot: bool = True
    """Also score the frozen backbone before training."""
    metrics: tuple[str, ...] = ()
    """Beside the task's own; docs/metrics.md lists them."""
    bootstrap: int | None = None
    """Draws of the examples for the score's 95 % interval, 0: none; by default 1,000 where the
    metric sums over rows, and none where it would be computed anew of each."""


@dataclasses.dataclass(frozen=True)
class Experiment(MethodFields):
    """One run: a method trained on one task, and its evaluation.

    Beside the fields below it has one for every method, named like it: the arguments of its
    factory, read where ``method`` includes it (:mod:`peft_jax.method_config`).
    """

    task: str = "embedded_complaint"
    """Name of the task: embedded_*, one that `peft-jax tasks` lists, or a folder of your own inside
    data.directory. A mixture, or several tasks joined by +, are trained together."""
    backbone: str = "tiny"
    """"tiny" (embedded), or the path of a Hugging Face checkpoint folder."""
    method: tuple[str, ...] = ("ia3",)
    """One method, or several that are composed; `peft-jax methods` lists them."""
    answer: Literal["auto", "choices", "head", "verbalizer", "trained_verbalizer", "text"] = "auto"
    """How the model answers: by the choice that it would most likely write; by a classification
    head, trained in the adapter; by one token at the mask of a masked-LM; by the class vectors of
    warp; by the text that it writes. auto: warp's own where it is trained, else choices, or a head
    where the model is an encoder, or text where the task has no choices."""
    seed: int = 42
    """Of the few-shot draw, the order of batches and templates, initialisation and dropout."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    decoding: Decoding = dataclasses.field(default_factory=Decoding)
    """How texts are written for evaluation; what is not given is as the task's paper has it."""


def make_method(config: Experiment) -> Method:
    """The method that an experiment describes.

    Raises:
      InputError: there is no method of a name, or an argument cannot be meant.
    """
    if not config.method:
        raise InputError("method is empty; give at least one of " + ", ".join(CLASSES))
    for name in config.method:
        if name not in CLASSES:
            raise InputError(f"method {name!r} is unknown; {tree.nearest(name, CLASSES)}")
    return compose(*(METHODS[name](**vars(getattr(config, name))) for name in config.method))


def check(config: Experiment) -> None:
    """Raises InputError for a number that cannot be meant, before anything is loaded."""
    at_least = {
        "training.steps": (config.training.steps, 1),
        "training.batch_size": (config.training.batch_size, 1),
        "training.accumulate": (config.training.accumulate, 1),
        "training.log_every": (config.training.log_every, 1),
        "training.checkpoint_every": (config.training.checkpoint_every, 1),
        "training.keep_checkpoints": (config.training.keep_checkpoints, 1),
        "training.keep_every": (config.training.keep_every, 0),
        "training.keep_best": (config.training.keep_best, 0),
        "training.evaluate_every": (config.training.evaluate_every, 0),
        "evaluation.batch_size": (config.evaluation.batch_size, 1),
        "evaluation.bootstrap": (config.evaluation.bootstrap or 0, 0),
        "evaluation.memory_budget_mb": (config.evaluation.memory_budget_mb, 1),
        "data.folds": (config.data.folds or 2, 2),
        "data.fold": (config.data.fold, 0),
        "data.dev_shots": (config.data.dev_shots or 1, 1),
        "data.max_input_length": (config.data.max_input_length or 2, 2),
        "data.max_target_length": (config.data.max_target_length or 2, 2),
        "data.max_choice_length": (config.data.max_choice_length, 2),
        "seed": (config.seed, 0),
    }
    for field, (value, least) in at_least.items():
        if value < least:
            raise InputError(f"{field} is {value}; it must be at least {least}")
    _check_kept(config.training)
    if config.training.batch_size % config.training.accumulate:
        raise InputError(
            f"training.batch_size {config.training.batch_size} is not divisible by "
            f"training.accumulate {config.training.accumulate}"
        )
    make_method(config)


def _check_kept(training: TrainingConfig) -> None:
    minutes = training.checkpoint_minutes
    if minutes is not None and not minutes > 0:
        raise InputError(f"training.checkpoint_minutes is {minutes}; it must be above 0")
    if training.keep_best and not training.evaluate_every:
        raise InputError(
            f"training.keep_best is {training.keep_best} and training.evaluate_every 0: nothing is "
            "evaluated while training; give --training.evaluate-every"
        )
    if training.final == "best" and not training.keep_best:
        raise InputError('training.final is "best" and training.keep_best 0; it must be at least 1')


# --------------------------------------------------------------------------------------------
# Presets
# --------------------------------------------------------------------------------------------
def presets() -> dict[str, str]:
    """Name -> first line of the description of every preset in ``configs/``."""
    import peft_jax.configs as configs

    found = {}
    for module in pkgutil.iter_modules(configs.__path__):
        if module.ispkg:  # gin files of T5X
            continue
        text = importlib.import_module(f"peft_jax.configs.{module.name}").__doc__ or ""
        found[module.name] = text.strip().partition("\n")[0]
    return found


def load_preset(name: str, kind: type = Experiment) -> Any:
    """The configuration that a preset's ``config()`` returns.

    Args:
      name: of a file in ``configs/`` without its ending, or the path of a Python file.
      kind: what it must return an instance of.

    Raises:
      InputError: no such preset, or one that is none of that kind.
    """
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise InputError(f"no configuration file at {path}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        known = presets()
        if name not in known:
            raise InputError(f"no preset is named {name!r}; {tree.nearest(name, known)}")
        module = importlib.import_module(f"peft_jax.configs.{name}")
    if not hasattr(module, "config"):
        raise InputError(f"{name} has no function config()")
    made = module.config()
    if not isinstance(made, kind):
        raise InputError(f"{name}: config() returns {type(made).__name__}, not {kind.__name__}")
    return made


# --------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------
def to_json(config: Any) -> str:
    """Every field as it was used; of methods those that the run has."""
    fields = dataclasses.asdict(config)
    if isinstance(config, Experiment):
        chosen = {name: fields.pop(name) for name in CLASSES}
        fields |= {name: chosen[name] for name in config.method if name in chosen}
    return json.dumps(fields, indent=2, default=str) + "\n"


def from_json(path: Path) -> Experiment:
    """The experiment that a run's ``config.json`` holds."""
    try:
        return from_dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{path} is not a run's configuration: {error}") from None


def from_dict(fields: dict[str, Any]) -> Experiment:
    """The inverse of :func:`to_json`; a field that is not there has its default.

    Raises:
      TypeError: there is no such field.
    """
    return _from_dict(Experiment, fields)


def _from_dict(kind: type, fields: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in fields.items():
        hint = hints.get(name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            value = _from_dict(hint, value)
        elif isinstance(value, list):
            value = _tuples(value)
        elif isinstance(value, str) and (hint is Path or Path in typing.get_args(hint)):
            value = Path(value)
        values[name] = value
    return kind(**values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


_FREE = r"mesh/.*|training/(devices|parallel|checkpoint_.*|keep_.*)"
"""What may be other when a run goes on: the devices, and which checkpoints are made and kept."""


def first_difference(config: Experiment, saved: dict[str, Any]) -> str | None:
    """The first field that must be the saved one and is not, in words; None if there is none.

    What an older release saved may lack fields, and is completed with their defaults.
    """
    try:
        saved = json.loads(to_json(from_dict(saved)))
    except TypeError as error:
        return f"the run was started with fields that are unknown here: {error}"
    now = tree.flatten(json.loads(to_json(config)))
    then = tree.flatten(saved)
    for field in {**now, **then}:
        if now.get(field) != then.get(field) and not re.fullmatch(_FREE, field):
            name = field.replace("/", ".")
            return f"{name} is {now.get(field)!r}, the run was started with {then.get(field)!r}"
    return None
