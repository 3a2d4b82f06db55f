"""Several processes as one run: real ones, and what each finds out about the others."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import peft_jax as pj
from peft_jax import cli, distributed, report
from peft_jax.config import EvaluationConfig, Experiment, ModelConfig, TrainingConfig, to_json
from peft_jax.distributed import DistributedConfig
from peft_jax.errors import InputError
from tests.process_steps import train_and_evaluate
from tests.several_processes import Processes
from tests.small_run import write_small_backbone
from tests.small_task import write_task, write_vocabulary

# --------------------------------------------------------------------------------------------
# Finding each other
# --------------------------------------------------------------------------------------------
SLURM = {
    "SLURM_JOB_ID": "71",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[03-06]",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}
ADDRESS = {"coordinator": "node1:1234"}


@pytest.fixture
def told(monkeypatch):
    """The arguments of ``jax.distributed.initialize``, in a place that no cluster has started."""
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "JAX_COORDINATOR")):
            monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    return calls


def test_a_process_alone_connects_to_nobody(told, monkeypatch):
    distributed.connect()
    distributed.connect(DistributedConfig(processes=1))
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    distributed.connect()
    monkeypatch.setenv("SLURM_NTASKS", "4")  # in the shell of an allocation: no step
    distributed.connect()
    assert not told
    assert (distributed.process(), distributed.processes()) == (0, 1)
    assert distributed.gather({"a": 1}) == [{"a": 1}]
    with pytest.raises(InputError, match="as it was"), distributed.agreed():
        raise InputError("as it was")


@pytest.mark.parametrize(
    ("environ", "flags", "expected"),
    [
        ({}, ADDRESS | {"processes": 2, "process": 1}, ("node1:1234", 2, 1, None, "deactivate")),
        (
            {"JAX_COORDINATOR_ADDRESS": "node1:1234"},
            {"processes": 2, "process": 0, "local_devices": (3,)},
            ("node1:1234", 2, 0, [3], "deactivate"),
        ),
        (SLURM, {}, (None, None, None, None, "slurm")),
        # One task on a node is to use all of its devices, where jax would give it the first.
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"},
            {},
            (None, None, None, [], "slurm"),
        ),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
            {},
            (None, None, None, None, "slurm"),
        ),
        (OPEN_MPI, ADDRESS, ("node1:1234", 4, 2, None, "deactivate")),
        (
            OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3"},
            {},
            (None, 4, 2, None, "ompi"),
        ),
        ({}, {"cluster": "k8s"}, (None, None, None, None, "k8s")),
    ],
)
def test_what_jax_is_told(told, monkeypatch, environ, flags, expected):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    distributed.connect(DistributedConfig(**flags))
    names = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
    assert tuple(told[0][n] for n in (*names, "cluster_detection_method")) == expected
    assert told[0]["heartbeat_timeout_seconds"] == 100
    assert told[0]["initialization_timeout"] > 300


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        ({}, {"coordinator": "node1"}, "'node1': give HOST:PORT"),
        ({}, {"processes": 0}, "processes is 0"),
        ({}, {"processes": 2, "process": 2}, "process is 2, and of 2 processes the last is 1"),
        ({}, ADDRESS | {"cluster": "none"}, "cluster none, but"),
        (OPEN_MPI, {}, "Open MPI started 4 processes and does not say where the first is"),
    ],
)
def test_flags_that_cannot_be_meant(told, monkeypatch, environ, flags, message):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        distributed.connect(DistributedConfig(**flags))
    assert not told


def test_too_little_is_known(monkeypatch):
    """jax itself finds no cluster here; the message says which flags are missing."""
    # Another test of this process may have used jax before.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    with pytest.raises(InputError, match=r"only num_processes 2 is known: give --distributed"):
        distributed.connect(DistributedConfig(processes=2))


# --------------------------------------------------------------------------------------------
# Real processes
# --------------------------------------------------------------------------------------------
def test_two_processes_train_and_score_as_one(tmp_path):
    """Each makes half of the rows, and both have the same losses and the scores of all rows."""
    folder = tmp_path / "backbone"
    folder.mkdir()
    backbone = pj.init_backbone(pj.Config("t5", 97, 8, 8, 1, 8, 1, 1), jax.random.key(0))
    pj.save_backbone(folder, dataclasses.replace(backbone, vocabulary=write_vocabulary(folder)))
    config = Experiment(
        backbone=str(folder),
        model=ModelConfig(remat="none", dropout=0.0),
        training=TrainingConfig(steps=3, batch_size=4, devices=1),
        evaluation=EvaluationConfig(batch_size=3),
    )
    alone = train_and_evaluate(config)
    several = dataclasses.replace(config, training=TrainingConfig(steps=3, batch_size=4))
    (tmp_path / "config.json").write_text(to_json(several))
    with Processes(2, [str(tmp_path)], tmp_path, module="tests.process_steps") as processes:
        assert processes.exit_codes() == [0, 0], processes.words()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    np.testing.assert_allclose(found["scores"], alone["scores"], atol=1e-4)
    assert [row for rows in found["rows"] for row in rows] == alone["rows"][0]
    assert [len(rows) for rows in found["rows"]] == [2, 2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone, and a task's rows tokenised once, so that the processes need no TensorFlow."""
    folder = tmp_path_factory.mktemp("processes")
    write_small_backbone(folder / "backbone")
    write_task(folder / "data" / "mine")
    common = ["prepare", "--task", "mine", "--backbone", str(folder / "backbone")]
    common += ["--directory", str(folder / "data" / "mine")]
    for name, more in {
        "train": ["--shots", "8", "--seed", "42"],
        "other": ["--shots", "8", "--seed", "43"],
        "test": ["--split", "validation"],
        "train_texts": ["--answer", "text"],
        "test_texts": ["--answer", "text", "--split", "validation"],
    }.items():
        assert cli.main([*common, "--output", str(folder / f"{name}.safetensors"), *more]) == 0
    return folder


