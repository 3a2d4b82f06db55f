"""What a run needs: the sources' own figures, and the compiler's."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

import peft_jax as pj
from peft_jax import costs, programs, sharding, tree
from peft_jax.backbones import CONFIGS, abstract_backbone
from peft_jax.config import load_preset
from peft_jax.cost_report import Cost, run
from peft_jax.programs import BatchShape
from peft_jax.sharding import Axes

ONE = Axes(1, 1, 1)
SMALL = pj.Config("t5", 4096, 128, 256, 4, 32, 3, 3, dropout=0.0)
LARGER = pj.Config("t5", 8192, 256, 512, 4, 64, 3, 3, dropout=0.0)
LLAMA = dataclasses.replace(
    CONFIGS["llama_3_2_1b"],
    vocab_size=4096,
    d_model=128,
    d_ff=384,
    num_heads=4,
    num_kv_heads=2,
    d_kv=32,
    decoder_layers=3,
)


# ------------------------------------------------------------------------- T-Few's accounting


@pytest.mark.parametrize(
    ("flops", "printed"),
    [
        (costs.inference_flops(11e9, 103, "encoder_decoder"), "1.1e+12"),
        (costs.training_flops(11e9, 1000 * 8 * 103, "encoder_decoder"), "2.7e+16"),
        (costs.in_context_flops(11e9, 41, 98, 103, "encoder_decoder"), "4.5e+13"),
        (costs.in_context_flops(175e9, 41, 98, 103, "decoder"), "1.4e+15"),
        # The table's two smaller GPT-3 rows leave the query out.
        (costs.in_context_flops(13e9, 41, 98, 0, "decoder"), "1.0e+14"),
        (costs.in_context_flops(6.7e9, 41, 98, 0, "decoder"), "5.4e+13"),
    ],
)
def test_table_1_of_t_few(flops, printed):
    assert f"{flops:.1e}" == printed


def test_disk_of_t_few():
    """Table 1: 4.2 MB; a million parameters of four bytes."""
    backbone = abstract_backbone(CONFIGS["t0_11b"])
    stored = jax.eval_shape(pj.ia3().init, jax.random.key(0), backbone)
    assert round(tree.size_in_bytes(stored) / 2**20, 1) == 4.1


# ------------------------------------------------------------------------------- the compiler


def experiment(method=("ia3",), answer="auto", **fields):
    return dataclasses.replace(load_preset("tfew"), method=method, answer=answer, **fields)


def compiled(name, config, backbone, shape):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return programs.PROGRAMS[name](config, backbone, mesh, shape).lower().compile()


CASES = {
    "train": ("train", SMALL, ("ia3",), {}, BatchShape(8, 96, 4, 8)),
    "none": ("train", SMALL, ("lora",), {"remat": "none"}, BatchShape(8, 96, 4, 8)),
    "attention": ("train", SMALL, ("ia3",), {"remat": "attention"}, BatchShape(8, 96, 4, 8)),
    "full": ("train", LARGER, ("ia3",), {"remat": "full"}, BatchShape(8, 128, 4, 8)),
    "text": ("train", SMALL, ("prompt_tuning",), {}, BatchShape(8, 96, 0, 8, 32)),
    "llama": ("train", LLAMA, ("lora",), {}, BatchShape(8, 96, 4, 8)),
    "score": ("score", SMALL, ("ia3",), {}, BatchShape(8, 96, 4, 8)),
    "wide": ("train", dataclasses.replace(SMALL, d_ff=1024), ("ia3",), {}, BatchShape(8, 96, 4, 8)),
}


@pytest.mark.parametrize(
    "name", [n if n == "train" else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_memory_is_what_the_compiler_takes(name):
    """Within a tenth of all that a program holds: arguments, results and temporaries."""
    program, model, method, fields, shape = CASES[name]
    backbone = abstract_backbone(model).replace(**fields)
    config = experiment(method, "text" if not shape.choices else "auto")
    told = costs.device_memory(program, config, backbone, shape, ONE, "cpu")
    real = compiled(program, config, backbone, shape).memory_analysis()
    total = real.argument_size_in_bytes + real.temp_size_in_bytes
    total += real.output_size_in_bytes - real.alias_size_in_bytes
    arguments = told.weights + told.adapter + told.optimizer + told.batch
    assert arguments == pytest.approx(real.argument_size_in_bytes, rel=0.01)
    assert told.total == pytest.approx(total, rel=0.1)


@pytest.mark.slow
def test_flops_are_what_the_compiler_counts():
    """Of one layer, since the compiler counts the body of a loop once; without remat, since in a
    loop that runs once it finds that nothing need be computed again."""
    model = pj.Config("t5", 4096, 256, 1024, 4, 64, 1, 1, dropout=0.0)
    backbone = abstract_backbone(model).replace(remat="none")
    shape, config = BatchShape(8, 64, 4, 8), experiment()
    found = costs.costs(config, backbone, shape, policies=())
    real = compiled("train", config, backbone, shape).cost_analysis()["flops"]
    assert found.train_flops * 8 == pytest.approx(real, rel=0.1)


# ------------------------------------------------------------------------------------- a mesh


@pytest.mark.slow
def test_a_device_has_its_share():
    """Weights by the table of shardings, activations by rows, heads and hidden units."""
    backbone, shape = abstract_backbone(SMALL), BatchShape(8, 96, 4, 8)
    whole = costs.device_memory("train", experiment(), backbone, shape, ONE)
    split = costs.device_memory("train", experiment(), backbone, shape, Axes(2, 2, 2))
    norms = sum(
        4 * leaf.size
        for path, leaf in tree.flatten(backbone.params).items()
        if "kernel" not in path
    )
    assert whole.weights / 4 < split.weights < whole.weights / 4 + norms
    assert split.batch == whole.batch // 4
    assert split.logits == whole.logits // 8
    # The residual stream is not split over "model", all else of a layer is.
    assert whole.activations / 8 < split.activations < whole.activations / 4


@pytest.mark.slow
def test_policies_are_ranked_and_weights_shrink():
    shape, axes = BatchShape(8, 96, 4, 8), ONE
    backbone = abstract_backbone(SMALL, jnp.bfloat16)
    found = costs.costs(
        experiment(), backbone, shape, axes, ("dots", "attention", "full", "offload")
    )
    total = {name: memory.total for name, memory in found.memory.items()}
    assert total["dots"] > total["attention"] > total["full"]
    assert total["dots"] > total["offload"]
    assert 1.9 < found.train_flops / found.forward_flops < 2.2
    pytest.importorskip("qwix")
    packed = costs.device_memory("train", experiment(), backbone.quantize("nf4"), shape, axes)
    kernels = sum(
        leaf.size for path, leaf in tree.flatten(backbone.params).items() if "layers" in path
    )
    assert found.memory["dots"].weights - packed.weights > 1.4 * kernels


@pytest.mark.slow
def test_the_line_before_a_run():
    backbone = abstract_backbone(SMALL)
    line = costs.summary(experiment(), backbone, BatchShape(8, 32, 2, 4), ONE)
    assert line.startswith("needs about ")
    assert "weights" in line
    assert "remat dots" in line


def test_the_command(tmp_path):
    """Of a model that no machine here could hold."""
    console = Console(width=140, record=True)
    config = dataclasses.replace(experiment(), backbone="t0_11b")
    file = tmp_path / "cost.json"
    run(Cost(config, policies=("dots",), json=file, input_length=128), console)
    text = console.export_text()
    assert "11,135,332,352" in text
    assert "1,081,344" in text
    figures = json.loads(file.read_text())
    parts = figures["memory"]["dots"]
    assert parts["total"] == sum(parts[name] for name in (*costs.DeviceMemory._fields[:6],))
    with pytest.raises(pj.InputError, match="choice_length 0"):
        run(Cost(config, choice_length=0), console)
