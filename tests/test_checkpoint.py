"""Checkpoints: what is kept, what comes back, and that damage is never taken for a state."""

import dataclasses
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from peft_jax import experiment, report, sharding
from peft_jax.checkpoint import Checkpoints, checksum
from peft_jax.config import (
    DataConfig,
    Experiment,
    MeshConfig,
    TrainingConfig,
    check,
    first_difference,
    to_json,
)
from peft_jax.errors import InputError
from tests.small_run import small_experiment
from tests.small_state import make_progress, make_state

QUIET = report.quiet_console()

NEWER, OLDER = 10, 5


def same(one, other) -> bool:
    def bits(x):
        return (
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        ).tobytes()

    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        a.dtype == b.dtype and bits(a) == bits(b) for a, b in pairs
    )


def empty(_=None) -> dict:
    return make_state(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(folder)
    for step in (OLDER, NEWER):
        checkpoints.save(step, make_state(step), make_progress(step))
    checkpoints.close()
    return folder


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoints")


# --------------------------------------------------------------------------------------------
# What is saved and kept
# --------------------------------------------------------------------------------------------
def test_what_is_saved_comes_back_to_the_bit(saved):
    checkpoints = Checkpoints(saved)
    assert (checkpoints.steps(), checkpoints.latest()) == ([OLDER, NEWER], NEWER)
    state, progress = checkpoints.restore(empty)
    assert same(state, make_state(NEWER))
    assert progress == make_progress(NEWER)
    state, progress = checkpoints.restore_step(OLDER, empty())
    assert same(state, make_state(OLDER))
    assert progress == make_progress(OLDER)
    with pytest.raises(InputError, match="no checkpoint of step 7"):
        checkpoints.restore_step(7, empty())


def test_the_newest_the_best_and_every_fourth_are_kept(tmp_path):
    scores = {1: 0.2, 2: 0.9, 3: 0.5, 5: 0.9, 6: float("nan")}
    keep = {"newest": 2, "every": 4, "best": 1}
    checkpoints = Checkpoints(tmp_path, **keep)
    for step in range(1, 8):
        checkpoints.save(step, {"x": jnp.float32(step)}, {}, scores.get(step))
    checkpoints.close()
    reopened = Checkpoints(tmp_path, **keep)
    assert reopened.steps() == [2, 4, 6, 7]
    reopened.restore(lambda _: {"x": jnp.float32(0)})
    assert reopened.best() == [2]  # of equals the first; not a number is no score
    for step in (8, 9, 10):
        reopened.save(step, {"x": jnp.float32(step)}, {}, 0.95 if step == 8 else None)
    reopened.close()
    assert Checkpoints(tmp_path).steps() == [4, 8, 9, 10]


def test_saving_leaves_the_arrays_free_to_be_donated(tmp_path):
    """The step after a save overwrites the state's buffers while they are being written."""
    checkpoints = Checkpoints(tmp_path)
    overwrite = jax.jit(lambda x: x * 0 + 7, donate_argnums=0)
    values = np.random.default_rng(0).normal(size=(512, 1024)).astype(np.float32)
    x = jnp.array(values, copy=True)
    checkpoints.save(1, {"x": x}, {})
    for _ in range(5):
        x = overwrite(x)
    checkpoints.wait()
    found, _ = checkpoints.restore(lambda _: {"x": jnp.zeros_like(x)})
    np.testing.assert_array_equal(found["x"], values)


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "model": 2}])
def test_a_checkpoint_is_read_onto_another_mesh(tmp_path, axes):
    def lie(mesh, x, spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    values = np.arange(16 * 24, dtype=np.float32).reshape(16, 24)
    before, after = sharding.make_mesh(devices=4, data=1, fsdp=4), sharding.make_mesh(**axes)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": lie(before, values, ("fsdp", None))}, {})
    like = {"w": lie(after, np.zeros_like(values), ("fsdp", "model"))}
    found, _ = checkpoints.restore(lambda _: like)
    assert found["w"].sharding == like["w"].sharding
    np.testing.assert_array_equal(found["w"], values)


def test_what_cannot_be_written_is_told(tmp_path):
    """As on a full disk: files may grow to 256 KiB, and no further."""
    values = jnp.asarray(np.random.default_rng(0).normal(size=(256, 512)), jnp.float32)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": values[:4]}, {})
    checkpoints.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))
    try:
        checkpoints.save(2, {"x": values}, {})
        with pytest.raises(InputError, match=r"could not be written to .*: File too large"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found, _ = checkpoints.restore(lambda _: {"x": jnp.zeros((4, 512))})
    np.testing.assert_array_equal(found["x"], values[:4])
    assert checkpoints.steps() == [1]
    checkpoints.save(2, {"x": values}, {})
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [1, 2]


# --------------------------------------------------------------------------------------------
# Checksums
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_checksum_sees_every_bit_and_every_place(dtype):
    x = np.asarray(jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)) * 9, dtype))
    words = x.view(f"uint{8 * x.itemsize}")
    whole = int(checksum(x))
    for place in np.ndindex(words.shape):
        for bit in range(8 * x.itemsize):
            flipped = words.copy()
            flipped[place] ^= np.array(1 << bit, words.dtype)
            assert int(checksum(flipped.view(x.dtype))) != whole
    assert int(checksum(x[::-1].copy())) != whole
    # A sum of the words would not see two signs that change.
    assert dtype == "int8" or int(checksum(-x)) != whole


