"""promptsource's templates as tasks, and the mixtures that T0 and T-Few train on.

Any template of a collection below the data's folder is a task of the name that P3 gives it, which
is its name in t-zero's seqio registry (github.com/bigscience-workshop/t-zero, ``t0/seqio_tasks``)::

    data/promptsource_templates/super_glue/rte/templates.yaml, "GPT-3 style"
        t0_super_glue_rte_GPT_3_style    ranks its answer choices, or writes where it has none
        t0_super_glue_rte                all templates of the dataset, written: T0's training
        t0_super_glue_rte_score_eval     those of the original task, ranked: T0's evaluation

``super_glue_rte_GPT_3_style`` and ``..._score_eval`` are accepted as well. `MIXTURES` combines the
datasets of `peft_jax.tasks.t0_table` at t-zero's rates; `template_rates` gives the rates of single
templates. All templates of a dataset are trained on, not only those of its original task, except
the 24 that t-zero leaves out (`LEFT_OUT`).
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tasks import t0_table
from peft_jax.tasks.catalogue import MixtureDefinition, TaskDefinition, definitions
from peft_jax.tasks.datasets import DATASETS as FEW_SHOT_DATASETS
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.prompts import Rendered, Template, load_templates
from peft_jax.tasks.t0_table import HELD_OUT, TRAINING, Stage, in_mixture, p3_slug, with_plain_names

COLLECTION = "promptsource_templates"
PREFIX, RANKED = "t0_", "_score_eval"
NO_LABEL = "<NO LABEL>"
"""What t-zero has a model write where a template prints no target."""

# fmt: off
LEFT_OUT = frozenset(
    [f"hotpot_qa_{setting}_Generate_{what}"
     for setting in ("distractor", "fullwiki")
     for what in ("Explanations", "Answer_and_Explanations", "Answer", "Title_1", "Title_2",
                  "Question")]
    + [f"tab_fact_tab_fact_tab_fact_{number}" for number in range(1, 8)]
    + ["wiki_hop_masked_Choose_Best_Object_Candidate",
       "wiki_hop_masked_Indirect_Question_about_Birthplace_Citizenship_Place_of_Death",
       "narrativeqa_Template_05",
       "ecthr_cases_alleged_violation_prediction_silver_rationales",
       "gigaword_summarize_"]
)
"""Templates that t-zero's and T-Few's mixtures leave out: inputs that are too long, and one that
was broken in P3. promptsource has renamed or dropped most of them since."""
# fmt: on

METRICS: Mapping[str, str] = {
    "Accuracy": "exact_match",
    "BLEU": "bleu",
    "COQA F1": "squad",
    "Pearson Correlation": "pearson",
    "ROUGE": "rouge",
    "Spearman Correlation": "spearman",
    "Squad": "squad",
    "Trivia QA": "squad",
}
"""promptsource's metrics for written answers; t-zero measures any other by exact match."""


@dataclass(frozen=True)
class P3Format:
    """A promptsource template as P3 uses it: the right choice is the one that it prints as target.

    Attributes:
        template: the template.
        ranks: whether its answer choices are ranked; else the target is written.
    """

    template: Template
    ranks: bool

    @property
    def name(self) -> str:
        """The template's."""
        return self.template.name

    @property
    def file(self) -> str:
        """The template's."""
        return self.template.file

    @property
    def jinja(self) -> str:
        """The template's."""
        return self.template.jinja

    def render_all(self, row: Mapping) -> Sequence[Rendered]:
        """See `peft_jax.tasks.prompts.Format`. Raises InputError for a target that is no choice."""
        made = self.template.render(row)
        if made is None:
            return ()
        if not self.ranks or made.choices is None:
            return (Rendered(made.input, made.target or NO_LABEL),)
        if made.target not in made.choices:
            raise InputError(
                f"{self.file}: template {self.name!r} prints the target {made.target!r}, which is "
                f"none of its answer choices {', '.join(map(repr, made.choices))}: it can be "
                "written, not ranked"
            )
        return (made._replace(keep={"label": made.choices.index(made.target)}),)


