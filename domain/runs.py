"""Runs: the joint of everything. A completion is a run that somebody waits for; a stream one that somebody reads."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.enums import FinishReason, RunStatus, SessionKind
from domain.usage import Usage, from_pico

#: States that may still change.
ACTIVE = frozenset({RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING, RunStatus.CANCELLING})
#: States in which a run has its session for itself: at most one run of a session is in one of them.
HOLDING = ACTIVE - {RunStatus.QUEUED}
ENDED = frozenset(RunStatus) - ACTIVE
BAD = ENDED - {RunStatus.COMPLETED}


#: How far a run has come: its state, and the `seq` of the last event that is written down.
Progress = tuple[RunStatus, int]


class _Record(BaseModel):
    """A stored row; what is written is what comes back."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Counted(_Record):
    """Usage and cost as columns. All None: nobody told us (unmeasured); `cost_pico` None: no price is known."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    estimated: bool = False
    cost_pico: int | None = None

    @property
    def usage(self) -> Usage | None:
        """The counts; None when unmeasured."""
        if self.input_tokens is None or self.output_tokens is None or self.total_tokens is None:
            return None
        return Usage(
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            total_tokens=self.total_tokens,
            cached_tokens=self.cached_tokens,
            reasoning_tokens=self.reasoning_tokens,
            audio_tokens=self.audio_tokens,
            estimated=self.estimated,
        )

    @property
    def cost(self) -> Decimal | None:
        """US dollars; None when unknown."""
        return from_pico(self.cost_pico)


def counted_columns(usage: Usage | None, cost_pico: int | None) -> dict[str, Any]:
    """The columns of `Counted`."""
    if usage is None:
        return {**dict.fromkeys(_COUNTS), "estimated": False, "cost_pico": cost_pico}
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "audio_tokens": usage.audio_tokens,
        "estimated": usage.estimated,
        "cost_pico": cost_pico,
    }


_COUNTS = ("input_tokens", "output_tokens", "total_tokens", "cached_tokens", "reasoning_tokens", "audio_tokens")


class Run(Counted):
    """One run as stored. `draft` is what had arrived when it was last looked at, of an answer that is not finished.

    `lease_until`: the process `worker` promised to be alive until then; a run in progress whose lease is over is dead.
    `attempt` grows each time a worker takes it and is the fencing token: who holds an older one writes nothing.
    `crashes` counts workers that died with it since its checkpoint (`mark`) last moved. `spent` is seconds of running.
    """

    id: str
    owner_id: str
    session_id: str | None = None
    parent_run_id: str | None = None
    kind: SessionKind = SessionKind.AGENT
    agent: str
    model: str | None = None
    status: RunStatus
    input: Any = None
    output: Any = None
    finish_reason: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    calls: int = 0
    unmeasured_calls: int = 0
    unpriced_calls: int = 0
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    updated_at: datetime
    lease_until: datetime | None = None
    worker: str | None = None
    draft: str | None = None
    background: bool = False
    attempt: int = 0
    priority: int = 0
    available_at: datetime | None = None
    time_limit: float | None = None
    spent: float = 0.0
    crashes: int = 0
    retries: int = 0
    may_resume: bool = False
    first_index: int | None = None
    synced: int = 0
    last_seq: int = 0
    request: dict[str, Any] | None = None
    mark: str | None = None
    has_thread: bool = False
    webhook: str | None = None
    retry_of: str | None = None
    dead: bool = False


class ModelCall(Counted):
    """What one model call cost. It outlives its session: what was spent stays spent."""

    id: int | None = None
    owner_id: str
    run_id: str | None
    session_id: str | None
    agent: str
    model: str
    created_at: datetime


# -- what the recorder is handed: plain, because two of these are made for every request --


@dataclass(slots=True)
class NewMessage:
    """A message to append. `data` is complete JSON text in the words of `format`; `simple` is what a reader sees."""

    format: str
    data: str
    simple: list["SimplePart"]
    created_at: datetime


@dataclass(slots=True)
class SimplePart:
    """One line of the simplified view."""

    role: str
    content: str
    kind: str = "text"
    name: str | None = None
    model: str | None = None
    partial: bool = False


@dataclass(slots=True)
class RunStart:
    """A run that begins, with what it was asked. `new_session` makes its session too; else it must exist. `request` is
    what else its door wants to know of it later."""

    id: str
    owner_id: str
    session_id: str
    new_session: bool
    kind: SessionKind
    agent: str
    model: str
    input: str
    messages: list[NewMessage]
    metadata: dict[str, Any]
    created_at: datetime
    lease_until: datetime
    worker: str
    title: str = ""
    request: dict[str, Any] | None = None


@dataclass(slots=True)
class RunBegun:
    """What the store says to a run that begins: its messages start at `first_index`; `synced` are in the checkpoint."""

    session_id: str
    first_index: int
    synced: int = 0
    kind: SessionKind = SessionKind.AGENT


@dataclass(slots=True)
class CallCost:
    """One model call of a run that ends."""

    model: str
    usage: Usage | None
    cost_pico: int | None


@dataclass(slots=True)
class RunEnd:
    """How a run ended, and everything that it brought. `synced`: the checkpoint holds the session up to its end."""

    id: str
    owner_id: str
    session_id: str | None
    agent: str
    status: RunStatus
    model: str
    output: str | None
    finish_reason: str | None
    error_code: str | None
    error_message: str | None
    messages: list[NewMessage]
    calls: list[CallCost]
    events: str
    first_seq: int
    last_seq: int
    completed_at: datetime
    synced: bool = False
    usage: Usage | None = None
    cost_pico: int | None = None
    unmeasured: int = 0
    unpriced: int = 0
    #: Of a background run: its fencing token. `written` of its `calls` stand in the record already.
    attempt: int = 0
    written: int = 0


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs. `metadata` values are compared as text (see `metadata_text`). `dead`: only dead letters."""

    owner_id: str | None = None
    agent: str | None = None
    kind: SessionKind | None = None
    session_id: str | None = None
    statuses: frozenset[RunStatus] = frozenset()
    since: datetime | None = None
    until: datetime | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a list that is ordered newest first."""

    at: datetime
    id: str


# -- how they are shown --


class RunError(BaseModel):
    """Why a run did not end well."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    message: str


