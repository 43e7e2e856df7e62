"""The response.* events of one answer, in the order that OpenAI's clients read them. Pure: pieces in, events out."""

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from uuid_utils import uuid7

from domain.usage import Usage
from services.realtime.items import Item, item_id

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of a message; `done` closes it."""

    message_id: str
    text: str
    done: bool = False


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a function call: `arguments` is text to be joined."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class AskPiece:
    """Something that an agent may not do before somebody has said yes; `arguments` is JSON."""

    approval_id: str
    agent: str
    name: str
    arguments: str


Piece = TextPiece | CallPiece | AskPiece


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an answer ended. `error` is what OpenAI's clients are told of a failure."""

    status: Literal["completed", "cancelled", "incomplete", "failed"]
    reason: str | None = None
    error: dict[str, Any] | None = None
    usage: Usage | None = None


@dataclass(slots=True)
class _Open:
    item: Item
    index: int
    texts: list[str] = field(default_factory=list)
    spoken: bool = False
    sound: int = 0  # bytes that were told
    chars: int = 0


class ResponseEvents:
    """Tells one response.

    Args:
        emit: takes each event.
        keep: takes each new item into the conversation and gives the id of the one before it; None: out of band, the
            items belong to no conversation.
        echo: what the response object says of itself.
        emit_sound: takes events that may be dropped while they wait, when nobody is to hear them any more.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        keep: Callable[[Item], str | None] | None,
        echo: Event,
        emit_sound: Callable[[Event], None] | None = None,
    ) -> None:
        self.id = f"resp_{uuid7().hex}"
        self._emit = emit
        self._emit_sound = emit_sound or emit
        self._keep = keep
        self._echo = echo
        self._output: list[Item] = []
        self._open: dict[str, _Open] = {}
        self._before: dict[str, str | None] = {}

    @property
    def output(self) -> list[Item]:
        """The items of the answer so far."""
        return self._output

    def created(self) -> None:
        """It begins."""
        self._emit({"type": "response.created", "response": self._response("in_progress", None, None)})

    def add(self, piece: Piece) -> None:
        """Tell one piece."""
        if isinstance(piece, CallPiece):
            self._call(piece)
        elif isinstance(piece, AskPiece):
            self._ask(piece)
        else:
            self._text(piece)

    def say(self, message_id: str, text: str) -> None:
        """Tell the words of what is heard next."""
        opened = self._open.get(message_id)
        if opened is None:
            shown = {"type": "message", "role": "assistant", "content": []}
            opened = self._begin(message_id, shown, message_id)
            opened.spoken = True
            part = {"type": "audio", "transcript": ""}
            self._emit({"type": "response.content_part.added", **self._place(opened), "content_index": 0, "part": part})
        opened.texts.append(text)
        opened.chars += len(text)
        told = {"content_index": 0, "delta": text}
        self._emit({"type": "response.output_audio_transcript.delta", **self._place(opened), **told})

    def sound(self, message_id: str, sound: bytes, per_second: int) -> None:
        """Tell a piece of the sound of what `say` has told last."""
        opened = self._open[message_id]
        opened.sound += len(sound)
        mark = (opened.chars, opened.sound * 1_000 // per_second)
        marks = opened.item.marks
        if marks and marks[-1][0] == mark[0]:
            marks[-1] = mark
        else:
            marks.append(mark)
        told = {"content_index": 0, "delta": b64encode(sound).decode()}
        self._emit_sound({"type": "response.output_audio.delta", **self._place(opened), **told})

    def finished(self, outcome: Outcome) -> None:
        """Close what is open, and tell the end."""
        status: Literal["completed", "incomplete"] = "completed" if outcome.status == "completed" else "incomplete"
        for opened in list(self._open.values()):
            self._close(opened, status)
        details: Event | None = None
        if outcome.status != "completed":
            details = {"type": outcome.status}
            if outcome.reason is not None:
                details["reason"] = outcome.reason
            if outcome.error is not None:
                details["error"] = outcome.error
        self._emit({"type": "response.done", "response": self._response(outcome.status, details, outcome.usage)})

    # -- text --

    def _text(self, piece: TextPiece) -> None:
        opened = self._open.get(piece.message_id)
        if opened is None:
            if not piece.text:
                return
            shown = {"type": "message", "role": "assistant", "content": []}
            opened = self._begin(piece.message_id, shown, piece.message_id)
            part = {"type": "text", "text": ""}
            self._emit({"type": "response.content_part.added", **self._place(opened), "content_index": 0, "part": part})
        if piece.text:
            opened.texts.append(piece.text)
            self._emit(
                {"type": "response.output_text.delta", **self._place(opened), "content_index": 0, "delta": piece.text}
            )
        if piece.done:
            self._close(opened, "completed")

    def _end_text(self, opened: _Open) -> None:
        text = "".join(opened.texts)
        place = {**self._place(opened), "content_index": 0}
        if opened.spoken:
            opened.item.shown["content"] = [{"type": "output_audio", "transcript": text}]
            self._emit({"type": "response.output_audio.done", **place})
            self._emit({"type": "response.output_audio_transcript.done", **place, "transcript": text})
            part = {"type": "audio", "transcript": text}
            self._emit({"type": "response.content_part.done", **place, "part": part})
            return
        opened.item.shown["content"] = [{"type": "output_text", "text": text}]
        self._emit({"type": "response.output_text.done", **place, "text": text})
        self._emit({"type": "response.content_part.done", **place, "part": {"type": "text", "text": text}})

    # -- function calls --

    def _call(self, piece: CallPiece) -> None:
        opened = self._open.get(piece.call_id)
        if opened is None:
            for other in list(self._open.values()):  # a model says what it has to say before it calls
                if other.item.shown["type"] == "message":
                    self._close(other, "completed")
            shown = {"type": "function_call", "name": piece.name, "call_id": piece.call_id, "arguments": ""}
            opened = self._begin(item_id(), shown, piece.call_id)
        if piece.arguments:
            opened.texts.append(piece.arguments)
            told = {"call_id": piece.call_id, "delta": piece.arguments}
            self._emit({"type": "response.function_call_arguments.delta", **self._place(opened), **told})

    def _end_call(self, opened: _Open) -> None:
        shown = opened.item.shown
        shown["arguments"] = "".join(opened.texts)
        told = {name: shown[name] for name in ("call_id", "name", "arguments")}
        self._emit({"type": "response.function_call_arguments.done", **self._place(opened), **told})

    # -- approvals --

    def _ask(self, piece: AskPiece) -> None:
        item = approval_item(piece)
        where = {"response_id": self.id, "output_index": len(self._output)}
        self._output.append(item)
        self._emit({"type": "response.output_item.added", **where, "item": item.shown})
        if self._keep is not None:
            before = self._keep(item)
            for what in ("added", "done"):
                told = {"type": f"conversation.item.{what}", "previous_item_id": before, "item": item.shown}
                self._emit(told)
        self._emit({"type": "response.output_item.done", **where, "item": item.shown})

    # -- items --

    def _begin(self, new_id: str, shown: Event, key: str) -> _Open:
        head = {"id": new_id, "object": "realtime.item", "type": shown["type"], "status": "in_progress"}
        item = Item(new_id, {**head, **shown}, heard=True, record_id=key)
        opened = self._open[key] = _Open(item, len(self._output))
        self._output.append(item)
        where = {"response_id": self.id, "output_index": opened.index}
        self._emit({"type": "response.output_item.added", **where, "item": item.shown})
        if self._keep is not None:
            before = self._before[new_id] = self._keep(item)
            self._emit({"type": "conversation.item.added", "previous_item_id": before, "item": item.shown})
        return opened

    def _close(self, opened: _Open, status: Literal["completed", "incomplete"]) -> None:
        item = opened.item
        item.shown["status"] = status
        if item.shown["type"] == "message":
            self._end_text(opened)
        else:
            self._end_call(opened)
        del self._open[item.record_id]
        if self._keep is not None:
            before = self._before[item.id]
            self._emit({"type": "conversation.item.done", "previous_item_id": before, "item": item.shown})
        where = {"response_id": self.id, "output_index": opened.index}
        self._emit({"type": "response.output_item.done", **where, "item": item.shown})

    def _place(self, opened: _Open) -> Event:
        return {"response_id": self.id, "item_id": opened.item.id, "output_index": opened.index}

    def _response(self, status: str, details: Event | None, usage: Usage | None) -> Event:
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": [] if status == "in_progress" else [item.shown for item in self._output],
            **self._echo,
            "usage": None if usage is None else usage_body(usage),
        }


def approval_item(piece: AskPiece) -> Item:
    """A question as the protocol has it: OpenAI's servers ask so before they call a tool of an MCP server."""
    shown = {"id": piece.approval_id, "type": "mcp_approval_request", "server_label": piece.agent}
    return Item(piece.approval_id, {**shown, "name": piece.name, "arguments": piece.arguments}, heard=True)


def usage_body(usage: Usage) -> Event:
    """Usage in the protocol's words. A part that nobody told of is left out of the sum of text tokens, not invented."""
    audio, cached = usage.audio_tokens or 0, usage.cached_tokens or 0
    return {
        "total_tokens": usage.total_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_token_details": {
            "text_tokens": max(0, usage.input_tokens - audio),
            "audio_tokens": audio,
            "cached_tokens": cached,
        },
        "output_token_details": {"text_tokens": usage.output_tokens, "audio_tokens": 0},
    }
