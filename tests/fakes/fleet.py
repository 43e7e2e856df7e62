"""A whole installation in processes of its own: a server and workers on one database, and a client of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx

from tests.contracts.storage import new_storage
from tests.fakes.processes import AGENTS, PASSWORD, Running, start
from tests.fakes.servers import free_port

READY = r"startup complete|runs at once"
ENDED = {"completed", "failed", "cancelled", "timeout", "lost"}


@dataclass
class Fleet:
    """The processes of one installation, each started again when it was killed."""

    data: Path
    settings: dict[str, str]
    commands: dict[str, tuple[str, ...]]
    live: dict[str, Running] = field(default_factory=dict)
    kills: int = 0

    async def start(self, name: str, **more: str) -> None:
        """Start it, and wait until it is at work: a life must be long enough to get somewhere."""
        self.live[name] = start(self.data, *self.commands[name], **{**self.settings, **more})
        await asyncio.to_thread(self.live[name].wait_for, READY)

    def kill(self, name: str) -> None:
        self.live[name].kill()
        (self.data / f"{name}.{self.kills}.log").write_text(self.live[name].rest())
        self.kills += 1

    def stop(self) -> None:
        for name, one in self.live.items():
            one.process.kill()
            one.process.wait()
            (self.data / f"{name}.log").write_text(one.rest())


@dataclass(frozen=True)
class Installation:
    """A fleet and the client of its address; `mortal` are the names of those that may be killed."""

    fleet: Fleet
    client: httpx.AsyncClient
    mortal: tuple[str, ...]
    ledger: Path

    async def submit(self, agent: str, given: Any, **more: Any) -> str:
        """The id of a run that was accepted."""
        answer = await self.client.post(f"/api/agents/{agent}/run", json={"input": given, **more})
        assert answer.status_code == 202, answer.text
        run_id: str = answer.json()["run_id"]
        return run_id

    async def until(self, run_id: str, *states: str, within: float = 30) -> dict[str, Any]:
        """The run, when it has come to one of these states (any end, when none is named)."""
        wanted = set(states) or ENDED
        run: dict[str, Any] = {}
        with anyio.fail_after(within):
            while run.get("status") not in wanted:
                assert run.get("status") not in ENDED, run
                await asyncio.sleep(0.05)
                run = await self.look(run_id) or run
        return run

    async def look(self, run_id: str) -> dict[str, Any]:
        """The run; nothing when nobody answers."""
        with suppress(httpx.HTTPError):
            answer = await self.client.get(f"/api/runs/{run_id}")
            if answer.status_code == 200:
                run: dict[str, Any] = answer.json()
                return run
        return {}


@asynccontextmanager
async def installed(
    queue: str, data: Path, *, workers: int = 0, engine: str = "", **more: str
) -> AsyncIterator[Installation]:
    """A server, which runs nothing itself when there are workers, on an empty database of that engine."""
    port, ledger = free_port(), data / "ledger"
    settings = {"ADMIN_PASSWORD": PASSWORD, "PLUGINS_DIR": str(AGENTS), "TEST_LEDGER": str(ledger), "RUN_QUEUE": queue}
    names = tuple(f"worker {number}" for number in range(workers))
    commands: dict[str, tuple[str, ...]] = {
        "web": ("serve", "--port", str(port)),
        **dict.fromkeys(names, ("worker", "--concurrency", "50")),
    }
    engine = engine or ("postgresql" if queue == "procrastinate" else "sqlite")
    if "DATABASE_URL" in more:
        engine = "sqlite"  # nothing to be made
    async with new_storage(engine, data) as chosen:
        if chosen.storage.database_url is not None:
            settings["DATABASE_URL"] = chosen.storage.database_url.get_secret_value()
        fleet = Fleet(data, settings | more, commands)
        with ExitStack() as stack:
            stack.callback(fleet.stop)
            await fleet.start("web", **({"RUN_CONCURRENCY": "0"} if workers else {}))
            await asyncio.gather(*(fleet.start(name) for name in names))
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                form = {"grant_type": "password", "username": "admin", "password": PASSWORD}
                token = (await client.post("/auth/token", data=form)).json()["access_token"]
                client.headers["authorization"] = f"Bearer {token}"
                yield Installation(fleet, client, names or ("web",), ledger)
