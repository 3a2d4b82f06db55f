"""Decoding: greedy, sampling, and beam search, with transformers' options; see docs/decoding.md.

====================  ==============================================================================
generation            ``generate`` and ``greedy``: what users call
options               ``Decoding``, the typed options
step                  reading the input once, the cache, one step of the decoder
one_by_one            the loop of greedy decoding and sampling
beam_search           the loop of beam search
processing, sampling  what is done to logits, and drawing from them
stopping              texts and token sequences that end a text
====================  ==============================================================================
"""

from peft_jax.decoding.generation import Generated, decode_texts, generate, greedy
from peft_jax.decoding.options import Decoding
from peft_jax.decoding.stopping import cut_text

__all__ = ["Decoding", "Generated", "cut_text", "decode_texts", "generate", "greedy"]