def test_a_checksum_is_that_of_the_values_however_they_lie():
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    mesh = sharding.make_mesh(data=2, fsdp=2, model=2)
    for spec in ((), ("fsdp", "model"), (("data", "fsdp"), None)):
        lies = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        assert int(checksum(lies)) == int(checksum(x))
    program = checksum.lower(lies).compile().as_text()
    assert "all-gather" not in program


# --------------------------------------------------------------------------------------------
# Damage
# --------------------------------------------------------------------------------------------
def damage(file: Path, kind: str) -> None:
    """``delete``, ``empty``, ``half``, or ``flip:SHARE``: a bit of the byte at that share."""
    data = bytearray(file.read_bytes())
    if kind == "delete":
        return file.unlink()
    if kind == "empty":
        data.clear()
    elif kind == "half":
        del data[len(data) // 2 :]
    else:
        data[int(float(kind.partition(":")[2]) * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


def files_of(folder: Path, step: int) -> list[Path]:
    return sorted(p.relative_to(folder) for p in (folder / str(step)).rglob("*") if p.is_file())


def largest(folder: Path) -> Path:
    """The file that holds the arrays' values."""
    return max(files_of(folder, NEWER), key=lambda p: (folder / p).stat().st_size)


def outcome(folder: Path) -> str:
    """What a run finds that resumes in a folder: "unharmed" or "passed over"."""
    told: list[str] = []
    checkpoints = Checkpoints(folder, tell=told.append)
    state, progress = checkpoints.restore(empty)
    used = int(state["step"])
    # Whatever was damaged: the state is one that was saved, whole.
    assert same(state, make_state(used))
    assert progress == make_progress(used)
    if used == NEWER:
        assert not told
        return "unharmed"
    assert used == OLDER
    assert len(told) == 1
    assert f"checkpoint {NEWER} in {folder} is damaged" in told[0]
    assert f"checkpoint {OLDER} is used" in told[0]
    # Its place is free for the same step of the resumed run, and the files can be looked at.
    assert checkpoints.steps() == [OLDER]
    assert (folder / f"{NEWER}.damaged").is_dir()
    return "passed over"


@pytest.mark.parametrize("kind", ["half", "flip:0.5"])
def test_damaged_arrays_are_passed_over(copied, kind):
    damage(copied / largest(copied), kind)
    assert outcome(copied) == "passed over"


def test_another_data_position_is_passed_over(copied):
    """JSON that reads well and says something else."""
    file = copied / str(NEWER) / "progress" / "metadata"
    text = file.read_text()
    assert text.count('"offset": 100') == 1
    file.write_text(text.replace('"offset": 100', '"offset": 101'))
    assert outcome(copied) == "passed over"
    checkpoints = Checkpoints(copied)
    checkpoints.save(NEWER, make_state(NEWER), make_progress(NEWER))
    checkpoints.close()
    assert outcome(copied) == "unharmed"


def orbax_alone(folder: Path) -> str:
    """What orbax makes of a folder by itself: "raises", "unharmed" or "other values"."""
    import orbax.checkpoint as ocp

    keyless = {k: v for k, v in make_state(NEWER).items() if k != "key"}
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="."): x
        for path, x in jax.tree_util.tree_leaves_with_path(keyless)
    } | {"key": jax.random.key_data(make_state(NEWER)["key"])}
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(wanted), progress=ocp.args.JsonRestore()
    )
    try:
        with ocp.CheckpointManager(folder) as manager:
            found = manager.restore(NEWER, args=args)
    except Exception:
        return "raises"
    told = found["progress"].get("content", {}).get("progress")
    whole = same(found["state"], arrays) and told == make_progress(NEWER)
    return "unharmed" if whole else "other values"


