"""A bank whose adapters were exchanged is the bank made of the new ones, in the same program."""

import functools

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import scoring, tree
from peft_jax.errors import InputError
from peft_jax.methods.bank_slots import clear_in_bank, replace_in_bank
from tests import oracle
from tests.families import FAMILIES, quickly
from tests.random_adapters import adapted, backbone_of
from tests.test_families import batch_of, choices_of, tokens_of

SPAN = {"vocabulary_range": (3, 50)}
LORA = "attention/(query|value)"
FIRST = (
    (pj.lora(3, targets=LORA), pj.ia3()),
    (pj.prompt_tuning(4, **SPAN), pj.bitfit()),
    (pj.lora(1, alpha=4.0, targets=LORA, layers=(1,)),),
)
OTHERS = {
    "of a smaller rank": (pj.lora(2, alpha=5.0, targets=LORA),),
    "of a shorter prompt": (pj.prompt_tuning(2, **SPAN), pj.ia3(layers=(0,))),
    "of biases": (pj.bitfit(),),
}


def entries_of(backbone, made=FIRST, seed=0):
    return [adapted(backbone, *parts, seed=seed + i) for i, parts in enumerate(made)]


def assert_same_banks(one, other):
    one, other = tree.flatten(one), tree.flatten(other)
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        values = (leaf, other[path])
        if hasattr(leaf, "stacked"):
            values = [x.values for x in values]
        np.testing.assert_array_equal(*values, err_msg=path)


@pytest.mark.parametrize("family", quickly(("t5_v1_1", "bert", "llama", "gemma3"), ("bert",)))
@pytest.mark.parametrize("name", OTHERS)
def test_a_replaced_adapter_is_the_bank_made_with_it(family, name):
    backbone = backbone_of(family)
    entries = entries_of(backbone)
    for index in (0, 1):
        new = adapted(backbone, *OTHERS[name], seed=7)
        replaced = replace_in_bank(pj.merge(backbone.params, pj.bank(entries)), index, *new)
        # The largest of each kind stands in the bank twice, so that its sizes are the same.
        made = pj.bank([*entries[:index], new, *entries[index + 1 :], *entries[:2]])
        made = pj.merge(backbone.params, made)
        wanted = {}
        for path, leaf in tree.flatten(made).items():
            if hasattr(leaf, "stacked"):
                kept = np.array([0, 1, 2, 5])
                values = leaf.values[:, kept] if leaf.stacked else leaf.values[kept]
                leaf = type(leaf)(values, leaf.stacked)
            wanted[path] = leaf
        assert_same_banks(replaced, tree.unflatten(wanted))


def test_exchanges_compile_nothing_and_equal_the_adapter_alone():
    backbone, config = backbone_of("t5_v1_1"), FAMILIES["t5_v1_1"]
    entries = entries_of(backbone)
    batch = batch_of(config, tokens_of(config, 4))
    ids = {"task_ids": np.array([2, 0, -1, 1], np.int32)}
    run = jax.jit(backbone.logits)
    params = pj.merge(backbone.params, pj.bank(entries))
    before = np.asarray(run(params, batch | ids))
    new = adapted(backbone, *OTHERS["of a shorter prompt"], seed=7)
    params = replace_in_bank(params, 0, *new)
    after = np.asarray(run(params, batch | ids))
    cleared = np.asarray(run(clear_in_bank(params, 2), batch | ids))
    assert run._cache_size() == 1
    alone = np.asarray(run(pj.merge(backbone.params, new[0].bind(new[1])), batch))
    plain = np.asarray(run(backbone.params, batch))
    oracle.assert_close(after[1], alone[1], 3e-6)
    oracle.assert_close(cleared[0], plain[0], 3e-6)
    np.testing.assert_array_equal(after[[0, 2, 3]], before[[0, 2, 3]])
    np.testing.assert_array_equal(cleared[1:], after[1:])


