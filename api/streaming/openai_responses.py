"""A run as OpenAI's Responses: its object, and the events that build it, numbered from 0 without holes.

Fed by an agent's events (`envelopes`) or by a model's deltas (`text`, `reasoning`, `call`); gives bytes to send. The
response at the end is what the events have built, so both always say the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from api.streaming.openai_chunks import ToolView, tool_line
from domain.enums import FinishReason
from domain.errors import ErrorKind, RouteurError
from domain.events import (
    Envelope,
    ReasoningDelta,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunResumed,
    RunTimedOut,
    TextDelta,
    ToolFinished,
    ToolStarted,
)
from domain.usage import Usage

_ERROR_CODES = {
    ErrorKind.RATE_LIMITED: "rate_limit_exceeded",
    ErrorKind.QUOTA: "rate_limit_exceeded",
    ErrorKind.INVALID: "invalid_prompt",
}


def response_id(run_id: str) -> str:
    """The id of the response that a run is."""
    return f"resp_{run_id.replace('-', '')}"


def created_at(run_id: str) -> int:
    """When the run of that id was made, in whole seconds: the same whoever says it, and whenever."""
    return (UUID(run_id).int >> 80) // 1_000


def response_usage(usage: Usage | None) -> dict[str, Any] | None:
    """Usage in the words of Responses; None: nobody told us."""
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.total_tokens,
    }


def response_error(kind: ErrorKind, code: str, message: str) -> dict[str, str]:
    """Why a response failed: OpenAI's code where there is one for it, our own in the message."""
    return {"code": _ERROR_CODES.get(kind, "server_error"), "message": f"{message} ({code})"}


def message_item(message_id: str, text: str, status: str = "completed") -> dict[str, Any]:
    """What was said, as an output item."""
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": message_id, "type": "message", "role": "assistant", "status": status, "content": content}


