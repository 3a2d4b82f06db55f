"""Tasks of open answers: what a row becomes, and the real files."""

import pytest

from peft_jax.decoding import Decoding
from peft_jax.errors import InputError
from peft_jax.tasks import generation
from peft_jax.tasks.prompted import find_task


def test_an_instruction_has_as_many_rows_as_instances():
    row = {
        "id": "t",
        "instruction": "Add. ",
        "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": " 3"}],
    }
    rows = generation.instances(row)
    assert [(r["id"], r["input"], r["output"]) for r in rows] == [
        ("t", "1 1", "2"),
        ("t", "", " 3"),
    ]
    (task,) = [task for task in generation.TASKS if task.name == "instructions"]
    made = [task.formats[0].render_all(r)[0] for r in rows]
    assert [(m.input, m.target) for m in made] == [("Add.\n\n1 1", "2"), ("Add.", "3")]
    flat = {"instruction": "Add.", "output": "2"}
    assert generation.instances(flat) == [flat | {"input": ""}]
    with pytest.raises(InputError, match="instances of t are no list"):
        generation.instances(row | {"instances": [{"input": "1"}]})


def test_decoding_is_valid():
    for task in generation.TASKS:
        Decoding(**task.decoding)


@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("gsm8k", 2000, 1000),
        ("instructions", 175, 252),
        ("t0_multitask", 7947, 730),
        ("pretrain_text", 9440, 482),
    ],
)
def test_real_files(name, train, validation, shared_data):
    task = find_task(name, directory=shared_data)
    assert len(task.prompted("validation")) == validation
    rows = task.prompted("train")
    assert len(rows) == train
    assert all(row.target for row in rows)
    if name == "gsm8k":
        assert all("\n#### " in row.target for row in rows)
    if name != "pretrain_text":
        assert all(row.input for row in rows)
