"""The families: which module holds the sizes and the name table of a Hugging Face model type."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from peft_jax.backbones import bart, bert, gemma, gpt2, llama, roberta, t5
from peft_jax.backbones.names import Rule
from peft_jax.backbones.options import Options
from peft_jax.transformer import Config


class Family(Protocol):
    """What a module in this folder offers: constants (here as properties, which are read only)
    and functions."""

    @property
    def MODEL_TYPES(self) -> tuple[str, ...]:
        """The values of config.json's model_type that it reads."""

    @property
    def CONFIGS(self) -> dict[str, Config]:
        """Named configurations of published models."""

    @property
    def OPTIONS(self) -> dict[str, Options]:
        """By model type: what is known of the fields of config.json."""

    @property
    def ALIASES(self) -> dict[str, str]:
        """Further names under which a file may hold a tensor, and the name in the table."""

    @property
    def UNUSED(self) -> tuple[str, ...]:
        """Regular expressions on names of tensors that no model of the family reads."""

    @property
    def EMBEDDING(self) -> str:
        """Name of the embedding."""

    @property
    def HEAD(self) -> str:
        """Name of the head's matrix, where it is not the embedding."""

    @property
    def CLASSIFIERS(self) -> tuple[str, ...]:
        """Names of tensors, one of which is there if the file has a classification head."""

    def canonical_name(self, name: str) -> str:
        """A tensor's name as the table has it: with the prefix that a bare model's file lacks."""

    def tied_by_default(self, model_type: str) -> bool:
        """Whether transformers ties the head where config.json does not say."""

    def hugging_face_rules(self, config: Config) -> list[Rule]:
        """Our paths against transformers' names, for reading and for writing."""

    def config_from_hugging_face(self, fields: dict[str, Any], names: Collection[str]) -> Config:
        """The configuration that a config.json describes, for a file with tensors of these names.

        Raises:
          InputError: an option that is not supported, with its name and value.
          KeyError: a field is missing.
        """

    def config_to_hugging_face(self, config: Config) -> dict[str, Any]:
        """The config.json from which transformers, of version 4 or 5, rebuilds the same model."""


_MODULES: tuple[Family, ...] = (t5, bert, roberta, bart, gpt2, llama, gemma)

FAMILIES: dict[str, Family] = {kind: module for module in _MODULES for kind in module.MODEL_TYPES}
"""By Hugging Face model type, which is also ``Config.family``."""

CONFIGS: dict[str, Config] = {
    name: config for module in _MODULES for name, config in module.CONFIGS.items()
}
"""Named configurations of published models, all families."""
