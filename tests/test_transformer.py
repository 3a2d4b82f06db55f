"""The transformer against Hugging Face's T5, and its own laws: scan, remat, packing, precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import transformer, tree
from peft_jax.errors import InputError
from tests import oracle

# No two sizes are equal, so that a shape says which array it is.
CONFIG = transformer.Config(
    family="t5",
    vocab_size=57,
    d_model=24,
    d_ff=40,
    num_heads=3,
    d_kv=6,
    encoder_layers=3,
    decoder_layers=2,
    classifier_dense=True,
    dropout=0.0,
)
V1_0 = dataclasses.replace(CONFIG, activation="relu", gated=False, tied_head=True, scale_head=True)


def random_backbone(config=CONFIG, seed=0, dtype=jnp.float32):
    """Random weights, the norms' too: with ones a lost norm weight would not show."""
    key, noise = jax.random.split(jax.random.key(seed))
    params = tree.map_with_path(
        lambda path, x: x + 0.3 * jax.random.normal(noise, x.shape) if "norm" in path else x,
        transformer.init(key, config),
    )
    return pj.Backbone(tree.cast(params, dtype), config, "random")


def random_batch(config=CONFIG, seed=0, examples=3, source=11, target=7):
    rng = np.random.default_rng(seed)
    mask = rng.random((examples, source)) < 0.8
    mask[:, 0] = True
    tokens = rng.integers(2, config.vocab_size, (examples, source)) * mask
    targets = rng.integers(2, config.vocab_size, (examples, target))
    return {"encoder_input_tokens": tokens, "decoder_input_tokens": targets}


