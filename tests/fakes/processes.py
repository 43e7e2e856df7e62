"""The product in processes of its own: servers, workers, commands; started, read, stopped, killed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

ROUTEUR = Path(sys.executable).with_name("routeur")
ROOT = Path(__file__).parents[2]
AGENTS = Path(__file__).parent / "agents"
PASSWORD = "correct horse battery"


class Running:
    """A process whose lines are read as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._queue: Queue[str | None] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self._queue.put(None)

    def wait_for(self, pattern: str, within: float = 30) -> re.Match[str]:
        """The first line that fits."""
        until = time.monotonic() + within
        while True:
            line = self._queue.get(timeout=max(0.01, until - time.monotonic()))
            assert line is not None, "the process ended:\n" + "".join(self.lines)
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found

    def rest(self) -> str:
        """What it has said since."""
        while not self._queue.empty():
            if (line := self._queue.get()) is not None:
                self.lines.append(line)
        return "".join(self.lines)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def environment(data: Path, **more: str) -> dict[str, str]:
    """That of a newcomer: nothing of ours, except that the code beside these tests is what runs."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "DATA_DIR": str(data),
        "DISCOVER_LOCAL": "false",
        "COLUMNS": "120",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def start(data: Path, *arguments: str, **more: str) -> Running:
    """A process of that command; whoever starts it ends it."""
    process = subprocess.Popen(
        [ROUTEUR, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=data,
        env=environment(data, **more),
    )
    return Running(process)


@contextmanager
def running(data: Path, *arguments: str, **more: str) -> Iterator[Running]:
    """A process of that command until the context ends."""
    started = start(data, *arguments, **more)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


@contextmanager
def serving(data: Path, **more: str) -> Iterator[Running]:
    """A server on a free port."""
    with running(data, "serve", "--port", "0", **more) as started:
        yield started


def routeur(data: Path, *arguments: str, typed: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end."""
    return subprocess.run(
        [ROUTEUR, *arguments],
        capture_output=True,
        text=True,
        input=typed,
        cwd=data,
        env=environment(data, **more),
        check=False,
    )


def address_of(server: Running) -> str:
    """Where it says that it listens."""
    return server.wait_for(r"address\s+(http://\S+)")[1]
