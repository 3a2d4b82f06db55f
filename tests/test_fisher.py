"""The empirical Fisher information: squared gradients, example by example."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import objectives, tree
from peft_jax.errors import InputError
from peft_jax.fisher import fisher_information
from tests import oracle
from tests.random_adapters import backbone_of

OBJECTIVE = objectives.tfew_objective()


def shots(number=3, seed=0, vocabulary=57):
    """Batches of one example with three choices, of which one may be missing."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        yield {
            "encoder_input_tokens": rng.integers(2, vocabulary, (1, 9)),
            "choices": rng.integers(2, vocabulary, (1, 3, 4)),
            "choice_mask": np.array([[True, True, i % 2 == 0]]),
            "label": np.array([i % 2]),
        }


def test_information_is_the_mean_square_of_full_fine_tunings_gradients():
    backbone, method = backbone_of(), pj.full()
    stored = method.init(jax.random.key(0), backbone)

    @jax.jit
    def gradient(stored, batch):
        def loss(stored):
            params = pj.merge(backbone.params, method.bind(stored))
            counts = OBJECTIVE.counts(backbone.config, batch)
            return OBJECTIVE.value(backbone.config, params, batch, None, counts)[0]

        return jax.grad(loss)(stored)

    squares = [
        jax.tree.map(lambda g: np.asarray(g, np.float64) ** 2, gradient(stored, b)) for b in shots()
    ]
    seen = []
    information = fisher_information(backbone, OBJECTIVE, shots(), advance=seen.append)
    assert seen == [1, 1, 1]
    wanted = jax.tree.map(lambda *g: np.mean(g, axis=0), *squares)
    assert tree.flatten(information).keys() == tree.flatten(backbone.params).keys()
    for path, leaf in tree.flatten(information).items():
        assert leaf.dtype == jnp.float32
        oracle.assert_close(leaf, tree.get(wanted, path), 1e-4, path)
    # The backbone is neither consumed nor changed.
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(backbone.params))


def test_targets_choose_parameters_and_change_no_value():
    backbone = backbone_of()
    targets = ("query/kernel", "final_norm/scale")
    some = tree.flatten(fisher_information(backbone, OBJECTIVE, shots(1), targets=targets))
    assert set(some) == {
        "encoder/layers/attention/query/kernel",
        "decoder/layers/self_attention/query/kernel",
        "decoder/layers/cross_attention/query/kernel",
        "encoder/final_norm/scale",
        "decoder/final_norm/scale",
    }
    whole = fisher_information(backbone, OBJECTIVE, shots(1))
    for path, leaf in some.items():
        oracle.assert_close(leaf, tree.get(whole, path), 1e-4, path)


def test_gradients_of_a_bfloat16_backbone_are_squared_in_float32():
    backbone = backbone_of(dtype=jnp.bfloat16)
    information = fisher_information(backbone, OBJECTIVE, shots(1), targets="final_norm/scale")
    for leaf in jax.tree.leaves(information):
        assert leaf.dtype == jnp.float32
        # Squares of bfloat16 numbers, exactly: in bfloat16 half their digits would be gone.
        gradient = jnp.sqrt(leaf).astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_array_equal(leaf, gradient * gradient)
        assert (leaf != leaf.astype(jnp.bfloat16)).any()


def test_a_new_head_stands_beside_and_is_left_out():
    backbone = backbone_of("bert")
    head = pj.classification_head(3, std=1.0)
    bound = head.bind(head.init(jax.random.key(0), backbone))
    batch = {"encoder_input_tokens": np.array([[3, 4, 5]]), "label": np.array([2])}
    information = fisher_information(
        backbone, objectives.head_objective(), [batch], targets="query/kernel", beside=bound
    )
    assert list(tree.flatten(information)) == ["encoder/layers/attention/query/kernel"]
    assert information["encoder"]["layers"]["attention"]["query"]["kernel"].any()


def test_errors():
    backbone = backbone_of()
    with pytest.raises(InputError, match="no example"):
        fisher_information(backbone, OBJECTIVE, [])
    with pytest.raises(InputError, match="'qery' matches nothing; nearest"):
        fisher_information(backbone, OBJECTIVE, shots(1), targets="qery")
    broken = tree.map_with_path(
        lambda path, x: x * jnp.nan if path == "decoder/final_norm/scale" else x, backbone.params
    )
    with pytest.raises(InputError, match="is not finite"):
        fisher_information(
            dataclasses.replace(backbone, params=broken),
            OBJECTIVE,
            shots(1),
            targets="final_norm/scale",
        )


@pytest.mark.oracle
def test_information_equals_that_of_transformers_and_torch():
    """T-Few's loop on transformers' T5: grad squared / shots, a batch of one at a time."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    backbone, _ = oracle.t5("v1_1")
    model = transformers.T5ForConditionalGeneration.from_pretrained(
        oracle.model_folder("t5", "v1_1")
    ).eval()
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(2, backbone.config.vocab_size, (3, n)) for n in (9, 5))
    sums = {name: 0.0 for name, _ in model.named_parameters()}
    for source, target in zip(inputs, targets, strict=True):
        model.zero_grad()
        model(
            input_ids=torch.tensor(source[None]), labels=torch.tensor(target[None])
        ).loss.backward()
        for name, parameter in model.named_parameters():
            sums[name] = sums[name] + parameter.grad.numpy().astype(np.float64) ** 2 / 3
    start = backbone.config.decoder_start_id
    batches = (
        {
            "encoder_input_tokens": source[None],
            "decoder_input_tokens": np.array([[start, *target[:-1]]]),
            "decoder_target_tokens": target[None],
        }
        for source, target in zip(inputs, targets, strict=True)
    )
    information = fisher_information(backbone, objectives.lm_objective(), batches)
    named = oracle.by_hugging_face_name(backbone, information)
    assert sums.keys() <= named.keys()
    for name, wanted in sums.items():
        oracle.assert_close(named[name], wanted, 1e-4, name)
