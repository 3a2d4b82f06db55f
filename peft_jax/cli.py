"""The command line. Every field of a configuration is a flag; ``--help`` shows type and default."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

# TensorFlow's own greetings would drown ours; it is only used to prepare data.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tyro
from rich.console import Console

from peft_jax import config as configuration
from peft_jax import distributed
from peft_jax.config import Experiment
from peft_jax.decoding import Decoding
from peft_jax.distributed import DistributedConfig
from peft_jax.errors import InputError
from peft_jax.method_config import CLASSES
from peft_jax.pretrain import PretrainConfig

FLAT = (tyro.conf.FlagCreatePairsOff,)
T_FEW_SEEDS = (42, 1024, 0, 1, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiling:
    """What every command that compiles asks for."""

    compilation_cache: str = "auto"
    """Folder where compiled programs are kept for the next run, also gs://. auto: what
    JAX_COMPILATION_CACHE_DIR says, else ~/.cache/peft_jax/compiled; off: nothing is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running(Compiling):
    """What every command asks for that several processes may run together."""

    distributed: DistributedConfig = DistributedConfig()  # noqa: RUF009 (frozen)
    """How the processes of a run find each other; docs/processes.md."""


@dataclasses.dataclass(frozen=True)
class Train(Running):
    """Fine-tune a method on one task, evaluate it, and leave a folder with the adapter."""

    output: Path
    """Folder for the run; must not exist or be empty."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    config: str = "tfew"
    """Preset from configs/, or the path of a Python file with a function config()."""
    resume: bool = False
    """Go on from the output folder's newest checkpoint, with the fields it was started with."""
    overwrite: bool = False
    """Delete the run in the output folder first."""
    profile: bool = False
    """Write a trace of a few steps, for TensorBoard or XProf, to OUTPUT/profile."""
    profile_steps: int = 5
    """With --profile: so many steps, from the third that is made."""


