"""The bridge to T5X, run by T5X itself: skipped where T5X cannot be imported (docs/t5x.md)."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import unfreeze

import peft_jax as pj
from peft_jax import objectives, scoring, tree
from peft_jax.backbones import t5x as t5x_backbone
from peft_jax.backbones import t5x_files
from peft_jax.decoding import Decoding, generate
from peft_jax.errors import InputError
from peft_jax.exchange import load_t5x
from peft_jax.methods import ia3, lora, merge, prefix_tuning, prompt_tuning, vera
from peft_jax.optimizers import OptimizerConfig, make_optimizer
from peft_jax.train import init_state, make_train_step
from tests import oracle
from tests.test_t5x import WRITTEN
from tests.test_transformer import random_backbone


def of_t5x(name):
    return pytest.importorskip(
        name, reason="T5X cannot be imported; docs/t5x.md says what it needs"
    )


adafactor = of_t5x("t5x.adafactor")
checkpoints = of_t5x("t5x.checkpoints")
decoding = of_t5x("t5x.decoding")
models = of_t5x("t5x.models")
network = of_t5x("t5x.examples.t5.network")
optimizers = of_t5x("t5x.optimizers")
partitioning = of_t5x("t5x.partitioning")
trainer = of_t5x("t5x.trainer")
utils = of_t5x("t5x.utils")
bridge = of_t5x("peft_jax.t5x_bridge")

CONFIG = WRITTEN["v1_1"]


class Vocabulary:
    """As much of seqio's as a model asks for."""

    eos_id = 1


METHODS = {
    "ia3": (ia3(), OptimizerConfig(total_steps=9, warmup_ratio=0.2)),
    "lora": (lora(rank=2), OptimizerConfig(name="adamw", schedule="constant")),
    "prompt_tuning": (
        prompt_tuning(3, "random", "both"),
        OptimizerConfig(name="adafactor_t5x", learning_rate=0.3, schedule="constant"),
    ),
    "vera": (vera(rank=4), OptimizerConfig(name="sgd", schedule="constant")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random T5 in T5X's own format."""
    place = tmp_path_factory.mktemp("backbone") / "checkpoint_0"
    return t5x_backbone.write_backbone(place, random_backbone(CONFIG))


@pytest.fixture(scope="module")
def backbone(folder):
    return pj.load_backbone(folder, dropout=0.0)


def batch_of(rows=8, source=7, target=6, seed=0):
    numbers = np.random.default_rng(seed)
    targets = numbers.integers(2, CONFIG.vocab_size, (rows, target)).astype(np.int32)
    for row in range(rows):
        end = row % (target - 1) + 1
        targets[row, end:] = 0
        targets[row, end - 1] = 1
    inputs = numbers.integers(2, CONFIG.vocab_size, (rows, source)).astype(np.int32)
    inputs[0, 4:] = 0
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.int32),
    }


def model_of(folder, method, optimizer=None, **options):
    optimizer = bridge.optimizer(OptimizerConfig(name="sgd", schedule="constant"))
    return bridge.AdapterModel(
        folder,
        method,
        options.pop("optimizer_def", optimizer),
        Vocabulary(),
        loss_normalizing_factor="NUM_REAL_TARGET_TOKENS",
        **options,
    )


class Partitioner(partitioning.PjitPartitioner):
    """T5X's, with the mesh that it makes of accelerators: of CPUs it takes "model" for all."""

    @property
    def mesh(self):
        devices = np.asarray(jax.devices()).reshape(-1, self._num_partitions)
        return jax.sharding.Mesh(devices, ("data", "model"))


def partitioner_of(partitions=1, **rules):
    rules = partitioning.standard_logical_axis_rules(**rules)
    return Partitioner(num_partitions=partitions, logical_axis_rules=rules)


def initializer_of(model, partitioner, optimizer_def="model"):
    shapes = {name: array.shape for name, array in batch_of().items()}
    chosen = model.optimizer_def if optimizer_def == "model" else optimizer_def
    return bridge.AdapterStateInitializer(chosen, model.get_initial_variables, shapes, partitioner)


def trainer_of(model, partitioner, initializer, state, tmp_path, learning_rate=lambda step: 0.0):
    return trainer.Trainer(
        model,
        state,
        partitioner,
        eval_names=["task"],
        summary_dir=str(tmp_path),
        train_state_axes=initializer.train_state_axes,
        rng=jax.random.PRNGKey(0),
        learning_rate_fn=learning_rate,
        num_microbatches=None,
    )


