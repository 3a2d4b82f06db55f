"""RAFT's test rows are answered in batches as single inputs are."""

import json

import jax
import pytest

import peft_jax as pj
from peft_jax.errors import InputError
from peft_jax.inference import predict_text
from peft_jax.raft_submission import answer_test_rows, write_submission
from peft_jax.tasks import raft

TASK = "twitter_complaints"


@pytest.fixture
def data(tmp_path):
    """A data folder with an instruction and three test rows, one longer than the others."""
    folder = tmp_path / "data" / "raft" / TASK
    folder.mkdir(parents=True)
    (folder / "task.json").write_text(json.dumps({"instruction": "Does it complain?"}))
    texts = ("the room was cold", "a fine and quiet hotel with a very good breakfast", "no")
    lines = [json.dumps({"Tweet text": text, "ID": 50 + i}) for i, text in enumerate(texts)]
    (folder / "test_unlabeled.jsonl").write_text("\n".join(lines))
    return tmp_path / "data"


@pytest.fixture
def adapter(tmp_path):
    """An adapter far from its start, so that it matters."""
    backbone = pj.load_backbone("tiny")
    method = pj.ia3()
    trained = jax.tree.map(lambda leaf: 1.7 * leaf, method.init(jax.random.key(0), backbone))
    pj.save_adapter(tmp_path / "run", trained, method, backbone)
    return tmp_path / "run"


@pytest.mark.slow
def test_batches_answer_as_single_inputs(data, adapter):
    file = write_submission(adapter, "tiny", f"raft_{TASK}", data, data / "out", batch_size=2)
    assert file == data / "out" / TASK / "predictions.csv"
    head, *lines = file.read_text().splitlines()
    answers = dict(line.split(",") for line in lines)
    assert head == "ID,Label"
    assert list(answers) == ["50", "51", "52"]
    short = raft.unlabelled(f"raft_{TASK}", data)[2]  # padded in its batch
    (best, _), _ = predict_text(adapter, "tiny", short.input, short.choices)
    assert answers["52"] == best


def test_what_is_missing_is_told(data, adapter):
    with pytest.raises(InputError, match="is no task of RAFT; nearest: raft_twitter_complaints"):
        answer_test_rows(adapter, "tiny", "raft_twitter", data)
    with pytest.raises(InputError, match="raft/overruling"):
        answer_test_rows(adapter, "tiny", "raft_overruling", data)
