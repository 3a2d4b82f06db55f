"""Arithmetic on adapters: against its definitions, the bound leaves, and Hugging Face PEFT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.backbones import hugging_face
from peft_jax.errors import InputError
from peft_jax.methods import arithmetic, task_vectors
from tests import oracle
from tests.random_adapters import abstract_init, adapted, assert_same_trees, backbone_of

BACKBONE = backbone_of("v1_1")
LORA = pj.lora(3, alpha=6.0)


def several(method, count=3):
    return [adapted(BACKBONE, method, seed=seed) for seed in range(count)]


def updates(method, stored):
    """Dense updates [L, in, out] of every module, in float64."""
    bound = {p: np.asarray(x, np.float64) for p, x in tree.flatten(method.bind(stored)).items()}
    return {
        path.removesuffix("/lora_a"): a @ bound[path.removesuffix("a") + "b"]
        for path, a in bound.items()
        if path.endswith("/lora_a")
    }


def assert_updates(adapter, wanted, tolerance=1e-6):
    found = updates(*adapter)
    assert found.keys() == wanted.keys()
    for module, update in wanted.items():
        oracle.assert_close(found[module], update, tolerance, module)


def assert_usable(method, stored):
    """Has the form that its method makes, so that it saves, binds and composes."""
    assert jax.tree.map(np.shape, stored) == jax.tree.map(np.shape, abstract_init(method, BACKBONE))
    assert {x.dtype for x in jax.tree.leaves(stored)} == {jnp.dtype("float32")}


# ------------------------------------------------------------------------------------- exact sums
@pytest.mark.parametrize("weights", [None, [0.5, -2.0, 1.5]])
def test_concatenated_ranks_are_the_sum_of_updates(weights):
    given = [*several(LORA, 2), adapted(BACKBONE, pj.lora(1, dropout=0.5, rslora=True), seed=7)]
    method, stored = arithmetic.concatenate_ranks(given, weights)
    assert_usable(method, stored)
    assert method.spec["rank"] == 7
    each = [updates(*pair) for pair in given]
    scaled = zip(weights or [1.0] * 3, each, strict=True)
    scaled = [{m: w * x for m, x in one.items()} for w, one in scaled]
    assert_updates((method, stored), {m: sum(one[m] for one in scaled) for m in each[0]})


def test_truncated_ranks_are_the_nearest():
    given = arithmetic.concatenate_ranks(several(LORA))
    for rank in (2, 9, 12):
        method, stored = arithmetic.truncate_rank(*given, rank)
        assert_usable(method, stored)
        wanted = {}
        for module, update in updates(*given).items():
            u, s, vh = np.linalg.svd(update, full_matrices=False)
            wanted[module] = (u[..., :rank] * s[:, None, :rank]) @ vh[:, :rank]
        assert_updates((method, stored), wanted)
    assert_updates((method, stored), updates(*given))  # 12 is more than the update has


def test_chosen_layers_stay_chosen():
    method = pj.lora(2, alpha=3.0, layers=(1,))
    together, stored = arithmetic.concatenate_ranks(several(method, 2))
    assert together.spec["layers"] == [1]
    assert_usable(together, stored)
    assert_usable(*arithmetic.truncate_rank(together, stored, 1))


def test_negation_takes_away_what_was_added():
    for one in (several(LORA, 1)[0], adapted(BACKBONE, pj.lora(2), pj.ia3())):
        back = arithmetic.negate(*arithmetic.negate(*one))[1]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), back, one[1])
    lora = several(LORA, 1)[0]
    assert_updates(arithmetic.negate(*lora), {m: -x for m, x in updates(*lora).items()})
    method, vectors = several(pj.ia3(), 1)[0]
    negated = arithmetic.negate(method, vectors)[1]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x - 1, 1 - y, atol=1e-6), vectors, negated)


def test_negation_of_other_low_rank_methods():
    adalora = adapted(BACKBONE, pj.adalora(2, 1))
    opposite = {m: -x for m, x in updates(*adalora).items()}
    assert_updates(arithmetic.negate(*adalora), opposite)
    assert_updates(arithmetic.truncate_rank(*arithmetic.negate(*adalora), 2), opposite)
    vera = adapted(BACKBONE, pj.vera(3))
    houlsby = adapted(BACKBONE, pj.houlsby_adapter(2, train_norms=False))
    for (method, stored), ends in ((vera, "lora_b"), (houlsby, ("up", "up_bias"))):
        negated = arithmetic.negate(method, stored)[1]
        before, after = (tree.flatten(method.bind(s)) for s in (stored, negated))
        for path, leaf in before.items():
            sign = -1 if path.endswith(ends) else 1
            wanted = jax.tree.map(lambda x, sign=sign: sign * x, leaf)
            jax.tree.map(np.testing.assert_array_equal, wanted, after[path])
    with pytest.raises(InputError, match=r"'vera' has .* no LoRA factor"):
        arithmetic.truncate_rank(*vera, 1)


@pytest.mark.parametrize("weight", [2.5, -0.5, 0.0])
def test_one_adapters_update_is_scaled_by_its_weight(weight):
    lora = several(LORA, 1)
    scaled = arithmetic.weighted_sum(lora, [weight])
    assert_updates(scaled, {m: weight * x for m, x in updates(*lora[0]).items()})


def test_sums_of_vectors_are_taken_from_where_they_change_nothing():
    given = several(pj.ia3())
    weights = [0.3, -1.0, 2.0]
    method, stored = arithmetic.weighted_sum(given, weights)
    assert_usable(method, stored)
    wanted = jax.tree.map(
        lambda *x: 1 + sum(w * (v - 1) for w, v in zip(weights, x, strict=True)),
        *(s for _, s in given),
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), stored, wanted)


def test_averages_need_no_origin_and_other_sums_do():
    given = several(pj.prompt_tuning(3))
    _, mean = arithmetic.average(given)
    wanted = jax.tree.map(lambda *x: sum(x) / 3, *(s for _, s in given))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), mean, wanted)
    _, mean = arithmetic.average(given, [1, 0, 3])
    assert_close = np.testing.assert_allclose
    wanted = (given[0][1]["encoder"]["prompt"] + 3 * given[2][1]["encoder"]["prompt"]) / 4
    assert_close(mean["encoder"]["prompt"], wanted, atol=1e-6)
    with pytest.raises(InputError, match="'encoder/prompt' has no value of its own"):
        arithmetic.weighted_sum(given, [1, 1, 1])
    with pytest.raises(InputError, match="pass origin="):
        arithmetic.negate(*given[0])
    origin = given[2][1]
    _, summed = arithmetic.weighted_sum(given[:2], [1, 1], origin=origin)
    start = origin["encoder"]["prompt"]
    parts = [s["encoder"]["prompt"] - start for _, s in given[:2]]
    assert_close(summed["encoder"]["prompt"], start + sum(parts), atol=1e-6)
    _, back = arithmetic.negate(*given[0], origin=origin)
    assert_close(back["encoder"]["prompt"], start - parts[0], atol=1e-6)


def test_compositions_are_combined_part_by_part():
    parts = (pj.ia3(), LORA, pj.prompt_tuning(2))
    given = [adapted(BACKBONE, *parts, seed=i) for i in range(2)]
    method, stored = arithmetic.average(given)
    assert_usable(method, stored)
    assert [part["name"] for part in method.spec["methods"]] == ["ia3", "lora", "prompt_tuning"]
    for label, part in zip(("ia3", "lora", "prompt_tuning"), parts, strict=True):
        _, alone = arithmetic.average([(part, s[label]) for _, s in given])
        assert_same_trees(stored[label], alone)


def test_what_comes_out_saves_and_composes(tmp_path):
    method, stored = arithmetic.ties(several(LORA))
    path = pj.save_adapter(tmp_path, stored, method, BACKBONE)
    loaded, same = pj.load_adapter(path, BACKBONE)
    assert_same_trees(loaded, stored)
    assert same.spec == method.spec
    both = pj.compose(method, pj.ia3())
    assert_usable(both, both.init(jax.random.key(0), BACKBONE))


# ----------------------------------------------------------------------------------- sparse merges
def test_ties_by_hand():
    # Yadav et al. 2023, figure 1: entries that disagree with the elected sign are left out.
    x = {"a/layers/b": np.array([[[4.0, -3, 0.1, 1]], [[2.0, 1, -5, 0.2]], [[-1.0, 0.5, -3, 2]]])}
    trimmed = task_vectors.trim(x, 0.5, "matrix")["a/layers/b"]
    assert trimmed.tolist() == [[[4, -3, 0, 0]], [[2, 0, -5, 0]], [[0, 0, -3, 2]]]
    ones = np.ones(3)
    assert task_vectors.elect_and_average(trimmed, ones).tolist() == [[3, -3, -4, 2]]
    weighted = task_vectors.elect_and_average(trimmed, np.array([1.0, 0.5, -1]))
    assert weighted.tolist() == [[2.5, -3, 0.25, -2]]
    signs = np.array([[5.0, 1], [-1, 2], [-2, -9]])
    assert task_vectors.elect_and_average(signs, ones, "total").tolist() == [5, -9]
    assert task_vectors.elect_and_average(signs, ones, "frequency").tolist() == [-1.5, 1.5]


def test_trimming_together_keeps_the_largest_of_the_whole_adapter():
    rng = np.random.default_rng(0)
    x = {"a/layers/b": rng.normal(size=(2, 3, 5)), "c": 10 * rng.normal(size=(2, 4))}
    trimmed = task_vectors.trim(x, 0.3, "adapter")
    for row in range(2):
        flat = np.concatenate([v[row].ravel() for v in x.values()])
        kept = np.concatenate([v[row].ravel() for v in trimmed.values()])
        order = np.argsort(-np.abs(flat))[:5]  # floor(0.3 * 19)
        assert set(np.flatnonzero(kept)) == set(order)
        np.testing.assert_array_equal(kept[order], flat[order])
    each = task_vectors.trim(x, 0.4, "matrix")
    assert (np.count_nonzero(each["a/layers/b"], axis=-1) == 2).all()
    assert (np.count_nonzero(each["c"], axis=-1) == 1).all()


def test_drops_keep_the_share_and_the_expectation():
    x = {"a": np.full((2, 40_000), 3.0)}
    dropped = task_vectors.drop(x, 0.2, np.random.default_rng(1))["a"]
    assert set(np.unique(dropped)) == {0, 15}
    assert abs((dropped != 0).mean() - 0.2) < 0.01  # five standard deviations
    given = several(pj.ia3())
    assert_same_trees(arithmetic.dare(given, seed=3)[1], arithmetic.dare(given, seed=3)[1])
    one, other = (arithmetic.dare(given, seed=s)[1] for s in (3, 4))
    assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True))


@pytest.mark.parametrize("made", [arithmetic.ties, arithmetic.dare, arithmetic.magnitude_prune])
def test_at_density_one_one_adapter_stays_as_it_is(made):
    method, stored = several(pj.ia3(), 1)[0]
    same = made([(method, stored)], density=1.0)[1]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), same, stored)
    lora = several(LORA, 1)
    assert_updates(made(lora, density=1.0, rank=3), updates(*lora[0]))


def test_ties_over_the_whole_adapter_crosses_compositions():
    given = [adapted(BACKBONE, pj.ia3(), LORA, seed=i) for i in range(2)]
    _, stored = arithmetic.magnitude_prune(given[:1], density=0.1, scope="adapter")
    before, after = tree.flatten(given[0][1]), tree.flatten(stored)
    neutral = {path: float(path.endswith("ia3")) for path in before}
    kept = sum(int((after[p] != neutral[p]).sum()) for p in after)
    assert kept == int(0.1 * pj.count(given[0][1]))


# --------------------------------------------------------------------------------------- bad input
def test_bad_input_is_named():
    given = several(LORA, 2)
    other = adapted(BACKBONE, pj.lora(3, targets="attention/(key|value)"))
    layered = adapted(BACKBONE, pj.lora(3, layers=(0,)))
    wider = adapted(BACKBONE, pj.lora(4))
    ia3, prompt = several(pj.ia3(), 1)[0], several(pj.prompt_tuning(2), 1)[0]
    cases = [
        (lambda: arithmetic.weighted_sum(given, [1.0]), "1 weights for 2 adapters"),
        (lambda: arithmetic.weighted_sum(given, [1.0, float("nan")]), "must be finite"),
        (lambda: arithmetic.average(given, [1.0, -1.0]), "sum to more than 0"),
        (lambda: arithmetic.average([]), "at least one"),
        (lambda: arithmetic.average([given[0], other]), "different targets.*attention/query"),
        (lambda: arithmetic.average([given[0], layered]), r"different layers: None and \(0,\)"),
        (lambda: arithmetic.average([given[0], wider]), "lora_a' has the shapes .*3.* and .*4"),
        (lambda: arithmetic.average([given[0], ia3]), r"methods \['ia3'\] and adapter 0 of"),
        (lambda: arithmetic.concatenate_ranks([given[0], other]), "compose runs both"),
        (lambda: arithmetic.concatenate_ranks([ia3]), "'ia3' has .* no LoRA factor"),
        (lambda: arithmetic.concatenate_ranks([]), "at least one"),
        (lambda: arithmetic.truncate_rank(*given[0], 0), "rank 0 must be"),
        (lambda: arithmetic.truncate_rank(*prompt, 1), "no LoRA factor"),
        (lambda: arithmetic.ties(given, density=0), "density 0 must be"),
        (lambda: arithmetic.ties(given, election="most"), "election 'most' is unknown"),
        (lambda: arithmetic.ties(given, scope="all"), "scope 'all' is unknown"),
        (lambda: arithmetic.ties(given, scope="adapter", rank=2), "needs the factors"),
        (lambda: arithmetic.dare(given, density=1.5), "density 1.5 must be"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()


def test_methods_that_read_a_stored_tree_otherwise_are_refused():
    one = adapted(BACKBONE, pj.ia3(layers=(0,)))
    other = adapted(BACKBONE, pj.ia3(layers=(1,)))
    with pytest.raises(InputError, match="adapters 0 and 1 are made by different methods"):
        arithmetic.average([one, other])
    same = [adapted(BACKBONE, pj.prompt_tuning(2, init)) for init in ("vocabulary", "random")]
    arithmetic.average(same)  # where a prompt began is no matter


# ------------------------------------------------------------------------------------------- PEFT


@functools.cache
def peft_arrays():
    return dict(np.load(oracle.GOLDEN / "peft_arithmetic.npz"))


def stored_from_peft(backbone, arrays, prefix):
    """The stored tree of PEFT's tensors under a prefix, all of which have a place."""
    given = {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}
    stored = {}
    config = backbone.config
    for rule in hugging_face.FAMILIES[config.family].hugging_face_rules(config):
        depth = config.encoder_layers if rule.ours.startswith("enc") else config.decoder_layers
        module = rule.ours.removesuffix("/kernel")
        for suffix, leaf in (("lora_A", "lora_a"), ("lora_B", "lora_b"), ("ia3_l", "ia3")):
            names = [f"{n.removesuffix('.weight')}/{suffix}" for _, n in rule.names(depth)]
            if names[0] not in given:
                continue
            tensors = np.stack([given.pop(name) for name in names])
            if leaf == "ia3":
                stored[f"{module.removesuffix('/wo')}/ia3"] = tensors.reshape(depth, -1)
            else:
                stored[f"{module}/{leaf}"] = tensors.swapaxes(1, 2)
    assert stored
    assert not given
    return tree.unflatten(stored)