def steps_of_t5x(model, partitioner, tmp_path, count=3):
    """T5X's states before and after, and the loss of each step."""
    initializer = initializer_of(model, partitioner)
    state = initializer.from_scratch(jax.random.PRNGKey(3))
    before = jax.tree.map(np.asarray, unfreeze(state.params))
    run = trainer_of(model, partitioner, initializer, state, tmp_path)
    losses = []
    with partitioner.mesh:
        for _ in range(count):
            state, metrics = run._partitioned_train_step(state, batch_of())
            losses.append(float(metrics["loss"].compute()))
    return initializer, before, state, losses


def assert_close(one, two, **tolerance):
    one, two = tree.flatten(unfreeze(one)), tree.flatten(unfreeze(two))
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, two[path], err_msg=path, **tolerance)


# ------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("partitions", [1, 2])
def test_t5x_trains_as_our_own_step_does(folder, backbone, tmp_path, name, partitions):
    method, config = METHODS[name]
    model = model_of(folder, method, optimizer_def=bridge.optimizer(config, method))
    partitioner = partitioner_of(partitions, parameter_partitioning_dims=partitions)
    _, before, after, losses = steps_of_t5x(model, partitioner, tmp_path)
    fixed = unfreeze(after.flax_mutables).get("fixed", {})
    optimizer = make_optimizer(config, method)
    ours = init_state(tree.join(before, fixed), optimizer, jax.random.key(0))
    step = make_train_step(backbone, method, optimizer, objectives.lm_objective())
    for loss in losses:
        ours, metrics = step(ours, backbone.params, batch_of())
        np.testing.assert_allclose(loss, metrics["loss"], rtol=2e-6)
    assert_close(after.params, ours.trainable, rtol=1e-4, atol=2e-6)
    assert bool(fixed) == (name == "vera")
    # The weights are where they were, split over the mesh, and T5X optimised nothing of them.
    assert_close(after.flax_mutables["frozen"], backbone.params, rtol=0)
    kernel = after.flax_mutables["frozen"]["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    split = kernel.sharding.shard_shape(kernel.shape)
    assert split[2] == kernel.shape[2] // partitions
    kept = tree.flatten(unfreeze(after.state_dict()))
    assert not [path for path in kept if "frozen" in path or "kernel" in path.split("/")[-1]]


def test_optimizers_of_t5x_and_of_optax(folder, tmp_path):
    """T5X's Adafactor factors no vector and takes every layer by itself: ours does the same."""
    t5x_own = adafactor.Adafactor(
        learning_rate=0.1, logical_factor_rules=adafactor.standard_logical_factor_rules()
    )
    ours = bridge.optimizer(
        OptimizerConfig(
            name="adafactor_t5x", learning_rate=0.1, schedule="constant", clip_norm=None
        )
    )
    found = {}
    for name, optimizer in {"t5x": t5x_own, "ours": ours}.items():
        model = model_of(folder, ia3(), optimizer_def=optimizer)
        partitioner = partitioner_of()
        initializer = initializer_of(model, partitioner)
        state = initializer.from_scratch(jax.random.PRNGKey(3))
        run = trainer_of(model, partitioner, initializer, state, tmp_path, lambda step: 0.1)
        with partitioner.mesh:
            for _ in range(2):
                state, _ = run._partitioned_train_step(state, batch_of())
        found[name] = state.params
    assert_close(found["t5x"], found["ours"], rtol=1e-4)
    wrapped = bridge.AdapterOptimizer(optax.chain(optax.clip(1.0), optax.adam(1e-3)))
    model = model_of(folder, ia3(), optimizer_def=wrapped)
    steps_of_t5x(model, partitioner_of(2), tmp_path, count=1)
    model = model_of(folder, ia3(), optimizer_def=optimizers.adamw(1e-3))
    steps_of_t5x(model, partitioner_of(2), tmp_path, count=1)


def test_microbatches_and_evaluation(folder, backbone, tmp_path):
    model = model_of(folder, ia3())
    partitioner = partitioner_of()
    initializer = initializer_of(model, partitioner)
    state = initializer.from_scratch(jax.random.PRNGKey(3))
    run = trainer_of(model, partitioner, initializer, state, tmp_path)
    run._num_microbatches = 2
    batch = batch_of(rows=16)
    with partitioner.mesh:
        state, metrics = run._partitioned_train_step(state, batch)
        found = run._partitioned_eval_step(state, batch)
    assert np.isfinite(float(metrics["loss"].compute()))
    value = objectives.lm_objective()
    stored = unfreeze(state.params)
    params = merge(backbone.params, ia3().bind(stored))
    counts = value.counts(backbone.config, batch)
    loss = value.value(backbone.config, params, batch, None, counts)[0]
    np.testing.assert_allclose(found["loss"].compute(), loss, rtol=1e-6)


def choices_of(rows=8):
    batch = batch_of(rows)
    targets = batch.pop("decoder_target_tokens")
    choices = np.stack([targets, np.roll(targets, 1, 0), np.roll(targets, 2, 0)], 1)
    mask = np.ones((rows, 3), bool)
    mask[0, 2] = False
    return {
        "encoder_input_tokens": batch["encoder_input_tokens"],
        "choices": choices,
        "choice_mask": mask,
        "label": np.arange(rows, dtype=np.int32) % 2,
    }


def test_choices_are_trained_with_the_losses_of_tfew(folder, backbone, tmp_path):
    objective = objectives.tfew_objective()
    model = model_of(folder, ia3(), objective=objective)
    partitioner = partitioner_of()
    initializer = initializer_of(model, partitioner)
    state = initializer.from_scratch(jax.random.PRNGKey(3))
    run = trainer_of(model, partitioner, initializer, state, tmp_path)
    batch = choices_of()
    stored = jax.tree.map(np.asarray, unfreeze(state.params))
    with partitioner.mesh:
        state, metrics = run._partitioned_train_step(state, batch)
    params = merge(backbone.params, ia3().bind(stored))
    counts = objective.counts(backbone.config, batch)
    loss, values = objective.value(backbone.config, params, batch, None, counts)
    np.testing.assert_allclose(metrics["loss"].compute(), loss, rtol=1e-6)
    assert set(values) <= set(metrics)
    # The best choice is what is predicted, and the labelled one is what is scored.
    tokens = model.predict_batch(stored, batch, flax_mutables={"frozen": backbone.params})
    scores = scoring.score_choices(backbone, params, batch)
    best = np.argmax(scores, axis=1)
    np.testing.assert_array_equal(tokens, batch["choices"][np.arange(8), best])
    sums = scoring.score_choices(backbone, params, batch, length_normalization=0.0)
    scored = model.score_batch(stored, batch, flax_mutables={"frozen": backbone.params})
    np.testing.assert_allclose(scored, sums[np.arange(8), batch["label"]], rtol=1e-6)


# ------------------------------------------------------------------------------- scores and texts


@pytest.fixture(scope="module")
def own_model(folder):
    """T5X's own network with the same weights: the oracle."""
    config = network.T5Config(
        vocab_size=CONFIG.vocab_size,
        emb_dim=CONFIG.d_model,
        num_heads=CONFIG.num_heads,
        num_encoder_layers=CONFIG.encoder_layers,
        num_decoder_layers=CONFIG.decoder_layers,
        head_dim=CONFIG.d_kv,
        mlp_dim=CONFIG.d_ff,
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.0,
        dtype="float32",
    )
    found = t5x_files.open_checkpoint(folder)
    params = tree.unflatten({path: tensor.read() for path, tensor in found.items()})
    given = {"input_vocabulary": Vocabulary(), "output_vocabulary": Vocabulary()}

    def model(decode_fn=decoding.beam_search):
        return models.EncoderDecoderModel(
            module=network.Transformer(config), optimizer_def=None, decode_fn=decode_fn, **given
        )

    return model, params


def identity(backbone):
    """(IA)³ that changes nothing, and the collection of weights."""
    return ia3().init(jax.random.key(0), backbone), {"frozen": backbone.params}


def test_scores_are_those_of_t5x(folder, backbone, own_model):
    make, params = own_model
    stored, mutables = identity(backbone)
    model, batch = model_of(folder, ia3()), batch_of()
    wanted = make().score_batch(params, batch)
    found = model.score_batch(stored, batch, flax_mutables=mutables)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    _, held = model.score_batch(stored, batch, True, flax_mutables=mutables)
    _, wanted = make().score_batch(params, batch, return_intermediates=True)
    assert set(held["decoder"]) <= set(wanted["decoder"])
    for name, (array,) in held["decoder"].items():
        np.testing.assert_allclose(array, wanted["decoder"][name][0], rtol=1e-4, atol=1e-5)


def test_scores_of_a_scanned_network_are_those_of_t5x(shared_data):
    """Its layers have a relative bias each, as umT5's."""
    scalable = of_t5x("t5x.examples.scalable_t5.network")
    folder = shared_data / "oracles" / "t5x_tiny" / "scalable_t5x" / "checkpoint_0"
    backbone = pj.load_backbone(folder, config="t5_v1_1_base", dropout=0.0)
    sizes = backbone.config
    config = scalable.T5Config(
        vocab_size=sizes.vocab_size,
        emb_dim=sizes.d_model,
        num_heads=sizes.num_heads,
        num_encoder_layers=sizes.encoder_layers,
        num_decoder_layers=sizes.decoder_layers,
        head_dim=sizes.d_kv,
        mlp_dim=sizes.d_ff,
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.0,
        dtype="float32",
        scan_layers=True,
    )
    own = models.EncoderDecoderModel(
        scalable.Transformer(config), Vocabulary(), Vocabulary(), optimizer_def=None
    )
    found = t5x_files.open_checkpoint(folder)
    params = tree.unflatten({path: tensor.read() for path, tensor in found.items()})
    batch = batch_of()
    wanted = own.score_batch(params, batch)
    log_probs = jax.nn.log_softmax(backbone.logits(backbone.params, batch))
    of_targets = jnp.take_along_axis(log_probs, batch["decoder_target_tokens"][..., None], -1)
    scores = (of_targets[..., 0] * batch["decoder_loss_weights"]).sum(1)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
    texts = own.predict_batch(params, batch)
    ours = generate(backbone, backbone.params, batch, Decoding(max_length=6)).tokens[:, 0]
    np.testing.assert_array_equal(texts, ours)


def test_beam_search_writes_what_t5x_writes(folder, backbone, own_model):
    make, params = own_model
    stored, mutables = identity(backbone)
    model, batch = model_of(folder, ia3(), num_decodes=3, return_all_decodes=True), batch_of()
    options = {"num_decodes": 3, "return_all_decodes": True}
    wanted, wanted_scores = make().predict_batch_with_aux(params, batch, **options)
    found, scores = model.predict_batch_with_aux(stored, batch, flax_mutables=mutables)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(scores["scores"], wanted_scores["scores"], rtol=1e-4)
    one = model.predict_batch(stored, batch, flax_mutables=mutables)
    assert one.shape == (8, 3, 6)


def test_temperature_sampling_writes_what_t5x_writes(folder, backbone, own_model):
    def sample(**given):
        # T5X's own model would read the prompt at once; both are to take it token by token.
        given.pop("initial_index", None)
        return decoding.temperature_sample(temperature=0.7, topk=5, **given)

    make, params = own_model
    stored, mutables = identity(backbone)
    model, batch = model_of(folder, ia3(), decode_fn=sample), batch_of()
    for prompted in (False, True):
        options = {"rng": jax.random.PRNGKey(5), "prompt_with_targets": prompted}
        wanted, _ = make(sample).predict_batch_with_aux(params, batch, **options)
        found, _ = model.predict_batch_with_aux(stored, batch, flax_mutables=mutables, **options)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "method",
    [prompt_tuning(3, "random", "both"), prefix_tuning(2), lora(rank=2)],
    ids=["prompt_tuning", "prefix_tuning", "lora"],
)
def test_greedy_texts_are_those_of_our_own_decoding(folder, backbone, method):
    def greedy(**given):
        return decoding.temperature_sample(temperature=0.0, topk=1, **given)

    stored = method.init(jax.random.key(1), backbone)
    stored = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape), stored)
    trained, fixed = tree.split_fixed(stored)
    model, batch = model_of(folder, method, decode_fn=greedy), batch_of()
    mutables = {"frozen": backbone.params, "fixed": fixed}
    found = model.predict_batch(trained, batch, jax.random.PRNGKey(0), flax_mutables=mutables)
    params = merge(backbone.params, method.bind(stored))
    wanted = generate(backbone, params, batch, Decoding(max_length=6)).tokens[:, 0]
    np.testing.assert_array_equal(found, wanted)


