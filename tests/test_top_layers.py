"""Training the last layers: what is trained, and what the backward pass leaves out."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import methods, transformer, tree
from peft_jax.errors import InputError
from tests import oracle
from tests.random_adapters import abstract_init, adapted, assert_same_trees, backbone_of
from tests.test_transformer import random_batch


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        # A decoder's layer: 8 attention and 3 feed-forward kernels, and 3 norms.
        ({}, 2 * (8 * 2048**2 + 3 * 2048 * 5120 + 3 * 2048) + 2048),
        ({"count": 1, "final_norm": False}, 8 * 2048**2 + 3 * 2048 * 5120 + 3 * 2048),
        (
            {"stack": "encoder", "count": 3},
            3 * (4 * 2048**2 + 3 * 2048 * 5120 + 2 * 2048) + 2048,
        ),
        ({"stack": "both"}, 2 * (12 * 2048**2 + 6 * 2048 * 5120 + 5 * 2048) + 2 * 2048),
    ],
)
def test_counts_of_t0_3b(arguments, wanted):
    backbone = pj.abstract_backbone(pj.backbone_config("t0_3b"), jnp.bfloat16)
    stored = abstract_init(pj.top_layers(**arguments), backbone)
    assert pj.count(stored) == wanted
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("version", ["v1_1", "bert", "gpt2"])
def test_everything_of_the_last_layer_and_nothing_below(version):
    backbone = backbone_of(version)
    name = "encoder" if version == "bert" else "decoder"
    stored = tree.flatten(pj.top_layers(1).init(jax.random.key(0), backbone))
    own = tree.flatten(backbone.params)
    wanted = {p for p in own if p.startswith((f"{name}/layers/", f"{name}/final_norm/"))}
    assert set(stored) == wanted
    for path, leaf in stored.items():
        last = own[path][-1:] if "/layers/" in path else own[path]
        np.testing.assert_array_equal(leaf, last)


def loss_of(backbone, cotangent):
    logits = functools.partial(transformer.logits, backbone.config)
    return lambda params, batch: jnp.sum(cotangent * logits(params, batch))


COTANGENT = np.random.default_rng(0).standard_normal((3, 7, 57)).astype(np.float32)


@pytest.mark.parametrize(
    ("version", "arguments"),
    [
        ("v1_1", {"count": 1}),
        pytest.param("v1_1", {"count": 2, "stack": "both"}, marks=pytest.mark.slow),
        pytest.param("v1_1", {"count": 1, "stack": "encoder"}, marks=pytest.mark.slow),
        pytest.param("bart", {"count": 1, "stack": "both"}, marks=pytest.mark.slow),
        ("gemma3", {"count": 2}),
    ],
)
def test_outputs_and_gradients_are_full_fine_tunings(version, arguments):
    """With the stack in two pieces, each with its own layers' positions and windows."""
    backbone = backbone_of(version)
    method, stored = adapted(backbone, pj.top_layers(**arguments))
    # The whole stacks with the trained layers in their places.
    flat = tree.flatten(backbone.params)
    for path, leaf in tree.flatten(stored).items():
        own = flat[path]
        flat[path] = own.at[-len(leaf) :].set(leaf) if "/layers/" in path else leaf
    plain = tree.unflatten(flat)
    loss = loss_of(backbone, COTANGENT)
    batch = random_batch()

    @jax.jit
    def both(stored, plain):
        ours = jax.value_and_grad(lambda s: loss(pj.merge(backbone.params, method.bind(s)), batch))(
            stored
        )
        return ours, jax.value_and_grad(lambda p: loss(p, batch))(plain)

    (value, ours), (wanted, full) = both(stored, plain)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    for path, leaf in tree.flatten(ours).items():
        gradient = tree.get(full, path)
        gradient = gradient[-len(leaf) :] if "/layers/" in path else gradient
        # A key's bias moves all logits of a softmax alike: its gradient is 0 but for rounding.
        at_least = 0.01 if path.endswith("key/bias") else 0.0
        oracle.assert_close(leaf, gradient, 1e-4, path, at_least=at_least)
    assert_same_trees(jax.jit(method.fold)(backbone.params, stored), plain)


