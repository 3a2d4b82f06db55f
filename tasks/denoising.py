"""Span corruption and prefix language modelling, on the ids of plain text, with numpy alone.

T5's two ways to train on text (Raffel et al. 2020, sections 3.1.4 and 3.3; the second is also how
Lester et al. 2021, section 3.1, adapt T5 to be a language model)::

    text               Thank you for inviting me to your party last week
    span corruption    Thank you <X> me to your party <Y> week     <X> for inviting <Y> last <Z>
    prefix LM          Thank you for inviting                      me to your party last week

The functions are called as those of t5.data.preprocessors (t5 0.9.4), and do what these do: the
same chunks in the same order, masks of the same distribution, and for the same mask the same ids.
Where t5 draws with TensorFlow's seeds they take a numpy generator: `example_rng` makes one of a
seed and an example's index, so that an example is a function of both. In t5 a text longer than
65,536 tokens gives one chunk of them in an epoch; here it is used whole.

For seqio's pipelines see `peft_jax.tasks.pretraining`; our own runs read a folder of text::

    peft-jax train --task span_corruption --data.directory TEXT_FOLDER ...
    peft-jax prepare --task prefix_lm --directory TEXT_FOLDER --output train.safetensors
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.documents import read_documents
from peft_jax.text_examples import TextExamples, TextKind, TextRow
from peft_jax.tokenizer import Tokenizer, load_tokenizer

Objective = Literal["span_corruption", "prefix_lm"]

NOISE_DENSITY = 0.15
MEAN_NOISE_SPAN_LENGTH = 3.0
SENTINELS = 100
"""How many ids at the top of T5's vocabularies stand for spans."""
DOCUMENTS_TOGETHER = 128
"""How many documents are put together before they are cut into chunks."""


def random_spans_helper(
    inputs_length: int,
    noise_density: float = NOISE_DENSITY,
    mean_noise_span_length: float = MEAN_NOISE_SPAN_LENGTH,
    extra_tokens_per_span_inputs: int = 1,
    extra_tokens_per_span_targets: int = 1,
) -> tuple[int, int]:
    """How long chunks and targets are, so that nothing is padded and nothing cut.

    Args:
        inputs_length: of the corrupted inputs with EOS, e.g. 512.
        extra_tokens_per_span_inputs, extra_tokens_per_span_targets: sentinels of a span.

    Returns (tokens_length, targets_length): of the chunks of text, and of the targets with EOS;
    (568, 114) for 512. Raises InputError for a length that holds no corrupted token.
    """
    if inputs_length < 3:
        raise InputError(f"inputs of {inputs_length} tokens hold no span: 3 are needed at least")

    def lengths(tokens: int) -> tuple[int, int]:
        noise = round(tokens * noise_density)
        spans = round(noise / mean_noise_span_length)
        inputs = tokens - noise + spans * extra_tokens_per_span_inputs + 1
        return inputs, noise + spans * extra_tokens_per_span_targets + 1

    tokens = inputs_length - 1
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    inputs, targets = lengths(tokens)
    if noise_density == 0.5 and targets > inputs:  # t5's: targets no longer than inputs
        return tokens - 1, targets - 1
    return tokens, targets


def example_rng(seed: int, index: int, epoch: int = 0) -> np.random.Generator:
    """The random numbers of an example: of nothing but these three."""
    return np.random.default_rng([seed, epoch, index])


# --------------------------------------------------------------------------------------------
# Masks
# --------------------------------------------------------------------------------------------
def random_spans_noise_mask(
    length: int,
    rng: np.random.Generator,
    noise_density: float = NOISE_DENSITY,
    mean_noise_span_length: float = MEAN_NOISE_SPAN_LENGTH,
) -> np.ndarray:
    """[length] bool: which tokens are noise.

    There are round(length * noise_density) of them, at least one, in round(that /
    mean_noise_span_length) spans, at least one; the text begins with what is kept and ends with
    noise. Every mask of this kind is as likely as any other. Half numbers are rounded to even, in
    float32, as TensorFlow does it.
    """
    if noise_density == 0:
        return np.zeros(length, bool)
    size = max(length, 2)
    noise = int(np.round(np.float32(size) * np.float32(noise_density)))
    noise = min(max(noise, 1), size - 1)
    spans = max(int(np.round(np.float32(noise) / np.float32(mean_noise_span_length))), 1)
    if spans > size - noise:
        raise InputError(
            f"{spans} spans of noise do not fit between {size - noise} tokens that are kept: "
            f"noise_density {noise_density:g} is too high for spans of {mean_noise_span_length:g}"
        )
    lengths = np.stack([_segments(size - noise, spans, rng), _segments(noise, spans, rng)], axis=1)
    return np.repeat(np.tile([False, True], spans), lengths.ravel())[:length]


