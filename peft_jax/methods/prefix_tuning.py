"""Prefix tuning: trained keys and values in front of those of every attention (Li & Liang 2021)."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peft_jax import transformer, tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods import prompt_encoders
from peft_jax.methods.base import Method, make_method
from peft_jax.methods.texts import token_ids
from peft_jax.transformer import Config
from peft_jax.tree import Params

Where = Literal["encoder", "decoder", "cross"]

_MODULES = {
    "encoder": "encoder/layers/attention",
    "decoder": "decoder/layers/self_attention",
    "cross": "decoder/layers/cross_attention",
}
_LEAVES = ("prefix_key", "prefix_value")
# Where the MLP of a set stands in the stored tree, in place of its keys and values.
_MLP = "prefix_mlp"


def prefix_tuning(
    length: int = 10,
    where: tuple[Where, ...] = (),
    init: Literal["normal", "uniform", "text"] = "normal",
    *,
    decoder_length: int | None = None,
    reparameterization: Literal["none", "mlp"] = "none",
    hidden: int = 512,
    std: float = 1.0,
    text: str = "",
    target_text: str = "",
    fit_steps: int = 1000,
    places: bool = False,
    shared: bool = False,
) -> Method:
    """softmax(q [P_K; K]^T) [P_V; V] in every layer: P rows of keys and values without tokens.

    Li & Liang 2021, section 4. The encoder's self-attention, the decoder's and cross-attention have
    sets of their own. The stored tree has ``prefix_key`` and ``prefix_value`` [layers, length,
    kv_heads * d_kv] per set: 2 * layers * length * width parameters. With an MLP it has that
    instead (section 4.3), ``embedding`` [length, D], ``hidden`` D -> k, then tanh, and ``key`` and
    ``value`` k -> layers * width, each with biases: length * D + D * k + k + 2 * layers * width *
    (k + 1) per set; :func:`peft_jax.methods.eject.eject` drops it after training.

    The function changes at the start. In a decoder with learned or rotary positions the tokens
    come ``length`` places later; keys of a prefix are not rotated.

    Args:
      length: rows of each set.
      where: the sets, "encoder", "decoder" (its self-attention) and "cross"; () means all that the
        backbone has.
      init: "normal" N(0, std^2), "uniform" U(0, 1), or "text": the keys and values that the
        frozen backbone computes of a text, repeated or cut to the length. Of an MLP the first two
        are its embedding's, and it is fitted to the text's (:func:`fit_prefix`).
      decoder_length: rows of the decoder's own set, where they are not as many.
      reparameterization: "none", or "mlp": trained through an MLP, which converges more easily.
      hidden: width k of the MLP (512 for tables, 800 for summaries in the paper).
      std: of the initial values.
      text: what the input's stack reads for init "text" (T-Few: "Question:").
      target_text: what the decoder of an encoder-decoder model reads for it (T-Few: "Answer:").
      fit_steps: steps of fitting the MLP to a text.
      places: whether a prefix of a T5's self-attention stands in places in front of the tokens for
        the relative bias, as in T-Few's and Hugging Face's code; otherwise its bias is 0.
      shared: one set for the decoder's self-attention and cross-attention, as in older releases of
        Hugging Face PEFT (later ones have the decoder's self-attention alone).
    """
    _check(length, decoder_length, where, init, reparameterization, hidden, std, fit_steps)
    texts = {"encoder": text, "decoder": target_text}
    if init == "text" and not (text or target_text):
        raise InputError("init 'text' needs the argument text=... (and target_text of a decoder)")
    if init != "text" and (text or target_text):
        raise InputError(f"a text is given, but init is {init!r}; give init='text'")
    if shared and (where or decoder_length is not None):
        raise InputError("shared: one set serves the decoder; leave out where and decoder_length")
    if shared and init == "text":
        raise InputError(
            "shared: self-attention and cross-attention compute different keys of a text; give "
            "another init"
        )

    def lengths(config: Config) -> dict[str, int]:
        own = length if decoder_length is None else decoder_length
        return {s: own if s == "decoder" else length for s in _sets(where, shared, config)}

    def init_tree(key: jax.Array, backbone: Backbone) -> Params:
        config = backbone.config
        if places and config.positions != "relative":
            raise InputError(
                f"places: a {config.family} has no relative bias; leave the argument out"
            )
        wanted = lengths(config)
        stored: Params = {}
        for k, (name, rows) in zip(jax.random.split(key, len(wanted)), wanted.items(), strict=True):
            if reparameterization == "mlp":
                made: Params = {_MLP: _draw_mlp(k, config, name, rows, hidden, init, std)}
            else:
                made = _draw_direct(k, config, name, rows, init, std)
            stored = tree.join(stored, tree.unflatten({_MODULES[name]: made}))
        if init != "text":
            return stored
        target = text_prefix(backbone, wanted, texts)
        if reparameterization == "none":
            return target
        return _fit(stored, target, fit_steps, None)[0]

    def bind(stored: Params) -> Params:
        bound = _run_mlps(stored)
        if shared:
            own = bound["decoder"]["layers"]["self_attention"]
            bound["decoder"]["layers"]["cross_attention"] = dict(own)
        if places:
            bound = tree.join(bound, _places(bound))
        return bound

    spec = {
        "name": "prefix_tuning",
        "length": length,
        "where": list(where),
        "init": init,
        "decoder_length": decoder_length,
        "reparameterization": reparameterization,
        "hidden": hidden,
        "std": std,
        "text": text,
        "target_text": target_text,
        "fit_steps": fit_steps,
        "places": places,
        "shared": shared,
    }
    return make_method(init_tree, bind, spec, foldable=False)


def _check(length, decoder_length, where, init, reparameterization, hidden, std, steps) -> None:
    """Raises InputError for an argument that means nothing."""
    counts = {"length": length, "hidden": hidden, "fit_steps": steps}
    if decoder_length is not None:
        counts["decoder_length"] = decoder_length
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} {value!r} must be a whole number of at least 1")
    if isinstance(where, str):
        raise InputError(f"where {where!r} must be a list of sets, such as ['encoder']")
    wrong = [name for name in where if name not in _MODULES]
    if wrong or len(set(where)) != len(where):
        raise InputError(
            f"where {list(where)} must name each set once, of {', '.join(map(repr, _MODULES))}"
        )
    for name, given, known in (
        ("init", init, ("normal", "uniform", "text")),
        ("reparameterization", reparameterization, ("none", "mlp")),
    ):
        if given not in known:
            raise InputError(f"{name} {given!r} is unknown; one of {', '.join(known)}")
    if not std >= 0:
        raise InputError(f"std {std!r} must be at least 0")


def _sets(where: tuple[str, ...], shared: bool, config: Config) -> list[str]:
    """The sets that are trained, in a fixed order."""
    there = {
        "encoder": config.encoder_layers > 0,
        "decoder": config.decoder_layers > 0,
        "cross": config.kind == "encoder_decoder",
    }
    if shared:
        if not there["cross"]:
            raise InputError(
                f"shared: a {config.family} has no cross-attention to share a set with"
            )
        return ["decoder"]
    absent = [name for name in where if not there[name]]
    if absent:
        raise InputError(
            f"where {absent[0]!r}: a {config.family} has no such attention; it has "
            + ", ".join(repr(name) for name, has in there.items() if has)
        )
    return [name for name, has in there.items() if (name in where if where else has)]


def _size(config: Config, name: str) -> tuple[int, int]:
    """(layers, width) of a set."""
    return config.depth(_MODULES[name]), config.kv_heads * config.d_kv


# --------------------------------------------------------------------------------------------
# Direct sets, and sets behind an MLP
# --------------------------------------------------------------------------------------------
def _draw(key: jax.Array, shape: tuple[int, ...], init: str, std: float) -> jax.Array:
    if init == "uniform":
        return jax.random.uniform(key, shape, jnp.float32)
    return std * jax.random.normal(key, shape, jnp.float32)


def _draw_direct(key, config: Config, name: str, rows: int, init: str, std: float) -> Params:
    depth, width = _size(config, name)
    return {
        leaf: _draw(k, (depth, rows, width), init, std)
        for k, leaf in zip(jax.random.split(key), _LEAVES, strict=True)
    }


def _draw_mlp(
    key, config: Config, name: str, rows: int, hidden: int, init: str, std: float
) -> Params:
    depth, width = _size(config, name)
    keys = jax.random.split(key, 4)
    return {
        "embedding": _draw(keys[0], (rows, config.d_model), init, std),
        "hidden": prompt_encoders.draw_linear(keys[1], config.d_model, hidden),
        "key": prompt_encoders.draw_linear(keys[2], hidden, width, depth),
        "value": prompt_encoders.draw_linear(keys[3], hidden, width, depth),
    }


def _run_mlps(stored: Params) -> Params:
    """The stored tree with every MLP's keys and values in its place."""
    bound: Params = {}
    for name, node in stored.items():
        if name == _MLP:
            hidden = jnp.tanh(prompt_encoders.linear(node["hidden"], node["embedding"]))
            bound["prefix_key"] = prompt_encoders.linear(node["key"], hidden)
            bound["prefix_value"] = prompt_encoders.linear(node["value"], hidden)
        else:
            bound[name] = _run_mlps(node) if isinstance(node, dict) else node
    return bound


def _places(bound: Params) -> Params:
    """``prefix_places`` [P] in each stack whose self-attention has a prefix."""
    flat = {}
    for name in ("encoder", "decoder"):
        key = tree.flatten(bound).get(f"{_MODULES[name]}/prefix_key")
        if key is not None:
            flat[f"{name}/prefix_places"] = jnp.ones(key.shape[1], jnp.float32)
    return tree.unflatten(flat)


# --------------------------------------------------------------------------------------------
# What a text's own keys and values are
# --------------------------------------------------------------------------------------------
def text_prefix(backbone: Backbone, lengths: dict[str, int], texts: dict[str, str]) -> Params:
    """Keys and values that the frozen backbone computes of a text, as a direct prefix.

    Without special tokens: a decoder of an encoder-decoder model reads its text's tokens as they
    are, no start token in front, and crosses to the encoder's text, as in T-Few's code. Of a
    decoder-only model, to read behind this prefix is to read behind the text itself.

    Args:
      lengths: rows of each set; the text's tokens are repeated or cut to as many.
      texts: of the "encoder" (a decoder-only model reads it too) and of the "decoder".
    """
    config = backbone.config
    rows = {"encoder": lengths.get("encoder", lengths.get("cross", 0))}
    rows["decoder"] = lengths.get("decoder", 0)
    if config.kind == "decoder":
        read = {"decoder": texts["encoder"] or texts["decoder"]}
    else:
        needed = ["encoder"] if rows["encoder"] else []
        # A decoder's second layer reads what cross-attention brought into the first.
        needed += ["encoder", "decoder"] if rows["decoder"] else []
        read = {stack: texts[stack] for stack in dict.fromkeys(needed)}
    for stack, given in read.items():
        if not given:
            name = "text" if stack == "encoder" or config.kind == "decoder" else "target_text"
            raise InputError(f"init 'text' needs the argument {name}=... for the {stack}'s prefix")
    ids = dict(zip(read, token_ids(list(read.values()), backbone), strict=True))
    ids = {stack: np.resize(given, rows[stack] or len(given))[None] for stack, given in ids.items()}
    computed = _activations(config, backbone.params, ids)
    found: Params = {}
    for name in lengths:
        pair = (_join_heads(x) for x in computed[name])
        found = tree.join(
            found, tree.unflatten({_MODULES[name]: dict(zip(_LEAVES, pair, strict=True))})
        )
    return found


@functools.partial(jax.jit, static_argnames="config")
def _activations(config: Config, params: Params, ids: dict[str, Any]) -> dict[str, Any]:
    """Of each attention, keys and values [L, 1, H_kv, S, K] of the texts' tokens [1, S]."""
    if config.kind == "decoder":
        # Who reads a prompt leaves its last token to who goes on from it: one more is read.
        batch = _all_seen(jnp.pad(ids["decoder"], ((0, 0), (0, 1))))
        prompt = transformer.context(config, params, batch).prompt
        assert prompt is not None
        return {"decoder": (prompt.key[..., :-1, :], prompt.value[..., :-1, :])}
    batch = _all_seen(ids["encoder"])
    encoded = transformer.encode(config, params, batch, keep=True)
    if config.kind == "encoder":
        return {"encoder": encoded.kept}
    context = transformer.context(config, params, batch)
    found = {"encoder": encoded.kept, "cross": context.cross}
    if "decoder" in ids:
        cache = transformer.init_cache(config, 1, ids["decoder"].shape[1])
        _, cache = transformer.decode_step(config, params, context, ids["decoder"], 0, cache)
        found["decoder"] = (cache.key, cache.value)
    return found


def _all_seen(tokens: jax.Array) -> transformer.Batch:
    return {"encoder_input_tokens": tokens, "encoder_mask": jnp.ones(tokens.shape, bool)}


def _join_heads(x: jax.Array) -> jax.Array:
    """[L, 1, H, S, K] -> [L, S, H * K] float32."""
    depth, _, heads, places, width = x.shape
    return x[:, 0].swapaxes(1, 2).reshape(depth, places, heads * width).astype(jnp.float32)


# --------------------------------------------------------------------------------------------
# Fitting an MLP
# --------------------------------------------------------------------------------------------
def fit_prefix(
    method: Method,
    stored: Params,
    target: Params,
    steps: int = 1000,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[Params, jax.Array]:
    """Trains a reparameterised prefix until it yields given keys and values.

    Minimises, as T-Few's code does, the sum over layers, keys and values of |made - target|^2 /
    |target|^2.

    Args:
      method: a ``prefix_tuning`` with an MLP; ``stored``: its stored tree.
      target: a direct prefix of the same sets, such as :func:`text_prefix` makes.
      optimizer: by default T-Few's: Adafactor at 0.01, relative to the parameters' scale.
    Returns:
      The stored tree, and the loss [steps] float32 in front of each step.
    """
    if method.spec.get("reparameterization") != "mlp":
        raise InputError(f"{method.spec.get('name')!r} has no MLP to fit: it is no such prefix")
    made, wanted = (tree.flatten(jax.eval_shape(_run_mlps, t)) for t in (stored, target))
    if {p: x.shape for p, x in made.items()} != {p: x.shape for p, x in wanted.items()}:
        raise InputError(
            f"the target's leaves {sorted(wanted)} are not the prefix's {sorted(made)}, or have "
            "other shapes"
        )
    return _fit(stored, target, steps, optimizer)


def _fit(stored, target, steps, optimizer) -> tuple[Params, jax.Array]:
    if optimizer is None:
        optimizer = optax.adafactor(1e-2, min_dim_size_to_factor=0)
    wanted = tree.flatten(target)

    def loss(stored):
        made = tree.flatten(_run_mlps(stored))
        return sum(
            jnp.sum(jnp.sum(jnp.square(made[path] - x), (1, 2)) / jnp.sum(jnp.square(x), (1, 2)))
            for path, x in wanted.items()
        )

    def step(carry, _):
        stored, state = carry
        value, gradient = jax.value_and_grad(loss)(stored)
        updates, state = optimizer.update(gradient, state, stored)
        return (optax.apply_updates(stored, updates), state), value

    (stored, _), losses = jax.lax.scan(step, (stored, optimizer.init(stored)), None, length=steps)
    return stored, losses
