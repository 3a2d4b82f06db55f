"""The peer: transformers and Hugging Face PEFT on torch, written as their users would."""

from __future__ import annotations

import functools
import re
import time

import numpy as np
import torch
import transformers

from benchmarks.minilm import data, plan


def prepare(threads: int) -> dict[str, str]:
    """Called once, before the first run; the versions."""
    import peft

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


@functools.cache
def _tokenizer():
    return transformers.AutoTokenizer.from_pretrained(data.model_folder())


def encode(text: str, pair: str | None, limit: int) -> tuple[list[int], list[int]]:
    made = _tokenizer()(text, pair, truncation=True, max_length=limit)
    return made["input_ids"], made["token_type_ids"]


def _model(run: plan.Run) -> torch.nn.Module:
    """The classifier with the run's head, and what the method trains set to be trained."""
    import peft

    labels = len(plan.DATASETS[run.dataset].labels)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        data.model_folder(), num_labels=labels, hidden_dropout_prob=run.dropout,
        attention_probs_dropout_prob=run.dropout,
    )  # fmt: skip
    head = data.head_weights(run.seed, model.config.hidden_size, labels)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(head.T))
        model.classifier.bias.zero_()
    kind, arguments = plan.METHODS[run.method].peer
    if kind == "parameters":
        for name, parameter in model.named_parameters():
            chosen = re.search(arguments, name) or name.startswith("classifier.")
            parameter.requires_grad_(bool(chosen))
        return model
    config = getattr(peft, kind)(task_type=peft.TaskType.SEQ_CLS, **arguments)
    model = peft.get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if found := re.search(r"layer\.(\d+)\.attention\.self\.(\w+)\.lora_A", name):
            width = parameter.shape[1]
            factor = data.lora_factor(run.seed, int(found[1]), found[2], width)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(factor.T))
    return model


def _inputs(batch: data.Batch) -> dict[str, torch.Tensor]:
    names = {"tokens": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
    return {theirs: torch.from_numpy(batch[ours]).long() for ours, theirs in names.items()}


def train_run(run: plan.Run, batches: list[data.Batch]):
    """Trains; the model, the losses, the seconds of every step, the trained parameters."""
    torch.manual_seed(run.seed)
    model = _model(run).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=run.learning_rate, weight_decay=plan.WEIGHT_DECAY, fused=True
    )
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, plan.warmup(run.steps), run.steps
    )
    losses, seconds = [], []
    for batch in batches:
        start = time.perf_counter()
        loss = model(**_inputs(batch), labels=torch.from_numpy(batch["label"]).long()).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, plan.CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return model.eval(), losses, seconds, sum(p.numel() for p in trained)


def predict(model: torch.nn.Module, batch: data.Batch) -> np.ndarray:
    """The most likely label of every row."""
    with torch.inference_mode():
        return model(**_inputs(batch)).logits.argmax(-1).numpy()