def test_reserved_places_change_nothing_until_they_are_taken():
    backbone = backbone_of("t5_v1_1")
    entries = entries_of(backbone)
    dropping = (pj.lora(1, alpha=4.0, targets=LORA, layers=(1,), dropout=0.1), entries[2][1])
    roomy = pj.merge(backbone.params, pj.bank(entries[:2], tasks=3))
    assert_same_banks(
        replace_in_bank(roomy, 2, *dropping), pj.merge(backbone.params, pj.bank(entries))
    )
    assert_same_banks(clear_in_bank(replace_in_bank(roomy, 2, *entries[2]), 2), roomy)
    with pytest.raises(InputError, match="3 adapters do not fit a bank of 2 tasks"):
        pj.bank(entries, tasks=2)


def test_a_donated_bank_is_not_copied():
    backbone = backbone_of("t5_v1_1")
    entries = entries_of(backbone)
    params = pj.merge(backbone.params, pj.bank(entries))
    wanted = replace_in_bank(params, 1, *entries[0])
    assert_same_banks(replace_in_bank(params, 1, *entries[0], donate=True), wanted)
    held = tree.get(params, "encoder/layers/attention/query/lora_a").values
    assert held.is_deleted()
    assert not tree.get(params, "encoder/layers/attention/query/kernel").is_deleted()


@pytest.mark.slow
@pytest.mark.parametrize("family", quickly(("t5_v1_1", "bart"), ("t5_v1_1",)))
def test_the_order_of_the_inputs_is_no_matter(family):
    """A row without a prompt in front of one with: relative places are those of both."""
    backbone = backbone_of(family)
    prompt = adapted(backbone, pj.prompt_tuning(3, where="both", **SPAN), noise=0.5)
    params = pj.merge(backbone.params, pj.bank([prompt]))
    score = jax.jit(functools.partial(scoring.choice_log_probs, backbone.config))
    batch = choices_of(family)
    inputs = {"encoder_input_tokens": batch["encoder_input_tokens"]}
    ids = {"task_ids": np.array([-1, 0, 0], np.int32)[: len(batch["choices"])]}
    mixed = np.asarray(score(params, batch | ids))
    texts = np.asarray(pj.greedy(backbone, params, inputs | ids, 6))
    method, stored = prompt
    alone = pj.merge(backbone.params, method.bind(stored))
    for task, own in ((-1, backbone.params), (0, alone)):
        rows = ids["task_ids"] == task
        real = (batch["choices"] != backbone.config.pad_id)[rows]
        wanted = np.asarray(score(own, batch))[rows]
        oracle.assert_close(mixed[rows][real], wanted[real], 1e-5, f"task {task}")
        np.testing.assert_array_equal(
            texts[rows], np.asarray(pj.greedy(backbone, own, inputs, 6))[rows]
        )


def test_what_does_not_fit_is_named():
    backbone = backbone_of("t5_v1_1")
    params = pj.merge(backbone.params, pj.bank(entries_of(backbone)))

    def put(*parts, index=0):
        return replace_in_bank(params, index, *adapted(backbone, *parts))

    cases = [
        (
            lambda: put(pj.lora(4, targets=LORA)),
            r"has shape .*4\), the bank has room .*3\)",
        ),
        (lambda: put(pj.prompt_tuning(5, **SPAN)), "'encoder/prompt' has shape .5, .*room for .4"),
        (lambda: put(pj.lora(1, targets="mlp/wo")), "none of its adapters has 'encoder/layers/mlp"),
        (lambda: put(pj.ia3(), index=3), "index 3 is not in a bank of 3 adapters"),
        (lambda: put(pj.ia3(), index=-1), "index -1 is not in"),
        (lambda: put(pj.ia3(), index="rte"), "must be a whole number"),
        (lambda: clear_in_bank(backbone.params, 0), "hold no bank"),
        (lambda: clear_in_bank(params, 5), "index 5 is not in"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
