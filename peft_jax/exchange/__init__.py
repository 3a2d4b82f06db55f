"""Adapters that travel: other libraries' files, read and written.

====================  =============================================  ===========================
what                  functions                                      files
====================  =============================================  ===========================
Hugging Face PEFT     ``load_peft``, ``save_peft``                   ``adapter_config.json``,
                                                                     ``adapter_model.safetensors``
T-Few                 ``load_tfew``, ``save_tfew``                   ``.pt`` of torch
loralib               ``load_loralib``                               ``.bin``, ``.pt`` of torch
T5X                   ``load_t5x``                                   ``checkpoint_<step>``, of the
                                                                     bridge ``t5x_bridge``
prompt-tuning         ``load_npy``, ``save_npy``                     ``.npy``
NumPy                 ``load_npz``, ``save_npz``                     ``.npz``, any adapter of ours
====================  =============================================  ===========================
"""

from peft_jax.exchange.hugging_face import Imported, load_peft, read_peft, save_peft
from peft_jax.exchange.loralib import load_loralib
from peft_jax.exchange.numpy_files import load_npy, load_npz, save_npy, save_npz
from peft_jax.exchange.t5x import load_t5x
from peft_jax.exchange.tfew import load_tfew, save_tfew

__all__ = [
    "Imported",
    "load_loralib",
    "load_npy",
    "load_npz",
    "load_peft",
    "load_t5x",
    "load_tfew",
    "read_peft",
    "save_npy",
    "save_npz",
    "save_peft",
    "save_tfew",
]
