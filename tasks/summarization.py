"""Summarisation: XSUM as prefix-tuning reads it, its splits by topic, CNN/DailyMail and SAMSum.

The models of the prefix-tuning paper (Li and Liang 2021, section 5) read the document alone;
``_seq2seq`` puts T5's "summarize: " in front (Raffel et al. 2020, appendix D.11).

The paper's two extrapolation tasks train on some topics of the BBC's news and evaluate on others
(section 7.3). The topic of an article stands in its address, of which Hugging Face's copy of XSUM
keeps only the number: `topic_of` and `split_by_topic` make the two splits where the addresses are
known, as in the original release.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.prompts import Rendered, TextFormat

NEWS_TO_SPORTS = "news_to_sports"
WITHIN_NEWS = "within_news"
WITHIN_NEWS_TRAINING = frozenset({"world", "uk", "business"})
"""Topics on which the within-news task trains; it evaluates on all other news."""

_TOPIC = re.compile(r"https?://(?:\S+?/)?(?:www\.)?bbc\.(?:co\.uk|com)(?::80)?/(\S+)")
_NATIONS = ("england", "scotland", "wales", "northern-ireland", "uk-politics")
_ELSEWHERE = (
    "world-africa",
    "world-asia",
    "world-australia",
    "world-europe",
    "world-latin-america",
    "world-middle-east",
    "world-us-canada",
)


def topic_of(url: str) -> str:
    """The topic of a BBC article by its address: "sport", "world", "uk", "business", "health" ...

    ``/sport/...`` is sport; ``/news/<topic>-<number>`` is news of a topic. The parts of the world
    are "world", the nations of the United Kingdom and their regions "uk". An address of the
    Internet Archive that holds a BBC address is read as that.

    Raises InputError for an address that is none of the BBC's articles.
    """
    found = _TOPIC.match(url)
    path = "" if found is None else found[1]
    if path.startswith("sport"):
        return "sport"
    section = re.match(r"news/(?:[a-z]+/)*?([a-z][a-z-]*?)-?(?:-\d+)?$", path)
    if section is None:
        raise InputError(
            f"{url!r} is no address of a BBC article (bbc.co.uk/news/<topic>-<number>)"
        )
    topic = section[1]
    if topic in _ELSEWHERE or topic.startswith("world"):
        return "world"
    if topic == "uk" or topic.startswith(("uk-", *_NATIONS)):
        return "uk"
    return topic


def split_by_topic(rows: Iterable[Mapping], rule: str) -> tuple[list[dict], list[dict]]:
    """Rows with ``topic``, or ``url``, -> (rows to train on, rows to evaluate on).

    Args:
        rule: "news_to_sports": news to train on, sport to evaluate on; "within_news": world, UK and
            business to train on, all other news to evaluate on.

    Raises InputError for another rule, and for a row without topic and address.
    """
    if rule not in (NEWS_TO_SPORTS, WITHIN_NEWS):
        raise InputError(f"rule {rule!r} is not known: {NEWS_TO_SPORTS!r} or {WITHIN_NEWS!r}")
    trained: list[dict] = []
    evaluated: list[dict] = []
    for number, row in enumerate(rows):
        if "topic" not in row and "url" not in row:
            raise InputError(f"row {number} has neither topic nor url; it has " + ", ".join(row))
        topic = row["topic"] if "topic" in row else topic_of(row["url"])
        if rule == NEWS_TO_SPORTS:
            (evaluated if topic == "sport" else trained).append(dict(row))
        elif topic != "sport":
            (trained if topic in WITHIN_NEWS_TRAINING else evaluated).append(dict(row))
    return trained, evaluated


def _renamed(document: str, summary: str):
    """An `expand` for copies that call the two fields otherwise."""

    def expand(row: Mapping) -> list[dict]:
        made = dict(row)
        for name, other in (("document", document), ("summary", summary)):
            if name not in made and other in made:
                made[name] = made.pop(other)
        return [made]

    return expand


_FIELDS = ("document", "summary")
XSUM = Dataset(
    name="xsum",
    fields=_FIELDS,
    label_field=None,
    shots=0,
    tfds="xsum",
    hub="xsum",
    folder="xsum",
    templates="xsum",
    sizes={"train": 204_045, "validation": 11_332, "test": 11_334},
    download="huggingface.co/datasets/EdinburghNLP/xsum",
)
CNN_DM = Dataset(
    name="cnn_dm",
    fields=_FIELDS,
    label_field=None,
    shots=0,
    tfds="cnn_dailymail",
    hub="cnn_dailymail/3.0.0",
    folder="cnn_dm",
    templates="cnn_dailymail/3.0.0",
    expand=_renamed("article", "highlights"),
    sizes={"train": 287_113, "validation": 13_368, "test": 11_490},
    download="huggingface.co/datasets/abisee/cnn_dailymail",
)
SAMSUM = Dataset(
    name="samsum",
    fields=_FIELDS,
    label_field=None,
    shots=0,
    tfds="samsum",
    hub="samsum",
    folder="samsum",
    templates="samsum",
    expand=_renamed("dialogue", "summary"),
    sizes={"train": 14_732, "validation": 818, "test": 819},
    download="huggingface.co/datasets/Samsung/samsum",
)


def _document(prefix: str = ""):
    def render(row: Mapping) -> Rendered | None:
        # Copies of XSUM have a few documents of no text (a page with a video only).
        if not row["document"].strip():
            return None
        return Rendered(prefix + row["document"].strip(), row["summary"].strip())

    return render


_PLAIN = TextFormat("document", _document())
_SUMMARIZE = TextFormat("summarize", _document("summarize: "))

_XSUM_TASK = TaskDefinition(
    name="xsum",
    dataset=XSUM,
    group="Summarisation",
    formats=(_PLAIN,),
    metrics=("rouge_stemmed",),
    about="one sentence on a BBC article, as prefix-tuning reads it (Li and Liang 2021, section 5)",
    max_input_length=512,
    max_target_length=60,
    decoding={"beams": 6, "length_penalty": 0.8, "min_length": 11, "max_length": 62},
    aliases=("EdinburghNLP/xsum",),
)


def _topics(name: str, about: str) -> TaskDefinition:
    dataset = replace(
        XSUM,
        name=f"xsum_{name}",
        tfds=None,
        hub=None,
        folder=f"xsum_{name}",
        sizes={},
        download=f"of XSUM's own release: peft_jax.tasks.summarization.split_by_topic, {name!r}",
    )
    return replace(_XSUM_TASK, name=dataset.name, dataset=dataset, about=about, aliases=())


def _seq2seq(task: TaskDefinition) -> TaskDefinition:
    about = f"{task.about.split(',')[0]}, behind T5's summarize:"
    return replace(
        task,
        name=f"{task.name}_seq2seq",
        formats=(_SUMMARIZE,),
        metrics=("rouge",),
        about=about,
        aliases=(),
    )


_CNN_DM_TASK = TaskDefinition(
    name="cnn_dm",
    dataset=CNN_DM,
    group="Summarisation",
    formats=(_PLAIN,),
    metrics=("rouge_stemmed",),
    about="the highlights of a news article, See et al. (2017)",
    max_input_length=512,
    max_target_length=142,
    decoding={"beams": 4, "length_penalty": 2.0, "no_repeat_ngram": 3, "max_length": 142},
    aliases=("cnn_dailymail",),
)
_SAMSUM_TASK = TaskDefinition(
    name="samsum",
    dataset=SAMSUM,
    group="Summarisation",
    formats=(_PLAIN,),
    metrics=("rouge_stemmed",),
    about="what a chat is about, Gliwa et al. (2019); GPT-3's task in LoRA (table 4)",
    max_input_length=512,
    max_target_length=96,
    decoding={"beams": 4, "max_length": 96},
)

TASKS: tuple[TaskDefinition, ...] = (
    _XSUM_TASK,
    _topics(NEWS_TO_SPORTS, "XSUM, trained on news and evaluated on sport (section 7.3)"),
    _topics(
        WITHIN_NEWS, "XSUM, trained on world, UK, business; evaluated on other news (section 7.3)"
    ),
    _CNN_DM_TASK,
    _SAMSUM_TASK,
    _seq2seq(_XSUM_TASK),
    _seq2seq(_CNN_DM_TASK),
    _seq2seq(_SAMSUM_TASK),
)
