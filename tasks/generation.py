"""Open answers: grade-school mathematics, instructions, T0's rendered mixture, and plain text.

=================  =================================================================================
``gsm8k``          a worked solution that ends in "#### number" (Cobbe et al. 2021)
``instructions``   an instruction and an input to an output, in Self-Instruct's form (Wang et al.
                   2023): a row's ``instances`` are examples of their own
``t0_multitask``   prompts that were rendered already, with their completions; ``template`` says of
                   which template
``pretrain_text``  plain text, as a target without an input: what a language model is trained on
=================  =================================================================================
"""

from collections.abc import Mapping

from peft_jax.errors import InputError
from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.prompts import Rendered, TextFormat

GSM8K = Dataset(
    name="gsm8k",
    fields=("question", "answer"),
    label_field=None,
    shots=0,
    tfds="gsm8k",
    hub="gsm8k/main",
    folder="gsm8k",
    templates="gsm8k",
    # There is no validation split: papers evaluate on the test questions.
    splits={"validation": "test"},
    sizes={"train": 7_473, "test": 1_319},
    download="github.com/openai/grade-school-math: grade_school_math/data/{train,test}.jsonl",
)


def instances(row: Mapping) -> list[dict]:
    """A row of Self-Instruct -> one row for each of its instances.

    Rows that have their one input and output beside the instruction are taken as they are.

    Raises InputError for instances that are no list of inputs and outputs.
    """
    nested = row.get("instances")
    if nested is None:
        return [dict(row) | {"input": row.get("input") or ""}]
    outer = {key: value for key, value in row.items() if key != "instances"}
    try:
        return [
            outer | {"input": instance.get("input") or "", "output": instance["output"]}
            for instance in nested
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"instances of {row.get('id', 'a row')} are no list of inputs and outputs"
        ) from error


INSTRUCTIONS = Dataset(
    name="instructions",
    fields=("instruction", "output"),
    label_field=None,
    shots=0,
    folder="instructions",
    expand=instances,
    sizes={"train": 175, "validation": 252},
    download="github.com/yizhongw/self-instruct: data/seed_tasks.jsonl, human_eval",
)
T0_MULTITASK = Dataset(
    name="t0_multitask",
    fields=("prompt", "completion"),
    label_field=None,
    shots=0,
    folder="t0_multitask",
    download="github.com/yizhongw/self-instruct: data/finetuning/t0_train_50k",
)
PRETRAIN_TEXT = Dataset(
    name="pretrain_text",
    fields=("text",),
    label_field=None,
    shots=0,
    folder="pretrain_text",
    download="any folder of train.jsonl and validation.jsonl with a field text",
)


def _instruction(row: Mapping) -> Rendered:
    # As Self-Instruct's prepare_for_finetuning.py without random templates, less the space around.
    parts = [row["instruction"].strip(), row["input"].strip()]
    return Rendered("\n\n".join(part for part in parts if part), row["output"].strip())


def _prompted(row: Mapping) -> Rendered:
    keep = {"template": row["template"]} if "template" in row else {}
    return Rendered(row["prompt"].strip(), row["completion"].strip(), keep=keep)


TASKS: tuple[TaskDefinition, ...] = (
    TaskDefinition(
        name="gsm8k",
        dataset=GSM8K,
        group="Generation",
        formats=(TextFormat("question", lambda row: Rendered(row["question"], row["answer"])),),
        metrics=("gsm8k",),
        about="solve a word problem step by step (Cobbe et al. 2021)",
        max_input_length=256,
        max_target_length=384,
        decoding={"max_length": 384},
    ),
    TaskDefinition(
        name="instructions",
        dataset=INSTRUCTIONS,
        group="Generation",
        formats=(TextFormat("instruction", _instruction),),
        metrics=("rouge",),
        about="follow an instruction (Wang et al. 2023, Self-Instruct)",
        max_input_length=512,
        max_target_length=512,
        decoding={"max_length": 512},
        aliases=("self_instruct",),
    ),
    TaskDefinition(
        name="t0_multitask",
        dataset=T0_MULTITASK,
        group="Generation",
        formats=(TextFormat("prompt", _prompted),),
        metrics=("exact_match", "rouge"),
        about="T0's training mixture as rendered prompts (Sanh et al. 2022)",
        max_input_length=512,
        max_target_length=128,
        decoding={"max_length": 128},
    ),
    TaskDefinition(
        name="pretrain_text",
        dataset=PRETRAIN_TEXT,
        group="Pretraining",
        formats=(TextFormat("text", lambda row: Rendered("", row["text"])),),
        metrics=("chrf",),
        about="plain text as a target: language modelling",
        max_input_length=2,
        max_target_length=512,
    ),
)