def random_prefix_noise_mask(length: int, rng: np.random.Generator) -> np.ndarray:
    """[length] bool, True in the prefix: 1 to length - 1 tokens of it, every number alike.

    t5 calls the prefix noise, and its noise density is a half; of one token nothing is prefix.
    """
    prefix = int(rng.integers(1, length)) if length > 1 else 0
    return np.arange(length) < prefix


def _segments(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """[segments] lengths of at least 1 with sum items, every such row alike."""
    ends = np.sort(rng.choice(items - 1, segments - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], ends, [items]]))


# --------------------------------------------------------------------------------------------
# Ids
# --------------------------------------------------------------------------------------------
def noise_span_to_unique_sentinel(
    tokens: np.ndarray, noise_mask: np.ndarray, vocab_size: int, sentinels: int = SENTINELS
) -> np.ndarray:
    """The tokens [n] with each span of noise made one sentinel: vocab_size - 1, - 2, ...

    Args:
        vocab_size: of the vocabulary with its sentinels, 32,100 of T5's own.
        sentinels: how many there are.

    Raises InputError for more spans: t5 would take the ids of words for them.
    """
    before = np.concatenate([[False], noise_mask[:-1]])
    first = noise_mask & ~before
    if first.sum() > sentinels:
        raise InputError(
            f"{first.sum()} spans in {len(tokens)} tokens are more than the {sentinels} sentinels "
            "of the vocabulary: give shorter chunks, or longer spans"
        )
    marked = np.where(first, vocab_size - np.cumsum(first), tokens)
    return marked[~(noise_mask & before)].astype(np.int32)


def nonnoise_span_to_unique_sentinel(
    tokens: np.ndarray, noise_mask: np.ndarray, vocab_size: int, sentinels: int = SENTINELS
) -> np.ndarray:
    """The same with each span of what is no noise: the targets."""
    return noise_span_to_unique_sentinel(tokens, ~noise_mask, vocab_size, sentinels)


def span_corruption(
    tokens: np.ndarray,
    rng: np.random.Generator,
    vocab_size: int,
    noise_density: float = NOISE_DENSITY,
    mean_noise_span_length: float = MEAN_NOISE_SPAN_LENGTH,
    sentinels: int = SENTINELS,
) -> tuple[np.ndarray, np.ndarray]:
    """A chunk of tokens [n] -> (inputs, targets), int32, without EOS."""
    mask = random_spans_noise_mask(len(tokens), rng, noise_density, mean_noise_span_length)
    return (
        noise_span_to_unique_sentinel(tokens, mask, vocab_size, sentinels),
        nonnoise_span_to_unique_sentinel(tokens, mask, vocab_size, sentinels),
    )