@dataclasses.dataclass(frozen=True)
class Evaluate(Running):
    """Evaluate a saved adapter, or a backbone by itself, on one task or on many."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    adapter: Path | None = None
    """Folder of a run, or an adapter file; without it the backbone answers by itself."""
    tasks: tuple[str, ...] = ()
    """Several tasks, one table; "all" for every one whose files lie in --data.directory. By default
    the one task of --task."""
    output: Path | None = None
    """Folder for the results; by default only the table is printed."""


@dataclasses.dataclass(frozen=True)
class Predict(Compiling):
    """Answer one input with a saved adapter."""

    adapter: Path
    """Folder of a run, or an adapter file."""
    text: str
    """The input, as a template would have rendered it."""
    choices: tuple[str, ...] = ()
    """Answers to rank; without them the answer is generated, or the classes of a head ranked."""
    pair: str | None = None
    """A second text, where a head was trained on pairs."""
    backbone: str | None = None
    """"tiny" or a checkpoint folder; by default the one that the run was made with."""
    length_normalization: float = 1.0
    """1: rank by the mean log-probability of a choice's tokens; 0: by their sum."""
    seed: int | None = None
    """Of the draws, with --temperature, --top-k or --top-p; 0 by default."""
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = Decoding()  # noqa: RUF009 (frozen)
    """How texts are generated, without choices."""


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Tokenise a task into a file that trains on a machine without TensorFlow."""

    task: str
    """embedded_*, a dataset, or a folder of your own inside the directory."""
    output: Path
    """The file to write (.safetensors), or the folder of caches for ``--to seqio``."""
    to: Literal["file", "seqio"] = "file"
    """file: for our own runs, without TensorFlow. seqio: a cache of tokens that seqio and T5X read
    with use_cached=True; lengths are then theirs to give."""
    split: str = "train"
    """"train", "validation", or another JSONL file's stem."""
    directory: Path | None = None
    """Folder of JSONL datasets; by default TFDS."""
    templates: Path | None = None
    """promptsource templates.yaml, or the folder that holds it."""
    input: str | None = None
    """Files of your own: as for ``peft-jax train --data.input``, like the next three."""
    choices: tuple[str, ...] = ()
    target: str | None = None
    label: str | None = None
    backbone: str = "tiny"
    """Whose vocabulary is used."""
    answer: Literal["auto", "choices", "head", "verbalizer", "trained_verbalizer", "text"] = "auto"
    """How the backbone will answer, as for ``peft-jax train``."""
    shots: int | None = None
    """Draw this many examples; by default all are kept."""
    seed: int | None = None
    """Of the draw, or of the folds."""
    few_shot_style: Literal["tfew", "per_class", "balanced"] = "tfew"
    """As for ``peft-jax train``."""
    folds: int | None = None
    """Deal the split into so many parts, and keep all but one."""
    fold: int = 0
    """Which part is left out."""
    held_out: bool = False
    """Keep what is left out instead: the fold, or development rows beside the shots."""
    max_input_length: int | None = None
    """In tokens; by default the task's own."""
    max_choice_length: int = 64
    max_target_length: int | None = None
    """Of texts, in tokens; by default the task's own."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a row that cannot be read or rendered, or leave it out and count it."""
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Convert:
    """Write a backbone or an adapter in another format; what is at FROM is found out.

    Backbones: Hugging Face's, T5X's, or ours, the fastest to load. Adapters: Hugging Face PEFT's,
    T-Few's, loralib's (read only), a prompt's .npy, NumPy's .npz, or ours.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FROM")]
    """A backbone: a Hugging Face folder, a T5X checkpoint, a folder of ours, or "tiny". Or an
    adapter: a PEFT folder, a torch file, .npy, .npz, a run's folder or an adapter file."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TO")]
    """Folder to write, or file for tfew, npy and npz."""
    to: Literal["hugging_face", "native", "t5x", "tfew", "npy", "npz"] | None = None
    """By default what TO's ending says; for a folder, t5x where it is named checkpoint_<step>,
    hugging_face for what is ours, and native for the others."""
    backbone: str | None = None
    """For an adapter of another library: the backbone that it is for, as a checkpoint or by name,
    such as t0_3b."""
    alpha: float | None = None
    """For a LoRA of loralib's, whose files lack it: its run's lora_alpha."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the tensors; by default each keeps its own."""
    backbone_config: str | None = None
    """For a T5X checkpoint without a gin file: the published model that it is like, such as
    t5_v1_1_base. Its activation and tokens are taken, the sizes are the checkpoint's own."""
    scanned: bool = False
    """For t5x: all layers in one array, as its network scalable_t5 keeps them."""
    orbax: bool = False
    """For t5x: the form that it has with use_orbax, not its own."""
    overwrite: bool = False
    """Replace what is at TO."""


@dataclasses.dataclass(frozen=True)
class Backbones:
    """List the named backbones: family, shape, parameters, and what was checked."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Families or beginnings of names, such as bert or llama_3; by default all."""
    markdown: bool = False
    """Print the table of docs/backbones.md, a line for each family."""


@dataclasses.dataclass(frozen=True)
class Methods:
    """List the methods: what they train, where, how much, and what can be done with each."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Methods to describe in full; by default all are listed."""
    markdown: bool = False
    """Print the tables of docs/methods.md: all methods, and T-Few's baselines."""


@dataclasses.dataclass(frozen=True)
class Tasks:
    """List the tasks: where their rows come from, how many, and the metrics.

    ``peft-jax tasks show NAME`` prints examples of one, as a model reads them.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Tasks, beginnings of names such as super_glue, or groups; by default all."""
    directory: Path | None = None
    """Folder of data: says which tasks' files are there, and which file or download is wanted."""
    markdown: bool = False
    """Print the tables of docs/tasks.md."""


