"""Importing the package stays light, whatever public name is touched."""

import subprocess
import sys

import peft_jax as pj

HEAVY = ("tensorflow", "seqio", "flax", "orbax", "torch", "transformers", "matplotlib", "rich")


def test_nothing_heavy_is_imported():
    code = (
        "import sys, peft_jax\n"
        "for name in peft_jax.__all__: getattr(peft_jax, name)\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_tasks_and_configs_are_part_of_the_package():
    code = "import peft_jax.tasks, peft_jax.configs.tfew as t; print(t.config().task)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().startswith("embedded_")


def test_every_public_name_exists_once():
    assert len(set(pj.__all__)) == len(pj.__all__)
    assert all(hasattr(pj, name) for name in pj.__all__)
