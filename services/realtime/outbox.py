"""Events on their way to one client: bounded, so that a slow reader pauses the source and not the house."""

import asyncio
from typing import Any

import orjson
from uuid_utils import uuid7


def event_id() -> str:
    """An id for an event of ours."""
    return f"event_{uuid7().hex}"


class Outbox:
    """Filled by the conversation, emptied by its transport.

    Args:
        most: bytes that may wait; `put` always takes, `room` waits.
    """

    __slots__ = ("_closed", "_most", "_room", "_size", "_tags", "_waiting", "_wake")

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: list[str] = []
        self._tags: list[str | None] = []
        self._size = 0
        self._closed = False
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def closed(self) -> bool:
        """True when nothing more is taken."""
        return self._closed

    @property
    def full(self) -> bool:
        """True when the source should pause."""
        return self._size >= self._most and not self._closed

    def put(self, event: dict[str, Any], tag: str | None = None) -> None:
        """One more event; its id is added. `tag`: it may be dropped while it waits."""
        if self._closed:
            return
        self.put_text(orjson.dumps({"event_id": event_id(), **event}).decode(), tag)

    def put_text(self, text: str, tag: str | None = None) -> None:
        """One more event, written already. `tag`: as `put`."""
        if self._closed:
            return
        self._waiting.append(text)
        self._tags.append(tag)
        self._size += len(text)
        self._wake_up("_wake")

    def drop(self, tag: str) -> None:
        """Whatever waits and has that tag is not told any more."""
        if tag not in self._tags:
            return
        kept = [(text, one) for text, one in zip(self._waiting, self._tags, strict=True) if one != tag]
        self._waiting, self._tags = [text for text, _ in kept], [one for _, one in kept]
        self._size = sum(map(len, self._waiting))
        if not self.full:
            self._wake_up("_room")

    async def room(self) -> None:
        """Wait until the reader has taken what is waiting, or is gone."""
        while self.full:
            if self._room is None or self._room.done():
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    async def take(self) -> list[str]:
        """What is waiting, as soon as something is; nothing: it is closed and empty. One reader."""
        while not self._waiting and not self._closed:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        taken, self._waiting, self._tags, self._size = self._waiting, [], [], 0
        self._wake_up("_room")
        return taken

    def close(self) -> None:
        """Nothing more comes; what is waiting can still be taken."""
        self._closed = True
        self._wake_up("_wake")
        self._wake_up("_room")

    def _wake_up(self, name: str) -> None:
        waiter: asyncio.Future[None] | None = getattr(self, name)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
