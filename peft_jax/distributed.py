"""Several processes as one run: how they find each other, what they agree on, how they stop.

jax's own runtime connects them (``jax.distributed``), and its coordination service, which process 0
hosts, carries the few words below; arrays never go this way. Every process calls the same functions
in the same order::

    connect(config)  # before anything else of jax
    with stopping_together():  # an error in one process ends all of them
        with agreed():  # bad input that one process finds is raised in all
            examples = read(...)
        check_same("examples", digest)  # what must not differ, does not
        if is_main():
            ...  # logs, files and pictures are process 0's
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import importlib.util
import itertools
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax

from peft_jax._version import __version__
from peft_jax.errors import InputError

_WAIT_MS = 24 * 3600 * 1000  # a process that dies is noticed by its heartbeat, long before
_LOOK_SECONDS = 1.0  # between two looks for a process that failed
_LISTEN_SECONDS = 3.0  # for the cause of an error that came out of a collective
_LEAVE_SECONDS = 15.0  # that process 0, which hosts the service, waits for the others to hear of it
_FAILED, _LEFT = "peft_jax/failed", "peft_jax/left"
# What collectives and the service say when somebody is gone.
_LOST = r"Gloo .* failed|NCCL|UNAVAILABLE|Connection (closed|reset)|heartbeat|DEADLINE_EXCEEDED"
_numbers = itertools.count()
_stopping = threading.Event()


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find each other: given, or asked of the cluster."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where the others find it; by default as the cluster says."""
    processes: int | None = None
    """How many there are; by default as the cluster says."""
    process: int | None = None
    """Which one this is, from 0; by default as the cluster says."""
    cluster: Literal["auto", "none", "slurm", "ompi", "mpi4py", "k8s", "gketpu", "gcetpu"] = "auto"
    """Who is asked: auto finds SLURM, Open MPI, GKE and TPU VMs; none: this process is alone."""
    local_devices: tuple[int, ...] = ()
    """Devices of this host that this process uses; by default all, or one for each process where
    SLURM or Open MPI start several on a host."""
    heartbeat_seconds: int = 100
    """A process that is silent for so long is taken for dead, and the others stop."""
    connect_seconds: int = 300
    """How long processes wait for each other at the start."""


# --------------------------------------------------------------------------------------------
# Finding each other
# --------------------------------------------------------------------------------------------
def connect(config: DistributedConfig | None = None) -> None:
    """Connects this process to the others of its run; does nothing where it is alone.

    Before anything else of jax: afterwards ``jax.devices()`` are those of all processes. A second
    call does nothing.

    Where the others do not come in time this process ends, with one line and exit code 2.

    Raises:
      InputError: flags that cannot be meant, or a cluster that says too little.
    """
    config = config or DistributedConfig()
    if _client() is not None:
        return
    given = _given(config)
    method: str | None = None if config.cluster == "auto" else config.cluster
    if method is None and not any(v is not None for v in given.values()):
        method = _detect()
        if method is None:
            return
    if method == "none":
        if any(v is not None for v in given.values()):
            raise InputError("distributed.cluster none, but a coordinator or processes are given")
        return
    if given["num_processes"] == 1 and given["coordinator_address"] is None:
        return
    _initialize(config, given, method)
    check_same("versions of jax and peft_jax", [jax.__version__, __version__])


