"""Which task a model is trained on, and on which others it is then evaluated as it is.

Domain transfer as Lester et al. 2021 measure it (section 5, tables 1 and 2): one adapter, trained
on ``source`` alone, answers the rows of each of ``targets``. Train on the source's task, then give
the adapter to the evaluation of every target::

    peft-jax train ... --data.task glue_mrpc
    peft-jax evaluate ... --data.task glue_qqp_from_mrpc

A target whose answers have other words than the source's is asked in the source's words:
``glue_qqp_from_mrpc`` holds QQP's rows with "equivalent" and "not_equivalent".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Transfer:
    """One direction of transfer.

    Attributes:
        name: source and target.
        source: the task that is trained on.
        targets: the tasks that are evaluated, on their ``evaluation_split``; the source's own
            evaluation is what they are compared with.
    """

    name: str
    source: str
    targets: tuple[str, ...]


TRANSFERS = (
    Transfer("mrpc_to_qqp", "glue_mrpc", ("glue_qqp_from_mrpc",)),
    Transfer("qqp_to_mrpc", "glue_qqp", ("glue_mrpc_from_qqp",)),
    Transfer(
        "squad_to_mrqa",
        "squad",
        # In the order of the paper's table, from the largest gain of prompts to the largest loss.
        (
            "mrqa_textbookqa",
            "mrqa_bioasq",
            "mrqa_race",
            "mrqa_re",
            "mrqa_duorc",
            "mrqa_drop",
        ),
    ),
)