def resolve(name: str, directory: str | Path | None) -> TaskDefinition | None:
    """The task of a template, or of a dataset's templates; see the head of this file.

    Args:
        name: the task's; case and runs of _ do not matter where the exact name is not there.
        directory: the data's folder, which holds a folder promptsource_templates or lies beside it.

    Returns None for a name that no collection there knows.

    Raises InputError for ``t0_...`` of a dataset whose templates are not there, and for a template
    that its dataset's file does not have.
    """
    slug = name.removesuffix(RANKED).removeprefix(PREFIX)
    asked_for = name.startswith(PREFIX)
    anli = re.fullmatch(r"anli_(.+)_(r[123])", slug)  # t-zero's order of the words
    if anli is not None:
        slug = f"anli_{anli[2]}_{anli[1]}"
    found = [
        (prefix, dataset, file)
        for collection in _collections(directory)
        for prefix, dataset, file in _datasets(collection)
        if (slug == prefix and asked_for) or slug.startswith(f"{prefix}_")
    ]
    for prefix, dataset, file in sorted(found, key=lambda candidate: -len(candidate[0])):
        made = _definition(name, slug, prefix, dataset, file)
        if made is not None:
            return made
    if asked_for:
        _refuse(name, slug, found, directory)
    return None


def template_rates(stage: Stage, collection: str | Path, *, tfew: bool = False) -> dict[str, int]:
    """The templates of a mixture and how often each is drawn, as t-zero registers them.

    Args:
        stage: "T0", "T0+" or "T0++".
        collection: promptsource's ``templates`` folder.
        tfew: cut as T-Few's pretraining cuts (see `peft_jax.tasks.t0_table.Training.cap`).

    Returns P3's names and the mixture's rates. The number of a dataset's templates is that of the
    collection. Raises InputError for a dataset whose templates are not there.
    """
    rates = {}
    for entry in in_mixture(stage):
        names = list(_templates(Path(collection) / entry.hub / "templates.yaml"))
        share = t0_table.CAP // len(names)
        capped = entry.rows > (share if tfew else t0_table.CAP)
        tasks = [p3_slug(f"{entry.hub}_{name}") for name in names]
        rates |= {t: share if capped else entry.rows for t in tasks if t not in LEFT_OUT}
    return rates


# ------------------------------------------------------------------------------- resolution


def _collections(directory: str | Path | None) -> list[Path]:
    if directory is None:
        return []
    places = (Path(directory) / COLLECTION, Path(directory).parent / COLLECTION)
    return [place for place in places if place.is_dir()]


def _datasets(collection: Path) -> Iterator[tuple[str, Dataset, Path]]:
    """(prefix of the task names, dataset, templates file) of everything in a collection."""
    known = _known_datasets()
    for file in sorted(collection.rglob("templates.yaml")):
        hub = file.parent.relative_to(collection).as_posix()
        own = known.get(hub, ())
        for dataset in own:
            yield dataset.name, dataset, file
        if len(own) < 2:  # anli's rounds have names of their own only
            dataset = own[0] if own else _unknown_dataset(hub)
            if p3_slug(hub) != dataset.name or not own:
                yield p3_slug(hub), dataset, file


@functools.cache
def _known_datasets() -> dict[str, tuple[Dataset, ...]]:
    """The datasets whose fields are known, by their folder in promptsource.

    Another module's dataset stands for one of T0's only if its rows have the fields that the
    templates read: a task with a form of its own may have renamed them.
    """
    wanted = {entry.hub: set(entry.fields.split()) for entry in TRAINING}
    every = [
        *FEW_SHOT_DATASETS.values(),
        *_AS_TEMPLATES_READ,
        *(
            task.dataset
            for task in definitions().values()
            if wanted.get(task.dataset.templates, set()) <= set(task.dataset.fields)
        ),
        *t0_table.DATASETS.values(),
    ]
    found: dict[str, dict[str, Dataset]] = {}
    for dataset in every:
        names = found.setdefault(dataset.templates, {})
        if not names or dataset.templates == "anli":
            names.setdefault(dataset.name, dataset)
    return {hub: tuple(names.values()) for hub, names in found.items() if hub}


def _e2e_rows(row: dict) -> list[dict]:
    """E2E as its templates read it, a row per reference, from rows of either naming."""
    if "mr" not in row:
        return [row]
    texts = row.get("refs") or [row.get("ref")]
    return [{"meaning_representation": row["mr"], "human_reference": text} for text in texts]