KINDS = ("delete", "empty", "half", *(f"flip:{share / 11:.3f}" for share in range(12)))


@pytest.mark.slow
def test_no_damage_to_any_file_yields_a_state_that_was_not_saved(saved, tmp_path, record_property):
    """Every file of a checkpoint, damaged in every way; and what orbax alone does not notice."""
    found: dict[str, dict[str, int]] = {}
    for file in files_of(saved, NEWER):
        for kind in KINDS:
            ours, theirs = tmp_path / "ours", tmp_path / "theirs"
            for folder in (ours, theirs):
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(saved, folder)
                damage(folder / file, kind)
            alone, with_sums = orbax_alone(theirs), outcome(ours)
            # What orbax reads as other values is what the checksums are for.
            assert alone != "other values" or with_sums == "passed over"
            assert alone != "raises" or with_sums == "passed over"
            name = "arrays" if file == largest(saved) else file.relative_to(str(NEWER)).as_posix()
            name = re.sub("[0-9a-f]{32}", "*", name)
            counted = found.setdefault(f"{name} {kind.partition(':')[0]}", {})
            counted[alone] = counted.get(alone, 0) + 1
    record_property("orbax alone", json.dumps(found))
    print(*(f"{name}: {counted}" for name, counted in found.items()), sep="\n")
    assert found["arrays flip"]["other values"] >= 6
    assert found["progress/metadata flip"]["other values"] >= 1
    assert set(found["arrays half"]) == set(found["arrays delete"]) == {"raises"}


def test_nothing_whole_is_an_error_that_names_all(copied):
    for step in (OLDER, NEWER):
        (copied / str(step) / "progress" / "metadata").write_text("{}")
    with pytest.raises(InputError, match=rf"no checkpoint in .* is whole \({NEWER}: .*{OLDER}: "):
        Checkpoints(copied).restore(empty)
    # They are left as they are: what ails them may lie elsewhere.
    assert sorted(p.name for p in copied.iterdir()) == [str(NEWER), str(OLDER)]


def test_another_tree_is_not_taken_for_damage(copied):
    with pytest.raises(
        InputError, match=r"lora_a is float32\[64, 65\] there, and float32\[64, 8\]"
    ):
        Checkpoints(copied).restore(
            lambda _: {**empty(), "trainable": {"lora_a": jnp.zeros((64, 8))}}
        )
    with pytest.raises(InputError, match=r"other is missing there, and int32\[\] here"):
        Checkpoints(copied).restore(lambda _: {**empty(), "other": jnp.int32(0)})
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        Checkpoints(copied / "nothing").restore(empty)
    assert Checkpoints(copied).steps() == [OLDER, NEWER]


# --------------------------------------------------------------------------------------------
# Killed processes
# --------------------------------------------------------------------------------------------
ROOT = Path(__file__).resolve().parents[1]

SAVES = """
import sys
from peft_jax.checkpoint import Checkpoints
from tests.small_state import make_progress, make_state
checkpoints = Checkpoints(sys.argv[1])
for step in range(1, 1000):
    checkpoints.save(step, make_state(step), make_progress(step))
"""

RUNS = """
import sys
from pathlib import Path
from peft_jax import experiment, report
from peft_jax.config import from_json
output = Path(sys.argv[2])
experiment.run(from_json(Path(sys.argv[1])), output, resume=(output / "config.json").is_file(),
               console=report.quiet_console())
"""


def unfinished(checkpoints: Path) -> list[Path]:
    """The checkpoints that were being written when their process ended."""
    return [p for p in checkpoints.glob("*") if "orbax-checkpoint-tmp" in p.name]


def saved_steps(checkpoints: Path) -> list[int]:
    return sorted(int(p.name) for p in checkpoints.glob("*") if p.name.isdigit())


