"""What torch.save writes: the files that peft_jax/torch_files.py must read without torch.

    pip install torch==2.13.0 numpy
    python tests/golden/make_torch_files.py

writes torch_files/{zip,legacy}.pt, of the same tensors, and their values, expected.npz (bfloat16 as
float32).
"""

import collections
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent / "torch_files"


def tensors() -> dict[str, torch.Tensor]:
    """Every dtype, and what a state_dict may hold beside plain arrays."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    made = collections.OrderedDict(
        plain=base.clone(),
        transposed=base.T,
        window=base[1:3, 2:],
        shared=base,
        parameter=torch.nn.Parameter(torch.full((3,), 0.5)),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        bfloat16=base.to(torch.bfloat16),
        float16=base.half(),
        float64=base.double(),
        int64=torch.arange(-3, 3),
        uint8=torch.arange(5, dtype=torch.uint8),
        bool=torch.tensor([True, False]),
    )
    made._metadata = {"": {"version": 1}}  # as a module's state_dict has it
    return made


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    torch.save(tensors(), HERE / "zip.pt")
    torch.save(tensors(), HERE / "legacy.pt", _use_new_zipfile_serialization=False)
    values = {name: tensor.detach() for name, tensor in tensors().items()}
    values["bfloat16"] = values["bfloat16"].float()
    np.savez_compressed(HERE / "expected.npz", **{n: t.numpy() for n, t in values.items()})
