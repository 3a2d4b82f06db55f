"""A step's time by part, and a trace of a few steps."""

import time

import jax
import jax.numpy as jnp
import pytest

from peft_jax.errors import InputError
from peft_jax.profiling import PARTS, Profile, StepTimes, Tracer, longest_operations, split_line


def test_parts_are_seconds_a_step_since_the_last_time_they_were_taken():
    times = StepTimes()
    with times("data"):
        time.sleep(0.02)
    taken = times.take(2)
    assert taken.keys() == {f"{part}_seconds" for part in PARTS}
    assert 0.01 <= taken["data_seconds"] < 0.02
    assert taken["compute_seconds"] == 0
    with pytest.raises(ValueError, match="bad row"), times("data"):
        raise ValueError("bad row")
    assert times.take(1)["data_seconds"] < 0.01  # only what came since
    assert times.totals()["data"] >= 0.02
    assert "data 100%" in split_line(times.totals(), 2)
    times.restart()
    assert times.totals() == dict.fromkeys(PARTS, 0.0)
    assert split_line(times.totals(), 2) == "no step was timed"


def test_a_trace_holds_the_steps_that_were_asked_for_and_no_other(tmp_path):
    step = jax.jit(lambda x: jnp.tanh(x @ x))
    x, written = jnp.ones((300, 300)), []
    with Tracer(Profile(tmp_path, steps=3, skip=2)) as tracer:
        for number in range(10, 18):
            with tracer.step(number):
                x = step(x)
            written.append(tracer.done(x))
    assert written == [False] * 4 + [True] + [False] * 3
    assert tracer.written == tmp_path
    (path,) = tmp_path.rglob("*.xplane.pb")
    events = [
        dict(event.stats)
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert [event["step_num"] for event in events] == [12, 13, 14]
    operations = longest_operations(tmp_path)
    assert all(seconds > 0 and runs % 3 == 0 for _, seconds, runs in operations)
    assert operations == sorted(operations, key=lambda found: -found[1])


def test_a_loop_that_ends_early_leaves_its_trace(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        Tracer(Profile(tmp_path, steps=5, skip=0)) as tracer,
        tracer.step(1),
    ):
        raise KeyboardInterrupt
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_without_a_profile_nothing_is_traced():
    with Tracer() as tracer:
        for number in range(4):
            with tracer.step(number):
                pass
            assert not tracer.done(())
    assert tracer.written is None


def test_what_cannot_be_meant_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least 1 step"):
        Profile(tmp_path, steps=0)
    with pytest.raises(InputError, match="holds no trace"):
        longest_operations(tmp_path)
