"""FISH masks: which entries, how they are stored, what trains, and a run that chooses them."""

import dataclasses
import functools
import io
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import peft_jax as pj
from peft_jax import experiment, methods, transformer, tree
from peft_jax.errors import InputError
from peft_jax.examples import FewShotSampler
from peft_jax.fisher import fisher_information
from peft_jax.method_config import arguments
from peft_jax.methods.fish_mask import (
    fish_mask,
    information_targets,
    most_informative,
    others,
    wants_information,
    with_information,
)
from peft_jax.optimizers import is_stacked
from tests import oracle
from tests.random_adapters import abstract_init, assert_same_trees, backbone_of
from tests.small_run import small_experiment
from tests.test_transformer import random_batch

SHARE = 0.03


@functools.cache
def information(dtype=jnp.float32):
    """Random information; its scale differs by leaf, so that shares do too."""
    rng = np.random.default_rng(0)
    leaves = tree.flatten(backbone_of(dtype=dtype).params)
    scales = dict(zip(leaves, rng.permutation(np.linspace(0.5, 2, len(leaves))), strict=True))
    return tree.unflatten(
        {p: np.float32(scales[p] * rng.random(x.shape) ** 2) for p, x in leaves.items()}
    )


@functools.cache
def fitted(dtype=jnp.float32):
    """A backbone, the method with its mask, and a random adapter."""
    backbone = backbone_of(dtype=dtype)
    method = with_information(fish_mask(SHARE), information(dtype))
    rng = np.random.default_rng(1)
    stored = tree.map_with_path(
        lambda path, x: x if "fixed" in path else x + jnp.float32(rng.standard_normal(x.shape)),
        method.init(jax.random.key(0), backbone),
    )
    return backbone, method, stored


def dotted(path):
    return path.replace("/", ".")


def masks(stored, like):
    """Path -> a boolean array of the parameter's shape."""
    found = {}
    for path, leaf in tree.flatten(like).items():
        found[path] = np.zeros(leaf.shape, bool)
        if dotted(path) in stored:
            found[path].reshape(-1)[stored[dotted(path)]["fixed"]["indices"]] = True
    return found


# ------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize("share", [0.3, 0.05, 0.01])
def test_tfews_code_chooses_the_same_entries(share):
    """From the same gradients; golden/make_tfew_subset.py made the masks."""
    held = np.load(oracle.GOLDEN / "fish_mask.npz")
    names = [name.removeprefix("gradient/") for name in held if name.startswith("gradient/")]
    squares = {name: np.mean(np.square(held[f"gradient/{name}"]), axis=0) for name in names}
    method = with_information(fish_mask(share), squares)
    chosen = most_informative(squares, sum(method.spec["counts"].values()))
    for name in names:
        mask = np.zeros(squares[name].shape, bool)
        mask.reshape(-1)[chosen.get(name, [])] = True
        np.testing.assert_array_equal(mask, held[f"mask/{share}/{name}"])


@pytest.mark.parametrize("count", [1, 7, 500, 999, 1000])
@pytest.mark.parametrize("kind", ["spread", "ties", "zeros"])
def test_the_entries_are_the_largest_and_the_first_among_equals(count, kind):
    rng = np.random.default_rng(0)
    values = {
        "spread": np.exp(20 * rng.standard_normal(1000)),
        "ties": rng.integers(0, 4, 1000),
        "zeros": rng.random(1000) * (rng.random(1000) < 0.3),
    }[kind].astype(np.float32)
    leaves = {"a": values[:600].reshape(20, 30), "b": {"c": values[600:605]}, "d": values[605:]}
    chosen = most_informative(leaves, count)
    starts = {"a": 0, "b/c": 600, "d": 605}
    flat = np.concatenate([starts[path] + indices for path, indices in chosen.items()])
    wanted = np.sort(np.argsort(-values, kind="stable")[:count])
    np.testing.assert_array_equal(flat, wanted)
    assert all(len(i) and i.dtype == np.int32 for i in chosen.values())


@pytest.mark.parametrize("count", [0, 11])
def test_more_entries_than_there_are_cannot_be_chosen(count):
    with pytest.raises(InputError, match=f"{count} entries cannot be chosen of 10"):
        most_informative({"a": np.ones(10, np.float32)}, count)


# ------------------------------------------------------------------------------ counts


@pytest.mark.parametrize(("share", "wanted"), [(0.002, 5_699_514), (0.0002, 569_951)])
@pytest.mark.parametrize("choice", ["fisher", "random"])
def test_counts_of_tfews_baselines(share, choice, wanted):
    backbone = pj.abstract_backbone(pj.backbone_config("t0_3b"), jnp.bfloat16)
    adapter = abstract_init(fish_mask(share, choice=choice), backbone)
    assert pj.count(adapter) == wanted
    trained, fixed = tree.split_fixed(adapter)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(fixed)} == {jnp.dtype("int32")}


