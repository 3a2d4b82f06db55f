"""The peer: transformers and Hugging Face PEFT on torch, written as their users would.

Inputs are encoded once and the encoder's states repeated for every choice, as T-Few's released code
does. In bfloat16 the whole model and the adapter are bfloat16, its fastest form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jobs


def prepare(settings: dict[str, Any]):
    """A function that runs one step and returns what both libraries must agree on; versions."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(len(settings["cores"]))
    transformers.logging.set_verbosity_error()
    folder = Path(settings["folder"])
    model = _model(folder, settings)
    job = settings["job"]
    device = settings.get("device", "cpu")
    arrays = np.load(folder / f"{job}.npz")
    data = {name: torch.from_numpy(a).long().to(device) for name, a in arrays.items()}
    make = {"train": _train, "tfew": _tfew, "rank": _rank, "decode": _decode}[job]
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    return make(model.to(device), data), versions


def matrix_product(rows: int, inner: int, columns: int, dtype: str):
    """A function that multiplies [rows, inner] by [inner, columns] once, as a layer does."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.ones(rows, inner, dtype=getattr(torch, dtype), device=device)
    b = torch.ones(columns, inner, dtype=a.dtype, device=device)

    def product() -> None:
        torch.nn.functional.linear(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    return product


def extra_device_memory(step) -> dict[str, int]:
    """Bytes by which a step's peak on the device exceeds what lies there before it."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    peak = torch.cuda.max_memory_allocated()
    return {"before": before, "peak": peak, "extra": peak - before}


def _model(folder: Path, settings: dict[str, Any]):
    import torch
    from peft import IA3Config, LoraConfig, TaskType, get_peft_model
    from transformers import T5ForConditionalGeneration

    dtype = getattr(torch, settings["dtype"])
    model = T5ForConditionalGeneration.from_pretrained(folder / "model", dtype=dtype)
    if settings["method"] == "ia3":
        config = IA3Config(
            task_type=TaskType.SEQ_2_SEQ_LM, target_modules=["k", "v", "wo"],
            feedforward_modules=["wo"],
        )  # fmt: skip
    else:
        config = LoraConfig(
            task_type=TaskType.SEQ_2_SEQ_LM, r=jobs.LORA_RANK, lora_alpha=jobs.LORA_RANK,
            lora_dropout=0.0, target_modules=["q", "v"],
        )  # fmt: skip
    model = get_peft_model(model, config, autocast_adapter_dtype=False)
    if settings["method"] == "lora":
        factors = np.load(folder / "lora.npz")
        with torch.no_grad():
            for name in factors:
                module = model.base_model.model.get_submodule(name.removesuffix(".weight"))
                module.lora_A["default"].weight.copy_(torch.from_numpy(factors[name]))
    if settings.get("remat", "none") != "none":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.config.use_cache = False
    trains = settings["job"] in ("train", "tfew")
    return model.train() if trains else model.eval()


def _stepper(model, loss):
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=jobs.LEARNING_RATE, weight_decay=jobs.WEIGHT_DECAY, fused=True
    )

    def step() -> float:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def _train(model, data):
    import torch

    mask = torch.ones_like(data["inputs"])
    labels = data["choices"][:, 0]
    return _stepper(
        model,
        lambda: (
            model(
                input_ids=data["inputs"], attention_mask=mask, labels=labels, use_cache=False
            ).loss
        ),
    )


def _log_probs(model, data):
    """[B, C, T] float32: encode once, repeat the states for every choice."""
    import torch

    b, c, t = data["choices"].shape
    mask = torch.ones_like(data["inputs"])
    base = model.get_base_model()
    hidden = base.get_encoder()(input_ids=data["inputs"], attention_mask=mask)[0]
    targets = data["choices"].reshape(b * c, t)
    logits = model(
        encoder_outputs=(hidden.repeat_interleave(c, dim=0),),
        attention_mask=mask.repeat_interleave(c, dim=0),
        decoder_input_ids=base._shift_right(targets),
        use_cache=False,
    ).logits
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    return log_probs.gather(-1, targets[..., None])[..., 0].reshape(b, c, t)


def _tfew(model, data):
    """The three losses of Liu et al. 2022, section 3.2, without padding."""
    import torch

    label = data["label"]
    rows = torch.arange(len(label))

    def loss():
        log_probs = _log_probs(model, data)
        likelihood = -log_probs[rows, label].mean()
        wrong = torch.ones(log_probs.shape[:2], dtype=torch.bool)
        wrong[rows, label] = False
        unlikelihood = -torch.log1p(-torch.exp(log_probs[wrong])).mean()
        ranking = torch.nn.functional.cross_entropy(log_probs.mean(-1), label)
        return likelihood + unlikelihood + ranking

    return _stepper(model, loss)


def _rank(model, data):
    import torch

    def step() -> list[list[float]]:
        with torch.inference_mode():
            return _log_probs(model, data).mean(-1).tolist()

    return step


def _decode(model, data):
    import torch

    mask = torch.ones_like(data["inputs"])
    length = data["choices"].shape[-1]

    def step() -> list[list[int]]:
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=data["inputs"], attention_mask=mask, do_sample=False,
                max_new_tokens=length, min_new_tokens=None,
            )  # fmt: skip
        return tokens[:, 1:].tolist()

    return step
