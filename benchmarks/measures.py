"""How each figure is taken: a measurement gives a pair of samples (relay, ours) each time it is asked for a round."""

import asyncio
import statistics
import time
from typing import Protocol

from benchmarks.bench import Bench, Target
from benchmarks.dialects import WrongAnswer
from benchmarks.scenarios import Scenario

Pair = tuple[Target, Target]  # the relay, ours

FLAT = 0.05  # share by which memory may still grow after the first wave
SETTLE = 0.05  # seconds for what a server still does after its last byte
WARM_UP = 20  # requests before the first sample: code paths, connections, caches
_OPEN_BEFORE = 20  # streams that are open when memory is read first: what the first ones fill is not the price of more


class Measurement(Protocol):
    """One scenario being measured. `note` and `passed` may change with every round; `passed` None: nothing to judge."""

    note: str
    passed: bool | None

    async def round(self) -> tuple[float, float]:
        """One sample of the relay, then one of ours.

        Raises:
            WrongAnswer: an answer is not what the provider said.
            ServerFailed: a server did not start, or broke off.
        """
        ...


class Cpu:
    """User and system time of a server's process for each request (ms) or each token (µs) of the provider's."""

    passed: bool | None = None
    note = ""

    def __init__(self, bench: Bench, pair: Pair, scenario: Scenario) -> None:
        self._bench = bench
        self._pair = pair
        self._scenario = scenario
        self._warm = False

    async def round(self) -> tuple[float, float]:
        relay, ours = self._pair
        scenario = self._scenario
        if not self._warm:
            for target in self._pair:
                await self._sample(target, max(WARM_UP, scenario.at_once))
            self._warm = True
        return await self._sample(relay, scenario.relay_requests), await self._sample(ours, scenario.requests)

    async def of_relay(self) -> float:
        """One sample of the relay alone."""
        if not self._warm:
            await self._sample(self._pair[0], max(WARM_UP, self._scenario.at_once))
            self._warm = True
        return await self._sample(self._pair[0], self._scenario.relay_requests)

    async def _sample(self, target: Target, requests: int) -> float:
        scenario, server = self._scenario, target.server
        dialect = target.dialect(scenario.dialect)
        before = server.cpu_seconds()
        replies = await self._bench.ask_many(
            target, dialect, scenario.model, requests, scenario.at_once, stagger=scenario.speech.spacing
        )
        await asyncio.sleep(SETTLE)
        used = server.cpu_seconds() - before
        for reply in replies:  # afterwards: reading takes processor time that the servers should have
            dialect.check(scenario.speech, reply.status, reply.body)
        if scenario.measure == "cpu_per_chunk":
            return used / (requests * scenario.speech.tokens) * 1e6
        return used / requests * 1e3


class Recording:
    """What being written down adds to a request: our server's CPU, less that of one whose store keeps nothing (ms)."""

    passed: bool | None = None
    note = ""

    def __init__(self, bench: Bench, pair: Pair, scenario: Scenario) -> None:
        self._bench = bench
        self._relay, self._ours = pair
        self._scenario = scenario
        self._without: Cpu | None = None
        self._with: Cpu | None = None

    async def round(self) -> tuple[float, float]:
        if self._with is None or self._without is None:
            bare = await self._bench.kept("unrecorded")
            self._with = Cpu(self._bench, (bare, self._ours), self._scenario)
            self._without = Cpu(self._bench, (self._relay, bare), self._scenario)
        relay, before = await self._without.round()
        after, ours = await self._with.round()  # in turns, so that a busy minute of the machine's is in both
        self.note = f"{ours:.2f} ms recorded, {(before + after) / 2:.2f} ms not, in the last round"
        return relay, max(ours - (before + after) / 2, 0.0)


class Unrecorded:
    """CPU of a request to our server when its store keeps nothing, beside the relay's (ms)."""

    passed: bool | None = None
    note = ""

    def __init__(self, bench: Bench, pair: Pair, scenario: Scenario) -> None:
        self._bench = bench
        self._relay = pair[0]
        self._scenario = scenario
        self._cpu: Cpu | None = None

    async def round(self) -> tuple[float, float]:
        if self._cpu is None:
            self._cpu = Cpu(self._bench, (self._relay, await self._bench.kept("unrecorded")), self._scenario)
        return await self._cpu.round()


