"""Shared fixtures. Eight CPU devices are forced before jax starts, so that every test can shard."""

import os
import tempfile
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # The tests compile hundreds of small programs and run each a few times: the time goes into
        # LLVM's optimisation, which changes none of their results' meaning.
        "--xla_backend_optimization_level=0",
        # The older emitter compiles small programs in two thirds of the time. XLA aborts on a flag
        # that it doesn't know, so only versions that were tried are given it.
        *(
            ["--xla_cpu_use_fusion_emitters=false"]
            if metadata.version("jaxlib").startswith("0.10.")
            else []
        ),
    ]
).strip()
# Programs that a test compiles again (a resumed run, a subprocess) are read back instead.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "peft_jax_tests_compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Forced host devices share one thread pool: with fewer threads than devices a collective that is
# queued behind another waits for itself, and XLA aborts the process after 40 s.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets and oracle files that stands beside the checkout.

    It is not part of the project (most licences forbid copying): PEFT_JAX_SHARED_DATA names
    another place; without it the tests that read it are skipped.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PEFT_JAX_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set PEFT_JAX_SHARED_DATA)")
    return folder