def _given(config: DistributedConfig) -> dict[str, Any]:
    """The flags, and of jax's own variable the address, as ``jax.distributed`` names them."""
    address = config.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise InputError(f"distributed.coordinator {address!r}: give HOST:PORT of process 0")
    for name, least in (("processes", 1), ("process", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"distributed.{name} is {value}; it must be at least {least}")
    if config.processes is not None and (config.process or 0) >= config.processes:
        raise InputError(
            f"distributed.process is {config.process}, and of {config.processes} processes the last"
            f" is {config.processes - 1}"
        )
    return {
        "coordinator_address": address,
        "num_processes": config.processes,
        "process_id": config.process,
    }


def _detect() -> str | None:
    """The cluster that started this process with others, in jax's words; None: it is alone."""
    environ = os.environ
    if int(environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environ:
        # In a shell of `salloc` or `sbatch` there is no step: nobody else was started.
        return "slurm" if "SLURM_STEP_NODELIST" in environ else None
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "ompi"
    platforms = getattr(jax.config, "jax_platforms", None)
    if platforms not in (None, "", "tpu", "tpu,cpu"):
        return None
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
        return None
    if importlib.util.find_spec("libtpu") is None or "TPU_SKIP_MDS_QUERY" in environ:
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return "gketpu"
    return None if hosts else "gcetpu"


def _initialize(config: DistributedConfig, given: dict[str, Any], method: str | None) -> None:
    given = dict(given)
    if method == "ompi" or "OMPI_COMM_WORLD_RANK" in os.environ:
        # Open MPI 5 does not say any more where its launcher is, but still who we are.
        for name, variable in (("num_processes", "SIZE"), ("process_id", "RANK")):
            if given[name] is None and f"OMPI_COMM_WORLD_{variable}" in os.environ:
                given[name] = int(os.environ[f"OMPI_COMM_WORLD_{variable}"])
    complete = all(value is not None for value in given.values())
    if method == "ompi" and not complete and "OMPI_MCA_orte_hnp_uri" not in os.environ:
        raise InputError(
            f"Open MPI started {given['num_processes']} processes and does not say where the first "
            "is: give --distributed.coordinator HOST:PORT"
        )
    chosen = config.local_devices or (() if _one_process_a_host() else None)
    # Where the others don't come, jax aborts with pages of its own words: here is one line before.
    late = threading.Timer(config.connect_seconds, _give_up, [config, given])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **given,
            local_device_ids=None if chosen is None else list(chosen),
            # Of a cluster that was named jax takes every word; what is complete needs none.
            cluster_detection_method="deactivate" if complete else method,
            initialization_timeout=config.connect_seconds + 10,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
        )
    except ValueError as error:
        if method == "gcetpu" and config.cluster == "auto":
            return  # a TPU VM whose metadata name no others, such as Colab's
        told = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        raise InputError(
            f"the processes of this run cannot find each other ({error}); "
            f"{f'only {told} is known' if told else 'nothing is known of them'}: give "
            "--distributed.coordinator HOST:PORT, --distributed.processes and --distributed.process"
        ) from None
    finally:
        late.cancel()


def _give_up(config: DistributedConfig, given: dict[str, Any]) -> None:
    who = "this process" if given["process_id"] is None else f"process {given['process_id']}"
    _tell(
        f"error: {who} did not meet the others at "
        f"{given['coordinator_address'] or _state().coordinator_address or 'the coordinator'} "
        f"within {config.connect_seconds} s (distributed.connect_seconds)"
    )
    os._exit(2)


def _one_process_a_host() -> bool:
    """Whether SLURM or Open MPI started one process on each host, to use all of its devices.

    jax would give it the first device alone.
    """
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", os.environ.get("SLURM_TASKS_PER_NODE", ""))
    each = re.findall(r"(?:^|,)(\d+)", tasks)
    if each:
        return set(each) == {"1"}
    return os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _state() -> Any:
    # jax has no public name for the client that it gives its own libraries (orbax reads it here).
    from jax._src.distributed import global_state

    return global_state


def _client() -> Any:
    return _state().client


def process() -> int:
    """Which process this is, from 0; asking starts no device."""
    return _state().process_id


def processes() -> int:
    """How many there are; asking starts no device."""
    return _state().num_processes if _client() is not None else 1


def is_main() -> bool:
    """Whether this is process 0, which alone writes logs and files."""
    return process() == 0


# --------------------------------------------------------------------------------------------
# Agreeing
# --------------------------------------------------------------------------------------------
def gather(value: Any) -> list[Any]:
    """Every process's value (of JSON), in all of them, in the order of the processes."""
    client, count = _client(), processes()
    if count == 1:
        return [value]
    place = f"peft_jax/words/{next(_numbers)}"
    client.key_value_set(f"{place}/{process()}", json.dumps(value))
    if is_main():
        values = [
            json.loads(client.blocking_key_value_get(f"{place}/{p}", _WAIT_MS))
            for p in range(count)
        ]
        client.key_value_set(f"{place}/all", json.dumps(values))
    return json.loads(client.blocking_key_value_get(f"{place}/all", _WAIT_MS))


def share(value: Any) -> Any:
    """Process 0's value (of JSON), in all processes."""
    return gather(value if is_main() else None)[0]


def wait() -> None:
    """Until every process is here."""
    gather(None)


@contextlib.contextmanager
def agreed(*, ends: bool = True) -> Iterator[None]:
    """An InputError inside, in any process, is raised in all of them when all have come out.

    Args:
      ends: whether inside :func:`stopping_together` the process that finds it ends all at once; if
        not, nothing inside may wait for other processes.
    """
    problem: InputError | None = None
    try:
        yield
    except InputError as error:
        if ends and _stopping.is_set():
            raise
        problem = error
    problems = gather(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    for number, text in enumerate(problems):
        if text is not None:
            raise InputError(f"process {number}: {text}")


def check_same(what: str, value: Any) -> None:
    """Raises InputError, in all processes, unless they have the same value (of JSON).

    Args:
      what: in words, for the message: "training examples".
    """
    values = gather(value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise InputError(f"process {number} has other {what} than process 0")


def check_shared_folder(folder: Path, seconds: float = 30.0) -> None:
    """Raises InputError unless a folder that process 0 has made is there for this process too.

    Args:
      seconds: how long a network's file system may take to show it.
    """
    until = time.monotonic() + seconds
    while not folder.is_dir():
        if time.monotonic() > until:
            raise InputError(
                f"{folder} is not there: several processes need a folder that all of them see (a "
                "network's file system), or training.checkpoint_folder in a bucket"
            )
        time.sleep(0.2)


# --------------------------------------------------------------------------------------------
# Stopping
# --------------------------------------------------------------------------------------------
@contextlib.contextmanager
def stopping_together(passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """While inside, an error in one process ends all of them, with one exit code.

    A process that waits for others in a collective cannot be woken by an exception: a thread looks
    for what another one said of its end, prints it, and ends the process. That one process is
    killed, and says nothing, is noticed by jax: at once by collectives over TCP, elsewhere after
    ``heartbeat_seconds``.

    Bad input ends with exit code 2 and its message, any other error with 1 and its traceback. A
    process that is alone gets the exception, as if this were not here.

    Args:
      passing: errors that all processes raise together, and that are passed on.
    """
    if processes() == 1:
        yield
        return
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(over,), daemon=True)
    watcher.start()
    _stopping.set()
    try:
        yield
    except passing:
        raise
    except InputError as error:
        _tell(f"error: {error}")
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except Exception as error:
        _follow(_failure(_LISTEN_SECONDS))  # an error of a collective may be the echo of another's
        message = _first_line(error)
        if re.search(_LOST, message):
            message = f"another process has died or cannot be reached ({message})"
            _tell(f"error: {message}; --resume goes on from the last checkpoint")
        else:
            traceback.print_exc()
        fail(message, 1)
    finally:
        _stopping.clear()
        over.set()
        watcher.join()


def fail(message: str, code: int) -> NoReturn:
    """Ends all processes with an exit code, this one too.

    Args:
      message: what the others print; this process has printed its own.
    """
    failure = {"process": process(), "message": message, "code": code}
    with contextlib.suppress(Exception):  # another one was first, or process 0 is gone
        _client().key_value_set(_FAILED, json.dumps(failure))
    _leave(code)


def _watch(over: threading.Event) -> None:
    while not over.wait(_LOOK_SECONDS):
        _follow(_failure(0))


def _failure(seconds: float) -> dict[str, Any] | None:
    """What a process said that failed, if one says so within some seconds."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):  # nothing was said, or process 0 is gone
            return json.loads(_client().key_value_try_get(_FAILED))
        if time.monotonic() >= until:
            return None
        time.sleep(0.1)


def _follow(failure: dict[str, Any] | None) -> None:
    """Ends this process as another one has ended."""
    if failure is not None and failure["process"] != process():
        _tell(f"error: process {failure['process']}: {failure['message']}")
        _leave(failure["code"])


def _leave(code: int) -> NoReturn:
    """Ends this process without jax's own farewell, which waits for those who cannot come."""
    with contextlib.suppress(Exception):
        client = _client()
        client.key_value_set(f"{_LEFT}/{process()}", "")
        until = time.monotonic() + _LEAVE_SECONDS
        while is_main() and time.monotonic() < until:
            if len(client.key_value_dir_get(_LEFT)) >= processes():
                break
            time.sleep(0.1)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