class RunInfo(BaseModel):
    """One run, as its owner sees it. `cost` is in US dollars; null: a price or a count is not known.

    `calls` counts model calls; those whose provider did not say what they cost are in `unmeasured_calls`, those whose
    model has no price in the catalogue in `unpriced_calls`. `attempt` counts how often a worker took a background run;
    `dead_letter`: it ended badly, and nobody has sent it again yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    session_id: str | None
    parent_run_id: str | None
    kind: SessionKind
    agent: str
    model: str | None
    status: RunStatus
    input: Any
    output: Any
    finish_reason: FinishReason | None
    error: RunError | None
    metadata: dict[str, Any]
    usage: Usage | None
    cost: Decimal | None
    calls: int
    unmeasured_calls: int
    unpriced_calls: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    duration: float | None = Field(description="seconds from start to end")
    background: bool = False
    attempt: int = 0
    priority: int = 0
    retry_of: str | None = None
    dead_letter: bool = False

    @classmethod
    def of(cls, run: Run) -> "RunInfo":
        """The view of a stored run."""
        error = RunError(code=run.error_code, message=run.error_message or "") if run.error_code else None
        ended = run.completed_at
        return cls(
            run_id=run.id,
            session_id=run.session_id,
            parent_run_id=run.parent_run_id,
            kind=run.kind,
            agent=run.agent,
            model=run.model,
            status=run.status,
            input=run.input,
            output=run.output,
            finish_reason=FinishReason(run.finish_reason) if run.finish_reason else None,
            error=error,
            metadata=run.metadata,
            usage=run.usage,
            cost=run.cost,
            calls=run.calls,
            unmeasured_calls=run.unmeasured_calls,
            unpriced_calls=run.unpriced_calls,
            created_at=run.created_at,
            started_at=run.started_at,
            completed_at=ended,
            duration=(ended - run.started_at).total_seconds() if ended and run.started_at else None,
            background=run.background,
            attempt=run.attempt,
            priority=run.priority,
            retry_of=run.retry_of,
            dead_letter=run.dead,
        )


class LogLine(BaseModel):
    """A line that the agent's own code has logged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: datetime
    level: str
    logger: str
    message: str


class RunDetail(RunInfo):
    """One run with everything it told: `logs`, its agent's own lines, and `events`, as a stream would have sent them.

    `result` is `output` by another name.

    `approvals` are what it has asked of humans, the latest last; `webhook`, how its owner was told of its end.
    """

    result: Any
    logs: list[LogLine]
    events: list[dict[str, Any]]
    approvals: list["ApprovalInfo"] = Field(default_factory=list)
    webhook: "WebhookInfo | None" = None


class ApprovalInfo(BaseModel):
    """Something that a run asks a human; it is answered once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    approval_id: str
    payload: Any
    status: Literal["pending", "approved", "rejected"]
    answer: Any = None
    created_at: datetime
    answered_at: datetime | None = None
    answered_by: str | None = None


class WebhookInfo(BaseModel):
    """How far the news of a run's end has come. `status` pending: it is being told, or will be tried again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    status: Literal["waiting", "pending", "delivered", "failed"]
    attempts: int = 0
    last_error: str | None = None
    next_at: datetime | None = None
    delivered_at: datetime | None = None


class RunList(BaseModel):
    """A page of runs, newest first. `next_cursor` asks for the next one; null: there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: list[RunInfo]
    next_cursor: str | None


RunView = Literal["running", "success", "error"]


def seed_status(status: RunStatus) -> RunView:
    """The three words of the workflow tables: whatever ended otherwise than hoped is an error."""
    if status in ACTIVE:
        return "running"
    return "success" if status is RunStatus.COMPLETED else "error"


def metadata_text(value: Any) -> str:
    """How a metadata value is compared: text as it is, everything else as its JSON."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
