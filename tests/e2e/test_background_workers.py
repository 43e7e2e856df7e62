"""Several processes on one database: stopped, drained, cut off from their servers. Runs go on, and are done once."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import anyio
import pytest

from tests.engines import POSTGRES_URL, REDIS_SERVER
from tests.fakes.fleet import Installation, installed
from tests.fakes.readers import Event, ends, follow, read_to_the_end
from tests.fakes.servers import OwnPostgres, OwnRedis

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

needs_postgres = pytest.mark.skipif(POSTGRES_URL is None, reason="TEST_POSTGRES_URL names no server")
needs_redis = pytest.mark.skipif(REDIS_SERVER is None, reason="there is no redis-server")
QUEUES = ["embedded", "procrastinate"]


def slow(steps: int, seconds: float = 0.3) -> dict[str, float]:
    return {"steps": steps, "seconds": seconds}


@dataclass(frozen=True)
class LongRun:
    """A run of a minute, going on while the other tests of this file are at work."""

    house: Installation
    run_id: str
    begun: float


@pytest.fixture(scope="module", autouse=True)
async def long_runs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[LongRun]]:
    """One on each queue, beside a worker that has nothing to do."""
    async with AsyncExitStack() as stack:

        async def begin(queue: str) -> LongRun:
            place = installed(queue, tmp_path_factory.mktemp(queue), workers=2)
            house = await stack.enter_async_context(place)
            return LongRun(
                house, await house.submit("ledger", slow(2, 30), metadata={"name": "long"}), time.monotonic()
            )

        yield [await begin(queue) for queue in (QUEUES if POSTGRES_URL else QUEUES[:1])]


@needs_postgres
async def test_the_run_of_a_silent_worker_goes_on_elsewhere_within_15_seconds(tmp_path: Path) -> None:
    """A paused machine: its processes are there, and say nothing. Nobody can see that they are dead."""

    async def one(queue: str) -> None:
        async with installed(queue, folder(tmp_path, queue), workers=2, engine="postgresql") as house:
            run_id = await house.submit("ledger", slow(25), metadata={"name": "one"})
            reading = asyncio.create_task(read_to_the_end(house.client, run_id))
            first = (await lines(house, 4))[-1].split()[3]
            os.kill(int(first), signal.SIGSTOP)
            stopped = time.monotonic()
            try:
                await lines(house, len(await lines(house, 1)) + 1)
                elsewhere = time.monotonic() - stopped
            finally:
                os.kill(int(first), signal.SIGCONT)
            run = await house.until(run_id, "completed", within=40)
            events = await reading
            assert elsewhere < 15
            assert run["attempt"] == 2
            assert whole(events)
            assert sum(event["kind"] == "run.resumed" for event in events) == 1
            told = [event["data"]["step"] for event in events if event["kind"] == "state.updated"]
            assert told == sorted(told), "what was told by a worker that was taken for dead counts no more"
            print(f"{queue}: went on elsewhere after {elsewhere:.1f} s")

    await asyncio.gather(*map(one, QUEUES))


async def test_a_drained_process_hands_its_runs_back_at_the_end_of_a_step(tmp_path: Path) -> None:
    async def one(queue: str) -> None:
        async with installed(queue, folder(tmp_path, queue), workers=0 if queue == "embedded" else 1) as house:
            ids = [await house.submit("ledger", slow(12), metadata={"name": f"run-{number}"}) for number in range(20)]
            reading = asyncio.create_task(read_to_the_end(house.client, ids[0]))
            await lines(house, 60)
            name = house.mortal[0]
            asked = time.monotonic()
            house.fleet.live[name].process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(house.fleet.live[name].process.wait, 15)
            took = time.monotonic() - asked
            await house.fleet.start(name)
            runs = [await house.until(run_id, "completed") for run_id in ids]
            assert took < 10, "within its grace"
            assert [run["attempt"] for run in runs] == [2] * 20
            written = [line.split() for line in await lines(house, 1)]
            steps = sorted((line[0], int(line[1])) for line in written if line[2] == "begun")
            assert steps == sorted((f"run-{number}", step) for number in range(20) for step in range(1, 13)), (
                "every step was done once"
            )
            events = await reading
            assert whole(events)
            assert [event["reason"] for event in events if event["kind"] == "run.resumed"] == ["drain"]

    await asyncio.gather(*map(one, QUEUES if POSTGRES_URL else QUEUES[:1]))


async def test_a_reader_is_told_to_come_back_when_the_server_stops(tmp_path: Path) -> None:
    async with installed("embedded", tmp_path) as house:
        run_id = await house.submit("ledger", slow(30), metadata={"name": "x"})
        told: list[bytes] = []
        async with house.client.stream("GET", f"/api/runs/{run_id}/events") as answer:
            chunks = answer.aiter_bytes()
            while b"state.updated" not in b"".join(told):
                told.append(await anext(chunks))
            house.fleet.live["web"].process.send_signal(signal.SIGTERM)
            told += [chunk async for chunk in chunks]
        stream = b"".join(told)
        assert stream.startswith(b"retry: "), "how soon to come back"
        assert b"event: run.started" in stream
        assert b"event: run.cancelled" not in stream
        assert b"event: run.failed" not in stream, "it has not ended: another process goes on"


@needs_postgres
async def test_runs_end_and_readers_recover_when_postgresql_is_restarted(tmp_path: Path) -> None:
    async with OwnPostgres.started(tmp_path) as postgres:
        halfway, restarted = asyncio.Barrier(3), asyncio.Event()

        async def one(queue: str) -> None:
            url = await postgres.new_database(queue)
            async with installed(queue, folder(tmp_path, queue), workers=1, DATABASE_URL=url) as house:
                ids = [await house.submit("ledger", slow(20), metadata={"name": f"run-{n}"}) for n in range(10)]
                reading = [asyncio.create_task(read_to_the_end(house.client, run_id)) for run_id in ids]
                await lines(house, 60)
                await halfway.wait()
                await restarted.wait()
                runs = [await house.until(run_id, within=60) for run_id in ids]
                assert [run["status"] for run in runs] == ["completed"] * 10
                with anyio.fail_after(20):
                    stories = await asyncio.gather(*reading)
                assert all(map(whole, stories))
                again = await house.submit("ledger", slow(1), metadata={"name": "after"})
                await house.until(again, "completed")

        async def restart() -> None:
            await halfway.wait()
            await postgres.restart(away=3)
            restarted.set()

        await asyncio.gather(restart(), *map(one, QUEUES))


@needs_postgres
@needs_redis
async def test_runs_end_and_readers_recover_when_redis_is_taken_away(tmp_path: Path) -> None:
    async with OwnRedis.started(tmp_path) as redis:
        more = {"REDIS_URL": redis.url}
        async with installed("embedded", tmp_path, workers=1, engine="postgresql", **more) as house:
            run_id = await house.submit("ledger", slow(30), metadata={"name": "x"})
            reading = asyncio.create_task(read_to_the_end(house.client, run_id))
            await lines(house, 10)
            await redis.stop()
            await lines(house, 30)
            await redis.start()
            await house.until(run_id, "completed")
            with anyio.fail_after(10):
                assert whole(await reading)


@needs_postgres
@pytest.mark.parametrize("news", ["postgresql", pytest.param("redis", marks=needs_redis)])
async def test_a_reader_of_another_process_hears_of_an_event_at_once(news: str, tmp_path: Path) -> None:
    async with OwnRedis.started(tmp_path) if news == "redis" else nullcontext() as redis:
        more = {} if redis is None else {"REDIS_URL": redis.url}
        async with installed("embedded", tmp_path, workers=1, engine="postgresql", **more) as house:
            run_id = await house.submit("ledger", slow(12), metadata={"name": "x"})
            late: list[float] = []
            async for event in follow(house.client, run_id):
                if event["kind"] == "state.updated":
                    late.append(time.time() - moment(event))
            late.sort()
            assert late[len(late) // 2] < 0.5, "far less than anybody who only looks now and then"


@pytest.mark.parametrize("queue", [QUEUES[0], pytest.param(QUEUES[1], marks=needs_postgres)])
async def test_a_run_is_cancelled_within_a_second_wherever_it_is(queue: str, tmp_path: Path) -> None:
    async with installed(queue, tmp_path, workers=1) as house:
        run_id = await house.submit("ledger", slow(1, 60), metadata={"name": "x"})
        await lines(house, 1)
        asked = time.monotonic()
        assert (await house.client.post(f"/api/runs/{run_id}/cancel")).json()["status"] in ("cancelling", "cancelled")
        await house.until(run_id, "cancelled")
        assert time.monotonic() - asked < 1
        assert [line.split()[2] for line in await lines(house, 1)] == ["begun"]


async def test_a_healthy_run_of_a_minute_is_started_once(long_runs: list[LongRun]) -> None:
    for one in long_runs:  # begun before the first test of this file
        run = await one.house.until(one.run_id, "completed", within=90)
        assert time.monotonic() - one.begun >= 60
        assert run["duration"] >= 60
        assert run["attempt"] == 1
        written = [line.split()[1:3] for line in await lines(one.house, 4)]
        assert written == [["1", "begun"], ["1", "done"], ["2", "begun"], ["2", "done"]]


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


async def lines(house: Installation, count: int) -> list[str]:
    """What the agents have written, as soon as it is so many lines."""
    with anyio.fail_after(30):
        while True:
            written = house.ledger.read_text().splitlines() if house.ledger.exists() else []
            if len(written) >= count:
                return written
            await asyncio.sleep(0.05)


def whole(events: list[Event]) -> bool:
    """Each event once and in order, to the end."""
    return [event["seq"] for event in events] == list(range(1, len(events) + 1)) and ends(events[-1])


def moment(event: Event) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()
