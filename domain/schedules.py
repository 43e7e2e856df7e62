"""Schedules: background runs that begin by the clock."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from domain.agents import AGENT_ID_PATTERN
from domain.background import AgentRunRequest

CronText = Annotated[str, Field(min_length=9, max_length=100, pattern=r"^[A-Za-z0-9*/,\-?# LW]+$")]
ZoneName = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_+\-/]+$")]


class NewSchedule(BaseModel):
    """Start a run of `agent` at every moment of `cron` (five fields: minute hour day month weekday) in `timezone`.

    A moment that was missed (the server was down) is made up for once, however many there were.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"agent": "simple", "cron": "0 7 * * 1-5", "run": {"input": "Good morning"}}]},
    )

    agent: Annotated[str, Field(pattern=AGENT_ID_PATTERN)]
    cron: CronText
    timezone: ZoneName = "UTC"
    name: Annotated[str, Field(max_length=100)] = ""
    run: AgentRunRequest
    enabled: bool = True


class ScheduleChange(BaseModel):
    """What is to change; what is not named stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cron: CronText | None = None
    timezone: ZoneName | None = None
    name: Annotated[str, Field(max_length=100)] | None = None
    run: AgentRunRequest | None = None
    enabled: bool | None = None


class Schedule(BaseModel):
    """A stored schedule. `allowed_models` is the restriction of the key that made it; empty: none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    owner_id: str
    agent: str
    name: str = ""
    cron: str
    timezone: str
    request: dict[str, Any]
    allowed_models: list[str] = Field(default_factory=list)
    enabled: bool = True
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_run_id: str | None = None
    last_error: str | None = None
    created_at: datetime
    updated_at: datetime


class ScheduleInfo(BaseModel):
    """A schedule, as its owner sees it. `last_error`: why the last moment came to nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedule_id: str
    agent: str
    name: str
    cron: str
    timezone: str
    run: AgentRunRequest
    enabled: bool
    next_at: datetime | None
    last_at: datetime | None
    last_run_id: str | None
    last_error: str | None
    created_at: datetime

    @classmethod
    def of(cls, schedule: Schedule) -> "ScheduleInfo":
        """The view of a stored schedule."""
        same = schedule.model_dump(include=set(cls.model_fields) - {"schedule_id", "run"})
        return cls(schedule_id=schedule.id, run=AgentRunRequest.model_validate(schedule.request), **same)


class ScheduleList(BaseModel):
    """The caller's schedules, the oldest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedules: list[ScheduleInfo]
