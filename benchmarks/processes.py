"""The servers under measurement: started, read (CPU and memory), and ended whatever happens."""

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

try:
    import resource
except ImportError:  # a platform without limits
    resource = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
_START_LIMIT = 30.0  # seconds until a server listens; a cold start takes about 3
_STOP_LIMIT = 3.0  # seconds until a server that was asked to end is ended
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR")  # no proxies, no keys, no settings of the operator's
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class ServerFailed(Exception):
    """A server did not start, or ended by itself."""


class Server:
    """A running server process. `cpu_seconds` and `rss_bytes` cover its threads and its children."""

    def __init__(self, name: str, url: str, process: psutil.Process, clock: Callable[[psutil.Process], float]) -> None:
        self.name = name
        self.url = url
        self._process = process
        self._clock = clock

    def cpu_seconds(self) -> float:
        """User and system time since it started."""
        ended = self._process.cpu_times()
        return sum(map(self._clock, self._family())) + ended.children_user + ended.children_system

    def rss_bytes(self) -> int:
        """Resident memory now."""
        return sum(int(process.memory_info().rss) for process in self._family())

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]


@asynccontextmanager
async def started(
    name: str,
    command: Callable[[int], Sequence[str]],
    environment: Mapping[str, str],
    core: Sequence[int] = (),
) -> AsyncIterator[Server]:
    """A server in an empty folder of its own, listening; ended with the context.

    Args:
        command: what to run, given the port.
        environment: on top of the little that every process needs; `{port}` and `{folder}` in values are filled in.
        core: processors it may use; empty: all.

    Raises:
        ServerFailed: it ended, or did not listen in time; the message holds the end of its output.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="routeur-bench-") as folder, tempfile.TemporaryFile() as output:
        filled = {key: value.format(port=port, folder=folder) for key, value in environment.items()}
        process = _spawn(command(port), folder, filled, output)
        try:
            if core:
                psutil.Process(process.pid).cpu_affinity(list(core))
            if not await _listening(port, process):
                said = _end_of(output)
                raise ServerFailed(f"{name} does not listen on port {port} (exit code {process.returncode}).\n{said}")
            yield Server(name, f"http://127.0.0.1:{port}", psutil.Process(process.pid), _clock())
        finally:
            _end(process)


def raise_file_limit() -> None:
    """As many open files as the system allows, here and in the servers: an open stream takes two of ours."""
    if resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def clock_name() -> str:
    """Which clock `cpu_seconds` reads, for the report."""
    return "nanoseconds" if _clock() is _fine_clock else "10 ms ticks"


def spare_cores() -> tuple[list[int], list[int]]:
    """Processors for the server that is measured, and for everything else; both empty when we cannot choose."""
    if not hasattr(psutil.Process, "cpu_affinity"):
        return [], []
    cores = psutil.Process().cpu_affinity() or []
    return (cores[-1:], cores[:-1]) if len(cores) > 1 else ([], [])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _spawn(
    command: Sequence[str], folder: str, environment: Mapping[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    kept = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


async def _listening(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_LIMIT
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        await asyncio.sleep(0.05)
    return False


def _end_of(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read()[-2_000:].decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait a little, then end the whole group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_LIMIT)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the group is named after its first process
    process.wait()


def _die_with_parent() -> None:
    """Between fork and exec: not even a killed runner leaves servers behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _clock() -> Callable[[psutil.Process], float]:
    return _fine_clock if sys.platform == "linux" else _coarse_clock


def _coarse_clock(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _fine_clock(process: psutil.Process) -> float:
    """The process's own CPU clock: user and system time of all its threads, also ended ones, in nanoseconds.

    The times of /proc/<pid>/stat are the same sum, but told in ticks of 10 ms: several hundred requests to the relay.
    """
    clock = ctypes.c_int()
    failure = _LIBC.clock_getcpuclockid(process.pid, ctypes.byref(clock))
    if failure:
        raise ServerFailed(f"process {process.pid} has no clock: {os.strerror(failure)}")
    return time.clock_gettime(clock.value)
