"""Shared fixtures. Eight CPU devices are forced before jax starts, so that every test can shard."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
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
