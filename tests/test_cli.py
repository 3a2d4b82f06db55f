"""The command line: what is typed, what comes back, and exit code 2 for bad input."""

import json

import pytest

from peft_jax import cli
from peft_jax.config import presets
from tests.small_run import write_small_backbone
from tests.small_task import write_task


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_small_backbone(folder / "backbone")
    write_task(folder / "data" / "mine")
    return folder


def flags(place, *more):
    return [
        *("--task", "mine", "--backbone", str(place / "backbone")),
        *("--data.directory", str(place / "data" / "mine"), "--data.shots", "8"),
        *("--training.steps", "4", "--training.batch-size", "4", "--training.devices", "1"),
        *("--evaluation.batch-size", "8"),
        *more,
    ]


@pytest.fixture(scope="module")
def trained(place):
    output = place / "run"
    assert cli.main(["train", "--output", str(output), *flags(place)]) == 0
    return output


def test_overview_lists_commands_and_presets(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*cli.COMMANDS, *presets()))


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert f"peft-jax {command}" in capsys.readouterr().out


def test_every_preset_loads():
    from peft_jax.config import check, load_preset

    for name in presets():
        if name != "pretrain_tiny":
            check(load_preset(name))


def test_train_evaluate_predict(place, trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    capsys.readouterr()
    assert cli.main(["evaluate", "--adapter", str(trained), "--output", str(place / "again")]) == 0
    again = json.loads((place / "again" / "result.json").read_text())
    assert again["accuracy_per_template"] == result["evaluation"]["accuracy_per_template"]
    capsys.readouterr()
    text = ["--text", "There is snow Is it warm?"]
    code = cli.main(["predict", "--adapter", str(trained), *text, "--choices", "No", "Yes"])
    assert code == 0
    lines = capsys.readouterr().out.split("\n")
    assert {line.split()[-1] for line in lines if line} == {"No", "Yes"}
    scores = [float(line.split()[0]) for line in lines if line]
    assert scores == sorted(scores, reverse=True)
    assert cli.main(["predict", "--adapter", str(trained), *text, "--max-length", "5"]) == 0


def test_prepared_files_train_to_the_same_adapter_without_tensorflow(place, trained, monkeypatch):
    from safetensors.numpy import load_file

    common = ["--task", "mine", "--directory", str(place / "data" / "mine")]
    common += ["--backbone", str(place / "backbone")]
    train, test = str(place / "train.safetensors"), str(place / "test.safetensors")
    draw = ["--shots", "8", "--seed", "42"]
    assert cli.main(["prepare", *common, "--output", train, *draw]) == 0
    assert cli.main(["prepare", *common, "--output", test, "--split", "validation"]) == 0
    assert cli.main(["prepare", *common, "--output", test, "--split", "validation"]) == 2

    import peft_jax.tasks.prepare

    monkeypatch.setattr(peft_jax.tasks.prepare, "choice_examples", None)
    prepared = ["--data.prepared", train, "--data.prepared-evaluation", test]
    output = place / "prepared"
    assert cli.main(["train", "--output", str(output), *flags(place, *prepared)]) == 0
    ours, theirs = (load_file(f / "adapter.safetensors") for f in (output, trained))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_resume_needs_no_flags(trained, capsys):
    assert cli.main(["train", "--resume", "--output", str(trained)]) == 0
    assert "resumed after step 4" in capsys.readouterr().out


@pytest.mark.slow
def test_study_runs_once_and_reports(place, capsys):
    output = place / "study"
    arguments = ["study", "few_shot", "--output", str(output), "--tasks", "mine"]
    arguments += ["--seeds", "0", "1", "--demonstrations", "2", *flags(place)[2:]]
    assert cli.main(arguments) == 0
    table = (output / "table.md").read_text()
    assert all(name in table for name in ("zero-shot", "in-context, 2 examples", "T-Few"))
    row = next(line for line in table.splitlines() if line.startswith("| mine"))
    zero_shot, *others = row.strip("| ").split(" | ")[1:]
    assert "(" not in zero_shot  # one run: no range
    assert len(others) == 3
    assert all("(" in cell for cell in others)
    assert (output / "study.png").stat().st_size > 5_000
    results = (output / "results.jsonl").read_text()
    assert len(results.splitlines()) == 1 + 3 * 2
    assert cli.main(arguments) == 0
    assert (output / "results.jsonl").read_text() == results


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no command is named 'trian'"),
        (["train", "--config", "tfwe", "--output", "x"], "no preset is named 'tfwe'"),
        (["train", "--config", "nowhere.py", "--output", "x"], "no configuration file"),
        (["train", "--output", "x", "--resume", "--overwrite"], "exclude each other"),
        (["train", "--output", "x", "--backbone", "nowhere"], "no checkpoint folder at nowhere"),
        (["train", "--output", "x", "--training.steps", "0"], "training.steps is 0"),
        (["evaluate", "--adapter", "nowhere", "--backbone", "nowhere"], "nowhere"),
        (["predict", "--adapter", "nowhere", "--text", "a", "--choices", "b"], "two or more"),
        (["prepare", "--task", "rte", "--output", "x", "--shots", "4"], "without a few-shot seed"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "--output", "x", "--training.setps", "3"],
        ["train", "--output", "x", "--training.steps", "many"],
        ["train", "--output", "x", "--method", "ia4"],
    ],
)
def test_a_wrong_flag_or_type_stops_before_anything_runs(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert not list(tmp_path.iterdir())