def test_a_fitted_method_has_the_same_count_split_by_information():
    backbone, method, stored = fitted()
    total = int(SHARE * tree.count(backbone.params))
    assert pj.count(stored) == sum(method.spec["counts"].values()) == total
    assert pj.count(abstract_init(fish_mask(SHARE), backbone)) == total
    even = {path: round(SHARE * leaf.size) for path, leaf in tree.flatten(backbone.params).items()}
    assert method.spec["counts"] != even


# ------------------------------------------------------------------------------ init and spec


def test_the_mask_is_that_of_the_information_and_the_initial_parameters_the_backbones():
    backbone, method, _ = fitted()
    stored = method.init(jax.random.key(0), backbone)
    flat = np.concatenate([x.ravel() for x in tree.flatten(information()).values()])
    threshold = np.sort(flat)[-pj.count(stored)]
    for path, mask in masks(stored, backbone.params).items():
        np.testing.assert_array_equal(mask, tree.get(information(), path) >= threshold)
    merged = jax.jit(lambda s: pj.merge(backbone.params, method.bind(s)))(stored)
    assert_same_trees(merged, backbone.params)


def test_a_method_without_information_has_shapes_and_no_mask():
    backbone, method, stored = fitted()
    with pytest.raises(InputError, match=r"fish_mask chooses .* with_information"):
        fish_mask(SHARE).init(jax.random.key(0), backbone)
    again = methods.from_spec(json.loads(json.dumps(method.spec)))
    assert again.spec == method.spec
    assert jax.tree.map(jnp.shape, abstract_init(again, backbone)) == jax.tree.map(
        jnp.shape, stored
    )
    with pytest.raises(InputError, match="not which: they are in its adapter"):
        again.init(jax.random.key(0), backbone)
    # New information chooses anew.
    changed = tree.map_with_path(lambda _, x: x[::-1].copy(), information())
    anew = with_information(again, changed).init(jax.random.key(0), backbone)
    assert pj.count(anew) == pj.count(stored)
    assert any(
        (one != other).any()
        for one, other in zip(
            masks(anew, backbone.params).values(),
            masks(stored, backbone.params).values(),
            strict=True,
        )
    )


def test_targets_limit_the_choice():
    backbone = backbone_of()
    method = with_information(fish_mask(0.1, "attention/query/kernel"), information())
    stored = method.init(jax.random.key(0), backbone)
    kernels = {p: x for p, x in tree.flatten(backbone.params).items() if "query/kernel" in p}
    assert set(stored) <= {dotted(path) for path in kernels}
    assert pj.count(stored) == int(0.1 * sum(x.size for x in kernels.values()))


@pytest.mark.slow
def test_a_random_choice_is_the_keys_and_even():
    backbone, method = backbone_of(), fish_mask(SHARE, choice="random")
    stored = method.init(jax.random.key(0), backbone)
    assert_same_trees(method.init(jax.random.key(0), backbone), stored)
    assert pj.count(stored) == int(SHARE * tree.count(backbone.params))
    other = masks(method.init(jax.random.key(1), backbone), backbone.params)
    for path, mask in masks(stored, backbone.params).items():
        assert abs(mask.sum() - SHARE * mask.size) <= 1
        assert mask.sum() < 10 or (mask != other[path]).any()


