"""T-Few's baselines as presets: the steps, the learning rate, and the exact count on T0-3B."""

import jax
import pytest

import peft_jax as pj
from peft_jax.config import load_preset, make_method
from tests.random_adapters import abstract_init

# Liu et al. 2022, appendix D, and r-three/t-few's configurations where they say more.
BASELINES = {
    "tfew": (1000, 3e-3, 540_672),
    "tfew_full": (300, 3e-4, 2_849_757_184),
    "tfew_bitfit": (1000, 3e-4, 1_331_200),
    "tfew_layer_norm": (1000, 3e-4, 249_856),
    "tfew_adapter": (500, 3e-3, 12_934_144),
    "tfew_compacter": (500, 3e-3, 870_400),
    "tfew_compacter_plus_plus": (500, 3e-3, 560_128),
    "tfew_prompt_10": (1000, 0.3, 40_960),
    "tfew_prompt_100": (1000, 0.3, 409_600),
    "tfew_lora": (1000, 3e-3, 9_097_216),
    "tfew_lora_scaling": (1000, 3e-3, 2_211_840),
    "tfew_fish_02": (1500, 3e-4, 5_699_514),
    "tfew_fish_002": (1500, 3e-4, 569_951),
    "tfew_said_20k": (3000, 3e-2, 20_000),
    "tfew_said_500k": (3000, 3e-2, 500_000),
}
T0_3B = pj.abstract_backbone(pj.backbone_config("t0_3b"))


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_has_tfews_steps_rate_and_count(name):
    steps, learning_rate, count = BASELINES[name]
    preset = load_preset(name)
    assert (preset.training.steps, preset.optimizer.learning_rate) == (steps, learning_rate)
    assert preset.optimizer.scale_parameter == ("prompt" not in name)
    assert preset.loss == load_preset("tfew").loss
    assert pj.count(abstract_init(make_method(preset), T0_3B)) == count


def test_the_prefix_is_two_rows_a_set_once_its_mlp_is_dropped():
    preset = load_preset("tfew_prefix")
    assert (preset.training.steps, preset.optimizer.learning_rate) == (1000, 1e-2)
    method = make_method(preset)
    assert method.spec["reparameterization"] == "mlp"

    def direct(stored):
        return pj.eject(method, stored)[1]

    # Three sets of two rows of 2 * 2048 numbers in 24 layers: "576K", in 1024s.
    ejected = jax.eval_shape(direct, prefix_shapes(method))
    assert pj.count(ejected) == 589_824 == 576 * 1024


def prefix_shapes(method):
    """Of its MLPs; ``init`` itself would have to read the words with T0's vocabulary."""
    spec = {name: value for name, value in method.spec.items() if "text" not in name}
    del spec["name"], spec["fit_steps"]
    return abstract_init(pj.prefix_tuning(**spec | {"init": "normal"}), T0_3B)
