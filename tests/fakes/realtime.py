"""Clients of the realtime door: raw sockets whose every event is checked against the types of OpenAI's SDK."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection, connect

from tests.fakes.house import House

SERVER_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
PATIENCE = 15.0


class Socket:
    """One connection."""

    def __init__(self, wire: ClientConnection) -> None:
        self.wire = wire
        self.session: dict[str, Any] = {}

    async def send(self, kind: str, **more: Any) -> None:
        """One event."""
        await self.wire.send(orjson.dumps({"type": kind, **more}).decode())

    async def receive(self) -> dict[str, Any]:
        """The next event; it is of the SDK's shape."""
        async with asyncio.timeout(PATIENCE):
            raw = await self.wire.recv()
        assert isinstance(raw, str)
        event: dict[str, Any] = orjson.loads(raw)
        SERVER_EVENT.validate_python(event)
        assert event["event_id"].startswith("event_")
        return event

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Every event up to the first of that type."""
        events = [await self.receive()]
        while events[-1]["type"] != kind:
            events.append(await self.receive())
        return events

    async def say(self, text: str, **more: Any) -> dict[str, Any]:
        """A message of the user; gives its item."""
        await self.send("conversation.item.create", item=user(text), **more)
        done = (await self.until("conversation.item.done"))[-1]
        item: dict[str, Any] = done["item"]
        return item

    async def answer(self, **response: Any) -> list[dict[str, Any]]:
        """The events of one whole response."""
        await self.send("response.create", **({"response": response} if response else {}))
        return await self.until("rate_limits.updated")

    async def ask(self, text: str, **response: Any) -> str:
        """The words of the answer to that."""
        await self.say(text)
        return words(await self.answer(**response))

    async def error(self) -> dict[str, Any]:
        """The next event, which is an error."""
        event = await self.receive()
        assert event["type"] == "error", event
        error: dict[str, Any] = event["error"]
        assert "Traceback" not in error["message"]
        return error

    async def closed(self) -> int:
        """The code with which the house closes."""
        async with asyncio.timeout(PATIENCE):
            await self.wire.wait_closed()
        return self.wire.close_code or 0


def user(text: str) -> dict[str, Any]:
    """What a user says."""
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def words(events: Iterable[dict[str, Any]]) -> str:
    """The text of all deltas."""
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def address(house: House, path: str = "/v1/realtime", **query: str) -> str:
    """Where to connect."""
    pairs = "&".join(f"{name}={value}" for name, value in query.items())
    return house.url.replace("http", "ws") + path + (f"?{pairs}" if pairs else "")


@asynccontextmanager
async def talking(
    house: House, model: str = "", *, token: str = "", path: str = "/v1/realtime", session: str = "", **more: Any
) -> AsyncIterator[Socket]:
    """A session of the admin's, or of whose token it is; it has been greeted."""
    headers = {"authorization": f"Bearer {token or house.tokens['access_token']}", **more.pop("headers", {})}
    query = {"model": model} if model else {}
    if session:
        headers["x-session-id"] = session
    async with connect(
        address(house, path, **query), additional_headers=headers, max_size=None, compression=None, **more
    ) as wire:
        socket = Socket(wire)
        greeting = await socket.receive()
        assert greeting["type"] == "session.created"
        socket.session = greeting["session"]
        yield socket


async def quiet(busy: Callable[[], object]) -> None:
    """Wait until nothing is left of it."""
    async with asyncio.timeout(PATIENCE):
        while busy():  # noqa: ASYNC110 - nothing tells when a process is quiet
            await asyncio.sleep(0.01)