def test_parts_of_a_composition():
    backbone = backbone_of()
    method = pj.compose(fish_mask(SHARE, "query/kernel"), pj.ia3())
    assert wants_information(method)
    assert not wants_information(pj.compose(fish_mask(choice="random"), pj.ia3()))
    assert information_targets(method) == ["query/kernel"]
    assert information_targets(pj.compose(fish_mask(), method)) is None
    assert others(method).spec == pj.ia3().spec
    assert others(fish_mask()) is None
    informed = with_information(method, information())
    stored = informed.init(jax.random.key(0), backbone)
    assert set(stored) == {"fish_mask", "ia3"}
    assert with_information(pj.ia3(), information()).spec == pj.ia3().spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0}, "share 0 must be above 0"),
        ({"share": 1.5}, "share 1.5 must be"),
        ({"choice": "magnitude"}, "'magnitude' is unknown; one of fisher, random"),
        ({"choice": "random", "counts": {"a": 1}}, "counts are of"),
        ({"share": 1e-9}, "of .* entries is none"),
        ({"targets": "qery"}, "'qery' matches nothing; nearest"),
        ({"counts": {"encoder/layers/wo/kernel": 3}}, "none of the chosen parameters.*nearest"),
        ({"counts": {"encoder/final_norm/scale": 99}}, "99 entries do not fit"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        abstract_init(fish_mask(**arguments), backbone_of())


def test_a_parameter_that_int32_cannot_count_is_refused():
    config = dataclasses.replace(pj.backbone_config("t0_11b"), decoder_layers=60)
    with pytest.raises(InputError, match="more entries than an int32 counts"):
        abstract_init(fish_mask(), pj.abstract_backbone(config))


# ------------------------------------------------------------------------------ bind


def test_an_optimiser_takes_a_parameters_entries_for_one_tensor():
    """Not for as many layers as there are entries, each scaled for itself."""
    _, _, stored = fitted()
    assert any(".layers." in path for path in tree.flatten(stored))
    assert not any(is_stacked(path) for path in tree.flatten(stored))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_only_the_chosen_entries_change_and_are_rounded_once(dtype):
    backbone, method, stored = fitted(dtype)
    merged = tree.flatten(jax.jit(lambda s: pj.merge(backbone.params, method.bind(s)))(stored))
    for path, mask in masks(stored, backbone.params).items():
        own, found = np.asarray(tree.get(backbone.params, path)), np.asarray(merged[path])
        np.testing.assert_array_equal(found[~mask], own[~mask])
        if mask.any():
            values = np.asarray(stored[dotted(path)]["values"])
            np.testing.assert_array_equal(found[mask], values.astype(dtype))
            assert (found[mask] != own[mask]).any()
    folded = tree.flatten(jax.jit(method.fold)(backbone.params, stored))
    for path, leaf in merged.items():
        np.testing.assert_array_equal(folded[path], leaf)


def test_gradients_are_full_fine_tunings_at_the_chosen_entries():
    backbone, method, stored = fitted()
    batch = random_batch()
    logits = functools.partial(transformer.logits, backbone.config)
    cotangent = np.random.default_rng(0).standard_normal((3, 7, 57)).astype(np.float32)

    @jax.jit
    def gradients(values, fixed):
        def merged(values):
            return pj.merge(backbone.params, method.bind(tree.join(values, fixed)))

        def loss(params):
            return jnp.sum(cotangent * logits(params, batch))

        return jax.grad(lambda v: loss(merged(v)))(values), jax.grad(loss)(merged(values))

    ours, full = gradients(*tree.split_fixed(stored))
    for path, mask in masks(stored, backbone.params).items():
        if mask.any():
            wanted = np.asarray(tree.get(full, path))[mask]
            oracle.assert_close(ours[dotted(path)]["values"], wanted, 1e-5, path)


def test_an_adapter_file_holds_the_mask(tmp_path):
    backbone, method, stored = fitted()
    path = pj.save_adapter(tmp_path, stored, method, backbone)
    loaded, again = pj.load_adapter(tmp_path, backbone)
    assert_same_trees(loaded, stored)
    assert again.spec == method.spec
    assert_same_trees(again.bind(loaded), method.bind(stored))
    # 4 bytes for each value and 4 for its place, and a header.
    assert path.stat().st_size < 8 * pj.count(stored) + 16_000


# ------------------------------------------------------------------------------ a run

QUIET = Console(file=io.StringIO())


def small_masked(folder):
    config = dataclasses.replace(small_experiment(folder), method=("fish_mask",))
    return dataclasses.replace(config, fish_mask=arguments("fish_mask", share=0.02))


@pytest.mark.slow
def test_a_run_is_set_up_with_the_mask_of_its_own_shots(tmp_path):
    config = small_masked(tmp_path)
    backbone = experiment.open_backbone(config)
    draw = experiment.open_examples("mine", config.data, backbone, config.seed, training=True)
    run = experiment.set_up(config, backbone, draw)
    assert pj.count(run.state.stored) == int(0.02 * tree.count(backbone.params))
    sampler = FewShotSampler(draw, 1, config.seed)
    batches = [sampler.batch(i) for i in range(draw.num_examples)]
    assert {int(draw.example[b["row"][0]]) for b in batches} == set(draw.example_ids)
    for batch in batches:
        batch.pop("row")
    measured = fisher_information(backbone, run.objective, batches)
    method = with_information(fish_mask(0.02), measured)
    assert run.method.spec == method.spec
    wanted = method.init(jax.random.key(0), backbone)
    assert_same_trees(run.state.fixed, tree.split_fixed(wanted)[1])
    # Other templates, or other shots, have a mask of their own in the same training.
    run.restart(7, draw)
    assert pj.count(run.state.stored) == pj.count(wanted)
    assert run.method.spec != method.spec


@pytest.mark.slow
def test_a_resumed_run_takes_the_mask_from_its_checkpoint(tmp_path, monkeypatch):
    config, output = small_masked(tmp_path), tmp_path / "out"

    def stop(run, until, _steps=experiment.train_steps):
        for made, metrics in _steps(run, until):
            if made == 7:
                signal.raise_signal(signal.SIGTERM)
            yield made, metrics

    held = []
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "train_steps", stop)
        save = experiment._Run._save
        patched.setattr(
            experiment._Run, "_save", lambda run: (held.append(run.training), save(run))
        )
        with pytest.raises(experiment.Interrupted):
            experiment.run(config, output, console=QUIET)
    measure = experiment.fisher_information

    def otherwise(*args, **kwargs):
        return jax.tree.map(lambda x: 1 / (x + 1), measure(*args, **kwargs))

    monkeypatch.setattr(experiment, "fisher_information", otherwise)
    result = experiment.run(config, output, resume=True, console=QUIET)
    adapter, method = pj.load_adapter(output, experiment.open_backbone(config))
    assert method.spec == held[-1].method.spec
    trained, fixed = tree.split_fixed(adapter)
    assert_same_trees(fixed, held[-1].state.fixed)
    assert tree.count(trained) == result["trainable_parameters"]
    assert any(x.any() for x in jax.tree.leaves(trained))