def prefix_lm(tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A chunk of tokens [n] -> (its prefix, the rest), int32, without EOS."""
    mask = random_prefix_noise_mask(len(tokens), rng)
    tokens = np.asarray(tokens, np.int32)
    return tokens[mask], tokens[~mask]


def token_chunks(
    documents: Iterable[Sequence[int]], length: int, together: int = DOCUMENTS_TOGETHER
) -> Iterator[np.ndarray]:
    """Chunks [length] int32 of documents' tokens, one document directly behind the other.

    Args:
        together: so many documents are put together; the last chunk of each such group is as long
            as what is left. 1: no chunk holds two documents.
    """
    group: list[np.ndarray] = []

    def cut() -> Iterator[np.ndarray]:
        tokens = np.concatenate(group)
        yield from (tokens[start : start + length] for start in range(0, len(tokens), length))

    for document in documents:
        tokens = np.asarray(document, np.int32)
        if not len(tokens):
            continue
        group.append(tokens)
        if len(group) == together:
            yield from cut()
            group = []
    if group:
        yield from cut()


# --------------------------------------------------------------------------------------------
# Examples
# --------------------------------------------------------------------------------------------
def pretraining_examples(
    objective: str,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    *,
    inputs_length: int = 512,
    split: str = "train",
    seed: int = 0,
    epoch: int = 0,
    kind: TextKind = "encoder_decoder",
    pad_id: int = 0,
    start_id: int = 0,
    noise_density: float = NOISE_DENSITY,
    mean_noise_span_length: float = MEAN_NOISE_SPAN_LENGTH,
) -> TextExamples:
    """Texts as examples in memory, to be trained on like those of any text task.

    Args:
        objective: "span_corruption" or "prefix_lm".
        documents: see `peft_jax.tasks.documents.read_documents`.
        tokenizer: of the backbone; for span corruption with T5's sentinels at its top.
        inputs_length: of the inputs with EOS; span corruption's chunks and targets are as long as
            `random_spans_helper` says, prefix LM's chunks are one token shorter and of one
            document each.
        seed, epoch: example i is drawn with ``example_rng(seed, i, epoch)``: another epoch has the
            same chunks and other masks.
        kind: "decoder" only for prefix LM: its rows have no EOS, a text goes on.
        pad_id, start_id: of the backbone.

    Raises InputError for another objective, a tokenizer without sentinels, and no text.
    """
    if objective not in get_args(Objective):
        raise InputError(f"objective {objective!r}: one of {', '.join(get_args(Objective))}")
    spans = objective == "span_corruption"
    if spans and (kind == "decoder" or sentinel_count(tokenizer) == 0):
        raise InputError(
            "span corruption needs an encoder-decoder whose vocabulary ends in T5's sentinels "
            "(<extra_id_0> ...): take prefix_lm for other models"
        )
    spans_of = (noise_density, mean_noise_span_length)
    length = random_spans_helper(inputs_length, *spans_of)[0] if spans else inputs_length - 1
    end = [] if kind == "decoder" or tokenizer.eos_id is None else [tokenizer.eos_id]
    count = sentinel_count(tokenizer)

    def rows() -> Iterator[TextRow]:
        together = DOCUMENTS_TOGETHER if spans else 1
        chunks = token_chunks((tokenizer.encode(text) for text in documents), length, together)
        for index, tokens in enumerate(chunks):
            rng = example_rng(seed, index, epoch)
            if spans:
                made = span_corruption(tokens, rng, tokenizer.vocab_size, *spans_of, count)
            elif len(tokens) > 1:
                made = prefix_lm(tokens, rng)
            else:  # a token alone has no prefix
                continue
            inputs, targets = ([*part, *end] for part in made)
            text = tokenizer.decode(made[1].tolist())
            yield TextRow(inputs, targets, example=index, references=(text,))

    return TextExamples.from_rows(
        rows(),
        task=objective,
        split=split,
        template_names=(objective,),
        vocabulary=tokenizer.identity,
        # What is written is compared with the text by characters; the loss says more.
        details={"metrics": ["chrf"], "labels": [], "decoding": {"max_length": inputs_length}},
        kind=kind,
        pad_id=pad_id,
        start_id=start_id,
    )


def sentinel_count(tokenizer: Tokenizer) -> int:
    """How many of T5's sentinels, at most 100, stand at the top of a vocabulary, downwards."""
    for number in range(SENTINELS):
        ids = tokenizer.encode(f"<extra_id_{number}>")
        if list(ids) != [tokenizer.vocab_size - 1 - number]:
            return number
    return SENTINELS


def folder_examples(
    objective: str,
    split: str,
    *,
    directory: str | os.PathLike | None,
    backbone_vocabulary_path: str | os.PathLike,
    inputs_length: int = 512,
    seed: int = 0,
    epoch: int = 0,
    kind: str = "encoder_decoder",
    pad_id: int = 0,
    start_id: int = 0,
) -> TextExamples:
    """`pretraining_examples` of a folder of text.

    Args:
        split: "train" or "validation", see `read_documents`; ``seed`` is also of what is held out.
        directory: the folder.
        backbone_vocabulary_path: the backbone's vocabulary, a Hugging Face folder or a file of it.
        kind: of the backbone.

    Raises InputError without a folder, for an encoder, and as the functions named.
    """
    if directory is None:
        raise InputError(f"{objective} is made of text: give --data.directory with a folder of it")
    if kind == "encoder":
        raise InputError(f"{objective}: an encoder writes no text")
    return pretraining_examples(
        objective,
        read_documents(directory, split, seed=seed),
        load_tokenizer(backbone_vocabulary_path),
        inputs_length=inputs_length,
        split=split,
        seed=seed,
        epoch=epoch,
        kind="decoder" if kind == "decoder" else "encoder_decoder",
        pad_id=pad_id,
        start_id=start_id,
    )


def _offered(objective: str, about: str) -> TaskDefinition:
    dataset = Dataset(
        name=objective,
        fields=("text",),
        label_field=None,
        download="any folder of text: .txt files, or rows with a field text",
    )
    return TaskDefinition(
        objective,
        dataset,
        group="Pretraining",
        formats=(),
        metrics=("chrf",),
        about=about,
        max_input_length=512,
        max_target_length=512,
    )


OFFERED: tuple[TaskDefinition, ...] = (
    _offered("span_corruption", "spans of a text that is missing them (Raffel et al. 2020)"),
    _offered("prefix_lm", "how a text goes on (LM adaptation, Lester et al. 2021)"),
)
"""What `folder_examples` makes, for lists of tasks."""