@dataclasses.dataclass(frozen=True)
class ShowTask:
    """Print a few examples of a task as a model reads them: the prompt, its tokens, what is cut."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Task, as for --task."""
    directory: Path | None = None
    """Folder of data, or the one file of your own."""
    split: str | None = None
    """By default the one that the task is evaluated on."""
    examples: int = 3
    """How many, each under the next of the task's templates."""
    template: str | None = None
    """Name or number of the one template to show."""
    templates: Path | None = None
    """promptsource templates.yaml, or the folder that holds it."""
    input: str | None = None
    """Files of your own: template of what the model reads, as --data.input."""
    choices: tuple[str, ...] = ()
    """The same, as --data.choices."""
    target: str | None = None
    """The same, as --data.target."""
    label: str | None = None
    """The same, as --data.label."""
    backbone: str = "tiny"
    """Whose tokenizer reads them: "tiny", or a checkpoint folder."""
    max_input_length: int | None = None
    """In tokens; by default the task's own."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Whether rows that cannot be used are an error, or skipped and counted."""


@dataclasses.dataclass(frozen=True)
class Study(Running):
    """Many runs, one table, one picture."""

    name: Literal["few_shot", "methods", "underspecified"]
    """few_shot: zero-shot, in-context learning, T-Few without L_UL and L_LN, and T-Few. methods:
    T-Few's baselines, each with its own steps and learning rate, accuracy against parameters.
    underspecified: which of two features in-context learning takes from demonstrations that do not
    say."""
    output: Path
    """Folder for results.jsonl, table.md and study.png; finished runs in it are not run again."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    tasks: tuple[str, ...] = ()
    """Tasks to run; by default the embedded tasks that were held out from pretraining, or all pairs
    of features whose files are there."""
    seeds: tuple[int, ...] = ()
    """One run each; by default T-Few's five, and three of underspecified."""
    demonstrations: int | None = None
    """Solved examples that in-context learning puts in front of an input; by default 8 of few_shot
    and 16 of underspecified."""
    interventions: tuple[str, ...] = ("none",)
    """underspecified: what is done to make the model take one of the features."""
    features: tuple[str, str] | None = None
    """underspecified: two features of your own, such as "longer(text, 50)" "contains(text, nice)",
    of the datasets in --tasks."""
    presets: tuple[str, ...] = ()
    """methods: presets that are compared; by default T-Few's baselines."""
    steps_share: float = 1.0
    """methods: part of each preset's steps that is run, for a short comparison."""
    config: str = "tfew"
    """Preset that the runs start from."""