def start(code: str, *arguments: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    # What a process compiles, however small, the next one reads.
    own = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_until(true, process: subprocess.Popen, seconds: float = 600) -> bool:
    """False if the process ended first."""
    end = time.monotonic() + seconds
    while not true():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "the process does nothing"
        time.sleep(0.001)
    return True


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(tmp_path):
    process = start(SAVES, tmp_path)
    saving = wait_until(lambda: (tmp_path / "2").exists() and unfinished(tmp_path), process)
    process.kill()
    output = process.communicate()[0].decode()
    assert saving, output
    kept = max(saved_steps(tmp_path))
    told: list[str] = []
    checkpoints = Checkpoints(tmp_path, tell=told.append)
    state, progress = checkpoints.restore(empty)
    assert not told
    assert same(state, make_state(kept))
    assert progress == make_progress(kept)
    assert not unfinished(tmp_path)


def figures(output: Path) -> list[dict]:
    """What a run logs that does not hang on a clock."""
    keep = ("step", "loss", "accuracy", "gradient_norm", "evaluation_score")
    lines = report.read_metrics(output / "metrics.jsonl")
    return [{k: m[k] for k in keep if k in m} for m in lines]


def assert_same_result(output: Path, whole: Path) -> None:
    for name in ("adapter.safetensors", "predictions.jsonl"):
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = (json.loads((f / "result.json").read_text()) for f in (output, whole))
    assert ours["evaluation"] == theirs["evaluation"]
    assert ours["used_step"] == theirs["used_step"]
    assert figures(output) == figures(whole)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Experiment:
    """A run whose examples lie in files, so that it starts without TensorFlow."""
    folder = tmp_path_factory.mktemp("small")
    config = small_experiment(folder)
    backbone = experiment.open_backbone(config)
    for name, training in (("train", True), ("evaluation", False)):
        rows = experiment.open_examples(
            config.task, config.data, backbone, config.seed, training=training
        )
        rows.save(folder / name)
    data = DataConfig(prepared=folder / "train", prepared_evaluation=folder / "evaluation")
    return dataclasses.replace(config, data=data)


def with_training(config: Experiment, **fields) -> Experiment:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **fields))


@pytest.mark.slow
def test_a_run_killed_twenty_times_at_random_ends_with_the_same_result(small, tmp_path):
    """Kills while it starts, trains, evaluates, saves in the background, and ends."""
    config = with_training(small, steps=120, checkpoint_every=3, log_every=3, evaluate_every=30)
    file = tmp_path / "config.json"
    file.write_text(to_json(config))
    whole = tmp_path / "whole"
    experiment.run(config, whole, console=QUIET)

    rng = np.random.default_rng(0)
    kills, saving, steps, outputs = 0, 0, [], [tmp_path / "killed_0"]
    while kills < 20:
        output = outputs[-1]
        log = output / "metrics.jsonl"
        before = log.stat().st_size if log.exists() else 0
        process = start(RUNS, file, output)
        # Every fifth while it starts; the others once it has gone on from where it was.
        if kills % 5 == 4:
            time.sleep(rng.uniform(0, 4))
        else:

            def goes_on(log=log, before=before):
                return log.exists() and log.stat().st_size > before

            wait_until(goes_on, process)
            time.sleep(rng.uniform(0, 3))
        process.kill()
        text = process.communicate()[0].decode()
        if process.returncode == -signal.SIGKILL:
            kills += 1
            steps.append(max(saved_steps(output / "checkpoints"), default=0))
            saving += bool(unfinished(output / "checkpoints"))
        else:
            assert process.returncode == 0, text
            outputs.append(tmp_path / f"killed_{len(outputs)}")
    for output in outputs:
        process = start(RUNS, file, output)
        text = process.communicate()[0].decode()
        assert process.returncode == 0, text
        assert_same_result(output, whole)
    print(f"{kills} kills, {saving} in the middle of a save; newest checkpoints: {steps}")
    assert saving > 0