def flags(place, output, *more, train="train", test="test", steps=4):
    return [
        *("train", "--output", str(output), "--task", "mine"),
        *("--backbone", str(place / "backbone")),
        *("--data.prepared", str(place / f"{train}.safetensors")),
        *("--data.prepared-evaluation", str(place / f"{test}.safetensors")),
        *("--training.steps", str(steps), "--training.batch-size", "4"),
        *("--training.log-every", "2", "--evaluation.batch-size", "6"),
        *more,
    ]


@pytest.fixture(scope="module")
def alone(place):
    """A run of one process, by its flags."""
    made = {}

    def run(*more, **options):
        key = json.dumps([more, options])
        if key not in made:
            made[key] = place / f"alone_{len(made)}"
            arguments = flags(place, made[key], *more, "--training.devices", "1", **options)
            assert cli.main(arguments) == 0
        return made[key]

    return run


def losses(folder):
    """Step -> loss of every line of a run's log."""
    lines = report.read_metrics(folder / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def assert_same_run(ours, theirs):
    """The losses, the adapter and every choice's score, up to the order of additions."""
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    left, right = (load_file(folder / "adapter.safetensors") for folder in (ours, theirs))
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-4, atol=2e-6)
    rows = [
        [json.loads(line) for line in (folder / "predictions.jsonl").open()]
        for folder in (ours, theirs)
    ]
    assert len(rows[0]) == len(rows[1])
    for a, b in zip(*rows, strict=True):
        np.testing.assert_allclose(a.pop("scores", 0), b.pop("scores", 0), atol=1e-4)
        assert a == b


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(place, alone, tmp_path):
    output = tmp_path / "out"
    with Processes(2, flags(place, output), tmp_path) as processes:
        assert processes.exit_codes() == [0, 0], processes.words()
        first, second = processes.words()
    assert_same_run(output, alone())
    result = json.loads((output / "result.json").read_text())
    assert (result["processes"], result["mesh"]["data"]) == (2, 2)
    # Process 0 alone speaks, and writes.
    assert "written to" in first
    assert second == ""
    steps = [line["step"] for line in report.read_metrics(output / "metrics.jsonl")]
    assert steps == sorted(set(steps)) or steps.count(4) == 2  # the last has its evaluation too
    assert len(list((output / "tensorboard").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "more", "options"),
    [
        (4, 1, (), {}),
        (2, 2, ("--mesh.model", "2"), {}),
        (2, 1, ("--mesh.model", "2"), {}),  # both hold the same rows
        (4, 1, ("--mesh.fsdp", "2", "--mesh.model", "2"), {}),
        (2, 1, ("--mesh.fsdp", "2", "--method", "lora", "ia3"), {}),
        (2, 1, ("--method", "full", "--mesh.fsdp", "2"), {}),
        (2, 1, ("--method", "fish_mask", "--fish-mask.share", "0.02"), {}),
        (2, 1, ("--answer", "text"), {"train": "train_texts", "test": "test_texts"}),
        (
            2,
            1,
            ("--answer", "text", "--data.pack", "--mesh.model", "2"),
            {"train": "train_texts", "test": "test_texts"},
        ),
        (2, 2, ("--training.accumulate", "2", "--mesh.model", "2"), {}),
        (1, 8, ("--mesh.fsdp", "2", "--mesh.model", "2"), {}),
    ],
)
def test_processes_and_meshes_make_the_run_of_one(
    place, alone, tmp_path, count, devices, more, options
):
    output = tmp_path / "out"
    kept = [i for i, x in enumerate(more) if x.startswith("--mesh")]
    mine = tuple(x for i, x in enumerate(more) if i not in kept and i - 1 not in kept)
    arguments = flags(place, output, *more, **options)
    with Processes(count, arguments, tmp_path, devices=devices) as processes:
        assert processes.exit_codes() == [0] * count, processes.words()
    assert_same_run(output, alone(*mine, **options))


