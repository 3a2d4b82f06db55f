"""Where arrays lie on a mesh: the table, the choice of a mesh, and that it changes no result."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import peft_jax as pj
from peft_jax import evaluation, objectives, sharding, train, tree
from peft_jax.backbones.families import CONFIGS
from tests import collectives, random_adapters, test_method_laws
from tests.families import FAMILIES

GIB = 1 << 30
T5 = pj.Config("t5", 112, 24, 40, 8, 4, 2, 3, dropout=0.1, remat="none")
T0_11B = dataclasses.replace(CONFIGS["t0_11b"], activation_dtype="bfloat16")


# ------------------------------------------------------------------------------ choosing a mesh
@pytest.mark.parametrize(
    ("memory", "devices", "batch", "wanted"),
    [
        # It fits: only the batch is split.
        (95 * GIB, 128, 256, (128, 1, 1)),
        # On a CPU, whose memory all share, as well.
        (None, 8, 32, (8, 1, 1)),
        (None, 8, 6, (6, 1, 1)),
        # Few rows: a layer's activations are smaller than its weights.
        (16 * GIB, 16, 8, (4, 1, 4)),
        # Many: the weights are.
        (16 * GIB, 16, 2048, (4, 4, 1)),
        # It fits nowhere: split as far as can be.
        (1 * GIB, 4, 4, (1, 1, 4)),
        (16 * GIB, 1, 8, (1, 1, 1)),
    ],
)
def test_a_mesh_is_chosen_for_the_hardware(memory, devices, batch, wanted):
    assert sharding.choose_axes(22 * GIB, memory, devices, T0_11B, batch) == wanted


def test_what_is_given_of_a_mesh_is_kept():
    def choose(**given):
        return sharding.choose_axes(GIB, 16 * GIB, 8, T0_11B, 8, **given)

    assert choose() == (8, 1, 1)
    assert choose(model=4) == (2, 1, 4)
    assert choose(fsdp=2, model=2) == (2, 2, 2)
    assert choose(data=1, model=1) == (1, 8, 1)
    with pytest.raises(pj.InputError, match=r"8 devices has mesh.data 3.*a batch of 8"):
        choose(data=3)
    with pytest.raises(pj.InputError, match="no mesh of 8 devices"):
        choose(model=16)


@pytest.mark.parametrize("memory", [None, 4 * GIB])
@pytest.mark.parametrize("batch", [1, 3, 8, 24])
def test_every_choice_is_a_mesh_that_can_be_made(memory, batch):
    axes = sharding.choose_axes(4 * GIB, memory, 8, CONFIGS["t0_3b"], batch)
    mesh = sharding.make_mesh(batch, **axes._asdict())
    assert tuple(mesh.shape.values()) == axes


# ------------------------------------------------------------------------------ where leaves lie
def test_a_leaf_lies_by_what_its_last_dimensions_count():
    mesh = sharding.make_mesh(data=2, fsdp=2, model=2)

    def spec(path, *shape, config=T5):
        return tuple(sharding.leaf_spec(path, shape, config, mesh))

    attention = "decoder/layers/cross_attention"
    assert spec(f"{attention}/query/kernel", 3, 16, 32) == (None, "fsdp", "model")
    assert spec(f"{attention}/out/kernel", 3, 32, 16) == (None, "model", "fsdp")
    # A bank's axis of tasks stands between the layers and what is split.
    assert spec(f"{attention}/value/lora_b", 3, 7, 2, 32) == (None, None, None, "model")
    assert spec(f"{attention}/value/lora_a", 3, 7, 16, 2) == (None, None, None, None)
    assert spec("token_embedder/embedding", 64, 16) == ("model", "fsdp")
    # What does not divide is whole, and so are heads that a cut would go through.
    assert spec("token_embedder/embedding", 53, 16) == (None, "fsdp")
    odd = dataclasses.replace(T5, num_heads=1, d_kv=32)
    assert spec(f"{attention}/query/kernel", 3, 16, 32, config=odd) == (None, "fsdp", None)
    kernel = jax.ShapeDtypeStruct((3, 16, 32), jnp.float32)
    params = {"encoder": {"layers": {"attention": {"query": {"kernel": kernel}}}}}
    assert sharding.undivided(params, T5, mesh) == []
    assert sharding.undivided(params, odd, mesh) == [
        "1 heads do not divide over model 2: not split"
    ]


def test_an_optimizers_state_lies_as_the_leaves_do():
    mesh = sharding.make_mesh(data=2, fsdp=2, model=2)
    stored = jax.eval_shape(pj.full().init, jax.random.key(0), pj.abstract_backbone(T5))
    state = jax.eval_shape(
        lambda s: train.init_state(s, optax.adam(0.1), jax.random.key(0)), stored
    )
    lies = jax.tree_util.tree_leaves_with_path(sharding.state_shardings(state, T5, mesh))
    wo = "encoder/layers/mlp/wo/kernel"
    specs = [at.spec for path, at in lies if sharding.leaf_path(path) == wo]
    assert specs == [PartitionSpec(None, "model", "fsdp")] * 3  # the kernel and its two moments
    split = [at for path, at in lies if not at.is_fully_replicated]
    assert len(split) == 3 * len([at for at in specs_of(stored, mesh) if any(at)])


def specs_of(params, mesh):
    return [at.spec for at in jax.tree.leaves(sharding.shardings(params, T5, mesh))]


# ------------------------------------------------------------------------------ no result changes
MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "model": {"data": 1, "model": 8},
    "data and model": {"data": 2, "model": 4},
    "mixed": {"data": 2, "fsdp": 2, "model": 2},
}
METHODS = {
    **random_adapters.METHODS,
    **test_method_laws.METHODS,
    "tasks": pj.multitask({"a": pj.lora(2), "b": pj.compose(pj.ia3(), pj.prompt_tuning(2))}),
}
STEPS = 20


def evenly(config):
    """The configuration with sizes that every mesh divides."""
    kv_heads = config.num_kv_heads if config.num_kv_heads in (None, 1) else 4
    return dataclasses.replace(
        config, d_model=24, d_ff=40, vocab_size=64, num_heads=8, num_kv_heads=kv_heads, d_kv=6
    )


@functools.cache
def backbone_of(config):
    return random_adapters.draw_backbone(config)


def batch_for(config, name=""):
    rng = np.random.default_rng(0)
    batch = {
        "encoder_input_tokens": rng.integers(3, 50, (8, 7)).astype(np.int32),
        "choices": rng.integers(3, 50, (8, 3, 4)).astype(np.int32),
        "choice_mask": np.ones((8, 3), bool),
        "label": rng.integers(0, 3, 8).astype(np.int32),
    }
    batch["choices"][:, 1, 2:] = config.pad_id
    batch["encoder_input_tokens"][2, 4:] = config.pad_id
    if name == "tasks":
        batch["task_ids"] = rng.integers(-1, 2, 8).astype(np.int32)
    return batch


def step_of(config, name, mesh=None, **options):
    """A train step, its state before the first, and the frozen tree and a batch, placed."""
    backbone, method = backbone_of(config), METHODS[name]
    objective = objectives.tfew_objective()
    if config.kind == "encoder":
        method = pj.compose(method, pj.classification_head(3))
        objective = objectives.head_objective()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.02, momentum=0.9))
    stored = method.init(jax.random.key(1), backbone)
    state = train.init_state(stored, optimizer, jax.random.key(2))
    step = train.make_train_step(backbone, method, optimizer, objective, mesh=mesh, **options)
    frozen, batch = backbone.params, batch_for(config, name)
    if mesh is not None and not options:
        state = jax.device_put(state, sharding.state_shardings(state, config, mesh))
        frozen, batch = sharding.place(mesh, frozen, config), sharding.put_batch(mesh, batch)
    return step, state, frozen, batch


def run(step, state, frozen, batch):
    history = []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, batch)
        history.append(jax.device_get(metrics))
    return history, jax.device_get(state.trainable)


@functools.cache
def compiled(config, name, mesh):
    step, *start = step_of(config, name, sharding.make_mesh(**MESHES[mesh]))
    return step.lower(*start).compile()


@functools.cache
def on_one_device(config, name):
    return run(*step_of(config, name))


def assert_same_run(found, wanted):
    for one, other in zip(found[0], wanted[0], strict=True):
        assert one.keys() == other.keys()
        for metric in one:
            np.testing.assert_allclose(one[metric], other[metric], rtol=1e-4, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, found[1], wanted[1])
    assert wanted[0][0]["loss"] != wanted[0][-1]["loss"]


def cases():
    """Every method on the mixed mesh, every mesh under some; one of them quick."""
    some = ("composed", "full", "prefix", "houlsby", "dora", "tasks")
    for name in METHODS:
        for mesh in MESHES if name in some else ["mixed"]:
            quick = (name, mesh) == ("ia3", "mixed")
            yield pytest.param(name, mesh, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "mesh"), cases())
def test_eight_devices_train_as_one_does(name, mesh):
    """Losses, gradients and weights of 20 steps, under dropout."""
    _, *start = step_of(T5, name, sharding.make_mesh(**MESHES[mesh]))
    assert_same_run(run(compiled(T5, name, mesh), *start), on_one_device(T5, name))


def kernels(config, ways):
    """Shapes of a layer's kernels on a device that has gathered them over "fsdp"."""
    inner, hidden = config.inner // ways, config.d_ff // ways
    sides = {(config.d_model, inner), (config.d_model, hidden)}
    return sides | {shape[::-1] for shape in sides}


