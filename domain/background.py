"""Background runs: submitted, answered at once, never lost."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from domain.agents import MODEL_ID_PATTERN, SESSION_ID_PATTERN, ModelParameters, chosen_parameters
from domain.enums import RunStatus, SessionKind
from domain.formats import ResponseFormat
from domain.messages import MAX_MESSAGE_CHARS, Message
from domain.models import MetadataKey, MetadataValue
from domain.runs import CallCost, NewMessage, RunInfo
from domain.text import clean_json, clean_text
from domain.usage import Usage

Busy = Literal["reject", "queue"]
Decision = Literal["approve", "reject"]
MAX_JSON_CHARS = 1_000_000


class AgentRunRequest(BaseModel):
    """Start a background run.

    `input`: a text, a conversation, or an object, which is handed to the graph as its state (its text as the message).
    `if_busy`: what happens while another run of the session is going on, 409 or a place in the queue.
    `timeout`: seconds of running, at most what the agent and MAX_EXECUTION_TIME allow. `webhook` is told of the end.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"input": "What is 6 times 7?", "metadata": {"dossier_id": "dossier:1"}}]},
    )

    input: (
        Annotated[str, Field(min_length=1, max_length=MAX_MESSAGE_CHARS)]
        | Annotated[list[Message], Field(min_length=1, max_length=2_000)]
        | Annotated[dict[str, Any], Field(min_length=1, max_length=200)]
    )
    session_id: Annotated[str, Field(pattern=SESSION_ID_PATTERN)] | None = None
    model: Annotated[str, Field(max_length=200, pattern=MODEL_ID_PATTERN)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    response_format: ResponseFormat | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=64)] = Field(default_factory=dict)
    timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = None
    if_busy: Busy = "reject"
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    webhook: Annotated[str, Field(max_length=2_000, pattern=r"^https?://[!-~]+$")] | None = None

    @field_validator("input")
    @classmethod
    def _clean(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = clean_text(value)
            if not value.strip():
                raise ValueError("input is empty")
        elif isinstance(value, dict):
            value = clean_json(value, MAX_JSON_CHARS)
            if "messages" in value:
                raise ValueError("give messages as a list, not inside an object")
        return value


class RunParameters(BaseModel):
    """What is kept of a request: how the model is asked, the graph's state, how many messages were given, what the
    Responses API says of it again (`response`), and what is to be obeyed in this run alone (`instructions`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float | None = None
    max_tokens: int | None = None
    response_format: ResponseFormat | None = None
    state: dict[str, Any] | None = None
    asked: int = 1
    response: dict[str, Any] | None = None
    instructions: str | None = None

    @property
    def parameters(self) -> ModelParameters:
        """What the caller set of the model's parameters."""
        return chosen_parameters(self.temperature, self.max_tokens, self.response_format)


class RunAccepted(BaseModel):
    """The run is written down and will be done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    session_id: str
    agent: str
    model: str
    status: RunStatus
    created_at: datetime
    retry_of: str | None = None


class ApprovalAnswer(BaseModel):
    """A human's answer. The waiting node gets `value`, or when there is none `{"approved": ..., "reason": ...}`.

    LangChain's human-in-the-loop middleware gets its own form of the decision, for each action it asked about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    approval_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
    decision: Decision = "approve"
    value: Any = None
    reason: Annotated[str, Field(max_length=4_000)] | None = None

    @model_validator(mode="after")
    def _clean(self) -> Self:
        clean_json(self.value, MAX_JSON_CHARS)
        return self


class RunState(BaseModel):
    """Where a run stands after it was asked to change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    status: RunStatus


class AgentStatus(BaseModel):
    """What an agent is doing for the caller: a status, and the runs it is made of.

    Asked about one run, `status` is that run's own; else `running` when any is in progress, or `idle`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str
    status: RunStatus | Literal["idle"]
    queued: int
    running: int
    waiting: int
    runs: list[RunInfo]


# -- what the engine is handed --


@dataclass(slots=True)
class Submission:
    """A background run to be written down. `messages` join the session when the run begins."""

    id: str
    owner_id: str
    session_id: str
    new_session: bool
    kind: SessionKind
    agent: str
    model: str
    input: Any
    messages: list[NewMessage]
    metadata: dict[str, Any]
    request: dict[str, Any]
    title: str
    created_at: datetime
    if_busy: Busy = "reject"
    priority: int = 0
    time_limit: float | None = None
    may_resume: bool = True
    webhook: str | None = None
    retry_of: str | None = None
    max_queued: int = 1_000  # of this owner


@dataclass(slots=True)
class Limits:
    """How many runs a worker may take: `room` of its own, and what all workers together may run."""

    room: int
    per_owner: int
    per_agent: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class EventBatch:
    """What a run has told since the last time, with the model calls that ended meanwhile and all usage so far."""

    run_id: str
    attempt: int
    owner_id: str
    session_id: str | None
    agent: str
    first_seq: int
    last_seq: int
    events: str
    calls: list[CallCost]
    usage: Usage | None
    cost_pico: int | None
    all_calls: int
    unmeasured: int
    unpriced: int


@dataclass(slots=True)
class Beat:
    """A sign of life of a run: seconds spent on it, and what has arrived of its answer (None: nothing new)."""

    run_id: str
    attempt: int
    spent: float
    draft: str | None


@dataclass(slots=True)
class AskedApproval:
    """Something a run asks a human."""

    id: str
    payload: Any


@dataclass(slots=True)
class Pause:
    """A run that stops for now. `status` WAITING (for `approvals`) or QUEUED (from `available_at` on)."""

    run_id: str
    attempt: int
    status: RunStatus
    at: datetime
    spent: float
    available_at: datetime | None = None
    approvals: list[AskedApproval] = field(default_factory=list)
    retried: bool = False
    mark: str | None = None


@dataclass(slots=True)
class HandOver:
    """A run that somebody waited for, and that waits for a human now: from its checkpoint it goes on in the background.

    `request` is what `RunParameters` read; `messages` join the session now, for they were heard; `first_index` and
    `synced` as in `RunBegun`.
    """

    pause: Pause
    session_id: str
    owner_id: str
    messages: list[NewMessage]
    request: dict[str, Any]
    time_limit: float
    may_resume: bool
    first_index: int
    synced: int


class Approval(BaseModel):
    """A stored approval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    id: str
    owner_id: str
    payload: Any = None
    status: Literal["pending", "approved", "rejected"] = "pending"
    answer: Any = None
    created_at: datetime
    answered_at: datetime | None = None
    answered_by: str | None = None


class Delivery(BaseModel):
    """A stored webhook delivery: one run's end, to be told to one address."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    owner_id: str
    url: str
    status: Literal["pending", "delivered", "failed"] = "pending"
    attempts: int = 0
    last_error: str | None = None
    next_at: datetime | None = None
    delivered_at: datetime | None = None
    created_at: datetime


@dataclass(slots=True)
class Recovered:
    """What became of runs whose workers had died."""

    requeued: list[str]
    lost: list[str]
    cancelled: list[str]
