"""Texts and token sequences that end a text, as automata over the vocabulary.

What ends a text is looked for while it is decoded, inside the compiled loop: a table says, for
every state of an automaton and every token, the next state. For texts this is the automaton of Aho
and Corasick (1975) over bytes, run over all the bytes of a token at once; so a text is found
wherever it lies over the borders of tokens, also in the middle of them. A sequence generated so far
is one integer, and a step is one look-up.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.errors import InputError
from peft_jax.tokenizer import Tokenizer


class Stops(NamedTuple):
    """Automata, each in rows of the table of its own.

    Attributes:
      table: [states, V] int32, the state behind every token; it stays where a text has ended.
      ended: [states] bool.
      start: [automata] int32.
    """

    table: jax.Array
    ended: jax.Array
    start: jax.Array

    def first(self, rows: int) -> jax.Array:
        """States [rows, automata] in front of the first token."""
        return jnp.broadcast_to(self.start, (rows, len(self.start)))

    def next(self, states: jax.Array, tokens: jax.Array) -> jax.Array:
        """States [..., automata] behind tokens [...]."""
        return self.table[states, tokens[..., None]]

    def reached(self, states: jax.Array) -> jax.Array:
        """Whether a text has ended, [...] bool."""
        return jnp.any(self.ended[states], axis=-1)


@functools.lru_cache(maxsize=8)
def find_stops(
    texts: tuple[str, ...],
    sequences: tuple[tuple[int, ...], ...],
    vocab_size: int,
    tokenizer: Tokenizer | None,
) -> Stops | None:
    """The automata for texts and token sequences; None if there are neither.

    Args:
      tokenizer: says what tokens are written as; needed for texts.
    Raises:
      InputError: there are texts, and no tokenizer.
    """
    tables = []
    if texts:
        if tokenizer is None:
            raise InputError(
                f"stop {list(texts)}: this backbone has no vocabulary to find texts with; give "
                "tokenizer=, or token sequences as stop_tokens"
            )
        words = [text.encode() for text in texts]
        tables.append(_text_table(words, spellings(tokenizer, vocab_size)))
    if sequences:
        tables.append(_transitions(sequences, vocab_size))
    if not tables:
        return None
    starts = np.cumsum([0, *(len(ended) for _, ended in tables[:-1])])
    joined = [table + start for (table, _), start in zip(tables, starts, strict=True)]
    return Stops(
        jnp.asarray(np.concatenate(joined), jnp.int32),
        jnp.asarray(np.concatenate([ended for _, ended in tables])),
        jnp.asarray(starts, jnp.int32),
    )


def cut_text(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the texts that end it."""
    found = [place for place in (text.find(end) for end in stop) if place >= 0]
    return text[: min(found)] if found else text


# --------------------------------------------------------------------------------------------
# The automaton of Aho and Corasick
# --------------------------------------------------------------------------------------------
def _automaton(
    words: Sequence[Sequence[int]],
) -> tuple[list[dict[int, int]], list[int], list[bool]]:
    """(children, failure, ended) of every state; state 0 has seen nothing of any word."""
    children: list[dict[int, int]] = [{}]
    ended = [False]
    for word in words:
        state = 0
        for symbol in word:
            if symbol not in children[state]:
                children[state][symbol] = len(children)
                children.append({})
                ended.append(False)
            state = children[state][symbol]
        ended[state] = True
    failure = [0] * len(children)
    queue = collections.deque(children[0].values())
    while queue:
        state = queue.popleft()
        ended[state] |= ended[failure[state]]
        for symbol, child in children[state].items():
            back = failure[state]
            while back and symbol not in children[back]:
                back = failure[back]
            failure[child] = children[back].get(symbol, 0)
            queue.append(child)
    return children, failure, ended


def _transitions(words: Sequence[Sequence[int]], symbols: int) -> tuple[np.ndarray, np.ndarray]:
    """The next state [states, symbols] int32 by every symbol, and which states have ended."""
    children, failure, ended = _automaton(words)
    table = np.zeros((len(children), symbols), np.int32)
    # A state's failure lies nearer to the start, and so in front of it in this order.
    queue = collections.deque([0])
    while queue:
        state = queue.popleft()
        if state:
            table[state] = table[failure[state]]
        for symbol, child in children[state].items():
            table[state, symbol] = child
            queue.append(child)
    held = np.asarray(ended)
    table[held] = np.flatnonzero(held)[:, None]
    return table, held


def _text_table(
    texts: Sequence[bytes], spellings: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """The state [states, V] behind every token: that of its bytes, one after the other."""
    by_byte, ended = _transitions(texts, 256)
    lengths = np.asarray([len(s) for s in spellings])
    # Tokens by length, the longest first: those that have an i-th byte stand in front.
    order = np.argsort(-lengths, kind="stable")
    states = np.repeat(np.arange(len(by_byte), dtype=np.int32)[:, None], len(spellings), axis=1)
    for i in range(lengths.max(initial=0)):
        longer = order[: np.count_nonzero(lengths > i)]
        byte = np.asarray([spellings[token][i] for token in longer])
        states[:, longer] = by_byte[states[:, longer], byte]
    return states, ended


# --------------------------------------------------------------------------------------------
# What tokens are written as
# --------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=4)
def spellings(tokenizer: Tokenizer, vocab_size: int) -> tuple[bytes, ...]:
    """The bytes that each token adds to a text, in its middle: a text is all of them joined.

    Special tokens, which a text leaves out, and ids that are no token add nothing.
    """
    anchor = tokenizer.encode("a")[-1]
    front = tokenizer.decode([anchor], skip_special=True)
    known = min(vocab_size, tokenizer.vocab_size)
    found = tuple(_spelling(tokenizer, id, anchor, front) for id in range(known))
    return found + (b"",) * (vocab_size - known)


def _spelling(tokenizer: Tokenizer, id: int, anchor: int, front: str) -> bytes:
    token = tokenizer.token(id)
    if token is None:
        return b""
    text = tokenizer.decode([anchor, id], skip_special=True).removeprefix(front)
    if "\ufffd" not in text:
        return text.encode()
    # A token of some bytes of a character: decoded alone it is none.
    byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
    if byte:
        return bytes([int(byte[1], 16)])
    alphabet = _byte_alphabet()
    if all(letter in alphabet for letter in token):
        return bytes(alphabet[letter] for letter in token)
    return text.encode()


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The letter that byte-level BPE (GPT-2) writes for every byte, the other way round.

    Bytes that are printable in Latin-1 are written as they are there, the others as the characters
    from U+0100 on.
    """
    ranges = ((0x21, 0x7E), (0xA1, 0xAC), (0xAE, 0xFF))
    printable = [byte for first, last in ranges for byte in range(first, last + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + i): byte for i, byte in enumerate(others)}
