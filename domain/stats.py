"""What was run and what it cost, counted."""

from datetime import datetime
from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.usage import Usage

StatsBy = Literal["agent", "status", "day", "model", "metadata"]


class StatsRow(BaseModel):
    """Runs of one group. `successes` ended as hoped, `errors` otherwise; the rest is in progress.

    `cost` in US dollars of the runs whose cost is known; `unpriced_runs` and `unmeasured_runs` count those of which it
    is not known, or not all of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str | None
    executions: int
    successes: int
    errors: int
    running: int
    error_rate: float | None = Field(description="errors / (successes + errors); null: none has ended")
    mean_duration: float | None = Field(description="seconds, of the runs that have ended")
    usage: Usage
    cost: Decimal | None
    unmeasured_runs: int
    unpriced_runs: int


class Stats(BaseModel):
    """The total, and the same by group."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: datetime | None
    until: datetime | None
    by: StatsBy
    key: str | None = Field(description="the metadata key, when grouped by one")
    total: StatsRow
    groups: list[StatsRow]
