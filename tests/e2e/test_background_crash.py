"""kill -9 at any moment: every run ends, none twice, no step that was kept is done again."""

import asyncio
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines import POSTGRES_URL
from tests.fakes.fleet import ENDED, installed

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

AT_ONCE = {"embedded": "25", "procrastinate": "8"}  # so that there is a queue, and time to kill where starting is slow
RUNS, STEPS, SECONDS = 100, 5, 0.25
GIVE_UP = 180.0  # seconds


ENGINES = ["embedded", *(["procrastinate"] if POSTGRES_URL else [])]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_hundred_runs_survive_any_number_of_kills(engine: str, tmp_path: Path) -> None:
    dice = random.Random(20261121)
    workers, few = 0 if engine == "embedded" else 3, AT_ONCE[engine]
    async with installed(engine, tmp_path, workers=workers, RUN_MAX_PER_USER=few) as house:
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