def test_the_initial_function_is_the_backbones():
    backbone, method = backbone_of(), pj.top_layers(1)
    stored = method.init(jax.random.key(0), backbone)
    run = jax.jit(functools.partial(transformer.logits, backbone.config))
    merged = pj.merge(backbone.params, method.bind(stored))
    oracle.assert_close(run(merged, random_batch()), run(backbone.params, random_batch()), 1e-6)


# ------------------------------------------------------------------------------ the cost

DEEP = pj.Config("gpt2", 97, 32, 64, 4, 8, 0, 8, activation="gelu", gated=False, norm="layer",
                 positions="learned", max_positions=40, tied_head=True, dropout=0.0)  # fmt: skip


def products(jaxpr, times=1):
    """Multiply-adds of every matrix product of a program, its loops counted as often as they run.

    XLA's own count of a compiled loop takes its body once, however long it runs.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = np.prod([shape[i] for i in contracted], dtype=np.int64)
            total += times * int(inner) * equation.outvars[0].aval.size
        runs = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inside in jax.extend.core.jaxprs_in_params(equation.params):
            total += products(inside, times * runs)
    return total


def gradient_of(method, backbone):
    """A program of a loss's gradient, and what it is called with."""
    batch = {"decoder_input_tokens": np.ones((2, 30), np.int32)}

    def gradient(stored, params):
        def loss(stored):
            merged = pj.merge(params, method.bind(stored))
            return jnp.sum(transformer.logits(backbone.config, merged, batch))

        return jax.grad(loss)(stored)

    return gradient, (abstract_init(method, backbone), backbone.params)


def test_the_backward_pass_stops_at_the_lowest_trained_layer():
    backbone = pj.abstract_backbone(DEEP)
    cost = {}
    for count in (1, 2, 4, 8):
        gradient, arguments = gradient_of(pj.top_layers(count), backbone)
        cost[count] = products(jax.make_jaxpr(gradient)(*arguments).jaxpr)
    places = 2 * 30
    kernels = places * (4 * 32 * 32 + 2 * 32 * 64)
    attention = 2 * 2 * 30 * 30 * 32
    forward = 8 * (kernels + attention) + places * 32 * 97
    # A trained layer's backward pass is twice its forward pass, and attention is computed again.
    backward = 2 * (kernels + attention) + attention
    head = places * 32 * 97
    for count, found in cost.items():
        assert found == forward + head + count * backward


def test_the_compiled_program_keeps_only_the_trained_layers_activations():
    backbone = pj.abstract_backbone(DEEP)
    memory = []
    for count in (1, 4, 8):
        gradient, arguments = gradient_of(pj.top_layers(count), backbone)
        compiled = jax.jit(gradient).lower(*arguments).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    # Of each layer at least what its norms and kernels read, in float32.
    layer = 2 * 30 * (3 * 32 + 64) * 4
    assert memory[1] > memory[0] + 2 * layer
    assert memory[2] > memory[1] + 3 * layer


# ------------------------------------------------------------------------------ specs and errors


def test_the_spec_and_the_file_make_the_same_again(tmp_path):
    backbone = backbone_of()
    method, stored = adapted(backbone, pj.top_layers(1, "both", final_norm=False))
    pj.save_adapter(tmp_path, stored, method, backbone)
    loaded, again = pj.load_adapter(tmp_path, backbone)
    assert_same_trees(loaded, stored)
    assert again.spec == method.spec == methods.from_spec(method.spec).spec
    assert not any("final_norm" in path for path in tree.flatten(stored))


@pytest.mark.parametrize(
    ("arguments", "version", "message"),
    [
        ({"count": 0}, "v1_1", "count 0 must be a whole number of at least 1"),
        ({"count": 1.5}, "v1_1", "count 1.5 must be"),
        ({"count": 3}, "v1_1", "count 3 is more than the 2 layers of the decoder"),
        ({"stack": "top"}, "v1_1", "'top' is unknown; one of output, encoder, decoder, both"),
        ({"stack": "encoder"}, "gpt2", "this gpt2 has no encoder"),
        ({"stack": "both"}, "bert", "this bert has no decoder"),
    ],
)
def test_errors(arguments, version, message):
    with pytest.raises(InputError, match=message):
        pj.top_layers(**arguments).init(jax.random.key(0), backbone_of(version))
