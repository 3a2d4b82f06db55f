"""Adapters as Hugging Face PEFT saves them, on the models that lie in the folders beside this file.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    python -m tests.golden.make_exchange

writes the cases of GOLDEN to exchange/<case>/: adapter_config.json and adapter_model.safetensors as
`save_pretrained` writes them, and oracle.npz with a batch and the logits. All weights of an adapter
are random. The same functions make the other cases while the tests run, where peft is installed.
"""

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peft
import torch
import transformers

HERE = Path(__file__).parent
SEQ2SEQ, CAUSAL, FEATURES, CLASSES = "SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_CLS"
TASKS = {
    SEQ2SEQ: transformers.AutoModelForSeq2SeqLM,
    CAUSAL: transformers.AutoModelForCausalLM,
    FEATURES: transformers.AutoModelForMaskedLM,
    CLASSES: transformers.AutoModelForSequenceClassification,
}
BATCH, LENGTH, OUTPUTS, PROMPT = 2, 7, 5, 3


class Case(NamedTuple):
    """A PEFT configuration on a model of the folders beside this file."""

    model: str
    config: peft.PeftConfig

    @property
    def folder(self) -> Path:
        return HERE / self.model


def _lora(task, **fields):
    return peft.LoraConfig(task_type=task, r=3, **{"lora_alpha": 7, **fields})


def _ia3(task, **fields):
    return peft.IA3Config(task_type=task, **fields)


def _prompt(task, **fields):
    return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=PROMPT, **fields)


def _prefix(task, **fields):
    return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=PROMPT, **fields)


T5, MT5, V1_0 = "t5/v1_1", "t5/mt5", "t5/v1_0"
BART, GPT2, LLAMA, BERT, ROBERTA = (
    *("bart/bart", "decoders/gpt2", "decoders/llama", "bert/bert", "bert/roberta"),
)
PATTERNS = {
    "rank_pattern": {"down_proj": 5, "layers.1.self_attn.v_proj": 1, "o_proj": 4},
    "alpha_pattern": {"q_proj": 2, "layers.0.self_attn.k_proj": 11},
}
ADALORA = {"init_r": 4, "target_r": 2, "lora_alpha": 5, "total_step": 10, "tinit": 1, "tfinal": 2}


