"""Samples become figures: medians, spread, ratios, and whether the target was reached. Pure."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.scenarios import Scenario


@dataclass(frozen=True, slots=True)
class Figure:
    """A median, and the lowest and highest sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> "Figure":
        """The figure of at least one sample."""
        return cls(statistics.median(samples), min(samples), max(samples))


@dataclass(frozen=True, slots=True)
class Result:
    """One row. `ratio` None: the measure has none. `reached` None: there is nothing to reach."""

    scenario: Scenario
    relay: Figure
    ours: Figure
    ratio: Figure | None
    reached: bool | None
    rounds: int
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; figures in the scenario's unit."""
        return {
            "name": self.scenario.name,
            "path": self.scenario.path,
            "unit": self.scenario.unit,
            "rounds": self.rounds,
            "relay": asdict(self.relay),
            "ours": asdict(self.ours),
            "ratio": asdict(self.ratio) if self.ratio else None,
            "target": self.scenario.target,
            "reached": self.reached,
            "note": self.note,
        }


@dataclass(slots=True)
class Samples:
    """One list for each server; the n-th of both were taken one after the other."""

    relay: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    def add(self, pair: tuple[float, float]) -> None:
        """Take note of a round."""
        self.relay.append(pair[0])
        self.ours.append(pair[1])

    def result(self, scenario: Scenario, note: str = "", passed: bool | None = None) -> Result:
        """What these samples say.

        The ratio is the median of the ratios of each round: a neighbour who took the machine for a while slowed down
        both of a round. `passed` is the verdict of a measure that has no ratio.
        """
        ratio = None
        # nothing to divide by: wrong answers have no ratio, and neither has what is too small to be measured
        if scenario.measure != "waves" and min(self.relay) > 0 and min(self.ours) > 0:
            ratio = Figure.of([ours / relay for relay, ours in zip(self.relay, self.ours, strict=True)])
        reached = passed
        if scenario.target is not None:
            reached = ratio is not None and ratio.median <= scenario.target
        return Result(
            scenario, Figure.of(self.relay), Figure.of(self.ours), ratio, reached, rounds=len(self.ours), note=note
        )
