"""How background runs are measured: submitted, done, and many at once."""

import asyncio
import time
from abc import ABC, abstractmethod

import orjson

from benchmarks.bench import Bench, Target
from benchmarks.dialects import SUBMIT, WrongAnswer
from benchmarks.measures import SETTLE, WARM_UP, Cpu, Pair
from benchmarks.scenarios import Scenario

_LOOK_EVERY = 0.2  # seconds between looks at whether all have ended: cheap beside what they cost
_LIMIT = 60.0  # seconds for all of a sample
MEGABYTES_FOR_200 = 80.0


class _BesideRelay(ABC):
    """What one run costs our server, beside what one request costs the relay."""

    passed: bool | None = None
    note = ""

    def __init__(self, bench: Bench, pair: Pair, scenario: Scenario) -> None:
        self._bench = bench
        self._relay, self._ours = pair
        self._scenario = scenario
        self._reference: Cpu | None = None

    async def round(self) -> tuple[float, float]:
        if self._reference is None:
            self._reference = Cpu(self._bench, (self._relay, self._relay), self._scenario)
            await self._sample(WARM_UP)
        return await self._reference.of_relay(), await self._sample(self._scenario.requests)

    async def _sample(self, requests: int) -> float:
        target = await self._target()
        before = target.server.cpu_seconds()
        await self._work(target, requests)
        await asyncio.sleep(SETTLE)
        return (target.server.cpu_seconds() - before) / requests * 1e3

    async def _target(self) -> Target:
        return self._ours

    @abstractmethod
    async def _work(self, target: Target, requests: int) -> None:
        """Have so many runs done."""


class Submit(_BesideRelay):
    """CPU (ms) of a server that runs nothing itself, for each run that it has written down durably and acknowledged."""

    async def _target(self) -> Target:
        return await self._bench.kept("door")

    async def _work(self, target: Target, requests: int) -> None:
        await submit(self._bench, target, self._scenario, requests)


class WholeRun(_BesideRelay):
    """CPU (ms) of a server for each run: submitted, run on a durable checkpoint, recorded, ended."""

    async def _work(self, target: Target, requests: int) -> None:
        last = await submit(self._bench, target, self._scenario, requests)
        await all_ended(self._bench, target, self._scenario, last)


class RunsMemory:
    """Megabytes over idle, at the most, while so many runs go on at once; the relay's for as many open streams."""

    def __init__(self, bench: Bench, pair: Pair, scenario: Scenario) -> None:
        self._bench = bench
        self._scenario = scenario
        self.note = ""
        self.passed: bool | None = None

    async def round(self) -> tuple[float, float]:
        async with self._bench.pair() as fresh:
            relay, ours = fresh
            ask = self._bench.ask_many
            scenario = self._scenario
            before = relay.server.rss_bytes()
            streams = ask(relay, relay.dialect(scenario.dialect), scenario.model, scenario.requests, scenario.at_once)
            reference = await self._most(relay, before, asyncio.create_task(streams))
            await submit(self._bench, ours, scenario, 1)  # what the first run imports is not the price of 200
            await asyncio.sleep(1)
            before = ours.server.rss_bytes()
            mine = await self._most(ours, before, asyncio.create_task(self._runs(ours)))
        self.passed = (self.passed is not False) and mine < MEGABYTES_FOR_200
        self.note = f"at most {MEGABYTES_FOR_200:.0f} MB wanted"
        return reference, mine

    async def _runs(self, target: Target) -> None:
        last = await submit(self._bench, target, self._scenario, self._scenario.requests)
        await all_ended(self._bench, target, self._scenario, last)

    async def _most(self, target: Target, before: int, work: "asyncio.Task[object]") -> float:
        most = before
        while not work.done():
            await asyncio.wait([work], timeout=0.02)
            most = max(most, target.server.rss_bytes())
        await work
        return (most - before) / 1e6


async def submit(bench: Bench, target: Target, scenario: Scenario, count: int) -> list[str]:
    """Submit so many runs; their ids."""
    replies = await bench.ask_many(target, SUBMIT, scenario.model, count, min(scenario.at_once, count))
    for reply in replies:
        if reply.status != 202:
            raise WrongAnswer(f"{SUBMIT.path} answered {reply.status}: {reply.body[:500]!r}")
    return [orjson.loads(reply.body)["run_id"] for reply in replies]


async def all_ended(bench: Bench, target: Target, scenario: Scenario, ids: list[str]) -> None:
    """Wait for them, and look at some: a figure for runs that failed is no figure."""
    until = time.monotonic() + _LIMIT
    while True:
        status = orjson.loads((await bench.get(target, "/api/agents/simple/status")).body)
        if not status["queued"] and not status["running"]:
            break
        if time.monotonic() > until:
            raise WrongAnswer(f"{status['queued']} runs are in the queue and {status['running']} going on")
        await asyncio.sleep(_LOOK_EVERY)
    for run_id in ids[:3]:
        run = orjson.loads((await bench.get(target, f"/api/runs/{run_id}")).body)
        if run["status"] != "completed" or run["output"] != scenario.speech.text:
            raise WrongAnswer(f"run {run_id} is {run['status']}: {run['error']}")
