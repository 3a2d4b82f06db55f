"""A bank equals the loop over its tasks: every method, every family, every way of running."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import scoring, transformer, tree
from peft_jax.errors import InputError
from tests import oracle
from tests.families import FAMILIES, quickly
from tests.random_adapters import adapted, backbone_of
from tests.test_families import batch_of, choices_of, tokens_of

SPAN = {"vocabulary_range": (3, 50)}
MADE = {
    "ia3": (pj.ia3(),),
    "lora of rank 1": (pj.lora(1, alpha=3.0),),
    "lora of rank 3, elsewhere": (
        pj.lora(3, targets=("attention/(key|out)", "mlp/.*"), layers=(1,)),
    ),
    "prompt": (pj.prompt_tuning(4, **SPAN),),
    "shorter prompt and ia3": (pj.prompt_tuning(2, **SPAN), pj.ia3(layers=(0,))),
    "biases": (pj.bitfit(),),
}
TASKS = [3, -1, 0, 2, 1, 5, 4, 0]


def entries_of(backbone):
    return [adapted(backbone, *parts, seed=i) for i, parts in enumerate(MADE.values())]


def merged_alone(backbone, entries, task):
    if task < 0:
        return backbone.params
    method, stored = entries[task]
    return pj.merge(backbone.params, method.bind(stored))


@pytest.mark.parametrize("family", quickly(FAMILIES, ("gpt2",)))
def test_logits_equal_the_loop_over_tasks(family):
    config, backbone = FAMILIES[family], backbone_of(family)
    entries = entries_of(backbone)
    together = pj.merge(backbone.params, pj.bank(entries))
    tokens = tokens_of(config, len(TASKS))
    tokens[::3, 6:] = config.pad_id
    batch = batch_of(config, tokens)
    run = jax.jit(backbone.logits)
    mixed = np.asarray(run(together, batch | {"task_ids": np.asarray(TASKS, np.int32)}))
    for task in set(TASKS):
        rows = np.flatnonzero(np.asarray(TASKS) == task)
        alone = np.asarray(run(merged_alone(backbone, entries, task), batch))
        for row in rows:
            real = slice(None) if config.kind == "encoder_decoder" else tokens[row] != config.pad_id
            oracle.assert_close(mixed[row][real], alone[row][real], 3e-6, f"task {task}")


@pytest.mark.slow
@pytest.mark.parametrize("family", quickly(("t5_v1_1", "bart", "gpt2", "gemma3"), ("t5_v1_1",)))
def test_choices_and_generated_texts_equal_the_loop_over_tasks(family):
    config, backbone = FAMILIES[family], backbone_of(family)
    # A prompt in the decoder of an encoder-decoder model stands in its cache.
    where = "both" if config.encoder_layers else "input"
    entries = entries_of(backbone)
    entries[3] = adapted(backbone, pj.prompt_tuning(3, where=where, **SPAN), seed=9)
    together = pj.merge(backbone.params, pj.bank(entries))
    batch = choices_of(family)
    batch = {name: np.concatenate([x] * 3)[: len(TASKS)] for name, x in batch.items()}
    ids = {"task_ids": np.asarray(TASKS, np.int32)}
    score = jax.jit(lambda p, b: scoring.choice_log_probs(config, p, b))
    mixed = np.asarray(score(together, batch | ids))
    inputs = {"encoder_input_tokens": batch["encoder_input_tokens"]}
    texts = np.asarray(pj.greedy(backbone, together, inputs | ids, 5))
    # On a T5 one of each kind: (IA)³, a prompt, and both.
    for task in (0, 3, 4) if family == "t5_v1_1" else sorted(set(TASKS)):
        params = merged_alone(backbone, entries, task)
        rows = np.flatnonzero(np.asarray(TASKS) == task)
        alone = np.asarray(score(params, batch))
        real = (batch["choices"] != config.pad_id)[rows]
        oracle.assert_close(mixed[rows][real], alone[rows][real], 1e-5, f"task {task}")
        np.testing.assert_array_equal(
            texts[rows], np.asarray(pj.greedy(backbone, params, inputs, 5))[rows]
        )


@pytest.mark.slow
def test_gradients_reach_each_adapter_from_its_own_inputs():
    backbone, config = backbone_of("t5_v1_1"), FAMILIES["t5_v1_1"]
    entries = entries_of(backbone)[:3]
    batch = batch_of(config, tokens_of(config, 4))
    ids = np.array([0, 2, 0, -1], np.int32)

    def loss(stored, batch, rows):
        made = [(method, s) for (method, _), s in zip(entries, stored, strict=True)]
        params = pj.merge(backbone.params, pj.bank(made))
        return jnp.square(backbone.logits(params, batch))[np.asarray(rows)].sum()

    stored = [s for _, s in entries]
    gradients = jax.jit(jax.grad(loss), static_argnums=2)(
        stored, batch | {"task_ids": ids}, (0, 1, 2, 3)
    )
    assert all((g == 0).all() for g in jax.tree.leaves(gradients[1]))  # no input of task 1
    for task, rows in ((0, (0, 2)), (2, (1,))):

        def alone(s, task=task, rows=rows):
            params = pj.merge(backbone.params, entries[task][0].bind(s))
            return jnp.square(backbone.logits(params, batch))[np.asarray(rows)].sum()

        wanted = tree.flatten(jax.jit(jax.grad(alone))(stored[task]))
        for path, gradient in tree.flatten(gradients[task]).items():
            oracle.assert_close(gradient, wanted[path], 1e-5, path)


def test_other_tasks_and_adapters_compile_nothing():
    backbone, config = backbone_of("t5_v1_1"), FAMILIES["t5_v1_1"]
    batch = batch_of(config, tokens_of(config, 4))
    run = jax.jit(backbone.logits)
    for seed, ids in ((0, [0, 1, 1, -1]), (1, [1, 0, 0, 0])):
        entries = [adapted(backbone, pj.ia3(), seed=seed + i) for i in range(2)]
        params = pj.merge(backbone.params, pj.bank(entries))
        run(params, batch | {"task_ids": jnp.asarray(ids)})
    assert run._cache_size() == 1


@pytest.mark.parametrize("ids", [[0, 6, 1], [-2, 0, 0]])
def test_a_task_that_is_not_in_the_bank_is_named(ids):
    backbone, config = backbone_of("t5_v1_1"), FAMILIES["t5_v1_1"]
    params = pj.merge(backbone.params, pj.bank(entries_of(backbone)))
    batch = batch_of(config, tokens_of(config)) | {"task_ids": np.asarray(ids)}
    with pytest.raises(InputError, match=r"task_ids: (6|-2) is not in a bank of 6 adapters"):
        transformer.for_tasks(params, batch)


def test_a_bank_needs_task_ids_and_adapters():
    backbone, config = backbone_of("t5_v1_1"), FAMILIES["t5_v1_1"]
    params = pj.merge(backbone.params, pj.bank(entries_of(backbone)[:1]))
    with pytest.raises(InputError, match="needs task_ids"):
        backbone.logits(params, batch_of(config, tokens_of(config)))
    with pytest.raises(InputError, match="at least one adapter"):
        pj.bank([])
    with pytest.raises(InputError, match="a bank cannot be folded"):
        pj.fold(params)


@pytest.mark.slow
@pytest.mark.parametrize("family", quickly(("t5_v1_1", "bart", "gpt2"), ("t5_v1_1",)))
def test_whole_parameters_stand_in_a_bank(family):
    """Kernels, embeddings, heads and a T5's relative positions, a copy for each task."""
    backbone, config = backbone_of(family), FAMILIES[family]
    parts = (pj.full(), pj.ia3(), pj.partial("embedding"))
    entries = [adapted(backbone, part, seed=i) for i, part in enumerate(parts)]
    entries[2] = parts[2], jax.tree.map(lambda x: 1.5 * x, parts[2].init(None, backbone))
    together = pj.merge(backbone.params, pj.bank(entries))
    batch = choices_of(family)
    ids = {"task_ids": np.array([2, 0, 1], np.int32)}
    score = jax.jit(lambda p, b: scoring.choice_log_probs(config, p, b))
    mixed = np.asarray(score(together, batch | ids))
    inputs = {"encoder_input_tokens": batch["encoder_input_tokens"]}
    decoding = pj.Decoding(max_length=3, beams=2)
    texts = pj.generate(backbone, together, inputs | ids, decoding).tokens
    for row, task in enumerate(ids["task_ids"]):
        params = merged_alone(backbone, entries, task)
        real = batch["choices"][row] != config.pad_id
        alone = np.asarray(score(params, batch))
        oracle.assert_close(mixed[row][real], alone[row][real], 1e-5, f"task {task}")
        own = pj.generate(backbone, params, inputs, decoding).tokens
        np.testing.assert_array_equal(texts[row], own[row])


