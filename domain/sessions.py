"""Sessions: one conversation of one owner, whatever door it comes through. Stored raw, and simplified for reading."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from domain.agents import AGENT_ID_PATTERN
from domain.enums import Role, SessionKind
from domain.messages import Message
from domain.models import MetadataKey, MetadataValue
from domain.runs import RunInfo
from domain.text import clean_text
from domain.usage import Usage

Title = Annotated[str, Field(max_length=200)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=64)]

#: In what words a raw message is written: LangChain's, pydantic-ai's, or our own `Message`.
MessageFormat = Literal["langchain", "pydantic-ai", "message"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# -- what is stored --


class Session(_Record):
    """A session as stored.

    `message_count` gives the next raw index. `synced` of these are in the agent's checkpoint. `parent_id` and
    `branched_at` say where a branch comes from. `used_at`: when something was last said to it; lists are in its order.
    """

    id: str
    owner_id: str
    kind: SessionKind = SessionKind.AGENT
    agent: str
    title: str = ""
    model: str | None = None
    state: Any = None
    agents: list[str] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict)
    message_count: int = 0
    synced: int = 0
    parent_id: str | None = None
    branched_at: int | None = None
    created_at: datetime
    updated_at: datetime
    used_at: datetime


class RawMessage(_Record):
    """One message, complete, as its library wrote it. Never changed afterwards, but for speech that was not heard."""

    session_id: str
    message_index: int
    run_id: str | None
    format: MessageFormat
    message_data: dict[str, Any]
    timestamp: datetime


class SimpleMessage(_Record):
    """One line of a conversation, for reading. `message_index` is the raw message it was made from.

    `partial`: the run was cut; this is what had arrived.
    """

    session_id: str
    message_index: int
    part: int = 0
    run_id: str | None = None
    role: Role
    kind: Literal["text", "tool_call", "tool_result"] = "text"
    content: str
    name: str | None = None
    model: str | None = None
    partial: bool = False
    timestamp: datetime


# -- what is asked and shown --


class NewSession(_Record):
    """A session to be made. `agent`: DEFAULT_AGENT when absent; `agents` are the members of a team."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"title": "Holidays", "agent": "simple"}]}
    )

    agent: Annotated[str, Field(pattern=AGENT_ID_PATTERN)] | None = None
    kind: SessionKind | None = None
    title: Title = ""
    agents: Annotated[list[Annotated[str, Field(pattern=AGENT_ID_PATTERN)]], Field(max_length=64)] = Field(
        default_factory=list
    )
    metadata: Metadata = Field(default_factory=dict)
    state: dict[str, Any] | None = None

    @field_validator("title")
    @classmethod
    def _clean(cls, value: str) -> str:
        return clean_text(value)


class SessionChange(_Record):
    """What is to be changed of a session; what is absent stays. `metadata` replaces all of it."""

    title: Title | None = None
    metadata: Metadata | None = None
    state: dict[str, Any] | None = None

    @field_validator("title")
    @classmethod
    def _clean(cls, value: str | None) -> str | None:
        return value if value is None else clean_text(value)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing to change: give title, metadata or state")
        return self


class AppendMessages(_Record):
    """Messages to append to a session, or a run of another library to store with its usage.

    `messages` are ours; `raw` are messages as `format` writes them (pydantic-ai: the JSON of `new_messages()`).
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=2_000)] | None = None
    raw: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=2_000)] | None = None
    format: Literal["langchain", "pydantic-ai"] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.messages is None) == (self.raw is None):
            raise ValueError("give either messages or raw")
        if (self.raw is None) != (self.format is None):
            raise ValueError("raw needs format, and only raw does")
        return self


class BranchPoint(_Record):
    """Where a branch leaves: what stands before message `before` (a raw index) is copied; absent: everything.

    To edit a message, branch before it and send the new words to the branch.
    """

    before: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    title: Title | None = None


class Appended(_Record):
    """The raw indexes that were given, in order."""

    session_id: str
    indexes: list[int]


class SessionUsage(_Record):
    """What a session cost: sums over its model calls. `cost` (US dollars) null: nothing that is priced was called.

    Zero, unknown and unmeasured differ: calls without a report are in `unmeasured_calls`, calls of a model that has no
    price in `unpriced_calls`; a cost of 0 is a price of 0.
    """

    usage: Usage | None
    cost: Decimal | None
    calls: int
    unmeasured_calls: int
    unpriced_calls: int


class SessionInfo(_Record):
    """One session, as its owner sees it."""

    session_id: str
    kind: SessionKind
    agent: str
    agents: list[str]
    title: str
    model: str | None
    state: Any
    metadata: dict[str, Any]
    message_count: int
    parent_id: str | None
    branched_at: int | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, session: Session) -> "SessionInfo":
        """The view of a stored session."""
        return cls(
            session_id=session.id,
            kind=session.kind,
            agent=session.agent,
            agents=session.agents,
            title=session.title,
            model=session.model,
            state=session.state,
            metadata=session.metadata,
            message_count=session.message_count,
            parent_id=session.parent_id,
            branched_at=session.branched_at,
            created_at=session.created_at,
            updated_at=session.updated_at,
        )


class SessionDetail(SessionInfo):
    """One session with its usage and the first page of its conversation; `next_after` asks for the next page."""

    token_usage: SessionUsage
    messages: list[SimpleMessage]
    next_after: int | None


class SessionList(_Record):
    """A page of sessions, the latest used first. `next_cursor` asks for the next one; null: there is none."""

    sessions: list[SessionInfo]
    next_cursor: str | None


class SimpleMessageList(_Record):
    """A page of a conversation, in order. `next_after` asks for the next one; null: there is none."""

    session_id: str
    messages: list[SimpleMessage]
    next_after: int | None


class RawMessageList(_Record):
    """A page of raw messages, in order. `next_after` asks for the next one; null: there is none."""

    session_id: str
    messages: list[RawMessage]
    next_after: int | None


class SessionExport(_Record):
    """Everything there is of one session."""

    session: SessionInfo
    token_usage: SessionUsage
    messages: list[SimpleMessage]
    raw_messages: list[RawMessage]
    runs: list[RunInfo]

    def markdown(self) -> str:
        """The conversation for people."""
        session = self.session
        lines = [f"# {session.title or 'Conversation'}", ""]
        about = [
            f"agent {session.agent}",
            f"model {session.model or '-'}",
            f"begun {session.created_at:%Y-%m-%d %H:%M} UTC",
        ]
        if self.token_usage.usage is not None:
            about.append(f"{self.token_usage.usage.total_tokens} tokens")
        if self.token_usage.cost is not None:
            about.append(f"${self.token_usage.cost:f}")
        lines += [f"*{' · '.join(about)}*", ""]
        for message in self.messages:
            who = message.name or message.role.value
            mark = " (cut)" if message.partial else ""
            lines.append(f"## {_HEADINGS[message.kind].format(who=who)}{mark}")
            lines += ["", _fenced(message.content) if message.kind != "text" else message.content, ""]
        return "\n".join(lines)


_HEADINGS = {"text": "{who}", "tool_call": "calls {who}", "tool_result": "{who} answers"}


def _fenced(text: str) -> str:
    """`text` as a block of code, whatever it holds."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
