"""Compiled programs are kept, bounded and repaired; what compiling took is told."""

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from peft_jax import compilation
from peft_jax.errors import InputError

# Compiles one program twice over two processes, and says which were read back.
PROGRAM = """
import sys, jax, jax.numpy as jnp
from peft_jax import compilation
folder = compilation.enable_cache(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
times = compilation.CompileTimes()
jax.jit(lambda x: jnp.tanh(x @ x), inline=False)(jnp.ones((8, 8)))
print(folder, [p.cached for p in times.programs if "lambda" in p.name])
"""


def run(where, home, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    kept |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home)} | environment
    made = subprocess.run(
        [sys.executable, "-c", PROGRAM, where], env=kept, capture_output=True, text=True, check=True
    )
    folder, cached = made.stdout.split(maxsplit=1)
    return folder, cached.strip()


@pytest.mark.slow  # four processes
def test_the_next_process_reads_a_program_back_and_a_torn_one_is_made_again(tmp_path):
    folder, cached = run("auto", tmp_path)
    assert folder.startswith(str(tmp_path / "peft_jax" / "compiled"))
    assert cached == "[False]"
    assert run("auto", tmp_path) == (folder, "[True]")
    (entry,) = compilation.Path(folder).glob("*lambda*-cache")
    os.truncate(entry, entry.stat().st_size // 2)
    assert run("auto", tmp_path) == (folder, "[False]")
    assert run("auto", tmp_path) == (folder, "[True]")
    assert run("off", tmp_path) == ("None", "[False]")
    own = str(tmp_path / "own")
    assert run("auto", tmp_path, JAX_COMPILATION_CACHE_DIR=own)[0] == own


def test_the_programs_used_longest_ago_go_first(tmp_path):
    now = time.time()
    for age, name in enumerate(["new", "middle", "old"]):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (now - 1000 * age, now - 1000 * age))
    (tmp_path / "notes").write_bytes(bytes(1000))
    assert compilation.prune(tmp_path, 300) == 0
    assert compilation.prune(tmp_path, 150) == 200
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new-cache", "notes"]


@pytest.mark.parametrize("torn", [0, 1, -1])
def test_an_unfinished_entry_is_dropped_and_a_whole_one_kept(tmp_path, torn):
    import zlib

    whole = zlib.compress(os.urandom(1000))
    (tmp_path / "whole-cache").write_bytes(whole)
    (tmp_path / "torn-cache").write_bytes(whole[:torn] if torn else b"")
    assert compilation.drop_unfinished(tmp_path) == ["torn-cache"]
    assert (tmp_path / "whole-cache").read_bytes() == whole
    assert compilation.drop_unfinished(tmp_path) == []


def test_a_folder_that_the_environment_chose_is_kept_and_repaired(tmp_path):
    (tmp_path / "torn-cache").write_bytes(b"")
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        assert compilation.enable_cache() == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert [path.name for path in tmp_path.iterdir()] == [".checked"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"compilation cache .*file/x: Not a directory"):
        compilation.enable_cache(str(tmp_path / "file" / "x"))


def test_compile_times_name_the_program_and_count_nested_tracing_once():
    inner = jax.jit(lambda x: jnp.sin(x) * 3)

    def outermost(x):
        time.sleep(0.05)  # while tracing
        return inner(x) + 1

    with compilation.CompileTimes() as times:
        started = time.perf_counter()
        jax.block_until_ready(jax.jit(outermost)(jnp.ones(3)))
        wall = time.perf_counter() - started
    jax.jit(lambda x: x - 41)(jnp.ones(3))  # after it was closed
    report = times.report()
    assert "jit(outermost)" in [p.name for p in times.programs]
    assert not any("lambda" in p.name for p in times.programs)
    assert 0.05 <= report["seconds"]["trace"] <= wall
    assert sum(report["seconds"].values()) <= wall
    assert f"compiled {len(times.programs)} program" in compilation.summary(report)
