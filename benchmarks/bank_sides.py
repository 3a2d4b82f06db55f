"""The two sides of benchmarks.bank: a worker that holds one method in all its variants.

A variant is "one" (one adapter for all inputs) or a number of tasks, mixed in the batch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks import jobs, worker


def ours(settings: dict[str, Any]):
    """Variant -> a step that returns logits [B, T, V]; what else to report."""
    import functools

    import jax
    import jax.numpy as jnp
    import jaxlib
    import numpy as np

    import peft_jax as pj
    from benchmarks import bank
    from peft_jax import transformer, tree

    folder = Path(settings["folder"])
    backbone = pj.load_backbone(folder / "model", dropout=0.0)
    data = np.load(folder / "batch.npz")
    targets = jnp.asarray(data["targets"])
    batch = {
        "encoder_input_tokens": jnp.asarray(data["inputs"]),
        "decoder_input_tokens": transformer.shift_right(backbone.config, targets),
    }
    method = {
        "ia3": lambda: pj.ia3(),
        "lora": lambda: pj.lora(jobs.LORA_RANK),
        "prompt": lambda: pj.prompt_tuning(bank.PROMPT_LENGTH, "random"),
        "prefix": lambda: pj.prefix_tuning(bank.PREFIX_LENGTH),
        "adapter": lambda: pj.houlsby_adapter(bank.BOTTLENECK, train_norms=False),
    }[settings["method"]]()
    adapters = [_adapter(settings, method, backbone, task) for task in range(bank.MIXED)]
    run = jax.jit(backbone.logits)
    one = pj.merge(backbone.params, method.bind(adapters[0]))
    steps = {"one": functools.partial(run, one, batch)}
    for tasks in settings["tasks"]:
        params = pj.merge(backbone.params, pj.bank([(method, s) for s in adapters], tasks=tasks))
        ids = {"task_ids": jnp.asarray(data[f"tasks_{tasks}"], jnp.int32)}
        steps[str(tasks)] = functools.partial(run, params, batch | ids)
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "peft_jax": pj.__version__}
    report = {"bytes": tree.size_in_bytes(adapters[0]), "versions": versions}
    return {name: _blocked(step) for name, step in steps.items()}, report


def _blocked(step):
    return lambda: step().block_until_ready()


def _adapter(settings: dict[str, Any], method, backbone, task: int):
    """PEFT's factors for LoRA; otherwise noise, so that nothing is zero."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from peft_jax import tree
    from peft_jax.backbones.t5 import hugging_face_rules

    flat = tree.flatten(method.init(jax.random.key(task), backbone))
    if settings["method"] != "lora":
        rng = np.random.default_rng(task)
        noisy = {p: x + 0.02 * rng.normal(size=x.shape).astype(np.float32) for p, x in flat.items()}
        return tree.unflatten(noisy)
    factors = np.load(Path(settings["folder"]) / "lora.npz")
    for rule in hugging_face_rules(backbone.config):
        for leaf, name in (("lora_a", "A"), ("lora_b", "B")):
            path = rule.ours.removesuffix("kernel") + leaf
            if path in flat:
                names = [n for _, n in rule.names(backbone.config.encoder_layers)]
                flat[path] = jnp.stack([factors[f"{task}/{n}/{name}"].T for n in names])
    return tree.unflatten(flat)


def peers(settings: dict[str, Any]):
    """PEFT's mixed batch: a model with all adapters, and the name of its own for every input."""
    import numpy as np
    import peft
    import torch
    import transformers

    from benchmarks import bank

    torch.set_num_threads(len(settings["cores"]))
    transformers.logging.set_verbosity_error()
    folder = Path(settings["folder"])
    data, factors = np.load(folder / "batch.npz"), np.load(folder / "lora.npz")
    base = transformers.T5ForConditionalGeneration.from_pretrained(folder / "model")
    config = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_2_SEQ_LM, r=jobs.LORA_RANK, lora_alpha=jobs.LORA_RANK,
        target_modules=["q", "v"],
    )  # fmt: skip
    most = max([bank.MIXED, *settings["tasks"]])
    model = peft.get_peft_model(base, config, adapter_name="0").eval()
    for task in range(1, most):
        model.add_adapter(str(task), config)
    with torch.no_grad():
        for key in factors:
            task, name, factor = key.split("/")
            module = model.base_model.model.get_submodule(name.removesuffix(".weight"))
            held = module.lora_A if factor == "A" else module.lora_B
            held[task].weight.copy_(torch.from_numpy(factors[key]))
    targets = torch.from_numpy(data["targets"]).long()
    inputs = {
        "input_ids": torch.from_numpy(data["inputs"]).long(),
        "decoder_input_ids": model.get_base_model()._shift_right(targets),
        "use_cache": False,
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

    def step(**names):
        with torch.inference_mode():
            return model(**inputs, **names).logits

    steps = {"one": step}
    for tasks in settings["tasks"]:
        names = [str(i) for i in data[f"tasks_{tasks}"]]
        steps[str(tasks)] = lambda names=names: step(adapter_names=names)
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    return steps, {"versions": versions}


def main() -> None:
    settings = json.loads(sys.argv[1])
    os.sched_setaffinity(0, settings["cores"])
    # The answers' pipe is kept for answers: whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    steps, report = (ours if settings["library"] == "peft_jax" else peers)(settings)
    outputs = {name: step() for name, step in steps.items()}
    first = str(min(int(name) for name in steps if name != "one"))
    report["mixed"] = [[float(v) for v in row] for row in outputs[first][:, -1, :8]]
    report["variants"] = list(steps)
    print(json.dumps(report), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(worker.timed(steps[command["variant"]], command["seconds"])), file=answers)


if __name__ == "__main__":
    main()
