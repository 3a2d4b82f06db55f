"""The launch scripts, run with stand-ins for gcloud, kubectl, srun and peft-jax on the path."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])

GCLOUD = """
echo "gcloud $*" >> "$CALLS"
case "$*" in
  *"queued-resources describe"*)
    state=$(head -n 1 "$STATES"); echo "$state"
    # The last state stays.
    if [ "$(wc -l < "$STATES")" -gt 1 ]; then sed -i 1d "$STATES"; fi ;;
  *"queued-resources delete"*) echo > "$STATES.deleted"; [ -z "${AFTER_DELETE:-}" ] ||
    printf '%b' "$AFTER_DELETE" > "$STATES" ;;
  *worker.sh*) exit "$(head -n 1 "$CODES"; sed -i 1d "$CODES")" ;;
esac
"""


def stand_in(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text("#!/usr/bin/env bash\n" + body)
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path):
    """A folder with stand-ins, and the environment in which scripts find them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    stand_in(programs, "gcloud", GCLOUD)
    stand_in(programs, "peft-jax", 'echo "peft-jax $*" >> "$CALLS"; eval "${DURING:-}"\n')
    stand_in(programs, "curl", "exit 22\n")
    stand_in(programs, "git", 'echo "git $*" >> "$CALLS"\n')
    calls = tmp_path / "calls"
    calls.touch()
    environment = {k: v for k, v in os.environ.items() if k not in ("PEFT_JAX", "TPU_WORKER_ID")}
    environment |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "STATES": str(tmp_path / "states"),
        "CODES": str(tmp_path / "codes"),
        "WORK": str(tmp_path / "work"),
        "POLL_SECONDS": "0",
        "COPY_SECONDS": "0.05",
    }
    return tmp_path, environment


def launch(place, script, *arguments, **more):
    """(exit code, calls that were made, what it printed)."""
    folder, environment = place
    made = subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env=environment | more,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return made.returncode, (folder / "calls").read_text().splitlines(), made.stdout + made.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_bash_says_how_it_is_used_and_may_be_run(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert any(f"launch/{script.name}" in line for line in lines[:12])
    assert script.suffix == ".sbatch" or os.access(script, os.X_OK)


# ------------------------------------------------------------------------------- a host of a run


def test_a_host_starts_a_run_and_then_resumes_it(place):
    folder, _ = place
    run = folder / "run"
    assert launch(place, "worker.sh", str(run), "--task", "a b")[:2] == (
        0,
        [f"peft-jax train --output {run} --task a b"],
    )
    run.mkdir()
    (run / "config.json").write_text("{}")
    assert launch(place, "worker.sh", str(run))[1][-1] == f"peft-jax train --output {run} --resume"
    assert launch(place, "worker.sh", str(run), DURING="exit 2")[0] == 2


def test_a_run_in_a_bucket_is_copied_by_its_first_host_and_its_exit_code_kept(place):
    output = place[0] / "work" / "rte"
    during = f"mkdir -p {output}; touch {output}/config.json; sleep 0.2; exit 3"
    code, calls, _ = launch(place, "worker.sh", "gs://b/runs/rte", "--task", "rte", DURING=during)
    assert code == 3
    down, run, *up = calls
    assert down.endswith(f"gs://b/runs/rte {output}")
    flags = f"--output {output} --training.checkpoint-folder gs://b/runs/rte/checkpoints"
    assert run == f"peft-jax train {flags} --task rte"
    assert len(up) >= 2  # while it ran, and at the end
    assert all(call.endswith(f"{output} gs://b/runs/rte") for call in up)
    (place[0] / "calls").write_text("")
    _, calls, _ = launch(place, "worker.sh", "gs://b/runs/rte", TPU_WORKER_ID="1")
    assert calls[1].endswith("/checkpoints --resume")
    assert len(calls) == 2  # the second host copies nothing up


def test_a_host_hands_the_signal_on_and_waits_for_what_is_saved(place):
    folder, environment = place
    during = 'trap "touch $WORK/saved; exit 143" TERM; touch $WORK/up; while :; do sleep 0.02; done'
    host = subprocess.Popen(
        ["bash", str(LAUNCH / "worker.sh"), "gs://b/runs/rte"],
        env=environment | {"DURING": during, "TPU_WORKER_ID": "1"},
    )
    until = time.monotonic() + 30
    while not (folder / "work" / "up").exists() and time.monotonic() < until:
        time.sleep(0.02)
    host.send_signal(signal.SIGTERM)
    assert host.wait(30) == 143
    assert (folder / "work" / "saved").exists()


# ------------------------------------------------------------------------------------- TPU slices

POD = ["--name", "rte", "--zone", "z", "--type", "v5litepod-16", "--folder", "gs://b/runs/rte"]


def pod(place, states, codes, *arguments, **more):
    (place[0] / "states").write_text("\n".join(states) + "\n")
    (place[0] / "codes").write_text("\n".join(map(str, codes)) + "\n")
    flags = [*arguments, "--", "--task", "rte", "--data.target", "{{ a b }}"]
    return launch(place, "tpu_pod.sh", *POD, *flags, **more)


def test_a_slice_is_asked_for_waited_for_used_and_given_back(place):
    states = ["", "", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    code, calls, printed = pod(place, states, [0], "--spot")
    assert (code, printed.splitlines()[-1]) == (0, "done: gs://b/runs/rte")
    (create,) = [call for call in calls if " create " in call]
    assert "--node-id rte --accelerator-type v5litepod-16" in create
    assert create.endswith("--runtime-version v2-alpha-tpuv5-lite --spot")
    assert any(call.startswith("git archive") for call in calls)
    (run,) = [call for call in calls if "worker.sh" in call]
    assert "--worker all" in run
    assert r"worker.sh 'gs://b/runs/rte' --task rte --data.target \{\{\ a\ b\ \}\}" in run
    assert "delete rte" in calls[-1]
    assert calls.index(create) < calls.index(run)


def test_a_slice_that_is_taken_away_is_asked_for_again(place):
    # Taken away while it ran: the run's command fails and the state is SUSPENDED.
    states = ["ACTIVE", "SUSPENDED", "SUSPENDED", "SUSPENDED"]
    again = r"\n\nPROVISIONING\nACTIVE\n"
    code, calls, printed = pod(place, states, [255, 0], AFTER_DELETE=again)
    assert code == 0
    assert "the slice was taken away (attempt 1 of 21)" in printed
    assert sum("worker.sh" in call for call in calls) == 2
    assert sum(" create " in call for call in calls) == 1


def test_a_run_that_fails_is_not_repeated_and_the_slice_is_given_back(place):
    code, calls, _ = pod(place, ["ACTIVE"], [2, 0])
    assert code == 1
    assert sum("worker.sh" in call for call in calls) == 1
    assert "delete rte" in calls[-1]
    code, calls, _ = pod(place, ["ACTIVE"], [0], "--keep")
    assert code == 0
    assert "worker.sh" in calls[-1]


def test_several_slices_run_the_same_command(place):
    code, calls, _ = pod(place, ["", "", "ACTIVE"], [0, 0], "--slices", "2")
    assert code == 0
    (create,) = [call for call in calls if " create " in call]
    assert "--node-count 2 --node-prefix rte" in create
    runs = [call for call in calls if "worker.sh" in call]
    assert sorted(call.split(" ssh ")[1].split()[0] for call in runs) == ["rte-0", "rte-1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--zone", "z"], "give --name"),
        ([*POD, "--taks", "rte"], "unknown flag --taks"),
        ([*POD, "--folder", "runs"], "is not in a bucket"),
        ([*POD, "--type", "v9-8"], "give --runtime too"),
    ],
)
def test_bad_flags_ask_for_no_slice(place, arguments, said):
    code, calls, printed = launch(place, "tpu_pod.sh", *arguments)
    assert (code, calls) == (2, [])
    assert said in printed


