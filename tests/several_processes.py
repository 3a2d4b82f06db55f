"""Real processes of one run, as a launcher starts them: CPU devices, and collectives over TCP."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def free_port() -> int:
    """A port that nobody listened at a moment ago."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


class Processes:
    """``peft-jax ARGUMENTS`` in several processes on this machine; their words go to files.

    Args:
      count: how many.
      arguments: of all of them.
      folder: for their output.
      own: more arguments of single processes.
      devices: that each process has.
      folders: in which each process is started; by default this one's.
      module: that is run, in place of peft-jax.
    """

    def __init__(
        self,
        count: int,
        arguments: Sequence[str],
        folder: Path,
        own: dict[int, Sequence[str]] | None = None,
        devices: int = 1,
        folders: Sequence[Path] | None = None,
        module: str = "peft_jax.cli",
    ):
        folder.mkdir(parents=True, exist_ok=True)
        # The tests' own flags, but for the number of devices.
        flags = re.sub(r"\S*device_count=\d+", "", os.environ["XLA_FLAGS"])
        environ = os.environ | {
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}"
        }
        address = f"localhost:{free_port()}"
        self._files = [(folder / f"process_{i}").open("w+") for i in range(count)]
        self._running = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", module, *arguments),
                    *("--distributed.coordinator", address, "--distributed.processes", str(count)),
                    *("--distributed.process", str(i), *(own or {}).get(i, ())),
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=None if folders is None else folders[i],
            )
            for i, file in enumerate(self._files)
        ]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        for file in self._files:
            file.close()

    def signal(self, process: int, number: int) -> None:
        self._running[process].send_signal(number)

    def wait_for(self, happened: Callable[[], bool], seconds: float = 600) -> None:
        """Until something happened; AssertionError where a process ends before."""
        until = time.monotonic() + seconds
        while not happened():
            assert all(process.poll() is None for process in self._running), self.words()
            assert time.monotonic() < until, self.words()
            time.sleep(0.05)

    def exit_codes(self, seconds: float = 600) -> list[int]:
        """When all have ended."""
        until = time.monotonic() + seconds
        return [process.wait(max(until - time.monotonic(), 0.1)) for process in self._running]

    def words(self) -> list[str]:
        """What each has printed, without the lines of the libraries underneath."""
        found = []
        for file in self._files:
            file.flush()
            file.seek(0)
            lines = (line for line in file if not re.match(r"\[Gloo\]|[IWE]\d{4} |WARNING", line))
            found.append("".join(lines).strip())
        return found
