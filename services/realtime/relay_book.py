"""What a relayed session leaves in the record: one run for each response, with what was said before it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from domain.auth import Principal
from domain.enums import FinishReason, SessionKind
from domain.errors import RouteurError, UpstreamFailure
from domain.events import AgentEvent, RunCancelled, RunFailed, RunFinished, RunId, UsageReported
from domain.text import clean_text
from domain.usage import Usage
from services.agent_messages import new_message_id, partial_record
from services.llm_providers.wire.answer import counted
from services.open_runs import OpenRuns
from services.run_recorder import Asked, Book, RunRecorder, Told
from services.wire_messages import WireMessage, wire_question, wire_record, wire_text

Event = Mapping[str, Any]

_AGENT = "direct"
_CHARS_PER_TOKEN = 4
_UNFINISHED = {"max_output_tokens": FinishReason.LENGTH, "content_filter": FinishReason.CONTENT_FILTER}


@dataclass(frozen=True, slots=True)
class RelayTerms:
    """What a relayed session needs of the house.

    Attributes:
        model: `provider/name`.
        describe: a failure as OpenAI's clients are told of it.
    """

    caller: Principal
    model: str
    session_id: str
    recorder: RunRecorder
    runs: OpenRuns
    describe: Callable[[RouteurError], dict[str, Any]]


@dataclass(slots=True)
class Said:
    """Something that was said to the model; `message` None: its transcript is still to come."""

    item_id: str
    message: WireMessage | None

    @property
    def kept(self) -> bool:
        """True when there is something to write down: words, or what came of a call."""
        return self.message is not None and bool(self.message["content"] or self.message["role"] == "tool")


class RelayedRun:
    """One response of a provider's, while it is given."""

    agent = _AGENT
    gone = False

    def __init__(self, terms: RelayTerms, book: Book, asked: Sequence[WireMessage], stop: Callable[[], None]) -> None:
        self.run_id = RunId(book.run_id)
        self.model = terms.model
        self.calls: list[UsageReported] = []
        self.pieces: list[str] = []
        self.response: Event | None = None
        self.late: list[Said] = []
        self.alone = False
        self.answered_nothing = False  # it holds what was said or spent, and nobody was asked
        self.cancelled: str | None = None
        self._terms = terms
        self._book = book
        self._asked = asked
        self._stop = stop
        self._begun = time.monotonic()
        self._begun_at = datetime.now(UTC)
        self._over = False
        terms.runs.started()
        terms.recorder.follow(self)

    @property
    def waits(self) -> bool:
        """True while a transcript of what it answers is still to come."""
        return any(said.message is None for said in self.late)

    def draft(self) -> str:
        """What has arrived of the answer."""
        return "".join(self.pieces)

    def cancel(self, reason: str) -> None:
        """Have the provider end it."""
        self.cancelled = reason
        self._stop()

    async def finish(self, cut: RouteurError | None = None) -> None:
        """Write down how it ended, once. Without an end of the provider's it was cut: by `cut`, or by its reader.

        Raises:
            Unavailable: it cannot be written.
        """
        if self._over:
            return
        self._over = True
        now = datetime.now(UTC)
        response = self.response or {}
        text, calls = _answer_of(response)
        text = clean_text(text or self.draft())
        usage = usage_of(response.get("usage"))
        if usage is None and self.response is None and not self.answered_nothing:
            usage = self._estimated(text)  # budgets must not be escaped by leaving early
        if not self.answered_nothing:
            self.calls.append(UsageReported(model=self.model, usage=usage))
        terminal = self._terminal(response, text, calls, usage, cut)
        messages = [wire_record(said.message, now) for said in self.late if said.message is not None and said.kept]
        message_id = new_message_id()
        if isinstance(terminal, RunFinished):
            told = {"role": "assistant", "content": text, "tool_calls": calls}
            messages.append(wire_record(told, now, message_id))
        elif text:
            messages.append(partial_record(message_id, text, terminal.kind, self.model, now))
        self._terms.runs.ended(self, terminal, time.monotonic() - self._begun)
        events, last = self._story(terminal, text, message_id, now)
        await self._book.write(
            self._book.end_of(terminal, self.model, text, messages, self.calls, Told(events, 1, last), now)
        )

    def _terminal(
        self, response: Event, text: str, calls: list[WireMessage], usage: Usage | None, cut: RouteurError | None
    ) -> RunCancelled | RunFinished | RunFailed:
        status = response.get("status")
        if self.answered_nothing:
            return RunCancelled(reason="nothing was answered", usage=usage)
        reason = _dict(response.get("status_details")).get("reason")
        if self.cancelled is not None or status == "cancelled":
            return RunCancelled(reason=self.cancelled or str(reason or "client_cancelled")[:100], usage=usage)
        if status in ("completed", "incomplete"):
            finish = FinishReason.TOOL_CALLS if calls else FinishReason.STOP
            if status == "incomplete":
                finish = _UNFINISHED.get(str(reason), FinishReason.LENGTH)
            return RunFinished(output=text, model=self.model, finish_reason=finish, usage=usage)
        if self.response is None and cut is None:
            return RunCancelled(reason="the reader left, or the server stopped", usage=usage)
        error = cut or UpstreamFailure("The provider could not answer.", code="upstream_failed")
        return RunFailed(error=error.kind.value, code=error.code, message=error.message, usage=usage)

    def _estimated(self, text: str) -> Usage:
        asked = sum(len(wire_text(message)) for message in self._asked) // _CHARS_PER_TOKEN
        written = -(-len(text) // _CHARS_PER_TOKEN)
        return Usage(input_tokens=asked, output_tokens=written, total_tokens=asked + written, estimated=True)

    def _story(self, terminal: AgentEvent, text: str, message_id: str, now: datetime) -> tuple[str, int]:
        """The events of the run, as those of a direct call are kept."""
        at = self._begun_at
        session_id = self._book.session_id
        told: list[tuple[datetime, dict[str, Any]]] = [
            (at, {"kind": "run.started", "agent": _AGENT, "model": self.model, "session_id": session_id})
        ]
        if text:
            piece = {"kind": "text.delta", "message_id": message_id}
            told += [(now, {**piece, "text": text}), (now, {**piece, "text": "", "done": True})]
        told += [(now, event.__dict__) for event in (*self.calls, terminal)]
        items = [{"seq": number, "at": when, **event} for number, (when, event) in enumerate(told, 1)]
        return orjson.dumps(items, default=lambda value: value.__dict__).decode(), len(items)


async def begin_run(
    terms: RelayTerms, said: Sequence[WireMessage], *, alone: bool, stop: Callable[[], None]
) -> RelayedRun:
    """A run that is written down, with what it answers.

    Args:
        alone: it belongs to no conversation, and gets a session of its own.
        stop: has the provider end it.

    Raises:
        Conflict: another run of the session is in progress.
        Unavailable: it cannot be written.
    """
    now = datetime.now(UTC)
    book = await terms.recorder.begin(
        Asked(
            caller=terms.caller,
            kind=SessionKind.AGENT,
            agent=_AGENT,
            model=terms.model,
            session_id=None if alone else terms.session_id,
            messages=[wire_record(message, now) for message in said],
            text=clean_text(wire_question(said)) if said else "",
            metadata={"realtime": "relay", **({"realtime_session": terms.session_id} if alone else {})},
        )
    )
    run = RelayedRun(terms, book, said, stop)
    run.alone = alone
    return run


def message_of(item: Event) -> WireMessage | None:
    """An item in the words of chat completions; None: nothing that is kept, or a sound without a transcript."""
    kind, role = item.get("type"), item.get("role")
    if kind == "function_call_output" and isinstance(item.get("call_id"), str):
        return {"role": "tool", "tool_call_id": item["call_id"], "content": _text(item.get("output"))}
    if kind != "message" or role not in ("user", "system", "assistant"):
        return None
    text = "".join(_words(part) for part in _parts(item))
    return {"role": role, "content": text} if text else None


def is_sound(item: Event) -> bool:
    """True when something was said aloud in it."""
    return any(part.get("type") == "input_audio" for part in _parts(item))


def usage_of(told: object) -> Usage | None:
    """What a provider says that a response or a transcription has cost; None: nothing that can be counted."""
    if not isinstance(told, Mapping):
        return None
    given, written, total = (counted(told.get(f"{name}_tokens")) for name in ("input", "output", "total"))
    if given is None and written is None:
        return None
    details = _dict(told.get("input_token_details"))
    spent = (given or 0) + (written or 0)
    return Usage(
        input_tokens=given or 0,
        output_tokens=written or 0,
        total_tokens=total if total is not None else spent,
        cached_tokens=counted(details.get("cached_tokens")),
        audio_tokens=counted(details.get("audio_tokens")),
    )


def _answer_of(response: Event) -> tuple[str, list[WireMessage]]:
    """The words of a whole response, and its function calls."""
    texts, calls = [], []
    output = response.get("output")
    for item in output if isinstance(output, list) else ():
        one = _dict(item)
        if one.get("type") == "message":
            texts.append("".join(_words(part) for part in _parts(one)))
        elif one.get("type") == "function_call" and isinstance(one.get("call_id"), str):
            function = {"name": _text(one.get("name")), "arguments": _text(one.get("arguments")) or "{}"}
            calls.append({"id": one["call_id"], "type": "function", "function": function})
    return "\n\n".join(text for text in texts if text), calls


def _parts(item: Event) -> list[Event]:
    content = item.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []


def _words(part: Event) -> str:
    return _text(part.get("text")) or _text(part.get("transcript"))


def _text(value: object) -> str:
    return clean_text(value) if isinstance(value, str) else ""


def _dict(value: object) -> Event:
    return value if isinstance(value, Mapping) else {}