@pytest.mark.parametrize("family", quickly(FAMILIES, ("bert",)))
def test_heads_of_different_numbers_of_classes_stand_in_one_bank(family):
    backbone, config = backbone_of(family), FAMILIES[family]
    entries = [adapted(backbone, pj.classification_head(n), pj.ia3(), seed=n) for n in (2, 4)]
    params = pj.merge(backbone.params, pj.bank(entries))
    batch = {"encoder_input_tokens": tokens_of(config, 3)}
    classify = jax.jit(lambda p, b: transformer.classify(config, p, b))
    mixed = jax.nn.softmax(classify(params, batch | {"task_ids": np.array([0, 1, 0], np.int32)}))
    for row, task in enumerate((0, 1, 0)):
        alone = jax.nn.softmax(classify(merged_alone(backbone, entries, task), batch))[row]
        oracle.assert_close(mixed[row, : len(alone)], alone, 1e-5)
        assert (mixed[row, len(alone) :] == 0).all()


@pytest.mark.slow
def test_a_bank_runs_in_low_precision():
    backbone = backbone_of("llama", jnp.bfloat16).replace(activation_dtype="bfloat16")
    params = pj.merge(backbone.params, pj.bank(entries_of(backbone)))
    batch = batch_of(backbone.config, tokens_of(backbone.config)) | {
        "task_ids": np.array([0, 3, -1])
    }
    exact = dataclasses.replace(backbone, params=tree.cast(backbone.params, jnp.float32))
    exact = exact.replace(activation_dtype="float32")
    wanted = exact.logits(pj.merge(exact.params, pj.bank(entries_of(backbone))), batch)
    found = backbone.logits(params, batch)
    assert float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted)) < 3e-2
