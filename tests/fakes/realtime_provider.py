"""A provider's own realtime server, over websockets: it speaks OpenAI's protocol, and has every fault we know of."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

import orjson
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

Fault = Literal["refused", "closes", "breaks", "silent", "rubbish", "binary", "bad_key", "no_credit", "cut", "hang"]
WORDS = ("Bon", "jour", " à tous")
SOUND = b"\x01\x02" * 1_200
USAGE = {
    "total_tokens": 30,
    "input_tokens": 20,
    "output_tokens": 10,
    "input_token_details": {"text_tokens": 8, "audio_tokens": 12, "cached_tokens": 4},
    "output_token_details": {"text_tokens": 2, "audio_tokens": 8},
}
HEARD_USAGE = {"type": "tokens", "total_tokens": 9, "input_tokens": 7, "output_tokens": 2}
SECRET = "sk-proj-the-key-of-the-house"


@dataclass
class RealtimeProvider:
    """The server; `url` is its base address."""

    url: str = ""
    fault: Fault | None = None
    late_transcript: bool = False
    sound: bytes = SOUND  # with each word
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    heard: list[dict[str, Any]] = field(default_factory=list)
    open: int = 0
    all_gone: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def kinds(self) -> list[str]:
        """Types of what came in."""
        return [event["type"] for event in self.heard]

    def process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        self.headers.append({name.lower(): value for name, value in request.headers.raw_items()})
        self.paths.append(request.path)
        if self.fault == "refused":
            return connection.respond(HTTPStatus.UNAUTHORIZED, f"Incorrect API key provided: {SECRET}")
        return None

    async def __call__(self, socket: ServerConnection) -> None:
        self.open += 1
        self.all_gone.clear()
        try:
            await _Session(self, socket).serve()
        except ConnectionClosed:
            pass
        finally:
            self.open -= 1
            if not self.open:
                self.all_gone.set()


class _Session:
    def __init__(self, house: RealtimeProvider, socket: ServerConnection) -> None:
        self._house = house
        self._socket = socket
        self._number = 0
        self._transcription: dict[str, Any] | None = None
        self._last: str | None = None

    async def _tell(self, kind: str, **more: Any) -> None:
        self._number += 1
        await self._socket.send(orjson.dumps({"type": kind, "event_id": f"event_{self._number}", **more}).decode())

    def _shown(self) -> dict[str, Any]:
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": "sess_theirs",
            "model": "gpt-realtime",
            "output_modalities": ["audio"],
            "instructions": "",
            "client_secret": {"value": "ek_theirs", "expires_at": 1},
            "audio": {"input": {"transcription": self._transcription}, "output": {}},
        }

    async def serve(self) -> None:
        await self._tell("session.created", session=self._shown())
        async for raw in self._socket:
            event = orjson.loads(raw)
            self._house.heard.append(event)
            match event["type"]:
                case "session.update":
                    given = ((event["session"].get("audio") or {}).get("input") or {}).get("transcription")
                    self._transcription = given or self._transcription
                    await self._tell("session.updated", session=self._shown())
                case "conversation.item.create":
                    await self._item(event["item"])
                case "input_audio_buffer.commit":
                    await self._commit()
                case "response.create":
                    if not await self._failed():
                        await self._respond((event.get("response") or {}).get("conversation") == "none")
                case "test.speech":  # as if the provider had heard somebody
                    await self._tell("input_audio_buffer.speech_started", item_id="item_speech", audio_start_ms=0)
                case "nonsense":
                    told = {"type": "invalid_request_error", "code": "invalid_value", "message": "No such type."}
                    await self._tell("error", error={**told, "param": None, "event_id": event.get("event_id")})

    async def _item(self, item: dict[str, Any]) -> None:
        self._number += 1
        shown = {"id": f"item_{self._number}", "object": "realtime.item", "status": "completed", **item}
        for what in ("added", "done"):
            await self._tell(f"conversation.item.{what}", previous_item_id=self._last, item=shown)
        self._last = shown["id"]

    async def _commit(self) -> None:
        self._number += 1
        item_id = f"item_{self._number}"
        await self._tell("input_audio_buffer.committed", item_id=item_id, previous_item_id=self._last)
        part = {"type": "input_audio", "transcript": None}
        await self._item({"id": item_id, "type": "message", "role": "user", "content": [part]})
        if not self._house.late_transcript:
            await self._transcribed(item_id)

    async def _transcribed(self, item_id: str) -> None:
        if self._transcription is not None:
            kind = "conversation.item.input_audio_transcription.completed"
            await self._tell(kind, item_id=item_id, content_index=0, transcript="Salut !", usage=HEARD_USAGE)

    async def _failed(self) -> bool:
        """The fault of this test, when it is one in place of an answer."""
        about_us = {"type": "invalid_request_error", "param": None, "event_id": None}
        match self._house.fault:
            case "closes":
                await self._socket.close(1000, "bye")
            case "breaks":
                self._socket.transport.abort()
            case "rubbish":
                await self._socket.send("{not json")
            case "binary":
                await self._socket.send(b"\0\1")
            case "bad_key":
                error = {**about_us, "code": "invalid_api_key", "message": f"Incorrect API key provided: {SECRET}"}
                await self._tell("error", error=error)
            case _:
                return False
        return True

    async def _respond(self, alone: bool) -> None:
        self._number += 1
        response_id, item_id, asked = f"resp_{self._number}", f"item_a{self._number}", self._last
        response: dict[str, Any] = {
            "object": "realtime.response",
            "id": response_id,
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "conversation_id": None if alone else "conv_1",
            "usage": None,
        }
        await self._tell("response.created", response=response)
        if self._house.fault == "no_credit":
            error = {
                "type": "insufficient_quota",
                "code": "insufficient_quota",
                "message": f"org-house1 has no credit, {SECRET}",
            }
            await self._tell(
                "response.done",
                response={**response, "status": "failed", "status_details": {"type": "failed", "error": error}},
            )
            return
        item: dict[str, Any] = {"id": item_id, "object": "realtime.item", "type": "message", "role": "assistant"}
        shown = {**item, "status": "in_progress", "content": []}
        place = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        await self._tell("response.output_item.added", response_id=response_id, output_index=0, item=shown)
        if not alone:
            await self._tell("conversation.item.added", previous_item_id=asked, item=shown)
        for word in WORDS:
            await self._tell("response.output_audio_transcript.delta", **place, delta=word)
            await self._tell("response.output_audio.delta", **place, delta=base64.b64encode(self._house.sound).decode())
            if self._house.fault == "cut":
                self._socket.transport.abort()
                return
            if self._house.fault == "hang":
                self._house.begun.set()
                await self._socket.wait_closed()
                return
        done = {**item, "status": "completed", "content": [{"type": "output_audio", "transcript": "".join(WORDS)}]}
        await self._tell("response.output_audio.done", **place)
        await self._tell("response.output_item.done", response_id=response_id, output_index=0, item=done)
        whole = {**response, "status": "completed", "output": [done], "usage": USAGE}
        await self._tell("response.done", response=whole)
        if self._house.late_transcript and asked is not None:
            await self._transcribed(asked)


@asynccontextmanager
async def realtime_provider() -> AsyncIterator[RealtimeProvider]:
    """One that listens."""
    provider = RealtimeProvider()
    async with serve(provider, "127.0.0.1", 0, process_request=provider.process_request, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        provider.url = f"http://127.0.0.1:{port}/v1"
        yield provider