# ------------------------------------------------------------------------------------ checkpoints


def manager_of(kind, initializer, partitioner, place):
    shapes = initializer.global_train_state_shape
    if kind == "orbax":
        return checkpoints.OrbaxCheckpointManagerInterface(
            str(place), shapes, partitioner, save_dtype=jnp.float32
        )
    return checkpoints.Checkpointer(shapes, partitioner, str(place))


@pytest.mark.parametrize("kind", ["orbax", "native"])
@pytest.mark.parametrize("name", ["ia3", "vera"])
def test_a_checkpoint_holds_the_adapter_alone_and_is_gone_on_from(
    folder, backbone, tmp_path, kind, name
):
    method, config = METHODS[name]
    model = model_of(folder, method, optimizer_def=bridge.optimizer(config, method))
    one = partitioner_of(1)
    initializer, _, state, _ = steps_of_t5x(model, one, tmp_path)
    place = tmp_path / "model"
    place.mkdir()
    manager = manager_of(kind, initializer, one, place)
    manager.save(state)
    if kind == "orbax":
        manager.wait_until_finished()
    saved = place / "checkpoint_3"
    stored = load_t5x(saved, backbone, method)
    fixed = unfreeze(state.flax_mutables).get("fixed", {})
    assert_close(stored, tree.join(unfreeze(state.params), fixed), rtol=0)
    held = {**t5x_files.open_checkpoint(saved)}
    assert set(held) == set(tree.flatten(unfreeze(state.params)))
    size = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
    assert size < 200_000
    # Restored on another mesh, with the weights beside it, it goes on as if nothing had been.
    two = partitioner_of(2)
    again = initializer_of(model, two)
    restored = manager_of(kind, again, two, place).restore(path=str(saved))
    assert_close(restored.params, state.params, rtol=0)
    assert_close(restored.flax_mutables["frozen"], backbone.params, rtol=0)
    assert restored.load is None
    runs = [
        trainer_of(model, p, i, s, tmp_path)
        for p, i, s in ((one, initializer, state), (two, again, restored))
    ]
    after = [run._partitioned_train_step(run.train_state, batch_of())[0] for run in runs]
    assert_close(after[0].params, after[1].params, rtol=1e-5, atol=1e-7)
    # For evaluation T5X restores a state without an optimizer.
    scored = initializer_of(model, two, None)
    restored = manager_of(kind, scored, two, place).restore(path=str(saved))
    found = model.score_batch(restored.params, batch_of(), flax_mutables=restored.flax_mutables)
    params = merge(backbone.params, method.bind(stored))
    logits = backbone.logits(params, batch_of())
    wanted = jax.nn.log_softmax(logits)
    wanted = jnp.take_along_axis(wanted, batch_of()["decoder_target_tokens"][..., None], -1)
    wanted = (wanted[..., 0] * batch_of()["decoder_loss_weights"]).sum(1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("orbax", [False, True])
def test_t5x_restores_what_we_write(backbone, own_model, tmp_path, orbax):
    make, params = own_model
    folder = t5x_backbone.write_backbone(tmp_path / "checkpoint_5", backbone, orbax=orbax, step=5)
    model, partitioner = make(), partitioner_of(1)  # T5X itself splits no vocabulary of 57
    shapes = {name: array.shape for name, array in batch_of().items()}
    initializer = utils.TrainStateInitializer(
        None, model.get_initial_variables, shapes, partitioner
    )
    kind = "orbax" if orbax else "native"
    state = manager_of(kind, initializer, partitioner, tmp_path).restore(path=str(folder))
    assert int(state.step) == 5
    assert_close(state.params, params, rtol=0)
    found = model.score_batch(state.params, batch_of())
    ours = model_of(folder, ia3())
    stored, mutables = identity(backbone)
    np.testing.assert_allclose(
        found, ours.score_batch(stored, batch_of(), flax_mutables=mutables), rtol=1e-5, atol=1e-5
    )


def test_training_may_start_from_an_adapter_file(folder, backbone, tmp_path):
    stored = lora(rank=2).init(jax.random.key(7), backbone)
    path = pj.save_adapter(tmp_path, stored, lora(rank=2), backbone)
    model = model_of(folder, lora(rank=2), adapter=str(path))
    state = initializer_of(model, partitioner_of()).from_scratch(jax.random.PRNGKey(0))
    assert_close(state.params, stored, rtol=0)
    other = model_of(folder, lora(rank=4), adapter=str(path))
    with pytest.raises(InputError, match="is no adapter of method 'lora'"):
        initializer_of(other, partitioner_of())


# --------------------------------------------------------------------------------------- bad input


def test_the_initializer_of_t5x_is_refused(folder):
    model = model_of(folder, ia3())
    shapes = {name: array.shape for name, array in batch_of().items()}
    with pytest.raises(InputError, match="set train_state_initializer_cls"):
        utils.TrainStateInitializer(
            model.optimizer_def, model.get_initial_variables, shapes, partitioner_of()
        )
    with pytest.raises(InputError, match="weights are not in the train state"):
        model.score_batch({}, batch_of())


def test_what_cannot_be_split_is_said(folder):
    with pytest.raises(InputError, match=r"does not divide over model \(8 devices\)"):
        initializer_of(model_of(folder, ia3()), partitioner_of(8))


def test_a_model_without_an_encoder_is_refused():
    with pytest.raises(InputError, match="is a gpt2, which has no encoder and decoder"):
        model_of(oracle.GOLDEN / "decoders" / "gpt2", ia3())


# --------------------------------------------------------------------------------------- for real


def run_t5x(tmp_path, script, config, *given):
    """``python -m t5x.<script>`` with our gin files, on an embedded task and the tiny backbone."""
    gin = "peft_jax/configs/t5x"
    lengths = "{'inputs': 128, 'targets': 8}"
    command = [sys.executable, "-m", f"t5x.{script}", f"--gin_file={gin}/{config}.gin"]
    command += [f"--gin_file={gin}/ia3.gin", '--gin.BACKBONE="tiny"', f"--gin.TASK={TASK!r}"]
    command += [f"--gin.TASK_FEATURE_LENGTHS={lengths}", *given]
    # One device, as T5X's mesh of CPUs would split the model over all of them.
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


TASK = "embedded_complaint"


@pytest.mark.slow
def test_t5x_trains_goes_on_and_scores(tmp_path):
    """train.py for 4 steps, again up to 6, and infer.py's scores against our own."""
    import seqio

    from peft_jax.tasks.converters import EncDecFeatureConverter

    place = tmp_path / "model"
    options = [f'--gin.MODEL_DIR="{place}"', "--gin.EVAL_STEPS=1", "--gin.BATCH_SIZE=8"]
    options += ["--gin.EVAL_PERIOD=2", "--gin.utils.SaveCheckpointConfig.period=2"]
    options += ["--gin.EVALUATOR_NUM_EXAMPLES=8"]
    for steps in (4, 6):
        run_t5x(tmp_path, "train", "finetune", *options, f"--gin.TRAIN_STEPS={steps}")
    steps = {int(each.name.removeprefix("checkpoint_")) for each in place.glob("checkpoint_*")}
    assert {0, 2, 4, 6} <= steps
    saved = place / "checkpoint_6"
    out = tmp_path / "scores"
    given = [f'--gin.INFER_OUTPUT_DIR="{out}"', f'--gin.CHECKPOINT_PATH="{saved}"']
    run_t5x(tmp_path, "infer", "infer", *given, '--gin.infer.mode="score"')
    lines = next(out.glob("*score.jsonl*-of-00001")).read_text().splitlines()[:32]
    scores = [json.loads(line)["score"] for line in lines]
    backbone = pj.load_backbone("tiny", dropout=0.0)
    params = merge(backbone.params, ia3().bind(load_t5x(saved, backbone, ia3())))
    name = bridge.task(TASK, "tiny")
    rows = seqio.get_dataset(
        name,
        {"inputs": 128, "targets": 8},
        EncDecFeatureConverter(pack=False),
        "validation",
        shuffle=False,
        num_epochs=1,
    )
    batch = next(rows.batch(32).as_numpy_iterator())
    log_probs = jax.nn.log_softmax(backbone.logits(params, batch))
    of_targets = jnp.take_along_axis(log_probs, batch["decoder_target_tokens"][..., None], -1)
    wanted = (of_targets[..., 0] * batch["decoder_loss_weights"]).sum(1)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