@pytest.mark.parametrize(
    ("mesh", "remat"),
    [("mixed", "none")]
    + [
        pytest.param(mesh, remat, marks=pytest.mark.slow)
        for mesh, remat in (("mixed", "dots"), ("fsdp", "dots"), ("data and model", "dots"))
    ],
)
def test_layers_gather_their_own_weights_and_nobody_gathers_activations(mesh, remat):
    """The compiled step: forwards and backwards each kernel once over "fsdp", inside the loop over
    layers, and each layer's sub-layers summed once over "model"."""
    config, sizes = dataclasses.replace(T5, remat=remat), MESHES[mesh]
    fsdp, model = sizes.get("fsdp", 1), sizes.get("model", 1)
    found = collectives.exchanged(compiled(config, "ia3", mesh))
    inside = [each for each in found if each.depth]
    gathered = [e.squeezed for e in inside if e.kind == "all-gather"]
    # 4 + 3 kernels in the encoder's layers, 4 + 4 + 3 in the decoder's.
    assert len(gathered) == (2 * (7 + 11) if fsdp > 1 else 0)
    assert set(gathered) <= {(shape,) for shape in kernels(config, model)}
    # Outside stand the head's kernel and the ids that are looked up: no stack, no activation.
    outside = {e.squeezed[0] for e in found if not e.depth and e.kind == "all-gather"}
    rows = 8 // sizes["data"]
    ids = {(rows, 7), (3 * rows, 4)} if fsdp > 1 else set()
    assert outside == ({(config.d_model, config.vocab_size // model)} if fsdp > 1 else set()) | ids
    rows = rows // fsdp
    states = {(rows, 7, config.d_model), (3 * rows, 4, config.d_model)}
    summed = [e for e in inside if e.kind == "all-reduce" and set(e.shapes) & states]
    assert len(summed) == (2 * (2 + 3) if model > 1 else 0)
    assert {e.kind for e in inside} <= {"all-gather", "all-reduce"}
    # What the decoder's layers add to the gradient of the encoder's result is summed once, behind
    # them: none exchanges it beside its own.
    assert not [e for e in inside if states <= set(e.shapes)]


def test_logits_are_never_whole():
    """Of each token the parts of the vocabulary exchange a maximum, a sum and a target's logit."""
    program = compiled(T5, "ia3", "mixed")
    found = collectives.exchanged(program)
    assert not [e for e in found if e.kind != "all-gather" and T5.vocab_size // 2 in e.shapes[0]]
    assert f",{T5.vocab_size}]" not in program.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("mesh", ["fsdp", "data and model", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_as_on_one_device(family, mesh, even):
    """Also where heads, width or vocabulary do not divide."""
    config = evenly(FAMILIES[family]) if even else FAMILIES[family]
    mesh = sharding.make_mesh(**MESHES[mesh])
    name = "everywhere"
    assert_same_run(run(*step_of(config, name, mesh)), on_one_device(config, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["composed", "full", "prefix", "tasks"])
def test_pmap_trains_as_one_device_does(name):
    config = dataclasses.replace(T5, dropout=0.0)
    mesh = sharding.make_mesh(data=8)
    found = run(*step_of(config, name, mesh, parallel="pmap"))
    assert_same_run(found, on_one_device(config, name))


@pytest.mark.parametrize("sizes", [{"data": 4, "model": 2}, {"data": 4, "fsdp": 2}])
def test_pmap_splits_the_batch_alone(sizes):
    with pytest.raises(pj.InputError, match="pmap splits the batch alone"):
        step_of(T5, "ia3", sharding.make_mesh(**sizes), parallel="pmap")


# ------------------------------------------------------------------------------ scores and texts
BANK = ("prompt behind the input", "prefix", "pfeiffer", "dora, one layer", "compacter", "rows")


def moved(method, backbone):
    """A stored tree that no entry of is where it started."""
    trainable, fixed = tree.split_fixed(method.init(jax.random.key(0), backbone))
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), trainable)
    return tree.join(tree.cast(noisy, jnp.float32), fixed)


def own_or_bank(config, name):
    """Parameters merged with one trained adapter, or with a bank of several."""
    backbone = backbone_of(config)
    names = BANK if name == "bank" else [name]
    adapters = [(METHODS[n], moved(METHODS[n], backbone)) for n in names]
    if name == "bank":
        return pj.merge(backbone.params, pj.bank(adapters))
    method, stored = adapters[0]
    return pj.merge(backbone.params, method.bind(stored))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["fsdp", "data and model", "mixed"])
@pytest.mark.parametrize(
    ("family", "name"),
    [("t5_v1_1", "bank"), ("gemma3", "bank"), ("t5_v1_0", "prompt"), ("gpt2", "composed")],
)
def test_scores_are_those_of_one_device(family, name, mesh):
    config = evenly(FAMILIES[family])
    backbone, params, batch = backbone_of(config), own_or_bank(config, name), batch_for(config)
    if name == "bank":
        batch["task_ids"] = np.arange(-1, 7, dtype=np.int32) % (len(BANK) + 1) - 1
    mesh = sharding.make_mesh(**MESHES[mesh])
    scorer = evaluation.make_scorer(backbone)
    wanted = scorer({}, params, batch)
    scorer = evaluation.make_scorer(backbone, mesh=mesh)
    placed = sharding.place(mesh, params, config)
    found = scorer({}, placed, sharding.put_batch(mesh, batch))
    assert found.is_fully_replicated
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["fsdp", "data and model", "mixed"])
@pytest.mark.parametrize(
    ("family", "name"), [("t5_v1_1", "bank"), ("gemma3", "composed"), ("bart", "prefix")]
)
@pytest.mark.parametrize(
    "decoding",
    [
        pj.Decoding(max_length=6),
        pj.Decoding(max_length=6, beams=3, sequences=2),
        pj.Decoding(max_length=6, temperature=0.7, top_k=20, top_p=0.9, sequences=2),
    ],
    ids=["greedy", "beams", "drawn"],
)
def test_texts_are_those_of_one_device(family, name, mesh, decoding):
    config = evenly(FAMILIES[family])
    backbone, params = backbone_of(config), own_or_bank(config, name)
    batch = {"encoder_input_tokens": batch_for(config)["encoder_input_tokens"][:, :6]}
    if name == "bank":
        batch["task_ids"] = np.arange(-1, 7, dtype=np.int32) % (len(BANK) + 1) - 1
    key = jax.random.key(0) if decoding.samples else None
    wanted = pj.generate(backbone, params, batch, decoding, key)
    mesh = sharding.make_mesh(**MESHES[mesh])
    placed = sharding.place(mesh, params, config)
    found = pj.generate(backbone, placed, sharding.put_batch(mesh, batch), decoding, key)
    assert found.tokens.is_fully_replicated
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.lengths, wanted.lengths)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5, atol=1e-5)
