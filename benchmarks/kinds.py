"""Which class takes which figure."""

from collections.abc import Callable

from benchmarks.background import RunsMemory, Submit, WholeRun
from benchmarks.bench import Bench
from benchmarks.measures import AddedLatency, Cpu, Measurement, MemoryPerStream, Pair, Recording, Unrecorded, Waves
from benchmarks.scenarios import Measure, Scenario

_KINDS: dict[Measure, Callable[[Bench, Pair, Scenario], Measurement]] = {
    "cpu_per_request": Cpu,
    "recording": Recording,
    "unrecorded": Unrecorded,
    "cpu_per_chunk": Cpu,
    "added_latency": AddedLatency,
    "memory_per_stream": MemoryPerStream,
    "waves": Waves,
    "submit": Submit,
    "run": WholeRun,
    "runs_memory": RunsMemory,
}


def measurement(bench: Bench, pair: Pair, scenario: Scenario) -> Measurement:
    """The measurement of a scenario on two running servers."""
    return _KINDS[scenario.measure](bench, pair, scenario)
