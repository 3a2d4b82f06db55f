"""The log of a run that was stopped anywhere is that of one that never was."""

import json
import sys
import types

import pytest

from peft_jax.metrics_log import MetricsLog


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> list:
    """What TensorBoard is given, without importing its writer (which imports torch)."""
    found: list = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            found.append(("purged from", purge_step))

        def add_scalar(self, *arguments):
            found.append(arguments)

        def close(self):
            pass

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    return found


def write(folder, after: int, *lines: dict) -> list[dict]:
    with MetricsLog(folder, after_step=after) as log:
        for line in lines:
            log.write(**line)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


LINES = (
    {"step": 2, "loss": 0.5},
    {"step": 2, "evaluation_score": 50.0},
    {"step": 4, "loss": 0.4},
    {"step": 4, "evaluation_score": 75.0},
)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_lines_after_the_checkpoint_are_made_again(tmp_path, lost):
    write(tmp_path, 0, *LINES[: 4 - lost])
    assert write(tmp_path, 2, *LINES[2:]) == list(LINES)


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    write(tmp_path, 0, *LINES)
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text()[:-9])
    assert write(tmp_path, 4, LINES[3]) == list(LINES)


def test_the_evaluation_at_the_end_is_written_once(tmp_path, drawn):
    """A run that was killed behind its last line evaluates again, and trains no more."""
    write(tmp_path, 0, *LINES)
    drawn.clear()
    assert write(tmp_path, 4, LINES[3]) == list(LINES)
    assert drawn == [("purged from", 5)]


def test_one_process_writes(tmp_path, drawn):
    with MetricsLog(tmp_path, writes=False) as log:
        log.write(1, loss=0.5)
    assert not list(tmp_path.iterdir())
    assert not drawn