def adapted(backbone, *methods, seed=1, noise=0.3):
    """A composed method and a random adapter of it."""
    method = pj.compose(*methods)
    stored = method.init(jax.random.key(seed), backbone)
    leaves, structure = jax.tree.flatten(stored)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [x + noise * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return method, jax.tree.unflatten(structure, leaves)


# ---------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("variant", oracle.T5)
def test_logits_equal_transformers(variant):
    backbone, wanted = oracle.t5(variant)
    logits = jax.jit(backbone.logits)(backbone.params, wanted)
    assert logits.dtype == jnp.float32
    oracle.assert_close(logits, wanted["logits"])


@pytest.mark.parametrize("variant", oracle.T5)
def test_gradients_of_every_parameter_equal_transformers(variant):
    backbone, wanted = oracle.t5(variant)

    def loss(params):
        return oracle.inner_product(backbone.logits(params, wanted), wanted)

    gradients = oracle.by_hugging_face_name(backbone, jax.jit(jax.grad(loss))(backbone.params))
    names = {name.removeprefix("grad/") for name in wanted if name.startswith("grad/")}
    assert names == set(gradients)
    for name in names:
        oracle.assert_close(gradients[name], wanted[f"grad/{name}"], what=name)


@pytest.mark.oracle
@pytest.mark.parametrize("variant", oracle.FROZEN)
def test_golden_files_are_what_the_installed_transformers_computes(variant):
    make = oracle.live("make_t5")
    model, golden = make.build(variant), oracle.t5(variant)[1]
    fresh = make.logits_and_gradients(model, make.batch(variant))
    fresh |= {"choice_scores": make.choice_scores(model, golden)} | make.generated(model, golden)
    for name, array in fresh.items():
        oracle.assert_close(golden[name], array, 1e-6, name)


def test_default_mask_is_what_is_not_padding():
    backbone, batch = random_backbone(), random_batch()
    masked = batch | {"encoder_mask": batch["encoder_input_tokens"] != 0}
    np.testing.assert_array_equal(
        backbone.logits(backbone.params, batch), backbone.logits(backbone.params, masked)
    )


def test_masked_positions_do_not_matter():
    backbone, batch = random_backbone(), random_batch()
    mask = batch["encoder_input_tokens"] != 0
    assert not mask.all()
    other = batch | {
        "encoder_input_tokens": np.where(mask, batch["encoder_input_tokens"], 5),
        "encoder_mask": mask,
    }
    np.testing.assert_array_equal(
        backbone.logits(backbone.params, batch), backbone.logits(backbone.params, other)
    )


@pytest.mark.slow
def test_an_example_of_padding_only_gives_finite_gradients():
    backbone = random_backbone()
    batch = random_batch()
    batch["encoder_input_tokens"][1] = 0
    loss = lambda p: jnp.square(backbone.logits(p, batch)).mean()  # noqa: E731
    value, gradients = jax.value_and_grad(loss)(backbone.params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


# ------------------------------------------------------------------------------ scan and remat


def unrolled(config, body, carry, xs):
    depth = {x.shape[0] for x in jax.tree.leaves(xs)}
    assert len(depth) == 1
    for layer in range(depth.pop()):
        carry, _ = body(carry, jax.tree.map(lambda x, i=layer: x[i], xs))
    return carry, None


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [CONFIG, pytest.param(V1_0, marks=pytest.mark.slow)], ids=["v1_1", "v1_0"]
)
@pytest.mark.parametrize("rate", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_scan_equals_a_loop_over_layers(monkeypatch, config, rate):
    backbone = random_backbone(dataclasses.replace(config, dropout=rate))
    method, stored = adapted(
        backbone, pj.ia3(), pj.lora(2, layers=(1,), dropout=0.3), pj.prompt_tuning(4, where="both")
    )
    params = pj.merge(backbone.params, method.bind(stored))
    key = jax.random.key(3) if rate else None
    batch = random_batch()
    scanned = backbone.logits(params, batch, key)
    monkeypatch.setattr(transformer, "_scan", unrolled)
    oracle.assert_close(backbone.logits(params, batch, key), scanned, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_remat_policies_give_equal_gradients(dtype):
    backbone = random_backbone(dataclasses.replace(CONFIG, dropout=0.1), dtype=dtype)
    method, stored = adapted(backbone, pj.ia3(), pj.lora(2, dropout=0.1))
    batch = random_batch()

    def gradients(remat):
        def loss(stored):
            params = pj.merge(backbone.params, method.bind(stored))
            logits = backbone.replace(remat=remat).logits(params, batch, jax.random.key(0))
            return jnp.square(logits).mean()

        return tree.flatten(jax.jit(jax.grad(loss))(stored))

    wanted = gradients("none")
    for remat in ("dots", "attention", "full", "offload"):
        for path, gradient in gradients(remat).items():
            oracle.assert_close(gradient, wanted[path], 1e-5, f"{remat} {path}")


def scan_outputs(jaxpr):
    """Shapes and dtypes of what every scan of a jaxpr stacks up, however deep it lies."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            stacked = equation.outvars[equation.params["num_carry"] :]
            found += [(v.aval.shape, v.aval.dtype) for v in stacked]
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += scan_outputs(inner)
    return found


def stacked_kernels(config):
    return {
        spec.shape
        for path, spec in tree.flatten(transformer.specification(config)).items()
        if path.endswith("kernel") and "layers" in path
    }


def frozen_kernels(config):
    """Shapes of the stacked kernels and of one layer of each, transposed too."""
    shapes = stacked_kernels(config)
    return {*shapes, *(shape[1:] for shape in shapes), *(shape[:0:-1] for shape in shapes)}


@pytest.mark.slow
@pytest.mark.parametrize("remat", transformer.REMAT)
@pytest.mark.parametrize("weights", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
def test_no_copy_of_a_frozen_weight_is_saved_for_the_backward_pass(weights, activations, remat):
    config = dataclasses.replace(CONFIG, remat=remat, activation_dtype=activations)
    backbone = random_backbone(config, dtype=weights)
    method, stored = adapted(backbone, pj.ia3(), pj.lora(2))
    batch = random_batch()

    def loss(stored, frozen):
        return backbone.logits(pj.merge(frozen, method.bind(stored)), batch).mean()

    def residuals(stored, frozen):
        return jax.vjp(lambda s: loss(s, frozen), stored)

    outputs = scan_outputs(jax.make_jaxpr(residuals)(stored, backbone.params).jaxpr)
    assert outputs  # the walk sees the scans
    kernels = frozen_kernels(config)
    assert not [shape for shape, _ in outputs if shape in kernels or shape[1:] in kernels]
    if weights == jnp.float32:
        return
    # Nor does the step hold any stacked kernel in float32 (as it is handed to the compiler: a CPU
    # without bfloat16 products converts the weights on its own).
    lowered = jax.jit(jax.grad(loss)).lower(stored, backbone.params).as_text()
    for shape in stacked_kernels(config):
        dimensions = "x".join(map(str, shape))
        assert f"tensor<{dimensions}xbf16>" in lowered  # the search sees the weights
        assert f"tensor<{dimensions}xf32>" not in lowered


def test_the_walk_over_scans_would_see_a_saved_weight():
    stack = jax.ShapeDtypeStruct((3, 24, 40), jnp.bfloat16)

    def saves(x, stack):
        body = lambda x, w: (jnp.tanh(x @ w.astype(jnp.float32)) @ w.T, None)  # noqa: E731
        return jax.vjp(lambda x: jax.lax.scan(body, x, stack)[0].sum(), x)

    x = jax.ShapeDtypeStruct((5, 24), jnp.float32)
    shapes = [shape for shape, _ in scan_outputs(jax.make_jaxpr(saves)(x, stack).jaxpr)]
    assert (3, 24, 40) in shapes or (3, 40, 24) in shapes


@pytest.mark.parametrize("weights", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("method", [pj.ia3(), pj.lora(4)], ids=["ia3", "lora"])
@pytest.mark.parametrize("gated", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_step_computes_no_gradient_of_a_frozen_matrix(method, weights, gated):
    # One layer: XLA's cost analysis counts the body of a scan once, whatever its length.
    config = transformer.Config(
        family="t5",
        vocab_size=512,
        d_model=128,
        d_ff=256,
        num_heads=4,
        d_kv=32,
        encoder_layers=1,
        decoder_layers=1,
        gated=gated,
        remat="none",
    )
    frozen = transformer.abstract(config, weights)
    stored = jax.eval_shape(method.init, jax.random.key(0), pj.Backbone(frozen, config))
    tokens = jax.ShapeDtypeStruct((4, 48), jnp.int32)
    batch = {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens}

    def loss(stored, frozen, batch):
        params = pj.merge(frozen, method.bind(stored))
        return jax.nn.log_softmax(transformer.logits(config, params, batch))[..., 3].mean()

    def flops(function):
        compiled = jax.jit(function).lower(stored, frozen, batch).compile()
        return compiled.cost_analysis()["flops"]

    ratio = flops(jax.grad(loss)) / flops(loss)
    full = flops(jax.grad(loss, argnums=1)) / flops(loss)
    assert ratio <= 2.05
    assert full > 2.5  # the figure does see gradients of matrices


# ------------------------------------------------------------------------------ precision


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [CONFIG, pytest.param(V1_0, marks=pytest.mark.slow)], ids=["v1_1", "v1_0"]
)
@pytest.mark.parametrize(
    "activations", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"]
)
def test_bfloat16_stays_within_its_rounding_of_float32(config, activations):
    errors = [bfloat16_errors(config, activations, seed) for seed in range(3)]
    logits, gradients = zip(*errors, strict=True)
    assert max(logits) < 3e-2
    # One leaf of so small a model may be far off by chance, another on another processor: the
    # median over leaves and seeds is what a norm or a softmax computed in bfloat16 would move.
    assert np.median(np.concatenate(gradients)) < 5e-2


def bfloat16_errors(config, activations, seed):
    """Relative errors (Frobenius norm) of the logits, and of every adapter leaf's gradient."""
    backbone, batch = random_backbone(config, seed), random_batch()
    method, stored = adapted(backbone, pj.ia3(), pj.lora(2))
    small = dataclasses.replace(backbone, params=tree.cast(backbone.params, jnp.bfloat16))
    small = small.replace(activation_dtype=activations)
    # The same weights in float32: what remains is the rounding of the activations.
    exact = dataclasses.replace(backbone, params=tree.cast(small.params, jnp.float32))

    def logits_and_gradients(backbone):
        def loss(stored):
            logits = backbone.logits(pj.merge(backbone.params, method.bind(stored)), batch)
            return jnp.square(logits).mean(), logits

        gradients, logits = jax.grad(loss, has_aux=True)(stored)
        return logits, tree.flatten(gradients)

    def relative(value, wanted):
        assert value.dtype == jnp.float32
        return float(jnp.linalg.norm(value - wanted) / jnp.linalg.norm(wanted))

    logits, gradients = logits_and_gradients(small)
    wanted, wanted_gradients = logits_and_gradients(exact)
    leaves = [
        relative(gradients[path].ravel(), wanted_gradients[path].ravel()) for path in gradients
    ]
    return relative(logits.ravel(), wanted.ravel()), leaves


# ------------------------------------------------------------------------------ packing


@pytest.mark.slow
def test_packed_examples_equal_the_separate_ones():
    backbone = random_backbone()
    rng = np.random.default_rng(0)
    sources, targets = (4, 6, 3), (3, 2, 5)
    inputs = [rng.integers(2, 57, n) for n in sources]
    outputs = [rng.integers(2, 57, n) for n in targets]

    def packed(parts, length):
        row = np.zeros(length, int)
        row[: sum(map(len, parts))] = np.concatenate(parts)
        segments = np.repeat(np.arange(1, len(parts) + 1), [len(p) for p in parts])
        return row[None], np.pad(segments, (0, length - len(segments)))[None]

    encoder, encoder_segments = packed(inputs, 15)
    decoder, decoder_segments = packed(outputs, 12)
    together = backbone.logits(
        backbone.params,
        {
            "encoder_input_tokens": encoder,
            "encoder_segment_ids": encoder_segments,
            "decoder_input_tokens": decoder,
            "decoder_segment_ids": decoder_segments,
        },
    )
    assert np.isfinite(together).all()
    start = 0
    for source, target in zip(inputs, outputs, strict=True):
        batch = {"encoder_input_tokens": source[None], "decoder_input_tokens": target[None]}
        alone = backbone.logits(backbone.params, batch)
        oracle.assert_close(together[:, start : start + len(target)], alone, 3e-6)
        start += len(target)


@pytest.mark.parametrize("given", ["encoder_segment_ids", "decoder_segment_ids"])
def test_half_packed_batch_is_refused(given):
    backbone, batch = random_backbone(), random_batch()
    tokens = batch[given.replace("segment_ids", "input_tokens")]
    with pytest.raises(InputError, match="both encoder_segment_ids and decoder_segment_ids"):
        backbone.logits(backbone.params, batch | {given: np.ones_like(tokens)})


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_packed_examples_share_no_prompt(where):
    backbone, batch = random_backbone(), random_batch()
    method, stored = adapted(backbone, pj.prompt_tuning(2, where=where))
    batch |= {
        f"{s}_segment_ids": np.ones_like(batch[f"{s}_input_tokens"]) for s in ("encoder", "decoder")
    }
    with pytest.raises(InputError, match=f"{where}_segment_ids"):
        backbone.logits(pj.merge(backbone.params, method.bind(stored)), batch)


# ------------------------------------------------------------------------------ dropout


def test_dropout_needs_a_key_and_its_draws_differ_by_key():
    batch = random_batch()
    with_dropout, without = (
        random_backbone(dataclasses.replace(CONFIG, dropout=rate)) for rate in (0.3, 0.0)
    )
    params = without.params
    plain = without.logits(params, batch)
    np.testing.assert_array_equal(with_dropout.logits(params, batch), plain)
    np.testing.assert_array_equal(without.logits(params, batch, jax.random.key(0)), plain)
    one, same, other = (with_dropout.logits(params, batch, jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert not np.allclose(one, plain)


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, V1_0], ids=["v1_1", "v1_0"])
def test_dropout_draws_a_mask_of_its_own_at_every_place_of_every_layer(monkeypatch, config):
    """As T5 has them: 3 places in an encoder layer with 2 sub-layers, and so on; none shared."""
    from peft_jax import layers

    keys = []

    def recording(key, x, rate):
        if key is not None:
            keys.append((tuple(np.asarray(jax.random.key_data(key))), x.shape))
        return x

    monkeypatch.setattr(transformer, "_scan", unrolled)
    monkeypatch.setattr(layers, "dropout", recording)
    backbone = random_backbone(dataclasses.replace(config, dropout=0.1))
    method, stored = adapted(backbone, pj.lora(2, targets=r".*", dropout=0.1))
    backbone.logits(
        pj.merge(backbone.params, method.bind(stored)), random_batch(), jax.random.key(0)
    )
    # Attention: its weights and its output; feed-forward: its hidden and its output.
    sites = config.encoder_layers * 4 + config.decoder_layers * 6 + 4
    projections = 3 if config.gated else 2
    sites += config.encoder_layers * (4 + projections)
    sites += config.decoder_layers * (8 + projections) + (not config.tied_head)
    assert len(keys) == sites
    assert len({key for key, _ in keys}) == sites


# ------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation", "swish"),
        ("remat", "some"),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("activation_dtype", "float16"),
        ("num_heads", 0),
        ("vocab_size", -1),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize("config", [CONFIG, V1_0], ids=["v1_1", "v1_0"])
def test_init_has_the_shapes_and_scales_of_the_specification(config):
    specification = tree.flatten(transformer.specification(config))
    params = tree.flatten(transformer.init(jax.random.key(0), config, jnp.bfloat16))
    abstract = tree.flatten(transformer.abstract(config, jnp.bfloat16))
    assert params.keys() == specification.keys() == abstract.keys()
    for path, spec in specification.items():
        assert params[path].shape == abstract[path].shape == spec.shape
        assert params[path].dtype == abstract[path].dtype == jnp.bfloat16
        values = np.asarray(params[path], np.float32)
        if spec.std is None:
            assert (values == 1).all()
        else:
            assert np.std(values) == pytest.approx(spec.std, rel=6 / values.size**0.5)


def test_shift_right_puts_the_start_token_in_front():
    targets = jnp.array([[5, 6, 1], [7, 1, 0]])
    shifted = transformer.shift_right(dataclasses.replace(CONFIG, decoder_start_id=9), targets)
    assert shifted.tolist() == [[9, 5, 6], [9, 7, 1]]
