"""Servers that a test may stop: a PostgreSQL and a Redis of its own, on free ports, gone with the test."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.engines import POSTGRES_PROGRAMS, REDIS_SERVER


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OwnPostgres:
    """A cluster in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"postgresql://routeur@127.0.0.1:{self._port}/postgres"

    @classmethod
    @asynccontextmanager
    async def started(cls, tmp_path: Path) -> AsyncIterator["OwnPostgres"]:
        """A new one, until the context ends."""
        # Not inside the test's own folder: the server's user may not look into that.
        folder = Path("/tmp") / f"routeur-postgres-{os.getpid()}-{tmp_path.name}"
        folder.mkdir(mode=0o755)
        made = cls(folder)
        try:
            if os.geteuid() == 0:
                shutil.chown(folder, "postgres")
            await made._run("initdb", "-D", str(folder / "data"), "-U", "routeur", "--auth=trust")
            await made.start()
            yield made
        finally:
            await made.stop()
            shutil.rmtree(folder, ignore_errors=True)

    async def new_database(self, name: str) -> str:
        """The address of one more."""
        await self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", "routeur", name)
        return self.url.removesuffix("postgres") + name

    async def start(self) -> None:
        """Listen."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        await self._ctl("-o", options, "-l", str(self._folder / "log"), "-w", "start")

    async def stop(self) -> None:
        """End every connection, and go."""
        await self._ctl("-m", "fast", "-w", "stop")

    async def restart(self, away: float) -> None:
        """Be away for that many seconds."""
        await self.stop()
        await asyncio.sleep(away)
        await self.start()

    async def _ctl(self, *arguments: str) -> None:
        await self._run("pg_ctl", "-D", str(self._folder / "data"), *arguments)

    async def _run(self, program: str, *arguments: str) -> None:
        assert POSTGRES_PROGRAMS is not None, "PostgreSQL's programs are not installed"
        command = [str(POSTGRES_PROGRAMS / program), *arguments]
        if os.geteuid() == 0:  # the server will not be run by root
            command = ["runuser", "-u", "postgres", "--", *command]
        await asyncio.to_thread(
            subprocess.run, command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._folder
        )


class OwnRedis:
    """A server that keeps nothing."""

    def __init__(self) -> None:
        self._port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    @classmethod
    @asynccontextmanager
    async def started(cls, _tmp_path: Path) -> AsyncIterator["OwnRedis"]:
        """A new one, until the context ends."""
        made = cls()
        await made.start()
        try:
            yield made
        finally:
            await made.stop()

    async def start(self) -> None:
        """Listen."""
        assert REDIS_SERVER is not None
        command = [REDIS_SERVER, "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    async def stop(self) -> None:
        """Be gone at once."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None