def _web_nlg_rows(row: dict) -> list[dict]:
    """WebNLG as its templates read it, a row per text, from rows of either naming."""
    if "modifiedtripleset" not in row:
        return [row]
    texts = row.get("refs") or [row.get("lex")]
    triples = {"mtriple_set": [row["modifiedtripleset"]]}
    return [{"modified_triple_sets": triples, "lex": {"text": [text]}} for text in texts]


_AS_TEMPLATES_READ = (
    Dataset(
        "e2e_nlg_cleaned",
        ("meaning_representation", "human_reference"),
        label_field=None,
        hub="e2e_nlg_cleaned",
        folder="e2e_nlg",
        templates="e2e_nlg_cleaned",
        expand=_e2e_rows,
        download="https://github.com/tuetschek/e2e-cleaning",
    ),
    Dataset(
        "enriched_web_nlg_en",
        ("modified_triple_sets", "lex"),
        label_field=None,
        hub="enriched_web_nlg/en",
        folder="webnlg_2017",
        templates="enriched_web_nlg/en",
        expand=_web_nlg_rows,
        download="https://huggingface.co/datasets/enriched_web_nlg, configuration en",
    ),
)
"""Datasets whose tasks have a form of their own, with the fields that the templates read."""


def _plain_named(row: dict) -> list[dict]:
    return [with_plain_names(row)]


def _unknown_dataset(hub: str) -> Dataset:
    """A dataset of which only the templates are known."""
    name = p3_slug(hub)
    return Dataset(
        name=name,
        fields=(),
        label_field=None,
        hub=hub,
        folder=name,
        templates=hub,
        expand=_plain_named,
        download=f"https://huggingface.co/datasets/{hub.partition('/')[0]}",
    )


def _definition(
    name: str, slug: str, prefix: str, dataset: Dataset, file: Path
) -> TaskDefinition | None:
    """The task that a name means if it is one of this dataset's."""
    if slug == prefix:
        if name.endswith(RANKED):
            return _ranked_dataset(name, dataset, file)
        return _written_dataset(dataset, file)
    wanted = slug.removeprefix(f"{prefix}_")
    templates = _templates(file)
    slugs = {p3_slug(f"_{template}")[1:]: template for template in templates}
    plain = {_plain(one): template for one, template in slugs.items()}
    found = slugs.get(wanted) or plain.get(_plain(wanted))
    if found is None:
        return None
    template = templates[found]
    ranked = template.answer_choices is not None
    own_name = p3_slug(f"{_own(dataset)}_{found}")
    p3_name = own_name
    if dataset.templates == "anli":
        p3_name = p3_slug(f"anli_{found}_{dataset.name.removeprefix('anli_')}")
    return _made(
        f"{PREFIX}{own_name}",
        dataset,
        [template],
        ranked=ranked,
        metrics=("accuracy",) if ranked else _metrics(file, [found]),
        about=f"promptsource's template {found!r} of {dataset.templates}",
        aliases=(p3_name, f"{p3_name}{RANKED}") if ranked else (p3_name,),
    )


def _own(dataset: Dataset) -> str:
    """A dataset's part of our task names: P3's, except for anli's rounds, which P3 has last."""
    return dataset.name if dataset.templates == "anli" else p3_slug(dataset.templates)


def _written_dataset(dataset: Dataset, file: Path) -> TaskDefinition:
    templates = {
        key: template
        for key, template in _templates(file).items()
        if p3_slug(f"{dataset.templates}_{key}") not in LEFT_OUT
    }
    return _made(
        f"{PREFIX}{_own(dataset)}",
        dataset,
        list(templates.values()),
        ranked=False,
        metrics=_metrics(file, list(templates)),
        about=f"all {len(templates)} templates of promptsource's {dataset.templates}, written, as "
        "T0 trains (Sanh et al. 2022)",
    )


def _ranked_dataset(name: str, dataset: Dataset, file: Path) -> TaskDefinition:
    templates = [
        template
        for template in _templates(file).values()
        if template.original_task and template.answer_choices is not None
    ]
    if not templates:
        raise InputError(
            f"{name}: no template of {file} is of the original task and has answer choices"
        )
    return _made(
        f"{PREFIX}{_own(dataset)}{RANKED}",
        dataset,
        templates,
        ranked=True,
        metrics=("accuracy",),
        about=f"{len(templates)} templates of promptsource's {dataset.templates} for its original "
        "task, ranked, as T0 is evaluated",
    )


