"""What a run has told, kept small: consecutive pieces of one text are one item, and can be taken apart again."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter

from domain.events import AgentEvent, Envelope, RunId, TextDelta

_EVENT: TypeAdapter[AgentEvent] = TypeAdapter(AgentEvent)


class _Text:
    """Pieces of one message that came one after the other: piece i has `seq + i`."""

    __slots__ = ("at", "message_id", "pieces", "seq")

    def __init__(self, seq: int, at: datetime, message_id: str, piece: str) -> None:
        self.seq = seq
        self.at = at
        self.message_id = message_id
        self.pieces = [piece]


class Story:
    """Grows with a run; told again by `dump` and `load`."""

    __slots__ = ("_items", "_last", "_texts", "last_seq")

    def __init__(self) -> None:
        self._items: list[Envelope | _Text] = []
        self._texts: dict[str, list[_Text]] = {}
        self._last: _Text | None = None
        self.last_seq = 0

    def add(self, envelope: Envelope) -> None:
        """Keep it. Called once for each token: quick."""
        event = envelope.event
        self.last_seq = envelope.seq
        if type(event) is TextDelta and not event.done:
            last = self._last
            if last is not None and last.message_id == event.message_id:
                last.pieces.append(event.text)
                return
            self._last = text = _Text(envelope.seq, envelope.at, event.message_id, event.text)
            self._items.append(text)
            self._texts.setdefault(event.message_id, []).append(text)
            return
        self._last = None
        self._items.append(envelope)

    def text_of(self, message_id: str) -> str:
        """The words of one message so far."""
        return "".join(piece for text in self._texts.get(message_id, ()) for piece in text.pieces)

    def dump(self) -> str:
        """All of it as a JSON array."""
        return orjson.dumps([_item(item) for item in self._items], default=_plain).decode()


def load_story(run_id: str, stored: list[str]) -> Iterator[Envelope]:
    """The envelopes again, as they were told, from what `dump` gave.

    Raises:
        ValueError: it is not what `dump` gave.
    """
    for batch in stored:
        for item in orjson.loads(batch):
            seq, at = item.pop("seq"), datetime.fromisoformat(item.pop("at"))
            pieces = item.pop("pieces", None)
            if pieces is None:
                yield Envelope(RunId(run_id), seq, at, _EVENT.validate_python(item))
                continue
            for number, piece in enumerate(pieces):
                yield Envelope(RunId(run_id), seq + number, at, TextDelta(text=piece, message_id=item["message_id"]))


def _item(item: Envelope | _Text) -> dict[str, Any]:
    if isinstance(item, _Text):
        return {
            "seq": item.seq,
            "at": item.at,
            "kind": "text.delta",
            "message_id": item.message_id,
            "pieces": item.pieces,
        }
    return {"seq": item.seq, "at": item.at, **item.event.__dict__}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.__dict__
    return repr(value)