def in_pefts_draws(vectors, density, generator):
    """The entries that make_peft_arithmetic keeps, as our ``drop`` would."""
    del generator
    assert density == 0.4
    out = {}
    for path, x in vectors.items():
        kept = np.empty(x.shape, bool)
        for adapter in range(x.shape[0]):
            theirs = x.shape[:1:-1]  # transposed, and one layer at a time
            kept[adapter] = (np.random.default_rng([adapter, *theirs]).random(theirs) < density).T
        out[path] = np.where(kept, x / np.float32(density), 0)
    return out


ours = arithmetic
PEFT_COMBINATIONS = {
    "linear": ours.weighted_sum,
    "cat": ours.concatenate_ranks,
    "svd": lambda *a: ours.truncate_rank(*ours.concatenate_ranks(*a), 4),
    "ties": lambda *a: ours.ties(*a, 0.4),
    "ties frequency": lambda *a: ours.ties(*a, 0.4, election="frequency"),
    "ties_svd": lambda *a: ours.ties(*a, 0.4, rank=4),
    "dare_linear": lambda *a: ours.dare(*a, 0.4),
    "dare_ties": lambda *a: ours.dare(*a, 0.4, election="total"),
    "dare_linear_svd": lambda *a: ours.dare(*a, 0.4, rank=4),
    "dare_ties_svd": lambda *a: ours.dare(*a, 0.4, election="total", rank=4),
    "magnitude_prune": lambda *a: ours.magnitude_prune(*a, 0.4),
    "magnitude_prune_svd": lambda *a: ours.magnitude_prune(*a, 0.4, rank=4),
}


