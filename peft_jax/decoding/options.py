"""How a text is decoded: every choice in one typed, validated value."""

from __future__ import annotations

import dataclasses
from typing import Literal

from peft_jax.errors import InputError
from peft_jax.transformer import Config


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are generated: greedily, by sampling (with a temperature, top_k or top_p), or by
    beam search (with beams above 1).

    Names and meanings are those of transformers' generate where it has them.
    """

    max_length: int = 64
    """Most tokens to generate, EOS included (max_new_tokens)."""
    min_length: int = 0
    """Tokens that are generated before EOS may come (min_new_tokens)."""
    sequences: int = 1
    """Texts returned for each input: so many samples, or the best so many beams
    (num_return_sequences)."""

    temperature: float | None = None
    """Sampling: the logits are divided by it."""
    top_k: int | None = None
    """Sampling: only the k most probable tokens (and those that equal the last of them)."""
    top_p: float | None = None
    """Sampling: only the smallest set of most probable tokens whose probabilities sum to at least
    top_p (Holtzman et al. 2020), of what top_k leaves."""

    beams: int = 1
    """Sequences that a beam search follows for each input (num_beams)."""
    length_penalty: float = 1.0
    """Beam search: a text's log-probability is divided by its length ** this; above 0 favours long
    ones."""
    early_stopping: bool | Literal["never"] = False
    """Beam search: True ends an input's search as soon as it has as many texts as beams; False,
    when no text of the present length could be better; "never", when no longer one could."""

    no_repeat_ngram: int = 0
    """No sequence of so many tokens comes twice; 0: any may (no_repeat_ngram_size)."""
    repetition_penalty: float = 1.0
    """Logits of tokens that were there before are divided by it, or multiplied where negative
    (Keskar et al. 2019)."""
    first_token: int | None = None
    """The first token generated (forced_bos_token_id)."""
    last_token: int | None = None
    """The last token of a text that comes to max_length (forced_eos_token_id)."""
    eos_ids: tuple[int, ...] | None = None
    """Tokens that end a text; by default the backbone's, () for none."""
    stop: tuple[str, ...] = ()
    """Texts that end a text: generation ends with the token that completes one."""
    stop_tokens: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that end a text."""

    def __post_init__(self):
        for check in (_check_lengths, _check_sampling, _check_beams, _check_tokens):
            check(self)

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return any(x is not None for x in (self.temperature, self.top_k, self.top_p))

    def for_backbone(self, config: Config) -> Decoding:
        """The same with the backbone's EOS filled in.

        Raises:
          InputError: the backbone has no decoder or head, or not so many tokens.
        """
        if config.kind == "encoder" or not config.lm_head:
            raise InputError(
                f"this {config.family} writes no text: it has no "
                + ("decoder" if config.kind == "encoder" else "language-model head")
            )
        eos_ids = self.eos_ids
        if eos_ids is None:
            eos_ids = (config.eos_id, *config.extra_eos_ids)
        given: dict[str, tuple[int | None, ...]] = {
            "first_token": (self.first_token,),
            "last_token": (self.last_token,),
        }
        given |= {"eos_ids": eos_ids, "stop_tokens": sum(self.stop_tokens, ())}
        for name, ids in given.items():
            for token in ids:
                if token is not None and token >= config.vocab_size:
                    raise InputError(
                        f"{name}: token {token} is not in a vocabulary of {config.vocab_size}"
                    )
        # A family without EOS may write -1.
        return dataclasses.replace(self, eos_ids=tuple(i for i in eos_ids if i >= 0))


def _check_lengths(decoding: Decoding) -> None:
    if decoding.max_length < 1:
        raise InputError(f"max_length {decoding.max_length} must be at least 1")
    if not 0 <= decoding.min_length <= decoding.max_length:
        raise InputError(
            f"min_length {decoding.min_length} must lie between 0 and max_length "
            f"{decoding.max_length}"
        )
    if decoding.sequences < 1:
        raise InputError(f"sequences {decoding.sequences} must be at least 1")
    if decoding.no_repeat_ngram < 0:
        raise InputError(f"no_repeat_ngram {decoding.no_repeat_ngram} must be at least 0 (off)")
    if not decoding.repetition_penalty > 0:
        raise InputError(
            f"repetition_penalty {decoding.repetition_penalty} must be above 0 (1 is off)"
        )


def _check_sampling(decoding: Decoding) -> None:
    temperature, top_k, top_p = decoding.temperature, decoding.top_k, decoding.top_p
    if temperature is not None and not temperature > 0:
        raise InputError(
            f"temperature {temperature} must be above 0; leave it out to decode greedily"
        )
    if top_k is not None and top_k < 1:
        raise InputError(
            f"top_k {top_k} must be at least 1; leave it out to sample from all tokens"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p} must lie in (0, 1]")
    if decoding.sequences > 1 and decoding.beams == 1 and not decoding.samples:
        raise InputError(
            f"sequences {decoding.sequences}: greedy decoding gives one text for an input; sample "
            "(temperature, top_k, top_p), or search with beams"
        )


def _check_beams(decoding: Decoding) -> None:
    beams, kinds = decoding.beams, (False, True, "never")
    if beams < 1:
        raise InputError(f"beams {beams} must be at least 1")
    if not any(decoding.early_stopping is k for k in kinds[:2]) and (
        decoding.early_stopping != "never"
    ):
        raise InputError(f"early_stopping {decoding.early_stopping!r}: one of {kinds}")
    if beams > 1:
        for name in ("temperature", "top_k", "top_p"):
            if getattr(decoding, name) is not None:
                raise InputError(
                    f"{name} {getattr(decoding, name)} samples, and beams {beams} search: give one "
                    "of them"
                )
        if decoding.sequences > beams:
            raise InputError(f"sequences {decoding.sequences} are more than beams {beams}")
        return
    if decoding.length_penalty != 1.0 or decoding.early_stopping is not False:
        name = "length_penalty" if decoding.length_penalty != 1.0 else "early_stopping"
        raise InputError(
            f"{name} {getattr(decoding, name)} is of a beam search: it needs beams above 1"
        )


def _check_tokens(decoding: Decoding) -> None:
    for name in ("first_token", "last_token"):
        token = getattr(decoding, name)
        if token is not None and token < 0:
            raise InputError(f"{name} {token} must be at least 0")
    for token in decoding.eos_ids or ():
        if token < 0:
            raise InputError(f"eos_ids: token {token} must be at least 0")
    if "" in decoding.stop:
        raise InputError("stop: an empty text would end every answer before it starts")
    for sequence in decoding.stop_tokens:
        if not sequence or min(sequence) < 0:
            raise InputError(f"stop_tokens: {sequence} is no sequence of tokens")
