"""What is measured: data. A new path is one more line here (and a `Dialect`, when it is a new route).

Targets are ratios to the relay in the same run. Where a scenario has none, the figure is shown and not judged.
"""

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.dialects import AGENT, AGENT_STREAM, DIRECT, DIRECT_STREAM, Dialect
from benchmarks.speech import Speech, speech_of

Measure = Literal[
    "cpu_per_request", "recording", "unrecorded", "cpu_per_chunk", "added_latency", "memory_per_stream", "waves",
    "submit", "run", "runs_memory",
]  # fmt: skip

UNITS: dict[Measure, str] = {
    "cpu_per_request": "ms",
    "recording": "ms",
    "unrecorded": "ms",
    "cpu_per_chunk": "µs",
    "added_latency": "ms",
    "memory_per_stream": "KB",
    "waves": "wrong",
    "submit": "ms",
    "run": "ms",
    "runs_memory": "MB",
}
_QUICK_REQUESTS = 4  # a quick run asks this many times less
_QUICK_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table.

    Attributes:
        name: for `--only`.
        path: what a reader sees.
        model: names what the provider says (`speech.py`).
        dialect: our route; the relay is asked for the same on its own.
        requests: in one sample of ours. `relay_requests`: in one of the relay, more where it needs more to be measured.
        at_once: requests, or open streams, at the same moment.
        rounds: samples of each server; one of the relay, one of ours, and again.
        target: the highest ratio we want; None: not judged.
    """

    name: str
    path: str
    measure: Measure
    model: str
    dialect: Dialect
    requests: int
    relay_requests: int
    at_once: int
    rounds: int = 7
    target: float | None = None

    @property
    def speech(self) -> Speech:
        """What each answer must be."""
        speech = speech_of(self.model)
        if speech is None:
            raise ValueError(f"{self.name}: the provider has no model '{self.model}'")
        return speech

    @property
    def unit(self) -> str:
        """Of the absolute figures."""
        return UNITS[self.measure]

    def quick(self) -> "Scenario":
        """The same with fewer rounds of fewer requests: a look, not a figure to quote."""
        return replace(
            self,
            rounds=_QUICK_ROUNDS,
            requests=max(self.at_once, self.requests // _QUICK_REQUESTS),
            relay_requests=max(self.at_once, self.relay_requests // _QUICK_REQUESTS),
        )

    def with_rounds(self, rounds: int) -> "Scenario":
        """The same with another number of samples."""
        return replace(self, rounds=rounds)


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        name="direct",
        path="model: CPU of a request of 20 tokens, recorded",
        measure="cpu_per_request",
        model="bench-20",
        dialect=DIRECT,
        requests=1_600,
        relay_requests=3_200,
        at_once=8,
        target=4.5,
    ),
    Scenario(
        name="direct-unrecorded",
        path="model: CPU of a request of 20 tokens, its record left out",
        measure="unrecorded",
        model="bench-20",
        dialect=DIRECT,
        requests=1_600,
        relay_requests=3_200,
        at_once=8,
        target=2.5,
    ),
    Scenario(
        name="direct-burst",
        path="model: CPU of a chunk, burst in few writes",
        measure="cpu_per_chunk",
        model="bench-200-burst",
        dialect=DIRECT_STREAM,
        requests=320,
        relay_requests=640,
        at_once=8,
        target=2.5,
    ),
    Scenario(
        name="direct-frames",
        path="model: CPU of a chunk, burst, a write each",
        measure="cpu_per_chunk",
        model="bench-200-frames",
        dialect=DIRECT_STREAM,
        requests=160,
        relay_requests=160,
        at_once=8,
        target=2.5,
    ),
    Scenario(
        name="direct-spaced",
        path="model: CPU of a chunk, one every 20 ms",
        measure="cpu_per_chunk",
        model="bench-50-20ms",
        dialect=DIRECT_STREAM,
        requests=40,
        relay_requests=40,
        at_once=20,
        target=1.6,
    ),
    Scenario(
        name="direct-latency",
        path="model: time added to a request",
        measure="added_latency",
        model="bench-20",
        dialect=DIRECT,
        requests=60,
        relay_requests=60,
        at_once=1,
    ),
    Scenario(
        name="direct-memory",
        path="model: memory of an open stream",
        measure="memory_per_stream",
        model="bench-2-60000ms",
        dialect=DIRECT_STREAM,
        requests=1_000,
        relay_requests=1_000,
        at_once=1_000,
        rounds=2,
    ),
    Scenario(
        name="request",
        path="agent: CPU of a request of 20 tokens",
        measure="cpu_per_request",
        model="bench-20",
        dialect=AGENT,
        requests=800,
        relay_requests=3_200,
        at_once=8,
        target=10,
    ),
    Scenario(
        name="recording",
        path="agent: CPU that recording adds to a request",
        measure="recording",
        model="bench-20",
        dialect=AGENT,
        requests=800,
        relay_requests=800,
        at_once=8,
        rounds=7,
        target=2,
    ),
    Scenario(
        name="submit",
        path="background: CPU of a submission",
        measure="submit",
        model="bench-20",
        dialect=AGENT,
        requests=600,
        relay_requests=2_400,
        at_once=8,
        target=15,
    ),
    Scenario(
        name="run",
        path="background: CPU of a whole run of 20 tokens",
        measure="run",
        model="bench-20",
        dialect=AGENT,
        requests=300,
        relay_requests=1_200,
        at_once=8,
        rounds=5,
    ),
    Scenario(
        name="runs-memory",
        path="background: memory of 200 runs of 40 tokens at once",
        measure="runs_memory",
        model="bench-40-50ms",
        dialect=AGENT_STREAM,
        requests=200,
        relay_requests=200,
        at_once=200,
        rounds=2,
    ),
    Scenario(
        name="burst",
        path="agent: CPU of a chunk, burst in few writes",
        measure="cpu_per_chunk",
        model="bench-200-burst",
        dialect=AGENT_STREAM,
        requests=160,
        relay_requests=640,
        at_once=8,
        target=28,
    ),
    Scenario(
        name="burst-frames",
        path="agent: CPU of a chunk, burst, a write each",
        measure="cpu_per_chunk",
        model="bench-200-frames",
        dialect=AGENT_STREAM,
        requests=160,
        relay_requests=160,
        at_once=8,
        target=28,
    ),
    Scenario(
        name="spaced",
        path="agent: CPU of a chunk, one every 20 ms",
        measure="cpu_per_chunk",
        model="bench-50-20ms",
        dialect=AGENT_STREAM,
        requests=40,
        relay_requests=40,
        at_once=20,
        target=3,
    ),
    Scenario(
        name="latency",
        path="agent: time added to a request",
        measure="added_latency",
        model="bench-20",
        dialect=AGENT,
        requests=60,
        relay_requests=60,
        at_once=1,
    ),
    Scenario(
        name="first-token",
        path="agent: time added to the first token",
        measure="added_latency",
        model="bench-20",
        dialect=AGENT_STREAM,
        requests=60,
        relay_requests=60,
        at_once=1,
    ),
    Scenario(
        name="memory",
        path="agent: memory of an open stream",
        measure="memory_per_stream",
        model="bench-2-60000ms",
        dialect=AGENT_STREAM,
        requests=100,
        relay_requests=100,
        at_once=100,
        rounds=3,
    ),
    Scenario(
        name="waves",
        path="agent: 100 streams of 200 chunks at once",
        measure="waves",
        model="bench-200-frames",
        dialect=AGENT_STREAM,
        requests=100,
        relay_requests=100,
        at_once=100,
        rounds=5,
    ),
)