@pytest.mark.slow
def test_a_run_goes_on_in_other_numbers_of_processes(place, alone, tmp_path):
    """2 processes, then 4, then 1: each is stopped by a signal that one process alone gets."""
    output = tmp_path / "out"

    def logged(step):
        path = output / "metrics.jsonl"
        return path.exists() and f'"step": {step},' in path.read_text()

    # In the order of the stops: the log grows a little before the signal is sent.
    arguments = flags(place, output, steps=600)
    for count, step, told in ((2, 20, 1), (4, 250, 0)):
        with Processes(count, arguments, tmp_path / str(count)) as processes:
            processes.wait_for(lambda step=step: logged(step))
            processes.signal(told, signal.SIGTERM)
            assert processes.exit_codes() == [128 + signal.SIGTERM] * count, processes.words()
            assert "stopped by SIGTERM after step" in processes.words()[0]
        arguments = flags(place, output, "--resume", steps=600)
    assert not logged(600)
    assert cli.main([*arguments, "--training.devices", "1"]) == 0
    assert_same_run(output, alone(steps=600))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "code", "message"),
    [
        (("--training.steps", "5"), 2, "process 1 has other flags than process 0"),
    ],
)
def test_what_one_process_finds_ends_all(place, tmp_path, own, code, message):
    arguments = flags(place, tmp_path / "out")
    with Processes(2, arguments, tmp_path, {1: own}) as processes:
        assert processes.exit_codes(120) == [code, code], processes.words()
        assert all(message in words for words in processes.words())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_host_with_other_files_is_found(place, tmp_path, monkeypatch):
    """The same flags, but a file that is another one on one host, or is not there."""
    for number, source in enumerate(("train", "other")):
        folder = tmp_path / f"host_{number}"
        folder.mkdir()
        (folder / "rows.safetensors").write_bytes((place / f"{source}.safetensors").read_bytes())
    arguments = flags(place, tmp_path / "out")
    arguments[arguments.index("--data.prepared") + 1] = "rows.safetensors"
    for lost in (False, True):
        if lost:
            (tmp_path / "host_1" / "rows.safetensors").unlink()
        hosts = [tmp_path / f"host_{i}" for i in range(2)]
        with Processes(2, arguments, tmp_path / str(lost), folders=hosts) as processes:
            assert processes.exit_codes(120) == [2, 2], processes.words()
            wanted = "no file of prepared" if lost else "other training examples than process 0"
            assert all(wanted in words for words in processes.words()), processes.words()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_others_end_when_one_is_killed(place, tmp_path):
    output = tmp_path / "out"
    with Processes(
        3, flags(place, output, "--training.batch-size", "6", steps=100_000), tmp_path
    ) as processes:
        processes.wait_for(lambda: (output / "metrics.jsonl").exists())
        processes.wait_for(lambda: '"step": 20,' in (output / "metrics.jsonl").read_text())
        processes.signal(2, signal.SIGKILL)
        assert processes.exit_codes(120) == [1, 1, -signal.SIGKILL], processes.words()
        assert "another process has died or cannot be reached" in processes.words()[0]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_one_process_that_does_not_come(place, tmp_path, lost):
    arguments = flags(place, tmp_path / "out", "--distributed.connect-seconds", "5")
    with Processes(2, arguments, tmp_path) as processes:
        processes.signal(lost, signal.SIGKILL)
        assert processes.exit_codes(60)[1 - lost] == 2, processes.words()
        assert f"process {1 - lost} did not meet the others at" in processes.words()[1 - lost]