def cases() -> dict[str, Case]:
    """By name. Configurations are changed by the models they are given to: they are made anew."""
    return {
        # peft's own targets, where nothing is said
        "ia3_t5": Case(T5, _ia3(SEQ2SEQ)),
        "ia3_mt5": Case(MT5, _ia3(SEQ2SEQ)),
        "ia3_bart": Case(BART, _ia3(SEQ2SEQ)),
        "ia3_gpt2": Case(GPT2, _ia3(CAUSAL)),
        "ia3_llama": Case(LLAMA, _ia3(CAUSAL)),
        "ia3_bert": Case(BERT, _ia3(FEATURES)),
        "ia3_layers": Case(
            T5, _ia3(SEQ2SEQ, target_modules=r"decoder\.block\.1\..*\.(k|wi_1|wo)",
                     feedforward_modules=r".*\.wo")
        ),
        "lora_t5": Case(T5, _lora(SEQ2SEQ, use_rslora=True, lora_dropout=0.1)),
        "lora_bart": Case(BART, _lora(SEQ2SEQ, target_modules="all-linear")),
        "lora_gpt2": Case(GPT2, _lora(CAUSAL)),
        "lora_gpt2_all": Case(GPT2, _lora(CAUSAL, target_modules="all-linear", use_rslora=True)),
        "lora_llama": Case(LLAMA, _lora(CAUSAL, target_modules="all-linear", **PATTERNS)),
        "lora_bert": Case(BERT, _lora(FEATURES)),
        "lora_layers": Case(BERT, _lora(FEATURES, target_modules=["query", "output.dense"],
                                        layers_to_transform=[1])),
        "dora_t5": Case(T5, _lora(SEQ2SEQ, use_dora=True)),
        "dora_gpt2": Case(GPT2, _lora(CAUSAL, use_dora=True)),
        "dora_llama": Case(LLAMA, _lora(CAUSAL, use_dora=True, **PATTERNS,
                                        target_modules="all-linear")),
        "pissa_t5": Case(T5, _lora(SEQ2SEQ, init_lora_weights="pissa")),
        "adalora_t5": Case(T5, peft.AdaLoraConfig(task_type=SEQ2SEQ, **ADALORA)),
        "adalora_gpt2": Case(GPT2, peft.AdaLoraConfig(task_type=CAUSAL, **ADALORA)),
        "adalora_llama": Case(LLAMA, peft.AdaLoraConfig(task_type=CAUSAL, **ADALORA)),
        "adalora_pruned": Case(LLAMA, peft.AdaLoraConfig(task_type=CAUSAL, **ADALORA)),
        "vera_t5": Case(T5, peft.VeraConfig(task_type=SEQ2SEQ, r=4, target_modules=["q", "wi_0"])),
        "vera_llama": Case(LLAMA, peft.VeraConfig(task_type=CAUSAL, r=4, vera_dropout=0.1)),
        "vera_bert": Case(BERT, peft.VeraConfig(task_type=FEATURES, r=4)),
        "norms_t5": Case(T5, peft.LNTuningConfig(task_type=SEQ2SEQ)),
        "norms_bart": Case(BART, peft.LNTuningConfig(task_type=SEQ2SEQ)),
        "norms_gpt2": Case(GPT2, peft.LNTuningConfig(task_type=CAUSAL)),
        "norms_llama": Case(LLAMA, peft.LNTuningConfig(task_type=CAUSAL)),
        "norms_gemma": Case("decoders/gemma2", peft.LNTuningConfig(task_type=CAUSAL)),
        "prompt_t5": Case(T5, _prompt(SEQ2SEQ)),
        "prompt_bart": Case(BART, _prompt(SEQ2SEQ)),
        "prompt_gpt2": Case(GPT2, _prompt(CAUSAL)),
        "prompt_llama": Case(LLAMA, _prompt(CAUSAL)),
        "prompt_gemma2": Case("decoders/gemma2", _prompt(CAUSAL)),
        "prompt_gemma3": Case("decoders/gemma3", _prompt(CAUSAL)),
        "prompt_bert": Case(BERT, _prompt(FEATURES)),
        "prompt_roberta": Case(ROBERTA, _prompt(FEATURES)),
        "p_tuning_t5": Case(T5, peft.PromptEncoderConfig(
            task_type=SEQ2SEQ, num_virtual_tokens=PROMPT, encoder_hidden_size=6)),
        "p_tuning_gpt2": Case(GPT2, peft.PromptEncoderConfig(
            task_type=CAUSAL, num_virtual_tokens=PROMPT, encoder_hidden_size=6,
            encoder_reparameterization_type="LSTM")),
        # peft's own sizes would be wrong here: heads * d_kv is not d_model
        "prefix_t5": Case(T5, _prefix(SEQ2SEQ, token_dim=12, num_attention_heads=3, num_layers=2)),
        "prefix_bart": Case(BART, _prefix(SEQ2SEQ, num_layers=1)),
        "prefix_gpt2": Case(GPT2, _prefix(CAUSAL)),
        "prefix_mlp": Case(GPT2, _prefix(CAUSAL, prefix_projection=True, encoder_hidden_size=6)),
        "prefix_llama": Case(LLAMA, _prefix(CAUSAL)),
        "head_bert": Case("bert/bert_classifier", _lora(CLASSES)),
        "head_roberta": Case("bert/roberta_classifier", _ia3(CLASSES)),
        "head_bart": Case("bart/bart_classifier",
                          _lora(CLASSES, modules_to_save=["classification_head"])),
        # on models that have no head of their own
        "head_t5": Case(T5, _lora(CLASSES, modules_to_save=["classification_head"])),
        "head_gpt2": Case(GPT2, _ia3(CLASSES)),
        "head_llama": Case(LLAMA, _prefix(CLASSES)),
    }  # fmt: skip


GOLDEN = (
    *("ia3_t5", "ia3_bert", "ia3_gpt2", "lora_gpt2", "lora_llama", "dora_t5", "adalora_llama"),
    *("vera_bert", "norms_gpt2", "prompt_t5", "prefix_t5", "head_bert"),
)


