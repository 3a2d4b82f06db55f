"""One library that generates, in a process of its own; started by benchmarks.decoding."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import worker


def ours(settings: dict[str, Any]):
    """A function that generates once and returns the tokens, [B, n, T] as lists; versions."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import peft_jax as pj
    from benchmarks import jobs, peft_jax_side

    folder = Path(settings["folder"])
    backbone = pj.load_backbone(folder / "model", jnp.dtype(settings["dtype"]), dropout=0.0)
    params = backbone.params
    if settings["method"] == "lora":
        method = pj.lora(jobs.LORA_RANK)
        adapter = method.init(jax.random.key(0), backbone)
        factors = np.load(folder / "lora.npz")
        adapter = peft_jax_side._lora_factors(adapter, backbone.config, factors)
        params = pj.merge(params, method.bind(adapter))
    inputs = np.load(folder / "inputs.npy")[: settings["batch"]]
    batch = {"encoder_input_tokens": jnp.asarray(inputs)}
    decoding = pj.Decoding(eos_ids=(), max_length=settings["length"], **settings["options"])

    def step() -> list:
        written = pj.generate(backbone, params, batch, decoding, jax.random.key(0))
        return np.asarray(written.tokens).tolist()

    return step, {"jax": jax.__version__, "peft_jax": pj.__version__}


THEIR_NAMES = {
    "beams": "num_beams",
    "sequences": "num_return_sequences",
    "temperature": "temperature",
}


def theirs(settings: dict[str, Any]):
    """The same with transformers' generate, and PEFT's LoRA."""
    import numpy as np
    import torch
    import transformers

    from benchmarks import peft_side

    torch.set_num_threads(len(settings["cores"]))
    transformers.logging.set_verbosity_error()
    folder = Path(settings["folder"])
    if settings["method"] == "lora":
        model = peft_side._model(folder, settings)
        versions = {"peft": __import__("peft").__version__}
    else:
        dtype = getattr(torch, settings["dtype"])
        config = transformers.AutoConfig.from_pretrained(folder / "model")
        kind = "Seq2SeqLM" if config.is_encoder_decoder else "CausalLM"
        auto = getattr(transformers, f"AutoModelFor{kind}")
        model, versions = auto.from_pretrained(folder / "model", dtype=dtype).eval(), {}
    inputs = torch.from_numpy(np.load(folder / "inputs.npy")[: settings["batch"]]).long()
    options = {THEIR_NAMES[name]: value for name, value in settings["options"].items()}
    config = model.config
    front = 1 if config.is_encoder_decoder else inputs.shape[1]
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None), pad_token_id=0
    )
    asked: dict[str, Any] = {"do_sample": "temperature" in options}
    if asked["do_sample"]:
        asked["top_k"] = 0  # by default transformers draws from the 50 most probable tokens
    asked["max_new_tokens"] = settings["length"]

    def step() -> list:
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), **asked, **options
            )
        return tokens[:, front:].reshape(len(inputs), -1, settings["length"]).tolist()

    versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
    return step, versions


def main() -> None:
    settings = json.loads(sys.argv[1])
    os.sched_setaffinity(0, settings["cores"])
    # The answers' pipe is kept for answers: whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    step, versions = (ours if settings["library"] == "peft_jax" else theirs)(settings)
    start = time.perf_counter()
    first = {"tokens": step(), "first_s": time.perf_counter() - start, "versions": versions}
    print(json.dumps(first), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "time":
            answer = worker.timed(step, command["seconds"])
        else:
            answer = worker.extra_memory(step)
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
