"""Single-sentence classification by its usual names: banking77, ade_corpus_v2, ag_news.

All three are asked under promptsource's templates. sst2 is in `peft_jax.tasks.datasets`; RAFT's
banking_77 and ade_corpus_v2, which have other forms and 50 labelled rows, in `peft_jax.tasks.raft`.
"""

from peft_jax.tasks.catalogue import TaskDefinition
from peft_jax.tasks.datasets import Dataset
from peft_jax.tasks.t0_table import DATASETS as T0_DATASETS

INTENTS: tuple[str, ...] = (
    "activate_my_card",
    "age_limit",
    "apple_pay_or_google_pay",
    "atm_support",
    "automatic_top_up",
    "balance_not_updated_after_bank_transfer",
    "balance_not_updated_after_cheque_or_cash_deposit",
    "beneficiary_not_allowed",
    "cancel_transfer",
    "card_about_to_expire",
    "card_acceptance",
    "card_arrival",
    "card_delivery_estimate",
    "card_linking",
    "card_not_working",
    "card_payment_fee_charged",
    "card_payment_not_recognised",
    "card_payment_wrong_exchange_rate",
    "card_swallowed",
    "cash_withdrawal_charge",
    "cash_withdrawal_not_recognised",
    "change_pin",
    "compromised_card",
    "contactless_not_working",
    "country_support",
    "declined_card_payment",
    "declined_cash_withdrawal",
    "declined_transfer",
    "direct_debit_payment_not_recognised",
    "disposable_card_limits",
    "edit_personal_details",
    "exchange_charge",
    "exchange_rate",
    "exchange_via_app",
    "extra_charge_on_statement",
    "failed_transfer",
    "fiat_currency_support",
    "get_disposable_virtual_card",
    "get_physical_card",
    "getting_spare_card",
    "getting_virtual_card",
    "lost_or_stolen_card",
    "lost_or_stolen_phone",
    "order_physical_card",
    "passcode_forgotten",
    "pending_card_payment",
    "pending_cash_withdrawal",
    "pending_top_up",
    "pending_transfer",
    "pin_blocked",
    "receiving_money",
    "Refund_not_showing_up",
    "request_refund",
    "reverted_card_payment?",
    "supported_cards_and_currencies",
    "terminate_account",
    "top_up_by_bank_transfer_charge",
    "top_up_by_card_charge",
    "top_up_by_cash_or_cheque",
    "top_up_failed",
    "top_up_limits",
    "top_up_reverted",
    "topping_up_by_card",
    "transaction_charged_twice",
    "transfer_fee_charged",
    "transfer_into_account",
    "transfer_not_received_by_recipient",
    "transfer_timing",
    "unable_to_verify_identity",
    "verify_my_identity",
    "verify_source_of_funds",
    "verify_top_up",
    "virtual_card_not_working",
    "visa_or_mastercard",
    "why_verify_identity",
    "wrong_amount_of_cash_received",
    "wrong_exchange_rate_for_cash_withdrawal",
)
"""Banking77's intents (Casanueva et al. 2020) in Hugging Face's order, which is that of the
templates' answer choices. PolyAI's files name a row's intent, and list them in another order."""


def _banking77(row: dict) -> list[dict]:
    category = row.get("category")  # PolyAI's files
    return [row if category is None else row | {"label": category}]


def _ade(row: dict) -> list[dict]:
    raft = {"not ADE-related": 0, "ADE-related": 1}
    return [row | {"label": raft.get(row.get("label"), row.get("label"))}]


BANKING77 = Dataset(
    name="banking77",
    fields=("text",),
    labels=INTENTS,
    hub="banking77",
    folder="banking77",
    templates="banking77",
    splits={"validation": "test"},
    expand=_banking77,
    sizes={"train": 10_003, "test": 3_080},
    download="https://github.com/PolyAI-LDN/task-specific-datasets (banking_data)",
)
ADE_CORPUS_V2 = Dataset(
    name="ade_corpus_v2",
    fields=("text",),
    labels=("Not-Related", "Related"),
    hub="ade_corpus_v2/Ade_corpus_v2_classification",
    folder="ade_corpus_v2",
    templates="ade_corpus_v2/Ade_corpus_v2_classification",
    expand=_ade,
    sizes={"train": 23_516},
    download="https://huggingface.co/datasets/ade_corpus_v2 (one split: no published test set)",
)
AG_NEWS = T0_DATASETS["ag_news"]

TASKS: tuple[TaskDefinition, ...] = (
    TaskDefinition(
        "banking77",
        BANKING77,
        group="Classification",
        about="77 intents of questions to a bank (Casanueva et al. 2020), promptsource's templates",
    ),
    TaskDefinition(
        "ade_corpus_v2",
        ADE_CORPUS_V2,
        group="Classification",
        metrics=("macro_f1", "accuracy"),
        about="does a sentence tell of an adverse drug effect (Gurulingappa et al. 2012); one in "
        "five does",
    ),
    TaskDefinition(
        "ag_news",
        AG_NEWS,
        group="Classification",
        about="four topics of news (Zhang et al. 2015), promptsource's templates",
    ),
)