class AddedLatency:
    """Milliseconds that a server adds to the median of the provider asked directly; all three asked in turns."""

    passed: bool | None = None
    note = ""

    def __init__(self, bench: Bench, pair: Pair, scenario: Scenario) -> None:
        self._bench = bench
        self._targets = (bench.provider, *pair)
        self._scenario = scenario

    async def round(self) -> tuple[float, float]:
        taken: list[list[float]] = [[], [], []]
        for _ in range(self._scenario.requests):
            for seconds, target in zip(taken, self._targets, strict=True):
                seconds.append(await self._once(target))
        direct, relay, ours = (statistics.median(seconds) * 1e3 for seconds in taken)
        return relay - direct, ours - direct

    async def _once(self, target: Target) -> float:
        scenario = self._scenario
        dialect = target.dialect(scenario.dialect)
        begun = time.perf_counter()
        if dialect.streamed:
            await self._bench.ask_until_first_word(target, dialect, scenario.model)
            return time.perf_counter() - begun
        reply = await self._bench.ask(target, dialect, scenario.model)
        seconds = time.perf_counter() - begun
        dialect.check(scenario.speech, reply.status, reply.body)
        return seconds


class MemoryPerStream:
    """Kilobytes that each further open stream adds to a server that was started for this round.

    A fresh one each time, because a process keeps what it once used: a second reading would show nothing.
    """

    passed: bool | None = None
    note = ""

    def __init__(self, bench: Bench, pair: Pair, scenario: Scenario) -> None:
        self._bench = bench
        self._scenario = scenario

    async def round(self) -> tuple[float, float]:
        async with self._bench.pair() as fresh:
            relay, ours = [await self._sample(target) for target in fresh]
        return relay, ours

    async def _sample(self, target: Target) -> float:
        bench, scenario, server = self._bench, self._scenario, target.server
        dialect = target.dialect(scenario.dialect)
        for _ in range(WARM_UP):
            await bench.ask_until_first_word(target, dialect, scenario.model)
        async with bench.held_open(target, dialect, scenario.model, _OPEN_BEFORE):
            before = server.rss_bytes()
            async with bench.held_open(target, dialect, scenario.model, scenario.requests):
                await asyncio.sleep(SETTLE)
                return (server.rss_bytes() - before) / scenario.requests / 1024


class Waves:
    """How many answers of a wave of streams are wrong, and whether memory stays flat from wave to wave."""

    def __init__(self, bench: Bench, pair: Pair, scenario: Scenario) -> None:
        self._bench = bench
        self._pair = pair
        self._scenario = scenario
        self._memory: tuple[list[float], list[float]] = ([], [])
        self._wrong = 0
        self._first_difference = ""
        self.note = ""
        self.passed: bool | None = None

    async def round(self) -> tuple[float, float]:
        relay, ours = [
            await self._wave(target, memory) for target, memory in zip(self._pair, self._memory, strict=True)
        ]
        self._wrong += ours
        megabytes = self._memory[1]
        # memory before the first wave is no measure: the first one fills the pools
        flat = megabytes[-1] <= megabytes[1] * (1 + FLAT)
        self.passed = self._wrong == 0 and flat
        after = [", ".join(f"{value:.0f}" for value in values) for values in self._memory]
        self.note = f"MB before and after each wave: relay {after[0]}; ours {after[1]}{self._first_difference}"
        return relay, ours

    async def _wave(self, target: Target, memory: list[float]) -> int:
        scenario = self._scenario
        dialect = target.dialect(scenario.dialect)
        if not memory:
            memory.append(target.server.rss_bytes() / 1e6)
        replies = await self._bench.ask_many(target, dialect, scenario.model, scenario.requests, scenario.at_once)
        await asyncio.sleep(SETTLE)
        memory.append(target.server.rss_bytes() / 1e6)
        wrong = 0
        for reply in replies:
            try:
                dialect.check(scenario.speech, reply.status, reply.body)
            except WrongAnswer as difference:
                wrong += 1
                self._first_difference = self._first_difference or f"; first: {difference}"
        return wrong
