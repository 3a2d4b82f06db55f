"""Adapters that travel: other libraries' files, read and written."""

from peft_jax.exchange.hugging_face import Imported, load_peft, read_peft, save_peft

__all__ = ["Imported", "load_peft", "read_peft", "save_peft"]
