"""Golden values of the losses, made by the released code of T-Few and of T5X.

    git clone https://github.com/r-three/t-few            # commit 114dece
    git clone https://github.com/google-research/t5x      # commit cc342d4
    python tests/golden/make_losses.py t-few t5x

T-Few's `EncoderDecoder.training_step` itself runs, on a stand-in for the transformer that returns
given logits; the modules that it imports and does not need here (Lightning, DeepSpeed) are
stand-ins too. T5X's losses.py runs as it is. Written to losses.npz beside this file. Made with
torch 2.13.0, jax 0.10.2, flax 0.12.8.
"""

import importlib
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import torch

HERE = Path(__file__).parent


def import_tfew(folder: str):
    """src.models.EncoderDecoder of a checkout of r-three/t-few."""
    stand_ins = {
        "pytorch_lightning": {"LightningModule": torch.nn.Module},
        "deepspeed": {},
        "deepspeed.utils": {"zero_to_fp32": None},
    }
    for name, members in stand_ins.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)
    # The package's own __init__ files pull in the whole training program.
    for package in ("src", "src.models", "src.utils"):
        module = types.ModuleType(package)
        module.__path__ = [str(Path(folder, *package.split(".")))]
        sys.modules[package] = module
    for name, members in {
        "src.models.fishmask": (
            "fishmask_plugin_on_init",
            "fishmask_plugin_on_optimizer_step",
            "fishmask_plugin_on_end",
        ),
        "src.utils.get_optimizer": ("get_optimizer",),
        "src.utils.get_scheduler": ("get_scheduler",),
    }.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(dict.fromkeys(members))
    return importlib.import_module("src.models.EncoderDecoder").EncoderDecoder


class GivenLogits:
    """In the transformer's place: every call returns the same logits, [B * C, T, V]."""

    def __init__(self, logits: torch.Tensor):
        self.logits = logits.flatten(0, 1)

    def encoder(self, input_ids, attention_mask):
        return (torch.zeros(*input_ids.shape, 1),)

    def __call__(self, **_):
        return SimpleNamespace(logits=self.logits)


def run_tfew(code, logits, choices, label, length_norm: float) -> dict[str, np.ndarray]:
    """One training step's loss, its parts, the gradient for the logits, and the predictions."""
    logged = {}
    config = SimpleNamespace(
        mc_loss=1.0,
        unlikely_loss=1.0,
        length_norm=length_norm,
        model_modifier="lora",
        save_step_interval=1,
        split_option_at_inference=False,
    )
    logits = torch.tensor(logits, requires_grad=True)
    step = SimpleNamespace(
        config=config,
        model=GivenLogits(logits),
        tokenizer=SimpleNamespace(pad_token_id=0),
        use_deepspeed=False,
        use_ddp=False,
        global_step=1,
        log_dict=logged.update,
        save_model=lambda: None,
    )
    batch = {
        "input_ids": torch.ones(len(label), 3, dtype=torch.int64),
        "answer_choices_ids": torch.tensor(choices, dtype=torch.int64),
        "labels": torch.tensor(label, dtype=torch.int64),
        "idx": torch.arange(len(label)),
    }
    loss = code.training_step(step, batch, 0)
    loss.backward()
    prediction = code.predict(step, batch)["prediction"]
    return {
        "loss": loss.item(),
        "lm_loss": logged["lm_loss"],
        "unlikelihood_loss": logged["unlikely_loss"],
        "length_normalized_loss": logged["mc_loss"],
        "prediction": np.array(prediction),
        "gradient": logits.grad.numpy(),
    }


def choices_of(rng, batch: int, count: int, length: int, vocabulary: int) -> np.ndarray:
    """Random answer choices that end in token 1 (T5's end of sequence), padded with 0."""
    choices = rng.integers(2, vocabulary, (batch, count, length))
    lengths = rng.integers(min(2, length), length + 1, (batch, count))
    lengths[0, 0] = length  # T-Few pads to the longest of the batch
    position = np.arange(length)
    choices = np.where(position == lengths[..., None] - 1, 1, choices)
    return np.where(position < lengths[..., None], choices, 0).astype(np.int32)


def tfew_cases(folder: str) -> dict[str, np.ndarray]:
    code, rng, golden = import_tfew(folder), np.random.default_rng(0), {}
    for name, shape, scale, length_norm in (
        ("mild", (2, 3, 4, 11), 1.0, 1.0),
        ("summed", (3, 2, 3, 7), 2.0, 0.0),
        ("confident", (4, 4, 5, 13), 8.0, 1.0),
        ("one_token", (3, 2, 1, 9), 1.0, 1.0),
    ):
        logits = (scale * rng.standard_normal(shape)).astype(np.float32)
        choices = choices_of(rng, *shape)
        label = rng.integers(0, shape[1], shape[0]).astype(np.int32)
        inputs = {"logits": logits, "choices": choices, "label": label, "length_norm": length_norm}
        outputs = run_tfew(code, logits, choices, label, length_norm)
        golden |= {f"tfew/{name}/{key}": value for key, value in (inputs | outputs).items()}
    return golden


def t5x_cases(folder: str) -> dict[str, np.ndarray]:
    sys.path.insert(0, folder)
    # t5x/__init__ imports the trainer; losses.py alone needs jax and flax.
    sys.modules["t5x"] = types.ModuleType("t5x")
    sys.modules["t5x"].__path__ = [str(Path(folder, "t5x"))]
    losses, rng, golden = importlib.import_module("t5x.losses"), np.random.default_rng(1), {}
    for name, z_loss, label_smoothing in (
        ("plain", 0.0, 0.0),
        ("z_loss", 1e-2, 0.0),
        ("smoothed", 0.0, 0.1),
        ("both", 1e-4, 0.2),
    ):
        logits = (3 * rng.standard_normal((2, 4, 9))).astype(np.float32)
        targets = rng.integers(1, 9, (2, 4)).astype(np.int32)
        weights = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.float32)

        def mean(logits, targets=targets, weights=weights, z=z_loss, smoothing=label_smoothing):
            total, of_z, count = losses.compute_weighted_cross_entropy(
                logits, targets, weights, smoothing, z_loss=z
            )
            return total / count, of_z / count

        (loss, of_z), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(logits))
        inputs = {
            "logits": logits,
            "targets": targets,
            "weights": weights,
            "z_loss": z_loss,
            "label_smoothing": label_smoothing,
        }
        outputs = {"loss": loss, "of_z": of_z, "gradient": gradient}
        golden |= {f"t5x/{name}/{key}": np.asarray(v) for key, v in (inputs | outputs).items()}
    return golden


if __name__ == "__main__":
    tfew_folder, t5x_folder = sys.argv[1:]
    np.savez_compressed(HERE / "losses.npz", **tfew_cases(tfew_folder), **t5x_cases(t5x_folder))