def base(case: Case) -> torch.nn.Module:
    """The model itself."""
    kind = TASKS[case.config.task_type]
    model = kind.from_pretrained(case.folder, attn_implementation="eager").eval()
    if case.config.task_type == CLASSES and model.config.pad_token_id is None:
        model.config.pad_token_id = model.config.eos_token_id  # without one it reads no batch
    return model


def adapted(case: Case) -> torch.nn.Module:
    """The model under a method whose weights are all random."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base(case), case.config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.requires_grad or "ranknum" in name:
                continue
            noise = 0.4 * torch.randn(weight.shape, generator=generator)
            ones = "ia3_l" in name or "magnitude" in name or "ln_tuning" in name
            weight.copy_(weight + noise if "pissa" in str(case) else ones + noise)
    return model


def batch(case: Case) -> dict[str, np.ndarray]:
    """Inputs, one of them shorter where padding is possible, and outputs."""
    config = transformers.AutoConfig.from_pretrained(case.folder)
    rng = np.random.default_rng(3)
    tokens = rng.integers(4, config.vocab_size, (BATCH, LENGTH)).astype(np.int32)
    if not (config.is_encoder_decoder or "bert" in config.model_type):
        classifies = case.config.task_type == CLASSES
        return {"encoder_input_tokens" if classifies else "decoder_input_tokens": tokens}
    mask = np.ones((BATCH, LENGTH), bool)
    mask[1, 5:] = False
    tokens = np.where(mask, tokens, config.pad_token_id).astype(np.int32)
    if config.is_encoder_decoder and case.config.task_type == CLASSES:
        tokens[0, -1] = tokens[1, 4] = config.eos_token_id
    made = {"encoder_input_tokens": tokens, "encoder_mask": mask}
    if config.is_encoder_decoder and case.config.task_type != CLASSES:
        outputs = rng.integers(4, config.vocab_size, (BATCH, OUTPUTS)).astype(np.int32)
        outputs[:, 0] = config.decoder_start_token_id
        made["decoder_input_tokens"] = outputs
    return made


def logits(model: torch.nn.Module, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of the tokens, or of the classes; those of a prompt are left out."""
    tensors = {name: torch.as_tensor(array).long() for name, array in arrays.items()}
    names = {"encoder_input_tokens": "input_ids", "encoder_mask": "attention_mask"}
    if "encoder_input_tokens" in tensors:
        names["decoder_input_tokens"] = "decoder_input_ids"
    else:
        names["decoder_input_tokens"] = "input_ids"
    with torch.no_grad():
        found = model(**{names[name]: tensor for name, tensor in tensors.items()}).logits.numpy()
    if found.ndim == 2:
        return found
    length = arrays.get("decoder_input_tokens", arrays.get("encoder_input_tokens")).shape[1]
    return found[:, found.shape[1] - length :]


def _prune(model: torch.nn.Module) -> None:
    """Every module keeps other ranks, as `update_and_allocate` leaves them at the end."""
    pattern = {}
    for i, (name, e) in enumerate(model.named_parameters()):
        if ".lora_E." in name:
            kept = [bool((i + 1) >> bit & 1) for bit in range(len(e))]
            pattern[name.removeprefix("base_model.model.")] = kept
            with torch.no_grad():
                e[~torch.tensor(kept)] = 0
    model.base_model.resize_modules_by_rank_pattern(pattern, "default")
    model.peft_config["default"].rank_pattern = pattern


def write(name: str, folder: Path) -> None:
    """A PEFT folder of a case, with oracle.npz in it."""
    case = cases()[name]
    model = adapted(case)
    if name == "adalora_pruned":
        _prune(model)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(f'"{case.folder}"', f'"{case.model}"'))
    arrays = batch(case)
    np.savez_compressed(folder / "oracle.npz", **arrays, logits=logits(model, arrays))


def load(name: str, folder: Path) -> torch.nn.Module:
    """The case's model with an adapter's folder on it."""
    return peft.PeftModel.from_pretrained(base(cases()[name]), folder).eval()


@functools.cache
def made(name: str) -> Path:
    """A folder of a case that is made now."""
    folder = Path(tempfile.mkdtemp(prefix=f"exchange_{name}_"))
    write(name, folder)
    return folder


if __name__ == "__main__":
    for case_name in GOLDEN:
        write(case_name, HERE / "exchange" / case_name)