# --------------------------------------------------------------------------------------------
# Parsing
# --------------------------------------------------------------------------------------------
def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag that decides the defaults of all the others."""
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(flag + "="):
            return argument.partition("=")[2]
    return None


def _parse(kind: type, name: str, arguments: Sequence[str], **defaults: Any):
    experiment = defaults.pop("experiment", None)
    if experiment is not None:
        narrow = _with_methods(_values_of("--method", arguments) or experiment.method)
        described = kind.__doc__
        kind = dataclasses.make_dataclass(
            kind.__name__,
            [("experiment", Annotated[narrow, tyro.conf.arg(name="")])],
            bases=(kind,),
            frozen=True,
            namespace={"__doc__": described},
        )
        defaults["experiment"] = narrow(**vars(experiment))
    missing = {
        f.name: tyro.MISSING
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.name not in defaults
    }
    given = tyro.cli(
        kind,
        prog=f"peft-jax {name}",
        description=kind.__doc__,
        args=list(arguments),
        default=kind(**missing, **defaults),
        config=FLAT,
    )
    if isinstance(given, Compiling):
        from peft_jax.compilation import enable_cache

        enable_cache(given.compilation_cache)
    if experiment is None:
        return given
    return dataclasses.replace(given, experiment=Experiment(**vars(given.experiment)))


def _values_of(flag: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """The values behind a flag that takes several."""
    if flag not in arguments:
        value = _value_of(flag, arguments)
        return () if value is None else (value,)
    behind = arguments[arguments.index(flag) + 1 :]
    return tuple(itertools.takewhile(lambda argument: not argument.startswith("-"), behind))


def _with_methods(methods: Sequence[str]) -> type:
    """An experiment with flags for the fields of these methods alone: all would be hundreds."""
    hidden: Any = tyro.conf.SuppressFixed
    fixed: Any = tyro.conf.Fixed
    fields: list[tuple[str, Any, Any]] = [
        (name, hidden[fixed[made]], dataclasses.field(default=made()))
        for name, made in CLASSES.items()
        if name not in methods
    ]
    names: Any = Literal[tuple(CLASSES)]  # type: ignore[valid-type]
    fields.append(("method", tuple[names, ...], Experiment.method))
    return dataclasses.make_dataclass("Experiment", fields, bases=(Experiment,), frozen=True)


def _saved_experiment(folder: Path) -> Experiment | None:
    """The configuration of the run in a folder, or of the run whose adapter file is given."""
    folder = folder.parent if folder.suffix == ".safetensors" else folder
    path = folder / "config.json"
    return configuration.from_json(path) if path.is_file() else None


@contextlib.contextmanager
def _together(given: Running) -> Iterator[None]:
    """Inside, this process is connected to the others of its run, and ends with them."""
    from peft_jax.experiment import Interrupted

    distributed.connect(given.distributed)
    with distributed.stopping_together(passing=(Interrupted,)):
        yield


# --------------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------------
def train(arguments: Sequence[str]) -> None:
    output, name = _value_of("--output", arguments), _value_of("--config", arguments)
    default = None
    if "--resume" in arguments and output and name is None:
        default = _saved_experiment(Path(output))
    if default is None:
        default = configuration.load_preset(name or "tfew")
    given = _parse(Train, "train", arguments, experiment=default)
    from peft_jax.experiment import run
    from peft_jax.profiling import Profile

    with _together(given):
        profile = Profile(given.output / "profile", given.profile_steps) if given.profile else None
        run(
            given.experiment,
            given.output,
            resume=given.resume,
            overwrite=given.overwrite,
            profile=profile,
        )


def evaluate(arguments: Sequence[str]) -> None:
    adapter = _value_of("--adapter", arguments)
    default = (_saved_experiment(Path(adapter)) if adapter else None) or Experiment()
    given = _parse(Evaluate, "evaluate", arguments, experiment=default)
    with _together(given):
        _evaluate(given)


def _evaluate(given: Evaluate) -> None:
    if given.tasks:
        from peft_jax.task_evaluation import evaluate_tasks

        evaluate_tasks(
            given.experiment,
            given.tasks,
            adapter=given.adapter,
            output=given.output,
            console=Console(),
        )
        return
    from peft_jax.inference import evaluate_adapter

    evaluate_adapter(given.adapter, given.experiment, given.output, Console())


def predict(arguments: Sequence[str]) -> None:
    given = _parse(Predict, "predict", arguments)
    saved = _saved_experiment(given.adapter)
    from peft_jax.inference import predict_text

    answers = predict_text(
        given.adapter,
        given.backbone or (saved.backbone if saved else "tiny"),
        given.text,
        given.choices,
        pair=given.pair,
        length_normalization=given.length_normalization,
        decoding=given.decoding,
        seed=given.seed,
    )
    console = Console()
    for text, score in answers:
        console.print(text if score is None else f"{score:9.4f}  {text}", markup=False)


def prepare(arguments: Sequence[str]) -> None:
    given = _parse(Prepare, "prepare", arguments)
    from peft_jax.backbones import backbone_outline
    from peft_jax.run_data import DENOISING, task_and_answer
    from peft_jax.tasks.prepare import prepare as write

    if given.to == "seqio":
        _prepare_seqio(given)
        return
    if given.task in DENOISING:
        _prepare_text(given)
        return
    options = dataclasses.asdict(given)
    del options["to"]
    own = {key: options.pop(key) for key in ("input", "choices", "target", "label")}
    if given.task.startswith("embedded_"):
        del options["directory"]
    else:
        options["own"] = own
    source = {
        k: options[k] for k in ("directory", "templates", "on_bad_row", "own") if k in options
    }
    backbone = backbone_outline(options.pop("backbone"))
    config, answer = backbone.config, options.pop("answer")
    found, answer = task_and_answer(given.task, backbone, answer, **source)
    rows = {"choices": "choices", "head": "labels", "verbalizer": "verbalizers", "text": "texts"}
    # A trained verbaliser reads the mask of an encoder, elsewhere the prompt.
    kind = rows.get(answer) or ("verbalizers" if config.kind == "encoder" else "choices")
    options["max_input_length"] = given.max_input_length or found.definition.max_input_length
    if kind == "verbalizers":
        options["one_token"] = answer == "verbalizer"
    else:
        options["kind"] = config.kind
    if kind != "choices":
        del options["max_choice_length"]
    if kind == "texts":
        options["start_id"] = config.decoder_start_id
    else:
        del options["max_target_length"]
    if kind == "labels":
        del options["templates"]
    examples = write(
        **options,
        rows=kind,
        backbone_vocabulary_path=backbone.vocabulary,
        pad_id=config.pad_id,
        progress=True,
    )
    _tell_prepared(given.output, examples)


def _prepare_text(given: Prepare) -> None:
    from peft_jax.backbones import backbone_outline
    from peft_jax.tasks.denoising import folder_examples

    if given.output.exists() and not given.overwrite:
        raise InputError(f"{given.output} exists: give another --output, or --overwrite")
    backbone = backbone_outline(given.backbone)
    examples = folder_examples(
        given.task,
        given.split,
        directory=given.directory,
        backbone_vocabulary_path=backbone.vocabulary,
        inputs_length=given.max_input_length or 512,
        seed=given.seed or 0,
        kind=backbone.config.kind,
        pad_id=backbone.config.pad_id,
        start_id=backbone.config.decoder_start_id,
    )
    examples.save(given.output)
    _tell_prepared(given.output, examples)


def _prepare_seqio(given: Prepare) -> None:
    from peft_jax.backbones import backbone_outline
    from peft_jax.tasks.cache import prepare_seqio
    from peft_jax.tasks.draws import Draw

    plain: dict[str, Any] = {
        "max_input_length": None,
        "max_target_length": None,
        "max_choice_length": 64,
    }
    plain |= {"input": None, "choices": (), "target": None, "label": None, "on_bad_row": "error"}
    for name, default in plain.items():
        if getattr(given, name) != default:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} is not for --to seqio, whose cache has whole rows")
    backbone = backbone_outline(given.backbone)
    names = ("shots", "seed", "few_shot_style", "folds", "fold", "held_out")
    draw = Draw(split=given.split, **{name: getattr(given, name) for name in names})
    folder = prepare_seqio(
        given.task,
        given.output,
        backbone_vocabulary_path=backbone.vocabulary,
        splits=(given.split,),
        directory=None if given.task.startswith("embedded_") else given.directory,
        templates=given.templates,
        draw=draw if draw.draws else None,
        kind=backbone.config.kind,
        ranks=False if given.answer == "text" else None,
        overwrite=given.overwrite,
        progress=True,
    )
    Console().print(f"{folder}: the cache of {given.task} {given.split}", markup=False)


def _tell_prepared(output: Path, examples) -> None:
    from peft_jax.run_data import notes_of

    console = Console()
    for note in notes_of(examples):
        console.print(note, markup=False, soft_wrap=True)
    templates = f"{examples.num_templates} template" + "s" * (examples.num_templates != 1)
    console.print(
        f"{output}: {examples.num_examples:,} examples x {templates}, {len(examples):,} rows of at "
        f"most {examples.input_length} tokens"
    )


def convert(arguments: Sequence[str]) -> None:
    given = _parse(Convert, "convert", arguments)
    from peft_jax import convert as conversion
    from peft_jax.exchange.conversion import adapter_format

    console = Console()
    if adapter_format(given.source) is not None:
        _convert_adapter(given, console)
        return
    for name in ("backbone", "alpha"):
        if getattr(given, name) is not None:
            raise InputError(f"--{name} is for adapters; {given.source} is none")
    summaries = conversion.convert(
        given.source,
        given.target,
        given.to,  # type: ignore[arg-type]  # checked there, with the formats of adapters named
        dtype=given.dtype,
        config=given.backbone_config,
        scanned=given.scanned,
        orbax=given.orbax,
        overwrite=given.overwrite,
        console=console,
    )
    console.print(conversion.table(*summaries))


def _convert_adapter(given: Convert, console: Console) -> None:
    from peft_jax.exchange.conversion import convert_adapter, table

    for name in ("dtype", "backbone_config", "scanned", "orbax"):
        if getattr(given, name):
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} is for backbones; {given.source} is an adapter")
    converted = convert_adapter(
        given.source,
        given.target,
        given.to,
        backbone=given.backbone,
        alpha=given.alpha,
        overwrite=given.overwrite,
    )
    console.print(table(*converted))


def pretrain(arguments: Sequence[str]) -> None:
    name = _value_of("--config", arguments)
    default = PretrainConfig() if name is None else configuration.load_preset(name, PretrainConfig)

    @dataclasses.dataclass(frozen=True)
    class Pretrain(Compiling):
        """Train a tiny T5 on the embedded training tasks; the preset pretrain_tiny made ours."""

        pretraining: Annotated[PretrainConfig, tyro.conf.arg(name="")]
        config: str | None = None
        """Preset from configs/, or the path of a Python file."""

    given = _parse(Pretrain, "pretrain", arguments, pretraining=default)
    from peft_jax.pretrain import run

    run(given.pretraining)


def backbones(arguments: Sequence[str]) -> None:
    given = _parse(Backbones, "backbones", arguments)
    from rich.table import Table

    from peft_jax.backbones import table

    if given.markdown:
        print(table.markdown(), end="")
        return
    console = Console()
    found = table.rows(given.names)
    for family in dict.fromkeys(row.family for row in found):
        own = [row for row in found if row.family == family]
        shown = Table(
            title=f"[bold]{family}[/bold], {own[0].kind}; agrees with transformers in "
            + ", ".join(table.CHECKED[family]),
            title_justify="left",
            title_style="",
            box=None,
            header_style="dim",
        )
        shown.add_column("name", min_width=30)
        for name in ("layers", "d_model", "heads", "parameters"):
            shown.add_column(name, justify="right", min_width=8)
        for row in own:
            shape = (row.layers, f"{row.d_model:,}", row.heads)
            shown.add_row(row.name, *shape, f"{row.parameters:,}")
        console.print(shown)


def methods(arguments: Sequence[str]) -> None:
    given = _parse(Methods, "methods", arguments)
    from rich.table import Table

    from peft_jax.methods import table

    if given.markdown:
        from peft_jax.method_study import baselines_markdown

        print(f"{table.markdown()}\n{baselines_markdown()}", end="")
        return
    console = Console()
    shown = Table(box=None, header_style="dim", title_justify="left", title_style="")
    for name in ("method", "on T0-3B", "folds", "bank", "PEFT", "where"):
        narrow = name not in ("folds", "where")
        shown.add_column(name, justify="right" if "T0" in name else "left", no_wrap=narrow)
    found = table.rows(given.names)
    for row in found:
        answers = ("yes" if value else "no" for value in (row.banked, row.exchanged))
        shown.add_row(row.name, f"{row.parameters:,}", row.folds, *answers, row.places)
    console.print(shown)
    for row in found if given.names else ():
        print(f"\n{table.description(row.name)}")


def tasks(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] == "show":
        _show_task(arguments[1:])
        return
    given = _parse(Tasks, "tasks", arguments)
    from peft_jax import task_table

    if given.markdown:
        print(task_table.markdown(), end="")
        return
    console = Console()
    found = task_table.rows(given.names, given.directory)
    console.print(*task_table.tables(found, task_table.mixtures(given.names)), sep="\n")
    if given.names and len(found) <= task_table.DESCRIBED:
        console.print(*task_table.descriptions(found), sep="\n")


def _show_task(arguments: Sequence[str]) -> None:
    given = _parse(ShowTask, "tasks show", arguments)
    from peft_jax.task_preview import previews, print_previews
    from peft_jax.tasks.prompted import find_task

    task = find_task(
        given.name,
        directory=given.directory,
        templates=given.templates,
        on_bad_row=given.on_bad_row,
        own={key: getattr(given, key) for key in ("input", "choices", "target", "label")},
    )
    split = given.split or (task.definition.evaluation_split if task.definition else "validation")
    found = previews(
        task,
        split,
        backbone=given.backbone,
        examples=given.examples,
        template=given.template,
        max_input_length=given.max_input_length,
    )
    print_previews(Console(), task, split, list(found))


def plan(arguments: Sequence[str]) -> None:
    from peft_jax.plan.command import Plan, run

    default = configuration.load_preset(_value_of("--config", arguments) or "t0_3b")
    run(_parse(Plan, "plan", arguments, experiment=default), Console())


def cost(arguments: Sequence[str]) -> None:
    from peft_jax.cost_report import Cost, run

    default = configuration.load_preset(_value_of("--config", arguments) or "tfew")
    run(_parse(Cost, "cost", arguments, experiment=default), Console())


def study(arguments: Sequence[str]) -> None:
    default = configuration.load_preset(_value_of("--config", arguments) or "tfew")
    # The name may stand first, without a flag.
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--name", *arguments]
    given = _parse(Study, "study", arguments, experiment=default)
    with _together(given):
        _study(given)


def _study(given: Study) -> None:
    if given.name == "methods":
        from peft_jax.method_study import compare_methods

        compare_methods(
            given.experiment,
            given.output,
            presets=given.presets,
            tasks=given.tasks,
            seeds=given.seeds or T_FEW_SEEDS,
            steps_share=given.steps_share,
            console=Console(),
        )
        return
    if given.name == "underspecified":
        from peft_jax.bias_study import underspecified_study

        underspecified_study(
            given.experiment,
            given.output,
            tasks=given.tasks,
            features=given.features,
            interventions=given.interventions,
            seeds=given.seeds or (0, 10, 20),
            demonstrations=given.demonstrations or 16,
            console=Console(),
        )
        return
    from peft_jax.study import few_shot

    few_shot(
        given.experiment,
        given.output,
        tasks=given.tasks,
        seeds=given.seeds or T_FEW_SEEDS,
        demonstrations=given.demonstrations or 8,
        console=Console(),
    )


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "train": (train, "fine-tune on one task, evaluate, leave an adapter"),
    "evaluate": (evaluate, "measure an adapter, or a backbone alone, on one task or on many"),
    "predict": (predict, "answer one input with a saved adapter"),
    "prepare": (prepare, "tokenise a task into a file that needs no TensorFlow"),
    "convert": (convert, "write a backbone or an adapter in another library's format"),
    "backbones": (backbones, "list families, sizes, parameters and what was checked"),
    "methods": (methods, "list methods: what they train, where, and how much"),
    "tasks": (tasks, "list tasks, and show examples of one as a model reads them"),
    "cost": (cost, "what a run needs: parameters, disk, FLOPs, memory of a device by part"),
    "plan": (plan, "compile a run for a TPU pod that is not here: memory, work, time"),
    "study": (study, "many runs, one table, one picture"),
    "pretrain": (pretrain, "make the embedded backbone again"),
}


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    found = configuration.presets()
    widest = max(map(len, found))
    presets = [f"  {name:<{widest}}  {about}" for name, about in found.items()]
    return "\n".join(
        [
            "usage: peft-jax COMMAND [--help] [--any.field VALUE ...]",
            "",
            *lines,
            "",
            "presets (--config):",
            *presets,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; exit code 2 and one clear message for bad input."""
    from peft_jax.experiment import Interrupted

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        from peft_jax import __version__

        print(__version__)
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise InputError(f"no command is named {arguments[0]!r}; one of {', '.join(COMMANDS)}")
        COMMANDS[arguments[0]][0](arguments[1:])
    except InputError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, style="red")
        return 2
    except Interrupted as stopped:
        Console(stderr=True).print(f"{stopped}; --resume goes on from there", markup=False)
        return stopped.exit_code
    except BrokenPipeError:  # `peft-jax train --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