# --------------------------------------------------------------------------------------------
# Several processes
# --------------------------------------------------------------------------------------------
def processes(count: int, folder: Path, steps: int, damaged: int | None = None):
    """So many processes with two devices each, that keep their checkpoints in one folder."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    for process in range(count):
        words = [address, count, process, folder, steps]
        command = [sys.executable, "-m", "tests.checkpoint_process", *map(str, words)]
        if process == damaged:
            command.append("damaged")
        started.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    return started


def ends(started: list[subprocess.Popen]) -> list[dict]:
    found = []
    for process in started:
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, error.decode()
        found.append(json.loads(out.decode().splitlines()[-1]))
    return found


@pytest.mark.slow
def test_several_processes_stop_at_one_step_and_go_on_as_more_and_fewer(tmp_path):
    """SIGTERM to one of two; then four go on, one of which cannot read the newest; then one."""
    (whole,) = ends(processes(1, tmp_path / "whole", 400))
    folder = tmp_path / "checkpoints"
    started = processes(2, folder, 10**9)
    assert wait_until(lambda: (folder / "40").exists(), started[0])
    started[1].send_signal(signal.SIGTERM)
    stopped = ends(started)
    assert all(end["stopped"] for end in stopped)
    step = stopped[0]["step"]
    assert stopped[1]["step"] == step
    assert max(saved_steps(folder)) == step
    # Stopped somewhere, so that the rest of the test needs a place behind that.
    until = step + 50
    (whole,) = ends(processes(1, tmp_path / "whole", until)) if until > 400 else (whole,)
    four = ends(processes(4, folder, until - 25, damaged=3))
    assert all(f"checkpoint {step} in" in end["told"][0] for end in four)
    assert (folder / f"{step}.damaged").is_dir()
    (one,) = ends(processes(1, folder, max(until, 400)))
    assert one["square"] == pytest.approx(whole["square"], rel=1e-6)


# --------------------------------------------------------------------------------------------
# Runs
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_best": 1}, "keep_best is 1 and training.evaluate_every 0"),
        ({"final": "best", "evaluate_every": 5}, "keep_best 0; it must be at least 1"),
        ({"checkpoint_minutes": 0.0}, "checkpoint_minutes is 0.0; it must be above 0"),
        ({"keep_every": -1}, "keep_every is -1"),
    ],
)
def test_policies_that_cannot_be_meant(fields, message):
    with pytest.raises(InputError, match=re.escape(message)):
        check(Experiment(training=TrainingConfig(**fields)))


def test_a_run_may_go_on_elsewhere_and_keep_others():
    before = json.loads(to_json(Experiment()))
    training = TrainingConfig(devices=1, keep_best=2, checkpoint_every=7, checkpoint_folder="x")
    now = Experiment(training=training, mesh=MeshConfig(fsdp=2))
    assert first_difference(now, before) is None
    assert "training.steps" in first_difference(
        Experiment(training=TrainingConfig(steps=5)), before
    )


def stop_at(monkeypatch, step: int, config, output: Path) -> None:
    from tests.test_experiment import StopAfter

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "train_steps", StopAfter(step, signal.SIGTERM))
        with pytest.raises(experiment.Interrupted):
            experiment.run(config, output, console=QUIET)


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(small, tmp_path, monkeypatch):
    output, whole = tmp_path / "out", tmp_path / "whole"
    experiment.run(small, whole, console=QUIET)
    stop_at(monkeypatch, 7, small, output)
    saved = output / "checkpoints"
    damage(saved / "7" / "state" / "manifest.ocdbt", "half")
    console = Console(file=io.StringIO(), width=300)
    experiment.run(small, output, resume=True, console=console)
    printed = console.file.getvalue()
    assert f"warning: checkpoint 7 in {saved} is damaged" in printed
    assert "resumed after step 5" in printed
    assert_same_result(output, whole)


@pytest.mark.slow
def test_the_best_state_is_kept_and_written(small, tmp_path, monkeypatch):
    """Also where the run is stopped just when that state was to be evaluated."""
    scores = {2: 0.1, 4: 101.0, 6: 0.2, 8: 0.3, 10: 0.4}  # the last is a percentage

    def score(run, log, made):
        log.write(made, evaluation_score=scores[made])
        return scores[made]

    monkeypatch.setattr(experiment._Run, "_score", score)
    policy = {"evaluate_every": 2, "keep_best": 1, "keep_checkpoints": 1, "final": "best"}
    config = with_training(small, **policy)
    output, whole = tmp_path / "out", tmp_path / "whole"
    result = experiment.run(config, whole, console=QUIET)
    assert result["used_step"] == 4
    assert saved_steps(whole / "checkpoints") == [4, 12]
    stop_at(monkeypatch, 4, config, output)
    experiment.run(config, output, resume=True, console=QUIET)
    assert_same_result(output, whole)
    last = with_training(config, final="last")
    experiment.run(last, tmp_path / "last", console=QUIET)
    one, other = (tmp_path / f / "adapter.safetensors" for f in ("last", "whole"))
    assert one.read_bytes() != other.read_bytes()


@pytest.mark.slow
def test_time_makes_checkpoints_too_in_a_folder_of_their_own(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "seconds_since_save", lambda self: 61.0)
    folder = tmp_path / "elsewhere"
    config = with_training(
        small, checkpoint_minutes=1.0, keep_checkpoints=99, checkpoint_folder=str(folder)
    )
    experiment.run(config, tmp_path / "out", console=QUIET)
    assert saved_steps(folder) == [2, 4, 5, 6, 8, 10, 12]
    with pytest.raises(InputError, match="holds checkpoints of another run"):
        experiment.run(config, tmp_path / "other", console=QUIET)
