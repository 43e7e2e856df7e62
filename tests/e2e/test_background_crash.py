"""kill -9 at any moment: every run ends, none twice, no step that was kept is done again."""

import asyncio
import random
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contracts.storage import new_storage
from tests.engines import POSTGRES_URL
from tests.fakes.processes import AGENTS, PASSWORD, Running, start

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

RUNS, STEPS, SECONDS = 100, 6, 0.3
GIVE_UP = 180.0  # seconds
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
        self.live[name] = start(self.data, *self.commands[name], **self.settings, **more)
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def installed(engine: str, data: Path, workers: int = 3, **more: str) -> AsyncIterator[Installation]:
    """`embedded`: one process on SQLite. `procrastinate`: a server that runs nothing, and workers, on PostgreSQL."""
    port, ledger = free_port(), data / "ledger"
    settings = {"ADMIN_PASSWORD": PASSWORD, "PLUGINS_DIR": str(AGENTS), "TEST_LEDGER": str(ledger), **more}
    commands: dict[str, tuple[str, ...]] = {"web": ("serve", "--port", str(port))}
    async with new_storage("sqlite" if engine == "embedded" else "postgresql", data) as chosen:
        mortal = ("web",)
        if chosen.storage.database_url is not None:
            settings["DATABASE_URL"] = chosen.storage.database_url.get_secret_value()
        if engine == "procrastinate":
            settings |= {"RUN_QUEUE": "procrastinate", "RUN_MAX_PER_USER": "30"}
            mortal = tuple(f"worker {number}" for number in range(workers))
            commands |= dict.fromkeys(mortal, ("worker", "--concurrency", "50"))
        fleet = Fleet(data, settings, commands)
        with ExitStack() as stack:
            stack.callback(fleet.stop)
            if engine == "procrastinate":  # the door itself runs nothing
                await fleet.start("web", RUN_CONCURRENCY="0")
            await asyncio.gather(*(fleet.start(name) for name in mortal))
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                form = {"grant_type": "password", "username": "admin", "password": PASSWORD}
                token = (await client.post("/auth/token", data=form)).json()["access_token"]
                client.headers["authorization"] = f"Bearer {token}"
                yield Installation(fleet, client, mortal, ledger)


ENGINES = ["embedded", *(["procrastinate"] if POSTGRES_URL else [])]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_hundred_runs_survive_any_number_of_kills(engine: str, tmp_path: Path) -> None:
    dice = random.Random(20261121)
    async with installed(engine, tmp_path) as house:
        submitting = [asyncio.create_task(submit(house.client, number)) for number in range(RUNS)]
        ended: dict[str, dict[str, Any]] = {}
        until = time.monotonic() + GIVE_UP
        while len(ended) < RUNS:
            assert time.monotonic() < until, f"{len(ended)} of {RUNS} ended after {house.fleet.kills} kills"
            victim = dice.choice(house.mortal)
            await asyncio.sleep(dice.uniform(0.2, 2.0))
            house.fleet.kill(victim)
            await house.fleet.start(victim)
            ended = await ends(house.client)
        ids = await asyncio.gather(*submitting)
        assert len(set(ids)) == RUNS
        assert set(ended) == set(ids), "each was submitted once, whatever became of the answers"
        states = [run["status"] for run in ended.values()]
        assert states.count("completed") == RUNS, [run for run in ended.values() if run["status"] != "completed"]
        assert house.fleet.kills >= 4
        for run in ended.values():
            assert run["output"] == f"{run['metadata']['name']} did {STEPS} steps"
        again = check_ledger(house.ledger)
        crashes = sum(run["attempt"] - 1 for run in ended.values())
        assert again <= crashes, "only the step that a kill interrupted is done again"
        some = ids[0]
        detail = (await house.client.get(f"/api/runs/{some}")).json()
        assert [event["seq"] for event in detail["events"]] == list(range(1, len(detail["events"]) + 1))
        assert sum(event["kind"] in ("run.finished", "run.failed") for event in detail["events"]) == 1
        print(f"{engine}: {house.fleet.kills} kills, {crashes} runs gone on with, {again} steps begun again")


async def submit(client: httpx.AsyncClient, number: int) -> str:
    """Until it is taken, with one key: a client that was told nothing asks again."""
    body = {"input": {"steps": STEPS, "seconds": SECONDS}, "metadata": {"name": f"run-{number}"}}
    while True:
        try:
            answer = await client.post(
                "/api/agents/ledger/run", json=body, headers={"idempotency-key": f"submit-{number}"}
            )
        except httpx.HTTPError:
            await asyncio.sleep(0.1)
            continue
        if answer.status_code == 202:
            run_id: str = answer.json()["run_id"]
            return run_id
        assert answer.status_code in (409, 503), answer.text  # the first one is still being answered, or we stop
        await asyncio.sleep(0.1)


async def ends(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """Every run that has ended."""
    try:
        answer = await client.get("/api/agents/ledger/runs?limit=200")
    except httpx.HTTPError:
        return {}
    return {run["run_id"]: run for run in answer.json()["runs"] if run["status"] in ENDED}


def check_ledger(ledger: Path) -> int:
    """No step comes after a later one, and every one was done; how many were begun more than once."""
    begun: dict[str, list[int]] = defaultdict(list)
    done: dict[str, set[int]] = defaultdict(set)
    for line in ledger.read_text().splitlines():
        name, step, what, _ = line.split()
        if what == "begun":
            begun[name].append(int(step))
        else:
            done[name].add(int(step))
    for name, steps in begun.items():
        assert steps == sorted(steps), f"{name} went back behind its checkpoint: {steps}"
        assert done[name] == set(range(1, STEPS + 1))
    return sum(len(steps) - len(set(steps)) for steps in begun.values())