def call_item(call_id: str, name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    """A function call, as an output item."""
    return {
        "id": f"fc_{call_id}",
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def reasoning_item(item_id: str, text: str) -> dict[str, Any]:
    """What was thought, as an output item."""
    return {"id": item_id, "type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}


@dataclass(slots=True)
class _Open:
    """An item that is being built."""

    index: int
    kind: str
    item: dict[str, Any]
    pieces: list[str] = field(default_factory=list)


class ResponseStream:
    """Builds one response.

    Several items may grow at once (calls in pieces, agents that speak side by side): each piece goes to the item of its
    key. No two items of a response have the same id.

    Args:
        run_id: of the run that it is: a UUIDv7, which says when it was made.
        echo: what was asked, as the response repeats it.
        tools: how an agent's own tool calls are shown.
        message_id: of a model's answer, where its deltas do not name one.
        skip: events up to this number are not given out again.
    """

    def __init__(
        self,
        run_id: str,
        echo: Mapping[str, Any],
        *,
        tools: ToolView = "hidden",
        message_id: str = "",
        skip: int = -1,
    ) -> None:
        self._base: dict[str, Any] = {
            "id": response_id(run_id),
            "object": "response",
            "created_at": created_at(run_id),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            **echo,
            "output": [],
            "usage": None,
        }
        self._tools = tools
        self._message_id = message_id
        self._skip = skip
        self._seq = 0
        self._output: list[dict[str, Any]] = []
        self._open: dict[tuple[str, str], _Open] = {}
        self._ids: set[str] = set()
        self.ended = False

    @property
    def response(self) -> dict[str, Any]:
        """As it stands."""
        return self._base

    # -- its life --

    def begin(self, *, queued: bool = False) -> bytes:
        """It exists; with `queued`, it waits for its turn."""
        kinds = ("response.created", "response.queued") if queued else ("response.created", "response.in_progress")
        if queued:
            self._base["status"] = "queued"
        return b"".join([self._event(kind, response=self._base) for kind in kinds])

    def started(self) -> bytes:
        """One that was queued has its turn."""
        if self._base["status"] != "queued":
            return b""
        self._base["status"] = "in_progress"
        return self._event("response.in_progress", response=self._base)

    def finish(self, reason: str, usage: Usage | None, at: datetime) -> bytes:
        """A good end, or one that was cut short by a limit.

        Args:
            at: when that was, as it is written down.
        """
        closing = self._close_all()
        short = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reason)
        status = "incomplete" if short else "completed"
        self._end(status, usage)
        self._base["completed_at"] = None if short else int(at.timestamp())
        self._base["incomplete_details"] = {"reason": short} if short else None
        return closing + self._event(f"response.{status}", response=self._base)

    def fail(self, error: RouteurError, usage: Usage | None = None) -> bytes:
        """A bad end."""
        return self.fail_with(response_error(error.kind, error.code, error.message), usage)

    def fail_with(self, error: dict[str, str], usage: Usage | None) -> bytes:
        """A bad end, in OpenAI's words."""
        closing = self._close_all("incomplete")
        self._end("failed", usage)
        self._base["error"] = error
        return closing + self._event("response.failed", response=self._base)

    def cancel(self, usage: Usage | None = None) -> bytes:
        """Its owner has stopped it. OpenAI has no event for that: the last one is `response.incomplete`."""
        closing = self._close_all("incomplete")
        self._end("cancelled", usage)
        return closing + self._event("response.incomplete", response=self._base)

    def _end(self, status: str, usage: Usage | None) -> None:
        self.ended = True
        self._base |= {"status": status, "output": self._output, "usage": response_usage(usage)}

    # -- an agent's events --

    def envelopes(self, envelopes: Iterable[Envelope]) -> bytes:
        """What is to be told of these events."""
        return b"".join([self._envelope(envelope.event, envelope.at) for envelope in envelopes])

    def _envelope(self, event: Any, at: datetime) -> bytes:
        if type(event) is TextDelta:
            told = self.text(event.text, event.message_id) if event.text else b""
            return told + (self._close(("message", event.message_id)) if event.done else b"")
        if type(event) is ReasoningDelta:
            return self.reasoning(event.text, event.message_id) if event.text else b""
        if isinstance(event, ToolStarted | ToolFinished):
            return self._tool(event)
        if type(event) is RunResumed:
            return self._close_all("incomplete")
        if type(event) is RunFinished:
            self._served_by(event.model)
            reason = "stop" if event.finish_reason is FinishReason.TOOL_CALLS else event.finish_reason.value
            return self.finish(reason, event.usage, at)
        if type(event) is RunFailed:
            return self.fail_with(response_error(ErrorKind(event.error), event.code, event.message), event.usage)
        if type(event) is RunTimedOut:
            error = response_error(ErrorKind.UPSTREAM_TIMEOUT, "run_timed_out", event.message)
            return self.fail_with(error, event.usage)
        if type(event) is RunCancelled:
            return self.cancel(event.usage)
        return b""

    def _served_by(self, model: str) -> None:
        named = str(self._base["model"])
        self._base["model"] = f"{named.partition('@')[0]}@{model}" if named.startswith("agent/") else model

    def _tool(self, event: ToolStarted | ToolFinished) -> bytes:
        starts = isinstance(event, ToolStarted)
        told = self._close_kind("reasoning") if starts else b""
        if self._tools == "reasoning":
            line = ("tool", f"tool_{event.call_id}")
            told += self._thought(line, tool_line(event))
            return told if starts else told + self._close(line)
        if self._tools == "calls" and isinstance(event, ToolStarted):
            arguments = orjson.dumps(event.arguments).decode()
            told += self.call(event.call_id, event.call_id, event.name, arguments)
            told += self._close(("function_call", event.call_id))
        return told

    # -- pieces --

    def text(self, text: str, message_id: str = "") -> bytes:
        """A piece of an answer. The thought before it is over."""
        key = ("message", message_id or self._message_id)
        opening = b""
        if key not in self._open:
            opening = self._close(("reasoning", key[1])) + self._open_message(key)
        opened = self._open[key]
        opened.pieces.append(text)
        return opening + self._part_event("response.output_text.delta", opened, delta=text, logprobs=[])

    def _open_message(self, key: tuple[str, str]) -> bytes:
        item_id = self._fresh(key[1])
        told = self._add(key, {**message_item(item_id, "", "in_progress"), "content": []})
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return told + self._part_event("response.content_part.added", self._open[key], part=part)

    def reasoning(self, text: str, message_id: str = "") -> bytes:
        """A piece of a thought."""
        return self._thought(("reasoning", message_id or self._message_id), text)

    def _thought(self, key: tuple[str, str], text: str) -> bytes:
        opening = b""
        if key not in self._open:
            opening = self._add(key, {**reasoning_item(self._fresh(f"rs_{key[1]}"), ""), "summary": []})
            part = {"type": "summary_text", "text": ""}
            opening += self._summary_event("part.added", self._open[key], part=part)
        opened = self._open[key]
        opened.pieces.append(text)
        return opening + self._summary_event("text.delta", opened, delta=text)

    def call(self, key: str, call_id: str, name: str, arguments: str) -> bytes:
        """A function call, or one more piece of its arguments. The thoughts before it are over.

        Args:
            key: the same for all pieces of one call; `call_id` and `name` of the first count.
        """
        place = ("function_call", key)
        opening = b""
        if place not in self._open:
            opening = self._close_kind("reasoning")
            opening += self._add(place, call_item(self._fresh(call_id), name, "", "in_progress"))
        opened = self._open[place]
        return opening + (self._arguments(opened, arguments) if arguments else b"")

    def _arguments(self, opened: _Open, piece: str) -> bytes:
        opened.pieces.append(piece)
        return self._item_event("response.function_call_arguments.delta", opened, delta=piece)

    # -- items --

    def _add(self, key: tuple[str, str], item: dict[str, Any]) -> bytes:
        self._open[key] = opened = _Open(len(self._output), key[0], item)
        self._output.append(item)
        return self._event("response.output_item.added", output_index=opened.index, item=item)

    def _fresh(self, wanted: str) -> str:
        """That id, or one like it that nothing in this response has: who accumulates would take two for one."""
        found, number = wanted, 1
        while found in self._ids:
            number += 1
            found = f"{wanted}_{number}"
        self._ids.add(found)
        return found

    def _close_all(self, status: str = "completed") -> bytes:
        return b"".join([self._close(key, status) for key in list(self._open)])

    def _close_kind(self, kind: str) -> bytes:
        return b"".join([self._close(key) for key in list(self._open) if key[0] == kind])

    def _close(self, key: tuple[str, str], status: str = "completed") -> bytes:
        """Close that item, if it is open."""
        opened = self._open.pop(key, None)
        if opened is None:
            return b""
        whole, item_id, told = "".join(opened.pieces), opened.item["id"], b""
        if opened.kind == "message":
            item = message_item(item_id, whole, status)
            told = self._part_event("response.output_text.done", opened, text=whole, logprobs=[])
            told += self._part_event("response.content_part.done", opened, part=item["content"][0])
        elif opened.kind == "function_call":
            if not whole and status == "completed":  # clients read it as JSON
                whole = "{}"
                told = self._arguments(opened, whole)
            item = {**opened.item, "arguments": whole, "status": status}
            done = "response.function_call_arguments.done"
            told += self._item_event(done, opened, name=item["name"], arguments=whole)
        else:
            item = reasoning_item(item_id, whole)
            told = self._summary_event("text.done", opened, text=whole)
            told += self._summary_event("part.done", opened, part=item["summary"][0])
        self._output[opened.index] = item
        return told + self._event("response.output_item.done", output_index=opened.index, item=item)

    # -- events --

    def _part_event(self, kind: str, opened: _Open, **more: Any) -> bytes:
        return self._item_event(kind, opened, content_index=0, **more)

    def _summary_event(self, kind: str, opened: _Open, **more: Any) -> bytes:
        return self._item_event(f"response.reasoning_summary_{kind}", opened, summary_index=0, **more)

    def _item_event(self, kind: str, opened: _Open, **more: Any) -> bytes:
        return self._event(kind, item_id=opened.item["id"], output_index=opened.index, **more)

    def _event(self, kind: str, **more: Any) -> bytes:
        seq, self._seq = self._seq, self._seq + 1
        if seq <= self._skip:
            return b""
        data = orjson.dumps({"type": kind, "sequence_number": seq, **more})
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