@pytest.mark.parametrize("name", PEFT_COMBINATIONS)
def test_combinations_of_loras_are_what_peft_makes(name, monkeypatch):
    monkeypatch.setattr(task_vectors, "drop", in_pefts_draws)
    backbone, _ = oracle.t5("v1_1")
    targets = "decoder/layers/self_attention/(query|value)"
    given = [
        (pj.lora(3, alpha, targets), stored_from_peft(backbone, peft_arrays(), f"lora/{one}/"))
        for one, alpha in (("one", 7), ("two", 3), ("three", 5))
    ]
    wanted = stored_from_peft(backbone, peft_arrays(), f"{name}/")
    method, stored = PEFT_COMBINATIONS[name](given, [0.7, -0.4, 1.3])
    rank = tree.get(wanted, "decoder/layers/self_attention/query/lora_a").shape[-1]
    assert method.spec["rank"] == rank
    # Of PEFT's alpha the rank of the result is left: its scale is 1, as ours is.
    assert_updates((method, stored), updates(pj.lora(rank, targets=targets), wanted), 1e-5)
    if not name.endswith(("cat", "svd")):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), stored, wanted)


def test_sums_of_ia3_vectors_are_what_peft_makes():
    backbone, _ = oracle.t5("v1_1")
    given = [
        (pj.ia3(), stored_from_peft(backbone, peft_arrays(), f"ia3/{one}/"))
        for one in ("one", "two", "three")
    ]
    wanted = stored_from_peft(backbone, peft_arrays(), "ia3_sum/")
    zeros = jax.tree.map(np.zeros_like, wanted)
    for origin in (None, zeros):  # the same, since the weights sum to 1
        _, stored = arithmetic.weighted_sum(given, [0.2, 0.5, 0.3], origin=origin)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), stored, wanted)
    doubled = arithmetic.weighted_sum(given, [0.4, 1.0, 0.6], origin=zeros)[1]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, 2 * y, atol=1e-6), doubled, wanted)


@pytest.mark.oracle
def test_golden_file_is_what_the_installed_peft_computes():
    fresh = oracle.live("make_peft_arithmetic").oracle()
    golden = peft_arrays()
    assert fresh.keys() == golden.keys()
    for name, array in fresh.items():
        if "svd" not in name:
            oracle.assert_close(golden[name], array, 1e-6, name)
        elif name.endswith("lora_A"):  # the signs of singular vectors are free
            other = name.removesuffix("A") + "B"
            oracle.assert_close(golden[other] @ golden[name], fresh[other] @ array, 1e-5, name)