# ----------------------------------------------------------------------------------- GKE and SLURM

GKE = ["--name", "rte", "--image", "r/i", "--bucket", "b", "--accelerator", "tpu-v5p-slice"]


@pytest.mark.parametrize(
    ("topology", "hosts", "chips"), [("16x16", 64, 4), ("4x4x8", 32, 4), ("1x1", 1, 1)]
)
def test_the_manifest_has_a_pod_for_each_host_and_the_flags_as_they_were(
    place, topology, hosts, chips
):
    flags = ["--task", "rte", "--data.target", 'say "{{x}}" \\n # : \'']
    code, _, printed = launch(
        place, "gke.sh", *GKE, "--topology", topology, "--slices", "2", "--print", "--", *flags
    )
    assert code == 0
    assert "${" not in printed
    job = yaml.safe_load(printed)["spec"]["replicatedJobs"][0]
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == hosts
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    (container,) = pod["containers"]
    assert container["args"] == ["/data/runs/rte", *flags]
    assert container["resources"]["limits"]["google.com/tpu"] == chips
    mounts = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts["data"]["csi"]["volumeAttributes"]["bucketName"] == "b"


def test_a_manifest_is_applied_and_bad_flags_are_not(place):
    folder, _ = place
    stand_in(folder / "bin", "kubectl", 'echo "kubectl $*" >> "$CALLS"; cat > "$WORK"\n')
    assert launch(place, "gke.sh", *GKE, "--topology", "4x4")[1] == ["kubectl apply -f -"]
    assert yaml.safe_load((folder / "work").read_text())["kind"] == "JobSet"
    for flags, said in [(["--topology", "16"], "is not like 4x4"), ([], "give --topology")]:
        code, _, printed = launch(place, "gke.sh", *GKE, *flags)
        assert code == 2
        assert said in printed


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (143, True), (137, True)])
def test_a_job_is_queued_again_after_a_signal_and_not_after_bad_input(place, code, requeued):
    folder, _ = place
    stand_in(folder / "bin", "srun", 'echo "srun $*" >> "$CALLS"; exit "$CODE"\n')
    stand_in(folder / "bin", "scontrol", 'echo "scontrol $*" >> "$CALLS"\n')
    more = {"CODE": str(code), "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}
    ended, calls, _ = launch(place, "slurm.sbatch", "runs/rte", "--task", "rte", **more)
    assert ended == code
    worker = ROOT / "launch" / "worker.sh"
    assert calls[0] == f"srun --kill-on-bad-exit=1 {worker} runs/rte --task rte"
    assert ("scontrol requeue 7" in calls) == requeued


def test_the_container_holds_what_the_package_is_made_of():
    lines = (ROOT / "docker" / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} >= {
        name.partition("/")[0] for name in copied
    }
    (entry,) = [line for line in lines if line.startswith("ENTRYPOINT")]
    assert "launch/worker.sh" in entry
