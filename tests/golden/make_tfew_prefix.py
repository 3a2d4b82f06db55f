"""Golden values of prefix tuning, made by the released code of T-Few.

    git clone https://github.com/r-three/t-few            # commit 114dece
    python tests/golden/make_tfew_prefix.py t-few

src/models/prefix_tuning.py runs as it is on a random T5 of make_t5.py: its fit of the MLPs to the
keys and values of a text, the loss at each step, and the logits with what it came to. Written to
tfew_prefix.npz beside this file. Stand-ins: the tokenizer, whose words are numbers; a GPU;
and the attention's arguments, whose order is another in today's transformers. Made with torch
2.13.0 and transformers 5.23.0. The optimiser is SGD, one of its own, whose steps do not depend on
which values stand together in a tensor.
"""

import importlib
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.golden import make_t5  # noqa: E402

VARIANT, HIDDEN, STEPS, RATE = "v1_1", 6, 20, 0.02
INPUT, TARGET = "7 3", "9 4 5"
GROUPS = {
    "encoder": ("encoder", 0, "SelfAttention"),
    "decoder": ("decoder", 0, "SelfAttention"),
    "cross": ("decoder", 1, "EncDecAttention"),
}


def import_tfew(folder: str):
    """src.models.prefix_tuning of a checkout, without the packages' own __init__ files."""
    for package in ("src", "src.models", "src.utils"):
        module = types.ModuleType(package)
        module.__path__ = [str(Path(folder, *package.split(".")))]
        sys.modules[package] = module
    return importlib.import_module("src.models.prefix_tuning")


class Words:
    """Stands for a tokenizer: words are numbers."""

    @classmethod
    def from_pretrained(cls, name):
        return cls()

    def __call__(self, texts, **_):
        return SimpleNamespace(input_ids=torch.tensor([[int(w) for w in t.split()] for t in texts]))


class Called(torch.nn.Module):
    """An attention of T-Few behind the arguments and results of today's transformers."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, hidden, mask=None, key_value_states=None, position_bias=None, **_):
        output, _, bias = self.attention(hidden, mask, key_value_states, position_bias)
        return output, bias, None


def blocks(model):
    """(group, attentions' places) of every layer."""
    for group, (stack, index, name) in GROUPS.items():
        for block in getattr(model, stack).block:
            yield group, block.layer[index], name


def parameters(model) -> dict[str, np.ndarray]:
    """<group>/<tensor>: the MLP's, the last layers of all attentions stacked [L, ...]."""
    found: dict[str, list] = {}
    for group, layer, name in blocks(model):
        own = getattr(layer, name)
        own = own.attention if isinstance(own, Called) else own
        for key, weight in own.named_parameters():
            if key.startswith("prefix_"):
                found.setdefault(f"{group}/{key}", []).append(weight.detach().numpy().copy())
    return {key: np.stack(values) if ".2." in key else values[0] for key, values in found.items()}


def main(folder: str) -> dict[str, np.ndarray]:
    code = import_tfew(folder)
    torch.manual_seed(0)
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self
    code.AutoTokenizer = Words
    arrays: dict[str, np.ndarray] = {}
    model = make_t5.build(VARIANT)
    for part in (model, model.encoder, model.decoder):  # other ones may leave the mask out
        part.config._attn_implementation = "eager"
    for _, layer, name in blocks(model):
        attention = getattr(layer, name)
        attention.prune_heads, attention.pruned_heads = None, set()
    own_optimizer = code.get_optimizer

    def get_optimizer(model, config):
        # The text was read: what is called from now on has the prefix.
        arrays.update({f"start/{key}": x for key, x in parameters(model).items()})
        states: dict[str, list] = {}
        for group, layer, name in blocks(model):
            stored = getattr(layer, name).attention.stored_key_value_states
            for leaf, x in zip(("key", "value"), stored, strict=True):
                states.setdefault(f"target/{group}/{leaf}", []).append(x[0].detach().numpy())
        arrays.update({key: np.stack(values) for key, values in states.items()})
        for _, layer, name in blocks(model):
            setattr(layer, name, getattr(layer, name).attention)
        return own_optimizer(model, config)

    code.get_optimizer = get_optimizer

    def between():
        # Called between the change of the attentions and the reading of the text. The new ones are
        # in training mode, and drop attention weights out as they read it; here none is dropped.
        for _, layer, name in blocks(model):
            setattr(layer, name, Called(getattr(layer, name)))
        model.eval()

    model.cuda = between
    Called.set_mode = lambda self, mode: self.attention.set_mode(mode)
    config = SimpleNamespace(
        prefix_tuning_init_path="",
        prefix_tuning_init_text=f"{INPUT}\n{TARGET}",
        prefix_tuning_parameterization=f"mlp-{HIDDEN}",
        origin_model="",
        optimizer="sgd",
        lr=RATE,
        weight_decay=0,
        trainable_param_names=".*prefix_.*",
        num_steps=STEPS,
    )
    torch.save, model.cpu = lambda *_: None, lambda: model
    backward, losses = torch.Tensor.backward, []
    torch.Tensor.backward = lambda self: (losses.append(self.item()), backward(self))[1]
    code.modify_with_prefix_tuning(model, config)
    arrays |= {f"fitted/{key}": x for key, x in parameters(model).items()}
    arrays["losses"] = np.asarray(losses)
    for _, layer, name in blocks(model):
        setattr(layer, name, Called(getattr(layer, name)))
    with torch.no_grad():
        inputs = make_t5.torch_inputs(make_t5.batch(VARIANT))
        arrays["logits"] = model(**inputs, use_cache=False).logits.numpy()
    return arrays


if __name__ == "__main__":
    np.savez_compressed(HERE / "tfew_prefix.npz", **main(sys.argv[1]))