def _made(
    name: str,
    dataset: Dataset,
    templates: Sequence[Template],
    *,
    ranked: bool,
    metrics: tuple[str, ...],
    about: str,
    aliases: tuple[str, ...] = (),
) -> TaskDefinition:
    return TaskDefinition(
        name,
        dataset,
        group="P3",
        formats=tuple(P3Format(template, ranked) for template in templates),
        metrics=metrics,
        about=about,
        max_input_length=1024,  # T0's (Sanh et al. 2022, section 5)
        max_target_length=256,
        aliases=aliases,
    )


def _refuse(name: str, slug: str, found: list, directory: str | Path | None) -> None:
    """Raises InputError if it can be told what is missing for ``t0_...``."""
    if found:
        prefix, _, file = max(found, key=lambda candidate: len(candidate[0]))
        wanted = slug.removeprefix(f"{prefix}_")
        names = [p3_slug(f"_{template}")[1:] for template in _templates(file)]
        raise InputError(
            f"task {name!r}: {file} has no template {wanted!r}; {tree.nearest(wanted, names)}"
        )
    known = [
        hub
        for hub, datasets in _known_datasets().items()
        for one in {p3_slug(hub), *(dataset.name for dataset in datasets)}
        if slug == one or slug.startswith(f"{one}_")
    ]
    if known:
        hub = max(known, key=len)
        where = "the data's folder (--data.directory)" if directory is None else str(directory)
        raise InputError(
            f"task {name!r} wants promptsource's templates: {where} has no "
            f"{COLLECTION}/{hub}/templates.yaml (copy the folder promptsource/templates of "
            f"github.com/bigscience-workshop/promptsource there as {COLLECTION})"
        )


def _plain(slug: str) -> str:
    return re.sub(r"_+", "_", slug.lower()).strip("_")


# ------------------------------------------------------------------------------------ files


def _templates(file: Path) -> dict[str, Template]:
    return _read(file, _changed(file))


def _metrics(file: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Our names of the metrics of some templates, those of most templates first."""
    templates = _templates(file)
    counts = Counter(
        METRICS.get(metric, "exact_match")
        for name in names
        for metric in templates[name].metrics or ("Other",)
    )
    return tuple(metric for metric, _ in counts.most_common())


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=512)
def _read(file: Path, changed: int) -> dict[str, Template]:
    """The templates of a file; read once per change."""
    return load_templates(file)


# --------------------------------------------------------------------------------- mixtures


def _mixture(name: str, stage: Stage, about: str, *, tfew: bool = False) -> MixtureDefinition:
    entries = {f"{PREFIX}{p3_slug(entry.hub)}": entry for entry in in_mixture(stage)}
    return MixtureDefinition(
        name,
        tuple(entries),
        caps={task: entry.prompts * entry.cap(tfew=tfew) for task, entry in entries.items()},
        about=about,
    )


OFFERED: tuple[TaskDefinition, ...] = tuple(
    TaskDefinition(
        f"{PREFIX}{p3_slug(entry.hub)}",
        t0_table.DATASETS[entry.name],
        group="P3",
        metrics=("exact_match",),
        about=f"{entry.family}, in {entry.stage}: all {entry.prompts} templates, written",
        max_input_length=1024,
        max_target_length=256,
    )
    for entry in TRAINING
)
"""What `resolve` makes of T0's datasets, for lists of tasks: without the formats and their metrics,
which the collection in the data's folder tells."""

MIXTURES: tuple[MixtureDefinition, ...] = (
    _mixture("t0_train", "T0", "T0's training mixture (Sanh et al. 2022; t-zero's t0_train)"),
    _mixture("t0_plus", "T0+", "T0+: T0's and GPT-3's evaluation sets (t-zero's t0+_train)"),
    _mixture("t0_plus_plus", "T0++", "T0++: T0+'s and SuperGLUE's (t-zero's t0++_train)"),
    _mixture(
        "t0_tfew",
        "T0",
        "what T-Few pretrains (IA)3 on (Liu et al. 2022, section 3.4): T0's, cut to 500,000 / "
        "templates examples per template",
        tfew=True,
    ),
    MixtureDefinition(
        "tfew_held_out",
        tuple(entry.task for entry in HELD_OUT),
        rate="equal",
        about="the eleven columns of T-Few's table 1 (Liu et al. 2022)",
    ),
)
