"""What happens in a run, told once: every wire renders these, every store keeps them.

Laws, checked by `tests/unit/test_event_laws.py` and kept by `EventLaws`:
the first event is `run.started`; exactly one terminal event, and it is the last; what was opened (a text part, a tool
call) is closed before the terminal, also on failure; `seq` starts at 1 and has no holes.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, NewType

from pydantic import BaseModel, ConfigDict, Field

from domain.enums import FinishReason
from domain.usage import Usage

RunId = NewType("RunId", str)


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    terminal: ClassVar[bool] = False


class RunStarted(_Event):
    """The run has its agent and its model; nothing has been said yet."""

    kind: Literal["run.started"] = "run.started"
    agent: str
    model: str
    session_id: str | None = None


class TextDelta(_Event):
    """A piece of the text of one message. `message_id` groups the pieces; the piece with `done` closes the message."""

    kind: Literal["text.delta"] = "text.delta"
    text: str
    message_id: str
    done: bool = False


class ReasoningDelta(_Event):
    """A piece of what the model thinks aloud, where a provider tells it."""

    kind: Literal["reasoning.delta"] = "reasoning.delta"
    text: str
    message_id: str


class ToolStarted(_Event):
    """An agent calls a tool."""

    kind: Literal["tool.started"] = "tool.started"
    call_id: str
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class ToolFinished(_Event):
    """The tool answered. `ok` is false when it failed or the run ended before it answered."""

    kind: Literal["tool.finished"] = "tool.finished"
    call_id: str
    name: str
    output: str
    ok: bool = True


class StateUpdated(_Event):
    """Something a graph tells by its stream writer: progress, a plan, a draft."""

    kind: Literal["state.updated"] = "state.updated"
    node: str | None = None
    data: Any = None


class ApprovalRequested(_Event):
    """The graph waits for a human. `approval_id` is answered once."""

    kind: Literal["approval.requested"] = "approval.requested"
    approval_id: str
    payload: Any = None


class UsageReported(_Event):
    """What one model call cost. `usage` None: the provider did not say (unmeasured, not zero).

    `cost_pico`: of a call that is charged by something else than tokens. It is kept with the run and not told.
    """

    kind: Literal["usage.reported"] = "usage.reported"
    model: str
    usage: Usage | None
    cost_pico: int | None = Field(None, exclude=True)


class RunWaiting(_Event):
    """The run pauses for an approval; it may end a reader's stream, it does not end the run."""

    kind: Literal["run.waiting"] = "run.waiting"
    approval_ids: list[str]


class RunResumed(_Event):
    """The run goes on, and so does `seq`: an approval was answered, or another worker has taken it.

    `reason` says why; `cut` names messages that had begun before and are said anew, under other ids.
    """

    kind: Literal["run.resumed"] = "run.resumed"
    reason: Literal["approval", "crash", "retry", "drain"] = "approval"
    attempt: int = 1
    cut: list[str] = Field(default_factory=list)


class LogWritten(_Event):
    """A line that the agent's own code has logged."""

    kind: Literal["log.written"] = "log.written"
    level: str
    logger: str
    message: str


class RunFinished(_Event):
    """The end as hoped: `output` is the text of the last assistant message, `model` what served it."""

    kind: Literal["run.finished"] = "run.finished"
    terminal: ClassVar[bool] = True
    output: str
    model: str
    finish_reason: FinishReason
    usage: Usage | None


class RunFailed(_Event):
    """The end not hoped for. `message` is safe to show."""

    kind: Literal["run.failed"] = "run.failed"
    terminal: ClassVar[bool] = True
    error: str
    code: str
    message: str
    retry_after: float | None = None
    usage: Usage | None = None


class RunCancelled(_Event):
    """Somebody stopped it, or the reader of an attached run left."""

    kind: Literal["run.cancelled"] = "run.cancelled"
    terminal: ClassVar[bool] = True
    reason: str
    usage: Usage | None = None


class RunTimedOut(_Event):
    """It took longer than `limit` seconds."""

    kind: Literal["run.timed_out"] = "run.timed_out"
    terminal: ClassVar[bool] = True
    limit: float
    message: str
    usage: Usage | None = None


AgentEvent = Annotated[
    RunStarted
    | TextDelta
    | ReasoningDelta
    | ToolStarted
    | ToolFinished
    | StateUpdated
    | ApprovalRequested
    | UsageReported
    | RunWaiting
    | RunResumed
    | LogWritten
    | RunFinished
    | RunFailed
    | RunCancelled
    | RunTimedOut,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event with its place: `seq` starts at 1, grows by 1, and is the SSE `id`. `at` is UTC."""

    run_id: RunId
    seq: int
    at: datetime
    event: AgentEvent


@dataclass(slots=True)
class EventLaws:
    """Keeps the laws while events are written, and says how to close what is open.

    Raises:
        ValueError: an event that would break a law (a fault of ours, never of a caller).
    """

    started: bool = False
    ended: bool = False
    open_texts: dict[str, None] = field(default_factory=dict)
    open_tools: dict[str, str] = field(default_factory=dict)

    def admit(self, event: AgentEvent) -> None:
        """Take note of `event`; raise when it may not come now."""
        if not self.started or self.ended:
            self._admit_the_edges(event)
        elif isinstance(event, TextDelta):
            if event.done:
                self.open_texts.pop(event.message_id, None)
            else:
                self.open_texts[event.message_id] = None
        elif isinstance(event, RunStarted):
            raise ValueError("run.started twice")
        elif isinstance(event, ToolStarted):
            self.open_tools[event.call_id] = event.name
        elif isinstance(event, ToolFinished):
            if self.open_tools.pop(event.call_id, None) is None:
                raise ValueError(f"tool.finished for a call that is not open: {event.call_id}")
        elif event.terminal:
            if self.open_texts or self.open_tools:
                raise ValueError("a terminal event while something is open")
            self.ended = True

    def _admit_the_edges(self, event: AgentEvent) -> None:
        if self.ended:
            raise ValueError(f"{event.kind} after the terminal event")
        if not isinstance(event, RunStarted):
            raise ValueError(f"{event.kind} before run.started")
        self.started = True

    def closings(self) -> list[AgentEvent]:
        """The events that close everything that is open, in the order it was opened."""
        texts: list[AgentEvent] = [
            TextDelta(message_id=message_id, text="", done=True) for message_id in self.open_texts
        ]
        tools: list[AgentEvent] = [
            ToolFinished(call_id=call_id, name=name, output="", ok=False) for call_id, name in self.open_tools.items()
        ]
        return texts + tools
